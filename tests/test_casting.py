"""Casts: what is rounded as NumPy rounds it, and what is refused because another value would come out."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import batchkit as bk
from batchkit.casting import alike_mend, cast_into, parse_dtype


def cast(values: Any, dtype: Any) -> Any:
    """Return what ``cast(x=dtype)`` makes of a column."""
    pipe = bk.from_arrays({"x": np.asarray(values)}).cast(x=dtype).batch(1000)
    with bk.Loader(pipe, executor="inline") as loader:
        (batch,) = loader
    return batch["x"]


@pytest.mark.parametrize(
    ("values", "dtype", "wanted"),
    [
        ([2.7, -2.7], "int8", [2, -2]),
        ([16777217], "float32", [16777216.0]),
        ([2**53 + 1], "float64", [2.0**53]),
        ([1 / 3], "float32", [np.float32(1 / 3)]),
        ([2, 0, -1], "bool", [True, False, True]),
        ([1j, 0j], "bool", [True, False]),
        (np.array([1999], "m8[ms]"), "m8[s]", [np.timedelta64(1, "s")]),
        (np.array(["2020-02-29T23:59"], "M8[m]"), "M8[D]", [np.datetime64("2020-02-29")]),
        (np.array([3.9]), "m8[s]", [np.timedelta64(3, "s")]),
        (np.array([90], "m8[s]"), "float32", [90.0]),
        ([1.5 + 0j], "float32", [1.5]),
        ([7 + 0j], "int8", [7]),
        (np.array([1.5, -2.0], ml_dtypes.bfloat16), "int32", [1, -2]),
        ([-8, 7], "int4", [-8, 7]),
    ],
)
def test_a_cast_rounds_as_numpy_does(values: Any, dtype: str, wanted: list[Any]) -> None:
    got = cast(values, dtype)
    assert got.dtype == parse_dtype(dtype)
    assert got.tolist() == np.array(wanted).tolist()


OUT_OF_RANGE = [
    ([300], "int8"),
    ([-1], "uint64"),
    ([2**64 - 1], "int64"),
    ([256.5], "uint8"),
    ([1e300], "float32"),
    ([100000], "float16"),
    ([1e6], "float8_e4m3fn"),
    ([7.0], "float4_e2m1fn"),
    ([0.0], "float8_e8m0fnu"),
    ([8], "int4"),
    ([-1], "uint4"),
    (np.array([300.0], ml_dtypes.bfloat16), "int8"),
    ([300 + 0j], "int8"),
    (np.array([300], "m8[s]"), "int8"),
    (np.array([2**62], "M8[s]"), "M8[ns]"),
    ([1e30], "m8[s]"),
    ([2**64 - 1], "m8[s]"),
]
NO_INTEGER = [
    ([np.nan], "int64"),
    ([-np.inf], "int32"),
    (np.array([np.inf], ml_dtypes.bfloat16), "int32"),
    ([np.nan], "int4"),
    ([np.nan], "M8[s]"),
    (np.array(["NaT"], "M8[s]"), "int64"),
    ([np.inf], "float8_e4m3fn"),
]
IMAGINARY = [([1 + 2j], "float32"), ([1 + 2j], "int8"), ([1 + 2j], "bfloat16"), ([complex(1, np.nan)], "float64")]


@pytest.mark.parametrize(("values", "dtype"), [*OUT_OF_RANGE, *NO_INTEGER, *IMAGINARY])
def test_a_cast_refuses_what_would_come_out_as_another_value(values: Any, dtype: str) -> None:
    with pytest.raises(bk.SchemaError, match=f"leaf 'x': .* does not fit {re.escape(parse_dtype(dtype).name)}"):
        cast(values, dtype)


@pytest.mark.parametrize("extended", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4", "uint2"])
def test_every_value_of_an_extended_dtype_casts_to_itself(extended: str) -> None:
    dtype = parse_dtype(extended)
    values = np.arange(256, dtype=np.uint8).astype(np.float32)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = values.astype(dtype).astype(np.float32)
    kept = values[there == values]
    assert cast(kept, extended).astype(np.float32).tolist() == kept.tolist()


def test_casting_leaves_zero_dimensional_rows_as_they_are() -> None:
    out = np.empty((), np.int8)
    cast_into(np.array(3.7), out)
    assert out == 3


# -- text


def test_text_is_cast_to_a_width() -> None:
    got = cast(["abc", "a"], "U8")
    assert got.dtype == np.dtype("U8")
    assert got.tolist() == ["abc", "a"]


@pytest.mark.parametrize(
    ("values", "dtype", "wanted"),
    [
        (["ab"], "S4", [b"ab"]),
        ([b"ab"], "U", ["ab"]),
        ([1234], "U4", ["1234"]),
        ([True], str, ["True"]),
        (["12"], "int8", [12]),
        (["0.1"], "float32", [np.float32("0.1")]),
        ([], "U3", []),
    ],
)
def test_text_and_numbers_become_each_other(values: Any, dtype: Any, wanted: list[Any]) -> None:
    if not values:
        columns = bk.stages.Cast({"x": dtype}).apply({"x": np.array(values)})
        assert columns["x"].tolist() == wanted
    else:
        assert cast(values, dtype).tolist() == wanted


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(["abcdef"], "U3"), (["abcdef"], "S3"), ([1234], "U3"), ([1.25], "U3"), ([True], "S2"), (["1e6"], "float16")],
)
def test_text_is_never_cut_off(values: Any, dtype: str) -> None:
    with pytest.raises(bk.SchemaError, match=f"leaf 'x': .* does not fit {dtype}"):
        cast(values, dtype)


@pytest.mark.parametrize(("values", "dtype"), [(["300"], "int8"), (["x"], "float32"), (["é"], "S4"), (["1.5"], "int8")])
def test_text_without_such_a_number_is_an_error_that_names_the_leaf(values: Any, dtype: str) -> None:
    with pytest.raises(bk.SchemaError, match="leaf 'x': "):
        cast(values, dtype)


@pytest.mark.parametrize("dtype", ["U8", "S4", "str", "bytes", "bfloat16", "datetime64[ms]", "int4", ">i4"])
def test_a_cast_goes_through_json(dtype: str) -> None:
    stage = bk.stages.Cast({"x": dtype})
    restored = bk.stages.Cast.from_arguments(json.loads(json.dumps(stage.arguments())))
    assert restored == stage
    assert parse_dtype(stage.dtypes["x"]) == np.dtype(parse_dtype(dtype)).newbyteorder("=")


# -- naming a dtype


class Named:
    """A framework's dtype, such as TensorFlow's: NumPy does not take it, but it has a name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Torchlike:
    """One such as torch's, whose text is its name."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.float32, "float32"),
        (np.dtype("int8"), "int8"),
        (Torchlike("torch.float32"), "float32"),
        (Torchlike("torch.bfloat16"), "bfloat16"),
        (Named("int64"), "int64"),
        (Named("float8_e5m2"), "float8_e5m2"),
    ],
)
def test_a_dtype_is_taken_from_a_framework_by_its_name(given: Any, wanted: str) -> None:
    assert bk.stages.Cast({"x": given}).dtypes == {"x": wanted}


@pytest.mark.parametrize("given", [None, "flaot32", Torchlike("torch.complex33"), object, np.dtype("i4,f4"), "V8"])
def test_what_is_no_dtype_to_cast_to_is_refused_by_name(given: Any) -> None:
    with pytest.raises(bk.PipelineError, match=r"no dtype|Python objects|cast\(\) makes numbers"):
        bk.stages.Cast({"x": given})


# -- the mend for two dtypes


@pytest.mark.parametrize(
    ("one", "other", "mend"),
    [
        ("int64", "float64", ".cast(x='float64')"),
        ("float32", "int64", ".cast(x='float64')"),
        ("int8", "uint8", ".cast(x='int16')"),
        ("bool", "uint8", ".cast(x='uint8')"),
        ("float32", "complex64", ".cast(x='complex64')"),
        ("M8[s]", "M8[ms]", ".cast(x='datetime64[ms]')"),
        ("U3", "S5", ".cast(x='str')"),
        ("int64", "uint64", ".cast(x='int64') or .cast(x='uint64'), whichever holds all values"),
        ("uint64", "int8", ".cast(x='int8') or .cast(x='uint64'), whichever holds all values"),
    ],
)
def test_the_mend_for_two_dtypes_is_one_that_holds_both(one: str, other: str, mend: str) -> None:
    assert alike_mend("x", np.dtype(one), np.dtype(other)) == f"Return one dtype, or add {mend}"


@pytest.mark.parametrize(("one", "other"), [("U3", "int64"), ("M8[s]", "int64"), ("m8[s]", "int8"), ("i4,f4", "int8")])
def test_there_is_no_cast_for_dtypes_with_nothing_in_common(one: str, other: str) -> None:
    assert alike_mend("x", np.dtype(one), np.dtype(other)) == "Return one dtype"


@pytest.mark.parametrize("rows", [[1, 2.5], [2.5, 1]])
def test_the_mend_for_rows_of_two_dtypes_changes_no_value(rows: list[Any]) -> None:
    pipe = bk.from_sequence([{"a": row} for row in rows])
    with (
        bk.Loader(pipe.batch(2), executor="inline") as loader,
        pytest.raises(bk.SchemaError, match=r"add \.cast\(a='float64'\) before batch\(\)"),
    ):
        next(iter(loader))
    with bk.Loader(pipe.cast(a="float64").batch(2), executor="inline") as loader:
        assert next(iter(loader))["a"].tolist() == rows
