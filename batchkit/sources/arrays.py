"""Arrays in memory, or mapped into it from files."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import SchemaError
from batchkit.schema import LeafSpec, as_leaf, native
from batchkit.sources.mapped import RowsAhead
from batchkit.tree import Tree

__all__ = ["ArraySource"]

_SAMPLED_ROWS = 64
_SAMPLED_BYTES = 1 << 22


class ArraySource:
    """A tree of arrays with one leading axis; nothing is copied when it is made.

    Raises:
        SchemaError: no leaf, a zero-dimensional one, leaves of different lengths, or objects.
    """

    kind = "arrays"
    in_memory = True
    """Whether a worker process would have to be sent the data themselves."""

    def __init__(self, tree: Tree) -> None:
        leaves, self.treedef = tree_.flatten(tree)
        self.paths = tree_.paths(self.treedef)
        if not leaves:
            raise SchemaError(f"{self.kind}: there is no array in {tree!r}. Give at least one")
        self.leaves = [self._plain(leaf, path) for leaf, path in zip(leaves, self.paths, strict=True)]
        self._length = self._common_length()
        # take() of anything else than a well-behaved array copies the whole array first.
        plain = [leaf.flags.c_contiguous and leaf.flags.aligned and leaf.dtype.isnative for leaf in self.leaves]
        self._plain_leaves = plain
        self._takes: list[Any] | None = None
        self._fingerprint: str | None = None

    def _plain(self, leaf: Any, path: str) -> npt.NDArray[Any]:
        where = f"{self.kind}: {tree_.leaf_label(path)}"
        if type(leaf) is list and leaf and isinstance(leaf[0], dict):
            raise SchemaError(f"{where} is a list of rows, and arrays hold columns. For rows say from_sequence()")
        array = as_leaf(leaf, where, "Give one dtype, such as text by array.astype(str), or rows by from_sequence()")
        if array.ndim == 0:
            raise SchemaError(
                f"{self.kind}: {tree_.leaf_label(path)} is zero-dimensional ({array!r}), so it has no rows. "
                "Give an array whose first axis counts the rows"
            )
        return array.view(np.ndarray)

    def _common_length(self) -> int:
        first = len(self.leaves[0])
        for leaf, path in zip(self.leaves, self.paths, strict=True):
            if len(leaf) != first:
                raise SchemaError(
                    f"{self.kind}: {tree_.leaf_label(path)} has {len(leaf)} rows, but "
                    f"{tree_.leaf_label(self.paths[0])} has {first}. All leaves need the same first axis"
                )
        return first

    @property
    def schema(self) -> Tree:
        """The schema of one row."""
        return tree_.unflatten(self.treedef, [LeafSpec(native(leaf.dtype), leaf.shape[1:]) for leaf in self.leaves])

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def fingerprint(self) -> str:
        """Return a hash of names, dtypes, shapes and up to 64 sampled rows (4 MiB) of every leaf."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=8)
            for leaf, path in zip(self.leaves, self.paths, strict=True):
                digest.update(f"{path}|{native(leaf.dtype).str}|{leaf.shape}|".encode())
                if leaf.size:
                    row_bytes = max(leaf[:1].nbytes, 1)
                    rows = min(_SAMPLED_ROWS, len(leaf), max(_SAMPLED_BYTES // row_bytes, 2))
                    sample = leaf[np.linspace(0, len(leaf) - 1, rows).astype(np.int64)]
                    plain = not (sample.dtype.hasobject or sample.dtype.kind == "T")
                    same = sample.astype(native(sample.dtype), copy=False)  # whatever the machine's byte order
                    digest.update(same.reshape(-1).view(np.uint8).data if plain else repr(sample.tolist()).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def gather(self, rows: npt.NDArray[np.int64], out: Tree | None = None) -> Tree:
        """Return the columns of ``rows``; at the memory's own speed if ``out`` is given."""
        if out is None:
            columns = [np.empty((len(rows), *leaf.shape[1:]), native(leaf.dtype)) for leaf in self.leaves]
            self.gather_leaves(rows, columns)
            return tree_.unflatten(self.treedef, columns)
        places: list[Any] = self.treedef.flatten_up_to(out)
        self.gather_leaves(rows, places)
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_takes": None}

    def _takers(self) -> list[Any]:
        """Return what takes rows of every leaf, in the manner of ``leaf.take``; ``None`` where that copies the leaf."""
        if self._takes is None:
            pairs = zip(self.leaves, self._plain_leaves, strict=True)
            self._takes = [(RowsAhead.of(leaf) or leaf).take if plain else None for leaf, plain in pairs]
        return self._takes

    @property
    def takes(self) -> list[Any] | None:
        """What takes rows of every leaf, as its ``take`` does; ``None`` where one of them would copy the whole leaf."""
        return self._takers() if all(self._plain_leaves) else None

    def gather_leaves(self, rows: npt.NDArray[np.int64], columns: list[npt.NDArray[Any]]) -> None:
        """Fill ``columns``, one a leaf; for row numbers that are known to be in range."""
        for leaf, take, column in zip(self.leaves, self._takers(), columns):  # noqa: B905  # once a batch: strict costs
            if take is not None:
                take(rows, 0, column, "clip")  # mode="raise" would go through a buffer
            else:
                column[...] = leaf[rows]
