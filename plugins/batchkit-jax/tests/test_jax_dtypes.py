"""Which dtypes JAX gets, and what becomes of those that it would narrow without a word."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import batchkit as bk
from batchkit_jax.backend import JaxBackend

SAME = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "complex64"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz"),
    *("float8_e3m4", "float8_e4m3", "float8_e8m0fnu", "float4_e2m1fn", "int2", "uint2", "int4", "uint4"),
]
NARROWED = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def _loader(columns: Any, **options: Any) -> bk.Loader:
    return bk.Loader(bk.from_arrays(columns).batch(4), backend="jax", executor="inline", **options)


# -- dtypes that JAX has


@pytest.mark.parametrize("name", SAME)
def test_dtype_is_the_same_in_jax(name: str) -> None:
    if not hasattr(jnp, f"{name}_" if name == "bool" else name):
        pytest.skip(f"this JAX has no {name}")
    values = np.array([0, 1, 1, 0]).astype(_dtype(name))
    with _loader({"x": values}) as loader:
        array = next(iter(loader))["x"]
    assert array.dtype == _dtype(name)
    assert np.asarray(array).tobytes() == values.tobytes()


def test_big_endian_data_comes_in_the_machines_order() -> None:
    with _loader({"x": np.array([1, 2, 3, 2**30], ">i4")}) as loader:
        assert next(iter(loader))["x"].tolist() == [1, 2, 3, 2**30]


def test_infinities_zeros_and_nan_payloads_arrive_bit_for_bit() -> None:
    bits = np.array([0x7F800000, 0xFF800000, 0x80000000, 0x7FC12345], np.uint32)
    with _loader({"x": bits.view(np.float32)}) as loader:
        assert np.asarray(next(iter(loader))["x"]).view(np.uint32).tolist() == bits.tolist()


# -- dtypes that it has not


@pytest.mark.parametrize(
    ("values", "called", "mend"),
    [
        (np.array(["a", "b"]), "str", "Turn it into numbers"),
        (np.array([b"a", b"b"]), "bytes", "Turn it into numbers"),
        (np.array(["2020-01-01", "2020-01-02"], "M8[D]"), "datetime64[D]", ".cast({'meta/t': 'int64'})"),
        (np.array([1, 2], "m8[s]"), "timedelta64[s]", ".cast({'meta/t': 'int64'})"),
        (np.zeros(2, np.longdouble), np.dtype(np.longdouble).name, ".cast({'meta/t': 'float64'})"),
        (np.zeros(2, np.clongdouble), np.dtype(np.clongdouble).name, ".cast({'meta/t': 'complex128'})"),
        (np.zeros(2, [("a", "i4"), ("b", "f4")]), "a structured dtype (a, b)", "Make each field a leaf of its own"),
        (np.zeros(2).astype(ml_dtypes.float6_e2m3fn), "float6_e2m3fn", "another dtype"),
        (np.zeros(2).astype(ml_dtypes.int1), "int1", "another dtype"),
    ],
    ids=lambda value: value.dtype.name if isinstance(value, np.ndarray) else "",
)
def test_dtype_that_jax_has_not_is_refused_by_name(values: Any, called: str, mend: str) -> None:
    with pytest.raises(bk.BackendError) as caught:
        _loader({"meta": {"t": values}})
    assert f"leaf 'meta/t' is {called}, which JAX has not" in str(caught.value)
    assert mend in str(caught.value)
    assert ".drop('meta/t')" in str(caught.value)


def test_text_of_any_width_is_refused_by_name() -> None:
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("this NumPy has no StringDType")
    with pytest.raises(bk.BackendError, match=r"leaf 's' is str, which JAX has not.*map\(\).*\.drop\('s'\)"):
        _loader({"s": np.array(["a", "longer"], np.dtypes.StringDType())})


def test_python_objects_are_refused_by_name() -> None:
    with pytest.raises(bk.BackendError, match="leaf 'x' is Python objects, which JAX has not"):
        JaxBackend().host_dtype(np.dtype(object), "x")


@pytest.mark.parametrize(
    ("dtype", "mend"),
    [("datetime64[D]", {"t": "int64"}), ("longdouble", {"t": "float32"})],
    ids=["dates", "longdouble"],
)
def test_the_mend_for_a_refused_dtype_works(dtype: str, mend: dict[str, str]) -> None:
    columns = {"t": np.arange(4).astype(dtype)}
    with bk.Loader(bk.from_arrays(columns).batch(4).cast(mend), backend="jax", executor="inline") as loader:
        assert np.asarray(next(iter(loader))["t"]).tolist() == [0, 1, 2, 3]


# -- the published table

PAGE = Path(__file__).parents[3] / "docs" / "dtypes.md"
NAMES = {"str (`U`, `StringDType`)": ["U3"], "bytes (`S`)": ["S3"], "structured": ["i4,f4"], "Python objects": ["O"]}


def _published() -> list[tuple[str, str]]:
    """Return every dtype of the table with what its last column, JAX, says of it."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ")][1:]
    return [(name, row[-1].strip()) for row in rows for name in NAMES.get(row[0].strip(), row[0].strip().split(", "))]


