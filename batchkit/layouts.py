"""Packed rows as the segments that are in them, and where the values of segments go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import SchemaError
from batchkit.sources.stacking import Lease

__all__ = ["INT32", "Layout", "LongSegments", "Packed", "ShortSegments", "layout_of"]

INT32 = np.dtype(np.int32)
_LONG = 48
"""Segments longer than this on average are copied one by one: a call each costs less than an index a value."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Packed rows, as the segments that are in them, end to end.

    Packed row ``p`` has the segments from ``offsets[p]`` to ``offsets[p + 1]``, at least one. Segment ``s`` is of row
    ``rows[s]``, from ``starts[s]`` to ``stops[s, leaf]``: one column, or one for each leaf that has a length of its
    own. All are int64.
    """

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of packed rows."""
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> Packed:
        """Return the packed rows from ``start`` to ``stop``, as views."""
        bounds = self.offsets[start : stop + 1]
        cut = slice(bounds[0], bounds[-1])
        return Packed(bounds - bounds[0], self.rows[cut], self.starts[cut], self.stops[cut])

    def chosen(self, which: npt.NDArray[np.int64]) -> Packed:
        """Return other packed rows, in another order."""
        counts = np.diff(self.offsets)[which]
        offsets = np.zeros(len(which) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        found = np.arange(offsets[-1]) + np.repeat(self.offsets[which] - offsets[:-1], counts)
        return Packed(offsets, self.rows[found], self.starts[found], self.stops[found])

    def of_rows(self, rows: npt.NDArray[np.int64]) -> Packed:
        """Return the same of other rows, given for each segment."""
        return Packed(self.offsets, rows, self.starts, self.stops)

    def needed(self) -> tuple[npt.NDArray[np.int64], Packed]:
        """Return the rows that segments are of, rising, and the same packed rows with their places among those."""
        rows, places = np.unique(self.rows, return_inverse=True)
        return rows, Packed(self.offsets, places.astype(np.int64, copy=False), self.starts, self.stops)

    @staticmethod
    def joined(parts: Sequence[Packed]) -> Packed:
        """Return the packed rows of all parts, at least one of them."""
        ends = np.cumsum([0, *(len(part.rows) for part in parts)])
        offsets = [part.offsets[1:] + end for part, end in zip(parts, ends, strict=False)]
        return Packed(
            np.concatenate([np.zeros(1, np.int64), *offsets]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.stops for part in parts]),
        )


def layout_of(packed: Packed, column: int, length: int) -> Layout:
    """Return where the values of a leaf go in packed rows of ``length``; ``column`` is that of its stops."""
    sizes = packed.stops[:, column] - packed.starts
    long = int(sizes.sum()) > _LONG * len(sizes)
    return (LongSegments if long else ShortSegments)(packed, column, length)


class _Layout:
    """What both ways to copy have in common."""

    def __init__(self, packed: Packed, column: int, length: int) -> None:
        self.length, self._packed, self._column = length, packed, column
        self._sizes = packed.stops[:, column] - packed.starts

    def check(self, lengths: npt.NDArray[np.int64], path: str, ids: Any, after: str) -> None:
        """Make sure that a leaf has the values that segments are of; ``lengths`` are those of each segment's row.

        Raises:
            SchemaError: a row is shorter than it was when it was packed.
        """
        stops = self._packed.stops[:, self._column]
        short = np.flatnonzero(stops > lengths)
        if len(short):
            place = int(short[0])
            row = ids[int(self._packed.rows[place])]
            raise SchemaError(
                f"row {row}: {tree_.leaf_label(path)} is {lengths[place]} long, but it was "
                f"packed as {stops[place]}{after}. Give the same length whenever a row is read"
            )


