"""Rows kept in memory, up to a budget."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.caching.outline import Lease, Leaves, Outline, Taken, merged
from batchkit.errors import CacheWarning
from batchkit.resources import free_memory

__all__ = ["FREE_SHARE", "MemoryStore"]

FREE_SHARE = 0.5
"""The share of the memory that is free at the start that a cache leaves free, where it has no budget."""

_UNKNOWN = 1 << 30  # the budget where the system does not say what is free
_LOOK_EVERY = 16 << 20  # bytes stored between two looks at what is free
_OVERHEAD = 120  # bytes that an array takes besides its values


class MemoryStore:
    """Rows in memory: whole columns where all rows have one shape, else one array a row and leaf.

    ``budget`` is in bytes. Without it, rows are stored until half of the memory is used up that was free at the
    start, whoever used it: several caches and processes share it. What finds no room is not stored.
    """

    def __init__(self, rows: int, budget: int | None, where: str) -> None:
        self._where = where
        self._free = None
        if budget is None:
            self._free = free_memory()
            budget = _UNKNOWN if self._free is None else int(FREE_SHARE * self._free)
        self._budget, self._used, self._looked = budget, 0, 0
        self._slots = np.zeros(rows, np.int64)  # the row's slot, plus 1; pages that are not written take no memory
        self._outline: Outline | None = None
        self._columns: list[npt.NDArray[Any]] | None = None
        self._rows: list[list[npt.NDArray[Any]]] | None = None
        self._count = 0
        self._full = False
        self._lock = threading.Lock()

    @property
    def accepts(self) -> bool:
        """Whether more rows can be stored."""
        return not self._full

    def take(self, positions: npt.NDArray[np.int64], lease: Lease) -> Taken:
        """Return what is there of some rows."""
        with self._lock:  # only what is there is looked up under it; slots never change
            slots = self._slots[positions]
            outline, columns, rows = self._outline, self._columns, self._rows
        there = slots > 0
        if outline is None or not there.any():
            return Taken(there, [], None)
        chosen = slots[there] - 1
        if columns is not None:
            leaves: Leaves = []
            for number, column in enumerate(columns):
                out = lease(number, len(chosen), column.dtype, column.shape[1:])
                leaves.append(column.take(chosen, 0, out, "clip"))
            return Taken(there, leaves, outline)
        assert rows is not None
        found = [rows[slot] for slot in chosen.tolist()]
        return Taken(there, [[row[number].copy() for row in found] for number in range(len(outline.columns))], outline)

    def write(self, positions: npt.NDArray[np.int64], outline: Outline, leaves: Leaves) -> None:
        """Store rows, as many as there is room for.

        Raises:
            SchemaError: they are not like those that are there.
        """
        with self._lock:
            if self._full:
                return
            outline = outline if self._outline is None else merged(self._outline, outline)
            if outline != self._outline:
                self._become(outline)
            unique, firsts = np.unique(positions, return_index=True)
            lacking = self._slots[unique] == 0
            positions, firsts = unique[lacking], firsts[lacking]
            stored = self._put_columns(firsts, leaves) if self._columns is not None else self._put_rows(firsts, leaves)
            self._slots[positions[:stored]] = np.arange(self._count + 1, self._count + stored + 1)
            self._count += stored
            if stored < len(positions):
                self._announce()

    def _become(self, outline: Outline) -> None:
        """Hold rows of another outline from now on."""
        if outline.varies:
            if self._columns is not None:
                columns = self._columns
                self._rows = [[column[slot].copy() for column in columns] for slot in range(self._count)]
            self._rows = self._rows or []
            self._columns = None
        else:
            each = max(sum(column.nbytes for column in outline.columns), 1)
            most = min(len(self._slots), self._budget // each)
            self._columns = [np.empty((most, *column.sizes), column.dtype) for column in outline.columns]
        self._outline = outline

    def _put_columns(self, places: npt.NDArray[np.intp], leaves: Leaves) -> int:
        """Store as many of the rows as there is room for; return how many."""
        assert self._columns is not None
        assert self._outline is not None
        each = max(sum(column.nbytes for column in self._outline.columns), 1)
        count = min(len(places), (self._budget - self._used) // each, len(self._columns[0]) - self._count)
        if not self._room(count * each):
            return 0
        for column, leaf in zip(self._columns, leaves, strict=True):
            column[self._count : self._count + count] = np.asarray(leaf)[places[:count]]
        self._used += count * each
        return count

    def _put_rows(self, places: npt.NDArray[np.intp], leaves: Leaves) -> int:
        """The same where rows differ in shape."""
        assert self._rows is not None
        for count, place in enumerate(places.tolist()):
            row = [np.array(leaf[place]) for leaf in leaves]
            size = sum(value.nbytes + _OVERHEAD for value in row)
            if self._used + size > self._budget or not self._room(size):
                return count
            self._rows.append(row)
            self._used += size
        return len(places)

    def _room(self, size: int) -> bool:
        """Say whether enough memory is free, as far as that is looked at now."""
        if self._free is None or (self._used and self._used + size - self._looked < _LOOK_EVERY):
            return True
        self._looked = self._used
        left = free_memory()
        return left is None or left - size > FREE_SHARE * self._free

    def _announce(self) -> None:
        self._full = True
        warnings.warn(
            f"{self._where} is full: it holds {self._count} of {len(self._slots)} rows in {self._used / 1e6:.1f} MB, "
            "and the others are computed every time. Give it more memory=..., or a path to keep them on disk",
            CacheWarning,
            stacklevel=2,
        )
