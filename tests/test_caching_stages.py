"""cache() among the other verbs: before what keeps no numbers, and in and behind combinations."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from executors import EXECUTORS

import batchkit as bk
from batchkit.caching import folder as caching_folder
from batchkit.plan import compile

ROWS = 23
X = np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)
CALLS: list[int] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@pytest.fixture(params=["memory", "disk"])
def where(request: Any, tmp_path: Path) -> Any:
    """Where rows are kept: the argument of cache()."""
    return None if request.param == "memory" else tmp_path / "kept"


def data(start: int = 0, rows: int = ROWS) -> bk.Pipeline:
    return bk.from_arrays({"n": np.arange(start, start + rows), "x": X[:rows]})


def doubled(row: Any) -> Any:
    return {**row, "y": row["x"] * 2}


class Counted:
    """Doubles, and counts its calls; told from others by nothing."""

    def __call__(self, row: Any) -> Any:
        CALLS.append(int(row["n"]))
        return doubled(row)


def ragged() -> bk.Pipeline:
    lengths = np.arange(ROWS) % 6
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return bk.from_ragged({"t": np.arange(offsets[-1], dtype=np.int32)}, offsets)


def plus_one(row: Any) -> Any:
    return {"t": row["t"] + 1}


def jitter(row: Any, rng: Any) -> Any:
    return {**row, "r": rng.random()}


def noise(batch: Any, rng: Any) -> Any:
    return {**batch, "q": rng.normal(size=2)}


def odd(row: Any) -> bool:
    return bool(row["n"] % 2)


def odd_rows(batch: Any) -> Any:
    return batch["n"] % 2 == 1


def thrice(row: Any) -> Any:
    return [{**row, "which": np.int64(which)} for which in range(int(row["n"]) % 3)]


def listed(row: Any) -> Any:
    return {"n": row["n"], "x": row["x"]}


def words() -> bk.Pipeline:
    return bk.from_sequence([{"n": np.int64(100 + i), "x": X[i] + 1} for i in range(9)])


def flip(row: Any, rng: Any) -> Any:
    return {**row, "x": row["x"] * np.float32(rng.random())}


class Case(NamedTuple):
    before: Callable[[], bk.Pipeline]
    behind: Callable[[bk.Pipeline], bk.Pipeline]


FLOWS = {
    "filter": Case(
        lambda: data().map(doubled), lambda pipe: pipe.filter(odd).shuffle(1).random_map(jitter).batch(4).map(dict)
    ),
    "filter of columns": Case(data, lambda pipe: pipe.shuffle(2).filter(odd).batch(4).random_map(noise)),
    "flat_map": Case(lambda: data().map(doubled), lambda pipe: pipe.flat_map(thrice).random_map(jitter).batch(4)),
    "window behind filter": Case(data, lambda pipe: pipe.filter(odd).window(3).batch(2)),
    "window": Case(lambda: data().map(doubled), lambda pipe: pipe.window(4, stride=2, remainder="pad").batch(3)),
    "windows": Case(lambda: data().window(4, remainder="keep"), lambda pipe: pipe.shuffle(1).padded_batch(3)),
    "windows of columns": Case(lambda: data().window(4), lambda pipe: pipe.random_map(jitter).batch(3)),
    "pack": Case(ragged, lambda pipe: pipe.pack(12).batch(2)),
    "pack shuffled": Case(ragged, lambda pipe: pipe.shuffle(1).pack(12, bins=3).batch(2, remainder="drop")),
    "pack functions": Case(lambda: ragged().map(plus_one), lambda pipe: pipe.shuffle(1).pack(12).batch(2)),
    "bucket_batch": Case(ragged, lambda pipe: pipe.shuffle(1).bucket_batch(3, boundaries=[2, 5], lengths=True)),
    "bucket_batch functions": Case(
        lambda: ragged().map(plus_one), lambda pipe: pipe.bucket_batch(3, boundaries=[2, 5], remainder="pad")
    ),
    "bucket_batch by a leaf": Case(ragged, lambda pipe: pipe.bucket_batch(3, boundaries=2, length="t")),
    "rebatch of filtered batches": Case(lambda: data().batch(5), lambda pipe: pipe.filter(odd_rows).rebatch(4)),
    "filtered batches": Case(lambda: data().batch(5).filter(odd_rows), lambda pipe: pipe.rebatch(4).random_map(noise)),
    "rows of batches": Case(
        lambda: data().batch(4, remainder="pad").unbatch(), lambda pipe: pipe.random_map(jitter).filter(odd).batch(4)
    ),
    "padded twice": Case(
        lambda: data().batch(4, remainder="pad").unbatch().rename(mask="real"),
        lambda pipe: pipe.batch(5, remainder="pad").random_map(noise),
    ),
    "repeated": Case(lambda: data().repeat(2), lambda pipe: pipe.random_map(jitter).filter(odd).batch(4)),
}


def behind(pipe: bk.Pipeline) -> bk.Pipeline:
    return pipe.shuffle(5).random_map(jitter).batch(4)


def sources() -> list[bk.Pipeline]:
    return [data(), data(100, 7).repeat(2), words()]


COMBINED = {
    "concat": Case(lambda: bk.concat([data(), data(100, 7)]), behind),
    "concat behind batch": Case(lambda: bk.concat(sources()), lambda pipe: pipe.batch(5, remainder="pad")),
    "concat of rows and columns": Case(lambda: bk.concat(sources()), behind),
    "concat repeated": Case(lambda: bk.concat(sources()).repeat(2), behind),
    "concat batched": Case(lambda: bk.concat(sources()).batch(5), lambda pipe: pipe.random_map(noise)),
    "interleave": Case(lambda: bk.interleave(sources(), block=2), behind),
    "mix": Case(lambda: bk.mix(sources(), weights=[3, 2, 1]), behind),
    "mix all": Case(lambda: bk.mix(sources(), weights=[3, 2, 1], stop="all"), behind),
    "mix in a mix": Case(
        lambda: bk.mix([bk.mix(sources(), [1, 1, 1], stop="all"), data(200)], [1, 2], stop="all"), behind
    ),
    "mix for ever, taken": Case(lambda: bk.mix(sources(), [1, 2, 3], stop="forever").take(90), behind),
    "zip": Case(lambda: bk.zip({"a": data(), "b": data(50).map(doubled)}), behind),
    "zip of repeated": Case(lambda: bk.zip((data(0, 6).repeat(3), words().repeat(2))), lambda pipe: pipe.batch(4)),
    "zip of combinations": Case(
        lambda: bk.zip({"a": bk.concat([data(), data()]), "b": data().repeat(2).random_map(flip)}), behind
    ),
    "filtered": Case(lambda: bk.interleave(sources()), lambda pipe: pipe.filter(odd).random_map(jitter).batch(4)),
}


def cached(pipe: bk.Pipeline, *where: Any) -> bk.Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.CacheWarning)
        return pipe.cache(*where)


def epochs(pipe: bk.Pipeline, count: int = 1, **options: Any) -> list[list[Any]]:
    options = {"executor": "inline", **options}
    if options["executor"] in ("threads", "processes"):
        options.setdefault("workers", 2)
    with bk.Loader(pipe, **options) as loader:
        return [list(loader) for _ in range(count)]


def assert_same(got: Any, wanted: Any) -> None:
    """Compare epochs, batches or trees: structure, dtypes, shapes and bytes."""
    assert type(got) is type(wanted)
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    else:
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert got.tobytes() == wanted.tobytes()


# -- before what keeps no numbers


@pytest.mark.parametrize("name", list(FLOWS))
def test_batches_behind_it_are_what_they_are_without_a_cache(name: str, where: Any) -> None:
    before, after = FLOWS[name]
    wanted = epochs(after(before()), 3)
    assert sum(map(len, wanted)) > 3
    pipe = after(before().cache(where))
    assert_same(epochs(pipe, 3), wanted)
    assert_same(epochs(pipe, 3), wanted)  # with a path, all is there now


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    "name", ["filter", "window behind filter", "pack", "bucket_batch functions", "filtered batches"]
)
def test_every_executor_gives_the_same_batches(name: str, executor: str, where: Any) -> None:
    before, after = FLOWS[name]
    wanted = epochs(after(before()), 2)
    pipe = after(before().cache(where))
    assert_same(epochs(pipe, 2, executor=executor), wanted)
    assert_same(epochs(pipe, 2, executor=executor), wanted)


@pytest.mark.parametrize("name", ["filter", "pack", "bucket_batch", "windows"])
def test_every_rank_gets_its_rows(name: str, where: Any) -> None:
    before, after = FLOWS[name]
    for rank in range(2):
        wanted = epochs(after(before()), 2, shard=(rank, 2))
        assert_same(epochs(after(before().cache(where)), 2, shard=(rank, 2)), wanted)


def resumed(pipe: bk.Pipeline, other: bk.Pipeline) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield what is left of the second epoch at every step of it, and what a loader of the other pipeline gives."""
    whole = epochs(pipe, 2)
    for done in range(len(whole[1])):
        with bk.Loader(pipe, executor="inline") as loader:
            list(loader)
            rest = iter(loader)
            for _ in range(done):
                next(rest)
            state = json.loads(json.dumps(loader.state_dict()))
        with bk.Loader(other, executor="inline") as loader:
            loader.load_state_dict(state)
            yield whole[1][done:], list(loader)