class LongSegments(_Layout):
    """Segments copied one by one."""

    def __init__(self, packed: Packed, column: int, length: int) -> None:
        super().__init__(packed, column, length)
        sizes, firsts = self._sizes, packed.offsets[:-1]
        before = np.cumsum(sizes) - sizes
        rows = np.arange(len(packed)) * length
        counts = np.diff(packed.offsets)
        begins = before + np.repeat(rows - before[firsts], counts)
        self._begins, self._ends = begins.tolist(), (begins + sizes).tolist()
        self._numbers = (np.arange(1, len(sizes) + 1) - np.repeat(firsts, counts)).tolist()
        tails = rows + np.add.reduceat(sizes, firsts)
        self._tails = [
            (tail, end) for tail, end in zip(tails.tolist(), (rows + length).tolist(), strict=True) if tail < end
        ]

    def segment_ids(self, lease: Lease, name: str) -> npt.NDArray[Any]:
        """Return the number of the segment at every place, from 1 in each packed row; 0 behind them."""
        out = lease((f"{name}segment_ids", "packed"), len(self._packed), INT32, (self.length,))
        flat = out.reshape(-1)
        for begin, end, number in zip(self._begins, self._ends, self._numbers, strict=True):
            flat[begin:end] = number
        return self._ended(out, flat, 0)

    def positions(self, lease: Lease, name: str) -> npt.NDArray[Any]:
        """Return the place within its segment of every place; 0 behind them."""
        out = lease((f"{name}positions", "packed"), len(self._packed), INT32, (self.length,))
        flat, places = out.reshape(-1), np.arange(self.length, dtype=np.int32)
        for begin, end in zip(self._begins, self._ends, strict=True):
            flat[begin:end] = places[: end - begin]
        return self._ended(out, flat, 0)

    def fill(self, values: npt.NDArray[Any], begins: npt.NDArray[np.int64], out: npt.NDArray[Any], fill: Any) -> None:
        """Write the values, of which those of each segment's row begin at ``begins``, and ``fill`` behind them."""
        flat = out.reshape(len(self._packed) * self.length, *out.shape[2:])
        for begin, end, start in zip(self._begins, self._ends, (begins + self._packed.starts).tolist(), strict=True):
            flat[begin:end] = values[start : start + end - begin]
        self._ended(out, flat, fill)

    def _ended(self, out: npt.NDArray[Any], flat: npt.NDArray[Any], fill: Any) -> npt.NDArray[Any]:
        for tail, end in self._tails:
            flat[tail:end] = fill
        return out


class ShortSegments(_Layout):
    """Segments copied value by value: runs that cover all places, in order.

    Each packed row has a run for every segment, and one of what is left behind them, which may be empty.
    """

    def __init__(self, packed: Packed, column: int, length: int) -> None:
        super().__init__(packed, column, length)
        counts, rows = np.diff(packed.offsets), len(packed)
        tails = packed.offsets[1:] + np.arange(rows)
        self._inner = np.ones(len(packed.rows) + rows, bool)
        self._inner[tails] = False
        sizes = self._sizes
        self._runs = np.zeros(len(self._inner), np.int64)
        self._runs[self._inner] = sizes
        used = np.add.reduceat(sizes, packed.offsets[:-1]) if rows else np.zeros(0, np.int64)
        self._runs[tails] = length - used
        self._numbers = np.zeros(len(self._inner), np.int32)
        self._numbers[self._inner] = np.arange(1, len(sizes) + 1) - np.repeat(packed.offsets[:-1], counts)
        self._begins = np.cumsum(self._runs) - self._runs
        self._flat_ids = np.repeat(self._numbers, self._runs)
        self._empty = np.flatnonzero(self._flat_ids == 0)
        self._read: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def segment_ids(self, lease: Lease, name: str) -> npt.NDArray[Any]:
        """Return the number of the segment at every place, from 1 in each packed row; 0 behind them."""
        out = lease((f"{name}segment_ids", "packed"), len(self._packed), INT32, (self.length,))
        out[...] = self._flat_ids.reshape(out.shape)
        return out

    def positions(self, lease: Lease, name: str) -> npt.NDArray[Any]:
        """Return the place within its segment of every place; 0 behind them."""
        out = lease((f"{name}positions", "packed"), len(self._packed), INT32, (self.length,))
        flat = out.reshape(-1)
        dtype = np.int32 if out.size < 2**31 else np.int64  # half the bytes
        places, begins = np.arange(out.size, dtype=dtype), self._begins.astype(dtype)
        np.subtract(places, np.repeat(begins, self._runs), out=flat, casting="same_kind")
        flat[self._empty] = 0
        return out

    def fill(self, values: npt.NDArray[Any], begins: npt.NDArray[np.int64], out: npt.NDArray[Any], fill: Any) -> None:
        """Write the values, of which those of each segment's row begin at ``begins``, and ``fill`` behind them."""
        if len(self._empty) == len(self._flat_ids):
            out[...] = fill
            return
        places = self._places(begins)
        flat = out.reshape(len(self._flat_ids), *out.shape[2:])
        if values.dtype == out.dtype:
            values.take(places, axis=0, out=flat, mode="clip")
        else:
            flat[...] = values.take(places, axis=0, mode="clip")
        flat[self._empty] = fill

    def _places(self, begins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where the value of every place comes from; leaves that begin alike share that."""
        if self._read is None or not np.array_equal(self._read[0], begins):
            shift = np.zeros(len(self._runs), np.int64)
            shift[self._inner] = begins + self._packed.starts - self._begins[self._inner]
            places = np.repeat(shift, self._runs)
            places += np.arange(len(places))
            self._read = begins, places
        return self._read[1]


Layout: TypeAlias = "LongSegments | ShortSegments"
