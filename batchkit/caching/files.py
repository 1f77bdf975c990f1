"""The files of one cache: ``.npy`` columns that are written in place, and an index that certifies each row.

A row is there if the index has a mark for it, and the mark is the checksum of its position and its values. What
was written half, cut off or changed therefore is not there, whatever happened to the files.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.caching.outline import Lease, Leaves, Outline, Taken

__all__ = ["INDEX", "Files", "file_names"]

INDEX = "index.npy"
_MARK = 1 << 32
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_DIGITS = 20  # room in a header for a number of rows that grows
_SIZE = np.dtype("<i8")


class Files:
    """The files in one folder. Reading may be done by several threads and processes, writing by one.

    ``rows`` is how many there is room for; where it is ``None``, the files grow as rows are put behind the last.
    """

    def __init__(self, folder: Path, rows: int | None, outline: Outline) -> None:
        self.outline, self.rows, self._folder = outline, rows, folder
        self._names = [folder / name for name in file_names(outline)]
        self._starts: list[int | None] = []  # where in an entry of the index a column that varies has its place
        width = 1
        for column in outline.columns:
            self._starts.append(width if column.varies else None)
            width += 1 + len(column.shape) if column.varies else 0
        self._width = width
        self._verified = np.zeros(rows or 0, np.bool_)
        self._descriptors: dict[Path, int] = {}
        self._finalizer = weakref.finalize(self, _close_all, self._descriptors)
        self._opened: dict[Path, tuple[int, int]] = {}
        self._index: npt.NDArray[np.int64] | None = None
        self._maps: list[npt.NDArray[Any]] = []
        self._lock = threading.Lock()

    # -- making and mending

    def make(self) -> None:
        """Make the files, or bring those that are there into the size and form that they must have.

        Raises:
            OSError: that is not possible.
        """
        _mend(self._folder / INDEX, _SIZE, (self._width,), self.rows)
        for column, path in zip(self.outline.columns, self._names, strict=True):
            sides = () if column.varies else column.sizes
            _mend(path, _stored_as(column.dtype), sides, None if column.varies else self.rows)

    def sound(self) -> bool:
        """Say whether every file has the size and form that it must have; :meth:`make` mends them."""
        if not _is_sound(self._folder / INDEX, _SIZE, (self._width,), self.rows):
            return False
        return all(
            _is_sound(
                path,
                _stored_as(column.dtype),
                () if column.varies else column.sizes,
                None if column.varies else self.rows,
            )
            for column, path in zip(self.outline.columns, self._names, strict=True)
        )

    def open(self) -> None:
        """Map the files, which must be sound.

        Raises:
            OSError: one cannot be read.
        """
        self._maps = [self._map(number) for number in range(len(self._names))]
        self._map_index()

    def _mapped(
        self, path: Path, dtype: np.dtype[Any], sides: tuple[int, ...], rows: int | None, otherwise: int = 0
    ) -> npt.NDArray[Any]:
        """Map a file: ``rows`` of it, or as many as it has by its size, or ``otherwise`` where they take no room.

        Raises:
            OSError: it cannot be read, or is not the one that was mapped before, which has been replaced.
        """
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if self._opened.setdefault(path, (status.st_dev, status.st_ino)) != (status.st_dev, status.st_ino):
                raise FileNotFoundError(f"{path} was replaced")
            each, head = _row_size(dtype, sides), _header_size(dtype, sides)
            if rows is None:
                rows = max(status.st_size - head, 0) // each if each else otherwise
            if not each or not rows:
                return np.empty((rows, *sides), dtype)
            return np.memmap(file, dtype, "r", head, (rows, *sides)).view(np.ndarray)

    def _map_index(self) -> None:
        path, sides = self._folder / INDEX, (self._width,)
        if self._index is None or _held(path, _SIZE, sides, 0) > len(self._index):
            index = self._mapped(path, _SIZE, sides, self.rows)
            rows = len(index)
            more = rows - len(self._verified)
            if more > 0:
                self._verified = np.concatenate([self._verified, np.zeros(more, np.bool_)])
            self._index = index

    def _map(self, number: int) -> npt.NDArray[Any]:
        column, path = self.outline.columns[number], self._names[number]
        dtype, sides = _stored_as(column.dtype), () if column.varies else column.sizes
        rows = None if column.varies else self.rows
        otherwise = _held(self._folder / INDEX, _SIZE, (self._width,), 0)
        return self._mapped(path, dtype, sides, rows, otherwise).view(column.dtype)

    # -- reading

    def marked(self) -> npt.NDArray[np.int64]:
        """Return the positions of the rows that have a mark."""
        assert self._index is not None
        return np.flatnonzero(self._index[:, 0])

    def there(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which rows are there and are what was written; each is checked once."""
        assert self._index is not None
        inside = self._inside(positions)
        if not inside.all():
            there = np.zeros(len(positions), np.bool_)
            there[inside] = self.there(positions[inside])
            return there
        there = self._verified[positions]
        if there.all():
            return there
        open_ones = np.flatnonzero(~there)
        marks = self._index[positions[open_ones], 0]
        open_ones = open_ones[marks >> 32 == 1]
        for start in range(0, len(open_ones), 256):
            places = open_ones[start : start + 256]
            places = places[self._within(positions[places])]
            if not len(places):
                continue
            chosen = positions[places]
            sums = _sums(chosen, self.outline, self._values(chosen, None))
            right = self._index[chosen, 0] == sums
            there[places] = right
            self._verified[chosen[right]] = True
        return there

    def _inside(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for which rows the index has room; where files grow, others may have put more there meanwhile."""
        if self.rows is not None:
            return np.ones(len(positions), np.bool_)
        inside: npt.NDArray[np.bool_] = positions < len(self._verified)
        if not inside.all():
            with self._lock, contextlib.suppress(OSError):  # of a cache that was cleared there will be no more
                self._map_index()
            inside = positions < len(self._verified)
        return inside

    def _within(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for which rows the index names places that there are."""
        assert self._index is not None
        entries = self._index[positions]
        good = np.ones(len(positions), np.bool_)
        for number, column in enumerate(self.outline.columns):
            start = self._starts[number]
            if start is None:
                good &= positions < len(self._reaching(number, int(positions.max(initial=-1)) + 1))
                continue
            sizes = entries[:, start + 1 : start + 1 + len(column.shape)]
            sane = (sizes >= 0).all(axis=1) & (entries[:, start] >= 0)
            # Multiplied as floats: sizes that were damaged must not overflow into some that look right.
            ends = entries[:, start] + sizes.astype(np.float64).prod(axis=1)
            good &= sane & (ends <= len(self._reaching(number, ends[sane].max(initial=0))))
            for axis, side in enumerate(column.shape):
                good &= (sizes[:, axis] == side) if side is not None else True
        return good

    def _reaching(self, number: int, end: float) -> npt.NDArray[Any]:
        """Return the values of a column, up to ``end`` if there are so many: others may have written more meanwhile."""
        if end > len(self._maps[number]):
            with self._lock, contextlib.suppress(OSError):
                self._maps[number] = self._map(number)
        return self._maps[number]

    def _values(self, positions: npt.NDArray[np.int64], lease: Lease | None) -> Leaves:
        """Return the values of rows, in new memory, or views where a row has its own array and there is no lease."""
        assert self._index is not None
        leaves: Leaves = []
        for number, column in enumerate(self.outline.columns):
            start = self._starts[number]
            if start is None:
                mapped, shape = self._reaching(number, int(positions.max(initial=-1)) + 1), column.sizes
                out = lease(number, len(positions), column.dtype, shape) if lease is not None else None
                leaves.append(mapped.take(positions, 0, out, "clip"))
                continue
            entries = self._index[positions, start : start + 1 + len(column.shape)]
            mapped = self._reaching(number, int((entries[:, 0] + entries[:, 1:].prod(axis=1)).max(initial=0)))
            rows = []
            for first, *sizes in entries.tolist():
                row = mapped[first : first + int(np.prod(sizes, dtype=np.int64))].reshape(sizes)
                rows.append(row if lease is None else np.array(row))
            leaves.append(rows)
        return leaves

    def take(self, positions: npt.NDArray[np.int64], lease: Lease) -> Taken:
        """Return what is there of some rows."""
        there = self.there(positions)
        if not there.any():
            return Taken(there, [], None)
        chosen = positions if there.all() else positions[there]
        return Taken(there, self._values(chosen, lease), self.outline)

    # -- writing, by one at a time

    def put(self, positions: npt.NDArray[np.int64], leaves: Leaves) -> None:
        """Write rows that are not there yet.

        Raises:
            OSError: the disk is full, or something of the kind.
        """
        unique, firsts = np.unique(positions, return_index=True)
        lacking = ~self.there(unique)
        positions, firsts = unique[lacking], firsts[lacking]
        if not len(positions):
            return
        chosen: Leaves = [
            leaf[firsts] if isinstance(leaf, np.ndarray) else [leaf[place] for place in firsts.tolist()]
            for leaf in leaves
        ]
        entries = np.zeros((len(positions), self._width), _SIZE)
        for number, column in enumerate(self.outline.columns):
            start = self._starts[number]
            if start is not None:
                chosen[number] = rows = [np.ascontiguousarray(row, column.dtype) for row in chosen[number]]
                entries[:, start : start + 1 + len(column.shape)] = self._appended(number, rows)
            else:
                chosen[number] = whole = np.ascontiguousarray(chosen[number], column.dtype)
                self._placed(self._names[number], _stored_as(column.dtype), column.sizes, positions, whole)
        entries[:, 0] = _sums(positions, self.outline, chosen)
        # Behind the values: a row that has a mark without them fails its checksum.
        self._placed(self._folder / INDEX, _SIZE, (self._width,), positions, entries)
        self._inside(positions)
        self._verified[positions] = True

    def _appended(self, number: int, rows: list[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
        """Write values behind those that are there; return where each row's begin, and its shape."""
        path, dtype = self._names[number], _stored_as(self.outline.columns[number].dtype)
        head = _header_size(dtype, ())
        descriptor = self._descriptor(path)
        first = -(-max(os.fstat(descriptor).st_size - head, 0) // dtype.itemsize)
        places = np.array([[0, *row.shape] for row in rows], np.int64)
        counts = [row.size for row in rows]
        places[:, 0] = first + np.cumsum([0, *counts[:-1]])
        _write(descriptor, head + first * dtype.itemsize, b"".join(_bytes(row) for row in rows))
        _write(descriptor, 0, _header(dtype, (), first + sum(counts)))
        return places

    def _placed(
        self,
        path: Path,
        dtype: np.dtype[Any],
        sides: tuple[int, ...],
        positions: npt.NDArray[np.int64],
        values: npt.NDArray[Any],
    ) -> None:
        """Write values at their positions, which rise; those that follow each other in one piece."""
        each, end = values[:1].nbytes, int(positions[-1]) + 1
        descriptor, head = self._descriptor(path), _header_size(dtype, sides)
        if each:
            breaks = np.flatnonzero(np.diff(positions) != 1) + 1
            for part in np.split(np.arange(len(positions)), breaks):
                piece = values[part[0] : part[-1] + 1]
                _write(descriptor, head + int(positions[part[0]]) * each, _bytes(piece))
        if self.rows is None:
            _write(descriptor, 0, _header(dtype, sides, _held(path, dtype, sides, end)))

    def _descriptor(self, path: Path) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._descriptors[path] = os.open(path, os.O_RDWR | _BINARY)
        return descriptor

    def close(self) -> None:
        """Close what writing has opened; rows can still be read."""
        self._finalizer()


def file_names(outline: Outline) -> list[str]:
    """Return the name of every column's file: that of the leaf, made fit for a file system."""
    names: list[str] = []
    for column in outline.columns:
        plain = "".join(sign if sign.isalnum() or sign in "-_" else "." for sign in column.name)[:80].strip(".")
        name, number = plain or "values", 1
        while name.lower() in {*(other.lower() for other in names), "index", "manifest"}:
            number += 1
            name = f"{plain or 'values'}-{number}"
        names.append(name)
    return [f"{name}.npy" for name in names]


def _sums(positions: npt.NDArray[np.int64], outline: Outline, leaves: Leaves) -> npt.NDArray[np.int64]:
    """Return the mark of every row: CRC-32 of its position, its shapes and its values."""
    count = len(positions)
    parts = [positions.astype("<i8").view(np.uint8).reshape(count, 8)]
    apart: list[list[npt.NDArray[Any]]] = []
    for column, leaf in zip(outline.columns, leaves, strict=True):
        if column.varies:
            apart.append([np.asarray(row) for row in leaf])
        elif column.nbytes:
            whole = np.ascontiguousarray(leaf).view(_stored_as(column.dtype))
            parts.append(whole.reshape(count, -1).view(np.uint8).reshape(count, column.nbytes))
    packed = np.ascontiguousarray(np.concatenate(parts, axis=1))
    sums = [zlib.crc32(row) for row in packed]
    for rows in apart:
        for place, row in enumerate(rows):
            shaped = zlib.crc32(np.array(row.shape, "<i8").tobytes(), sums[place])
            sums[place] = zlib.crc32(_bytes(row), shaped)
    return np.array(sums, np.int64) | _MARK


def _bytes(array: npt.NDArray[Any]) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8) if array.size else b""


def _stored_as(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of a column in its file: unsigned integers for what NumPy's format has no name for."""
    if dtype.names is None and np.dtype(dtype.str) != dtype:
        return np.dtype(f"u{dtype.itemsize}")
    return dtype


def _header(dtype: np.dtype[Any], sides: tuple[int, ...], rows: int) -> bytes:
    """Return a header of version 1.0 of the format (numpy.lib.format) whose size does not depend on ``rows``."""
    descr = np.lib.format.dtype_to_descr(dtype)
    content = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {(rows, *sides)!r}, }}"
    room = 10 + len(content) - len(str(rows)) + _DIGITS + 1
    size = -(-room // 64) * 64
    padded = content.encode("latin1").ljust(size - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


def _header_size(dtype: np.dtype[Any], sides: tuple[int, ...]) -> int:
    return len(_header(dtype, sides, 0))


def _wanted(dtype: np.dtype[Any], sides: tuple[int, ...], rows: int | None, size: int) -> tuple[bytes, int]:
    """Return the header and the size that a file must have; without ``rows`` its own size decides."""
    head = _header_size(dtype, sides)
    each = _row_size(dtype, sides)
    count = (max(size - head, 0) // each if each else 0) if rows is None else rows
    return _header(dtype, sides, count), head + count * each


def _row_size(dtype: np.dtype[Any], sides: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(sides, dtype=np.int64))


def _held(path: Path, dtype: np.dtype[Any], sides: tuple[int, ...], otherwise: int) -> int:
    """Return how many rows a file that grows has by its size, or ``otherwise`` where rows take no room."""
    each = _row_size(dtype, sides)
    return max(os.path.getsize(path) - _header_size(dtype, sides), 0) // each if each else otherwise


def _is_sound(path: Path, dtype: np.dtype[Any], sides: tuple[int, ...], rows: int | None) -> bool:
    try:
        with open(path, "rb") as file:
            header, size = file.read(_header_size(dtype, sides)), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return False
    if rows is not None:
        return (header, size) == _wanted(dtype, sides, rows, size)
    # Another process may be about to write more behind what the header speaks of.
    found = re.search(rb"'shape': \((\d{1,18}),", header)
    count = 0 if found is None else int(found[1])
    end = _header_size(dtype, sides) + count * _row_size(dtype, sides)
    return found is not None and header == _header(dtype, sides, count) and size >= end


def _mend(path: Path, dtype: np.dtype[Any], sides: tuple[int, ...], rows: int | None) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
    try:
        header, size = _wanted(dtype, sides, rows, os.fstat(descriptor).st_size)
        os.ftruncate(descriptor, size)
        _write(descriptor, 0, header)
    finally:
        os.close(descriptor)


def _write(descriptor: int, offset: int, content: Any) -> None:
    view = memoryview(content)
    while len(view):
        if hasattr(os, "pwrite"):
            done = os.pwrite(descriptor, view, offset)
        else:
            os.lseek(descriptor, offset, os.SEEK_SET)
            done = os.write(descriptor, view)
        view, offset = view[done:], offset + done


def _close_all(descriptors: dict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
