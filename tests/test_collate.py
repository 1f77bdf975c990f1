"""batch(collate=...): a function that makes the batch of the list of its rows, against slices of lists."""

from __future__ import annotations

import collections
import json
import traceback
from typing import Any

import numpy as np
import pytest
from collating import ALL, SOURCES, cut, filtered, first, lists, made_of, numbers, part, ragged, summed, trimmed
from executors import EXECUTORS, every
from hypothesis import given, settings
from hypothesis import strategies as st

import batchkit as bk
from batchkit.tree import flatten

# --- what is in the batches


@every
@pytest.mark.parametrize(("make", "order"), SOURCES)
def test_the_function_makes_each_batch_of_the_list_of_its_rows(make: Any, order: list[int], executor: str) -> None:
    with bk.Loader(make().batch(3, collate=trimmed), executor=executor) as loader:
        for _ in range(2):
            assert lists(loader) == [made_of(run) for run in cut(order, 3)]


@every
def test_rows_that_were_packed_or_windowed_are_collated(executor: str) -> None:
    def ends(rows: list[Any]) -> Any:
        return {"ends": np.concatenate([row["n"][[0, -1]] for row in rows])}

    with bk.Loader(numbers(12).window(3).batch(3, collate=ends), executor=executor) as loader:
        assert lists(loader) == [{"ends": [0, 2, 3, 5, 6, 8]}, {"ends": [9, 11]}]
    packed = bk.from_ragged({"n": np.arange(6)}, [0, 2, 3, 5, 6]).pack(3).batch(2, collate=ends)
    with bk.Loader(packed, executor=executor) as loader:
        assert lists(loader) == [{"ends": [0, 2, 3, 5]}]


def test_batches_that_were_taken_apart_are_collated() -> None:
    batches = bk.from_generator(lambda: iter([{"n": np.arange(4)}, {"n": np.arange(4, 7)}]), batched=True)
    with bk.Loader(batches.unbatch().batch(3, collate=summed)) as loader:
        assert [int(batch["sum"]) for batch in loader] == [3, 12, 6]
    with bk.Loader(numbers(7).batch(4).unbatch().batch(3, collate=summed)) as loader:
        assert [int(batch["sum"]) for batch in loader] == [3, 12, 6]


@st.composite
def cuts(draw: Any) -> tuple[bk.Pipeline, list[list[int]], tuple[int, int], int]:
    """Return a pipeline, the rows of each of its batches, a rank of so many, and a step to resume behind."""
    make, order = draw(st.sampled_from(SOURCES[:6]))
    size, remainder, world = draw(st.integers(1, 13)), draw(st.sampled_from(["keep", "drop"])), draw(st.integers(1, 4))
    runs = cut(order, size, remainder)
    pipe = make().batch(size, remainder=remainder, collate=trimmed)
    return pipe, runs, (draw(st.integers(0, world - 1)), world), draw(st.integers(0, len(runs)))


def check_every_step(
    drawn: tuple[bk.Pipeline, list[list[int]], tuple[int, int], int], executor: str, executor_after: str
) -> None:
    pipe, runs, shard, step = drawn
    mine = [part(run, *shard) for run in runs]
    wanted = [made_of(run) if run else None for run in mine]
    with bk.Loader(pipe, executor=executor, workers=2, shard=shard) as loader:
        states, found = [loader.state_dict()], []
        for batch in loader:
            found.append(batch)
            states.append(loader.state_dict())
    assert [batch["x"].shape[0] for batch in found] == [len(run) for run in mine]
    assert [made if run else None for made, run in zip(lists(found), mine, strict=True)] == wanted
    with bk.Loader(pipe, executor=executor_after, workers=2, shard=shard) as loader:
        loader.load_state_dict(json.loads(json.dumps(states[step])))
        rest = lists(loader)
    if step == len(runs):  # behind the last one comes the next epoch
        step = 0
    assert [made if run else None for made, run in zip(rest, mine[step:], strict=True)] == wanted[step:]


@settings(max_examples=60, deadline=None)
@given(drawn=cuts(), executor=st.sampled_from(["inline", "threads"]))
def test_every_rank_collates_its_slice_and_resumes_behind_every_step(drawn: Any, executor: str) -> None:
    check_every_step(drawn, executor, "inline")


