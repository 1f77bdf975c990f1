"""Stages behind which rows have no numbers: contents, order, resuming, ranks and faults, against plain Python."""

from __future__ import annotations

import gc
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

import batchkit as bk
from tests.executors import EXECUTORS


def numbers(count: int = 50) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(count)})


def values(batches: Any, leaf: str = "x") -> list[list[Any]]:
    return [np.asarray(batch[leaf]).tolist() for batch in batches]


def chained(batches: Any) -> list[Any]:
    return list(itertools.chain.from_iterable(batches))


def cut(rows: list[Any], size: int) -> list[list[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def odd(row: Any) -> bool:
    return bool(row["x"] % 2)


def several(row: Any) -> list[Any]:
    return [{"x": row["x"] * 10 + i} for i in range(row["x"] % 4)]


def loaded(pipe: bk.Pipeline, state: Any = None, **options: Any) -> tuple[list[list[Any]], list[Any]]:
    """Return the values of an epoch's batches, and the state behind each."""
    with bk.Loader(pipe, **options) as loader:
        if state is not None:
            loader.load_state_dict(json.loads(json.dumps(state)))
        batches, states = [], []
        for batch in loader:
            batches.append(np.asarray(batch["x"]).tolist())
            states.append(loader.state_dict())
    return batches, states


PIPELINES: dict[str, Callable[[], bk.Pipeline]] = {
    "filter": lambda: numbers().filter(odd).batch(4),
    "shuffled filter": lambda: numbers().shuffle(1).map(same).filter(odd).batch(4),
    "flat_map": lambda: numbers().flat_map(several).batch(5, remainder="drop"),
    "both": lambda: numbers().filter(odd).flat_map(several).filter(odd).batch(3),
    "window shuffle": lambda: numbers().flat_map(several).shuffle(3, window=7).batch(4),
    "batch filter": lambda: numbers().batch(8).filter(odd_columns).rebatch(6),
    "take, skip": lambda: numbers().filter(odd).skip(3).take(17).batch(4),
    "take, then filter": lambda: numbers().flat_map(several).take(40).filter(odd).batch(3),
    "repeated take": lambda: numbers().filter(odd).take(7).repeat(3).batch(4),
    "repeated filter": lambda: numbers().filter(odd).repeat(2).shuffle(5).batch(4),
    "windows": lambda: numbers().filter(odd).window(3, stride=2).flat_map(apart).batch(4),
    "windows inside": lambda: (
        numbers().window(10).window(4, stride=3, inside=True, remainder="keep").flat_map(apart).batch(4)
    ),
    "unbatch": lambda: numbers().filter(odd).batch(4).map(same).unbatch().shuffle(2, window=5).batch(3),
    "generator": lambda: bk.from_generator(counting).filter(odd).shuffle(1, window=4).batch(4).map(same),
    "plain generator": lambda: bk.from_generator(counting).shuffle(2, window=9).skip(2).batch(7),
    "generator of batches": lambda: bk.from_generator(counting_batches, batched=True).filter(odd_columns).rebatch(4),
}


ACROSS = ("shuffled filter", "both", "batch filter", "take, then filter", "windows inside", "generator")
"""Those that worker processes, which are slow to start, are tried with."""


def same(row: Any) -> Any:
    return dict(row)


def odd_columns(columns: Any) -> Any:
    return columns["x"] % 2 == 1


def apart(row: Any) -> list[Any]:
    return [{"x": value} for value in row["x"]]


def counting() -> Iterator[Any]:
    return ({"x": i} for i in range(40))


def counting_batches() -> Iterator[Any]:
    return ({"x": np.arange(i, i + 5)} for i in range(0, 40, 5))


def test_an_iteration_that_is_forgotten_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    loader = bk.Loader(numbers(5000).filter(odd).batch(4), executor="threads", workers=3)
    batches = iter(loader)
    next(batches)
    assert threading.active_count() > before
    del batches
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize("name", PIPELINES)
def test_an_epoch_resumes_behind_every_step(name: str) -> None:
    pipe = PIPELINES[name]()
    batches, states = loaded(pipe, executor="inline")
    assert len(batches) > 2
    for step, state in enumerate(states[:-1]):
        assert loaded(pipe, state, executor="inline")[0] == batches[step + 1 :]
    following, _ = loaded(pipe, states[-1], executor="inline")
    with bk.Loader(pipe, executor="inline") as loader:
        list(loader)
        assert following == values(loader)


@pytest.mark.parametrize(
    ("name", "executor"),
    [(name, word) for word in EXECUTORS for name in PIPELINES if not word.startswith("processes") or name in ACROSS],
)
def test_every_executor_gives_the_same_batches_and_goes_on_where_another_stopped(name: str, executor: str) -> None:
    pipe = PIPELINES[name]()
    batches, states = loaded(pipe, executor="inline")
    workers: dict[str, Any] = {} if executor in ("inline", "auto") else {"workers": 2}
    again, others = loaded(pipe, executor=executor, **workers)
    assert again == batches
    assert others == states
    assert loaded(pipe, states[1], executor=executor, **workers)[0] == batches[2:]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", PIPELINES)
def test_ranks_together_have_the_rows_of_every_batch(name: str, world: int) -> None:
    pipe = PIPELINES[name]()
    batches, states = loaded(pipe, executor="inline")
    ranks = [loaded(pipe, shard=(rank, world), executor="inline") for rank in range(world)]
    assert {len(mine) for mine, _ in ranks} == {len(batches)}
    assert [chained(mine[step] for mine, _ in ranks) for step in range(len(batches))] == batches
    assert all(theirs == states for _, theirs in ranks)


def test_a_filter_keeps_the_rows_that_it_is_true_for_in_their_order() -> None:
    assert loaded(numbers(20).filter(odd).batch(4))[0] == cut(list(range(1, 20, 2)), 4)


def test_a_flat_map_puts_any_number_of_rows_in_the_place_of_one() -> None:
    expected = [x * 10 + i for x in range(9) for i in range(x % 4)]
    assert loaded(numbers(9).flat_map(several).batch(4))[0] == cut(expected, 4)


def test_a_filter_behind_batch_makes_the_batch_smaller() -> None:
    assert loaded(numbers(10).batch(4).filter(odd_columns))[0] == [[1, 3], [5, 7], [9]]


def test_a_shuffle_behind_a_filter_permutes_all_that_is_left() -> None:
    (rows,) = loaded(numbers(1000).filter(odd).shuffle(3).batch(1000))[0]
    assert sorted(rows) == list(range(1, 1000, 2))
    assert abs(np.corrcoef(rows, range(500))[0, 1]) < 0.2


def test_a_window_shuffle_permutes_each_window_by_itself_and_every_epoch_anew() -> None:
    with bk.Loader(numbers(50).shuffle(3, window=8).batch(50)) as loader:
        (one,), (two,) = values(loader), values(loader)
    for rows in (one, two):
        assert [sorted(part) for part in cut(rows, 8)] == cut(list(range(50)), 8)
    assert one != two
    orders = [[value % 8 for value in part] for part in cut(one, 8)[:6]]
    assert len({tuple(order) for order in orders}) > 4


@pytest.mark.parametrize("filtered", [False, True])
def test_a_window_shuffle_never_holds_more_than_its_window(filtered: bool) -> None:
    pulled, most, seen = 0, 0, 0

    def rows() -> Iterator[Any]:
        nonlocal pulled
        for i in range(200):
            pulled += 1
            yield {"x": i}

    pipe = bk.from_generator(rows)
    pipe = (pipe.filter(always) if filtered else pipe).shuffle(1, window=30).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        for batch in loader:
            seen += len(batch["x"])
            most = max(most, pulled - seen)
    assert seen == 200
    assert 20 <= most <= 30 + (256 if filtered else 0)  # of what is behind a filter, a chunk is computed at once


@pytest.mark.parametrize("name", PIPELINES)
def test_taking_a_state_reads_nothing_and_moves_nothing(name: str) -> None:
    pipe = PIPELINES[name]()
    with bk.Loader(pipe, executor="inline") as loader:
        iterator = iter(loader)
        next(iterator)
        traced: list[str] = []

        def noted(frame: Any, event: str, argument: Any) -> None:
            if event == "call":
                traced.append(frame.f_code.co_name)

        before = sys.getprofile()
        sys.setprofile(noted)
        try:
            state = loader.state_dict()
        finally:
            sys.setprofile(before)
        assert loader.state_dict() == state
        rest = values(iterator)
    assert not {"pull", "gather", "__getitem__", "counting", "odd", "several"} & set(traced)
    assert "state_dict" in traced
    assert rest == loaded(pipe, executor="inline")[0][1:]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_goes_on_with_another_prefetch_depth_and_backend(name: str) -> None:
    class Other(bk.NumpyBackend):
        name = "other"

    pipe = PIPELINES[name]()
    batches, states = loaded(pipe, executor="threads", workers=2, prefetch=7)
    for prefetch in (0, 1):
        rest, behind = loaded(pipe, states[1], executor="threads", workers=3, prefetch=prefetch, backend=Other())
        assert (rest, behind) == (batches[2:], states[2:])


def test_windows_of_rows_overlap_as_the_stride_says() -> None:
    def windows(n: int, length: int, stride: int) -> list[list[int]]:
        return [list(range(start, start + length)) for start in range(0, n - length + 1, stride)]

    for length, stride in [(3, 2), (2, 5), (4, 4), (1, 1), (60, 1)]:
        for pipe in (numbers(), numbers().filter(always)):
            with bk.Loader(pipe.window(length, stride).batch(1000)) as loader:
                assert chained(values(loader)) == windows(50, length, stride)


def test_short_windows_at_the_end_are_kept_or_padded() -> None:
    for pipe in (numbers(7), numbers(7).filter(always)):
        kept = loaded(pipe.window(3, 2, remainder="keep").flat_map(apart).batch(100))[0]
        assert kept == [[0, 1, 2, 2, 3, 4, 4, 5, 6, 6]]
        with bk.Loader(pipe.window(3, 2, remainder="pad").batch(100)) as loader:
            (batch,) = loader
        assert batch["x"].tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 0, 0]]
        assert batch["mask"].tolist() == [[True] * 3, [True] * 3, [True] * 3, [True, False, False]]


