"""Rows that come in order, kept as they come: the first of them, up to where a budget, a crash or the end stops it."""

from __future__ import annotations

import bisect
import functools
import math
import threading
import time
import warnings
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from batchkit.caching.disk import DiskStore
from batchkit.caching.memory import OVERHEAD, Budget
from batchkit.caching.outline import Leaf, Leaves, Outline, merged
from batchkit.caching.reached import Reached
from batchkit.errors import CacheWarning

__all__ = ["DiskRuns", "Found", "MemoryRuns", "NoRuns", "Runs"]


class Found(NamedTuple):
    """Rows that were kept, in memory of their own."""

    outline: Outline
    leaves: Leaves


class Runs(Protocol):
    """Rows by number, in the order in which they come. All methods may be called from several threads."""

    @property
    def accepts(self) -> bool:
        """Whether more rows can be kept."""
        ...

    @property
    def reached(self) -> Reached:
        """How far it has got."""
        ...

    def take(self, number: int, most: int) -> Found | None:
        """Return rows from ``number`` on, at least one and at most ``most``; ``None`` where that one is not there."""
        ...

    def append(self, number: int, count: int, outline: Outline, leaves: Leaves, state: Any) -> None:
        """Keep ``count`` rows from ``number`` on, behind which what gives them stood at ``state``.

        Raises:
            SchemaError: they are not like those that are there, or cannot be kept.
            SourceError: nothing can be kept there.
        """
        ...

    def end(self, count: int) -> None:
        """Take note that there are ``count`` rows, and no more."""
        ...

    def note(self) -> None:
        """Write down how far it has got, for other processes."""
        ...


class NoRuns:
    """Keeps nothing, so that every row is computed each time."""

    accepts = False
    reached = Reached()

    def take(self, number: int, most: int) -> Found | None:
        return None

    def append(self, number: int, count: int, outline: Outline, leaves: Leaves, state: Any) -> None:
        """Nothing is kept."""

    def end(self, count: int) -> None:
        """Nothing is kept."""

    def note(self) -> None:
        """Nothing is kept."""


class MemoryRuns:
    """Rows in memory, as long as a budget lasts: see :class:`~batchkit.caching.memory.Budget`."""

    def __init__(self, budget: int | None, where: str, what: str) -> None:
        self._budget, self._where, self._what = Budget(budget), where, what
        self._starts: list[int] = []
        self._runs: list[Found] = []
        self._held = 0
        self._outline: Outline | None = None
        self._reached = Reached()
        self._full = False
        self._lock = threading.Lock()

    @property
    def accepts(self) -> bool:
        """Whether more rows can be kept."""
        return not self._full

    @property
    def reached(self) -> Reached:
        """How far it has got."""
        return self._reached

    def take(self, number: int, most: int) -> Found | None:
        """Return copies of rows."""
        with self._lock:
            if number >= self._held:
                return None
            place = bisect.bisect_right(self._starts, number) - 1
            start, run = self._starts[place], self._runs[place]
        low = number - start
        return Found(run.outline, [_copied(leaf, low, low + most) for leaf in run.leaves])

    def append(self, number: int, count: int, outline: Outline, leaves: Leaves, state: Any) -> None:
        """Keep copies of as many rows as there is room for.

        Raises:
            SchemaError: they are not like those that are there.
        """
        with self._lock:
            low = self._held - number
            if self._full or not 0 <= low < count:
                return
            self._outline = outline if self._outline is None else merged(self._outline, outline)
            sizes = np.stack([_sizes(leaf, low, count) for leaf in leaves]).sum(axis=0)
            high = low
            while high < count and self._budget.take(int(sizes[high - low])):
                high += 1
            if high > low:
                kept = Found(self._outline if outline == self._outline else outline, [])
                kept.leaves.extend(_copied(leaf, low, high) for leaf in leaves)
                self._starts.append(self._held)
                self._runs.append(kept)
                self._held += high - low
            if high == count:
                self._reached = Reached(number + count, state, self._reached.rows)
            else:
                self._full = True
                self._announce()

    def end(self, count: int) -> None:
        """Take note that there are ``count`` rows."""
        with self._lock:
            self._reached = self._reached._replace(rows=count)

    def note(self) -> None:
        """There are no other processes."""

    def _announce(self) -> None:
        warnings.warn(
            f"{self._where} is full: it holds the first {self._held} {self._what} in {self._budget.used / 1e6:.1f} MB, "
            "and those behind are computed every time. Give it more memory=..., or a path to keep them on disk",
            CacheWarning,
            stacklevel=2,
        )


