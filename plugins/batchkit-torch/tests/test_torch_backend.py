"""The torch backend by itself: dtypes, addresses, devices, errors; the oracle is NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from batchkit import BackendError
from batchkit.backends import Backend
from batchkit_torch import devices
from batchkit_torch.backend import TorchBackend

CPU = torch.device("cpu")
PLAIN = [
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
EXTENDED = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]


def numpy_dtype(name: str) -> np.dtype[Any]:
    if name in PLAIN:
        return np.dtype(name)
    return np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))


def any_bits(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return an array of random bit patterns: NaNs with payloads, infinities and subnormals among them."""
    rng = np.random.default_rng(7)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape)) * dtype.itemsize
    return rng.integers(0, 256, count, dtype=np.uint8).view(dtype).reshape(shape)


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


class Pair(NamedTuple):
    x: Any
    y: Any


@pytest.fixture
def backend() -> TorchBackend:
    return TorchBackend()


def test_is_a_backend(backend: TorchBackend) -> None:
    assert isinstance(backend, Backend)
    assert (backend.name, backend.alignment) == ("torch", 1)


@pytest.mark.parametrize("name", PLAIN + EXTENDED)
def test_every_dtype_keeps_every_bit(backend: TorchBackend, name: str) -> None:
    column = any_bits(numpy_dtype(name), (64, 3))
    assert backend.host_dtype(column.dtype, "x") == column.dtype
    tensor = backend.put({"x": column}, CPU)["x"]
    assert tensor.dtype == getattr(torch, name)
    assert tuple(tensor.shape) == column.shape
    assert bits_of(tensor) == column.tobytes()


@pytest.mark.parametrize("name", PLAIN + EXTENDED)
def test_every_dtype_shares_the_host_memory(backend: TorchBackend, name: str) -> None:
    column = backend.allocate((5, 3), numpy_dtype(name))
    assert backend.put(column, CPU).data_ptr() == column.ctypes.data


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_extended_dtypes_mean_the_same_numbers(backend: TorchBackend, name: str) -> None:
    column = np.array([0.0, 0.5, -1.5, 2.0]).astype(numpy_dtype(name))
    np.testing.assert_array_equal(backend.put(column, CPU).to(torch.float32).numpy(), column.astype(np.float32))


def test_misaligned_memory_is_shared_too(backend: TorchBackend) -> None:
    raw = np.zeros(4 * 8 + 3, np.uint8)
    column = np.ndarray((8,), np.float32, raw, 3)
    column[:] = np.arange(8)
    tensor = backend.put({"x": column}, CPU)["x"]
    assert tensor.data_ptr() == column.ctypes.data
    assert tensor.tolist() == list(range(8))


def test_memory_is_kept_for_as_long_as_a_tensor_reads_it(backend: TorchBackend) -> None:
    tensor = backend.put({"x": np.full(1000, 3.0)}, CPU)["x"][10:20]
    assert tensor.tolist() == [3.0] * 10


def test_a_read_only_column_is_copied(backend: TorchBackend) -> None:
    column = np.arange(4.0)
    column.flags.writeable = False
    backend.put({"x": column}, CPU)["x"].add_(1)
    backend.put((column,), CPU)[0].add_(1)
    assert column.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_empty_batches_keep_their_shape(backend: TorchBackend, shape: tuple[int, ...], name: str) -> None:
    tensor = backend.put({"x": np.empty(shape, numpy_dtype(name))}, CPU)["x"]
    assert (tuple(tensor.shape), tensor.dtype) == (shape, getattr(torch, name))


def test_nesting_stays(backend: TorchBackend) -> None:
    batch = {"b": Pair(np.zeros(2), (np.ones(2, np.int64),)), "a": {"c": np.full(2, 2, np.uint8)}}
    put = backend.put(batch, CPU)
    assert list(put) == ["b", "a"]
    assert type(put["b"]) is Pair
    assert put["b"].x.tolist() == [0, 0]
    assert put["b"].y[0].tolist() == [1, 1]
    assert put["a"]["c"].dtype == torch.uint8


def test_a_lone_leaf_is_a_batch(backend: TorchBackend) -> None:
    assert backend.put(np.arange(3), CPU).tolist() == [0, 1, 2]


def test_foreign_byte_order_is_converted_while_gathering(backend: TorchBackend) -> None:
    assert backend.host_dtype(np.dtype(">f4"), "x").isnative


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("U", "holds strings"),
        ("U5", "holds strings"),
        ("S3", "holds bytes"),
        ("datetime64[ns]", "leaf.view('int64')"),
        ("timedelta64[s]", "leaf.view('int64')"),
        ([("a", "i4"), ("b", "f4")], "structured (a, b)"),
        ("O", "Python objects"),
        ("longdouble", ".cast()"),
        ("clongdouble", ".cast()"),
    ],
)
def test_what_torch_has_not_is_refused_with_leaf_and_mend(backend: TorchBackend, dtype: Any, says: str) -> None:
    with pytest.raises(BackendError) as caught:
        backend.host_dtype(np.dtype(dtype), "meta/name")
    message = str(caught.value)
    assert "backend 'torch': leaf 'meta/name'" in message
    assert says in message
    assert '.drop("meta/name")' in message


