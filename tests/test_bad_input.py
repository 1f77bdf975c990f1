"""What a pipeline is given that cannot be right: an error or a documented result, never a hang or a shorter epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from executors import every, loaded

import batchkit as bk


def numbers(count: int = 40) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(count)})


def counted(count: int = 40) -> bk.Pipeline:
    """Return rows that come from a generator, of which nobody knows how many there are."""
    return bk.from_generator(lambda: ({"x": np.int64(row)} for row in range(count)))


def lengths(*sizes: int) -> bk.Pipeline:
    return bk.from_generator(lambda: ({"x": np.arange(size)} for size in sizes))


def never(row: Any) -> bool:
    return False


def never_columns(columns: Any) -> Any:
    return columns["x"] < 0


def no_rows(row: Any) -> list[Any]:
    return []


def batches() -> Iterator[Any]:
    return ({"x": np.arange(4)} for _ in range(5))


# -- nothing for ever

NOTHING: dict[str, Callable[[], bk.Pipeline]] = {
    "filter": lambda: numbers().repeat().filter(never).batch(2),
    "flat_map": lambda: numbers().flat_map(no_rows).repeat().batch(2),
    "filter of a generator": lambda: counted().repeat().filter(never).batch(2),
    "flat_map of a generator": lambda: counted().repeat().flat_map(no_rows).batch(2),
    "flat_map, then filter": lambda: counted().repeat().flat_map(lambda row: [row, row]).filter(never).batch(2),
    "filter behind windows": lambda: counted().repeat().window(3).filter(never).batch(2),
    "filter behind a window shuffle": lambda: counted().repeat().shuffle(1, window=500).filter(never).batch(2),
    "filter of batches": lambda: numbers(8).batch(4).repeat().filter(never_columns).rebatch(2),
    "filter of batches of a generator": lambda: counted().repeat().batch(4).filter(never_columns).rebatch(2),
    "filter of a generator's own batches": lambda: (
        bk.from_generator(batches, batched=True).repeat().filter(never_columns).rebatch(2)
    ),
    "pack": lambda: bk.from_ragged({"x": np.zeros(0)}, [0, 0, 0]).repeat().pack(8).batch(2),
    "pack of a generator": lambda: lengths(0, 0, 0).repeat().pack(8).batch(2),
    "filter behind pack": lambda: lengths(9, 9).repeat().pack(4, oversize="split").filter(never).batch(2),
    "windows inside": lambda: lengths(1, 1).repeat().window(3, inside=True).batch(2),
    "mix": lambda: bk.mix([numbers(), numbers()], [1, 3], stop="forever").filter(never).batch(2),
    "mix with a generator": lambda: bk.mix([counted(), numbers()], [1, 3], stop="forever").filter(never).batch(2),
    "mix until all ended": lambda: bk.mix([counted(5).repeat(), counted()], [1, 1], stop="all").filter(never).batch(2),
    "concat": lambda: bk.concat([counted(5), counted().repeat()]).filter(never).batch(2),
    "interleave": lambda: bk.interleave([counted(5).repeat(), counted()]).filter(never).batch(2),
    "zip": lambda: bk.zip({"a": counted(5).repeat(), "b": counted(7).repeat()}).filter(never).batch(2),
    "a part of a mix": lambda: bk.mix([counted().repeat().filter(never), numbers()], [1, 1]).batch(2),
}
FEW = ("filter of a generator", "filter of batches of a generator", "pack of a generator", "mix with a generator")
"""Those that worker processes, which are slow to start, are tried with."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "executor"),
    [(name, word) for name in NOTHING for word in ("inline", "threads", "auto")]
    + [(name, "processes") for name in FEW],
)
def test_what_leaves_nothing_for_ever_is_an_error_not_a_spin(name: str, executor: str) -> None:
    with (
        loaded(NOTHING[name](), executor) as loader,
        pytest.raises(bk.PipelineError, match=r"never yield anything|would never end"),
    ):
        next(iter(loader))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["filter", "filter of a generator", "mix with a generator"])
def test_it_is_one_in_the_middle_of_an_epoch_and_behind_a_state_too(name: str) -> None:
    left = [10]

    def some(row: Any) -> bool:
        left[0] -= 1
        return left[0] >= 0

    source = {
        "filter": numbers(),
        "filter of a generator": counted(),
        "mix with a generator": bk.mix([counted(), numbers()], [1, 1], stop="forever"),
    }[name]
    pipe = source.repeat().filter(some).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        iterator = iter(loader)
        assert len(next(iterator)["x"]) == 4
        state = loader.state_dict()
        assert len(next(iterator)["x"]) == 4
        with pytest.raises(bk.PipelineError, match="never yield anything"):
            next(iterator)
    left[0] = 0
    with bk.Loader(source.repeat().filter(some).batch(4), executor="inline") as loader:
        loader.load_state_dict({**state, "walk": None})
        with pytest.raises(bk.PipelineError, match="never yield anything"):
            next(iter(loader))


