"""Rows whose leaves differ in shape, filled up to one: what ``padded_batch`` does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.casting import fill_value
from batchkit.errors import SchemaError
from batchkit.ragged import Ragged, RaggedRows
from batchkit.schema import LeafSpec, as_leaf, native
from batchkit.sources.stacking import Lease, both_text, stack_rows
from batchkit.tree import Tree

__all__ = ["fresh", "padded_columns", "padded_rows", "padded_schema"]


def padded_columns(stage: st.PaddedBatch, columns: Tree, ids: Any, after: str, lease: Lease) -> Tree:
    """Return columns of which some are ragged as arrays.

    ``ids`` and ``after``, which names the function that the rows come from, are for messages; ``lease`` says
    where columns are written to.

    Raises:
        SchemaError: rows differ in what the stage does not even out; names the row, the leaf and the mend.
    """
    padding = _Padding(stage, ids, after, lease)
    return padding.finished(padding.columns(columns))


def padded_rows(stage: st.PaddedBatch, items: Sequence[Tree], ids: Any, after: str, lease: Lease) -> Tree:
    """The same for single rows."""
    padding = _Padding(stage, ids, after, lease)
    return padding.finished(padding.stacked(items))


def fresh(key: Any, rows: int, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return new memory for a column."""
    return np.empty((rows, *row_shape), dtype)


def padded_schema(stage: st.PaddedBatch, schema: Tree) -> Tree:
    """Return the schema of rows behind ``padded_batch``: sizes that the stage fixes are known."""
    leaves, treedef = tree_.flatten(schema)
    stage.check_leaves(tree_.paths(treedef))
    added: dict[str, LeafSpec] = {}
    for index, path in enumerate(tree_.paths(treedef)):
        spec, sides = leaves[index], stage.sides(path)
        ragged = None in spec.shape
        if not ragged and not (sides is not None and isinstance(stage.length, Mapping)):
            continue
        added[f"{path}_length"] = LeafSpec(np.dtype(np.int64), ())
        if sides is not None:
            shape = tuple(
                own if axis >= len(sides) or sides[axis] is None else sides[axis] for axis, own in enumerate(spec.shape)
            )
            leaves[index] = LeafSpec(spec.dtype, shape)
    found = tree_.unflatten(treedef, leaves)
    return {**found, **added} if stage.lengths and isinstance(found, dict) else found


