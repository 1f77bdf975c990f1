"""Rows into columns, and columns into rows."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.casting import alike_mend
from batchkit.errors import SchemaError
from batchkit.ragged import Ragged
from batchkit.schema import as_leaf, slot_dtype, spec_of
from batchkit.sources.sharing import own
from batchkit.tree import Tree

__all__ = ["Lease", "all_detached", "both_text", "detached", "normalise_row", "split_rows", "stack_rows"]

Lease: TypeAlias = Callable[[Any, int, "np.dtype[Any]", "tuple[int, ...]"], "npt.NDArray[Any]"]
"""``lease(key, rows, dtype, row_shape)`` returns memory for a column."""

_PLAIN = {int: np.dtype(np.int64), float: np.dtype(np.float64), bool: np.dtype(bool), complex: np.dtype(np.complex128)}


class _UnlikeError(Exception):
    """Two rows are not alike; which, and how, is found out by looking at them again."""


def normalise_row(row: Any, where: str) -> Tree:
    """Return the row's nesting with every leaf an array or a NumPy scalar."""
    return tree_.map_leaves(
        lambda leaf: leaf if isinstance(leaf, np.generic) else as_leaf(leaf, f"{where}: a leaf"), tree_.mapped(row)
    )


def detached(row: Any, copy: bool = False) -> Tree:
    """Return the row in dicts and tuples of its own; with ``copy``, in arrays of its own, too."""
    if copy:
        return own(row)
    if type(row) is dict:
        return {key: detached(value) for key, value in row.items()}
    if type(row) is tuple:
        return tuple([detached(value) for value in row])
    kind: Any = type(row)
    if not _holds_leaves(kind):
        return row
    if hasattr(row, "_fields"):
        return tree_.map_leaves(detached, row)
    made = tree_.mapped(row)
    return row if made is row else detached(made)


def all_detached(rows: list[Tree]) -> list[Tree]:
    """Return rows, each as :func:`detached` would; those that are like the first one take a tenth of the time."""
    kind = type(rows[0]) if rows else None
    if kind is tuple:
        kinds = tuple(map(type, rows[0]))
        if not any(map(_is_container, kinds)):  # nothing of such a row can be changed but its arrays
            return [row if type(row) is tuple and tuple(map(type, row)) == kinds else detached(row) for row in rows]
    elif kind is dict:
        kinds = tuple(map(type, rows[0].values()))
        if not any(map(_is_container, kinds)):
            return [
                dict(row) if type(row) is dict and tuple(map(type, row.values())) == kinds else detached(row)
                for row in rows
            ]
    return [detached(row) for row in rows]


def _is_container(kind: type) -> bool:
    return kind is dict or kind is tuple or _holds_leaves(kind)


@functools.lru_cache(maxsize=256)
def _holds_leaves(kind: type) -> bool:
    """Whether something of this class may be more than one leaf; dicts and tuples aside."""
    return hasattr(kind, "_fields") or issubclass(kind, Mapping)


def split_rows(columns: Tree) -> list[Tree]:
    """Return one tree of scalars and views a row."""
    if type(columns) is dict and all(type(leaf) is np.ndarray for leaf in columns.values()):
        names = list(columns)
        return [dict(zip(names, values)) for values in zip(*columns.values())]  # noqa: B905  # once a row
    leaves, treedef = tree_.flatten(columns)
    return [tree_.unflatten(treedef, list(values)) for values in zip(*leaves, strict=True)]


def stack_rows(
    rows: Sequence[Tree], ids: Sequence[int] | npt.NDArray[np.int64], after: str = "", lease: Lease | None = None
) -> Tree:
    """Stack rows of one structure, dtype and shape into columns.

    ``ids`` and ``after`` (the stage that the rows come from) are for messages only.
    ``lease``, if given, says where large columns are written to.

    Raises:
        SchemaError: two rows differ, or a leaf is no array; names the rows, the leaf, what each
            has, and the mend.
    """
    try:
        return _stacked(rows, (), lease)
    except _UnlikeError:
        return _stacked_slowly(rows, ids, after)


def _stacked(values: Sequence[Any], path: tuple[Any, ...], lease: Lease | None) -> Any:
    first = values[0]
    kind = type(first)
    if kind is dict:
        keys = first.keys()
        for value in values:
            if type(value) is not dict or value.keys() != keys:
                raise _UnlikeError
        return {key: _stacked([value[key] for value in values], (*path, key), lease) for key in keys}
    if kind is tuple or hasattr(kind, "_fields"):
        if set(map(type, values)) != {kind} or set(map(len, values)) != {len(first)}:
            raise _UnlikeError
        parts = [_stacked(part, (*path, index), lease) for index, part in enumerate(zip(*values, strict=True))]
        return tuple(parts) if kind is tuple else kind(*parts)
    return _column(values, kind, path, lease)


def _column(values: Sequence[Any], kind: type, path: tuple[Any, ...], lease: Lease | None) -> npt.NDArray[Any]:
    if set(map(type, values)) != {kind}:
        raise _UnlikeError
    if kind is np.ndarray:
        return _arrays(values, path, lease)
    if kind in _PLAIN:
        try:
            return np.array(values, _PLAIN[kind])
        except OverflowError:
            raise _UnlikeError from None
    if issubclass(kind, np.generic) and kind not in (np.str_, np.bytes_, np.void):
        dtype = values[0].dtype
        if dtype.kind in "mM" and any(value.dtype != dtype for value in values):
            raise _UnlikeError
        return np.array(values, dtype)
    if hasattr(kind, "__array__") and not issubclass(kind, (np.ndarray, np.generic, Ragged)):  # tensors
        try:
            return _tensors(values, kind, path, lease)
        except _UnlikeError:
            raise
        except Exception:  # which row's, is said by looking at each
            raise _UnlikeError from None
    raise _UnlikeError


