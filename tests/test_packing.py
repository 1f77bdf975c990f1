"""Packing sequences into rows of one length, against first fit and best fit in plain Python."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchkit import layouts, stages
from batchkit.errors import MissingLeafError, PipelineError, PipelineTypeError, SchemaError, StageError, StateError
from batchkit.lengths import joined
from batchkit.packing import Packed, Packer, packed_columns, packed_lengths, packed_schema
from batchkit.padding import fresh
from batchkit.ragged import Ragged
from batchkit.schema import LeafSpec


@pytest.fixture(autouse=True, params=["value by value", "segment by segment"])
def copied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy in both ways, however long segments are."""
    monkeypatch.setattr(layouts, "_LONG", 1 << 40 if request.param == "value by value" else -1)


Segment = tuple[int, int, tuple[int, ...]]
METHODS = ("first_fit", "best_fit")
methods = pytest.mark.parametrize("method", METHODS)


def pack_oracle(rows: list[tuple[int, ...]], limits: tuple[int, ...], method: str, bins: int, oversize: str) -> Any:
    """Return the packed rows as lists of ``(row, start, stops)``; a row has one length for every limit."""
    pieces: list[Segment] = []
    for row, lengths in enumerate(rows):
        if oversize == "split":
            (size,), (most,) = lengths, limits
            pieces += [(row, start, (min(start + most, size),)) for start in range(0, size, most)]
        elif any(lengths):
            pieces.append((row, 0, tuple(map(min, lengths, limits))))
    made: list[list[Segment]] = []
    opened: list[tuple[list[Segment], list[int]]] = []
    for row, start, stops in pieces:
        fits = [one for one in opened if all(room >= stop - start for room, stop in zip(one[1], stops, strict=True))]
        if not fits:
            if len(opened) == bins:
                fullest = min(opened, key=lambda one: sum(one[1]))
                opened.remove(fullest)
                made.append(fullest[0])
            opened.append(([], list(limits)))
            fits = opened[-1:]
        segments, rooms = fits[0] if method == "first_fit" else min(fits, key=lambda one: sum(one[1]))
        segments.append((row, start, stops))
        for leaf, stop in enumerate(stops):
            rooms[leaf] -= stop - start
    return made + [segments for segments, _ in opened]


def as_segments(packed: Packed) -> list[list[Segment]]:
    rows, starts, stops = packed.rows.tolist(), packed.starts.tolist(), packed.stops.tolist()
    every = [(row, start, tuple(stop)) for row, start, stop in zip(rows, starts, stops, strict=True)]
    ends = packed.offsets.tolist()
    return [every[low:high] for low, high in itertools.pairwise(ends)]


def packed_in_parts(stage: stages.Pack, rows: list[tuple[int, ...]], cuts: list[int], resume: bool = False) -> Any:
    """Add the rows in runs of these sizes, over and over, with a packer restored from JSON after every one."""
    packer, made, start, turn = Packer(stage), [], 0, 0
    while start < len(rows):
        run = np.array(rows[start : start + cuts[turn % len(cuts)]], np.int64)
        made += as_segments(packer.add(run if len(stage.limits) > 1 else run[:, 0]))
        start, turn = start + len(run), turn + 1
        if resume:
            packer = Packer.restored(stage, json.loads(json.dumps(packer.state())))
    return made + as_segments(packer.finish())


sizes = st.lists(st.integers(0, 12).map(lambda size: (size,)), max_size=80)
cuts_of_rows = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(
    rows=sizes,
    length=st.integers(1, 16),
    method=st.sampled_from(METHODS),
    bins=st.integers(1, 9),
    oversize=st.sampled_from(["truncate", "split"]),
    cuts=cuts_of_rows,
    resume=st.booleans(),
)
def test_rows_go_where_first_fit_and_best_fit_put_them(
    rows: Any, length: int, method: str, bins: int, oversize: str, cuts: list[int], resume: bool
) -> None:
    stage = stages.Pack(length, method, bins, oversize)
    wanted = pack_oracle(rows, (length,), method, bins, oversize)
    assert packed_in_parts(stage, rows, cuts, resume) == wanted


@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=60),
    limits=st.tuples(st.integers(1, 14), st.integers(1, 8)),
    method=st.sampled_from(METHODS),
    bins=st.integers(1, 7),
    cuts=cuts_of_rows,
    resume=st.booleans(),
)
def test_a_row_needs_room_in_every_leaf_with_a_length_of_its_own(
    rows: Any, limits: tuple[int, int], method: str, bins: int, cuts: list[int], resume: bool
) -> None:
    stage = stages.Pack({"x": limits[0], "y": limits[1]}, method, bins, "truncate")
    wanted = pack_oracle(rows, limits, method, bins, "truncate")
    assert packed_in_parts(stage, rows, cuts, resume) == wanted


