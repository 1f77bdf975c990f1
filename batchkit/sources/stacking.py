"""Rows into columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.casting import cast_mend
from batchkit.errors import SchemaError
from batchkit.schema import as_leaf, spec_of
from batchkit.tree import Tree

__all__ = ["normalise_row", "stack_rows"]


def normalise_row(row: Any, where: str) -> Tree:
    """Return the row's nesting with every leaf an array or a NumPy scalar."""
    return tree_.map_leaves(lambda leaf: leaf if isinstance(leaf, np.generic) else as_leaf(leaf, f"{where}: a leaf"), row)


def stack_rows(rows: Sequence[Tree], ids: Sequence[int] | npt.NDArray[np.int64], after: str = "") -> Tree:
    """Stack rows of one structure, dtype and shape into columns.

    ``ids`` and ``after`` (the stage that the rows come from) are for messages only.

    Raises:
        SchemaError: two rows differ; names the rows, the leaf, what each has, and the mend.
    """
    leaves, treedef = tree_.flatten(rows[0])
    firsts = [np.asarray(leaf) for leaf in leaves]
    per_leaf: list[list[Any]] = [[leaf] for leaf in firsts]
    for number, row in enumerate(rows[1:], 1):
        others, other_def = tree_.flatten(row)
        if other_def != treedef:
            raise SchemaError(
                f"row {ids[number]} has the structure {_keys(other_def)}, but row {ids[0]} has {_keys(treedef)}{after}. "
                "Return the same structure for every row"
            )
        for index, leaf in enumerate(others):
            array = np.asarray(leaf)
            first = firsts[index]
            if array.shape != first.shape or (array.dtype != first.dtype and not _both_text(array, first)):
                raise _differs(tree_.paths(treedef)[index], (ids[0], first), (ids[number], array), after)
            per_leaf[index].append(array)
    return tree_.unflatten(treedef, [np.stack(column) for column in per_leaf])


def _both_text(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return one.dtype.kind == other.dtype.kind and one.dtype.kind in "UST"


def _keys(treedef: tree_.TreeDef) -> str:
    names = tree_.paths(treedef)
    return "of a single leaf" if names == [""] else "{" + ", ".join(names) + "}"


def _differs(path: str, first: tuple[Any, npt.NDArray[Any]], other: tuple[Any, npt.NDArray[Any]], after: str) -> SchemaError:
    (one_id, one), (other_id, two) = first, other
    mend = (
        f"Return one dtype, or add {cast_mend(path, one.dtype)} before batch()"
        if one.shape == two.shape
        else "Bring the rows to one shape (pad or crop them) in a map() before batch()"
    )
    return SchemaError(
        f"row {other_id}: {tree_.leaf_label(path)} is {spec_of(two)}, but row {one_id} has {spec_of(one)}{after}. {mend}"
    )

