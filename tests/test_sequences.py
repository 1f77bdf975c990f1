"""pack and bucket_batch in pipelines: contents, state, ranks and executors. The planners have tests of their own."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

import batchkit as bk
from batchkit.bench.stages import stage_limits
from batchkit.plan.ordered.assembling import RUN
from tests.executors import EXECUTORS

LENGTHS = np.random.default_rng(7).integers(0, 31, 300)
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
TOKENS = np.arange(1, OFFSETS[-1] + 1)
ROWS = [TOKENS[start:stop] for start, stop in itertools.pairwise(OFFSETS)]


def known() -> bk.Pipeline:
    """Rows whose lengths are known without reading them."""
    return bk.from_ragged({"x": TOKENS}, OFFSETS)


def unknown() -> bk.Pipeline:
    """The same rows, which have to be read to know."""
    return bk.from_sequence([{"x": row} for row in ROWS])


def loaded(pipe: bk.Pipeline, state: Any = None, **options: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    with bk.Loader(pipe, **options) as loader:
        if state is not None:
            loader.load_state_dict(json.loads(json.dumps(state)))
        batches, states = [], []
        for batch in loader:
            batches.append({name: np.asarray(leaf).tolist() for name, leaf in batch.items()})
            states.append(loader.state_dict())
    return batches, states


def keyed(row: Any) -> Any:
    return {**row, "double": row["x"] * 2}


PIPELINES = {
    "first fit": lambda rows: rows.shuffle(1).pack(32).batch(4),
    "best fit": lambda rows: rows.shuffle(1).pack(32, method="best_fit", bins=7).batch(4),
    "split": lambda rows: rows.pack(9, oversize="split", pad_value=-1).batch(4),
    "packed, mapped and shuffled": lambda rows: rows.pack(32).map(keyed).shuffle(3, window=5).batch(3),
    "packed twice over": lambda rows: rows.repeat(2).shuffle(2).pack(40).take(100).batch(8),
    "packed and filtered": lambda rows: rows.pack(32).filter(lambda row: bool(row["x"][0] % 2)).batch(3),
    "window shuffle before": lambda rows: rows.shuffle(4, window=20).pack(64, bins=4).batch(2),
    "buckets": lambda rows: rows.shuffle(1).bucket_batch(6, boundaries=[5, 10, 20, 30]),
    "tokens": lambda rows: rows.shuffle(1).bucket_batch(
        max_tokens=100, boundaries=[10, 20, None], pad_to="longest", multiple_of=4, lengths=True
    ),
    "padded buckets": lambda rows: rows.bucket_batch(max_tokens=100, boundaries=[10, 30], remainder="pad"),
    "buckets taken apart": lambda rows: rows.bucket_batch(6, boundaries=[10, 20, 30], lengths=True).take(30).map(dict),
    "buckets by function": lambda rows: rows.bucket_batch(5, boundaries=[10, 40], length=longer, remainder="drop"),
    "filtered before": lambda rows: rows.filter(long_enough).pack(32).batch(4),
    "filtered before buckets": lambda rows: rows.filter(lambda row: len(row["x"]) > 3).bucket_batch(
        4, boundaries=[9, 30]
    ),
}


def long_enough(row: Any) -> bool:
    return len(row["x"]) > 3


def longer(row: Any) -> int:
    return len(row["x"]) + 3


ACROSS = ("best fit", "packed, mapped and shuffled", "packed and filtered", "tokens", "filtered before buckets")
"""Those that worker processes, which are slow to start, are tried with."""


both = pytest.mark.parametrize("rows", [known, unknown])
every = pytest.mark.parametrize("name", PIPELINES)


@every
def test_knowing_the_lengths_beforehand_changes_nothing(name: str) -> None:
    assert loaded(PIPELINES[name](known()))[0] == loaded(PIPELINES[name](unknown()))[0]


@both
@every
def test_an_epoch_resumes_behind_every_step(name: str, rows: Any) -> None:
    pipe = PIPELINES[name](rows())
    batches, states = loaded(pipe, executor="inline")
    assert len(batches) > 3
    for step, state in enumerate(states[:-1]):
        if step % 3 == 0 or step > len(states) - 4:
            assert loaded(pipe, state, executor="inline")[0] == batches[step + 1 :]
    with bk.Loader(pipe, executor="inline") as loader:
        list(loader)
        following = [{name: np.asarray(leaf).tolist() for name, leaf in batch.items()} for batch in loader]
    assert loaded(pipe, states[-1], executor="inline")[0] == following


@pytest.mark.parametrize(
    ("name", "executor"),
    [(name, word) for word in EXECUTORS for name in PIPELINES if not word.startswith("processes") or name in ACROSS],
)
@both
def test_every_executor_gives_the_same_batches_and_goes_on_where_another_stopped(
    name: str, rows: Any, executor: str
) -> None:
    pipe = PIPELINES[name](rows())
    batches, states = loaded(pipe, executor="inline")
    workers: dict[str, Any] = {} if executor in ("inline", "auto") else {"workers": 2}
    assert loaded(pipe, executor=executor, **workers) == (batches, states)
    assert loaded(pipe, states[2], executor=executor, **workers)[0] == batches[3:]


@pytest.mark.parametrize("world", [2, 3])
@every
def test_ranks_have_equally_many_batches_which_are_together_those_of_one(name: str, world: int) -> None:
    pipe = PIPELINES[name](known())
    batches, states = loaded(pipe, executor="inline")
    ranks = [loaded(pipe, shard=(rank, world), executor="inline") for rank in range(world)]
    assert {len(mine) for mine, _ in ranks} == {len(batches)}
    assert all(theirs == states for _, theirs in ranks)
    for step, batch in enumerate(batches):
        there = Counter(token for mine, _ in ranks for row in mine[step]["x"] for token in row)
        here = Counter(token for row in batch["x"] for token in row)
        for counted in (here, there):
            counted.pop(0, None)
            counted.pop(-1, None)
        assert here == there


@both
def test_a_state_with_a_thousand_rows_held_back_fits_in_4_kilobytes(rows: Any) -> None:
    random = np.random.default_rng(1)
    lengths = random.integers(1, 200, 5000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.arange(offsets[-1])
    if rows is known:
        pipe = bk.from_ragged({"x": values}, offsets)
    else:
        pipe = bk.from_sequence([{"x": values[a:b]} for a, b in itertools.pairwise(offsets)])
    for each in (
        pipe.shuffle(1).pack(1000, bins=100).batch(1),
        pipe.shuffle(1).bucket_batch(100, boundaries=list(range(10, 201, 10))),
    ):
        held, size = 0, 0
        with bk.Loader(each, executor="inline") as loader:
            for _ in loader:
                held = max(held, len(loader._cursor.walk[1][0]))
                size = max(size, len(json.dumps(loader.state_dict())))
        assert held >= 800
        assert size <= 4096


def test_a_rank_reads_only_its_own_rows_where_lengths_are_known() -> None:
    class Counted(type(known().source)):  # type: ignore[misc]
        seen = 0

        def gather(self, rows: Any, out: Any = None) -> Any:
            type(self).seen += len(rows)
            return super().gather(rows, out)

        handed = gather

    source = Counted({"x": TOKENS}, OFFSETS)
    pipe = bk.from_source(source).shuffle(1).bucket_batch(6, boundaries=[10, 20, 30])
    loaded(pipe, shard=(1, 3), executor="inline")
    assert Counted.seen <= len(ROWS) / 3 + len(ROWS) / 6


@both
def test_a_sequence_over_the_limit_is_named_with_its_row(rows: Any) -> None:
    row = int(np.flatnonzero(LENGTHS > 20)[0])
    for pipe in (rows().pack(20).batch(2), rows().bucket_batch(2, boundaries=[10, 20])):
        with bk.Loader(pipe, executor="inline") as loader, pytest.raises(bk.StageError, match=rf"row {row} is"):
            list(loader)


def test_quantiles_need_lengths_that_are_known() -> None:
    pipe = known().bucket_batch(6, boundaries=3)
    widths = {len(batch["x"][0]) for batch in loaded(pipe)[0]}
    assert len(widths) == 3
    assert max(widths) == LENGTHS.max()
    assert loaded(pipe, executor="processes", workers=1)[0] == loaded(pipe)[0]
    with pytest.raises(bk.PipelineError, match="not known without reading"):
        bk.Loader(unknown().bucket_batch(6, boundaries=3))
    given = unknown().bucket_batch(6, boundaries=3, length=LENGTHS)
    assert loaded(given)[0] == loaded(pipe)[0]


def test_scalar_leaves_cannot_be_packed_and_are_named() -> None:
    pipe = bk.from_ragged({"x": TOKENS}, OFFSETS, {"label": np.arange(len(ROWS))})
    with pytest.raises(bk.SchemaError, match="leaf 'label'"):
        bk.Loader(pipe.pack(32).batch(2))
    assert loaded(pipe.select("x").pack(32).batch(2))[0] == loaded(known().pack(32).batch(2))[0]


@settings(max_examples=60, deadline=None)
@given(
    lengths=some.lists(some.integers(0, 12), max_size=60),
    verb=some.sampled_from(["first_fit", "best_fit", "bucket"]),
    read=some.booleans(),
    size=some.integers(1, 5),
    world=some.integers(1, 3),
)
def test_every_token_comes_exactly_once(lengths: list[int], verb: str, read: bool, size: int, world: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    values = np.arange(1, offsets[-1] + 1)
    if read:
        rows = bk.from_sequence([{"x": values[a:b]} for a, b in itertools.pairwise(offsets)])
    else:
        rows = bk.from_ragged({"x": values}, offsets)
    pipe = rows.bucket_batch(size, boundaries=[4, 12]) if verb == "bucket" else rows.pack(12, method=verb).batch(size)
    found: Counter[int] = Counter()
    for rank in range(world):
        for batch in loaded(pipe, shard=(rank, world), executor="inline")[0]:
            found.update(token for row in batch["x"] for token in row if token)
    assert found == Counter(values.tolist())


@pytest.mark.parametrize("verb", ["pack", "buckets"])
def test_resuming_computes_only_the_rows_that_are_held_back(verb: str) -> None:
    seen: list[int] = []

    def noted(row: Any) -> Any:
        seen.append(int(row["id"]))
        return {"x": row["x"]}

    lengths = np.where(np.arange(6000) % 450 == 0, 1, 20)  # short rows are held back for thousands of others
    rows = bk.from_sequence([{"x": np.arange(length), "id": i} for i, length in enumerate(lengths)]).map(noted)
    pipe = rows.bucket_batch(20, boundaries=[1, 20]) if verb == "buckets" else rows.pack(60, bins=6).batch(2)
    with bk.Loader(pipe, executor="inline") as loader:
        batches = iter(loader)
        for _ in range(220 if verb == "buckets" else 700):
            next(batches)
        state, following = loader.state_dict(), next(batches)["x"].tolist()
    seen.clear()
    with bk.Loader(pipe, executor="inline") as loader:
        loader.load_state_dict(state)
        assert next(iter(loader))["x"].tolist() == following
    assert len(seen) <= RUN + 256 + 120  # the run that it goes on in, a chunk, and what is held back


def test_a_step_is_explained_by_lengths_alone() -> None:
    class Unread(type(known().source)):  # type: ignore[misc]
        def gather(self, rows: Any, out: Any = None) -> Any:
            raise AssertionError("nothing is to be read")

        handed = views = gather

    for make in (lambda rows: rows.shuffle(1).pack(32).batch(4), lambda rows: rows.bucket_batch(6, boundaries=[9, 30])):
        with bk.Loader(make(known()), lineage=True, executor="inline") as loader:
            told = [{name: leaf.tolist() for name, leaf in batch["lineage"].items()} for batch in loader]
        for step in (0, 7, len(told) - 1):
            found = bk.explain(make(bk.from_source(Unread({"x": TOKENS}, OFFSETS))), step).to_dict()
            assert {name: found[name] for name in told[step]} == told[step]


@pytest.mark.parametrize(
    ("make", "stages"),
    [
        (lambda: unknown().filter(long_enough).padded_batch(8), {"filter", "padded_batch"}),
        (lambda: known().pack(32).batch(4).map(dict), {"pack", "batch", "map"}),
        (lambda: unknown().map(dict).bucket_batch(8, boundaries=[10, 30]), {"map", "bucket_batch"}),
        (lambda: bk.concat([unknown().filter(long_enough), unknown()]).pack(32).batch(4), {"filter", "pack", "batch"}),
        (lambda: known().padded_batch(8, length=32).filter(lambda c: c["x"][:, 0] > 3).rebatch(4), {"rebatch"}),
        (lambda: bk.from_generator(lambda: iter([{"x": 1}] * 40)).map(dict).batch(4), {"map", "batch"}),
    ],
)
def test_the_limit_of_every_stage_is_measured(make: Any, stages: set[str]) -> None:
    with bk.Loader(make()) as loader:
        limits = stage_limits(loader, steps=4, rounds=2)
    assert all(limit.median > 0 for limit in limits if not limit.name.startswith("batch"))
    assert {limit.name.split(": ")[-1].split("(")[0] for limit in limits} >= stages


def test_verify_finds_nothing_in_what_is_cut_in_order() -> None:
    for make in (
        lambda: known().shuffle(1).bucket_batch(8, boundaries=[10, 30]),
        lambda: unknown().filter(long_enough).pack(32).batch(4),
    ):
        assert bk.verify(make()).findings == ()


def test_packing_nothing_for_ever_is_an_error_not_a_spin() -> None:
    empty = bk.from_ragged({"x": TOKENS[:0]}, [0, 0, 0])
    with bk.Loader(empty.repeat().pack(8).batch(2)) as loader, pytest.raises(bk.PipelineError, match="never yield"):
        next(iter(loader))
    assert loaded(empty.pack(8).batch(2))[0] == []


@both
@pytest.mark.parametrize("verb", ["pack", "buckets"])
def test_behind_a_row_that_cannot_be_taken_in_nothing_wrong_comes(verb: str, rows: Any) -> None:
    pipe = rows().pack(29).batch(2) if verb == "pack" else rows().bucket_batch(4, boundaries=[10, 29])
    with bk.Loader(pipe, executor="inline") as loader:
        batches = iter(loader)
        said = []
        for _ in range(3):
            with pytest.raises(bk.StageError, match="is 30 long") as caught:
                next(batches)
            said.append(str(caught.value).split(": ", 1)[1])
    assert len(set(said)) == 1
