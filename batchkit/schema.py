"""What a row or a batch looks like: the dtype and shape of every leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import SchemaError
from batchkit.ragged import Ragged
from batchkit.tree import Tree

__all__ = [
    "LeafSpec",
    "as_leaf",
    "batched",
    "common_schema",
    "describe",
    "native",
    "slot_dtype",
    "spec_of",
    "spec_tree",
]


@dataclass(frozen=True, slots=True)
class LeafSpec:
    """The dtype and shape of one leaf; ``None`` is a length that varies.

    In a row schema the shape is one row's; in a batch schema its first entry is the
    number of rows. A string dtype without a size (``np.dtype("U")``) means any length.

    >>> LeafSpec(np.dtype("float32"), (None, 64))
    float32[?, 64]
    """

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __repr__(self) -> str:
        sides = ", ".join("?" if side is None else str(side) for side in self.shape)
        name = {"U": "str", "S": "bytes", "T": "str"}.get(self.dtype.kind, self.dtype.name)
        return f"{name}[{sides}]" if self.shape else name


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return ``dtype`` in this machine's byte order."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def slot_dtype(dtype: np.dtype[Any]) -> bool:
    """Say whether values of ``dtype`` are plain bytes that may live in a reused buffer."""
    return not dtype.hasobject and dtype.kind != "T" and dtype.itemsize > 0


_CONVERT = "Convert it to numbers, booleans, strings or bytes of one dtype in a map() before batch()"


def as_leaf(value: Any, where: str, mend: str = _CONVERT) -> npt.NDArray[Any]:
    """Return ``value`` as an array without copying where possible.

    Takes arrays, ragged columns, Python and NumPy scalars, lists, and whatever has ``__array__`` (tensors
    of any framework, images). ``where`` begins the message of the :class:`SchemaError` that
    is raised for ``None``, ragged lists and Python objects, and ``mend`` ends that of objects.
    """
    if type(value) is np.ndarray and value.dtype.kind != "O":
        return value
    if type(value) is Ragged:
        return value  # type: ignore[return-value]  # has what a column needs: dtype, shape, ndim, len()
    if value is None:
        raise SchemaError(f"{where} is None. Return a value, or leave the leaf out with drop()")
    if isinstance(value, np.ma.MaskedArray):
        raise SchemaError(f"{where} is a masked array, whose mask would be lost. Fill it first: array.filled(value)")
    if _only_by_index(value):
        raise SchemaError(
            f"{where} is a {type(value).__name__}, which NumPy would only go through index by index. Give arrays, in a "
            "dict or tuple; a data set whose rows are found by index belongs in from_sequence()"
        )
    try:
        array = np.asarray(value)
    except Exception as exc:
        several = ". A list is one leaf: several go into a tuple or a dict" if isinstance(value, list) else ""
        raise SchemaError(
            f"{where} is a {type(value).__name__} that NumPy cannot take as an array: {exc}. "
            f"Convert it to an array of one shape and dtype in a map() before batch(){several}"
        ) from exc
    if array.dtype.kind == "O":
        flat = array.ravel()
        if flat.size and all(type(item) is str for item in flat):
            return array.astype("U")
        if flat.size and all(type(item) is bytes for item in flat):
            return array.astype("S")
        raise SchemaError(f"{where} is a {type(value).__name__} of Python objects. {mend}")
    return array


_ARRAYS = ("__array__", "__array_interface__", "__array_struct__")


def _only_by_index(value: Any) -> bool:
    """Whether there is nothing of an array about it but ``[]``: NumPy would take a mapping's keys, or mix columns."""
    if isinstance(value, (Sequence, np.generic)) or not hasattr(type(value), "__getitem__"):
        return isinstance(value, Mapping)
    if any(hasattr(value, name) for name in _ARRAYS):
        return False
    try:
        memoryview(value)
    except TypeError:
        return True
    return False


def spec_of(array: npt.NDArray[Any]) -> LeafSpec:
    """Return the spec of one value; strings lose their length, which varies from row to row."""
    dtype = array.dtype
    return LeafSpec(np.dtype(dtype.kind) if dtype.kind in "US" else native(dtype), array.shape)


def spec_tree(row: Tree) -> Tree:
    """Return the schema of a row or batch that is at hand."""
    return tree_.map_leaves(lambda leaf: spec_of(as_leaf(leaf, "a leaf")), row)


def batched(row_schema: Tree, rows: int | None) -> Tree:
    """Return the schema of a batch of ``rows`` rows (``None``: the number varies)."""
    return tree_.map_leaves(lambda spec: LeafSpec(spec.dtype, (rows, *spec.shape)), row_schema)


def common_schema(one: Tree, other: Tree, exact: bool = False) -> Tree:
    """Return the schema of rows of two schemas; a side in which they differ varies.

    Text is alike whatever its length; ``exact``: no side may differ.

    Raises:
        SchemaError: other differences; names the leaf and both specs.

    >>> common_schema({"x": LeafSpec(np.dtype("int8"), (2, 3))}, {"x": LeafSpec(np.dtype("int8"), (2, 5))})
    {'x': int8[2, ?]}
    """
    ones, treedef = tree_.flatten(one)
    others, other_def = tree_.flatten(other)
    if treedef != other_def:
        raise SchemaError(f"its rows are {describe(other)}, not {describe(one)}. Bring them to one structure")
    merged = []
    for path, mine, theirs in zip(tree_.paths(treedef), ones, others, strict=True):
        text = mine.dtype.kind in "US" and mine.dtype.kind == theirs.dtype.kind
        same = len(mine.shape) == len(theirs.shape) and not (exact and mine.shape != theirs.shape)
        if not same or not (text or mine.dtype == theirs.dtype):
            mend = (
                "bring them to one shape in a map()" if mine.dtype == theirs.dtype else "give them one dtype by cast()"
            )
            raise SchemaError(f"{tree_.leaf_label(path)} is {theirs}, not {mine}: {mend}")
        sides = tuple(a if a == b else None for a, b in zip(mine.shape, theirs.shape, strict=True))
        merged.append(LeafSpec(np.dtype(mine.dtype.kind) if text else mine.dtype, sides))
    return tree_.unflatten(treedef, merged)


def describe(schema: Tree) -> str:
    """Return a schema in one readable line.

    >>> describe({"x": LeafSpec(np.dtype("float32"), (3,)), "y": LeafSpec(np.dtype("int64"), ())})
    '{x: float32[3], y: int64}'
    """
    if isinstance(schema, LeafSpec):
        return repr(schema)
    if isinstance(schema, dict):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in schema.items()) + "}"
    return "(" + ", ".join(describe(value) for value in schema) + ")"
