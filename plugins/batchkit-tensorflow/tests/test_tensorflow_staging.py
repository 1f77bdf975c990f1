"""Batches put on a device ahead of the caller; on the CPU the same code runs if that is wanted."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import batchkit as bk


def numbers(rows: int = 300) -> bk.Pipeline:
    return bk.from_arrays(
        {"x": np.arange(rows * 8, dtype=np.float32).reshape(rows, 8), "y": np.arange(rows, dtype=np.int32)}
    )


def expected(rows: int = 300, size: int = 10) -> list[tuple[np.ndarray, np.ndarray]]:
    x, y = np.arange(rows * 8, dtype=np.float32).reshape(rows, 8), np.arange(rows, dtype=np.int32)
    return [(x[at : at + size], y[at : at + size]) for at in range(0, rows, size)]


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_batches_kept_for_ever_stay_what_they_were(executor: str) -> None:
    options: dict[str, Any] = {"executor": executor, "workers": 2} if executor != "inline" else {"executor": executor}
    with bk.Loader(numbers().batch(10), "tensorflow", device="cpu", prefetch_to_device=True, **options) as loader:
        kept = [batch for _ in range(3) for batch in loader]
    for batch, (x, y) in zip(kept, expected() * 3, strict=True):
        assert np.array_equal(np.asarray(batch["x"]), x)
        assert np.array_equal(np.asarray(batch["y"]), y)


def test_the_cpu_is_staged_for_only_if_that_is_wanted() -> None:
    loader = bk.Loader(numbers().batch(10), "tensorflow", device="cpu")
    assert loader.backend.stager(loader.device, False) is None
    assert loader.backend.stager(loader.device, True) is not None


TWO_DEVICES = """
import json, threading, numpy as np, tensorflow as tf
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
import batchkit as bk
from batchkit_tensorflow.backend import TensorFlowBackend
threads = set()
class Noting(TensorFlowBackend):
    def put(self, batch, device):
        threads.add(threading.current_thread().name.partition("-")[0])
        return super().put(batch, device)
x = np.arange(80, dtype=np.float32).reshape(40, 2)
with bk.Loader(bk.from_arrays({"x": x}).batch(8), Noting(), device="cpu:1", executor="inline") as loader:
    kept = [batch["x"] for _ in range(2) for batch in loader]
print(json.dumps({
    "devices": sorted({tensor.device.partition("/device:")[2] for tensor in kept}),
    "threads": sorted(threads),
    "right": np.concatenate([tensor.numpy() for tensor in kept]).tolist() == x.tolist() * 2,
}))
"""


def test_a_thread_makes_tensors_ahead_on_another_device_than_the_first_cpu() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], stdout=subprocess.PIPE, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout) == {"devices": ["CPU:1"], "threads": ["batchkit"], "right": True}