def always(row: Any) -> bool:
    return True


def test_random_maps_draw_differently_for_rows_that_came_of_one() -> None:
    pipe = numbers(20).flat_map(lambda row: [row] * 3).random_map(lambda row, rng: {"x": rng.integers(0, 1 << 40)})
    drawn = {size: chained(loaded(pipe.batch(size))[0]) for size in (3, 7, 60)}
    assert drawn[3] == drawn[7] == drawn[60]
    assert len(set(drawn[3])) == 60


def test_each_pass_of_repeat_is_the_next_epoch_of_what_is_before_it() -> None:
    pipe = numbers(20).shuffle(1).filter(odd).take(8)
    with bk.Loader(pipe.batch(8)) as loader:
        epochs = [values(loader)[0] for _ in range(3)]
    assert loaded(pipe.repeat(3).batch(8))[0] == epochs


@pytest.mark.parametrize("made", [None, 1, 0.0, "yes", np.array([True]), [True]])
def test_a_predicate_that_returns_no_boolean_is_named_with_its_row(made: Any) -> None:
    with (
        bk.Loader(numbers().filter(lambda row: made).batch(4)) as loader,
        pytest.raises(bk.StageError, match=r"stage 0 filter\(.*row 0.*not True or False"),
    ):
        next(iter(loader))


