"""Random pipelines against the oracle: contents, order, length, shards, and resuming from every step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as hs
from oracle import epoch_of, rank_slice

import batchkit as bk
from batchkit.random import Permutation

Verbs = list[tuple[str, Any]]


def given_order(seeds: list[int]) -> Any:
    """Return the orders that shuffles of these seeds have, after checking that each is a permutation."""

    def order(ordinal: int, length: int, epoch: int) -> list[int]:
        found = Permutation(length, (1, seeds[ordinal], ordinal, epoch))(np.arange(length)).tolist()
        assert sorted(found) == list(range(length))
        return found

    return order


def add_ten(row: Any) -> Any:
    return {**row, "x": row["x"] + 10}


@hs.composite
def row_verbs(draw: Any) -> Verbs:
    one = hs.one_of(
        hs.tuples(hs.just("shuffle"), hs.integers(0, 3)),
        hs.tuples(hs.just("take"), hs.integers(0, 25)),
        hs.tuples(hs.just("skip"), hs.integers(0, 10)),
        hs.tuples(hs.just("repeat"), hs.integers(1, 3)),
        hs.just(("map", add_ten)),
    )
    return draw(hs.lists(one, max_size=4))


@hs.composite
def pipelines(draw: Any) -> Verbs:
    size = draw(hs.integers(1, 9))
    verbs = [*draw(row_verbs()), ("batch", (size, draw(hs.sampled_from(["keep", "drop"]))))]
    verbs += draw(row_verbs())
    if draw(hs.booleans()) and not any(verb in ("shuffle", "repeat", "take", "skip") for verb, _ in _behind(verbs)):
        verbs += [("unbatch", None), *draw(row_verbs()), ("batch", (draw(hs.integers(1, 9)), "keep"))]
    return verbs


def _behind(verbs: Verbs) -> Verbs:
    return verbs[max(index for index, (verb, _) in enumerate(verbs) if verb == "batch") + 1 :]


def built(pipe: bk.Pipeline, verbs: Verbs) -> bk.Pipeline:
    for verb, argument in verbs:
        if verb == "batch":
            pipe = pipe.batch(argument[0], remainder=argument[1])
        elif verb == "unbatch":
            pipe = pipe.unbatch()
        else:
            pipe = getattr(pipe, verb)(argument)
    return pipe


def expected(rows: int, verbs: Verbs, epoch: int) -> list[list[int]]:
    data = [{"x": value} for value in range(rows)]
    plain = [(verb, _over_lists(argument) if verb == "map" else argument) for verb, argument in verbs]
    orders = given_order([argument for verb, argument in verbs if verb == "shuffle"])
    batches = epoch_of(data, plain, epoch, orders)
    return [[row["x"] for row in batch] for batch in batches]


def _over_lists(function: Any) -> Any:
    return lambda item: [function(row) for row in item] if isinstance(item, list) else function(item)


def values(batches: Any) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


def source(kind: str, rows: int) -> bk.Pipeline:
    if kind == "arrays":
        return bk.from_arrays({"x": np.arange(rows)})
    if kind == "sequence":
        return bk.from_sequence([{"x": value} for value in range(rows)])
    return bk.from_generator(lambda: ({"x": value} for value in range(rows)))


KINDS = hs.sampled_from(["arrays", "sequence"])
EXECUTORS = hs.sampled_from(["inline", "threads"])


@settings(max_examples=250, deadline=None)
@given(hs.integers(0, 40), pipelines(), KINDS, EXECUTORS, hs.integers(1, 3))
def test_batches_are_what_the_oracle_says_in_every_epoch(
    rows: int, verbs: Verbs, kind: str, executor: str, workers: int
) -> None:
    with bk.Loader(
        built(source(kind, rows), verbs), executor=executor, workers="auto" if executor == "inline" else workers
    ) as loader:
        for epoch in range(2):
            assert values(loader) == expected(rows, verbs, epoch)
            assert len(loader) == len(expected(rows, verbs, epoch))


@settings(max_examples=150, deadline=None)
@given(hs.integers(0, 40), pipelines(), EXECUTORS, hs.integers(1, 3))
def test_a_generator_gives_the_same_as_the_oracle(rows: int, verbs: Verbs, executor: str, workers: int) -> None:
    verbs = [(verb, argument) for verb, argument in verbs if verb != "shuffle"]
    with bk.Loader(
        built(source("generator", rows), verbs), executor=executor, workers="auto" if executor == "inline" else workers
    ) as loader:
        for epoch in range(2):
            assert values(loader) == expected(rows, verbs, epoch)


@settings(max_examples=100, deadline=None)
@given(hs.integers(0, 30), pipelines(), hs.sampled_from(["arrays", "sequence", "generator"]), hs.integers(1, 4))
def test_ranks_take_contiguous_slices_and_have_equal_numbers_of_steps(
    rows: int, verbs: Verbs, kind: str, world: int
) -> None:
    if kind == "generator":
        verbs = [(verb, argument) for verb, argument in verbs if verb != "shuffle"]
    pipe = built(source(kind, rows), verbs)
    wanted = expected(rows, verbs, 0)
    for rank in range(world):
        with bk.Loader(pipe, executor="inline", shard=(rank, world)) as loader:
            assert values(loader) == [rank_slice(batch, rank, world) for batch in wanted]


@settings(max_examples=60, deadline=None)
@given(hs.integers(0, 20), pipelines(), hs.sampled_from(["arrays", "sequence", "generator"]), EXECUTORS)
def test_resuming_from_every_step_gives_the_identical_rest(rows: int, verbs: Verbs, kind: str, executor: str) -> None:
    if kind == "generator":
        verbs = [(verb, argument) for verb, argument in verbs if verb != "shuffle"]
    pipe = built(source(kind, rows), verbs)
    wanted = [expected(rows, verbs, epoch) for epoch in range(3)]
    assume(len(wanted[0]) <= 100)  # repeat() of repeat() of repeat(): every step is resumed
    with bk.Loader(pipe, executor="inline") as first:
        iterator, seen = iter(first), 0
        while True:
            state = json.loads(json.dumps(first.state_dict()))
            with bk.Loader(pipe, executor=executor, workers="auto" if executor == "inline" else 2) as second:
                second.load_state_dict(state)
                rest = wanted[0][seen:] or wanted[1]
                assert values(second) == rest
                assert values(second) == wanted[1 if wanted[0][seen:] else 2]
            if next(iterator, None) is None:
                break
            seen += 1


@settings(max_examples=100, deadline=None)
@given(hs.integers(1, 30), pipelines())
def test_plan_batch_counts_over_epochs(rows: int, verbs: Verbs) -> None:
    from batchkit.plan import compile

    plan = compile(built(source("arrays", rows), verbs))
    wanted = expected(rows, verbs, 0) + expected(rows, verbs, 1)
    if plan.steps_per_epoch:
        assert [plan.batch(k)["x"].tolist() for k in range(len(wanted))] == wanted
    else:
        with pytest.raises(bk.PipelineError, match="there is no batch 0"):
            plan.batch(0)


@settings(max_examples=100, deadline=None)
@given(hs.integers(1, 30), hs.integers(1, 8), hs.integers(1, 8), hs.integers(1, 3))
def test_a_random_map_treats_a_row_alike_at_any_batch_size_and_world(rows: int, one: int, two: int, world: int) -> None:
    def noise(batch: Any, rng: Any) -> Any:
        return {**batch, "noise": rng.normal(size=2), "pick": rng.integers(0, 100)}

    def per_row(pipe: bk.Pipeline, shard: tuple[int, int] = (0, 1)) -> dict[int, Any]:
        with bk.Loader(pipe, executor="inline", shard=shard) as loader:
            return {
                int(x): (noise.tobytes(), int(pick))
                for batch in loader
                for x, noise, pick in zip(batch["x"], batch["noise"], batch["pick"], strict=True)
            }

    data = source("arrays", rows)
    reference = per_row(data.batch(one).random_map(noise))
    assert len(reference) == rows
    assert per_row(data.shuffle(5).batch(two).random_map(noise)) != {}
    assert per_row(data.batch(two).random_map(noise)) == reference
    merged: dict[int, Any] = {}
    for rank in range(world):
        merged.update(per_row(data.batch(two).random_map(noise), (rank, world)))
    assert merged == reference
    assert per_row(data.random_map(noise).batch(two)) == reference


@settings(max_examples=60, deadline=None)
@given(hs.integers(0, 30), hs.integers(1, 4), hs.integers(1, 3), hs.sampled_from(["arrays", "sequence", "generator"]))
def test_padding_keeps_shapes_static_and_masks_what_is_no_row(rows: int, per_rank: int, world: int, kind: str) -> None:
    size = per_rank * world
    pipe = source(kind, rows).batch(size, remainder="pad")
    for rank in range(world):
        with bk.Loader(pipe, executor="inline", shard=(rank, world)) as loader:
            batches = list(loader)
        assert len(batches) == -(-rows // size)
        for number, batch in enumerate(batches):
            first = number * size + rank * per_rank
            wanted = [value for value in range(first, first + per_rank) if value < rows]
            assert batch["x"].tolist() == wanted + [0] * (per_rank - len(wanted))
            assert batch["mask"].tolist() == [True] * len(wanted) + [False] * (per_rank - len(wanted))
