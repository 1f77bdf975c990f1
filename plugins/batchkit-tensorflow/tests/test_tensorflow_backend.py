"""The TensorFlow backend by itself: dtypes, addresses, devices, errors; the oracle is NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes  # TensorFlow brings it along
import numpy as np
import pytest
import tensorflow as tf

from batchkit import BackendError
from batchkit.backends import Backend, aligned_empty
from batchkit_tensorflow import devices
from batchkit_tensorflow.backend import TensorFlowBackend

CPU = "/device:CPU:0"
PLAIN = [
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
COPIED = [
    name
    for name in (
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz"),
        *("int4", "uint4", "int2", "uint2", "float4_e2m1fn"),
    )
    # Later versions of TensorFlow have more of them.
    if hasattr(tf.dtypes.experimental, name)
]
SHARED = [*PLAIN, "bfloat16"]


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(name) if name in PLAIN else np.dtype(getattr(ml_dtypes, name))


def any_bits(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return an aligned array of random bit patterns: NaNs with payloads, infinities and subnormals among them."""
    rng = np.random.default_rng(7)
    column = aligned_empty(shape, dtype)
    if dtype.name == "bool" or dtype.name.endswith(("int2", "int4", "float4_e2m1fn")):
        column[...] = rng.integers(0, 2, shape).astype(dtype)
    else:
        column.view(np.uint8)[...] = rng.integers(0, 256, column.view(np.uint8).shape)
    return column


def address(tensor: tf.Tensor) -> int:
    return int(np.asarray(memoryview(tensor)).__array_interface__["data"][0])


class Pair(NamedTuple):
    x: Any
    y: Any


@pytest.fixture(scope="module")
def backend() -> TensorFlowBackend:
    return TensorFlowBackend()


def test_is_a_backend(backend: TensorFlowBackend) -> None:
    assert isinstance(backend, Backend)
    assert (backend.name, backend.alignment) == ("tensorflow", 64)


@pytest.mark.parametrize("name", SHARED + COPIED)
def test_every_dtype_keeps_every_bit(backend: TensorFlowBackend, name: str) -> None:
    column = any_bits(numpy_dtype(name), (64, 3))
    assert backend.host_dtype(column.dtype, "x") == column.dtype
    tensor = backend.put({"x": column}, CPU)["x"]
    assert tensor.dtype.name == name
    assert tuple(tensor.shape) == column.shape
    assert tensor.numpy().tobytes() == column.tobytes()


@pytest.mark.parametrize("name", SHARED)
def test_aligned_memory_is_shared(backend: TensorFlowBackend, name: str) -> None:
    column = backend.allocate((5, 3), numpy_dtype(name))
    column[...] = 0
    tensor = backend.put({"x": column}, CPU)["x"]
    if name == "bfloat16":  # NumPy's buffer protocol has no bfloat16
        column[1, 2] = 1
        assert float(tensor[1, 2]) == 1
    else:
        assert address(tensor) == column.ctypes.data


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("offset", [2, 16, 32])
def test_misaligned_memory_is_copied_at_once(backend: TensorFlowBackend, name: str, offset: int) -> None:
    dtype = numpy_dtype(name)
    raw = aligned_empty((dtype.itemsize * 8 + offset,), np.dtype(np.uint8))
    column = np.ndarray((8,), dtype, raw, offset)
    column[...] = any_bits(dtype, (8,))
    kept = column.tobytes()
    tensor = backend.put({"x": column}, CPU)["x"]
    raw[...] = 0
    assert tensor.numpy().tobytes() == kept


def test_strided_and_read_only_columns_are_copied(backend: TensorFlowBackend) -> None:
    column = aligned_empty((8, 4), np.dtype("float32"))
    column[...] = np.arange(32).reshape(8, 4)
    locked = aligned_empty((8,), np.dtype("float32"))
    locked[...] = 5
    locked.flags.writeable = False
    put = backend.put({"strided": column[:, ::2], "reversed": column[::-1], "locked": locked}, CPU)
    np.testing.assert_array_equal(put["strided"].numpy(), np.arange(32).reshape(8, 4)[:, ::2])
    np.testing.assert_array_equal(put["reversed"].numpy(), np.arange(32).reshape(8, 4)[::-1])
    assert address(put["locked"]) != locked.ctypes.data


def test_what_dlpack_refuses_is_copied(backend: TensorFlowBackend) -> None:
    class Refusing(np.ndarray[Any, Any]):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("not this one")

    column = any_bits(np.dtype("float32"), (5, 3))
    put = backend.put({"x": column.view(Refusing)}, CPU)
    assert put["x"].numpy().tobytes() == column.tobytes()


def test_memory_is_kept_for_as_long_as_a_tensor_reads_it(backend: TensorFlowBackend) -> None:
    column = backend.allocate((1000,), np.dtype("float64"))
    column[...] = 3
    tensor = backend.put({"x": column}, CPU)["x"]
    del column
    assert tensor[10:20].numpy().tolist() == [3.0] * 10


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e5m2"])
def test_empty_batches_keep_their_shape(backend: TensorFlowBackend, shape: tuple[int, ...], name: str) -> None:
    tensor = backend.put({"x": backend.allocate(shape, numpy_dtype(name))}, CPU)["x"]
    assert (tuple(tensor.shape), tensor.dtype.name) == (shape, name)


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (np.array(["a", "bé", ""]), [b"a", "bé".encode(), b""]),
        (np.array([b"a", b"x\0y", b""]), [b"a", b"x\0y", b""]),
        (np.array([], "U3"), []),
        (np.array([], "S3"), []),
    ],
)
def test_strings_and_bytes_become_string_tensors(
    backend: TensorFlowBackend, column: np.ndarray[Any, Any], wanted: list[bytes]
) -> None:
    assert backend.host_dtype(column.dtype, "x") == column.dtype
    tensor = backend.put({"x": column}, CPU)["x"]
    assert tensor.dtype == tf.string
    assert tensor.numpy().tolist() == wanted