@methods
@pytest.mark.parametrize("bins", [1, 3, 64])
def test_many_rows_go_where_plain_loops_put_them(method: str, bins: int) -> None:
    rng = np.random.default_rng(0)
    rows = [(int(size),) for size in np.clip(rng.lognormal(3.5, 0.8, 3000), 0, 128)]
    stage = stages.Pack(128, method, bins, "truncate")
    assert packed_in_parts(stage, rows, [700, 1, 64], True) == pack_oracle(rows, (128,), method, bins, "truncate")


def ids_oracle(made: list[list[Segment]], length: int, leaf: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    numbers, places = [], []
    for segments in made:
        spans = [stops[leaf] - start for _, start, stops in segments]
        free = [0] * (length - sum(spans))
        numbers.append([number for number, span in enumerate(spans, 1) for _ in range(span)] + free)
        places.append([place for span in spans for place in range(span)] + free)
    return numbers, places


def values_oracle(rows: list[list[Any]], made: list[list[Segment]], length: int, fill: Any, leaf: int = 0) -> Any:
    out = []
    for segments in made:
        values = [value for row, start, stops in segments for value in rows[row][start : stops[leaf]]]
        out.append(values + [fill] * (length - len(values)))
    return out


def ragged(rows: list[list[int]], dtype: Any = np.int64) -> Ragged:
    return Ragged(np.array([value for row in rows for value in row], dtype), np.cumsum([0, *map(len, rows)]))


def numbered(lengths: list[int], first: int = 1) -> list[list[int]]:
    """Return rows of these lengths, no number twice."""
    starts = np.cumsum([first, *lengths]).tolist()
    return [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=False)]


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    length=st.integers(1, 16),
    oversize=st.sampled_from(["truncate", "split"]),
    method=st.sampled_from(METHODS),
    as_items=st.booleans(),
)
def test_columns_hold_every_token_once_with_segment_ids_and_positions(
    lengths: list[int], length: int, oversize: str, method: str, as_items: bool
) -> None:
    stage = stages.Pack(length, method, 3, oversize, pad_value={"x": -1})
    rows, ids = numbered(lengths), np.arange(len(lengths))
    columns: Any = {"x": ragged(rows), "y": ragged(rows, np.float32)}
    if as_items:
        items = [{"x": np.array(row, np.int64), "y": np.array(row, np.float32)} for row in rows]
        assert packed_lengths(stage, None, items, ids).tolist() == lengths
        columns = joined(items, ids)
    packer = Packer(stage)
    packed = Packed.joined([packer.add(packed_lengths(stage, columns, None, ids)), packer.finish()])
    got = packed_columns(stage, columns, packed, ids, "", fresh)
    made = pack_oracle([(size,) for size in lengths], (length,), method, 3, oversize)
    assert list(got) == ["x", "y", "segment_ids", "positions"]
    assert got["x"].shape == (len(made), length)
    assert got["x"].tolist() == values_oracle(rows, made, length, -1)
    assert got["y"].tolist() == values_oracle(rows, made, length, 0)
    assert (got["segment_ids"].tolist(), got["positions"].tolist()) == ids_oracle(made, length)
    assert [got[name].dtype for name in got] == [np.int64, np.float32, np.int32, np.int32]
    tokens = sorted(got["x"][got["segment_ids"] > 0].tolist())
    kept = rows if oversize == "split" else [row[:length] for row in rows]
    assert tokens == [value for row in kept for value in row]


@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=40),
    method=st.sampled_from(METHODS),
)
def test_leaves_with_lengths_of_their_own_have_ids_of_their_own(lengths: Any, method: str) -> None:
    stage = stages.Pack({"source": 8, "target": 4}, method, 3, "truncate")
    source, target = numbered([one for one, _ in lengths]), numbered([two for _, two in lengths], 1000)
    columns, ids = {"target": ragged(target), "source": ragged(source, np.int16)}, np.arange(len(lengths))
    packer = Packer(stage)
    packed = Packed.joined([packer.add(packed_lengths(stage, columns, None, ids)), packer.finish()])
    got = packed_columns(stage, columns, packed, ids, "", fresh)
    made = pack_oracle(lengths, (8, 4), method, 3, "truncate")
    for leaf, (name, rows, length) in enumerate([("source", source, 8), ("target", target, 4)]):
        assert got[name].tolist() == values_oracle(rows, made, length, 0, leaf)
        places = (got[f"{name}_segment_ids"].tolist(), got[f"{name}_positions"].tolist())
        assert places == ids_oracle(made, length, leaf)


