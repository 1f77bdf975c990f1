"""One batch in one piece of shared memory: columns written to it, and found again on the other side.

Room in a piece is leased as host slots are: it is free again when nobody refers to a column any
more. So a batch is written over the rows that it was made from, and takes no memory besides theirs.
"""

from __future__ import annotations

import math
import operator
import pickle
from collections.abc import Callable, Sequence
from sys import getrefcount
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.buffers import Slots, aligned_empty
from batchkit.schema import slot_dtype
from batchkit.tree import Tree

__all__ = ["Arena", "ArenaSlots", "Layout", "RemoteBackend", "find", "size_of"]

ALIGNMENT = 64


class Layout(NamedTuple):
    """Where the columns of a tree lie in an arena. A column without an offset is pickled in ``extra``."""

    treedef: tree_.TreeDef
    columns: tuple[tuple[np.dtype[Any], tuple[int, ...], int], ...]
    extra: bytes = b""


class _Lease:
    """Room for one column. Every view of the column keeps ``root`` referenced."""

    __slots__ = ("baseline", "root", "start", "stop")

    def __init__(self, memory: npt.NDArray[np.uint8], start: int, size: int) -> None:
        self.start, self.stop = start, start + _padded(size)
        # Not a slice: NumPy would have its views refer to the whole memory instead.
        self.root = np.frombuffer(memory.data[start : start + size], np.uint8)
        self.baseline = getrefcount(self.root)

    @property
    def free(self) -> bool:
        """Whether nobody refers to the column any more."""
        # Without a GIL a reference that moves from one thread to another can be missed: look twice.
        return getrefcount(self.root) == self.baseline and getrefcount(self.root) == self.baseline


class Arena:
    """Leases room for columns in shared memory."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self._memory = memory
        self._start = memory.__array_interface__["data"][0]
        self._leases: list[_Lease] = []  # in the order of where they lie
        self._laid_out: list[npt.NDArray[Any]] = []

    def place(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
        """Return room for a column; ``None`` if there is none."""
        size = _nbytes(shape, dtype)
        self._leases = [lease for lease in self._leases if not lease.free]
        at = 0
        for lease in self._leases:
            if lease.start - at >= size:
                break
            at = max(at, lease.stop)
        return self._column(shape, dtype, at) if at + size <= self._memory.size else None

    def _column(self, shape: tuple[int, ...], dtype: np.dtype[Any], at: int) -> npt.NDArray[Any]:
        lease = _Lease(self._memory, at, _nbytes(shape, dtype))
        self._leases.append(lease)
        self._leases.sort(key=operator.attrgetter("start"))
        return np.ndarray(shape, dtype, lease.root)

    def offset(self, column: npt.NDArray[Any]) -> int | None:
        """Return where a contiguous column lies; ``None`` if that is elsewhere."""
        at = int(column.__array_interface__["data"][0]) - self._start
        inside = at >= 0 and at + column.nbytes <= self._memory.size
        return at if inside and column.flags.c_contiguous else None

    def handed(self, layout: Layout) -> Tree:
        """Return the tree whose columns the other side has laid out in this memory."""
        return _tree(layout, self._column)

    def layout(self, tree: Tree) -> Layout | None:
        """Return where a tree's columns lie, after writing those to the arena that lie elsewhere.

        ``None`` if they do not fit. What was laid out is never written over.
        """
        leaves, treedef = tree_.flatten(tree)
        columns, extra, laid_out = [], {}, []
        for index, leaf in enumerate(leaves):
            if not _shareable(leaf):
                extra[index] = leaf
                columns.append((np.dtype("V0"), (), -1))
                continue
            at = self.offset(leaf) if leaf.size else 0
            if at is None:
                place = self.place(leaf.shape, leaf.dtype)
                if place is None:
                    return None
                place[...] = leaf
                leaf, at = place, self.offset(place) or 0
            laid_out.append(leaf)
            columns.append((leaf.dtype, leaf.shape, at))
        self._laid_out += laid_out
        return Layout(treedef, tuple(columns), pickle.dumps(extra) if extra else b"")

    def wanted(self, tree: Tree) -> int:
        """Return how large the memory must be for a tree that did not fit, now and in steps like this one."""
        end = max((lease.stop for lease in self._leases if not lease.free), default=0)
        elsewhere = [leaf for leaf in _shared(tree) if leaf.size and self.offset(leaf) is None]
        return max(size_of(tree), end + size_of(tuple(elsewhere)))


def _shareable(leaf: Any) -> bool:
    return type(leaf) is np.ndarray and slot_dtype(leaf.dtype) and leaf.dtype.isnative


def _shared(tree: Tree) -> list[npt.NDArray[Any]]:
    return [leaf for leaf in tree_.flatten(tree)[0] if _shareable(leaf)]


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes of a column; at least one, so that each has a place of its own."""
    return max(math.prod(shape) * dtype.itemsize, 1)