@pytest.mark.parametrize("name", ["filter", "flat_map", "pack shuffled", "bucket_batch functions"])
def test_a_run_is_resumed_at_every_step_whatever_is_kept(name: str, tmp_path: Path) -> None:
    before, after = FLOWS[name]
    for wanted, got in resumed(after(before().cache(tmp_path / "a")), after(before().cache(tmp_path / "b"))):
        assert_same(got, wanted)


@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("name", ["filter", "pack", "bucket_batch", "window"])
def test_each_row_is_computed_once(name: str, executor: str, where: Any) -> None:
    def keep(row: Any) -> Any:
        return {"t": np.arange(int(Counted()(row)["n"]) % 6), "n": row["n"], "x": row["x"]}

    def length(row: Any) -> int:
        return len(row["t"])

    behind_it = {
        "filter": lambda pipe: pipe.filter(odd).select("n").batch(3),
        "pack": lambda pipe: pipe.select("t").pack(12).batch(2),
        "bucket_batch": lambda pipe: pipe.select("t").bucket_batch(3, boundaries=[2, 5], length=length),
        "window": lambda pipe: pipe.select("n").filter(odd).window(3).batch(2),
    }
    epochs(behind_it[name](data().map(keep).cache(where)), 3, executor=executor)
    assert sorted(CALLS) == list(range(ROWS))