def test_part_joined_and_needed_cut_packed_rows_without_changing_them() -> None:
    stage = stages.Pack(8, bins=2)
    lengths = [5, 4, 3, 8, 2, 7, 6, 1, 4]
    rows, packer = numbered(lengths), Packer(stage)
    packed = Packed.joined([packer.add(np.array(lengths)), packer.finish()])
    every = as_segments(packed)
    assert as_segments(packed.part(1, 3)) == every[1:3]
    assert as_segments(Packed.joined([packed.part(0, 2), packed.part(2, 2), packed.part(2, len(packed))])) == every
    for number in range(len(packed)):
        needed, own = packed.part(number, number + 1).needed()
        assert needed.tolist() == sorted(row for row, _, _ in every[number])
        columns = {"x": ragged([rows[row] for row in needed])}
        got = packed_columns(stage, columns, own, needed, "", fresh)
        assert got["x"].tolist() == values_oracle(rows, [every[number]], 8, 0)


def test_columns_may_hold_more_rows_than_were_packed() -> None:
    stage, rows = stages.Pack(4), numbered([2, 9, 1, 3, 4])
    packed = Packer(stage)
    packed.add(np.array([1, 3]))
    taken = packed.finish()
    own = Packed(taken.offsets, np.array([2, 3])[taken.rows], taken.starts, taken.stops)
    got = packed_columns(stage, {"x": ragged(rows), "y": ragged(rows)}, own, range(5), "", fresh)
    assert got["x"].tolist() == got["y"].tolist() == [rows[2] + rows[3]]


def test_no_packed_rows_make_empty_columns() -> None:
    stage = stages.Pack(8)
    packer = Packer(stage)
    packed = packer.add(np.array([3, 0]))
    got = packed_columns(stage, {"x": ragged([[1, 2, 3], []])}, packed, range(2), "", fresh)
    assert {name: column.shape for name, column in got.items()} == {
        "x": (0, 8),
        "segment_ids": (0, 8),
        "positions": (0, 8),
    }


def test_values_with_axes_text_and_ordinary_columns_are_packed() -> None:
    stage = stages.Pack(4, pad_value={"s": "-"})
    values = np.arange(10.0).reshape(5, 2)
    columns = {
        "v": Ragged(values, np.array([0, 2, 5])),
        "s": Ragged(np.array(["a", "bb", "c", "d", "e"]), np.array([0, 2, 5])),
    }
    packer = Packer(stage)
    packed = Packed.joined([packer.add(np.array([2, 3])), packer.finish()])
    got = packed_columns(stage, columns, packed, range(2), "", fresh)
    wanted = np.zeros((2, 4, 2))
    wanted[0, :2], wanted[1, :3] = values[:2], values[2:]
    assert np.array_equal(got["v"], wanted)
    assert got["s"].tolist() == [["a", "bb", "-", "-"], ["c", "d", "e", "-"]]
    even = np.arange(6, dtype=">i2").reshape(3, 2)
    stage = stages.Pack(4)
    packer = Packer(stage)
    packed = Packed.joined([packer.add(packed_lengths(stage, even, None, range(3))), packer.finish()])
    out, ids, positions = packed_columns(stage, even, packed, range(3), "", fresh)
    assert out.tolist() == [[0, 1, 2, 3], [4, 5, 0, 0]]
    assert out.dtype == np.dtype(np.int16)
    assert (ids.tolist(), positions.tolist()) == ([[1, 1, 2, 2], [1, 1, 0, 0]], [[0, 1, 0, 1], [0, 1, 0, 0]])


def test_columns_are_written_where_the_lease_says() -> None:
    given: dict[Any, np.ndarray[Any, Any]] = {}

    def lease(key: Any, rows: int, dtype: Any, row_shape: Any) -> Any:
        given[key] = np.full((rows, *row_shape), 77, dtype)
        return given[key]

    stage, packer = stages.Pack(4), Packer(stages.Pack(4))
    packed = Packed.joined([packer.add(np.array([3, 1, 2])), packer.finish()])
    got = packed_columns(stage, {"x": ragged([[1, 2, 3], [4], [5, 6]])}, packed, range(3), "", lease)
    assert got == {"x": given["x", "packed"]} | {name: given[name, "packed"] for name in ("segment_ids", "positions")}
    assert got["x"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]


