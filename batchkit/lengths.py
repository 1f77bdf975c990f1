"""How long rows are: the first axis of their leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import SchemaError
from batchkit.ragged import Ragged
from batchkit.schema import as_leaf
from batchkit.sources.stacking import stack_rows
from batchkit.tree import Tree

__all__ = ["Lengths", "agreed", "column_lengths", "item_lengths", "joined"]

Lengths: TypeAlias = "dict[str, npt.NDArray[np.int64] | None]"
"""By leaf, how long every row is; ``None`` for a leaf without an axis."""


def column_lengths(columns: Tree) -> Lengths:
    """Return how long every row of columns is."""
    leaves, treedef = tree_.flatten(columns)
    found: Lengths = {}
    for leaf, path in zip(leaves, tree_.paths(treedef), strict=True):
        if isinstance(leaf, Ragged):
            found[path] = leaf.lengths
        else:
            found[path] = np.full(len(leaf), leaf.shape[1], np.int64) if leaf.ndim > 1 else None
    return found


def item_lengths(items: Sequence[Tree], ids: Any, after: str = "") -> Lengths:
    """The same for single rows, at least one of them.

    Raises:
        SchemaError: rows differ in structure or in the number of axes of a leaf.
    """
    every, treedef = _by_leaf(items, ids, after)
    found: Lengths = {}
    for arrays, path in zip(every, tree_.paths(treedef), strict=True):
        axes = arrays[0].ndim
        for place, array in enumerate(arrays):
            if array.ndim != axes:
                raise _unlike(path, (ids[0], arrays[0]), (ids[place], array), after)
        found[path] = np.array([len(array) for array in arrays], np.int64) if axes else None
    return found


def agreed(lengths: Mapping[str, npt.NDArray[np.int64]], ids: Any, who: str, mend: str) -> npt.NDArray[np.int64]:
    """Return the lengths that all leaves have; there is at least one leaf.

    Raises:
        SchemaError: two leaves of a row differ; names the row, both leaves and the mend.
    """
    (first, wanted), *others = lengths.items()
    for path, found in others:
        places = np.flatnonzero(found != wanted)
        if len(places):
            place = int(places[0])
            raise SchemaError(
                f"{who}: row {ids[place]}: {tree_.leaf_label(path)} is {found[place]} long, but "
                f"{tree_.leaf_label(first)} is {wanted[place]}. {mend}"
            )
    return wanted


def joined(items: Sequence[Tree], ids: Any, after: str = "") -> Tree:
    """Return single rows, at least one, as columns: ragged where a leaf has an axis.

    Raises:
        SchemaError: rows differ in structure, in the dtype of a leaf, or in other than its first axis.
    """
    every, treedef = _by_leaf(items, ids, after)
    columns: list[Any] = []
    for arrays, path in zip(every, tree_.paths(treedef), strict=True):
        first = arrays[0]
        if not first.ndim:
            columns.append(stack_rows(arrays, ids, after))
            continue
        for place, array in enumerate(arrays):
            text = array.dtype.kind in "US" and array.dtype.kind == first.dtype.kind
            if (
                array.ndim != first.ndim
                or array.shape[1:] != first.shape[1:]
                or (array.dtype != first.dtype and not text)
            ):
                raise _unlike(path, (ids[0], first), (ids[place], array), after)
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        columns.append(Ragged(np.concatenate(arrays), offsets))
    return tree_.unflatten(treedef, columns)


def _by_leaf(items: Sequence[Tree], ids: Any, after: str) -> tuple[list[list[npt.NDArray[Any]]], tree_.TreeDef]:
    leaves, treedef = tree_.flatten(items[0])
    every: list[list[Any]] = [[] for _ in leaves]
    labels = [f"{tree_.leaf_label(path)}{after}" for path in tree_.paths(treedef)]
    for number, item in enumerate(items):
        others, other = tree_.flatten(item)
        if other != treedef:
            stack_rows([items[0], item], [ids[0], ids[number]], after)  # says how
        for column, leaf, label in zip(every, others, labels, strict=True):
            plain = type(leaf) is np.ndarray and leaf.dtype.kind != "O"
            column.append(leaf if plain else as_leaf(leaf, f"row {ids[number]}: {label}"))
    return every, treedef


def _unlike(
    path: str, first: tuple[Any, npt.NDArray[Any]], other: tuple[Any, npt.NDArray[Any]], after: str
) -> SchemaError:
    (one_id, one), (other_id, two) = first, other
    return SchemaError(
        f"row {other_id}: {tree_.leaf_label(path)} is {two.dtype.name}{list(two.shape)}, but row {one_id} has "
        f"{one.dtype.name}{list(one.shape)}{after}. Rows may differ in the length of the first axis alone: return one "
        "dtype and one shape of items"
    )