class DiskRuns:
    """Rows on disk, with a note of how far they go, which all processes share.

    Raises:
        SourceError: the folder cannot be made.
    """

    EVERY = 0.5
    """Seconds between two notes: a file that is put in place of another one takes longer to write than rows do."""

    def __init__(self, path: str, key: str, upstream: list[str], where: str) -> None:
        self._store = DiskStore(path, key, None, upstream, where)
        self._mine: Reached | None = None
        self._noted = -math.inf
        self._lock = threading.Lock()

    @property
    def accepts(self) -> bool:
        """Whether more rows can be kept."""
        return self._store.accepts

    @property
    def reached(self) -> Reached:
        """How far it has got, in this process or in another one: where the stages before stand there is as true."""
        noted = self._store.reached
        return noted if self._mine is None else _further(noted, self._mine)

    def take(self, number: int, most: int) -> Found | None:
        """Return rows that are there and are what was written."""
        taken = self._store.take(np.arange(number, number + most), _fresh)
        if taken.outline is None or not taken.there[0]:
            return None
        count = most if taken.there.all() else int(np.argmin(taken.there))
        return Found(taken.outline, [leaf[:count] for leaf in taken.leaves])

    def append(self, number: int, count: int, outline: Outline, leaves: Leaves, state: Any) -> None:
        """Keep rows, and now and then the note; a row that is there already is left as it is.

        Raises:
            SchemaError: they are not like those that are there, or cannot be kept on disk.
            SourceError: there is no cache yet, and none can be made.
        """
        with self._lock:
            now = time.monotonic()
            mine = self._mine
            if mine is None or mine.number < number:  # others have got further
                mine = self.reached
            if number <= mine.number < number + count:
                mine = Reached(number + count, state, mine.rows)
            note = functools.partial(_further, mine=mine) if now - self._noted >= self.EVERY else None
            if self._store.append(np.arange(number, number + count), outline, leaves, note):
                self._mine, self._noted = mine, self._noted if note is None else now

    def end(self, count: int) -> None:
        """Take note that there are ``count`` rows."""
        with self._lock:
            self._mine = (self._mine or Reached())._replace(rows=count)
        self.note()

    def note(self) -> None:
        """Write down how far it has got, for other processes."""
        if self._mine is not None:
            self._store.note(functools.partial(_further, mine=self._mine))


def _further(noted: Reached, mine: Reached) -> Reached:
    """Return what is known from two notes."""
    rows = noted.rows if mine.rows is None else mine.rows
    further = mine if mine.number > noted.number else noted
    return further if further.rows == rows else further._replace(rows=rows)


def _fresh(column: int, rows: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.empty((rows, *shape), dtype)


def _copied(leaf: Leaf, low: int, high: int) -> Leaf:
    return leaf[low:high].copy() if isinstance(leaf, np.ndarray) else [np.array(value) for value in leaf[low:high]]


def _sizes(leaf: Leaf, low: int, high: int) -> npt.NDArray[np.int64]:
    """Return how many bytes each row takes."""
    if isinstance(leaf, np.ndarray):
        return np.full(high - low, leaf[:1].nbytes)
    return np.array([value.nbytes + OVERHEAD for value in leaf[low:high]], np.int64)