def test_schemas_are_those_of_the_columns() -> None:
    schema = {"x": LeafSpec(np.dtype("int64"), (None,)), "v": LeafSpec(np.dtype("float32"), (None, 2))}
    places = LeafSpec(np.dtype("int32"), (8,))
    assert packed_schema(stages.Pack(8), schema) == {
        "x": LeafSpec(np.dtype("int64"), (8,)),
        "v": LeafSpec(np.dtype("float32"), (8, 2)),
        "segment_ids": places,
        "positions": places,
    }
    own = packed_schema(stages.Pack({"x": 8, "v": 3}), schema)
    assert own["v"].shape == (3, 2)
    assert own["v_segment_ids"] == own["v_positions"] == LeafSpec(np.dtype("int32"), (3,))
    assert own["x_segment_ids"] == own["x_positions"] == places
    assert packed_schema(stages.Pack(8), schema["x"]) == (LeafSpec(np.dtype("int64"), (8,)), places, places)


@methods
def test_a_row_over_the_limit_is_named_and_nothing_was_taken_in(method: str) -> None:
    packer = Packer(stages.Pack(8, method))
    packer.add(np.array([4, 4, 8]))
    before = packer.state()
    with pytest.raises(StageError, match=r"row 4 is 9 long, and a packed row has 8 places\. .*oversize='split'"):
        packer.add(np.array([1, 9, 2]))
    with pytest.raises(StageError, match="row 71 is 9 long"):
        packer.add(np.array([1, 9, 2]), ids=np.array([70, 71, 72]))
    with pytest.raises(StageError, match="row 3 has the length -1"):
        packer.add(np.array([-1]))
    assert packer.state() == before
    several = Packer(stages.Pack({"x": 8, "y": 4}, method))
    with pytest.raises(StageError, match=r"leaf 'y' of row 1 is 5 long, and a packed row has 4 places\."):
        several.add(np.array([[8, 4], [1, 5]]))


def test_held_rows_are_those_of_the_open_ones_and_finish_leaves_none() -> None:
    packer = Packer(stages.Pack(4, bins=1))
    packer.add(np.array([3, 0, 2, 1]))
    assert packer.held.tolist() == [2, 3]
    assert packer.state() == {"arrived": 4, "bins": [[(2, 0, 2), (3, 0, 1)]]}
    assert as_segments(packer.finish()) == [[(2, 0, (2,)), (3, 0, (1,))]]
    assert packer.held.tolist() == []
    assert len(packer.finish()) == 0


def test_a_state_does_not_change_with_the_packer() -> None:
    packer = Packer(stages.Pack(8))
    packer.add(np.array([3]))
    state = packer.state()
    packer.add(np.array([2]))
    assert state == {"arrived": 1, "bins": [[(0, 0, 3)]]}