@pytest.mark.parametrize(("name", "said"), _published())
def test_the_published_table_is_true(name: str, said: str) -> None:
    backend = JaxBackend()
    dtype = np.dtype(f"{name}[s]") if name.startswith(("date", "timedelta")) else _dtype(name)
    if said == "error":
        with pytest.raises(bk.BackendError, match="leaf 'x'"):
            backend.host_dtype(dtype, "x")
        return
    if not hasattr(jnp, "bool_" if name == "bool" else name):
        pytest.skip(f"this JAX has no {name}")
    column = backend.allocate((8, 3), backend.host_dtype(dtype, "x"))
    column[...] = np.ones((8, 3)).astype(column.dtype)
    array = backend.put({"x": column}, None)["x"]
    shared = array.unsafe_buffer_pointer() == column.ctypes.data
    assert array.dtype.name == (NARROWED[name] if "without" in said else name)
    assert f"`{array.dtype.name}`, shared" in said or said == f"same name, {'shared' if shared else 'copied'}"
    assert ("shared" in said) == shared


# -- 64 bits while x64 is off


@pytest.mark.parametrize(("wide", "narrow"), NARROWED.items())
def test_64_bits_become_32_where_every_value_fits(wide: str, narrow: str) -> None:
    assert JaxBackend().host_dtype(np.dtype(wide), "x") == np.dtype(narrow)


def test_one_definition_feeds_numpy_and_jax_alike() -> None:
    images, labels = np.random.default_rng(0).random((40, 3), np.float32), np.arange(40, dtype=np.int64)
    pipe = bk.from_arrays({"image": images, "label": labels}).shuffle(seed=3).batch(16)
    with bk.Loader(pipe, backend="numpy") as ours, bk.Loader(pipe, backend="jax") as theirs:
        for expected, got in zip(ours, theirs, strict=True):
            assert expected["label"].dtype == np.int64
            assert got["label"].dtype == np.int32
            assert np.array_equal(np.asarray(got["label"]), expected["label"])
            assert np.asarray(got["image"]).tobytes() == expected["image"].tobytes()


def test_narrowed_labels_are_gathered_to_memory_that_jax_reads_in_place() -> None:
    given = []

    class Watching(JaxBackend):
        def put(self, batch: Any, device: Any) -> Any:
            given.append(batch["label"].ctypes.data)
            return super().put(batch, device)

    pipe = bk.from_arrays({"label": np.arange(40, dtype=np.int64)}).shuffle(seed=3).batch(16)
    with bk.Loader(pipe, backend=Watching(), executor="inline") as loader:
        kept = [batch["label"] for batch in loader]
    assert [array.unsafe_buffer_pointer() for array in kept] == given


@pytest.mark.parametrize(
    ("dtype", "values", "bad"),
    [
        ("int64", [1, 2, 2**40 + 5, 3], 2**40 + 5),
        ("int64", [1, -(2**31) - 1, 2, 3], -(2**31) - 1),
        ("uint64", [1, 2, 3, 2**32], 2**32),
    ],
    ids=["large", "small", "unsigned"],
)
def test_an_integer_that_does_not_fit_is_an_error_with_both_mends(dtype: str, values: list[int], bad: int) -> None:
    with (
        _loader({"label": np.array(values, dtype)}) as loader,
        pytest.raises(bk.NarrowingError) as caught,
    ):
        next(iter(loader))
    message = str(caught.value)
    assert "leaf 'label'" in message
    assert str(bad) in message
    assert ".cast(" in message
    assert "jax_enable_x64" in message


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31)])
def test_the_last_integers_that_fit_are_taken(value: int) -> None:
    with _loader({"label": np.array([value])}) as loader:
        assert next(iter(loader))["label"].tolist() == [value]


