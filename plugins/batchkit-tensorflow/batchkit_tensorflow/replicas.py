"""The loader that the iterations of a dataset read from, and how long its workers stay."""

from __future__ import annotations

import threading
from typing import Any

from batchkit.iteration import BatchIterator
from batchkit_tensorflow.hosting import HostBatches

__all__ = ["Replicas"]


class Replicas:
    """Host batches of a loader, by a loader of its own whose workers stay from epoch to epoch until :meth:`release`.

    TensorFlow never lets go of a function that a dataset calls, nor of what that refers to. So
    this refers to no workers or memory for batches once the dataset is gone, and to the
    loader that it was made of never.
    """

    def __init__(self, loader: Any) -> None:
        # It never iterates itself: a description, without workers.
        self._described = loader.replicate(backend=HostBatches(), device=None)
        self._lock = threading.Lock()
        self._kept: Any = None
        self._released = False

    def iterate(self, epoch: int, start: int) -> BatchIterator:
        """Return the batches of an epoch from ``start`` on.

        An iteration holds its loader: one that goes on, or begins, behind :meth:`release` ends
        its workers when it ends.
        """
        with self._lock:
            replica = self._kept if self._kept is not None else self._described.replicate()
            if not self._released:
                self._kept = replica
        iterator: BatchIterator = replica.iterate(epoch, start=start)
        return iterator

    def release(self) -> None:
        """Keep workers no longer than an iteration needs them."""
        with self._lock:
            self._kept, self._released = None, True