LATE: dict[str, Callable[[], bk.Pipeline]] = {
    "mix, seldom drawn": lambda: bk.mix(
        [numbers(100), numbers(100).map(lambda row: {"x": row["x"] + 1000})], [1, 50], stop="forever"
    ).filter(lambda row: bool(row["x"] == 90)),
    "mix with a generator, seldom drawn": lambda: bk.mix(
        [counted(100), counted(100).map(lambda row: {"x": row["x"] + 1000})], [1, 50], stop="forever"
    ).filter(lambda row: bool(row["x"] == 90)),
    "last of a long pass": lambda: counted(1000).repeat().filter(lambda row: bool(row["x"] == 990)),
    "window longer than a pass": lambda: (
        counted(100).repeat().shuffle(1, window=1000).filter(lambda row: bool(row["x"] == 50))
    ),
    "last of what a flat_map makes": lambda: (
        counted(10)
        .repeat()
        .flat_map(lambda row: [row] * 200)
        .map(lambda row: {"x": np.zeros(int(row["x"] == 9))})
        .pack(1, bins=1)
        .map(lambda row: {"x": row["x"][0]})
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_what_leaves_something_seldom_is_waited_for(name: str) -> None:
    with bk.Loader(LATE[name]().take(3).batch(1), executor="inline") as loader:
        assert [len(batch["x"]) for batch in loader] == [1, 1, 1]


@pytest.mark.parametrize("passes", [3, 20])
def test_passes_that_end_may_all_leave_nothing(passes: int) -> None:
    for rows in (
        counted(300),
        bk.concat([counted(300), counted(5)]),
        bk.mix([counted(300), counted(30)], [1, 1], stop="all"),
        bk.interleave([counted(300), numbers(30)]),
    ):
        with bk.Loader(rows.repeat(passes).filter(never).batch(4), executor="inline") as loader:
            assert list(loader) == []


def test_endless_combinations_of_rows_without_numbers_are_not_kept() -> None:
    for pipe in (
        bk.zip({"a": counted(5).repeat(), "b": counted(7).repeat()}),
        bk.mix([counted(5).repeat(), counted(7).repeat()], [1, 1]),
        bk.mix([counted(5).repeat(), counted(7)], [1, 1], stop="all"),
    ):
        with pytest.raises(bk.PipelineError, match=r"cannot keep endless rows: put repeat\(\) behind cache\(\)"):
            bk.Loader(pipe.cache().batch(2))


# -- functions that end an epoch


@every
@pytest.mark.parametrize("stage", ["filter", "flat_map", "flat_map, yielding", "bucket_batch"])
def test_stop_iteration_in_a_function_is_an_error_not_a_shorter_epoch(stage: str, executor: str) -> None:
    def stops(row: Any) -> Any:
        if int(np.ravel(row["x"])[0]) == 5:
            raise StopIteration
        return {"filter": True, "flat_map": [row], "bucket_batch": 1}[stage]

    def yields(row: Any) -> Iterator[Any]:
        if row["x"] == 5:
            raise StopIteration
        yield row

    pipe = {
        "filter": lambda: numbers().filter(stops).batch(4),
        "flat_map": lambda: numbers().flat_map(stops).batch(4),
        "flat_map, yielding": lambda: numbers().flat_map(yields).batch(4),
        "bucket_batch": lambda: (
            numbers().map(lambda row: {"x": row["x"][None]}).bucket_batch(4, boundaries=[1], length=stops)
        ),
    }[stage]()
    with loaded(pipe, executor) as loader, pytest.raises(bk.StageError, match=r"row 5.*StopIteration"):
        list(loader)


# -- weights of any size


@pytest.mark.parametrize(
    ("weights", "first"), [([10**400, 1], 0), ([1, 10**400], 1), ([1e-320, 1], 1), ([1e308, 1e-308], 0)]
)
def test_a_weight_may_be_as_great_or_as_small_as_numbers_are(weights: list[Any], first: int) -> None:
    pipe = bk.mix([numbers(), numbers().map(lambda row: {"x": row["x"] + 100})], weights)
    with bk.Loader(pipe.batch(20), executor="inline") as loader:
        assert [batch["x"].tolist() for batch in loader] == [
            list(range(100 * first + start, 100 * first + start + 20)) for start in (0, 20)
        ]


# -- rows of another number of axes


@every
@pytest.mark.parametrize("verb", ["padded_batch", "bucket_batch", "pack"])
@pytest.mark.parametrize(
    ("one", "two"), [((2,), (2, 2)), ((2,), ()), ((), (2,))], ids=["vector, matrix", "vector, scalar", "scalar, vector"]
)
def test_a_leaf_with_another_number_of_axes_is_named_with_both_rows(
    one: tuple[int, ...], two: tuple[int, ...], verb: str, executor: str
) -> None:
    rows = bk.from_sequence([{"x": np.zeros(shape), "y": 1.0} for shape in (one, two)])
    pipe = {
        "padded_batch": lambda: rows.padded_batch(2),
        "bucket_batch": lambda: rows.bucket_batch(2, boundaries=[4], length=lambda row: 2),
        "pack": lambda: rows.select("x").pack(8).batch(2),
    }[verb]()
    with (
        loaded(pipe, executor) as loader,
        pytest.raises(bk.SchemaError, match=r"row 1: leaf 'x' is float64\[.*\], but row 0 has float64\[") as caught,
    ):
        next(iter(loader))
    assert "Use padded_batch()" not in str(caught.value)