def size_of(tree: Tree) -> int:
    """Return how large an arena must be for a tree's columns."""
    return sum(_padded(_nbytes(leaf.shape, leaf.dtype)) for leaf in _shared(tree))


def find(memory: npt.NDArray[np.uint8], layout: Layout, own: int = 0) -> Tree:
    """Return the tree whose columns lie in ``memory``, as views of it; columns of up to ``own`` bytes as copies."""

    def column(shape: tuple[int, ...], dtype: np.dtype[Any], at: int) -> npt.NDArray[Any]:
        view = np.ndarray(shape, dtype, memory, at)
        return _copied(view) if 0 < view.nbytes <= own else view

    return _tree(layout, column)


def _tree(layout: Layout, column: Callable[[tuple[int, ...], np.dtype[Any], int], npt.NDArray[Any]]) -> Tree:
    extra = pickle.loads(layout.extra) if layout.extra else {}
    leaves = [
        extra[index] if at < 0 else column(shape, dtype, at) for index, (dtype, shape, at) in enumerate(layout.columns)
    ]
    return tree_.unflatten(layout.treedef, leaves)


def _copied(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    own = aligned_empty(column.shape, column.dtype, ALIGNMENT)
    own[...] = column
    return own


class RemoteBackend:
    """What a worker knows of the caller's backend; the framework itself is not imported there."""

    def __init__(self, name: str, alignment: int, widening: str, ask: Callable[[str, Any], Any]) -> None:
        self.name, self.alignment, self.widening, self._ask = name, alignment, widening, ask

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        """Ask the caller what dtype the backend wants."""
        return self._ask(leaf, dtype)  # type: ignore[no-any-return]

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return memory of the worker's own."""
        return aligned_empty(shape, dtype, ALIGNMENT)


class ArenaSlots(Slots):
    """Slots of a worker: the batch's own columns go to the arena at once, all others to recycled memory."""

    def __init__(self, backend: RemoteBackend) -> None:
        super().__init__(backend)
        self.arena: Arena | None = None

    def lessor(
        self, key: Any, dtype: np.dtype[Any], row_shape: tuple[int, ...], final: bool = False
    ) -> Callable[[int], npt.NDArray[Any]]:
        """Return what makes room for a column; where the arena has none, elsewhere for the time being."""
        elsewhere = super().lessor(key, dtype, row_shape)
        if not (final and slot_dtype(dtype) and dtype.isnative):
            return elsewhere

        def place(rows: int) -> npt.NDArray[Any]:
            column = self.arena.place((rows, *row_shape), dtype) if self.arena is not None else None
            # Recycled memory would stay for ever, though the arena will be large enough from the next step on.
            return self.backend.allocate((rows, *row_shape), dtype) if column is None else column

        return place

    def _announce(self, leaf: str, dtype: np.dtype[Any], host: np.dtype[Any]) -> None:
        """Say nothing: the caller, who was asked, has said it."""


def sizes(specs: Sequence[tuple[np.dtype[Any], tuple[int, ...]]], rows: int) -> int:
    """Return how large an arena must be for so many rows of such leaves."""
    return sum(_padded(_nbytes((rows, *shape), dtype)) for dtype, shape in specs)