@pytest.mark.parametrize("made", [True, np.ones(3, bool), np.ones(4), [1, 0, 1, 0]])
def test_a_filter_behind_batch_needs_one_boolean_a_row(made: Any) -> None:
    with (
        bk.Loader(numbers().batch(4).filter(lambda columns: made)) as loader,
        pytest.raises(bk.StageError, match=r"the batch has 4 rows.*one boolean a row"),
    ):
        next(iter(loader))


@pytest.mark.parametrize("made", [None, 3, {"x": 1}, "text", np.arange(3)])
def test_a_flat_map_that_returns_no_rows_is_named(made: Any) -> None:
    with (
        bk.Loader(numbers().flat_map(lambda row: made).batch(4)) as loader,
        pytest.raises(bk.StageError, match=r"stage 0 flat_map.*row 0.*needs a list of rows"),
    ):
        next(iter(loader))


def test_a_flat_map_whose_iterator_has_no_end_is_an_error() -> None:
    def endless(row: Any) -> Iterator[Any]:
        while True:
            yield row

    with (
        bk.Loader(numbers().flat_map(endless).batch(4)) as loader,
        pytest.raises(bk.StageError, match=r"more than 1,048,576 rows of one"),
    ):
        next(iter(loader))


@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_what_leaves_nothing_for_ever_is_an_error_not_a_spin(executor: str) -> None:
    for pipe in (numbers().filter(lambda row: False).repeat(), numbers().flat_map(lambda row: []).repeat()):
        with (
            bk.Loader(pipe.batch(4), executor=executor) as loader,
            pytest.raises(bk.PipelineError, match=r"left nothing of .* rows in a row, and repeat\(\) has no end"),
        ):
            next(iter(loader))


