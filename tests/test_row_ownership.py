"""Functions and sequences that fill one array anew for every row: every row of a batch keeps its own values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.sources.sequence import SequenceSource
from batchkit.sources.sharing import OwnRows

ROWS = 12
Filling = Callable[[Any], Any]


def rows() -> bk.Pipeline:
    return bk.from_arrays({"n": np.arange(ROWS), "pair": np.arange(2 * ROWS).reshape(ROWS, 2)})


def delivered(pipe: bk.Pipeline, size: int = 5) -> list[int]:
    """Return the first entry of every row of every batch; batches are kept until all are there."""
    with bk.Loader(pipe.batch(size), executor="inline") as loader:
        kept = [batch["x"] for batch in loader]
    return [int(np.ravel(row)[0]) for batch in kept for row in batch]


def the_array() -> Filling:
    buffer = np.empty(3)

    def fill(row: Any) -> Any:
        buffer[:] = row["n"]
        return {"x": buffer}

    return fill


def a_view_of_it() -> Filling:
    buffer = np.empty(3)

    def fill(row: Any) -> Any:
        buffer[:] = row["n"]
        return {"x": buffer[:2]}

    return fill


def the_row_itself() -> Filling:
    row_again: dict[str, Any] = {}

    def fill(row: Any) -> Any:
        row_again["x"] = row["n"] * np.ones(2)
        return row_again

    return fill


def put_into_the_row_that_is_given() -> Filling:
    buffer = np.empty(3)

    def fill(row: Any) -> Any:
        buffer[:] = row["n"]
        row["x"] = buffer
        return row

    return fill


def within_a_nesting() -> Filling:
    buffer = np.empty(3)

    def fill(row: Any) -> Any:
        buffer[:] = row["n"]
        return {"x": buffer, "more": {"y": (buffer, 1)}}

    return fill


def a_list() -> Filling:
    listed = [0, 0]

    def fill(row: Any) -> Any:
        listed[0] = int(row["n"])
        return {"x": listed}

    return fill


FILLINGS = [the_array, a_view_of_it, the_row_itself, put_into_the_row_that_is_given, within_a_nesting, a_list]
fillings = pytest.mark.parametrize("filling", FILLINGS)


@fillings
def test_a_map_may_fill_what_it_returns_anew_for_every_row(filling: Callable[[], Filling]) -> None:
    assert delivered(rows().map(filling())) == list(range(ROWS))


@fillings
def test_a_random_map_may_fill_what_it_returns_anew_for_every_row(filling: Callable[[], Filling]) -> None:
    fill = filling()
    assert delivered(rows().random_map(lambda row, rng: fill(row))) == list(range(ROWS))


@fillings
def test_a_filter_behind_sees_every_row_as_it_was_returned(filling: Callable[[], Filling]) -> None:
    odd = rows().map(filling()).filter(lambda row: int(np.ravel(row["x"])[0]) % 2 == 1)
    assert delivered(odd, size=4) == list(range(1, ROWS, 2))


@fillings
def test_functions_in_a_row_may_each_fill_what_they_return_anew(filling: Callable[[], Filling]) -> None:
    fill = filling()
    twice = rows().map(the_array()).map(lambda row: fill({"n": row["x"][0] * 2}))
    assert delivered(twice) == list(range(0, 2 * ROWS, 2))


@fillings
def test_rows_held_back_keep_their_values(filling: Callable[[], Filling]) -> None:
    found = delivered(rows().map(filling()).filter(lambda row: True).shuffle(1, window=ROWS), size=3)
    assert found != sorted(found)
    assert sorted(found) == list(range(ROWS))


@fillings
def test_flat_map_may_yield_what_it_fills_anew(filling: Callable[[], Filling]) -> None:
    fill = filling()

    def two_of_each(row: Any) -> Any:
        for number in (0, 1):
            yield fill({**row, "n": row["n"] * 2 + number})

    assert delivered(rows().flat_map(two_of_each)) == list(range(2 * ROWS))


@fillings
def test_flat_map_may_list_what_it_fills_anew_for_every_row(filling: Callable[[], Filling]) -> None:
    fill = filling()
    assert delivered(rows().flat_map(lambda row: [fill(row)])) == list(range(ROWS))


class Refilled:
    """Rows by number in one array, as a reader of records has it."""

    def __init__(self, filling: Callable[[], Filling]) -> None:
        self.fill = filling()

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, number: int) -> Any:
        return self.fill({"n": number})


@fillings
def test_a_sequence_may_fill_what_it_returns_anew_for_every_row(filling: Callable[[], Filling]) -> None:
    assert delivered(bk.from_sequence(Refilled(filling)).shuffle(2, reshuffle=False).skip(2)) == delivered(
        bk.from_arrays({"x": np.arange(ROWS)}).shuffle(2, reshuffle=False).skip(2)
    )


@fillings
def test_a_failing_row_that_is_left_out_leaves_the_others_as_they_are(filling: Callable[[], Filling]) -> None:
    fill = filling()

    def fails_on_three(row: Any) -> Any:
        if row["n"] == 3:
            raise ValueError("no three")
        return fill(row)

    with bk.Loader(rows().map(fails_on_three).batch(ROWS), executor="inline", on_error="skip") as loader:
        (batch,) = loader
    assert [int(np.ravel(row)[0]) for row in batch["x"]] == [n for n in range(ROWS) if n != 3]


TABLE = np.arange(6.0)
MAPPED = np.arange(6.0)
MAPPED.flags.writeable = False


@pytest.mark.parametrize(
    "made",
    [
        lambda row: {"x": row["pair"] * 2},
        lambda row: {"x": (row["pair"] * 2)[:1]},
        lambda row: {"x": row["pair"][:1]},
        lambda row: {**row, "x": row["pair"]},
        lambda row: {"x": int(row["n"]), "y": (row["pair"], [1, 2])},
        lambda row: {"x": MAPPED[2:4]},
        lambda row: row,
        lambda row: row["pair"],
    ],
    ids=["new", "of a new one", "of the row", "and the row", "nested", "read only", "the row", "a leaf of it"],
)
def test_what_belongs_to_the_row_alone_is_not_copied(made: Callable[[Any], Any]) -> None:
    data = np.arange(8).reshape(4, 2)
    row = {"n": np.int64(1), "pair": data[1]}
    owned = OwnRows(dict(row))
    assert owned.look([made(row)], 0, row) is False


def test_only_what_somebody_else_holds_is_copied() -> None:
    row = {"pair": np.arange(2)}
    done = [{"x": TABLE[2:4], "new": np.ones(2), "pair": row["pair"]}]
    owned = OwnRows(dict(row))
    assert owned.look(done, 0, row) is True
    made = owned(done[0])
    assert not np.shares_memory(made["x"], TABLE)
    assert (made["new"] is done[0]["new"], made["pair"] is row["pair"]) == (True, True)


def test_rows_of_a_list_are_not_copied() -> None:
    listed = [{"x": np.arange(3)} for _ in range(4)]
    read = SequenceSource(listed).read(np.array([2, 1]))
    assert [row["x"] is listed[number]["x"] for row, number in zip(read, (2, 1), strict=True)] == [True, True]