@pytest.mark.parametrize("name", ["pack", "bucket_batch"])
def test_where_lengths_are_known_rows_are_read_by_who_needs_them(name: str) -> None:
    plain, kept = FLOWS[name].behind(ragged()), FLOWS[name].behind(ragged().cache())
    assert compile(plain).chunks == compile(kept).chunks == ()


# -- combinations


@pytest.mark.parametrize("name", list(COMBINED))
def test_a_cache_behind_a_combination_changes_nothing(name: str, where: Any) -> None:
    before, after = COMBINED[name]
    made = before()
    frozen = any(stage.verb == "random_map" for stage in made.all_stages)
    wanted = epochs(after(made), 3)
    pipe = after(cached(before(), where))
    got = epochs(pipe, 3)
    if frozen:  # the second part's numbers are those of the first epoch
        assert_same(got[0], wanted[0])
        return
    assert_same(got, wanted)
    assert_same(epochs(pipe, 3), wanted)


def in_parts(where: Any) -> bk.Pipeline:
    first, second = data().map(doubled), data(100, 7).map(doubled).repeat(2)
    rows = bk.mix([first.cache(where), second.cache(where)], [2, 1], stop="all")
    return bk.zip({"a": rows, "b": data().repeat(4).batch(5).cache(where).unbatch()}, stop="shortest")


def without_parts() -> bk.Pipeline:
    first, second = data().map(doubled), data(100, 7).map(doubled).repeat(2)
    rows = bk.mix([first, second], [2, 1], stop="all")
    return bk.zip({"a": rows, "b": data().repeat(4).batch(5).unbatch()}, stop="shortest")


def test_caches_in_the_parts_of_combinations_change_nothing(where: Any) -> None:
    wanted = epochs(behind(without_parts()), 3)
    assert_same(epochs(behind(in_parts(where)), 3), wanted)
    assert_same(epochs(behind(in_parts(where)), 3), wanted)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_executor_computes_combinations_alike(executor: str, where: Any) -> None:
    wanted = epochs(behind(without_parts()), 2)
    pipe = behind(in_parts(where))
    assert_same(epochs(pipe, 2, executor=executor), wanted)
    assert_same(epochs(pipe, 2, executor=executor), wanted)
    for name in ("concat of rows and columns", "mix all", "filtered"):
        before, after = COMBINED[name]
        assert_same(epochs(after(before().cache(where)), 2, executor=executor), epochs(after(before()), 2))


def test_worker_processes_use_what_the_caller_has_kept(tmp_path: Path) -> None:
    pipes = [
        behind(in_parts(tmp_path)),
        behind(bk.concat(sources()).cache(tmp_path)),
        data().batch(5).rebatch(4).cache(tmp_path),
        behind(data().map(doubled).shuffle(1, reshuffle=False).cache(tmp_path).filter(odd)),
        ragged().cache(tmp_path).shuffle(1).pack(12).batch(2),
    ]
    for pipe in pipes:
        epochs(pipe)
        there = sorted(folder.name for folder in caching_folder.found(tmp_path))
        epochs(pipe, executor="processes")
        assert sorted(folder.name for folder in caching_folder.found(tmp_path)) == there


def test_runs_over_combinations_are_resumed_at_every_step(tmp_path: Path) -> None:
    for make in (in_parts, lambda path: bk.interleave(sources()).cache(path).filter(odd)):
        for wanted, got in resumed(behind(make(tmp_path / "a")), behind(make(tmp_path / "b"))):
            assert_same(got, wanted)


