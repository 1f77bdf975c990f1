"""Combinations with parts whose rows have no numbers: the same as over arrays, and they resume from every step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from tests.executors import EXECUTORS


def numbered(first: int, count: int) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(first, first + count)})


def counted(first: int, count: int) -> bk.Pipeline:
    def rows() -> Iterator[Any]:
        return ({"x": np.int64(first + i)} for i in range(count))

    return bk.from_generator(rows)


def always(row: Any) -> bool:
    return True


def summed(row: Any) -> Any:
    return {"x": row["a"]["x"] * 1000 + row["b"]["x"]}


Parts = Callable[[int, int], bk.Pipeline]
UNNUMBERED: dict[str, Parts] = {
    "filtered": lambda first, count: numbered(first, count).filter(always),
    "generator": counted,
    "filtered generator": lambda first, count: counted(first, count).filter(always),
    "nested": lambda first, count: bk.concat([counted(first, 2), numbered(first + 2, count - 2)]),
}
COMBINED: dict[str, Callable[[Parts], bk.Pipeline]] = {
    "concat": lambda part: bk.concat([part(0, 10), part(100, 7), part(200, 5)]),
    "interleave": lambda part: bk.interleave([part(0, 10), part(100, 7), part(200, 3)]),
    "interleave in blocks": lambda part: bk.interleave([part(0, 10), part(100, 7), part(200, 3)], block=3),
    "mix to the first end": lambda part: bk.mix([part(0, 10), part(100, 7)], [1, 3]),
    "mix of all": lambda part: bk.mix([part(0, 10), part(100, 7), part(200, 4)], [1, 3, 2], stop="all"),
    "mix for ever": lambda part: bk.mix([part(0, 10), part(100, 7)], [5, 2], stop="forever").take(70),
    "mix by schedule": lambda part: bk.mix([part(0, 30), part(100, 30)], schedule=[(0, [1, 0]), (8, [1, 2])]),
    "zip": lambda part: bk.zip({"a": part(0, 9), "b": part(100, 9)}).map(summed),
    "shortest zip": lambda part: bk.zip({"a": part(0, 9), "b": part(100, 7)}, stop="shortest").map(summed),
    "with stages behind": lambda part: (
        bk.mix([part(0, 20), part(100, 20)], [2, 1], stop="all").filter(odd).shuffle(3, window=4).repeat(2)
    ),
}


def odd(row: Any) -> bool:
    return bool(row["x"] % 2)


def loaded(pipe: bk.Pipeline, state: Any = None, **options: Any) -> tuple[list[list[int]], list[Any]]:
    with bk.Loader(pipe.batch(4), **options) as loader:
        if state is not None:
            loader.load_state_dict(json.loads(json.dumps(state)))
        batches, states = [], []
        for batch in loader:
            batches.append(batch["x"].tolist())
            states.append(loader.state_dict())
    return batches, states


every = pytest.mark.parametrize("name", COMBINED)
parts = pytest.mark.parametrize("part", UNNUMBERED)


@parts
@every
def test_rows_come_as_from_parts_with_numbers_and_resume_behind_every_step(name: str, part: str) -> None:
    pipe = COMBINED[name](UNNUMBERED[part])
    batches, states = loaded(pipe, executor="inline")
    if name != "with stages behind":  # whose random order goes by row numbers
        assert batches == loaded(COMBINED[name](numbered), executor="inline")[0]
    assert len(batches) > 1
    for step, state in enumerate(states[:-1]):
        assert loaded(pipe, state, executor="inline")[0] == batches[step + 1 :]


@pytest.mark.parametrize("executor", EXECUTORS)
@every
def test_every_executor_gives_the_same_batches(name: str, executor: str) -> None:
    pipe = COMBINED[name](UNNUMBERED["filtered"])
    workers: dict[str, Any] = {} if executor in ("inline", "auto") else {"workers": 1}
    assert loaded(pipe, executor=executor, **workers) == loaded(pipe, executor="inline")


@pytest.mark.parametrize("world", [2, 3])
@parts
def test_ranks_have_slices_of_the_same_batches(part: str, world: int) -> None:
    pipe = COMBINED["mix of all"](UNNUMBERED[part])
    whole, _ = loaded(pipe)
    ranks = [loaded(pipe, shard=(rank, world))[0] for rank in range(world)]
    assert [[x for mine in ranks for x in mine[step]] for step in range(len(whole))] == whole
    assert {len(mine) for mine in ranks} == {len(whole)}


@parts
def test_a_zip_of_unequal_parts_is_an_error_that_says_where_it_ended(part: str) -> None:
    pipe = bk.zip({"a": UNNUMBERED[part](0, 9), "b": UNNUMBERED[part](100, 7)}).map(summed).batch(4)
    with (
        bk.Loader(pipe) as loader,
        pytest.raises(bk.PipelineError, match=r"part b ended after 7 rows.*stop='shortest'"),
    ):
        list(loader)


def test_a_part_without_rows_cannot_start_again() -> None:
    pipe = bk.mix([counted(0, 5), counted(9, 0)], [1, 1], stop="forever").batch(4)
    with bk.Loader(pipe) as loader, pytest.raises(bk.PipelineError, match="no rows cannot start again"):
        list(loader)


def test_parts_of_different_schemas_are_an_error_that_names_the_leaf() -> None:
    other = bk.from_arrays({"x": np.arange(5.0)}).filter(always)
    pipe = bk.interleave([UNNUMBERED["filtered"](0, 5), other]).batch(4)
    with bk.Loader(pipe) as loader, pytest.raises(bk.SchemaError, match=r"interleave\(\): part 1.*leaf 'x'"):
        list(loader)


def test_random_stages_of_the_parts_draw_differently() -> None:
    def part() -> bk.Pipeline:
        return numbered(0, 50).filter(always).random_map(lambda row, rng: {"x": rng.integers(0, 1 << 40)})

    drawn = [x for batch in loaded(bk.concat([part(), part()]))[0] for x in batch]
    assert len(set(drawn)) == 100
