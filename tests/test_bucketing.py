"""Batches of rows of like length, against buckets in plain Python."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchkit import stages
from batchkit.bucketing import (
    Bucketer,
    bounds_of,
    bucket_lengths,
    filled_leaves,
    quantile_bounds,
)
from batchkit.errors import MissingLeafError, PipelineError, PipelineTypeError, SchemaError, StageError, StateError
from batchkit.padding import fresh, padded_columns, padded_rows
from batchkit.ragged import Ragged
from batchkit.schema import LeafSpec

Bounds = list[Any]


def length_of_row(row: Any) -> int:
    return len(row["x"])


def up(size: int, many: int) -> int:
    return -(-size // many) * many


def bucket_oracle(lengths: list[int], stage: stages.BucketBatch, bounds: Bounds, world: int = 1) -> Any:
    """Return the batches as ``(bucket, rows)``, and those that are left at the end."""
    held: list[list[int]] = [[] for _ in bounds]
    out = []
    for row, length in enumerate(lengths):
        bucket = next(number for number, bound in enumerate(bounds) if bound is None or length <= bound)
        rows, bound = held[bucket], bounds[bucket]
        if stage.size is None and bound is None:
            longest = max(up(lengths[other], stage.multiple_of) for other in [*rows, row])
            if (len(rows) + 1) * longest > stage.max_tokens:
                out.append((bucket, rows[:]))
                rows.clear()
            rows.append(row)
            continue
        if stage.size is not None:
            full = stage.size
        else:
            full = stage.max_tokens // (bound if stage.pad_to == "bucket" else up(bound, stage.multiple_of))
            full -= full % world if stage.remainder == "pad" else 0
        rows.append(row)
        if len(rows) == full:
            out.append((bucket, rows[:]))
            rows.clear()
    left = [] if stage.remainder == "drop" else [(bucket, rows) for bucket, rows in enumerate(held) if rows]
    return out + left


def batches_in_parts(
    stage: stages.BucketBatch, bounds: Bounds, lengths: list[int], cuts: list[int], resume: bool, world: int = 1
) -> Any:
    """Add the lengths in runs of these sizes, over and over, with a bucketer restored from JSON after every one."""
    bucketer, made, start, turn = Bucketer(stage, bounds, world), [], 0, 0
    while start < len(lengths):
        run = lengths[start : start + cuts[turn % len(cuts)]]
        made += bucketer.add(np.array(run))
        start, turn = start + len(run), turn + 1
        if resume:
            state = json.loads(json.dumps(bucketer.state()))
            bucketer = Bucketer.restored(stage, bounds, state, world)
    made += bucketer.finish()
    assert bucketer.held.tolist() == []
    return [(batch.bucket, batch.rows.tolist()) for batch in made]


lengths_of_rows = st.lists(st.integers(0, 30), max_size=90)
cuts_of_rows = st.lists(st.integers(1, 25), min_size=1, max_size=4)
some_bounds = st.lists(st.integers(1, 29), max_size=4, unique=True).map(sorted)


@given(
    lengths=lengths_of_rows,
    some=some_bounds,
    last=st.sampled_from([30, None]),
    size=st.integers(1, 7),
    remainder=st.sampled_from(["keep", "drop", "pad"]),
    cuts=cuts_of_rows,
    resume=st.booleans(),
)
def test_a_batch_comes_out_when_the_row_arrives_that_fills_its_bucket(
    lengths: list[int], some: Bounds, last: Any, size: int, remainder: str, cuts: list[int], resume: bool
) -> None:
    bounds = [*some, last]
    stage = stages.BucketBatch(size, remainder, boundaries=bounds)
    assert batches_in_parts(stage, bounds, lengths, cuts, resume) == bucket_oracle(lengths, stage, bounds)


@given(
    lengths=lengths_of_rows,
    some=some_bounds,
    last=st.sampled_from([30, None]),
    max_tokens=st.integers(36, 150),
    pad_to=st.sampled_from(["bucket", "longest"]),
    multiple_of=st.integers(1, 6),
    remainder=st.sampled_from(["keep", "drop"]),
    cuts=cuts_of_rows,
    resume=st.booleans(),
)
def test_no_padded_batch_is_over_max_tokens_and_every_row_is_in_one(
    lengths: list[int],
    some: Bounds,
    last: Any,
    max_tokens: int,
    pad_to: str,
    multiple_of: int,
    remainder: str,
    cuts: list[int],
    resume: bool,
) -> None:
    bounds = [*some, last]
    stage = stages.BucketBatch(
        boundaries=bounds, max_tokens=max_tokens, pad_to=pad_to, multiple_of=multiple_of, remainder=remainder
    )
    got = batches_in_parts(stage, bounds, lengths, cuts, resume)
    assert got == bucket_oracle(lengths, stage, bounds)
    if remainder == "keep":
        assert sorted(row for _, rows in got for row in rows) == list(range(len(lengths)))
    for bucket, rows in got:
        columns = Ragged(np.zeros(sum(lengths[row] for row in rows)), np.cumsum([0, *(lengths[row] for row in rows)]))
        padded = padded_columns(stage.padding(bounds[bucket]), columns, rows, "", fresh)
        assert padded.size <= max_tokens
        longest = up(max(lengths[row] for row in rows), multiple_of)
        to_bound = pad_to == "bucket" and bounds[bucket] is not None
        assert padded.shape == (len(rows), bounds[bucket] if to_bound else longest)


@given(lengths=lengths_of_rows, world=st.integers(1, 4), cuts=cuts_of_rows)
def test_rows_of_static_batches_divide_by_the_ranks(lengths: list[int], world: int, cuts: list[int]) -> None:
    stage = stages.BucketBatch(boundaries=[10, 30], max_tokens=130, remainder="pad")
    bucketer = Bucketer(stage, [10, 30], world)
    assert bucketer.rows == (13 - 13 % world, 4 - 4 % world)
    got = batches_in_parts(stage, [10, 30], lengths, cuts, True, world)
    assert got == bucket_oracle(lengths, stage, [10, 30], world)


def test_rows_of_equal_batches_come_out_in_the_order_of_the_rows_that_filled_them() -> None:
    bucketer = Bucketer(stages.BucketBatch(2, boundaries=[1, 2, 3]), [1, 2, 3])
    got = bucketer.add(np.array([3, 1, 2, 2, 3, 1, 1]))
    assert [(batch.bucket, batch.rows.tolist()) for batch in got] == [(1, [2, 3]), (2, [0, 4]), (0, [1, 5])]
    assert bucketer.held.tolist() == [6]
    assert bucketer.state() == {"arrived": 7, "held": [[6], [], []], "longest": 0}


@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    n=st.integers(1, 8),
    multiple_of=st.integers(1, 9),
)
def test_quantile_bounds_rise_and_hold_every_row(lengths: list[int], n: int, multiple_of: int) -> None:
    bounds = quantile_bounds(np.array(lengths), n, multiple_of)
    ordered = sorted(lengths)
    shares = [
        ordered[min(place for place in range(len(ordered)) if (place + 1) * n >= len(ordered) * k)]
        for k in range(1, n + 1)
    ]
    assert list(bounds) == sorted({up(max(size, 1), multiple_of) for size in shares})
    assert max(lengths) <= bounds[-1]
    stages.BucketBatch(1, boundaries=bounds)


def test_quantile_bounds_of_no_rows_are_one_bucket() -> None:
    assert quantile_bounds(np.zeros(0, np.int64), 4, 8) == (8,)


def test_bounds_are_those_given_or_quantiles_of_known_lengths() -> None:
    given_bounds = stages.BucketBatch(2, boundaries=np.array([2, 5]))
    assert bounds_of(given_bounds, None) == (2, 5)
    counted = stages.BucketBatch(2, boundaries=2, multiple_of=4)
    assert bounds_of(counted, np.array([1, 2, 9, 9])) == (4, 12)
    with pytest.raises(PipelineError, match=r"a number of buckets needs the lengths of all rows, .* boundaries="):
        bounds_of(counted, None)


def test_padding_fills_the_leaves_that_vary_to_the_boundary() -> None:
    stage = stages.BucketBatch(4, boundaries=[4, None], pad_value={"x": -1}, lengths=True)
    rows = [{"x": np.arange(n), "fixed": np.zeros(2)} for n in (1, 3)]
    schema = {"x": LeafSpec(np.dtype("int64"), (None,)), "fixed": LeafSpec(np.dtype("float64"), (2,))}
    batch = padded_rows(stage.padding(4, filled_leaves(stage, schema)), rows, [0, 1], "", fresh)
    assert batch["x"].tolist() == [[0, -1, -1, -1], [0, 1, 2, -1]]
    assert batch["fixed"].shape == (2, 2)
    assert batch["x_length"].tolist() == [1, 3]
    assert padded_rows(stage.padding(None), rows, [0, 1], "", fresh)["x"].tolist() == [[0, -1, -1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("length", "shapes", "wanted"),
    [
        (None, {"x": (None,), "y": (None, 3), "z": (4,), "n": ()}, ("x", "y")),
        ("x", {"x": (5,), "z": (4,)}, ("x",)),
        (None, {"x": (5,), "z": (5,), "n": ()}, ("x", "z")),
        (length_of_row, {"x": (5,), "n": ()}, ("x",)),
    ],
)
def test_filled_leaves_are_those_that_vary(length: Any, shapes: Any, wanted: Any) -> None:
    schema = {name: LeafSpec(np.dtype("int64"), shape) for name, shape in shapes.items()}
    assert filled_leaves(stages.BucketBatch(2, boundaries=[9], length=length), schema) == wanted


@pytest.mark.parametrize("as_items", [False, True])
@pytest.mark.parametrize("length", ["x", length_of_row, [9, 9, 9, 9, 9, 2, 0, 1]])
def test_a_row_is_as_long_as_the_leaf_the_function_or_the_array_says(length: Any, as_items: bool) -> None:
    stage = stages.BucketBatch(2, boundaries=[9], length=length)
    items = [{"x": np.zeros(n), "n": np.int64(n)} for n in (2, 0, 1)]
    columns = {"x": Ragged(np.zeros(3), np.array([0, 2, 2, 3])), "n": np.array([2, 0, 1])}
    ids = np.array([5, 6, 7])
    got = bucket_lengths(stage, None, items, ids) if as_items else bucket_lengths(stage, columns, None, ids)
    assert got.tolist() == [2, 0, 1]


def test_without_a_length_the_leaves_that_vary_must_agree() -> None:
    stage, ids = stages.BucketBatch(2, boundaries=[9]), np.array([5, 6])
    x = Ragged(np.zeros(3), np.array([0, 2, 3]))
    assert bucket_lengths(stage, {"x": x, "fixed": np.zeros((2, 4)), "n": np.zeros(2)}, None, ids).tolist() == [2, 1]
    assert bucket_lengths(stage, {"fixed": np.zeros((2, 4))}, None, ids).tolist() == [4, 4]
    y = Ragged(np.zeros(4), np.array([0, 2, 4]))
    with pytest.raises(SchemaError, match=r"row 6: leaf 'y' is 2 long, but leaf 'x' is 1\. Say which one counts"):
        bucket_lengths(stage, {"x": x, "y": y}, None, ids)
    items = [{"x": np.zeros(2), "y": np.zeros(2)}, {"x": np.zeros(1), "y": np.zeros(2)}]
    with pytest.raises(SchemaError, match=r"row 6: leaf 'y' is 2 long, but leaf 'x' is 1\. Say which one counts"):
        bucket_lengths(stage, None, items, ids)
    with pytest.raises(SchemaError, match=r"every leaf is one value a row, .* Use batch\(\)"):
        bucket_lengths(stage, {"n": np.zeros(2)}, None, ids)


def fails(row: Any) -> int:
    raise ValueError("no")


@pytest.mark.parametrize(
    ("length", "error", "message"),
    [
        ("xs", MissingLeafError, r"no leaf 'xs'; did you mean 'x'\? \(there are: n, x\)"),
        ("n", SchemaError, r"leaf 'n' is one value a row, and has no length\. .* length=lambda row: row\['n'\]"),
        (fails, StageError, r"test_bucketing:fails failed on row 5: ValueError: no"),
        (lambda row: -1, StageError, r"returned -1 for row 5, and a length is a whole number of at least 0"),
        (lambda row: True, StageError, r"returned True for row 5"),
        (lambda row: 2.0, StageError, r"returned 2\.0 for row 5"),
        (lambda row: [1, 2], StageError, r"returned \[1, 2\] for row 5"),
        (lambda row: 2**80, StageError, r"for row 5"),
        ([1, 2], StageError, r"there is no length for row 5, as length has 2 entries"),
    ],
)
def test_a_length_that_is_none_is_refused(length: Any, error: Any, message: str) -> None:
    stage = stages.BucketBatch(2, boundaries=[9], length=length)
    with pytest.raises(error, match=message):
        bucket_lengths(stage, None, [{"x": np.zeros(2), "n": 3}], np.array([5]))


def test_rows_with_another_number_of_axes_are_named() -> None:
    items = [{"x": np.zeros(2)}, {"x": np.zeros((2, 2))}]
    with pytest.raises(SchemaError, match=r"row 6: leaf 'x' is float64\[2, 2\], but row 5 has float64\[2\]"):
        bucket_lengths(stages.BucketBatch(2, boundaries=[9]), None, items, np.array([5, 6]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 2, "boundaries": [4, 9]}, r"row 71 is 10 long, and the last boundary is 9\. Give a greater boundary"),
        ({"max_tokens": 9, "boundaries": [None]}, r"row 71 is 10 long, .*Give at least max_tokens=10, or cut"),
        ({"max_tokens": 11, "boundaries": [None], "multiple_of": 4}, r"row 71 is 10 long, .*at least max_tokens=12"),
    ],
)
def test_a_row_over_the_limit_is_named_and_nothing_was_taken_in(arguments: Any, message: str) -> None:
    bucketer = Bucketer(stages.BucketBatch(**arguments), arguments["boundaries"])
    bucketer.add(np.array([4]))
    before = bucketer.state()
    with pytest.raises(StageError, match=message):
        bucketer.add(np.array([1, 10]), ids=np.array([70, 71]))
    with pytest.raises(StageError, match="row 2 is 10 long"):
        bucketer.add(np.array([1, 10]))
    with pytest.raises(StageError, match="row 1 has the length -3"):
        bucketer.add(np.array([-3]))
    assert bucketer.state() == before


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"arrived": 3, "held": [[], []]},
        {"arrived": 3, "held": 4, "longest": 0},
        {"arrived": 3, "held": [[]], "longest": 0},
        {"arrived": 3, "held": [[], [3]], "longest": 0},
        {"arrived": 3, "held": [[1], [1]], "longest": 0},
        {"arrived": 3, "held": [[1.0], []], "longest": 0},
        {"arrived": 3, "held": [[], []], "longest": -1},
        {"arrived": 3, "held": [[True], []], "longest": 0},
        {"arrived": 9, "held": [[4, 3], []], "longest": 0},
        {"arrived": 9, "held": [[1, 2, 3], []], "longest": 0},
        {"arrived": 9, "held": [[], [1, 2]], "longest": 11},
    ],
)
def test_a_damaged_state_is_refused(state: Any) -> None:
    stage = stages.BucketBatch(boundaries=[7, None], max_tokens=21)
    with pytest.raises(StateError, match=r"the state is damaged, or of another stage: .* Use a state as it was saved"):
        Bucketer.restored(stage, [7, None], state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"boundaries": [4]}, PipelineError, r"needs either size, the rows of a batch, or max_tokens, .* batch$"),
        ({"boundaries": [4], "size": 2, "max_tokens": 9}, PipelineError, r"either size, .* padded batch, not both"),
        ({"boundaries": [4], "size": 0}, PipelineError, r"bucket_batch\(size\) must be at least 1, not 0"),
        ({"boundaries": [4], "size": True}, PipelineTypeError, r"bucket_batch\(size\) must be a whole number"),
        ({"boundaries": [4], "max_tokens": 0}, PipelineError, r"bucket_batch\(max_tokens\) must be at least 1"),
        ({"boundaries": [4], "size": 2, "multiple_of": 0}, PipelineError, r"bucket_batch\(multiple_of\) must be at le"),
        ({"boundaries": [], "size": 2}, PipelineError, r"bucket_batch\(boundaries\) is empty: give the greatest"),
        ({"boundaries": 0, "size": 2}, PipelineError, r"a number of buckets, must be at least 1, not 0"),
        ({"boundaries": "4", "size": 2}, PipelineTypeError, r"must be a whole number, not '4'"),
        ({"boundaries": None, "size": 2}, PipelineTypeError, r"must be a whole number, not None"),
        ({"boundaries": [4, 2.5], "size": 2}, PipelineTypeError, r"boundaries\[1\]\) must be a whole number, not 2\.5"),
        ({"boundaries": [0, 2], "size": 2}, PipelineError, r"boundaries\[0\]\) must be at least 1"),
        (
            {"boundaries": [None, 2], "size": 2},
            PipelineTypeError,
            r"boundaries\[0\]\) must be a whole number, not None",
        ),
        ({"boundaries": [4, 9, 7], "size": 2}, PipelineError, r"must rise, but 7 follows 9\. Sort them"),
        ({"boundaries": [4, 4], "size": 2}, PipelineError, r"must rise, but 4 follows 4\. Sort them"),
        ({"boundaries": [4, 9], "max_tokens": 8}, PipelineError, r"8 is less than one row .* boundary 9, padded to 9"),
        (
            {"boundaries": [9], "max_tokens": 11, "pad_to": "longest", "multiple_of": 4},
            PipelineError,
            r"11 is less than one row of the bucket with the boundary 9, padded to 12",
        ),
        (
            {"boundaries": [9, None], "max_tokens": 11, "remainder": "pad"},
            PipelineError,
            r"an unbounded bucket has no such number\. End boundaries with the longest row",
        ),
        ({"boundaries": [4], "size": 2, "remainder": "kept"}, PipelineError, r"not 'kept'; did you mean 'keep'\?"),
        ({"boundaries": [4], "size": 2, "pad_to": "bukket"}, PipelineError, r"not 'bukket'; did you mean 'bucket'\?"),
        ({"boundaries": [4], "size": 2, "pad_value": None}, PipelineTypeError, r"bucket_batch\(pad_value\) must be"),
        ({"boundaries": [4], "size": 2, "lengths": 1}, PipelineTypeError, r"bucket_batch\(lengths\) must be True or"),
        (
            {"boundaries": [4], "size": 2, "length": 3},
            PipelineTypeError,
            r"a vector of whole numbers, .* not int64\[\]",
        ),
        ({"boundaries": [4], "size": 2, "length": [0.5]}, PipelineTypeError, r"not float64\[1\]"),
        ({"boundaries": [4], "size": 2, "length": [1, -2]}, PipelineError, r"row 1 has the length -2"),
        ({"boundaries": [4], "size": 2, "length": "no_such:f"}, PipelineError, r"cannot import module 'no_such'"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        stages.BucketBatch(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 5, "boundaries": [4]}, r"5 does not divide by 2 ranks\. Use a size that does, such as 6"),
        ({"max_tokens": 7, "boundaries": [4]}, r"makes 1 rows of .* each of 2 ranks\. Give at least 8"),
    ],
)
def test_static_shapes_need_rows_for_every_rank(arguments: Any, message: str) -> None:
    stage = stages.BucketBatch(**arguments, remainder="pad")
    with pytest.raises(PipelineError, match=message):
        Bucketer(stage, [4], 2)


@pytest.mark.parametrize(
    "stage",
    [
        stages.BucketBatch(8, boundaries=[4, np.int64(9), None]),
        stages.BucketBatch(boundaries=5, max_tokens=np.int32(100), length="x", pad_to="longest", multiple_of=8),
        stages.BucketBatch(8, "pad", boundaries=(4,), length=len, pad_value={"x": np.float32(2)}, lengths=True),
    ],
)
def test_the_stage_round_trips_through_json(stage: stages.BucketBatch) -> None:
    arguments = json.loads(json.dumps(stage.arguments()))
    assert stages.BucketBatch.from_arguments(arguments) == stage
    assert isinstance(stage, stages.Batch)


@pytest.mark.parametrize("length", [lambda row: 1, np.array([1, 2])])
def test_lengths_that_no_file_can_name_are_not_exported(length: Any) -> None:
    with pytest.raises(PipelineError, match=r"cannot be exported: .* imported as 'module:name'"):
        stages.BucketBatch(8, boundaries=[4], length=length).arguments()


def test_stages_with_equal_lengths_are_equal_and_have_one_label() -> None:
    one, two = (stages.BucketBatch(8, boundaries=[4], length=np.array([1, 2])) for _ in range(2))
    other = stages.BucketBatch(8, boundaries=[4], length=np.array([1, 3]))
    assert one == two
    assert hash(one) == hash(two)
    assert one.label == two.label
    assert one != other
    assert one.label != other.label


def test_the_label_names_what_was_given() -> None:
    stage = stages.BucketBatch(8, boundaries=[4, None], length=len, pad_to="longest")
    assert stage.label == "bucket_batch(size=8, boundaries=(4, None), length=builtins:len, pad_to='longest')"
    named = stages.BucketBatch(8, boundaries=3, length="x")
    assert named.label == "bucket_batch(size=8, boundaries=3, length='x')"


def test_the_number_of_batches_is_not_known_from_the_number_of_rows() -> None:
    with pytest.raises(PipelineError, match="the number of batches depends on how long the rows are"):
        stages.BucketBatch(8, boundaries=[4]).batches(100)
