"""What explain() says where rows have to be computed to be counted: what a loader's batches say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from told import FEW, TOLD, all_batches, as_lists, count, fails, generated, some, states, thirds, told

import batchkit as bk
from batchkit.plan import compile


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
@pytest.mark.parametrize("name", TOLD)
def test_explain_says_what_the_batches_say(name: str, shard: tuple[int, int]) -> None:
    pipe = TOLD[name]()
    for epoch in (0, 2):
        for step, batch in enumerate(all_batches(pipe, shard, epoch, executor="inline")):
            found = bk.explain(pipe, step, shard, epoch=epoch)
            assert as_lists(found) == as_lists(batch["lineage"])
            assert found.rows == count(batch)


@pytest.mark.parametrize("name", FEW)
def test_explain_says_the_same_from_any_earlier_state(name: str) -> None:
    pipe = TOLD[name]()
    expected = [as_lists(batch["lineage"]) for batch in all_batches(pipe, (1, 2), 1, executor="inline")]
    for at, state in enumerate(states(pipe, epoch=1)):
        for step in range(at, len(expected)):
            assert as_lists(bk.explain(pipe, step, (1, 2), state=state)) == expected[step]


def first_of(row: Any) -> Any:
    return {"row": row["row"][0]}


class Counted(Sequence[Any]):
    """Rows that count how often they are read."""

    def __init__(self, rows: int) -> None:
        self.rows, self.read = rows, set[int]()

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: Any) -> Any:
        self.read.add(int(row))
        return {"source": np.zeros(1 + row % 5, np.int64), "row": np.full(1 + row % 5, row)}


@pytest.mark.parametrize(
    ("made", "back"),
    [
        (lambda pipe: pipe.filter(lambda row: bool(row["row"][0] % 3)).map(first_of).batch(4), 32),
        (lambda pipe: pipe.filter(lambda row: True).map(first_of).window(3).batch(4), 256 + 256),
        (lambda pipe: pipe.pack(16).batch(4), 512 + 256),
        (lambda pipe: pipe.bucket_batch(4, boundaries=[2, 4, 5]), 512 + 256),
    ],
    ids=["filter", "window", "pack", "buckets"],
)
def test_only_the_chunk_or_run_that_the_state_is_in_is_read_again(
    made: Callable[[bk.Pipeline], bk.Pipeline], back: int
) -> None:
    state = states(made(bk.from_sequence(Counted(6000))))[240]
    rows = Counted(6000)
    pipe = made(bk.from_sequence(rows))
    compile(pipe).fingerprint()
    looked_at = set(rows.read)
    found = bk.explain(pipe, 240, state=state)
    assert min(rows.read - looked_at) >= int(found.row.min()) - back > 100
    rows.read.clear()
    assert as_lists(bk.explain(pipe, 240)) == as_lists(found)
    assert set(range(int(found.row.min()))) <= rows.read


def test_no_row_behind_the_step_is_read() -> None:
    rows = Counted(2000)
    bk.explain(bk.from_sequence(rows).filter(lambda row: True).batch(4), 2)
    assert max(rows.read - {len(rows) // 2, len(rows) - 1}) < 32


def refuse(batch: Any) -> Any:
    raise AssertionError("it was called")


def test_what_comes_behind_the_cut_is_not_computed() -> None:
    assert bk.explain(some(0, 30).batch(4).map(refuse), 1).row.tolist() == [7, 8, 10, 11]
    assert bk.explain(told(0, 30).batch(4).filter(thirds).map(refuse), 1).row.tolist() == [4, 5, 7]
    assert bk.explain(some(0, 30).batch(4).filter(thirds).map(refuse), 1).row.tolist() == [7, 8, 10, 11]
    assert bk.explain(generated(9).map(refuse).batch(4), 1).row.tolist() == [4, 5, 6, 7]


def test_of_what_a_batch_filter_looks_at_only_the_step_is_read() -> None:
    rows = Counted(2000)
    pipe = bk.from_sequence(rows).map(first_of).batch(4).filter(thirds)
    rows.read.clear()
    assert bk.explain(pipe, 100).row.tolist() == [400, 401, 403]
    assert rows.read == {400, 401, 402, 403}


def test_what_never_ends_is_explained_up_to_the_step() -> None:
    endless = bk.from_generator(lambda: ({"row": row} for row in itertools.count()))
    assert bk.explain(endless.filter(lambda row: bool(row["row"] % 2)).batch(3), 5).row.tolist() == [31, 33, 35]
    found = bk.explain(some(0, 6).repeat().batch(3), 5)
    assert (found.row.tolist(), found.epoch.tolist()) == ([5, 1, 2], [3, 4, 4])


def test_a_generator_ends_when_its_step_is_found() -> None:
    closed = []

    def rows() -> Iterator[Any]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    bk.explain(bk.from_generator(rows).batch(3), 2)
    assert closed == [True]


@pytest.mark.parametrize("start", [0, 3])
def test_a_step_behind_the_end_is_refused_with_how_many_there_are(start: int) -> None:
    pipe = some(0, 30).batch(4)
    state = states(pipe)[start]
    with pytest.raises(bk.PipelineError, match=r"no step 5: epoch 0 has 5 steps, counted from 0 \(the last one is st"):
        bk.explain(pipe, 5, state=state)
    with pytest.raises(bk.PipelineError, match=r"no step 0: epoch 2 has 0 steps, counted from 0 \(there are no batche"):
        bk.explain(told(0, 30).filter(lambda row: False).batch(4), 0, epoch=2)


def test_a_row_in_front_that_fails_is_an_error_with_its_step() -> None:
    pipe = told(0, 200).map(fails).filter(lambda row: True).batch(2)
    with pytest.raises(bk.StageError, match=r"epoch 0, after step 0: stage 0 map\(.*:fails\)"):
        bk.explain(pipe, 4)


# --- states that do not fit


def test_a_state_that_does_not_fit_is_refused_by_name() -> None:
    pipe = some(0, 30).batch(4)
    state = states(pipe)[2]
    with pytest.raises(bk.StateError, match=r"of another pipeline: its stage 1 is batch\(size=4\), and here it is b"):
        bk.explain(some(0, 30).batch(5), 3, state=state)
    with pytest.raises(bk.StateError, match="of another data set"):
        bk.explain(some(0, 31).batch(4), 3, state=state)
    with pytest.raises(bk.StateError, match=r"stands at step 2, behind step 1, which is to be explained: take one"):
        bk.explain(pipe, 1, state=state)
    with pytest.raises(bk.StateError, match=r"the state is of epoch 0, and epoch 1 is to be explained: take a state"):
        bk.explain(pipe, 3, epoch=1, state=state)
    with pytest.raises(bk.StateError, match="it is damaged"):
        bk.explain(pipe, 3, state={**state, "step": 1})
    with pytest.raises(bk.StateError, match="which no state of this pipeline has here"):
        bk.explain(pipe, 3, state={**state, "step": 0})
    with pytest.raises(bk.StateError, match="a state is a dict"):
        bk.explain(pipe, 3, state=[1])  # type: ignore[arg-type]


def test_a_state_of_an_indexed_pipeline_says_the_epoch() -> None:
    pipe = told(0, 20).shuffle(1).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        list(loader)
        next(iter(loader))
        state = loader.state_dict()
    assert as_lists(bk.explain(pipe, 3, state=state)) == as_lists(bk.explain(pipe, 3, epoch=1))
    with pytest.raises(bk.StateError, match="which no state of this pipeline has here"):
        bk.explain(pipe, 3, state={**state, "walk": {"at": [0], "check": 0}})
