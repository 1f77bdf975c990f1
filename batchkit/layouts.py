"""Packed rows as the segments that are in them, and where the values of segments go."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import SchemaError
from batchkit.sources.stacking import Lease

__all__ = ["INT32", "Layout", "Packed", "Runs"]

INT32 = np.dtype(np.int32)
_LONG = 256
"""Where segments are longer than this on average, they are copied one by one: a call each costs less than an index a
value."""


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
    origin: tuple[Packed, int, dict[int, Runs]] | None = field(default=None, repr=False, compare=False)
    """The packed rows that these were made together with, their place there, and what was worked out for all."""

    def __len__(self) -> int:
        """Return the number of packed rows."""
        return len(self.offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Have only what makes these packed rows sent to other processes."""
        return Packed, (self.offsets, self.rows, self.starts, self.stops)

    def together(self) -> Packed:
        """Return the same packed rows, of which parts share what can be worked out for all at once."""
        return dataclasses.replace(self, origin=(self, 0, {}))

    def part(self, start: int, stop: int) -> Packed:
        """Return the packed rows from ``start`` to ``stop``, as views."""
        bounds = self.offsets[start : stop + 1]
        cut = slice(bounds[0], bounds[-1])
        origin = None
        if self.origin is not None:
            whole, first, runs = self.origin
            origin = (whole, first + start, runs)
        return Packed(bounds - bounds[0], self.rows[cut], self.starts[cut], self.stops[cut], origin)

    def chosen(self, which: npt.NDArray[np.int64]) -> Packed:
        """Return other packed rows, in another order."""
        counts = np.diff(self.offsets)[which]
        offsets = np.zeros(len(which) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        found = np.arange(offsets[-1]) + np.repeat(self.offsets[which] - offsets[:-1], counts)
        return Packed(offsets, self.rows[found], self.starts[found], self.stops[found])

    def of_rows(self, rows: npt.NDArray[np.int64]) -> Packed:
        """Return the same of other rows, given for each segment."""
        return Packed(self.offsets, rows, self.starts, self.stops, self.origin)

    def needed(self) -> tuple[npt.NDArray[np.int64], Packed]:
        """Return the rows that segments are of, rising, and the same packed rows with their places among those."""
        rows, places = np.unique(self.rows, return_inverse=True)
        return rows, self.of_rows(places.astype(np.int64, copy=False))

    def runs(self, column: int, length: int) -> Runs:
        """Return the runs that packed rows of ``length`` are made of; ``column`` is that of the leaf's stops."""
        if self.origin is None:
            return Runs.of(self, column, length)
        whole, first, known = self.origin
        if column not in known:
            known[column] = Runs.of(whole, column, length)
        start, stop = int(whole.offsets[first]), int(whole.offsets[first + len(self)])
        return known[column].part(first, len(self), start, stop)

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


class Runs(NamedTuple):
    """Runs that cover all places of packed rows, in order.

    Each packed row has one for every segment, and one of what is left behind them, which may be empty.
    """

    segments: npt.NDArray[np.int64]
    """Which of the runs are those of segments."""
    tails: npt.NDArray[np.int64]
    """Which are left behind them."""
    sizes: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    """Where each begins, counted over all packed rows."""
    within: npt.NDArray[np.int32]
    """Where each begins in its packed row."""
    numbers: npt.NDArray[np.int32]
    """The number of the segment in its packed row, from 1; 0 for what is left."""

    @staticmethod
    def of(packed: Packed, column: int, length: int) -> Runs:
        """Return those of packed rows."""
        firsts, rows = packed.offsets[:-1], np.arange(len(packed))
        owners, places = rows.repeat(np.diff(packed.offsets)), np.arange(len(packed.rows))
        segments, tails = places + owners, packed.offsets[1:] + rows
        sizes = np.empty(len(places) + len(rows), np.int64)
        sizes[segments] = lengths = packed.stops[:, column] - packed.starts
        sizes[tails] = length - (np.add.reduceat(lengths, firsts) if len(rows) else 0)
        begins = sizes.cumsum() - sizes
        numbers = np.zeros(len(sizes), np.int32)
        numbers[segments] = places - firsts[owners] + 1
        return Runs(segments, tails, sizes, begins, (begins % length).astype(np.int32), numbers)

    def part(self, first: int, rows: int, start: int, stop: int) -> Runs:
        """Return those of some packed rows from ``first`` on, which have the segments from ``start`` to ``stop``."""
        begin, end = start + first, stop + first + rows
        begins = self.begins[begin:end]
        return Runs(
            self.segments[start:stop] - begin,
            self.tails[first : first + rows] - begin,
            self.sizes[begin:end],
            begins - begins[:1],
            self.within[begin:end],
            self.numbers[begin:end],
        )


class Layout:
    """Where the values of a leaf go in packed rows of ``length``; ``column`` is that of its stops."""

    def __init__(self, packed: Packed, column: int, length: int) -> None:
        self.length, self._packed = length, packed
        self._stops = packed.stops[:, column]
        self._runs = packed.runs(column, length)
        self._ids = self._runs.numbers.repeat(self._runs.sizes)
        self._empty = np.flatnonzero(self._ids == 0)
        self._read: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def check(self, lengths: npt.NDArray[np.int64], path: str, ids: Any, after: str) -> None:
        """Make sure that a leaf has the values that segments are of; ``lengths`` are those of each segment's row.

        Raises:
            SchemaError: a row is shorter than it was when it was packed.
        """
        short = self._stops > lengths
        if short.any():
            place = int(short.argmax())
            row = ids[int(self._packed.rows[place])]
            raise SchemaError(
                f"row {row}: {tree_.leaf_label(path)} is {lengths[place]} long, but it was "
                f"packed as {self._stops[place]}{after}. Give the same length whenever a row is read"
            )

    def segment_ids(self, lease: Lease, name: str) -> npt.NDArray[Any]:
        """Return the number of the segment at every place, from 1 in each packed row; 0 behind them."""
        out = lease((f"{name}segment_ids", "packed"), len(self._packed), INT32, (self.length,))
        out[...] = self._ids.reshape(out.shape)
        return out

    def positions(self, lease: Lease, name: str) -> npt.NDArray[Any]:
        """Return the place within its segment of every place; 0 behind them."""
        out = lease((f"{name}positions", "packed"), len(self._packed), INT32, (self.length,))
        begins = self._runs.within.repeat(self._runs.sizes)
        np.subtract(np.arange(self.length, dtype=np.int32), begins.reshape(out.shape), out=out)
        out.reshape(-1)[self._empty] = 0
        return out

    def fill(self, values: npt.NDArray[Any], begins: npt.NDArray[np.int64], out: npt.NDArray[Any], fill: Any) -> None:
        """Write the values, of which those of each segment's row begin at ``begins``, and ``fill`` behind them."""
        flat = out.reshape(len(self._ids), *out.shape[2:])
        if len(self._empty) == len(self._ids):
            flat[...] = fill
        elif len(self._ids) > _LONG * len(self._runs.segments):
            self._put_together(values, begins, flat, fill)
        else:
            places = self._places(begins)
            if values.dtype == out.dtype:
                values.take(places, axis=0, out=flat, mode="clip")
            else:
                flat[...] = values.take(places, axis=0, mode="clip")
            flat[self._empty] = fill

    def _put_together(
        self, values: npt.NDArray[Any], begins: npt.NDArray[np.int64], flat: npt.NDArray[Any], fill: Any
    ) -> None:
        """Write the values segment by segment."""
        runs, starts = self._runs, begins + self._packed.starts
        ends = starts + runs.sizes[runs.segments]
        left = runs.sizes[runs.tails]
        filled = np.full((left.max(), *flat.shape[1:]), fill, flat.dtype)
        parts = [filled] * len(runs.sizes)
        for run, start, end in zip(runs.segments.tolist(), starts.tolist(), ends.tolist(), strict=True):
            parts[run] = values[start:end]
        for run, size in zip(runs.tails.tolist(), left.tolist(), strict=True):
            parts[run] = filled[:size]
        np.concatenate(parts, out=flat)

    def _places(self, begins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where the value of every place comes from; leaves that begin alike share that."""
        if self._read is None or not np.array_equal(self._read[0], begins):
            runs = self._runs
            shift = np.zeros(len(runs.sizes), np.int64)
            shift[runs.segments] = begins + self._packed.starts - runs.begins[runs.segments]
            places = shift.repeat(runs.sizes)
            places += np.arange(len(places))
            self._read = begins, places
        return self._read[1]