def test_strings_of_variable_width_are_refused(backend: TorchBackend) -> None:
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("this NumPy has no StringDType")
    with pytest.raises(BackendError, match="holds strings"):
        backend.host_dtype(np.dtypes.StringDType(), "x")


@pytest.mark.parametrize("name", ["int4", "float6_e2m3fn", "float8_e3m4", "float8_e4m3b11fnuz"])
def test_extended_dtypes_without_a_counterpart_are_refused(backend: TorchBackend, name: str) -> None:
    dtype = getattr(pytest.importorskip("ml_dtypes"), name, None)
    if dtype is None:
        pytest.skip(f"this ml_dtypes has no {name}")
    with pytest.raises(BackendError, match=f"leaf 'x' is {name}, which torch has not"):
        backend.host_dtype(np.dtype(dtype), "x")


def test_the_only_leaf_is_not_told_to_be_dropped(backend: TorchBackend) -> None:
    with pytest.raises(BackendError, match="the only leaf holds strings") as caught:
        backend.host_dtype(np.dtype("U"), "")
    assert "drop" not in str(caught.value)


@pytest.mark.parametrize("device", [None, "cpu", "cpu:0", CPU])
def test_the_cpu_has_several_names(backend: TorchBackend, device: Any) -> None:
    assert backend.device(device) == CPU


def test_none_is_the_default_device_of_torch(backend: TorchBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", lambda: {"cpu": 1, "meta": 1})
    monkeypatch.setattr(torch, "meta", FakeAccelerator, raising=False)
    with torch.device("meta"):
        assert backend.device(None).type == "meta"


@pytest.mark.parametrize("device", ["bogus", "cuda:99", "cpu:1", 3.5, torch.device("cuda:99"), "tpu"])
def test_an_unknown_device_is_answered_with_those_there_are(backend: TorchBackend, device: Any) -> None:
    with pytest.raises(BackendError, match=r"backend 'torch' has no device .* choose one of 'cpu'"):
        backend.device(device)


class FakeAccelerator:
    """Stands for the module of an accelerator with two devices."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 2

    @staticmethod
    def current_device() -> int:
        return 1


def test_an_accelerator_without_a_number_is_the_current_one(
    backend: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "cuda", FakeAccelerator)
    assert backend.device("cuda") == torch.device("cuda:1")
    assert backend.device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(BackendError, match="'cpu', 'cuda:0', 'cuda:1'"):
        backend.device("cuda:2")


def test_another_device_gets_a_copy_of_the_same_shapes_and_dtypes(backend: TorchBackend) -> None:
    # torch's "meta" device stands for an accelerator: it is everywhere and has no memory of its own.
    put = backend.put(
        {"x": np.zeros((4, 2), np.float32), "y": any_bits(numpy_dtype("bfloat16"), (4,))}, torch.device("meta")
    )
    assert (put["x"].device.type, put["x"].dtype, tuple(put["x"].shape)) == ("meta", torch.float32, (4, 2))
    assert (put["y"].device.type, put["y"].dtype) == ("meta", torch.bfloat16)


def test_an_apple_gpu_narrows_64_bit_floats(backend: TorchBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert backend.device("mps").type == "mps"
    assert backend.host_dtype(np.dtype("float64"), "x") == np.float32
    assert backend.host_dtype(np.dtype("complex128"), "x") == np.complex64
    assert backend.host_dtype(np.dtype("int64"), "x") == np.int64


@pytest.mark.parametrize("name", ["float32", "uint8", "bfloat16"])
def test_allocated_memory_is_as_asked_for(backend: TorchBackend, name: str) -> None:
    column = backend.allocate((3, 5), numpy_dtype(name))
    assert (column.shape, column.dtype) == ((3, 5), numpy_dtype(name))
    assert column.flags.c_contiguous
    assert column.flags.writeable
    assert column.ctypes.data % 64 == 0


def test_page_locked_memory_is_as_asked_for(backend: TorchBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    empty = torch.empty

    def pageable(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*size, **options)

    monkeypatch.setattr(torch, "cuda", FakeAccelerator)
    monkeypatch.setattr(torch, "empty", pageable)
    backend.device("cuda")
    column = backend.allocate((3, 5), np.dtype("int16"))
    column[...] = 7
    assert asked == [True]
    assert (column.shape, column.dtype, column.flags.writeable) == ((3, 5), np.int16, True)
    assert backend.allocate((0, 5), np.dtype("int16")).shape == (0, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gets_the_same_bits_from_page_locked_memory(backend: TorchBackend) -> None:
    device = backend.device("cuda")
    column = backend.allocate((64, 3), np.dtype("float32"))
    column[...] = any_bits(np.dtype("float32"), (64, 3))
    assert torch.from_numpy(column).is_pinned()
    tensor = backend.put({"x": column}, device)["x"]
    kept = column.tobytes()
    column[...] = 0
    assert tensor.device == device
    assert bits_of(tensor.cpu()) == kept
