"""Values of every dtype to try a backend with, and the comparison that counts: byte for byte."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.tree import Tree

__all__ = ["DTYPES", "assert_same", "assert_same_tree", "dtype_id", "sample"]

_BITS = {"float4_e2m1fn": 4, "float6_e2m3fn": 6, "int2": 2, "int4": 4, "uint4": 4}
_EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", *_BITS)


def _extended() -> list[np.dtype[Any]]:
    """Return the dtypes of ml_dtypes, which frameworks bring along and batchkit does not need."""
    if find_spec("ml_dtypes") is None:
        return []
    import ml_dtypes

    return [np.dtype(getattr(ml_dtypes, name)) for name in _EXTENDED if hasattr(ml_dtypes, name)]


_NUMBERS = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    # On most machines second types beside int64 and uint64: equal to them, and yet another C type.
    *("longlong", "ulonglong"),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128", "clongdouble"),
)

DTYPES: tuple[np.dtype[Any], ...] = (
    *(np.dtype(name) for name in _NUMBERS),
    *(np.dtype(text) for text in ("S5", "U5", "datetime64[ns]", "timedelta64[ms]")),
    np.dtype([("id", "int32"), ("weight", "float32")]),
    *_extended(),
)
"""What a data set may be made of; a backend takes each as it is, or refuses it by name."""


def dtype_id(dtype: np.dtype[Any]) -> str:
    """Return how pytest names the check of a dtype."""
    return {"q": "longlong", "Q": "ulonglong"}.get(dtype.char, str(dtype).replace(" ", ""))


def sample(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[Any]:
    """Return values of ``dtype``: any bits where any bits are valid, NaN with a payload among them.

    >>> sample(np.dtype("int8"), (2, 3)).shape
    (2, 3)
    """
    rng = np.random.default_rng(seed)
    if dtype.names:
        array = np.zeros(shape, dtype)
        for number, name in enumerate(dtype.names):
            array[name] = sample(dtype[name], shape, seed + number + 1)
        return array
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "US":
        return np.array([f"t{value}" for value in rng.integers(0, 1000, int(np.prod(shape)))], dtype).reshape(shape)
    if dtype.char in "gG":  # the padding of a longdouble is not part of its value
        return rng.standard_normal(shape).astype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    bits = rng.integers(0, 1 << _BITS.get(dtype.name, 8), size, np.uint8)
    return bits.view(dtype).reshape(shape)


def assert_same(got: npt.NDArray[Any], expected: npt.NDArray[Any], what: str) -> None:
    """Fail unless the shapes, dtypes and bytes are equal; texts are compared as texts."""
    got = np.asarray(got)
    assert got.shape == expected.shape, f"{what}: the shape is {got.shape} and should be {expected.shape}"
    if expected.dtype.kind in "US":
        same = _texts(got) == _texts(expected)  # compared outside the assertion: pytest would spell a large diff out
        assert same, f"{what}: the texts differ"
        return
    assert got.dtype == expected.dtype, f"{what}: the dtype is {got.dtype} and should be {expected.dtype}"
    if expected.dtype.char in "gG":
        assert np.array_equal(got, expected), f"{what}: the values differ"
        return
    same = got.tobytes() == expected.tobytes()
    assert same, f"{what}: the bytes differ: {got!r} should be {expected!r}"


def assert_same_tree(got: Tree, expected: Tree, what: str) -> None:
    """Fail unless both have the same nesting and leaves."""
    got_leaves, got_nesting = tree_.flatten(got)
    leaves, nesting = tree_.flatten(expected)
    assert got_nesting == nesting, f"{what}: the nesting is {got_nesting} and should be {nesting}"
    for path, mine, theirs in zip(tree_.paths(nesting), got_leaves, leaves, strict=True):
        assert_same(mine, np.asarray(theirs), f"{what}, {tree_.leaf_label(path)}")


def _texts(array: npt.NDArray[Any]) -> list[str]:
    flat = array.ravel().tolist()
    return [item.decode() if isinstance(item, bytes) else item for item in flat]