def test_what_leaves_nothing_is_an_empty_epoch() -> None:
    assert loaded(numbers().filter(lambda row: False).batch(4))[0] == []


def test_a_row_on_which_a_function_fails_is_named_and_the_loader_goes_on_behind_its_chunk() -> None:
    def picky(row: Any) -> bool:
        if row["x"] == 20:
            raise ValueError("not this one")
        return True

    with bk.Loader(numbers().filter(picky).batch(16), executor="inline") as loader:
        batches = iter(loader)
        assert next(batches)["x"].tolist() == list(range(16))
        with pytest.raises(bk.StageError, match=r"stage 0 filter\(.*failed on row 20: ValueError: not this one"):
            next(batches)
        assert next(batches)["x"].tolist() == list(range(32, 48))


def test_stages_that_cannot_stand_somewhere_say_so() -> None:
    batched = numbers().batch(4)
    for refused in (lambda: batched.flat_map(several), lambda: batched.window(2), lambda: batched.pack(8)):
        with pytest.raises(bk.PipelineError, match=r"works on rows"):
            refused()
    for recut in (lambda: batched.bucket_batch(2, boundaries=[4]), lambda: batched.padded_batch(2)):
        with pytest.raises(bk.PipelineError, match=r"cannot follow batches: add .unbatch\(\)"):
            recut()
    with pytest.raises(bk.PipelineError, match=r"static shapes"):
        numbers().batch(4, remainder="pad").filter(odd_columns)
    with pytest.raises(bk.PipelineError, match=r"rebatch\(\) needs batches"):
        numbers().rebatch(4)
    for pipe in (numbers().flat_map(several), numbers().filter(odd).take(4)):
        with pytest.raises(bk.PipelineError, match=r"cannot follow stage .*window="):
            bk.Loader(pipe.shuffle(1).batch(2))


def test_the_number_of_batches_is_not_known() -> None:
    with bk.Loader(numbers().filter(odd).batch(4)) as loader, pytest.raises(TypeError, match="known only in the end"):
        len(loader)


