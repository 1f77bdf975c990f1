"""Rows of files that are mapped into memory and do not fit into it: asked for together before they are read.

A row whose page is not in memory stops the thread until the disk has brought it, and with it what the system reads
ahead: a hundred kilobytes, or some megabytes, of which a shuffled order needs nothing. Where a file is so large that
its pages do not stay, the system is told of all rows of a batch first (``MADV_WILLNEED``), and reads them at once, and
nothing besides.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.resources import free_memory

__all__ = ["RowsAhead"]

MEMORY_SHARE = 0.5
"""A file that takes more than this share of the free memory is not left to the system's own reading ahead."""
_A_ROW, _A_BYTE = 5e-6, 0.5e-9
"""Seconds that reading from memory takes at most; where a batch took longer, the rows of the next one are asked for."""
_PAGE = mmap.PAGESIZE


class RowsAhead:
    """Rows of one mapped array. Made by :meth:`of`."""

    def __init__(self, array: npt.NDArray[Any], memory: mmap.mmap) -> None:
        self._array, self._memory = array, memory
        self._begin = _address(array) - _address(np.frombuffer(memory, np.uint8))
        self._row_bytes = array[:1].nbytes
        self._asks = True

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> RowsAhead | None:
        """Return those of an array that is mapped, and too large to stay in memory; ``None`` for others."""
        memory: Any = array
        while isinstance(memory, np.ndarray):
            memory = memory.base
        if not isinstance(memory, mmap.mmap) or not array.flags.c_contiguous or not hasattr(mmap, "MADV_WILLNEED"):
            return None
        free = free_memory()
        return None if free is None or array.nbytes <= MEMORY_SHARE * free else cls(array, memory)

    def take(self, rows: npt.NDArray[np.int64], axis: int, out: npt.NDArray[Any], mode: Any) -> npt.NDArray[Any]:
        """Do what the array's own ``take`` does, after asking for the rows where the last ones were not in memory."""
        began = time.perf_counter()
        if self._asks:
            self.ask(rows, rows + 1)
        taken: npt.NDArray[Any] = self._array.take(rows, axis, out, mode)
        seconds = time.perf_counter() - began
        self._asks = seconds > _A_ROW * len(rows) + _A_BYTE * out.nbytes
        return taken

    def ask(self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> None:
        """Have the system read from the rows ``starts`` up to ``stops``, and do not wait for it."""
        some = starts < stops
        starts, stops = starts[some], stops[some]
        begins = (self._begin + starts * self._row_bytes) // _PAGE * _PAGE
        sizes = self._begin + stops * self._row_bytes - begins
        advise = self._memory.madvise
        with contextlib.suppress(OSError):  # no more than advice: where it is not taken, rows are read all the same
            for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
                advise(mmap.MADV_WILLNEED, begin, size)


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