def test_random_stages_of_other_parts_are_part_of_what_rows_are_told_by(tmp_path: Path) -> None:
    def pair(*first: str) -> bk.Pipeline:
        part = data().random_map(flip) if first else data()
        return bk.concat([part, cached(data().random_map(flip), tmp_path)]).batch(5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.CacheWarning)
        for first in ((), ("random",)):
            part = data().random_map(flip) if first else data()
            plain = bk.concat([part, data().random_map(flip)]).batch(5)
            assert_same(epochs(pair(*first)), epochs(plain))  # its numbers depend on how many draw before it
    assert len(caching_folder.found(tmp_path)) == 2


def test_what_is_frozen_before_is_part_of_what_rows_are_told_by(tmp_path: Path) -> None:
    twice = cached(data().random_map(flip)).repeat(2)
    again = data().random_map(flip).repeat(2)
    for pipe in (twice, again):
        wanted = epochs(pipe.batch(5))
        assert_same(epochs(cached(pipe, tmp_path).batch(5)), wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda: bk.concat([data(), data(100, 8)]),
        lambda: bk.concat([data(), data(101, 7)]),
        lambda: bk.concat([data(), data(100, 7).map(doubled).select("n", "x")]),
        lambda: bk.concat([data(100, 7), data()]),
        lambda: bk.interleave([data(), data(100, 7)]),
        lambda: bk.interleave([data(), data(100, 7)], block=2),
        lambda: bk.mix([data(), data(100, 7)], [1, 2]),
    ],
)
def test_combinations_that_differ_are_kept_apart(change: Callable[[], bk.Pipeline], tmp_path: Path) -> None:
    epochs(bk.concat([data(), data(100, 7)]).cache(tmp_path).batch(5))
    assert_same(epochs(change().cache(tmp_path).batch(5)), epochs(change().batch(5)))
    assert len(caching_folder.found(tmp_path)) == 2


def test_a_random_stage_of_a_part_is_frozen_with_a_warning() -> None:
    both = bk.concat([data(), data().random_map(jitter).select("n", "x")])
    with pytest.warns(bk.CacheWarning, match="stage 0 random_map") as told:
        pipe = both.cache()
    assert (len(told), told[0].filename) == (1, __file__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bk.concat([pipe, data()]).map(doubled).cache()  # said already


def test_rows_of_parts_that_fail_are_left_out_and_tried_again(where: Any) -> None:
    def broken(row: Any) -> Any:
        if row["n"] in (3, 4, 101):
            raise ValueError("broken")
        return listed(row)

    options: dict[str, Any] = {"on_error": bk.Skip(budget=10), "executor": "inline"}
    plain = [data().map(broken), data(100, 7).map(broken)]
    with bk.Loader(bk.interleave(plain).batch(5), **options) as loader:
        wanted = [list(loader), list(loader)]
    kept = bk.interleave([part.cache(where) for part in plain])
    for pipe in (kept, kept.cache(where), bk.interleave(plain).cache(where)):
        with bk.Loader(pipe.batch(5), **options) as loader:
            assert_same([list(loader), list(loader)], wanted)
            assert loader.skipped == 6


# -- what is told of a pipeline


def test_the_lineage_of_kept_rows_is_that_of_the_first_epoch() -> None:
    before = data().shuffle(3)
    with pytest.warns(bk.CacheWarning):
        kept = before.cache()
    for step in range(4):
        first = bk.explain(before.batch(5), step)
        for pipe in (kept.batch(5), cached(before.batch(5))):
            assert bk.explain(pipe, step, epoch=2).to_dict() == first.to_dict()


def test_the_lineage_of_combined_rows_names_their_sources() -> None:
    both = bk.interleave([data(), data(100, 7)])
    assert bk.explain(both.cache().batch(5), 1).to_dict() == bk.explain(both.batch(5), 1).to_dict()


@pytest.mark.parametrize("name", ["filter", "pack", "window", "rows of batches"])
def test_verify_finds_nothing_in_pipelines_that_obey_the_law(name: str, where: Any) -> None:
    before, after = FLOWS[name]
    verdict = bk.verify(after(before().cache(where)), steps=4, without=("process", "threads"))
    assert verdict.ok, str(verdict)
    assert where is None or not where.exists()


def test_verify_finds_nothing_where_a_cache_freezes_what_is_random() -> None:
    verdict = bk.verify(behind(cached(bk.concat([data().random_map(flip), data().shuffle(2)]))), steps=4)
    assert verdict.ok, str(verdict)


def test_verify_looks_behind_what_is_kept(tmp_path: Path) -> None:
    def chance(row: Any) -> Any:
        return {**row, "c": np.random.default_rng().random()}

    pipe = data().map(chance).cache(tmp_path).batch(4)
    epochs(pipe)
    verdict = bk.verify(pipe, steps=3)
    assert not verdict.ok
    assert {finding.stage for finding in verdict.findings} == {0}
