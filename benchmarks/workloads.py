"""Five kinds of work for which another executor is the best, each as an endless pipeline."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import batchkit as bk
from cifar.workload import SIZE, Pictures, pipeline

__all__ = ["WORKLOADS", "Workload"]

SLEEP_SECONDS = 2e-3
RAW_BYTES = 64 * 1024
DIFFERENT = 64  # packed rows; the others are the same again

Row = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A kind of work, and its pipeline for an epoch of some rows; ``rows`` is as many as are usual."""

    name: str
    what: str
    rows: int
    size: int
    pipe: Callable[[int], Any]


def gather(rows: int) -> Any:
    """Rows in memory, in a new order: nothing but copying."""
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((rows, 64), dtype=np.float32), "y": rng.integers(0, 10, rows)}
    return bk.from_arrays(data).shuffle(seed=0).repeat().batch(256)


def augmentation(rows: int) -> Any:
    """The CIFAR-like pipeline: some NumPy calls on a whole batch."""
    return pipeline(Pictures.of(rows), endless=True)


def counted(row: Row) -> Row:
    """Hold the GIL for about half a millisecond."""
    total = 0
    for number in range(8_000):
        total += number & 3
    return {"x": row["x"], "total": total}


def python_map(rows: int) -> Any:
    """A function in pure Python, row by row."""
    return bk.from_arrays({"x": np.arange(rows)}).map(counted).repeat().batch(32)


class Packed:
    """Rows of compressed bytes, held in memory."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        rng = np.random.default_rng(0)
        self.blobs = [zlib.compress(rng.integers(0, 16, RAW_BYTES, dtype=np.uint8).tobytes()) for _ in range(DIFFERENT)]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Row:
        return {"packed": self.blobs[row % DIFFERENT], "y": row}


def unpacked(row: Row) -> Row:
    """Decompress, which releases the GIL."""
    return {"x": np.frombuffer(zlib.decompress(row["packed"]), np.uint8), "y": row["y"]}


def decode(rows: int) -> Any:
    """A decoder in C, row by row."""
    return bk.from_sequence(Packed(rows)).shuffle(seed=0).map(unpacked).repeat().batch(32)


class Remote:
    """Rows that are a while away, as behind a network: reading one sleeps."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.row = np.zeros(1024, np.float32)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Row:
        time.sleep(SLEEP_SECONDS)
        return {"x": self.row, "y": row}


def slow_reads(rows: int) -> Any:
    """A source that makes everybody wait, and needs no core for that."""
    return bk.from_sequence(Remote(rows)).shuffle(seed=0).repeat().batch(16)


WORKLOADS = (
    Workload("in-memory gather", "256 rows of 64 float32 and a label", 200_000, 256, gather),
    Workload("vectorised augmentation", "128 pictures: crop, flip, normalise", 50_000, SIZE, augmentation),
    Workload("GIL-bound Python map", "32 rows, each 0.5 ms of Python", 4_096, 32, python_map),
    Workload("GIL-releasing decode", "32 rows of 64 KB, by zlib", 8_192, 32, decode),
    Workload("slow reads", f"16 rows, each {SLEEP_SECONDS * 1e3:g} ms of sleep", 8_192, 16, slow_reads),
)