@pytest.mark.parametrize(
    "state",
    [
        None,
        3,
        {},
        {"arrived": 3},
        {"arrived": 3, "bins": 5},
        {"arrived": 3, "bins": [[5]]},
        {"arrived": -1, "bins": []},
        {"arrived": True, "bins": []},
        {"arrived": 3.0, "bins": []},
        {"arrived": 3, "bins": [[]]},
        {"arrived": 3, "bins": [[(0, 0)]]},
        {"arrived": 3, "bins": [[(0, 0, 2, 2)]]},
        {"arrived": 3, "bins": [[(3, 0, 2)]]},
        {"arrived": 3, "bins": [[(0, 2, 1)]]},
        {"arrived": 3, "bins": [[(0, 0, 9)]]},
        {"arrived": 3, "bins": [[(0, 0, "2")]]},
        {"arrived": 3, "bins": [[(0, 0, 1)], [(1, 0, 1)], [(2, 0, 1)]]},
        {"arrived": 2**70, "bins": []},
    ],
)
def test_a_damaged_state_is_refused(state: Any) -> None:
    with pytest.raises(StateError, match=r"the state is damaged, or of another stage: .* Use a state as it was saved"):
        Packer.restored(stages.Pack(8, bins=2), state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": 0}, PipelineError, r"pack\(length\) must be at least 1, not 0"),
        ({"length": 2.5}, PipelineTypeError, r"pack\(length\) must be a whole number, not 2\.5"),
        ({"length": 2**31}, PipelineError, r"pack\(length\) must be at most 2147483647, as positions are int32"),
        ({"length": {}}, PipelineError, r"pack\(length\) must be a number, or a mapping of numbers by leaf"),
        ({"length": {1: 8}}, PipelineError, r"pack\(length\) must be a number, or a mapping of numbers by leaf"),
        ({"length": {"x": 0}}, PipelineError, r"pack\(length\['x'\]\) must be at least 1"),
        ({"length": {"x": 8}, "oversize": "split"}, PipelineError, r"Use oversize='truncate', or one length"),
        ({"length": 8, "bins": 0}, PipelineError, r"pack\(bins\) must be at least 1"),
        ({"length": 8, "bins": True}, PipelineTypeError, r"pack\(bins\) must be a whole number"),
        ({"length": 8, "method": "bestfit"}, PipelineError, r"not 'bestfit'; did you mean 'best_fit'\?"),
        ({"length": 8, "oversize": "cut"}, PipelineError, r"one of 'error', 'truncate' and 'split', not 'cut'"),
        ({"length": 8, "pad_value": [0]}, PipelineTypeError, r"pack\(pad_value\) must be a number or a text"),
        ({"length": 8, "pad_value": {"x": None}}, PipelineTypeError, r"pack\(pad_value\) must be a number or a text"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        stages.Pack(**arguments)


@pytest.mark.parametrize(
    "stage",
    [
        stages.Pack(8),
        stages.Pack(np.int64(8), "best_fit", np.int32(3), "split", pad_value=np.float32(2)),
        stages.Pack({"x": 8, "y": 4}, oversize="truncate", pad_value={"x": -1}),
    ],
)
def test_the_stage_round_trips_through_json(stage: stages.Pack) -> None:
    arguments = json.loads(json.dumps(stage.arguments()))
    assert stages.Pack.from_arguments(arguments) == stage


def test_the_label_names_what_was_given() -> None:
    assert stages.Pack(8, bins=3).label == "pack(length=8, bins=3)"


@pytest.mark.parametrize(
    ("length", "columns", "error", "message"),
    [
        (8, {"x": ragged([[1]]), "n": np.array([3])}, SchemaError, r"leaf 'n' is one value a row, .*drop\(\)"),
        (8, {"x": ragged([[1]]), "y": ragged([[1, 2]])}, SchemaError, r"row 5: leaf 'y' is 2 long, but leaf 'x' is 1"),
        ({"x": 8}, {"x": ragged([[1]]), "y": ragged([[1]])}, SchemaError, r"leaf 'y' has no length\. Name every leaf"),
        ({"xs": 8}, {"x": ragged([[1]])}, MissingLeafError, r"no leaf 'xs'; did you mean 'x'\? \(there are: x\)"),
    ],
)
def test_leaves_that_cannot_be_packed_are_named(length: Any, columns: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        packed_lengths(stages.Pack(length), columns, None, [5])


@pytest.mark.parametrize(
    ("length", "pad_value", "columns", "message"),
    [
        (8, 0, {"x": ragged([[1]])}, r"row 7: leaf 'x' is 1 long, but it was packed as 2, after f\. Give the same"),
        (
            8,
            0,
            {"x": ragged([[1, 2]]), "y": ragged([[1, 2, 3]])},
            r"row 7: leaf 'y' is 3 long, but leaf 'x' is 2\. All",
        ),
        (8, 0, {"x": ragged([[1, 2]]), "n": np.zeros(1)}, r"leaf 'n' is one value a row, and only sequences"),
        (8, 300, {"x": ragged([[1, 2]], np.uint8)}, r"pack\(pad_value\): 300 does not fit leaf 'x', which is uint8"),
        (8, 0, {"x": ragged([[1, 2]]), "positions": ragged([[1, 2]])}, r"pack\(\) adds a leaf 'positions', but there"),
        ({"0": 8}, 0, (ragged([[1, 2]]),), r"adds leaves by name, so that rows must be dicts"),
    ],
)
def test_columns_that_do_not_fit_are_refused(length: Any, pad_value: Any, columns: Any, message: str) -> None:
    stage = stages.Pack(length, pad_value=pad_value)
    packer = Packer(stage)
    packer.add(np.array([2]))
    with pytest.raises(SchemaError, match=message):
        packed_columns(stage, columns, packer.finish(), [7], ", after f", fresh)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (np.zeros((2, 3)), r"row 9: the only leaf is float64\[2, 3\], but row 8 has int64\[2\], after f\."),
        (np.zeros(2, np.int32), r"row 9: the only leaf is int32\[2\], but row 8 has int64\[2\]"),
    ],
)
def test_rows_that_differ_in_more_than_their_length_are_named(second: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        joined([np.zeros(2, np.int64), second], [8, 9], ", after f")


def test_rows_of_another_structure_are_named() -> None:
    with pytest.raises(SchemaError, match=r"row 9 has the structure \{y\}, but row 8 has \{x\}"):
        packed_lengths(stages.Pack(8), None, [{"x": np.zeros(2)}, {"y": np.zeros(2)}], [8, 9])
