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

__all__ = ["FREE_SHARE", "OVERHEAD", "Budget", "MemoryStore"]

FREE_SHARE = 0.5
"""The share of the memory that is free at the start that a cache leaves free, where it has no budget."""

_UNKNOWN = 1 << 30  # the budget where the system does not say what is free
_LOOK_EVERY = 16 << 20  # bytes stored between two looks at what is free
OVERHEAD = 120
"""Bytes that an array takes besides its values."""


class Budget:
    """How much memory may be used, and how much is.

    ``most`` is in bytes. Without it, there is room until half of the memory is used up that was free at the start,
    whoever used it: several caches and processes share it.
    """

    def __init__(self, most: int | None) -> None:
        self._free = None
        if most is None:
            self._free = free_memory()
            most = _UNKNOWN if self._free is None else int(FREE_SHARE * self._free)
        self.most, self.used, self._looked = most, 0, 0

    def take(self, size: int) -> bool:
        """Use so many bytes if there is room for them, as far as that is looked at now; say whether there was."""
        if self.used + size > self.most or not self._free_enough(size):
            return False
        self.used += size
        return True

    def _free_enough(self, size: int) -> bool:
        if self._free is None or (self.used and self.used + size - self._looked < _LOOK_EVERY):
            return True
        self._looked = self.used
        left = free_memory()
        return left is None or left - size > FREE_SHARE * self._free


class MemoryStore:
    """Rows in memory: whole columns where all rows have one shape, else one array a row and leaf.

    ``budget`` is that of :class:`Budget`. What finds no room is not stored.
    """

    def __init__(self, rows: int, budget: int | None, where: str) -> None:
        self._where, self._budget = where, Budget(budget)
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
            most = min(len(self._slots), self._budget.most // each)
            self._columns = [np.empty((most, *column.sizes), column.dtype) for column in outline.columns]
        self._outline = outline

    def _put_columns(self, places: npt.NDArray[np.intp], leaves: Leaves) -> int:
        """Store as many of the rows as there is room for; return how many."""
        assert self._columns is not None
        assert self._outline is not None
        each = max(sum(column.nbytes for column in self._outline.columns), 1)
        room = (self._budget.most - self._budget.used) // each
        count = min(len(places), room, len(self._columns[0]) - self._count)
        if not self._budget.take(count * each):
            return 0
        for column, leaf in zip(self._columns, leaves, strict=True):
            column[self._count : self._count + count] = np.asarray(leaf)[places[:count]]
        return count

    def _put_rows(self, places: npt.NDArray[np.intp], leaves: Leaves) -> int:
        """The same where rows differ in shape."""
        assert self._rows is not None
        for count, place in enumerate(places.tolist()):
            row = [np.array(leaf[place]) for leaf in leaves]
            if not self._budget.take(sum(value.nbytes + OVERHEAD for value in row)):
                return count
            self._rows.append(row)
        return len(places)

    def _announce(self) -> None:
        self._full = True
        warnings.warn(
            f"{self._where} is full: it holds {self._count} of {len(self._slots)} rows in "
            f"{self._budget.used / 1e6:.1f} MB, and the others are computed every time. Give it more memory=..., or a "
            "path to keep them on disk",
            CacheWarning,
            stacklevel=2,
        )