@settings(max_examples=4, deadline=None)
@given(drawn=cuts())
def test_every_rank_of_a_loader_with_processes_does_so_too(drawn: Any) -> None:
    check_every_step(drawn, "processes", "threads")


@every
def test_a_rank_without_rows_in_the_last_batch_has_leaves_without_entries(executor: str) -> None:
    with bk.Loader(ragged().batch(5, collate=trimmed), shard=(0, 2), executor=executor) as loader:
        last = list(loader)[-1]
    assert (last["x"].shape[0], last["flat"].shape, last["total"].shape) == (0, (0,), ())


def test_a_size_and_the_remainder_say_how_many_batches_there_are() -> None:
    with bk.Loader(ragged().batch(4, collate=trimmed)) as loader:
        assert len(loader) == 3
    with bk.Loader(ragged().batch(4, remainder="drop", collate=trimmed)) as loader:
        assert len(loader) == 2
        assert lists(loader) == [made_of(run) for run in cut(ALL, 4, "drop")]
    with bk.Loader(filtered().batch(4, collate=trimmed)) as loader, pytest.raises(TypeError, match="no length"):
        len(loader)


def test_shuffled_rows_are_those_that_are_stacked_without_the_function() -> None:
    pipe = numbers(20).shuffle(seed=3)
    with bk.Loader(pipe.batch(6)) as plain, bk.Loader(pipe.batch(6, collate=summed)) as loader:
        for _ in range(2):
            assert [int(batch["sum"]) for batch in loader] == [int(batch["n"].sum()) for batch in plain]


# --- what the function is given, and may return


def test_rows_are_as_the_last_function_has_returned_them() -> None:
    seen: list[Any] = []

    def noted(rows: list[Any]) -> Any:
        seen.extend(rows)
        return {"n": len(rows)}

    first(numbers(2).map(lambda row: {"n": int(row["n"]), "text": "a", "list": [1, 2]}).batch(2, collate=noted))
    assert seen == [{"n": 0, "text": "a", "list": [1, 2]}, {"n": 1, "text": "a", "list": [1, 2]}]


def test_rows_that_are_no_dicts_are_given_as_they_are() -> None:
    pipe = bk.from_arrays((np.arange(4), np.arange(4) * 10)).batch(2, collate=lambda rows: [a + b for a, b in rows])
    assert first(pipe).tolist() == [0, 11]


def test_a_function_may_take_keys_out_of_its_rows_and_rows_out_of_its_list() -> None:
    def taken(rows: list[Any]) -> Any:
        return {"n": [rows.pop(0).pop("n") for _ in range(len(rows))]}

    pipe = numbers(2).flat_map(lambda row: [row] * 3).batch(6, collate=taken)
    with bk.Loader(pipe, executor="inline") as loader:
        for _ in range(2):
            assert lists(loader) == [{"n": [0, 0, 0, 1, 1, 1]}]


class Collator:
    """As those of Hugging Face: an object that returns a mapping that is no dict."""

    def __call__(self, rows: list[Any]) -> collections.UserDict[str, Any]:
        return collections.UserDict(n=[row["n"] for row in rows], size=len(rows))