class _Padding:
    """One batch being filled up."""

    def __init__(self, stage: st.PaddedBatch, ids: Any, after: str, lease: Lease) -> None:
        self._stage, self._ids, self._after, self._lease = stage, ids, after, lease
        self._lengths: dict[str, npt.NDArray[np.int64]] = {}

    def finished(self, columns: Tree) -> Tree:
        """Return the columns, with the lengths of those that were padded if they are wanted."""
        return _with_lengths(columns, self._lengths) if self._stage.lengths else columns

    def columns(self, given: Tree) -> Tree:
        """Return columns of which some are ragged as arrays."""
        leaves, treedef = tree_.flatten(given)
        self._stage.check_leaves(tree_.paths(treedef))
        for index, path in enumerate(tree_.paths(treedef)):
            leaf = leaves[index]
            if isinstance(leaf, (Ragged, RaggedRows)):
                leaves[index] = self._filled(leaf, path)
            elif self._stage.sides(path) is not None and isinstance(self._stage.length, Mapping):
                leaves[index] = self._even(list(leaf), path)
        return tree_.unflatten(treedef, leaves)

    def _filled(self, leaf: Ragged | RaggedRows, path: str) -> npt.NDArray[Any]:
        lengths = leaf.lengths
        self._lengths[path] = lengths
        sides = self._target(path, (int(lengths.max(initial=0)), *leaf.values.shape[1:]), lambda row: int(lengths[row]))
        dtype = native(leaf.dtype)
        fill = fill_value(self._stage.value(path), dtype, path, self._stage.verb)
        out = self._leased(path, len(leaf), dtype, sides)
        if sides[1:] == leaf.values.shape[1:]:
            return leaf.padded(sides[0], fill, out)
        out[...] = fill
        for place, values in enumerate(leaf):
            out[_corner(place, values.shape)] = values
        return out

    def _leased(self, path: str, rows: int, dtype: np.dtype[Any], sides: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return memory for a leaf. It is leased by its size, as each width would keep memory of its own."""
        return self._lease((path, "padded"), rows * math.prod(sides), dtype, ()).reshape(rows, *sides)

    def stacked(self, items: Sequence[Tree]) -> Tree:
        """Return rows as columns."""
        leaves, treedef = tree_.flatten(items[0])
        self._stage.check_leaves(tree_.paths(treedef))
        every: list[list[Any]] = [[leaf] for leaf in leaves]
        for number, item in enumerate(items[1:], 1):
            others, other = tree_.flatten(item)
            if other != treedef:
                stack_rows([items[0], item], [self._ids[0], self._ids[number]], self._after)  # says how
            for column, leaf in zip(every, others, strict=True):
                column.append(leaf)
        columns = [self._even(values, path) for values, path in zip(every, tree_.paths(treedef), strict=True)]
        return tree_.unflatten(treedef, columns)

    def _even(self, values: list[Any], path: str) -> npt.NDArray[Any]:
        ids, label = self._ids, tree_.leaf_label(path)
        arrays = [as_leaf(value, f"row {ids[place]}: {label}{self._after}") for place, value in enumerate(values)]
        first = arrays[0]
        for place, array in enumerate(arrays):
            if array.ndim != first.ndim or (array.dtype != first.dtype and not both_text(array, first)):
                raise SchemaError(
                    f"row {ids[place]}: {label} is {array.dtype.name}{list(array.shape)}, but row {ids[0]} has "
                    f"{first.dtype.name}{list(first.shape)}{self._after}. padded_batch() evens out sizes alone: return "
                    "one dtype and one number of axes"
                )
        if first.ndim == 0:
            column: npt.NDArray[Any] = stack_rows(values, ids, self._after, None)
            return column
        self._lengths[path] = np.array([len(array) for array in arrays], np.int64)
        longest = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
        sides = self._target(path, longest, lambda row: arrays[row].shape)
        dtype = native(np.result_type(*{array.dtype for array in arrays}))  # of text, the longest
        out = self._leased(path, len(arrays), dtype, sides)
        out[...] = fill_value(self._stage.value(path), dtype, path, self._stage.verb)
        for place, array in enumerate(arrays):
            out[_corner(place, array.shape)] = array
        return out

    def _target(self, path: str, longest: tuple[int, ...], shape_of: Any) -> tuple[int, ...]:
        """Return the shape that the rows of a leaf are filled up to."""
        sides = self._stage.sides(path)
        if sides is None:
            many = self._stage.multiple_of
            return (-(-longest[0] // many) * many, *longest[1:])
        if len(sides) > len(longest):
            raise SchemaError(
                f"padded_batch(length): {tree_.leaf_label(path)} has {len(longest)} axes a row, but length names "
                f"{len(sides)}{self._after}"
            )
        wanted = tuple(
            own if axis >= len(sides) or sides[axis] is None else int(sides[axis] or 0)
            for axis, own in enumerate(longest)
        )
        for axis, (own, most) in enumerate(zip(longest, wanted, strict=True)):
            if own > most:
                self._refuse(path, axis, own, most, shape_of)
        return wanted

    def _refuse(self, path: str, axis: int, own: int, most: int, shape_of: Any) -> None:
        ids = self._ids
        shapes = [shape_of(row) for row in range(len(ids))]
        place = next(
            row for row, shape in enumerate(shapes) if (shape if isinstance(shape, int) else shape[axis]) == own
        )
        where = "" if axis == 0 else f" along axis {axis}"
        raise SchemaError(
            f"row {ids[place]}: {tree_.leaf_label(path)} has {own} entries{where}, and padded_batch(length) allows "
            f"{most}{self._after}. Cut such rows in a map(), or give a greater length"
        )


def _corner(place: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return (place, *map(slice, shape))


def _with_lengths(columns: Tree, lengths: dict[str, npt.NDArray[np.int64]]) -> Tree:
    if not isinstance(columns, dict):
        raise SchemaError("padded_batch(lengths=True) adds leaves by name, so that rows must be dicts. Return dicts")
    added = {f"{path}_length": values for path, values in lengths.items()}
    clash = set(added) & set(columns)
    if clash:
        raise SchemaError(f"padded_batch(lengths=True) adds a leaf {min(clash)!r}, but there is one: rename it before")
    return {**columns, **added}
