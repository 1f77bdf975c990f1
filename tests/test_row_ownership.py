"""Functions and sequences that fill one array anew for every row: every row of a batch keeps its own values."""

from __future__ import annotations

import itertools
from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.plan.rows.apart import apart
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


def two_in_turn() -> Filling:
    buffers = itertools.cycle([np.empty(3), np.empty(3)])

    def fill(row: Any) -> Any:
        buffer = next(buffers)
        buffer[:] = row["n"]
        return {"x": buffer[:2]}

    return fill


def parts_of_one_that_overlap() -> Filling:
    buffer = np.empty(2 * ROWS)

    def fill(row: Any) -> Any:
        view = buffer[row["n"] : row["n"] + 4]
        view[:] = row["n"]
        return {"x": view}

    return fill


def a_mapping() -> Filling:
    again: UserDict[str, Any] = UserDict()

    def fill(row: Any) -> Any:
        again["x"] = np.full(2, row["n"])
        return again

    return fill


def a_list() -> Filling:
    again: list[int] = []

    def fill(row: Any) -> Any:
        again[:] = [row["n"]] * 2
        return {"x": again}

    return fill


@pytest.mark.parametrize("filling", [two_in_turn, parts_of_one_that_overlap, a_mapping, a_list])
def test_a_sequence_may_fill_anew_what_shows_only_beside_other_rows(filling: Callable[[], Filling]) -> None:
    assert delivered(bk.from_sequence(Refilled(filling))) == list(range(ROWS))


class Views:
    """Rows that are views of one array; counts how often each is read."""

    def __init__(self) -> None:
        self.data = np.repeat(np.arange(ROWS), 3).reshape(ROWS, 3)
        self.read: list[int] = []

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, number: int) -> Any:
        self.read.append(number)
        return {"x": self.data[number]}


def test_rows_that_lie_apart_are_read_once_and_not_copied_before_they_are_stacked() -> None:
    views = Views()
    assert delivered(bk.from_sequence(views)) == list(range(ROWS))
    assert views.read == list(range(ROWS))
    lent = SequenceSource(views).lent(np.array([3, 1]))
    assert [np.shares_memory(row["x"], views.data) for row in lent] == [True, True]


def test_a_function_may_change_rows_that_are_views_of_a_sequence() -> None:
    views = Views()

    def doubled(row: Any) -> Any:
        row["x"] *= 2
        return row

    assert delivered(bk.from_sequence(views).map(doubled)) == [2 * n for n in range(ROWS)]
    assert views.data[:, 0].tolist() == list(range(ROWS))


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


@fillings
def test_a_sequence_that_fills_anew_may_fail_at_a_row_that_is_left_out(filling: Callable[[], Filling]) -> None:
    class Failing(Refilled):
        def __getitem__(self, number: int) -> Any:
            if number == 3:
                raise ValueError("no three")
            return super().__getitem__(number)

    with bk.Loader(bk.from_sequence(Failing(filling)).batch(ROWS), executor="inline", on_error="skip") as loader:
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


# -- rows made of one row, and functions that change the row they are given


def put_anew(row: Any) -> Any:
    row["pair"] = row["pair"] * 2
    return row


def write_into(row: Any) -> Any:
    row["pair"] *= 2
    return row


EXPANSIONS: dict[str, Callable[[Any], Any]] = {
    "the row three times": lambda row: [row] * 3,
    "dicts that share an array": lambda row: [{**row, "copy": number} for number in range(3)],
    "yielded again": lambda row: (row for _ in range(3)),
    "views of one array": lambda row: [{**row, "pair": row["pair"][:]} for _ in range(3)],
    "nested": lambda row: [{"n": row["n"], "pair": row["pair"], "in": {"tuple": (row["pair"],)}}] * 3,
}


@pytest.mark.parametrize("change", [put_anew, write_into])
@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("between", ["nothing", "a filter", "take"])
def test_a_row_that_a_function_changes_does_not_change_those_made_of_the_same_row(
    change: Callable[[Any], Any], expansion: str, between: str
) -> None:
    made = rows().flat_map(EXPANSIONS[expansion])
    made = {"nothing": made, "a filter": made.filter(lambda row: True), "take": made.take(3 * ROWS)}[between]
    with bk.Loader(made.map(change).batch(5), executor="inline") as loader:
        for _ in range(2):
            got = np.concatenate([batch["pair"] for batch in loader])
            np.testing.assert_array_equal(got, np.repeat(2 * np.arange(2 * ROWS).reshape(ROWS, 2), 3, axis=0))


def test_windows_that_overlap_are_changed_each_by_itself() -> None:
    texts = bk.from_ragged({"pair": np.arange(12)}, [0, 5, 12]).window(4, stride=2, inside=True)
    with bk.Loader(texts.map(write_into).batch(8), executor="inline") as loader:
        got = [batch["pair"].tolist() for batch in loader]
    starts = [0, 5, 7]
    assert got == [[[2 * value for value in range(start, start + 4)] for start in starts]]


def test_parts_of_a_row_that_do_not_overlap_are_not_copied() -> None:
    row = np.arange(12.0)
    parts = apart([{"x": row[start : start + 4]} for start in (0, 4, 8)])
    assert [np.shares_memory(part["x"], row) for part in parts] == [True] * 3


def test_parts_of_a_row_that_overlap_are_copied() -> None:
    row = np.arange(12.0)
    for views in ([row[0:8], row[4:12]], [row[8:], row[:4], row[2:10]], [row[::2], row[1:3]], [row[1:3], row[::2]]):
        parts = apart([{"x": view} for view in views])
        assert [np.shares_memory(part["x"], row) for part in parts].count(False) == 1
        for part, view in zip(parts, views, strict=True):
            np.testing.assert_array_equal(part["x"], view)


def test_many_parts_of_one_array_are_told_apart_in_any_order() -> None:
    row = np.arange(400.0)
    forward = [slice(start, start + 4) for start in range(0, 400, 4)]
    for places in (forward, forward[::-1]):
        parts = apart([{"x": row[place]} for place in places])
        assert all(np.shares_memory(part["x"], row) for part in parts)
    again = apart([{"x": row[place]} for place in [*forward, *forward, slice(0, 400, 7)]])
    assert [np.shares_memory(part["x"], row) for part in again] == [True] * 100 + [False] * 101