def test_a_filter_holds_only_what_is_in_flight() -> None:
    alive = 0
    most = 0
    lock = threading.Lock()

    class Noticed(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def big(row: Any) -> Any:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return {"x": np.full(10, row["x"]).view(Noticed)}

    with bk.Loader(
        numbers(4000).map(big).filter(always).batch(16), executor="threads", workers=2, prefetch=2
    ) as loader:
        seen = sum(1 for _ in loader)
    assert seen == 250
    assert most <= 16 * 8


class Tape:
    """An iterator with a state of its own."""

    def __init__(self) -> None:
        self.at = 0
        self.pulled = 0

    def __iter__(self) -> Tape:
        return self

    def __next__(self) -> Any:
        if self.at >= 40:
            raise StopIteration
        self.at += 1
        TAPES.append(self.at)
        return {"x": self.at}

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


TAPES: list[int] = []


@pytest.mark.parametrize("filtered", [False, True])
def test_an_iterator_with_a_state_of_its_own_is_not_replayed(filtered: bool) -> None:
    pipe = bk.from_generator(Tape)
    pipe = (pipe.filter(odd) if filtered else pipe).batch(4)
    batches, states = loaded(pipe, executor="inline")
    TAPES.clear()
    assert loaded(pipe, states[3], executor="inline")[0] == batches[4:]
    assert min(TAPES) > 8


def test_an_indexed_source_is_not_read_again_from_the_start_to_resume() -> None:
    seen: list[int] = []

    def noted(row: Any) -> bool:
        seen.append(int(row["x"]))
        return bool(row["x"] % 2)

    pipe = numbers(10_000).filter(noted).batch(20)
    batches, states = loaded(pipe, executor="inline")
    seen.clear()
    assert loaded(pipe, states[100], executor="inline")[0] == batches[101:]
    assert min(seen) >= 4000


def test_a_state_whose_walk_was_changed_is_refused() -> None:
    pipe = numbers().filter(odd).batch(4)
    _, states = loaded(pipe, executor="inline")
    for change in (
        {"epoch": 1},
        {"step": 2},
        {"walk": {**states[0]["walk"], "check": 3}},
        {"walk": {"at": 3}},
        {"walk": 7},
    ):
        with bk.Loader(pipe) as loader, pytest.raises(bk.StateError, match="damaged"):
            loader.load_state_dict({**states[0], **change})


def test_ending_an_iteration_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    for _ in range(5):
        with bk.Loader(numbers(5000).filter(odd).batch(4).map(same), executor="threads", workers=3) as loader:
            for step, _ in enumerate(loader):
                if step == 3:
                    break
    assert threading.active_count() == before


def test_rows_that_differ_in_shape_come_through_worker_processes() -> None:
    def ragged(row: Any) -> list[Any]:
        return [{"x": np.arange(int(row["x"]) % 5), "name": f"n{int(row['x'])}"}]

    pipe = numbers(30).flat_map(ragged).padded_batch(7, pad_value=-1)
    with bk.Loader(pipe, executor="inline") as one, bk.Loader(pipe, executor="processes", workers=2) as two:
        for here, there in zip(one, two, strict=True):
            assert here["x"].tolist() == there["x"].tolist()
            assert here["name"].tolist() == there["name"].tolist()


@settings(max_examples=150, deadline=None)
@given(
    count=some.integers(0, 60),
    verbs=some.lists(
        some.sampled_from(["filter", "flat_map", "take", "skip", "repeat", "window", "shuffle", "rebatch"]), max_size=5
    ),
    size=some.integers(1, 9),
    stop=some.integers(0, 20),
)
def test_any_chain_of_verbs_gives_what_plain_python_gives_and_resumes(
    count: int, verbs: list[str], size: int, stop: int
) -> None:
    pipe, rows = numbers(count), list(range(count))
    for verb in verbs:
        if verb == "filter":
            pipe, rows = pipe.filter(lambda row: bool(row["x"] % 3)), [x for x in rows if x % 3]
        elif verb == "flat_map":
            pipe = pipe.flat_map(lambda row: [{"x": row["x"] + i} for i in range(row["x"] % 3)])
            rows = [x + i for x in rows for i in range(x % 3)]
        elif verb == "take":
            pipe, rows = pipe.take(17), rows[:17]
        elif verb == "skip":
            pipe, rows = pipe.skip(5), rows[5:]
        elif verb == "repeat":
            pipe, rows = pipe.repeat(2), rows * 2
        elif verb == "window":
            pipe = pipe.window(3, 2, remainder="keep").flat_map(apart)
            rows = [x for start in range(0, len(rows), 2) for x in rows[start : start + 3]]
        elif verb == "shuffle":
            pipe = pipe.shuffle(1, window=1)
        else:
            pipe = pipe.batch(4).map(same).rebatch(5).unbatch()
    pipe = pipe.batch(size)
    batches, states = loaded(pipe, executor="inline")
    assert batches == cut(rows, size)
    if states:
        step = stop % len(states)
        rest = loaded(pipe, states[step], executor="inline")[0]
        assert rest == (batches[step + 1 :] or batches)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_rows_that_fail_before_they_are_counted_are_left_out_and_counted(executor: str, tmp_path: Path) -> None:
    pipe = numbers(60).map(picky).filter(not_a_third).flat_map(twice).batch(8)
    workers: dict[str, Any] = {} if executor in ("inline", "auto") else {"workers": 2}
    log = tmp_path / "log.jsonl"
    skip = bk.Skip(budget=20, log=str(log))
    with bk.Loader(pipe, executor=executor, on_error=skip, **workers) as loader:
        found = chained(values(loader))
        assert loader.skipped == 6
    assert found == [x for x in range(60) for _ in range(2) if x % 10 != 7 and x % 3]
    assert [json.loads(line)["row"] for line in log.read_text().splitlines()] == [7, 17, 27, 37, 47, 57]


def picky(row: Any) -> Any:
    if row["x"] % 10 == 7:
        raise ValueError("not this one")
    return row


def not_a_third(row: Any) -> bool:
    return bool(row["x"] % 3)


def twice(row: Any) -> list[Any]:
    return [row, row]


def test_too_many_rows_that_fail_are_an_error() -> None:
    pipe = numbers(60).map(picky).filter(always).batch(8)
    with (
        bk.Loader(pipe, on_error=bk.Skip(budget=3)) as loader,
        pytest.raises(bk.StageError, match="rows were left out"),
    ):
        list(loader)


# -- behind an error


def fails_at_50(row: Any) -> Any:
    if row["x"] == 50:
        raise ValueError("fifty")
    return row


def every_row(row: Any) -> bool:
    return True


def whole_batch(batch: Any) -> Any:
    return np.ones(len(batch["x"]), bool)


TWICE_CUT: dict[str, Callable[[bk.Pipeline], bk.Pipeline]] = {
    "a window shuffle": lambda rows: rows.filter(every_row).shuffle(0, window=16).filter(every_row),
    "windows": lambda rows: rows.filter(every_row).window(1).map(lambda row: {"x": row["x"][0]}).filter(every_row),
    "batches taken apart": lambda rows: rows.filter(every_row).batch(7).filter(whole_batch).unbatch().filter(every_row),
    "a combination": lambda rows: bk.concat([rows.filter(every_row), numbers(9).filter(every_row)]).filter(every_row),
    "passes": lambda rows: rows.filter(every_row).repeat(1).filter(every_row),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", TWICE_CUT)
def test_behind_an_error_all_rows_come_but_those_of_its_chunk(name: str, executor: str) -> None:
    pipe = TWICE_CUT[name](numbers(2000).map(fails_at_50)).batch(10)
    found, errors = [], []
    with bk.Loader(pipe, executor=executor) as loader:
        batches = iter(loader)
        for _ in range(1000):
            try:
                found += next(batches)["x"].tolist()
            except StopIteration:
                break
            except bk.StageError as exc:
                errors.append(str(exc))
    assert len(errors) == 1
    assert "failed on row 50: ValueError: fifty" in errors[0]
    assert set(range(2000)) - set(found) <= set(range(256))