def test_strings_of_variable_width_become_string_tensors(backend: TensorFlowBackend) -> None:
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("this NumPy has no StringDType")
    column = np.array(["a", "longer than it"], np.dtypes.StringDType())
    assert backend.host_dtype(column.dtype, "x") == column.dtype
    assert backend.put((column,), CPU)[0].numpy().tolist() == [b"a", b"longer than it"]


def test_another_device_gets_a_tensor_of_its_own_but_for_strings(backend: TensorFlowBackend) -> None:
    # Spelt otherwise, the CPU is taken for a device that must be copied to.
    column = any_bits(np.dtype("float32"), (5, 3))
    put = backend.put({"x": column, "s": np.array(["a", "b"])}, "/CPU:0")
    assert put["x"].numpy().tobytes() == column.tobytes()
    assert put["s"].numpy().tolist() == [b"a", b"b"]


def test_nesting_stays(backend: TensorFlowBackend) -> None:
    batch = {"b": Pair(np.zeros(2), (np.ones(2, np.int64),)), "a": {"c": np.full(2, 2, np.uint8)}}
    put = backend.put(batch, CPU)
    assert list(put) == ["b", "a"]
    assert type(put["b"]) is Pair
    assert put["b"].x.numpy().tolist() == [0, 0]
    assert put["b"].y[0].numpy().tolist() == [1, 1]
    assert put["a"]["c"].dtype == tf.uint8


def test_a_lone_leaf_is_a_batch(backend: TensorFlowBackend) -> None:
    assert backend.put(np.arange(3), CPU).numpy().tolist() == [0, 1, 2]


def test_foreign_byte_order_is_converted_while_gathering(backend: TensorFlowBackend) -> None:
    assert backend.host_dtype(np.dtype(">f4"), "x").isnative


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("datetime64[ns]", "leaf.view('int64')"),
        ("timedelta64[s]", "leaf.view('int64')"),
        ([("a", "i4"), ("b", "f4")], "structured (a, b)"),
        ("O", "Python objects"),
        ("longdouble", ".cast()"),
        ("clongdouble", ".cast()"),
        ("V8", ".cast()"),
        *(
            (getattr(ml_dtypes, name), ".cast()")
            for name in ("float8_e3m4", "float6_e2m3fn")
            if hasattr(ml_dtypes, name)
        ),
    ],
)
def test_what_tensorflow_has_not_is_refused_with_leaf_and_mend(
    backend: TensorFlowBackend, dtype: Any, says: str
) -> None:
    with pytest.raises(BackendError) as caught:
        backend.host_dtype(np.dtype(dtype), "meta/name")
    message = str(caught.value)
    assert "backend 'tensorflow': leaf 'meta/name'" in message
    assert says in message
    assert '.drop("meta/name")' in message


def test_the_only_leaf_is_not_told_to_be_dropped(backend: TensorFlowBackend) -> None:
    with pytest.raises(BackendError, match="the only leaf is datetime64") as caught:
        backend.host_dtype(np.dtype("datetime64[s]"), "")
    assert "drop" not in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "CPU", "cpu:0", "/CPU:0", "/cpu:0", "/device:CPU:0", "device:cpu:0"])
def test_the_cpu_has_many_names(backend: TensorFlowBackend, device: str) -> None:
    assert backend.device(device) == CPU


def test_devices_of_tensorflow_are_taken(backend: TensorFlowBackend) -> None:
    assert backend.device(tf.config.list_logical_devices("CPU")[0]) == CPU
    assert backend.device(tf.DeviceSpec.from_string("/job:localhost/replica:0/task:0/device:CPU:0")) == CPU
    assert backend.device(tf.constant(1.0).device) in (CPU, "/device:GPU:0")


@pytest.mark.parametrize("device", ["bogus", "tpu:0", "gpu:99", "cpu:1", "cpu:x", 3, ""])
def test_an_unknown_device_is_answered_with_those_there_are(backend: TensorFlowBackend, device: Any) -> None:
    with pytest.raises(BackendError, match=r"backend 'tensorflow' has no device .* choose one of 'CPU:0'"):
        backend.device(device)


def test_no_device_is_where_tensorflow_would_go(backend: TensorFlowBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.device(None) == tf.constant(1.0).device.removeprefix("/job:localhost/replica:0/task:0")
    gpus = [tf.config.LogicalDevice("/device:CPU:0", "CPU"), tf.config.LogicalDevice("/device:GPU:0", "GPU")]
    monkeypatch.setattr(devices.tf.config, "list_logical_devices", lambda: gpus)
    assert backend.device(None) == "/device:GPU:0"
    assert backend.device("gpu") == "/device:GPU:0"
    with pytest.raises(BackendError, match="choose one of 'CPU:0', 'GPU:0'"):
        backend.device("gpu:1")


def test_allocated_memory_is_as_asked_for(backend: TensorFlowBackend) -> None:
    for name in ("float32", "bfloat16", "uint8"):
        column = backend.allocate((3, 5), numpy_dtype(name))
        assert (column.shape, column.dtype) == ((3, 5), numpy_dtype(name))
        assert column.flags.carray
        assert column.ctypes.data % 64 == 0
