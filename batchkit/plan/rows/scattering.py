"""Rows of several parts put together, each in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import SchemaError
from batchkit.plan.rows.calls import Rows
from batchkit.ragged import Ragged, scattered
from batchkit.schema import LeafSpec, common_schema, spec_tree
from batchkit.sources.stacking import split_rows
from batchkit.tree import Tree

__all__ = ["Scattered", "scattered_rows"]

Lease: TypeAlias = Callable[[int, "np.dtype[Any]", "tuple[int, ...]"], "npt.NDArray[Any]"]
"""``lease(leaf, dtype, row_shape)`` returns memory for the column of a leaf, counted from 0."""


class Scattered(NamedTuple):
    """Rows of one part, and where each of them goes."""

    name: str
    places: npt.NDArray[np.int64]
    rows: Rows


def scattered_rows(
    found: Sequence[Scattered], count: int, lease: Lease, where: str
) -> tuple[Tree | None, list[Tree] | None]:
    """Return ``count`` rows of at least one part: columns where all have columns, else single rows.

    ``where`` begins the messages.

    Raises:
        SchemaError: two parts differ in structure, dtype or shape; names the parts, the leaf and both specs.
    """
    if any(part.rows.items is not None for part in found):
        return None, _items(found, count, where)
    return _columns(found, count, lease, where), None


def _items(found: Sequence[Scattered], count: int, where: str) -> list[Tree]:
    items: list[Tree] = [None] * count
    schema: Tree = None
    for part in found:
        rows = split_rows(part.rows.columns) if part.rows.items is None else part.rows.items
        schema = _checked(schema, spec_tree(rows[0]), (found[0], part), where, exact=False)
        for place, row in zip(part.places.tolist(), rows, strict=True):
            items[place] = row
    return items


def _columns(found: Sequence[Scattered], count: int, lease: Lease, where: str) -> Tree:
    firsts, treedef = tree_.flatten(found[0].rows.columns)
    every: list[Sequence[Any]] = [firsts]
    for part in found[1:]:
        others, other_def = tree_.flatten(part.rows.columns)
        if other_def != treedef or not all(map(_alike, firsts, others)):
            _checked(_specs(found[0]), _specs(part), (found[0], part), where, exact=True)
        every.append(others)
    columns: list[Any] = []
    for index in range(len(firsts)):
        leaves = [each[index] for each in every]
        if isinstance(leaves[0], Ragged):
            columns.append(scattered([(part.places, leaf) for part, leaf in zip(found, leaves, strict=True)], count))
            continue
        text = leaves[0].dtype.kind in "US"
        column = lease(index, np.result_type(*leaves) if text else leaves[0].dtype, leaves[0].shape[1:])
        for part, leaf in zip(found, leaves, strict=True):
            column[part.places] = leaf
        columns.append(column)
    return tree_.unflatten(treedef, columns)


def _alike(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one.dtype == other.dtype and one.shape[1:] == other.shape[1:]


def _specs(part: Scattered) -> Tree:
    return tree_.map_leaves(lambda leaf: LeafSpec(leaf.dtype, leaf.shape[1:]), part.rows.columns)


def _checked(schema: Tree, its: Tree, pair: tuple[Scattered, Scattered], where: str, exact: bool) -> Tree:
    if schema is None:
        return its
    try:
        return common_schema(schema, its, exact)
    except SchemaError as exc:
        raise SchemaError(f"{where}: part {pair[1].name} is not like part {pair[0].name}: {exc}") from exc