class Tensor:
    """What has ``__array__``, as the tensors of every framework do."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self.values, dtype)


Pair = collections.namedtuple("Pair", ["n", "half"])

RETURNED: dict[str, tuple[Any, Any]] = {
    "an array": (lambda rows: np.arange(3), np.arange(3)),
    "a number": (lambda rows: 2.5, np.array(2.5)),
    "a list": (lambda rows: {"x": [[1, 2], [3, 4]]}, {"x": np.array([[1, 2], [3, 4]])}),
    "a tuple": (lambda rows: (np.ones(3), {"y": True}), (np.ones(3), {"y": np.array(True)})),
    "a named tuple": (lambda rows: Pair(1, [0.5]), Pair(np.array(1), np.array([0.5]))),
    "a mapping": (Collator(), {"n": np.arange(4), "size": np.array(4)}),
    "tensors": (lambda rows: {"x": Tensor([1, 2])}, {"x": np.array([1, 2])}),
    "text": (lambda rows: {"t": "ab", "u": ["a", "bcd"]}, {"t": np.array("ab"), "u": np.array(["a", "bcd"])}),
    "an empty array": (lambda rows: np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
    "a view": (lambda rows: np.arange(12).reshape(3, 4).T[::2], np.arange(12).reshape(3, 4).T[::2]),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("what", list(RETURNED))
def test_any_tree_of_arrays_may_be_returned(what: str, executor: str) -> None:
    function, wanted = RETURNED[what]
    with bk.Loader(numbers(4).batch(4, collate=function), executor=executor) as loader:
        (batch,) = loader
    (found, nesting), (leaves, known) = flatten(batch), flatten(wanted)
    assert nesting == known
    for leaf, want in zip(found, leaves, strict=True):
        assert (leaf.dtype, leaf.shape, leaf.tolist()) == (want.dtype, want.shape, want.tolist())


REFUSED: dict[str, tuple[Any, str]] = {
    "ragged lists": (lambda rows: {"x": [[1], [2, 3]]}, r"leaf 'x' is a list that NumPy cannot take as an array"),
    "None": (lambda rows: {"x": None}, r"leaf 'x' is None"),
    "objects": (lambda rows: {"x": np.array([object()])}, r"leaf 'x' is a ndarray of Python objects"),
    "no leaf": (lambda rows: {}, r"returned .*, which has no leaf"),
    "a ragged leaf": (lambda rows: {"x": bk.Ragged(np.arange(3), [0, 1, 3])}, r"leaf 'x' is ragged.*Fill it up"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_is_no_batch_is_refused_with_stage_and_leaf(what: str) -> None:
    function, message = REFUSED[what]
    with pytest.raises(bk.BatchkitError, match=rf"stage 0 batch\(size=4, collate=.*<lambda>\):? {message}"):
        first(numbers(4).batch(4, collate=function))


# --- failing


@every
def test_a_function_that_fails_names_stage_rows_and_cause_and_the_next_step_goes_on(executor: str) -> None:
    def failing(rows: list[Any]) -> Any:
        if any(row["n"] == 4 for row in rows):
            raise KeyError("no such thing")
        return {"n": len(rows)}

    pipe = numbers(8).map(dict).batch(3, collate=failing)
    message = r"epoch 0, step 1: stage 1 batch\(size=3, collate=.*failing\) failed on rows \[3, 4, 5\]: KeyError"
    with bk.Loader(pipe, executor=executor) as loader:
        batches = iter(loader)
        assert int(next(batches)["n"]) == 3
        with pytest.raises(bk.StageError, match=message) as caught:
            next(batches)
        assert int(next(batches)["n"]) == 2
    assert isinstance(caught.value.__cause__, KeyError)
    assert "in failing" in "".join(traceback.format_exception(caught.value))


def test_an_iterator_that_runs_out_does_not_end_the_epoch() -> None:
    pipe = numbers(4).batch(2, collate=lambda rows: next(iter(())))
    with pytest.raises(bk.StageError, match=r"StopIteration.*an iterator inside the function ran out"):
        first(pipe)


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
@pytest.mark.parametrize("generated", [False, True])
def test_rows_that_fail_before_are_left_out_of_the_list(executor: str, generated: bool) -> None:
    def checked(row: Any) -> Any:
        if row["n"] in (1, 5):
            raise ValueError("broken")
        return row

    source = bk.from_generator(lambda: ({"n": number} for number in range(8))) if generated else numbers(8)
    pipe = source.map(checked).batch(4, collate=lambda rows: [row["n"] for row in rows])
    with bk.Loader(pipe, executor=executor, on_error=bk.Skip(budget=2), lineage=not generated) as loader:
        batches = list(loader)
        assert loader.skipped == 2
    if generated:
        assert [batch.tolist() for batch in batches] == [[0, 2, 3], [4, 6, 7]]
    else:
        assert [batch.tolist() for batch, _ in batches] == [[0, 2, 3], [4, 6, 7]]
        assert [lineage["row"].tolist() for _, lineage in batches] == [[0, 2, 3], [4, 6, 7]]


def test_a_function_that_fails_is_an_error_even_where_rows_are_skipped() -> None:
    def failing(rows: list[Any]) -> Any:
        raise ValueError("broken")

    with pytest.raises(bk.StageError, match=r"batch\(size=2, .*failing\) failed on rows \[0, 1\]: ValueError: broken"):
        first(numbers(4).batch(2, collate=failing), on_error="skip")
