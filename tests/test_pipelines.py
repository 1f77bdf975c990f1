"""Random pipelines over random sources against the oracle: contents, order, ranks, resuming, JSON.

`make fuzz` runs the same with ten times as many examples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracle
import pytest
from cases import Case
from drawing import CONTRACT, cases, has
from hypothesis import given, note, settings
from hypothesis import strategies as hs
from trees import flat, stacked

import batchkit as bk
from batchkit.executors import ProcessExecutor

STILL_MISSING: set[str] = set()
"""What of the contract batchkit has not yet: whoever builds it takes it out here, and the tests take it on."""
MOST_STATE = 4096
EVERY = 8  # steps that a longer epoch is resumed from; a shorter one is resumed from all


def examples(count: int) -> settings:
    """Return how many examples a test has: ``count``, more of them under ``make fuzz``."""
    return settings(max_examples=count * settings().max_examples // 100)


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessExecutor]:
    """Workers that all examples share, since starting them takes longer than most of the examples."""
    executor = ProcessExecutor(2)
    yield executor
    executor.close()


EXECUTORS = hs.sampled_from([*["inline"] * 12, *["threads"] * 10, *["auto"] * 8, "processes"])


def loaded(pipe: bk.Pipeline, executor: str, pool: ProcessExecutor, shard: tuple[int, int] = (0, 1)) -> bk.Loader:
    """Return a loader with that executor; worker processes are those of the pool."""
    if executor == "processes":
        return bk.Loader(pipe, executor=pool, shard=shard)
    return bk.Loader(pipe, executor=executor, workers=2 if executor == "threads" else "auto", shard=shard)


# -- what is compared


def plain(batch: Any) -> dict[str, Any]:
    """Return the leaves of a batch, without what was drawn."""
    return {path: leaf for path, leaf in flat(batch).items() if path != "noise"}


def assert_same(got: Any, wanted: Any) -> None:
    """Compare two batches leaf by leaf, byte by byte; of no rows only that there are none."""
    one, two = plain(got), plain(stacked(wanted)) if wanted else {}
    if not wanted:
        assert {len(leaf) for leaf in one.values()} == {0}
        return
    assert {path: (leaf.dtype, leaf.shape) for path, leaf in one.items()} == {
        path: (leaf.dtype, leaf.shape) for path, leaf in two.items()
    }
    for path, leaf in one.items():
        assert leaf.tobytes() == two[path].tobytes(), (path, leaf, two[path])


def assert_all_same(got: Any, wanted: list[Any]) -> None:
    """Compare all batches of an epoch."""
    got = list(got)
    assert len(got) == len(wanted)
    for batch, want in zip(got, wanted, strict=True):
        assert_same(batch, want)


def assert_bytes(got: list[Any], wanted: list[Any]) -> None:
    """Compare batches that batchkit made, with what was drawn."""
    assert len(got) == len(wanted)
    for batch, want in zip(got, wanted, strict=True):
        one, two = flat(batch), flat(want)
        assert [*one] == [*two]
        for path, leaf in one.items():
            assert (leaf.dtype, leaf.shape, leaf.tobytes()) == (two[path].dtype, two[path].shape, two[path].tobytes())


def print_of(tree: Any) -> Any:
    """Return something that is equal for equal rows, and for equal batches."""
    return tuple(
        (path, str(np.asarray(leaf).dtype), np.shape(leaf), np.asarray(leaf).tobytes())
        for path, leaf in sorted(plain(tree).items())
    )


class Expected:
    """What the oracle says of a case.

    The order of a shuffle is taken from what batchkit delivers up to it, once it is shown that these are the same
    rows in another order: in a shuffle of everything all of them, in one by windows those of each window.
    """

    def __init__(self, case: Case) -> None:
        self._case, self._rows, self._verbs = case, case.source.items(), case.spoken()
        self._orders: dict[tuple[int, int], list[int]] = {}

    def batches(self, epoch: int, shard: tuple[int, int] = (0, 1)) -> list[Any]:
        """Return the batches of an epoch, as a rank sees them."""
        return oracle.epoch_of(self._rows, self._verbs, epoch, self._order, shard)

    def _order(self, ordinal: int, length: int, epoch: int) -> list[int]:
        if (ordinal, epoch) not in self._orders:
            self._orders[ordinal, epoch] = self._observed(self._case.shuffles()[ordinal], epoch)
        return self._orders[ordinal, epoch]

    def _observed(self, place: int, epoch: int) -> list[int]:
        before = oracle.epoch_of(self._rows, self._verbs[:place], epoch, self._order)
        pipe = self._case.pipe(place + 1)
        with bk.Loader(pipe if pipe.batched else pipe.padded_batch(1), executor="inline") as loader:
            seen = [print_of(batch) for batch in loader.iterate(epoch)]
        items = [print_of(stacked(item if isinstance(item, oracle.Batch) else [item])) for item in before]
        window = self._case.verbs[place][1].get("window", len(items) or 1)
        order: list[int] = []
        for start in range(0, len(items), window):
            assert Counter(seen[start : start + window]) == Counter(items[start : start + window])
            free: dict[Any, list[int]] = {}
            for offset, item in enumerate(items[start : start + window]):
                free.setdefault(item, []).append(start + offset)
            order += [free[item].pop(0) for item in seen[start : start + window]]
        assert len(seen) == len(items)
        return order


def worlds(case: Case, wanted: int) -> int:
    """Return how many ranks a case is given: with static shapes the sizes must divide."""
    sizes = [options.get("size", 1) for _, options in case.verbs if options.get("remainder") == "pad"]
    return wanted if all(size % wanted == 0 for size in sizes) else 1


# -- what exists


def test_what_is_still_missing_is_listed_and_nothing_else() -> None:
    assert {name for name in CONTRACT if not has(name)} == STILL_MISSING


# -- the properties


@examples(700)
@given(cases(), EXECUTORS)
def test_batches_are_what_the_oracle_says_in_every_epoch(processes: ProcessExecutor, case: Case, executor: str) -> None:
    pipe, expected = case.pipe(), Expected(case)
    with bk.Loader(pipe, executor="inline") as reference, loaded(pipe, executor, processes) as loader:
        for epoch in range(2):
            found, wanted = list(reference), expected.batches(epoch)
            assert_all_same(found, wanted)
            assert_bytes(list(loader), found)
            try:
                assert len(loader) == len(wanted)
            except TypeError as exc:
                note(str(exc))
                assert not case.source.indexed or any(has(verb) and verb in UNKNOWN for verb, _ in case.verbs)


UNKNOWN = ("filter", "flat_map", "window", "pack", "bucket_batch")
"""The verbs behind which nobody knows how many batches there are, or need not."""


@examples(400)
@given(cases(most=60), EXECUTORS, hs.integers(2, 4))
def test_ranks_take_contiguous_slices_and_have_equal_numbers_of_batches(
    processes: ProcessExecutor, case: Case, executor: str, world: int
) -> None:
    world, expected = worlds(case, world), Expected(case)
    with bk.Loader(case.pipe(), executor="inline") as whole:
        noise = [flat(batch).get("noise") for batch in whole]
    ranks, states = [], []
    for rank in range(world):
        with loaded(case.pipe(), executor, processes, (rank, world)) as loader:
            ranks.append(list(loader))
            states.append(loader.state_dict())
        assert_all_same(ranks[-1], expected.batches(0, (rank, world)))
    assert all(state == states[0] for state in states)
    for number, drawn in enumerate(noise):
        if drawn is not None:
            parts = [flat(batches[number])["noise"] for batches in ranks]
            assert np.concatenate([part for part in parts if len(part)] or parts[:1]).tobytes() == drawn.tobytes()


@examples(450)
@given(cases(most=60), EXECUTORS)
def test_resuming_from_every_step_gives_the_identical_rest(
    processes: ProcessExecutor, case: Case, executor: str
) -> None:
    pipe = case.pipe()
    with bk.Loader(pipe, executor="inline") as first:
        epochs = [list(first.iterate(epoch)) for epoch in range(3)]
        iterator, states = iter(first), []
        for _ in range(len(epochs[0]) + 1):
            states.append(json.dumps(first.state_dict()))
            next(iterator, None)
        states.append(json.dumps(first.state_dict()))
    assert max(map(len, states)) <= MOST_STATE
    last = len(epochs[0])
    for step in range(0, last + 1, 1 + last // EVERY):
        with loaded(pipe, executor, processes) as second:
            second.load_state_dict(json.loads(states[step]))
            assert not last or json.dumps(second.state_dict()) == states[step]
            over = 0 < last == step  # nothing is left of the epoch: the next one begins at once
            assert_bytes(list(second), epochs[1] if over else epochs[0][step:])
            if step in (0, last):
                assert_bytes(list(second), epochs[2] if over else epochs[1])
    with loaded(pipe, executor, processes) as third:
        third.load_state_dict(json.loads(states[-1]))
        assert_bytes(list(third), epochs[1])


@examples(300)
@given(cases(most=60), EXECUTORS, hs.integers(1, 4), hs.integers(1, 4), hs.data())
def test_another_world_goes_on_where_one_stopped(
    processes: ProcessExecutor, case: Case, executor: str, one: int, two: int, data: Any
) -> None:
    one, two, expected = worlds(case, one), worlds(case, two), Expected(case)
    count = len(expected.batches(0))
    step = data.draw(hs.integers(0, max(count - 1, 0)), label="step")
    with bk.Loader(case.pipe(), executor="inline", shard=(one - 1, one)) as before:
        for _, _ in zip(range(step), before, strict=False):
            pass
        if not step:
            assert before.state_dict()["step"] == 0
        state = json.loads(json.dumps(before.state_dict()))
    for rank in range(two):
        with loaded(case.pipe(), executor, processes, (rank, two)) as after:
            after.load_state_dict(state)
            assert_all_same(after, expected.batches(0, (rank, two))[step:])
            assert_all_same(after, expected.batches(1, (rank, two)))


@examples(200)
@given(cases(made=("generator", "batches"), most=60))
def test_a_pipeline_that_went_through_json_is_the_same(case: Case) -> None:
    pipe = case.pipe()
    described = json.dumps(pipe.to_dict())
    again = bk.Pipeline.from_dict(json.loads(described))
    assert json.dumps(again.to_dict()) == described
    with bk.Loader(pipe, executor="inline") as one, bk.Loader(again, executor="inline") as two:
        assert_bytes(list(two), list(one))
        assert one.state_dict() == two.state_dict()