_DTYPE = operator.attrgetter("dtype")
_SHAPE = operator.attrgetter("shape")


def _tensors(values: Sequence[Any], kind: type, path: tuple[Any, ...], lease: Lease | None) -> npt.NDArray[Any]:
    """Stack what a framework keeps as arrays.

    An array of NumPy's for each costs more than copying a small one does. Where the module of the class can stack into
    an array of NumPy's (torch can), it does so at once. Nothing is imported for that: a module whose tensors are here
    is here, too.
    """
    module = sys.modules.get(kind.__module__)
    stack, viewed = getattr(module, "stack", None), getattr(module, "from_numpy", None)
    if stack is None or viewed is None or len(set(map(_DTYPE, values))) > 1:
        return _arrays([np.asarray(value) for value in values], path, lease)
    first = np.asarray(values[0])
    if not slot_dtype(first.dtype):
        raise _UnlikeError
    out = _column_for(len(values), first, path, lease)
    stack(values, out=viewed(out))
    return out


def _column_for(rows: int, like: npt.NDArray[Any], path: tuple[Any, ...], lease: Lease | None) -> npt.NDArray[Any]:
    if lease is None or not like.shape:
        return np.empty((rows, *like.shape), like.dtype)
    return lease(path, rows, like.dtype, like.shape)


def _arrays(values: Sequence[npt.NDArray[Any]], path: tuple[Any, ...], lease: Lease | None) -> npt.NDArray[Any]:
    shape, dtype = values[0].shape, values[0].dtype
    if set(map(_SHAPE, values)) != {shape} or len(set(map(_DTYPE, values))) > 1:
        raise _UnlikeError
    if not dtype.isnative or not slot_dtype(dtype):
        raise _UnlikeError
    if not shape:
        if dtype.kind not in "biufc":
            raise _UnlikeError
        return np.array(values, dtype)
    count, out = len(values), _column_for(len(values), values[0], path, lease)
    np.concatenate(values, out=out.reshape(count * shape[0], *shape[1:]))  # five times as fast as np.stack
    return out


def _stacked_slowly(rows: Sequence[Tree], ids: Any, after: str) -> Tree:
    """Stack anything that can be stacked, or say which two rows are not alike."""
    leaves, treedef = tree_.flatten(rows[0])
    paths = tree_.paths(treedef)
    columns = [[_leaf(leaf, ids[0], path, after)] for leaf, path in zip(leaves, paths, strict=True)]
    for number, row in enumerate(rows[1:], 1):
        others, other_def = tree_.flatten(row)
        if row is None and other_def != treedef:
            raise SchemaError(
                f"row {ids[number]} is None{after}. Leave such rows out with .filter(lambda row: row is not None), or "
                "raise an error there and use Loader(on_error='skip')"
            )
        if other_def != treedef:
            raise SchemaError(
                f"row {ids[number]} has the structure {_keys(other_def)}, but row {ids[0]} has {_keys(treedef)}"
                f"{after}. Return the same structure for every row"
            )
        for leaf, path, column in zip(others, paths, columns, strict=True):
            array, first = _leaf(leaf, ids[number], path, after), column[0]
            if array.shape != first.shape or (array.dtype != first.dtype and not both_text(array, first)):
                raise _differs(path, (ids[0], first), (ids[number], array), after)
            column.append(array)
    return tree_.unflatten(treedef, [np.stack(column) for column in columns])


def _leaf(leaf: Any, row: int, path: str, after: str) -> npt.NDArray[Any]:
    where = f"row {row}: {tree_.leaf_label(path)}{after}"
    array = as_leaf(leaf, where)
    text = array.dtype.kind in "US" and not isinstance(leaf, (np.ndarray, list))
    if (text and str(leaf)[-1:] == "\0") or (isinstance(leaf, bytes) and leaf[-1:] == b"\0"):
        raise SchemaError(
            f"{where} ends in a zero byte, which NumPy's fixed-width text cannot keep. "
            "Turn it into an array first: np.frombuffer(value, np.uint8)"
        )
    return array


def both_text(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether both arrays are text of one kind, whose dtypes may differ in how long it is at most."""
    return one.dtype.kind == other.dtype.kind and one.dtype.kind in "UST"


def _keys(treedef: tree_.TreeDef) -> str:
    names = tree_.paths(treedef)
    return "of a single leaf" if names == ("",) else "{" + ", ".join(names) + "}"


def _differs(
    path: str, first: tuple[Any, npt.NDArray[Any]], other: tuple[Any, npt.NDArray[Any]], after: str
) -> SchemaError:
    (one_id, one), (other_id, two) = first, other
    mend = (
        f"{alike_mend(path, one.dtype, two.dtype)} before batch()"
        if one.shape == two.shape
        else "Use padded_batch(), or bring the rows to one shape (pad or crop them) in a map() before batch()"
    )
    label = tree_.leaf_label(path)
    return SchemaError(f"row {other_id}: {label} is {spec_of(two)}, but row {one_id} has {spec_of(one)}{after}. {mend}")
