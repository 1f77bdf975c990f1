"""Rows taken apart into the columns that a store keeps, and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.caching.outline import Column, Leaf, Leaves, Outline
from batchkit.errors import SchemaError
from batchkit.ragged import Ragged
from batchkit.schema import LeafSpec, as_leaf, native
from batchkit.sources.stacking import stack_rows
from batchkit.tree import Tree

__all__ = ["characters", "of_columns", "of_items", "text", "to_columns", "to_items"]

_TEXT = {"U": np.dtype("U1"), "S": np.dtype("S1")}


def of_items(items: Sequence[Tree], ids: Any, where: str) -> tuple[Outline, Leaves]:
    """Return rows, one tree each, as columns. ``ids`` and ``where`` are for messages.

    Raises:
        SchemaError: two rows differ in structure, dtype or number of axes, or a leaf is no array; names them.
    """
    leaves, nesting = tree_.flatten(items[0])
    every: list[list[Any]] = [[leaf] for leaf in leaves]
    for number, item in enumerate(items[1:], 1):
        others, other = tree_.flatten(item)
        if other != nesting:
            stack_rows([items[0], item], [ids[0], ids[number]], f", before {where}")  # says how they differ
        for values, leaf in zip(every, others, strict=True):
            values.append(leaf)
    columns, found = [], []
    for path, values in zip(tree_.paths(nesting), every, strict=True):
        column, leaf = _column(values, ids, path, where)
        columns.append(column)
        found.append(leaf)
    return Outline(tuple(columns), 0, nesting, "items"), found


def _column(values: list[Any], ids: Any, path: str, where: str) -> tuple[Column, Leaf]:
    label = tree_.leaf_label(path)
    arrays = [as_leaf(value, f"row {ids[place]}: {label}, before {where}") for place, value in enumerate(values)]
    kind = arrays[0].dtype.kind
    if kind in _TEXT:
        for place, value in enumerate(values):
            if isinstance(value, (str, bytes)) and value[-1:] in ("\0", b"\0"):
                stack_rows([value], [ids[place]], f", before {where}")  # says why not
        arrays = [characters(array) if array.dtype.kind == kind else array for array in arrays]
    first = arrays[0]
    for place, array in enumerate(arrays):
        if array.dtype != first.dtype or array.ndim != first.ndim:
            one, other = (LeafSpec(each.dtype, each.shape) for each in (first, array))
            raise SchemaError(
                f"row {ids[place]}: {label} is {other}, but row {ids[0]} has {one}, before {where}. Return one dtype "
                "and one number of axes for every row"
            )
    alike = all(array.shape == first.shape for array in arrays)
    sides: tuple[int | None, ...] = first.shape
    if not alike:
        sides = tuple(
            size if all(array.shape[axis] == size for array in arrays) else None for axis, size in enumerate(sides)
        )
    if kind in _TEXT:  # how wide a text is, is each row's own
        return Column(path, first.dtype, (*sides[:-1], None), "text"), arrays
    dtype = native(first.dtype)
    if alike:
        return Column(path, dtype, sides), np.stack(arrays).astype(dtype, copy=False)
    return Column(path, dtype, sides), [np.ascontiguousarray(array, dtype) for array in arrays]


def of_columns(columns: Tree) -> tuple[Outline, Leaves]:
    """Return the columns of several rows as those of a store; nothing is copied."""
    leaves, nesting = tree_.flatten(columns)
    made: list[Column] = []
    found: Leaves = []
    for path, leaf in zip(tree_.paths(nesting), leaves, strict=True):
        dtype = native(leaf.dtype)
        if isinstance(leaf, Ragged):
            made.append(Column(path, dtype, leaf.shape[1:], "ragged"))
            found.append([np.ascontiguousarray(row, dtype) for row in leaf])
        elif leaf.dtype.kind in _TEXT:
            signs = characters(leaf)
            made.append(Column(path, signs.dtype, (*signs.shape[1:-1], None), "text"))
            found.append(list(signs))
        else:
            made.append(Column(path, dtype, leaf.shape[1:]))
            found.append(leaf.astype(dtype, copy=False))
    return Outline(tuple(made), 0, nesting, "columns"), found


def to_columns(outline: Outline, leaves: Leaves, ids: npt.NDArray[np.int64]) -> Tree:
    """Return the columns of rows.

    Raises:
        SchemaError: they differ in shape where columns were alike when they were stored.
    """
    columns: list[Any] = []
    for column, leaf in zip(outline.columns[outline.addresses :], leaves[outline.addresses :], strict=True):
        if column.kind == "ragged":
            columns.append(_ragged(column, leaf))
        elif column.kind == "text":
            columns.append(np.stack([text(value) for value in leaf]))
        elif isinstance(leaf, list):
            columns.append(stack_rows(leaf, ids))
        else:
            columns.append(leaf)
    return tree_.unflatten(outline.nesting, columns)


def to_items(outline: Outline, leaves: Leaves) -> list[Tree]:
    """Return one tree a row."""
    columns: list[Any] = []
    for column, leaf in zip(outline.columns[outline.addresses :], leaves[outline.addresses :], strict=True):
        if column.kind == "text":
            columns.append([text(value) for value in leaf])
        elif column.shape == ():
            columns.append(list(leaf))
        else:
            columns.append(leaf)
    return [tree_.unflatten(outline.nesting, list(values)) for values in zip(*columns, strict=True)]


def _ragged(column: Column, leaf: Leaf) -> Ragged:
    rows = list(leaf)
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    rest = tuple(side or 0 for side in column.shape[1:])
    return Ragged(np.concatenate(rows) if rows else np.empty((0, *rest), column.dtype), offsets)


def characters(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return text as single characters, with one more axis."""
    kind = _TEXT[array.dtype.kind]
    width = array.dtype.itemsize // kind.itemsize
    plain = np.ascontiguousarray(array, native(array.dtype))
    if not plain.size or not width:
        return np.empty((*array.shape, width), kind)
    return plain.reshape(-1).view(kind).reshape(*array.shape, width)


def text(signs: npt.NDArray[Any]) -> Any:
    """Return the text of :func:`characters`."""
    *sides, width = signs.shape
    dtype = np.dtype((signs.dtype.type, max(width, 1)))
    if not signs.size:
        return np.zeros(sides, dtype)[()]
    return np.ascontiguousarray(signs).reshape(-1).view(dtype).reshape(sides)[()]