def test_the_loader_goes_on_after_an_integer_that_did_not_fit() -> None:
    with _loader({"label": np.array([0, 1, 2, 2**40, 4, 5, 6, 7])}) as loader:
        batches = iter(loader)
        with pytest.raises(bk.NarrowingError):
            next(batches)
        assert next(batches)["label"].tolist() == [4, 5, 6, 7]


def test_what_a_function_returns_is_narrowed_too() -> None:
    pipe = (
        bk.from_arrays({"x": np.arange(8, dtype=np.int32)}).batch(4).map(lambda batch: {"x": batch["x"] * np.int64(10)})
    )
    with bk.Loader(pipe, backend="jax", executor="inline") as loader:
        batch = next(iter(loader))["x"]
    assert batch.dtype == np.int32
    assert batch.tolist() == [0, 10, 20, 30]


def test_float64_is_rounded_to_float32_with_one_warning() -> None:
    values = np.random.default_rng(0).random(12)
    with pytest.warns(bk.NarrowingWarning, match=r"leaf 'x'.*float32") as caught, _loader({"x": values}) as loader:
        got = np.concatenate([np.asarray(batch["x"]) for epoch in range(2) for batch in loader])
    assert len(caught) == 1
    assert got.dtype == np.float32
    assert np.array_equal(got, np.tile(values.astype(np.float32), 2))


def test_narrowing_says_which_leaves_are_narrowed() -> None:
    columns = {"x": np.zeros(4), "y": np.zeros(4, np.int64), "z": np.zeros(4, np.float32)}
    with pytest.warns(bk.NarrowingWarning), _loader(columns) as loader:
        assert dict(loader.narrowing) == {
            "x": (np.dtype("float64"), np.dtype("float32")),
            "y": (np.dtype("int64"), np.dtype("int32")),
        }


def test_the_schema_is_that_of_the_narrowed_batch() -> None:
    with _loader({"y": np.zeros((4, 2), np.int64)}) as loader:
        assert loader.schema["y"].dtype == next(iter(loader))["y"].dtype == np.int32


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_narrow_error_refuses_to_narrow_at_all(dtype: str) -> None:
    with pytest.raises(bk.NarrowingError) as caught:
        _loader({"label": np.zeros(4, dtype)}, narrow="error")
    assert "leaf 'label'" in str(caught.value)
    assert dtype in str(caught.value)
    assert ".cast(" in str(caught.value)
    assert "jax_enable_x64" in str(caught.value)


def test_a_cast_keeps_narrow_error_and_warnings_quiet() -> None:
    pipe = bk.from_arrays({"x": np.zeros(4), "y": np.zeros(4, np.int64)}).cast(x="float32", y="int32").batch(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bk.Loader(pipe, backend="jax", narrow="error", executor="inline") as loader:
            assert next(iter(loader))["y"].dtype == np.int32


# -- 64 bits while x64 is on

X64 = """
import json, warnings
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import batchkit as bk
warnings.simplefilter("error")
columns = {"int64": np.array([2**40 + 5, -1]), "uint64": np.array([2**63, 1], np.uint64),
           "float64": np.array([0.1, 0.2]), "complex128": np.array([0.1j, 2])}
with bk.Loader(bk.from_arrays(columns).batch(2), backend="jax", narrow="error", executor="inline") as loader:
    batch = next(iter(loader))
    print(json.dumps({
        "dtypes": {name: array.dtype.name for name, array in batch.items()},
        "equal": {name: np.asarray(array).tobytes() == columns[name].tobytes() for name, array in batch.items()},
        "narrowing": len(loader.narrowing),
    }))
"""


@pytest.fixture(scope="module")
def x64() -> dict[str, Any]:
    """Return what a process with x64 turned on saw."""
    done = subprocess.run([sys.executable, "-c", X64], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize("dtype", NARROWED)
def test_with_x64_nothing_is_narrowed(dtype: str, x64: dict[str, Any]) -> None:
    assert x64["dtypes"][dtype] == dtype
    assert x64["equal"][dtype]
    assert x64["narrowing"] == 0


def test_x64_is_looked_at_when_the_loader_is_made() -> None:
    backend = JaxBackend()
    assert backend.host_dtype(np.dtype("int64"), "x") == np.int32
    jax.config.update("jax_enable_x64", True)
    try:
        assert backend.host_dtype(np.dtype("int64"), "x") == np.int64
    finally:
        jax.config.update("jax_enable_x64", False)
