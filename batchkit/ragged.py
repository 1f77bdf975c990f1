"""Columns whose rows differ in length: the values of all rows end to end, and where each row begins."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import SchemaError

__all__ = ["Ragged", "RaggedRows", "checked_offsets", "part", "refuse_ragged", "scattered"]


class Ragged:
    """A column of rows of different lengths; a leaf of a tree, as an array is.

    ``values`` has shape ``(total, *item)``; ``offsets`` is int64 of shape ``(rows + 1,)`` and never falls:
    row ``i`` is ``values[offsets[i]:offsets[i + 1]]``, a view. Both may be read and changed in place; neither is
    copied.

    >>> words = Ragged(np.array([7, 8, 9]), np.array([0, 2, 2, 3]))
    >>> len(words), words[0].tolist(), words.lengths.tolist()
    (3, [7, 8], [2, 0, 1])
    >>> words.take(np.array([2, 0])).padded(3, fill=0).tolist()
    [[9, 0, 0], [7, 8, 0]]
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> None:
        self.values, self.offsets = values, offsets

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        place = range(len(self))[row]
        return self.values[self.offsets[place] : self.offsets[place + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        for start, stop in itertools.pairwise(self.offsets.tolist()):
            yield self.values[start:stop]

    def __repr__(self) -> str:
        sides = ", ".join(["?", *map(str, self.values.shape[1:])])
        return f"Ragged({len(self)} rows of {self.dtype.name}[{sides}])"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """The number of axes that a padded column would have."""
        return 1 + self.values.ndim

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the column; ``None`` is the length that varies."""
        return (len(self), None, *self.values.shape[1:])

    @property
    def nbytes(self) -> int:
        """The bytes of values and offsets."""
        return self.values.nbytes + self.offsets.nbytes

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The length of every row, int64."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> Ragged:
        """Return other rows, in new memory; no Python is run per row."""
        starts = self.offsets[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.offsets[rows + 1] - starts, out=offsets[1:])
        places = _spread(starts - offsets[:-1], offsets)
        return Ragged(self.values.take(places, axis=0, mode="clip"), offsets)

    def part(self, start: int, stop: int) -> Ragged:
        """Return the rows from ``start`` to ``stop``, as views."""
        bounds = self.offsets[start : stop + 1]
        return Ragged(self.values[bounds[0] : bounds[-1]], bounds - bounds[0])

    def padded(self, length: int, fill: Any = 0, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return shape ``(rows, length, *item)``: every row, and ``fill`` behind it; none may be longer."""
        shape = (len(self), length, *self.values.shape[1:])
        target = np.empty(shape, self.dtype) if out is None else out
        target[...] = fill
        flat = target.reshape(len(self) * length, *self.values.shape[1:])
        shift = np.arange(len(self), dtype=np.int64) * length - self.offsets[:-1]
        flat[_spread(shift, self.offsets)] = self.values[self.offsets[0] : self.offsets[-1]]
        return target


_LONG = 48
"""Rows that are longer than this on average are copied one by one: a call each costs less than an index each value."""


class RaggedRows:
    """Rows of a ragged column that were chosen and not copied yet; what ``padded_batch`` copies once.

    Row ``i`` is ``values[starts[i]:starts[i] + lengths[i]]``.
    """

    __slots__ = ("lengths", "starts", "values")

    def __init__(self, column: Ragged, rows: npt.NDArray[np.int64]) -> None:
        self.values, self.starts = column.values, column.offsets[rows]
        self.lengths: npt.NDArray[np.int64] = column.offsets[rows + 1] - self.starts

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.starts)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            yield self.values[start : start + length]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.values.dtype

    def part(self, start: int, stop: int) -> RaggedRows:
        """Return the rows from ``start`` to ``stop``."""
        made = object.__new__(RaggedRows)
        made.values, made.starts, made.lengths = self.values, self.starts[start:stop], self.lengths[start:stop]
        return made

    def padded(self, length: int, fill: Any = 0, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return shape ``(rows, length, *item)``: every row, and ``fill`` behind it; none may be longer."""
        values, rows = self.values, len(self)
        shape = (rows, length, *values.shape[1:])
        target = np.empty(shape, self.dtype) if out is None else out
        if len(values) < length or int(self.lengths.sum()) > _LONG * rows:
            target[...] = fill
            ends = (self.starts + self.lengths).tolist()
            for row, start, end in zip(target, self.starts.tolist(), ends, strict=True):
                row[: end - start] = values[start:end]
            return target
        # Every row with what follows it, as one stretch of memory each; then what is not its own is filled.
        stride, last = values.strides[0], len(values) - length
        windows = np.ndarray((last + 1, *shape[1:]), self.dtype, values, 0, (stride, *values.strides))
        target[...] = windows[np.minimum(self.starts, last)]
        for place in np.flatnonzero(self.starts > last).tolist():  # at the very end of the values
            start = int(self.starts[place])
            target[place, : len(values) - start] = values[start:]
        behind = np.arange(length) >= self.lengths[:, None]
        np.copyto(target, fill, where=behind.reshape(rows, length, *[1] * (target.ndim - 2)))
        return target


def part(leaf: Any, start: int, stop: int) -> Any:
    """Return the rows of a column from ``start`` to ``stop``."""
    return leaf.part(start, stop) if isinstance(leaf, (Ragged, RaggedRows)) else leaf[start:stop]


def scattered(parts: Sequence[tuple[npt.NDArray[np.int64], Ragged]], count: int) -> Ragged:
    """Return ``count`` rows put together from columns of one dtype and item shape, each with the places of its rows.

    >>> one, two = Ragged(np.array([1, 2, 3]), np.array([0, 2, 3])), Ragged(np.array([9]), np.array([0, 1]))
    >>> [row.tolist() for row in scattered([(np.array([0, 2]), one), (np.array([1]), two)], 3)]
    [[1, 2], [9], [3]]
    """
    offsets = np.zeros(count + 1, np.int64)
    for places, column in parts:
        offsets[places + 1] = column.lengths
    np.cumsum(offsets, out=offsets)
    first = parts[0][1].values
    values = np.empty((int(offsets[-1]), *first.shape[1:]), first.dtype)
    for places, column in parts:
        at = _spread(offsets[places] - column.offsets[:-1], column.offsets)
        values[at] = column.values[column.offsets[0] : column.offsets[-1]]
    return Ragged(values, offsets)


def refuse_ragged(columns: Any, who: str) -> None:
    """Make sure that no leaf is ragged.

    Raises:
        SchemaError: one is; names it, ``who`` cannot take it, and the mend.
    """
    leaves, treedef = tree_.flatten(columns)
    for leaf, path in zip(leaves, tree_.paths(treedef), strict=True):
        if isinstance(leaf, Ragged):
            raise SchemaError(
                f"{tree_.leaf_label(path)} has rows of different lengths, which {who} cannot put into an array: use "
                "padded_batch(), or bring the rows to one length in a map()"
            )


def _spread(shift: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return ``place + shift[row]`` for every place of every row."""
    lengths = np.diff(offsets)
    return np.arange(offsets[0], offsets[-1], dtype=np.int64) + np.repeat(shift, lengths)


def checked_offsets(offsets: Any, total: int, where: str) -> npt.NDArray[np.int64]:
    """Return ``offsets`` as int64, after checking that they cut ``total`` values into rows.

    Raises:
        SchemaError: they are no vector of integers, do not begin at 0 or end at ``total``, or fall.
    """
    array = np.asarray(offsets)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise SchemaError(
            f"{where}: offsets must be a vector of integers with one entry more than there are rows, "
            f"not {array.dtype.name}{list(array.shape)}"
        )
    array = array.astype(np.int64, copy=False)
    if array[0] != 0 or array[-1] != total:
        raise SchemaError(
            f"{where}: offsets go from {array[0]} to {array[-1]}, but there are {total} values: they must begin at 0 "
            "and end at the number of values"
        )
    falls = np.flatnonzero(array[1:] < array[:-1])
    if len(falls):
        raise SchemaError(
            f"{where}: offsets fall behind row {falls[0]}, from {array[falls[0]]} to {array[falls[0] + 1]}"
        )
    return array
