"""One batch in one piece of shared memory: columns written to it, and found again on the other side."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
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


class Arena:
    """Writes columns one behind the other into shared memory."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self._memory = memory
        self._start = memory.__array_interface__["data"][0]
        self.used = 0

    def place(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
        """Return room for a column; ``None`` if there is none."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if self.used + size > self._memory.size:
            return None
        column = np.ndarray(shape, dtype, self._memory, self.used)
        self.used += -(-size // ALIGNMENT) * ALIGNMENT
        return column

    def offset(self, column: npt.NDArray[Any]) -> int | None:
        """Return where a contiguous column lies; ``None`` if that is elsewhere."""
        at = int(column.__array_interface__["data"][0]) - self._start
        inside = at >= 0 and at + column.nbytes <= self._memory.size
        return at if inside and column.flags.c_contiguous else None

    def layout(self, tree: Tree) -> Layout | None:
        """Return where a tree's columns lie, after writing those to the arena that lie elsewhere.

        ``None`` if they do not fit.
        """
        leaves, treedef = tree_.flatten(tree)
        columns, extra = [], {}
        for index, leaf in enumerate(leaves):
            if not _shareable(leaf):
                extra[index] = leaf
                columns.append((np.dtype("V0"), (), -1))
                continue
            at = self.offset(leaf)
            if at is None or (leaf.size == 0):
                place = self.place(leaf.shape, leaf.dtype)
                if place is None:
                    return None
                place[...] = leaf
                at = self.offset(place) or 0
            columns.append((leaf.dtype, leaf.shape, at))
        return Layout(treedef, tuple(columns), pickle.dumps(extra) if extra else b"")


def _shareable(leaf: Any) -> bool:
    return type(leaf) is np.ndarray and slot_dtype(leaf.dtype) and leaf.dtype.isnative


def size_of(tree: Tree) -> int:
    """Return how large an arena must be for a tree's columns."""
    shared = [leaf for leaf in tree_.flatten(tree)[0] if _shareable(leaf)]
    return sum(-(-leaf.nbytes // ALIGNMENT) * ALIGNMENT for leaf in shared)


def find(memory: npt.NDArray[np.uint8], layout: Layout, own: int = 0) -> Tree:
    """Return the tree whose columns lie in ``memory``, as views of it; columns of up to ``own`` bytes as copies."""
    extra = pickle.loads(layout.extra) if layout.extra else {}
    leaves = [
        extra[index] if at < 0 else np.ndarray(shape, dtype, memory, at)
        for index, (dtype, shape, at) in enumerate(layout.columns)
    ]
    if own:
        leaves = [
            _copied(leaf) if layout.columns[i][2] >= 0 and leaf.nbytes <= own else leaf for i, leaf in enumerate(leaves)
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
            return elsewhere(rows) if column is None else column

        return place

    def _announce(self, leaf: str, dtype: np.dtype[Any], host: np.dtype[Any]) -> None:
        """Say nothing: the caller, who was asked, has said it."""


def sizes(specs: Sequence[tuple[np.dtype[Any], tuple[int, ...]]], rows: int) -> int:
    """Return how large an arena must be for so many rows of such leaves."""
    each = (int(np.prod(shape, dtype=np.int64)) * dtype.itemsize * rows for dtype, shape in specs)
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in each)
