"""Rows and batches as a cache keeps them, with their addresses, and back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from batchkit import tree as tree_
from batchkit.caching import Column, Leaves, Outline, characters, of_columns, of_items, text, to_columns, to_items
from batchkit.errors import SchemaError
from batchkit.plan.rows.calls import Rows
from batchkit.ragged import Ragged
from batchkit.schema import native
from batchkit.sources.stacking import split_rows

__all__ = ["SCALAR", "naming", "recorded_batch", "recorded_rows", "restored_batch", "restored_rows"]

SCALAR = np.dtype(np.int64)


def recorded_rows(rows: Rows, where: str) -> tuple[Outline, Leaves]:
    """Return rows that come in order as what is kept of them: their addresses, then their leaves.

    Raises:
        SchemaError: two rows differ in structure, dtype or number of axes, or a leaf is no array; names them.
    """
    if rows.items is None and not any(isinstance(leaf, Ragged) for leaf in tree_.flatten(rows.columns)[0]):
        outline, leaves = of_columns(rows.columns)
    else:
        items = split_rows(rows.columns) if rows.items is None else rows.items
        outline, leaves = of_items(items, rows.ids, where)
    epochs = np.broadcast_to(np.asarray(rows.epochs, np.int64), rows.ids.shape)
    subs = np.zeros_like(rows.ids) if rows.subs is None else rows.subs
    columns = tuple(Column(name, SCALAR, ()) for name in ("row", "epoch", "sub"))
    # Some runs of rows may come as columns and others as one tree a row: they are kept alike.
    whole = dataclasses.replace(outline, columns=(*columns, *outline.columns), addresses=len(columns), form="items")
    return whole, [rows.ids, epochs, subs, *leaves]


def restored_rows(outline: Outline, leaves: Leaves, by_item: bool) -> Rows:
    """Return the rows of :func:`recorded_rows`: one tree a row where ``by_item``, else columns if they are alike."""
    ids, epochs, many = (np.asarray(leaf) for leaf in leaves[:3])
    subs = many if many.any() else None
    if by_item or outline.varies:
        return Rows(ids, epochs, items=to_items(outline, leaves), subs=subs)
    return Rows(ids, epochs, columns=to_columns(outline, leaves, ids), subs=subs)


def recorded_batch(rows: Rows) -> tuple[Outline, Leaves]:
    """Return a batch as what is kept of it: one row, whose leaves are the columns."""
    epochs = np.atleast_1d(np.asarray(rows.epochs, np.int64))
    columns = [Column("row", SCALAR, (None,)), Column("epoch", SCALAR, (None,)), Column("surplus", SCALAR, ())]
    leaves: Leaves = [[rows.ids], [epochs], np.array([int(rows.surplus)])]
    if rows.subs is not None:
        columns.append(Column("sub", SCALAR, (None,)))
        leaves.append([rows.subs])
    addresses = len(columns)
    parts = tree_.map_leaves(_parts_of, rows.columns)
    found, nesting = tree_.flatten(parts)
    for path, leaf in zip(tree_.paths(nesting), found, strict=True):
        kind, value = "array", leaf
        if leaf.dtype.kind in "US":
            kind, value = "text", characters(leaf)
        # How many rows the last batch has, is its own, and so is how wide a text is.
        sides = (None, *value.shape[1:-1], None) if kind == "text" else (None, *value.shape[1:])
        columns.append(Column(path, native(value.dtype), sides, kind))
        leaves.append([value])
    return Outline(tuple(columns), addresses, nesting, "columns"), leaves


def restored_batch(outline: Outline, leaves: Leaves) -> Rows:
    """Return the batch of :func:`recorded_batch`."""
    values = [
        text(leaf[0]) if column.kind == "text" else leaf[0]
        for column, leaf in zip(outline.columns, leaves, strict=True)
    ]
    ids, epochs, surplus, *subs = values[: outline.addresses]
    columns = _whole_of(tree_.unflatten(outline.nesting, values[outline.addresses :]))
    return Rows(
        ids,
        int(epochs[0]) if len(epochs) == 1 else epochs,
        columns,
        surplus=bool(surplus),
        subs=subs[0] if subs else None,
    )


def _parts_of(leaf: Any) -> Any:
    if isinstance(leaf, Ragged):
        return {_VALUES: leaf.values, _OFFSETS: leaf.offsets}
    return leaf


_VALUES, _OFFSETS = "ragged values", "ragged offsets"


def _whole_of(tree: Any) -> Any:
    if type(tree) is dict:
        if tree.keys() == {_VALUES, _OFFSETS}:
            return Ragged(tree[_VALUES], tree[_OFFSETS])
        return {key: _whole_of(part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [_whole_of(part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the cache in front of what a message says of its rows."""
    try:
        yield
    except SchemaError as exc:
        exc.args = (f"{where}: {exc}",)
        raise
