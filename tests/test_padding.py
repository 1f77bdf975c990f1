"""Ragged columns and padded batches, against plain Python on lists."""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchkit as bk
from batchkit import ragged as ragged_
from batchkit.plan import compile

EXECUTORS = ("inline", "threads", "processes")
executors = pytest.mark.parametrize("executor", EXECUTORS)
LENGTHS = [3, 0, 5, 1, 1, 4, 2, 0, 7, 2, 6]


@pytest.fixture(autouse=True, params=["stretch by stretch", "row by row"])
def copied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill rows up in both ways, however long they are."""
    monkeypatch.setattr(ragged_, "_LONG", 1 << 40 if request.param == "stretch by stretch" else -1)


def rows_of_lengths(lengths: list[int]) -> list[list[int]]:
    """Return rows of these lengths, no number twice."""
    starts = np.cumsum([1, *lengths]).tolist()
    return [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=False)]


def ragged(rows: list[list[int]], dtype: Any = np.int64) -> bk.Pipeline:
    values = np.array([value for row in rows for value in row], dtype)
    offsets = np.cumsum([0, *map(len, rows)])
    return bk.from_ragged({"x": values}, offsets, {"id": np.arange(len(rows))})


def as_sequence(rows: list[list[int]]) -> bk.Pipeline:
    return bk.from_sequence([{"x": np.array(row, np.int64), "id": number} for number, row in enumerate(rows)])


def as_generator(rows: list[list[int]]) -> bk.Pipeline:
    return bk.from_generator(lambda: ({"x": np.array(row, np.int64), "id": n} for n, row in enumerate(rows)))


def padded(rows: list[list[int]], length: int, fill: int = 0) -> list[list[int]]:
    """Return rows of one length: the oracle."""
    return [row + [fill] * (length - len(row)) for row in rows]


def batches_of(rows: list[Any], size: int) -> list[list[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@executors
@pytest.mark.parametrize("make", [ragged, as_sequence, as_generator])
def test_the_longest_row_of_a_batch_decides(make: Any, executor: str) -> None:
    rows = rows_of_lengths(LENGTHS)
    with bk.Loader(make(rows).padded_batch(4, pad_value=-1), executor=executor) as loader:
        got = [(batch["x"].tolist(), batch["id"].tolist()) for batch in loader]
    wanted = [padded(run, max(map(len, run)), -1) for run in batches_of(rows, 4)]
    assert [x for x, _ in got] == wanted
    assert [number for _, numbers in got for number in numbers] == list(range(len(rows)))


@executors
@pytest.mark.parametrize("make", [ragged, as_sequence, as_generator])
def test_a_length_makes_shapes_static_and_lengths_are_added(make: Any, executor: str) -> None:
    rows = rows_of_lengths(LENGTHS)
    pipe = make(rows).padded_batch(4, length={"x": 8}, remainder="pad", lengths=True)
    with bk.Loader(pipe, executor=executor) as loader:
        batches = list(loader)
    whole = [*padded(rows, 8), [0] * 8]
    assert [batch["x"].tolist() for batch in batches] == batches_of(whole, 4)
    assert [batch["x_length"].tolist() for batch in batches] == batches_of([*LENGTHS, 0], 4)
    assert [batch["mask"].tolist() for batch in batches] == batches_of([True] * 11 + [False], 4)
    assert {batch["x"].shape for batch in batches} == {(4, 8)}


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    size=st.integers(1, 9),
    many=st.integers(1, 5),
    seed=st.integers(0, 5),
    world=st.integers(1, 3),
)
def test_every_row_is_there_once_and_nothing_but_fill_besides(
    lengths: list[int], size: int, many: int, seed: int, world: int
) -> None:
    rows = rows_of_lengths(lengths)
    pipe = ragged(rows).shuffle(seed).padded_batch(size, multiple_of=many, pad_value=-7)
    order = [int(n) for k in range(-(-len(rows) // size)) for n in compile(pipe).batch(k)["id"]]
    assert sorted(order) == list(range(len(rows)))
    for rank in range(world):
        plan = compile(pipe, (rank, world))
        for number, run in enumerate(batches_of(order, size)):
            mine = [rows[n] for n in run[len(run) * rank // world : len(run) * (rank + 1) // world]]
            batch = plan.batch(number)
            if mine:
                longest = -(-max(map(len, mine)) // many) * many
                assert batch["x"].tolist() == padded(mine, longest, -7)
            else:
                assert len(batch["x"]) == 0


@executors
@pytest.mark.parametrize("verb", ["padded_batch", "bucket_batch", "pack"])
@pytest.mark.parametrize("made", ["ragged", "sequence"])
def test_each_leaf_has_a_pad_value_of_its_own(made: str, verb: str, executor: str) -> None:
    lengths = [2, 1, 3]
    columns = {"x": np.arange(6), "y": np.arange(6.0), "z": np.arange(6, dtype=np.uint8)}
    cuts = list(itertools.pairwise([0, *itertools.accumulate(lengths)]))
    rows = [{name: values[low:high] for name, values in columns.items()} for low, high in cuts]
    source = bk.from_ragged(columns, np.cumsum([0, *lengths])) if made == "ragged" else bk.from_sequence(rows)
    fills = {"x": -1, "y": 0.5}  # of z it is 0
    if verb == "pack":
        pipe = source.pack(4, bins=1, pad_value=fills).batch(2)
        wanted = [[0, 1, 2, None], [3, 4, 5, None]]
    else:
        given = {"boundaries": [3]} if verb == "bucket_batch" else {}
        pipe = getattr(source, verb)(3, pad_value=fills, **given)
        wanted = [[0, 1, None], [2, None, None], [3, 4, 5]]
    with bk.Loader(pipe, executor=executor) as loader:
        (batch,) = loader
    for name in columns:
        fill = fills.get(name, 0)
        assert batch[name].tolist() == [[fill if value is None else value for value in row] for row in wanted]
        assert batch[name].dtype == columns[name].dtype


def test_two_axes_and_scalars_beside_them() -> None:
    rows = [{"image": np.full((n + 1, 3 - n), n + 1, np.uint8), "label": n, "name": f"row{n}"} for n in range(3)]
    batch = compile(bk.from_sequence(rows).padded_batch(3, length={"image": [4, None]})).batch(0)
    wanted = np.zeros((3, 4, 3), np.uint8)
    for n in range(3):
        wanted[n, : n + 1, : 3 - n] = n + 1
    assert np.array_equal(batch["image"], wanted)
    assert batch["label"].tolist() == [0, 1, 2]
    assert batch["name"].tolist() == ["row0", "row1", "row2"]


def test_items_of_ragged_rows_may_have_axes_of_their_own() -> None:
    values, offsets = np.arange(12.0, dtype=np.float32).reshape(6, 2), [0, 2, 2, 6]
    batch = compile(bk.from_ragged(values, offsets).padded_batch(3)).batch(0)
    wanted = np.zeros((3, 4, 2), np.float32)
    wanted[0, :2], wanted[2] = values[:2], values[2:]
    assert np.array_equal(batch, wanted)


def test_functions_see_views_before_and_ragged_columns_or_arrays_behind() -> None:
    rows = rows_of_lengths(LENGTHS)
    seen: list[Any] = []

    def behind(batch: Any) -> Any:
        seen.append(batch["x"])
        return {"x": bk.Ragged(batch["x"].values * 2, batch["x"].offsets), "id": batch["id"]}

    pipe = ragged(rows).map(lambda row: {**row, "x": row["x"][:3]}).padded_batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        assert [batch["x"].tolist() for batch in loader] == [
            padded([row[:3] for row in run], max(min(len(row), 3) for row in run)) for run in batches_of(rows, 4)
        ]
    with pytest.raises(bk.SchemaError, match=r"leaf 'x' has rows of different lengths.*use padded_batch"):
        compile(ragged(rows).batch(4).map(behind)).batch(0)
    assert isinstance(seen[0], bk.Ragged)
    assert [row.tolist() for row in seen[0]] == rows[:4]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_it_resumes_from_every_step(executor: str) -> None:
    pipe = ragged(rows_of_lengths(LENGTHS)).shuffle(3).padded_batch(2, pad_value=-1)
    with bk.Loader(pipe, executor="inline") as plain:
        whole = [batch["x"].tolist() for batch in plain]
    with bk.Loader(pipe, executor=executor) as loader:
        for step in range(len(whole)):
            state = {**loader.state_dict(), "epoch": 0, "step": step}
            loader.load_state_dict(json.loads(json.dumps(state)))
            assert [batch["x"].tolist() for batch in loader] == whole[step:]


def test_the_schema_says_what_varies() -> None:
    pipe = ragged(rows_of_lengths(LENGTHS))
    assert repr(bk.Loader(pipe.padded_batch(4)).schema["x"]) == "int64[?, ?]"
    static = bk.Loader(pipe.padded_batch(4, length={"x": 8}, remainder="drop", lengths=True)).schema
    assert {name: repr(spec) for name, spec in static.items()} == {
        "x": "int64[4, 8]",
        "id": "int64[4]",
        "x_length": "int64[4]",
    }


def test_the_description_round_trips_through_json() -> None:
    pipe = bk.from_generator("json:loads").padded_batch(
        4, length={"x": 8}, multiple_of=2, pad_value={"x": -1}, lengths=True
    )
    again = bk.Pipeline.from_dict(json.loads(json.dumps(pipe.to_dict())))
    assert again.stages == pipe.stages


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.padded_batch(0), "padded_batch\\(size\\)"),
        (lambda p: p.padded_batch(2, length=0), "padded_batch\\(length\\)"),
        (lambda p: p.padded_batch(2, multiple_of=0), "padded_batch\\(multiple_of\\)"),
        (lambda p: p.padded_batch(2, remainder="dorp"), "did you mean 'drop'"),
        (lambda p: p.padded_batch(2, pad_value=[1]), "padded_batch\\(pad_value\\)"),
        (lambda p: p.padded_batch(2, lengths="yes"), "padded_batch\\(lengths\\)"),
        (lambda p: p.padded_batch(2).padded_batch(2), "cannot follow batches"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_said(make: Any, message: str) -> None:
    with pytest.raises(bk.PipelineError, match=message):
        make(ragged(rows_of_lengths(LENGTHS)))


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        (ragged(rows_of_lengths(LENGTHS)).padded_batch(11, length={"x": 6}), r"row 8: leaf 'x' has 7 entries, and "),
        (as_sequence(rows_of_lengths(LENGTHS)).padded_batch(11, length={"x": 6}), r"row 8: leaf 'x' has 7 entries"),
        (ragged(rows_of_lengths(LENGTHS), np.uint8).padded_batch(2, pad_value=300), "300 does not fit leaf 'x'"),
        (ragged(rows_of_lengths(LENGTHS), np.uint8).padded_batch(2, pad_value="a"), "'a' does not fit leaf 'x'"),
        (bk.from_sequence([{"x": np.zeros(2)}, {"x": np.zeros((2, 1))}]).padded_batch(2), "one number of axes"),
        (bk.from_sequence([{"x": np.zeros(2)}, {"x": np.zeros(2, int)}]).padded_batch(2), "return one dtype"),
        (bk.from_sequence([{"x": np.zeros(2)}, {"y": np.zeros(2)}]).padded_batch(2), "has the structure"),
        (bk.from_sequence([{"x": np.zeros(2)}]).padded_batch(2, length=[3, 3]), "has 1 axes a row, but length names 2"),
        (bk.from_ragged(np.arange(3), [0, 3]).padded_batch(1, lengths=True), "rows must be dicts"),
        (ragged(rows_of_lengths(LENGTHS)).batch(4), "rows of different lengths"),
        (ragged(rows_of_lengths(LENGTHS)).batch(4, remainder="pad"), "rows of different lengths"),
    ],
)
def test_rows_that_cannot_be_evened_out_are_named(pipe: bk.Pipeline, message: str) -> None:
    with pytest.raises(bk.SchemaError, match=message):
        compile(pipe).batch(0)


@pytest.mark.parametrize(
    ("values", "offsets", "columns", "message"),
    [
        (np.arange(3), [0, 2], None, "offsets go from 0 to 2, but there are 3 values"),
        (np.arange(3), [1, 3], None, "offsets go from 1 to 3"),
        (np.arange(3), [0, 2, 1, 3], None, "offsets fall behind row 1, from 2 to 1"),
        (np.arange(3), [], None, "one entry more than there are rows"),
        (np.arange(3), [0.0, 3.0], None, "must be a vector of integers"),
        ({"a": np.arange(3), "b": np.arange(2)}, [0, 3], None, "leaf 'b' has 2 values, but leaf 'a' has 3"),
        ({"a": np.float64(3)}, [0, 1], None, "leaf 'a' is zero-dimensional"),
        ({"a": np.arange(3)}, [0, 3], {"a": np.arange(1)}, "without a key in common"),
        ({"a": np.arange(3)}, [0, 3], {"b": np.arange(2)}, "the columns have 2 rows, but the offsets make 1"),
        ({}, [0], None, "there is no array in the values"),
    ],
)
def test_offsets_that_cut_nothing_are_refused(values: Any, offsets: Any, columns: Any, message: str) -> None:
    with pytest.raises(bk.SchemaError, match=message):
        bk.from_ragged(values, offsets, columns)


@pytest.mark.parametrize("verb", ["batch", "padded_batch"])
def test_no_python_is_run_for_each_row_of_a_ragged_column(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged_, "_LONG", 48)  # as it is: longer rows are a slice each, which costs less
    rows = ragged(rows_of_lengths([1 + n % 5 for n in range(9000)])).select("x").shuffle(1)

    def firsts(batch: Any) -> Any:
        return {"first": batch["x"].values[batch["x"].offsets[:-1]]}

    def lines_run(size: int) -> int:
        pipe = {
            "batch": lambda: rows.batch(size).map(firsts),
            "padded_batch": lambda: rows.padded_batch(size),
        }[verb]()
        lines = 0

        def counted(frame: Any, event: str, argument: Any) -> Any:
            nonlocal lines
            lines += event == "line"
            return counted

        with bk.Loader(pipe, executor="inline") as loader:
            batches, traced = iter(loader), sys.gettrace()
            next(batches)  # with what is made once
            sys.settrace(counted)
            try:
                next(batches)
            finally:
                sys.settrace(traced)
        return lines

    # Whether figures are kept of a step adds some hundred lines to either; 1,800 rows would add as many at least.
    assert 0 < lines_run(2000) < lines_run(200) + 900


@given(lengths=st.lists(st.integers(0, 6), max_size=30), data=st.data())
def test_taking_rows_of_a_ragged_column_is_taking_them_of_a_list(lengths: list[int], data: Any) -> None:
    rows = rows_of_lengths(lengths)
    column = bk.Ragged(np.array([v for row in rows for v in row], np.int64), np.cumsum([0, *lengths]))
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20)) if rows else []
    taken = column.take(np.array(chosen, np.int64))
    assert [row.tolist() for row in taken] == [rows[place] for place in chosen]
    assert taken.lengths.tolist() == [len(rows[place]) for place in chosen]
    half = len(chosen) // 2
    assert [row.tolist() for row in taken.part(half, len(chosen))] == [rows[place] for place in chosen[half:]]


@pytest.mark.parametrize("executor", ["inline", "processes"])
@pytest.mark.parametrize("verb", ["padded_batch", "bucket_batch", "pack"])
def test_text_of_any_width_is_filled_up_with_empty_text(verb: str, executor: str) -> None:
    rows = [{"w": np.array(["a", "b"])}, {"w": np.array(["xyz"])}]
    pipe = bk.from_sequence(rows)
    if verb == "pack":
        made = pipe.pack(4).batch(2)
    else:
        made = pipe.padded_batch(2) if verb == "padded_batch" else pipe.bucket_batch(2, boundaries=[2])
    with bk.Loader(made, executor=executor) as loader:
        (batch,) = loader
    wanted = [["a", "b", "xyz", ""]] if verb == "pack" else [["a", "b"], ["xyz", ""]]
    assert batch["w"].dtype == "<U3"
    assert batch["w"].tolist() == wanted


@pytest.mark.parametrize("made", ["ragged", "rows"])
def test_batches_of_many_widths_share_their_memory(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grown: list[int] = []
    allocate = bk.NumpyBackend.allocate

    def counted(backend: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        grown.append(int(np.prod(shape)))
        return allocate(backend, shape, dtype)

    monkeypatch.setattr(bk.NumpyBackend, "allocate", counted)
    lengths = np.random.default_rng(0).permutation(np.repeat(np.arange(1, 201), 2))
    values, offsets = np.arange(lengths.sum()), np.concatenate([[0], np.cumsum(lengths)])
    rows = [{"x": values[low:high]} for low, high in itertools.pairwise(offsets.tolist())]
    source = bk.from_ragged({"x": values}, offsets) if made == "ragged" else bk.from_sequence(rows)
    with bk.Loader(source.shuffle(0).padded_batch(2), executor="inline") as loader:
        for _ in range(3):
            widths = {batch["x"].shape[1] for batch in loader}
    assert len(widths) > 80
    assert sum(grown) < 20 * 2 * 200
