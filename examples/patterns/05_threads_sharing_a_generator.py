"""Several threads that share one generator.

A bare generator refuses: ``generator already executing``. The classic cure is a lock around
``next()``: safe, but one batch is made at a time. A loader's iterator may be shared as it is:
each batch goes to exactly one thread, and several are made at once.

Run: python examples/patterns/05_threads_sharing_a_generator.py
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import batchkit as bk

DATA = np.arange(800)


def slow(batch: Any) -> Any:
    """Stand for work that lets other threads run: reading, decoding."""
    time.sleep(0.005)
    return batch


class Locked:
    """The classic cure: one thread at a time may take the next batch."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.lock = batches, threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self.lock:
            return next(self.batches)


def consume(name: str, shared: Iterator[Any]) -> None:
    """Let four threads empty one iterator; print what they got together."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda _: [int(row) for batch in shared for row in batch], range(4))
        rows = sorted(row for part in parts for row in part)
    print(f"{name} every row once: {rows == DATA.tolist()}, {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    try:
        consume("generator:       ", (slow(DATA[i : i + 8]) for i in range(0, 800, 8)))
    except ValueError as error:
        print("generator:       ", error)
    consume("locked generator:", Locked(slow(DATA[i : i + 8]) for i in range(0, 800, 8)))
    consume("batchkit:        ", iter(bk.Loader(bk.from_arrays(DATA).batch(8).map(slow), workers=4, prefetch=8)))
