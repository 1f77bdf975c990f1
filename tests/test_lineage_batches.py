"""Which source rows Loader(lineage=True) says a batch holds: leaves of the data tell where rows are from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from told import FEW, TOLD, Pairs, all_batches, as_lists, count, fails, generated, in_data, said, some, states, told

import batchkit as bk


@pytest.mark.parametrize("shard", [(0, 1), (1, 3)])
@pytest.mark.parametrize("name", TOLD)
def test_every_batch_says_which_rows_it_holds(name: str, shard: tuple[int, int]) -> None:
    seen = 0
    for batch in all_batches(TOLD[name](), shard, executor="inline"):
        expected = [in_data(name, batch, place) for place in range(count(batch))]
        assert said(batch["lineage"], count(batch)) == expected
        seen += sum(map(len, expected))
    assert seen > 3


@pytest.mark.parametrize("executor", ["threads", "processes"])
@pytest.mark.parametrize("name", FEW)
def test_every_executor_says_the_same(name: str, executor: str) -> None:
    one = all_batches(TOLD[name](), executor="inline")
    other = all_batches(TOLD[name](), executor=executor, workers=2)
    assert [as_lists(batch["lineage"]) for batch in other] == [as_lists(batch["lineage"]) for batch in one]


@pytest.mark.parametrize("name", FEW)
def test_a_run_that_goes_on_says_the_same(name: str) -> None:
    pipe = TOLD[name]()
    expected = [as_lists(batch["lineage"]) for batch in all_batches(pipe, executor="inline")]
    for step, state in enumerate(states(pipe)):
        with bk.Loader(pipe, lineage=True, executor="inline") as loader:
            loader.load_state_dict(state)
            assert [as_lists(batch["lineage"]) for batch in loader] == expected[step:]


def test_the_mask_of_rows_that_pad_tells_which_have_no_origin() -> None:
    pipe = generated(11).window(2, remainder="pad").drop("mask").batch(4, remainder="pad")
    found = [said(batch["lineage"], 4) for batch in all_batches(pipe, executor="inline")]
    pairs = [[(0, row), (0, row + 1)] for row in range(0, 10, 2)]
    assert found == [pairs[:4], [pairs[4], [(0, 10)], [], []]]


def test_a_rank_without_rows_says_that_it_has_none() -> None:
    pipe = generated(4).window(1).batch(3)
    found = [[as_lists(b["lineage"])[2] for b in all_batches(pipe, (rank, 3), executor="inline")] for rank in range(3)]
    assert found == [[[0], []], [[1], []], [[2], [3]]]


def test_the_passes_are_those_of_the_rows_in_front() -> None:
    pipe = some(0, 4).repeat(2).window(2).repeat(2).batch(2)
    found = [as_lists(batch["lineage"]) for batch in all_batches(pipe, epoch=1, executor="inline")]
    # The repeat behind makes passes 2 and 3 of epoch 1, and the one in front two of each.
    assert found == [[[0, 0, 1, 1], [0] * 4, [1, 2] * 2, epochs] for epochs in ([4, 4, 5, 5], [6, 6, 7, 7])]


def drawn(row: Any, rng: Any) -> Any:
    return {**row, "draw": rng.random()}


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_passes_of_zipped_rows_are_those_that_random_numbers_go_by(epoch: int) -> None:
    sides = [told(side, 8).random_map(drawn, seed=4).filter(lambda row: True) for side in (0, 1)]
    pipe = bk.zip({"a": sides[0].repeat(2), "b": bk.concat([sides[1], sides[1]])}).repeat(2).batch(5)
    with bk.Loader(told(0, 8).random_map(drawn, seed=4).batch(8), executor="inline") as alone:
        for batch in all_batches(pipe, epoch=epoch, executor="inline"):
            for place, source, row, turn in zip(*as_lists(batch["lineage"]), strict=True):
                if source == 0:  # the other side draws by numbers of its own
                    assert batch["a"]["draw"][place] == next(alone.iterate(turn))["draw"][row]


SKIPPING: dict[str, Callable[[], bk.Pipeline]] = {
    "rows: indexed": lambda: told(0, 20).shuffle(1).map(fails).batch(6),
    "rows: filtered": lambda: told(0, 20).map(fails).filter(lambda row: True).batch(6),
    "rows: generator": lambda: generated(20).map(fails).batch(6),
    "zip: indexed": lambda: bk.zip({"a": told(0, 20).map(fails), "b": told(1, 20).shuffle(3).map(fails)}).batch(6),
    "rows: mix": lambda: bk.mix([told(0, 20).map(fails), told(1, 20)], [1, 2]).batch(6),
    "windows: over what fails": lambda: generated(20).map(fails).filter(lambda row: True).window(3).batch(2),
}


@pytest.mark.parametrize("executor", ["inline", "processes"])
@pytest.mark.parametrize("name", SKIPPING)
def test_rows_that_are_left_out_are_not_said_to_be_there(name: str, executor: str) -> None:
    options = {} if executor == "inline" else {"workers": 1}
    skip = bk.Skip(budget=100)
    rows: Pairs = []
    for batch in all_batches(SKIPPING[name](), executor=executor, on_error=skip, **options):
        found = said(batch["lineage"], count(batch))
        assert found == [in_data(name, batch, place) for place in range(count(batch))]
        rows += [pair for row in found for pair in row]
    assert len(rows) > 10
    assert not {(0, 2), (0, 5), (0, 11)} & set(rows)


def test_a_leaf_that_is_called_so_already_is_refused() -> None:
    with pytest.raises(bk.SchemaError, match="adds a leaf 'lineage'"):
        next(iter(bk.Loader(told(0, 9).rename(row="lineage").batch(3), lineage=True)))
