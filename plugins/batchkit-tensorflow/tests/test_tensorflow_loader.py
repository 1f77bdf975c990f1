"""Loader(pipe, backend="tensorflow"): the same bytes as NumPy, no copy, and a batch that is kept never changes."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # TensorFlow brings it along
import numpy as np
import pytest
import tensorflow as tf

import batchkit as bk
from batchkit_tensorflow.backend import TensorFlowBackend

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
]


class Recording(TensorFlowBackend):
    """Remembers where the slots are."""

    def __init__(self) -> None:
        self.slots: set[int] = set()

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        column = super().allocate(shape, dtype)
        self.slots.add(column.ctypes.data)
        return column


def columns(rows: int = 500) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(5)
    found = {}
    for name in DTYPES:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        raw = rng.integers(0, 2 if name == "bool" else 256, (rows, 3 * dtype.itemsize), dtype=np.uint8)
        found[name] = raw.view(dtype)
    return found


def address(tensor: tf.Tensor) -> int:
    return int(np.asarray(memoryview(tensor)).__array_interface__["data"][0])


def test_nothing_is_copied_after_the_gathering() -> None:
    backend = Recording()
    data = {"x": np.zeros((500, 3), np.float32), "y": np.arange(500)}
    with bk.Loader(bk.from_arrays(data).shuffle(0).batch(64), backend=backend, executor="threads", workers=2) as loader:
        for batch in loader:
            assert {address(batch["x"]), address(batch["y"])} <= backend.slots
    assert len(backend.slots) < 2 * 8, "slots are not used again"


def test_a_slice_and_a_gradient_keep_the_memory_too() -> None:
    x = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
    weight = tf.Variable(tf.ones((8, 1)))
    slices, tapes = [], []
    loader = bk.Loader(bk.from_arrays({"x": x, "i": np.arange(2000)}).shuffle(1).batch(50), backend="tensorflow")
    for batch in loader:
        rows = batch["i"].numpy()
        slices.append((batch["x"][10:20], x[rows[10:20]]))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.matmul(batch["x"], weight))
        tapes.append((tape, loss, x[rows].sum(axis=0)))
    assert len(slices) == 40
    for found, want in slices:
        np.testing.assert_array_equal(found.numpy(), want)
    for tape, loss, want in tapes:
        np.testing.assert_allclose(tape.gradient(loss, weight).numpy()[:, 0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("leaf", "says"),
    [
        (np.zeros(8, "datetime64[s]"), "leaf 'when' is datetime64"),
        (np.zeros(8, [("a", "i4"), ("b", "f4")]), "structured"),
        (np.zeros(8, np.longdouble), "which TensorFlow has not"),
    ],
)
def test_what_tensorflow_has_not_is_refused_before_any_data_is_read(leaf: np.ndarray[Any, Any], says: str) -> None:
    pipe = bk.from_arrays({"x": np.zeros(8), "when": leaf}).batch(4)
    with pytest.raises(bk.BackendError, match=says):
        bk.Loader(pipe, backend="tensorflow")
    assert len(list(bk.Loader(pipe.drop("when"), backend="tensorflow"))) == 2


def test_padded_batches_trace_a_tf_function_once() -> None:
    traced: list[int] = []
    values = np.arange(20, dtype=np.float32)

    @tf.function
    def total(batch: Any) -> Any:
        traced.append(1)
        return tf.reduce_sum(tf.where(batch["mask"], batch["x"], 0.0))

    pipe = bk.from_arrays({"x": values}).shuffle(1).batch(8, remainder="pad")
    with bk.Loader(pipe, backend="tensorflow") as loader:
        sums = [float(total(batch)) for _ in range(2) for batch in loader]
    assert len(traced) == 1
    assert sum(sums) == 2 * values.sum()
