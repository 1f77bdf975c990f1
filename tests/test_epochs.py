"""Which epoch comes next, said by the caller."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import batchkit as bk

executors = pytest.mark.parametrize("executor", ["inline", "threads"])


def numbers(rows: int = 20) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows)})


def counting(rows: int = 20) -> bk.Pipeline:
    return bk.from_generator(lambda: ({"x": value} for value in range(rows)))


def values(batches: Any) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


FROM_THE_FIRST_BATCH_ON = {
    "by number": lambda: numbers().shuffle(3).batch(6),
    "in order": lambda: numbers().shuffle(3).filter(lambda row: row["x"] % 3 > 0).batch(4),
    "a generator": lambda: counting().shuffle(3, window=8).batch(6),
    "endless": lambda: numbers().shuffle(3).repeat().batch(6).take(5),
}


@executors
@pytest.mark.parametrize("case", FROM_THE_FIRST_BATCH_ON)
@pytest.mark.parametrize("where", ["before", "within", "behind"])
def test_set_epoch_begins_an_epoch_with_its_first_batch(case: str, where: str, executor: str) -> None:
    pipe = FROM_THE_FIRST_BATCH_ON[case]()
    with bk.Loader(pipe, executor=executor) as loader, bk.Loader(pipe, executor="inline") as plain:
        wanted = [values(plain) for _ in range(5)]
        if where == "within":
            batches = iter(loader)
            next(batches), next(batches)
        elif where == "behind":
            list(loader)
        for epoch in (3, 1, 1):
            loader.set_epoch(epoch)
            assert loader.epoch == epoch
            assert values(loader) == wanted[epoch]
        assert values(loader) == wanted[2]


@pytest.mark.parametrize("case", ["by number", "a generator"])
def test_a_state_behind_set_epoch_is_in_that_epoch(case: str) -> None:
    pipe = FROM_THE_FIRST_BATCH_ON[case]()
    with bk.Loader(pipe) as loader, bk.Loader(pipe) as resumed:
        loader.set_epoch(7)
        first = next(iter(loader))
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert [first["x"].tolist(), *values(resumed)] == values(loader.iterate(7))


def test_an_iteration_that_set_epoch_left_behind_does_not_move_the_loader() -> None:
    with bk.Loader(numbers().batch(5)) as loader:
        begun = iter(loader)
        next(begun)
        loader.set_epoch(4)
        assert values(begun) == [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]
        assert (loader.epoch, loader.state_dict()["step"]) == (4, 0)


@pytest.mark.parametrize(
    ("epoch", "message"),
    [
        (-1, r"set_epoch\(epoch\) must be at least 0, not -1"),
        (1.5, r"set_epoch\(epoch\) must be a whole number, not 1.5"),
    ],
)
def test_set_epoch_refuses_what_is_no_epoch(epoch: Any, message: str) -> None:
    with bk.Loader(numbers().batch(5)) as loader, pytest.raises(bk.PipelineError, match=message):
        loader.set_epoch(epoch)


@pytest.mark.parametrize("pipe", [numbers().batch(5), counting().batch(5), numbers().take(0).batch(5)])
def test_a_loader_is_true_whether_or_not_it_has_a_length(pipe: bk.Pipeline) -> None:
    with bk.Loader(pipe) as loader:
        assert bool(loader) is True
