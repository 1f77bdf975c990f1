"""What the hand-over to JAX copies, and how long the host memory stays referenced."""

from __future__ import annotations

import gc
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from batchkit.errors import BackendError
from batchkit_jax.backend import JaxBackend

DEVICES = pytest.mark.parametrize("device", [None, "cpu", "cpu:0"])


def _column(values: Any) -> npt.NDArray[Any]:
    values = np.asarray(values)
    column = JaxBackend().allocate(values.shape, values.dtype)
    column[...] = values
    return column


def _unaligned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    raw = np.empty(values.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64 + 4
    column: npt.NDArray[Any] = raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    column[...] = values
    return column


def _put(column: npt.NDArray[Any], device: Any = None) -> jax.Array:
    backend = JaxBackend()
    array: jax.Array = backend.put({"x": column}, backend.device(device))["x"]
    return array


SHARED = [
    *("bool_", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "complex64", "bfloat16"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
]


@DEVICES
@pytest.mark.parametrize("name", SHARED)
def test_aligned_memory_is_not_copied(name: str, device: Any) -> None:
    if not hasattr(jnp, name):
        pytest.skip(f"this JAX has no {name}")
    column = _column(np.ones((8, 3)).astype(jnp.dtype(getattr(jnp, name))))
    assert _put(column, device).unsafe_buffer_pointer() == column.ctypes.data


def test_a_part_of_a_slot_is_not_copied() -> None:
    column = _column(np.arange(64, dtype=np.float32).reshape(32, 2))
    assert _put(column[:20]).unsafe_buffer_pointer() == column.ctypes.data


@DEVICES
def test_unaligned_memory_is_copied_before_put_returns(device: Any) -> None:
    values = np.arange(4_000_000, dtype=np.float32)
    column = _unaligned(values)
    array = _put(column, device)
    column[...] = -1  # JAX's own copy would still be under way
    assert np.array_equal(np.asarray(array), values)


@DEVICES
def test_strided_memory_is_copied_before_put_returns(device: Any) -> None:
    column = _column(np.arange(4_000_000, dtype=np.float32).reshape(-1, 4))
    values = column[:, :2].copy()
    array = _put(column[:, :2], device)
    column[...] = -1
    assert np.array_equal(np.asarray(array), values)


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2", "float4_e2m1fn"])
def test_packed_dtypes_are_copied_before_put_returns(name: str) -> None:
    if not hasattr(jnp, name):
        pytest.skip(f"this JAX has no {name}")
    dtype = jnp.dtype(getattr(jnp, name))
    column = _column(np.ones(2_000_000).astype(dtype))
    array = _put(column)
    column[...] = np.zeros(1).astype(dtype)
    assert np.asarray(array).astype(np.float32).min() == 1


def test_the_default_device_leaves_arrays_uncommitted() -> None:
    assert not _put(_column(np.float32([1]))).committed


def test_a_named_device_commits_arrays() -> None:
    array = _put(_column(np.float32([1])), "cpu:0")
    assert array.committed
    assert array.device == jax.local_devices(backend="cpu")[0]


def test_memory_is_referenced_until_the_array_dies() -> None:
    column = _column(np.zeros((64, 64), np.float32))
    root = column.base
    free = sys.getrefcount(root)
    array = _put(column)
    assert sys.getrefcount(root) > free
    del array
    gc.collect()
    _put(_column(np.float32([1])))  # JAX lets go at its next call
    assert sys.getrefcount(root) == free


@pytest.mark.parametrize("keep", [lambda array: np.asarray(array), lambda array: jax.device_get(array)])
def test_memory_is_referenced_by_what_numpy_sees_of_it(keep: Any) -> None:
    column = _column(np.arange(4096, dtype=np.float32))
    root = column.base
    free = sys.getrefcount(root)
    seen = keep(_put(column))
    gc.collect()
    _put(_column(np.float32([1])))
    assert sys.getrefcount(root) > free or not np.shares_memory(seen, column)


def test_memory_is_referenced_by_a_pending_computation() -> None:
    @jax.jit
    def slow(x: jax.Array) -> jax.Array:
        for _ in range(12):
            x = x @ x * 1e-3
        return x

    values = np.full((700, 700), 1.0, np.float32)
    expected = np.asarray(slow(values))
    column = _column(values)
    root = column.base
    free = sys.getrefcount(root)
    array = _put(column)
    result = slow(array)
    del array
    gc.collect()
    _put(_column(np.float32([1])))
    if sys.getrefcount(root) <= free:  # what the core would see as free to be overwritten
        column[...] = 0
    assert np.array_equal(np.asarray(result), expected)


@DEVICES
def test_donating_an_array_never_writes_to_the_host_memory(device: Any) -> None:
    column = _column(np.ones((256, 256), np.float32))
    array = _put(column, device)
    result = jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    assert result.unsafe_buffer_pointer() != column.ctypes.data
    assert np.asarray(result).min() == 2
    assert column.min() == column.max() == 1


def test_x64_turned_off_after_the_loader_was_made_is_an_error() -> None:
    with pytest.raises(BackendError, match=r"leaf 'x' is int64 .* jax_enable_x64 is off"):
        _put(_column(np.array([2**40 + 5])))
