"""Rows of different lengths, held as values end to end."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import SchemaError
from batchkit.ragged import Ragged, RaggedRows, checked_offsets
from batchkit.schema import LeafSpec, as_leaf, native
from batchkit.sources.arrays import ArraySource
from batchkit.sources.mapped import RowsAhead
from batchkit.tree import Tree

__all__ = ["RaggedSource"]


class RaggedSource:
    """A tree of arrays of values, which ``offsets`` cut into rows, and besides a dict of ordinary columns.

    Raises:
        SchemaError: the offsets do not cut the values, or the columns have another number of rows.
    """

    kind = "ragged"
    in_memory = True

    def __init__(self, values: Tree, offsets: Any, columns: Tree | None = None) -> None:
        leaves, self._treedef = tree_.flatten(values)
        paths = tree_.paths(self._treedef)
        if not leaves:
            raise SchemaError("ragged: there is no array in the values. Give at least one")
        arrays = [as_leaf(leaf, f"ragged: {tree_.leaf_label(path)}") for leaf, path in zip(leaves, paths, strict=True)]
        for array, path in zip(arrays, paths, strict=True):
            if array.ndim == 0:
                raise SchemaError(f"ragged: {tree_.leaf_label(path)} is zero-dimensional: give the values of all rows")
            if len(array) != len(arrays[0]):
                raise SchemaError(
                    f"ragged: {tree_.leaf_label(path)} has {len(array)} values, but {tree_.leaf_label(paths[0])} has "
                    f"{len(arrays[0])}. All are cut by the same offsets"
                )
        self.offsets = checked_offsets(offsets, len(arrays[0]), "ragged")
        self._arrays = [np.ascontiguousarray(array.astype(native(array.dtype), copy=False)) for array in arrays]
        self._columns: ArraySource | None = None
        if columns is not None:
            if not isinstance(values, dict) or not isinstance(columns, dict) or set(values) & set(columns):
                raise SchemaError("ragged: values and columns must be dicts without a key in common, to be joined")
            self._columns = joined = ArraySource(columns)
            if len(joined) != len(self):
                raise SchemaError(f"ragged: the columns have {len(joined)} rows, but the offsets make {len(self)}")
        self._fingerprint: str | None = None
        self._ahead: list[RowsAhead] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None}

    def expect(self, rows: npt.NDArray[np.int64]) -> None:
        """Have the system read the values of rows ahead, where they are mapped from a file that memory cannot hold."""
        if self._ahead is None:
            self._ahead = [ahead for ahead in map(RowsAhead.of, self._arrays) if ahead is not None]
        for ahead in self._ahead:
            ahead.ask(self.offsets[rows], self.offsets[rows + 1])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    @property
    def schema(self) -> Tree:
        """The schema of one row: a length that varies, then the shape of an item."""
        specs = [LeafSpec(array.dtype, (None, *array.shape[1:])) for array in self._arrays]
        schema = tree_.unflatten(self._treedef, specs)
        return schema if self._columns is None else {**schema, **self._columns.schema}

    @property
    def held(self) -> Tree:
        """All that the rows are made of: values, offsets, and the other columns."""
        return self._arrays, self.offsets, [] if self._columns is None else self._columns.leaves

    def lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the lengths of rows, without reading their values."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def fingerprint(self) -> str:
        """Return a hash of dtypes, shapes, offsets and sampled values."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=8)
            sample = np.linspace(0, max(len(self.offsets) - 1, 0), 1024).astype(np.int64)
            digest.update(f"{len(self)}|{self._treedef}|".encode())
            digest.update(self.offsets[sample].tobytes())
            if len(self._arrays[0]):
                digest.update(ArraySource(tuple(self._arrays)).fingerprint().encode())
            if self._columns is not None:
                digest.update(self._columns.fingerprint().encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def gather(self, rows: npt.NDArray[np.int64], out: Tree | None = None) -> Tree:
        """Return the columns of rows, :class:`~batchkit.Ragged` for those whose lengths vary."""
        self.expect(rows)
        first = Ragged(self._arrays[0], self.offsets).take(rows)
        taken = [first, *(Ragged(array, self.offsets).take(rows) for array in self._arrays[1:])]
        columns = tree_.unflatten(self._treedef, taken)
        return columns if self._columns is None else {**columns, **self._columns.gather(rows)}

    @property
    def columns(self) -> Tree:
        """All rows as columns; nothing is copied."""
        whole = tree_.unflatten(self._treedef, [Ragged(array, self.offsets) for array in self._arrays])
        beside = self._columns
        return whole if beside is None else {**whole, **tree_.unflatten(beside.treedef, beside.leaves)}

    def views(self, rows: npt.NDArray[np.int64]) -> Tree:
        """Return the same as :meth:`gather` without copying the values: :class:`~batchkit.ragged.RaggedRows`."""
        self.expect(rows)
        taken = [RaggedRows(Ragged(array, self.offsets), rows) for array in self._arrays]
        columns = tree_.unflatten(self._treedef, taken)
        return columns if self._columns is None else {**columns, **self._columns.gather(rows)}

    handed = gather
