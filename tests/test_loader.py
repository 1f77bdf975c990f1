"""The loader: epochs, state, several threads, and leaving nothing behind."""

from __future__ import annotations

import functools
import json
import operator
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest

import batchkit as bk

EXECUTORS = ["inline", "threads"]
executors = pytest.mark.parametrize("executor", EXECUTORS)


def numbers(rows: int = 20) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows)})


def counting(rows: int = 20) -> bk.Pipeline:
    return bk.from_generator(lambda: ({"x": value} for value in range(rows)))


def values(batches: Any) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


def workers_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batchkit-worker")]


def wait_for_no_workers() -> None:
    deadline = time.monotonic() + 5
    while workers_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers_alive() == []


# -- epochs


@executors
def test_each_iteration_is_the_next_epoch_in_another_order(executor: str) -> None:
    with bk.Loader(numbers().shuffle(3).batch(20), executor=executor) as loader:
        epochs = [values(loader)[0] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_without_reshuffle_every_epoch_has_the_first_ones_order() -> None:
    reshuffled = bk.Loader(numbers().shuffle(3).batch(20), executor="inline")
    fixed = bk.Loader(numbers().shuffle(3, reshuffle=False).batch(20), executor="inline")
    first = values(reshuffled)
    assert [values(fixed) for _ in range(3)] == [first] * 3


def test_epoch_names_the_one_going_on_and_then_the_next() -> None:
    with bk.Loader(numbers().batch(10)) as loader:
        assert loader.epoch == 0
        assert [loader.epoch for _ in loader] == [0, 0]
        assert loader.epoch == 1
        assert [loader.epoch for _ in loader] == [1, 1]


@executors
def test_after_a_break_the_next_iteration_is_the_next_epoch(executor: str) -> None:
    pipe = numbers().shuffle(0).batch(5)
    with bk.Loader(pipe, executor=executor) as loader, bk.Loader(pipe, executor="inline") as whole:
        for _ in loader:
            break
        list(whole)
        assert values(loader) == values(whole)


def test_len_is_the_number_of_batches_of_an_epoch() -> None:
    assert len(bk.Loader(numbers(20).batch(6))) == 4
    assert len(bk.Loader(numbers(20).batch(6, remainder="drop"))) == 3
    assert len(bk.Loader(numbers(20).batch(6).repeat(2))) == 8


def test_len_of_what_has_none_says_why() -> None:
    with pytest.raises(TypeError, match=r"no length: it is endless, as repeat\(\)"):
        len(bk.Loader(numbers().repeat().batch(4)))
    with pytest.raises(TypeError, match="no length: a generator does not say"):
        len(bk.Loader(counting().batch(4)))


@executors
def test_an_endless_pipeline_goes_on_and_reshuffles_each_pass(executor: str) -> None:
    with bk.Loader(numbers(10).shuffle(0).repeat().batch(10), executor=executor) as loader:
        iterator = iter(loader)
        passes = [next(iterator)["x"].tolist() for _ in range(4)]
    assert [sorted(one) for one in passes] == [list(range(10))] * 4
    assert len({tuple(one) for one in passes}) == 4


def test_a_take_of_endless_rows_is_another_one_every_epoch() -> None:
    with bk.Loader(numbers(10).shuffle(0).repeat().take(10).batch(10)) as loader:
        first, second = values(loader), values(loader)
    assert sorted(first[0]) == sorted(second[0])
    assert first != second


# -- state


def states() -> list[Any]:
    return [
        numbers().shuffle(1).batch(6),
        numbers().shuffle(1).batch(6, remainder="pad"),
        numbers(7).shuffle(2).repeat(3).batch(4, remainder="drop"),
        numbers().batch(4).shuffle(5),
        numbers().map(lambda row: {"x": row["x"] + 1}).batch(3),
        counting().batch(6),
        counting(12).batch(6).repeat(2),
    ]


@executors
@pytest.mark.parametrize("pipe", states())
def test_a_state_resumes_on_fresh_and_on_used_loaders_again_and_again(pipe: bk.Pipeline, executor: str) -> None:
    with bk.Loader(pipe, executor="inline") as loader:
        whole = values(loader) + values(loader)
        steps = len(values(loader))
    with bk.Loader(pipe, executor=executor) as used:
        for step in range(steps + 1):
            with bk.Loader(pipe, executor=executor, prefetch=5) as first:
                iterator = iter(first)
                for _ in range(step):
                    next(iterator)
                state = json.loads(json.dumps(first.state_dict()))
            for _ in range(2):
                used.load_state_dict(state)
                rest = values(used)
                assert rest == (whole[step:steps] or whole[steps:])
                if step < steps:
                    assert values(used) == whole[steps:]


def test_a_state_is_the_same_size_at_any_step() -> None:
    with bk.Loader(numbers(100_000).shuffle(0).batch(1)) as loader:
        iterator = iter(loader)
        early = loader.state_dict()
        for _ in range(1000):
            next(iterator)
        late = loader.state_dict()
    assert len(json.dumps(late)) - len(json.dumps(early)) <= 4
    assert len(json.dumps(late)) < 4096


def test_a_state_counts_what_was_delivered_not_what_was_prefetched() -> None:
    with bk.Loader(numbers().batch(1), prefetch=10, workers=4) as loader:
        iterator = iter(loader)
        next(iterator)
        time.sleep(0.05)
        assert loader.state_dict()["step"] == 1


def test_taking_a_state_starts_nothing() -> None:
    calls: list[int] = []

    def rows() -> Any:
        calls.append(1)
        yield {"x": 1}

    with bk.Loader(bk.from_generator(rows).batch(1)) as loader:
        loader.state_dict()
        loader.load_state_dict(loader.state_dict())
    assert calls == []
    assert workers_alive() == []


def test_a_run_goes_on_with_other_workers_executors_and_world_sizes() -> None:
    pipe = numbers(40).shuffle(3).batch(8)
    with bk.Loader(pipe, executor="inline") as loader:
        whole = values(loader)
    with bk.Loader(pipe, executor="threads", workers=3) as one:
        iterator = iter(one)
        next(iterator)
        state = one.state_dict()
    parts = []
    for rank in range(3):
        with bk.Loader(pipe, executor="threads", workers=1 + rank, shard=(rank, 3)) as other:
            other.load_state_dict(state)
            parts.append(values(other))
    assert [functools.reduce(operator.iadd, (part[step] for part in parts), []) for step in range(4)] == whole[1:]


def damaged(state: dict[str, Any]) -> list[tuple[Any, str]]:
    return [
        (7, "a state is a dict"),
        ({}, "lacks version, epoch, step, pipeline"),
        ({**state, "version": 9}, "has version 9"),
        ({**state, "step": -1}, "step is -1"),
        ({**state, "epoch": "0"}, "epoch is '0'"),
        ({**state, "step": True}, "step is True"),
        ({**state, "step": 1000}, "at step 1000, but an epoch has 4 batches"),
        ({**state, "pipeline": 3}, "pipeline is damaged"),
    ]


@pytest.mark.parametrize("number", range(8))
def test_a_damaged_state_is_refused_and_the_loader_goes_on(number: int) -> None:
    with bk.Loader(numbers().batch(5)) as loader:
        state, message = damaged(loader.state_dict())[number]
        with pytest.raises(bk.StateError, match=message):
            loader.load_state_dict(state)
        assert len(values(loader)) == 4


def test_a_state_of_another_pipeline_is_refused_by_the_stage_that_differs() -> None:
    state = bk.Loader(numbers().shuffle(0).batch(5)).state_dict()
    with pytest.raises(bk.StateError, match=r"stage 1 is batch\(size=5\), and here it is batch\(size=4\)"):
        bk.Loader(numbers().shuffle(0).batch(4)).load_state_dict(state)
    with pytest.raises(bk.StateError, match=r"stage 1 is batch\(size=5\), and here it is take\(count=9\)"):
        bk.Loader(numbers().shuffle(0).take(9).batch(5)).load_state_dict(state)


def test_a_state_of_changed_data_is_refused() -> None:
    state = bk.Loader(numbers().batch(5)).state_dict()
    changed = np.arange(20)
    changed[3] = 99
    with pytest.raises(bk.StateError, match="of another data set"):
        bk.Loader(bk.from_arrays({"x": changed}).batch(5)).load_state_dict(state)
    with pytest.raises(bk.StateError, match="of another data set"):
        bk.Loader(numbers(21).batch(5)).load_state_dict(state)


# -- threads


def test_a_generator_is_shared_safely_by_several_workers() -> None:
    with bk.Loader(counting(400).map(lambda row: row).batch(3), workers=4, prefetch=8) as loader:
        assert values(loader) == [list(range(start, min(start + 3, 400))) for start in range(0, 400, 3)]


# -- leaving nothing behind


def test_cheap_steps_start_no_thread_and_slow_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchkit.executors.threads.SURE_SECONDS", 20e-3)
    monkeypatch.setattr("batchkit.executors.threads.SLOW_SECONDS", 10.0)
    monkeypatch.setattr("batchkit.executors.threads.HAND_OVER_SECONDS", 10.0)
    with bk.Loader(numbers(100).batch(1), workers=3) as loader:
        assert [len(workers_alive()) for _ in loader] == [0] * 100

    def slow(row: Any) -> Any:
        time.sleep(0.03)
        return row

    with bk.Loader(numbers(10).map(slow).batch(1), workers=3) as loader:
        iterator = iter(loader)
        assert int(next(iterator)["x"][0]) == 0
        assert len(workers_alive()) == 3
        assert [int(batch["x"][0]) for batch in iterator] == list(range(1, 10))


def test_the_end_of_an_epoch_leaves_no_thread() -> None:
    loader = bk.Loader(numbers(100).batch(1), workers=3)
    iterator = iter(loader)
    assert len(list(iterator)) == 100
    wait_for_no_workers()


def test_close_closes_the_users_generator() -> None:
    closed: list[bool] = []

    def rows() -> Any:
        try:
            for value in range(1000):
                yield {"x": value}
        finally:
            closed.append(True)

    with bk.Loader(bk.from_generator(rows).batch(1), workers=2) as loader:
        next(iter(loader))
    assert closed == [True]


# -- errors


@pytest.mark.parametrize("place", ["before batch", "behind batch"])
def test_a_function_that_returns_another_dtype_later_is_refused_with_the_mend(place: str) -> None:
    def drifts(row: Any) -> Any:
        return {"x": row["x"] * 0.5} if np.max(row["x"]) >= 8 else {"x": row["x"]}

    pipe = numbers().map(drifts).batch(4) if place == "before batch" else numbers().batch(4).map(drifts)
    with bk.Loader(pipe) as loader:
        iterator = iter(loader)
        next(iterator), next(iterator)
        with pytest.raises(bk.SchemaError, match=r"epoch 0, step 2: leaf 'x' is float64.*was int64.*drifts") as caught:
            next(iterator)
        assert ".cast(x='float64')" in str(caught.value)


def test_rows_of_different_dtype_in_one_batch_name_both_rows() -> None:
    pipe = numbers().map(lambda row: {"x": row["x"] * 0.5 if row["x"] == 2 else row["x"]}).batch(4)
    with (
        bk.Loader(pipe) as loader,
        pytest.raises(
            bk.SchemaError, match=r"step 0: row 2: leaf 'x' is float64, but row 0 has int64, after stage 0 map.*\.cast"
        ),
    ):
        list(loader)


def test_rows_of_different_shape_name_row_leaf_shapes_and_mend() -> None:
    pipe = bk.from_sequence([{"x": np.zeros(2)}, {"x": np.zeros(3)}]).batch(2)
    with (
        bk.Loader(pipe) as loader,
        pytest.raises(
            bk.SchemaError,
            match=r"row 1: leaf 'x' is float64\[3\], but row 0 has float64\[2\]. Use padded_batch\(\), or bring",
        ),
    ):
        list(loader)


def test_rows_of_different_structure_name_both() -> None:
    pipe = bk.from_sequence([{"x": 1}, {"x": 1, "y": 2}]).batch(2)
    with (
        bk.Loader(pipe) as loader,
        pytest.raises(bk.SchemaError, match=r"row 1 has the structure \{x, y\}, but row 0 has \{x\}"),
    ):
        list(loader)


def test_a_batch_function_that_changes_the_number_of_rows_is_refused() -> None:
    pipe = numbers().batch(4).map(lambda batch: {"x": batch["x"][:2]})
    with (
        bk.Loader(pipe) as loader,
        pytest.raises(bk.StageError, match=r"leaf 'x' has 2 rows, but the batch has 4. Behind batch"),
    ):
        list(loader)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shard": (2, 2)}, bk.PipelineError, r"shard=\(2, 2\): the rank must be in 0..1"),
        ({"shard": (-1, 2)}, bk.PipelineError, r"shard=\(-1, 2\)"),
        ({"shard": 3}, bk.PipelineError, r"shard must be \(rank, world\)"),
        ({"shard": (0.5, 2)}, TypeError, "must be a whole number, not 0.5"),
        ({"backend": "pytorch"}, bk.BackendError, "no backend 'pytorch'"),
        ({"backend": 3}, bk.BackendError, "must be a name such as 'torch' or a Backend object"),
        ({"device": "gpu7"}, bk.BackendError, "backend 'numpy' has no device 'gpu7'"),
        ({"executor": "thread"}, bk.BackendError, "no executor 'thread'.*threads"),
        ({"executor": 3}, bk.PipelineError, "executor must be a name"),
        ({"workers": 0}, bk.PipelineError, "workers must be at least 1, not 0"),
        ({"workers": "many"}, bk.PipelineError, "workers must be 'auto' or a number"),
        ({"workers": 1.5}, TypeError, "workers must be 'auto' or a whole number"),
        ({"prefetch": -1}, bk.PipelineError, "prefetch must be at least 0"),
        ({"narrow": "never"}, bk.PipelineError, "narrow must be 'checked' or 'error'"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bk.Loader(numbers().batch(4), **options)


def test_a_pipeline_of_rows_is_refused_with_the_mend() -> None:
    with pytest.raises(bk.PipelineError, match=r"add .batch\(size\)"):
        bk.Loader(numbers())
    with pytest.raises(TypeError, match="expected a Pipeline, not a list"):
        bk.Loader([1, 2])  # type: ignore[arg-type]


def test_an_empty_source_gives_no_batch_in_any_epoch() -> None:
    for pipe in (bk.from_arrays({"x": np.empty((0, 3))}), bk.from_sequence([]), counting(0)):
        with bk.Loader(pipe.repeat(2).batch(4)) as loader:
            assert [list(loader), list(loader)] == [[], []]


def test_repeating_nothing_for_ever_is_an_error_not_a_spin() -> None:
    with pytest.raises(bk.PipelineError, match=r"repeat\(\) for ever over no rows"):
        bk.Loader(bk.from_arrays({"x": np.empty(0)}).repeat().batch(4))
    with (
        bk.Loader(counting(0).repeat().batch(4)) as loader,
        pytest.raises(bk.PipelineError, match=r"repeat\(\) for ever over what yields nothing"),
    ):
        list(loader)


def test_the_schema_of_a_batch_is_exact() -> None:
    rows = {"image": np.zeros((10, 4, 4), np.uint8), "meta": (np.zeros(10), np.array(["a"] * 10))}
    loader = bk.Loader(bk.from_arrays(rows).batch(4, remainder="drop"))
    assert loader.schema["image"] == bk.LeafSpec(np.dtype("uint8"), (4, 4, 4))
    assert loader.schema["meta"][0] == bk.LeafSpec(np.dtype("float64"), (4,))
    assert loader.schema["meta"][1] == bk.LeafSpec(np.dtype("U"), (4,))
    mapped = bk.Loader(bk.from_arrays(rows).batch(4).map(lambda b: {"x": b["image"].astype(np.float32)}))
    assert mapped.schema == {"x": bk.LeafSpec(np.dtype("float32"), (None, 4, 4))}


def test_a_replica_has_the_same_options_but_those_that_are_changed() -> None:
    loader = bk.Loader(numbers().batch(5), executor="inline", shard=(1, 2), prefetch=7)
    other = loader.replicate(executor="threads")
    assert (other.shard, other.prefetch, other.executor.name) == ((1, 2), 7, "threads")
    with pytest.raises(bk.PipelineError, match="no option 'executer'; did you mean 'executor'"):
        loader.replicate(executer="inline")


@executors
def test_a_pickled_loader_goes_on_where_it_was(executor: str) -> None:
    pipe = numbers(12).shuffle(0).map(lambda row: {"x": row["x"] + 1}).batch(3)
    workers = {} if executor == "inline" else {"workers": 2}
    with bk.Loader(pipe, executor=executor, shard=(1, 2), prefetch=7, **workers) as loader:
        list(loader)
        loader.load_state_dict({**loader.state_dict(), "epoch": 1, "step": 2})
        copy = pickle.loads(pickle.dumps(loader))
        assert (copy.shard, copy.prefetch, copy.executor.name) == ((1, 2), 7, executor)
        assert values(copy) == values(loader)
        assert values(copy) == values(loader)


@executors
def test_a_loader_that_is_pickled_in_the_middle_of_an_epoch_goes_on_there(executor: str) -> None:
    for pipe in (numbers(12).shuffle(0).batch(3), counting(12).batch(3)):
        with bk.Loader(pipe, executor=executor) as loader:
            whole = values(loader.iterate(0))
            batches = iter(loader)
            next(batches)
            with pickle.loads(pickle.dumps(loader)) as copy:
                assert values(copy) == whole[1:]
                assert copy.epoch == 1
            assert values(batches) == whole[1:]


@executors
def test_parts_of_an_epoch_interleave_to_the_whole(executor: str) -> None:
    for pipe in (numbers(23).shuffle(1).batch(2), counting(23).batch(2)):
        with bk.Loader(pipe, executor=executor) as loader:
            whole = values(loader.iterate(4))
            parts = [values(loader.iterate(4, (index, 3))) for index in range(3)]
            merged = [parts[step % 3][step // 3] for step in range(len(whole))]
            assert merged == whole
            assert values(loader.iterate(4, start=5)) == whole[5:]
            assert loader.epoch == 0


def test_the_report_counts_batches() -> None:
    with bk.Loader(numbers().batch(5)) as loader:
        assert loader.report() == "nothing was loaded yet"
        list(loader)
        assert loader.report().startswith("4 batches in ")


def test_a_replica_may_be_inline_whatever_workers_there_were() -> None:
    with (
        bk.Loader(numbers(10).batch(4), executor="threads", workers=3) as loader,
        loader.replicate(executor="inline") as copy,
    ):
        assert (copy.executor.name, copy.workers) == ("inline", 0)
        assert values(copy) == values(loader)


# -- batches of fewer rows than ranks

EMPTY = r"so that some get nothing of it"


@pytest.mark.parametrize(
    ("pipe", "told"),
    [
        (numbers(10).batch(4), "the last batch of an epoch has only 2 of its rows left for 3 ranks"),
        (numbers(10).shuffle(0).batch(4).shuffle(1), "only 2 of its rows left"),
        (numbers(10).batch(3).rebatch(4), "only 2 of its rows left"),
        (numbers(6).repeat(3).batch(4), "only 2 of its rows left"),
        (numbers(10).batch(2), "give at least 3"),
        (numbers(10).batch(2, remainder="drop"), "give at least 3"),
        (numbers(10).filter(lambda row: True).batch(2), "give at least 3"),
    ],
)
def test_a_rank_that_gets_batches_of_no_rows_is_warned_of_once(pipe: bk.Pipeline, told: str) -> None:
    with pytest.warns(UserWarning, match=EMPTY) as caught, bk.Loader(pipe, shard=(0, 3)):
        pass
    assert len(caught) == 1
    assert told in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "pipe",
    [
        numbers(10).batch(4, remainder="drop"),
        numbers(10).batch(6, remainder="pad"),
        numbers(11).batch(4),
        numbers(12).batch(4),
        numbers(10).batch(4).take(2),
        numbers(10).repeat().batch(4),
        numbers(10).filter(lambda row: True).batch(4),
    ],
)
@pytest.mark.filterwarnings("error")
def test_nothing_is_said_where_every_rank_has_rows_or_that_is_not_known(pipe: bk.Pipeline) -> None:
    with bk.Loader(pipe, shard=(0, 3)) as loader:
        assert loader.shard == (0, 3)
