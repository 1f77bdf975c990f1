"""What stored rows look like: the columns, and the nesting that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.casting import parse_dtype
from batchkit.errors import SchemaError
from batchkit.schema import LeafSpec

__all__ = ["Column", "Lease", "Leaves", "Outline", "Store", "Taken", "joined", "merged"]

Leaf: TypeAlias = "npt.NDArray[Any] | list[npt.NDArray[Any]]"
"""The values of one column for several rows: one array where all have one shape, else one a row."""

Leaves: TypeAlias = list[Leaf]

Lease: TypeAlias = Callable[[int, int, "np.dtype[Any]", "tuple[int, ...]"], "npt.NDArray[Any]"]
"""``lease(column, rows, dtype, row_shape)`` returns memory for the rows of a column."""


@dataclass(frozen=True, slots=True)
class Column:
    """One leaf of all rows: its name, dtype, and a row's shape, in which ``None`` is a size that varies.

    ``kind`` is ``"array"``, ``"ragged"`` (a leaf that is a :class:`~batchkit.Ragged` of several rows) or
    ``"text"``, whose values are single characters with one more axis, the width.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    kind: str = "array"

    @property
    def varies(self) -> bool:
        """Whether rows differ in shape."""
        return None in self.shape

    @property
    def nbytes(self) -> int:
        """The bytes of a row, where rows are alike."""
        return self.dtype.itemsize * int(np.prod(self.sizes, dtype=np.int64))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a row, where rows are alike."""
        assert not self.varies
        return tuple(side for side in self.shape if side is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the column as JSON values.

        Raises:
            SchemaError: its dtype cannot be written down.
        """
        return {
            "name": self.name,
            "dtype": _dtype_to_json(self.dtype, self.name),
            "shape": list(self.shape),
            "kind": self.kind,
        }

    @classmethod
    def from_json(cls, content: Any) -> Column:
        """Return the column of :meth:`to_json`."""
        shape = tuple(None if side is None else int(side) for side in content["shape"])
        return cls(str(content["name"]), _dtype_from_json(content["dtype"]), shape, str(content["kind"]))


@dataclass(frozen=True, slots=True)
class Outline:
    """The columns of stored rows; those behind the first ``addresses`` are the leaves of ``nesting``.

    ``form`` is what rows are given back as: ``"items"``, one tree a row, or ``"columns"``.
    """

    columns: tuple[Column, ...]
    addresses: int
    nesting: tree_.TreeDef
    form: str

    @property
    def varies(self) -> bool:
        """Whether rows differ in shape."""
        return any(column.varies for column in self.columns)

    def to_json(self) -> dict[str, Any]:
        """Return the outline as JSON values.

        Raises:
            SchemaError: the nesting has parts that are no dict with text keys and no plain tuple.
        """
        count = len(self.columns) - self.addresses
        return {
            "form": self.form,
            "addresses": self.addresses,
            "nesting": _nesting_to_json(tree_.unflatten(self.nesting, list(range(count)))),
            "columns": [column.to_json() for column in self.columns],
        }

    @classmethod
    def from_json(cls, content: Any) -> Outline:
        """Return the outline of :meth:`to_json`.

        Raises:
            ValueError: it is damaged.
        """
        columns = tuple(Column.from_json(column) for column in content["columns"])
        leaves, nesting = tree_.flatten(_nesting_from_json(content["nesting"]))
        if leaves != list(range(len(columns) - content["addresses"])) or content["form"] not in ("items", "columns"):
            raise ValueError("the nesting does not belong to the columns")
        return cls(columns, int(content["addresses"]), nesting, content["form"])


class Taken(NamedTuple):
    """What a store has of the rows that were asked for."""

    there: npt.NDArray[np.bool_]
    """Which of them it has."""
    leaves: Leaves
    """The values of those that are there, in memory of their own."""
    outline: Outline | None
    """What they look like; ``None`` where none is there."""


class Store(Protocol):
    """Rows by position. All methods may be called from several threads."""

    @property
    def accepts(self) -> bool:
        """Whether more rows can be stored."""
        ...

    def take(self, positions: npt.NDArray[np.int64], lease: Lease) -> Taken:
        """Return what is there of some rows."""
        ...

    def write(self, positions: npt.NDArray[np.int64], outline: Outline, leaves: Leaves) -> None:
        """Store rows, as many as there is room for.

        Raises:
            SchemaError: they are not like those that are there.
        """
        ...


def merged(one: Outline, other: Outline) -> Outline:
    """Return the outline that holds the rows of both.

    Raises:
        SchemaError: they have other leaves, dtypes or numbers of axes; names the leaf and the mend.
    """
    if one == other:
        return one
    if one.nesting != other.nesting or one.addresses != other.addresses or one.form != other.form:
        have, had = (", ".join(column.name for column in each.columns[each.addresses :]) for each in (other, one))
        raise SchemaError(
            f"the rows so far have the leaves ({had}), but now there are some with ({have}). Return the same "
            "structure for every row"
        )
    columns = []
    for old, new in zip(one.columns, other.columns, strict=True):
        if old.dtype != new.dtype or len(old.shape) != len(new.shape) or old.kind != new.kind:
            was, now = (LeafSpec(each.dtype, each.shape) for each in (old, new))
            raise SchemaError(
                f"{tree_.leaf_label(old.name)} is {now}, but {was} in the rows so far. Return one dtype and one "
                "number of axes for every row"
            )
        sides = tuple(side if side == its else None for side, its in zip(old.shape, new.shape, strict=True))
        columns.append(replace(old, shape=sides))
    return replace(one, columns=tuple(columns))


def joined(one: Leaf, other: Leaf, places: Sequence[npt.NDArray[np.intp]]) -> Leaf:
    """Return the values of two groups of rows, each at its places."""
    count = len(places[0]) + len(places[1])
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape[1:] == other.shape[1:]:
        column = np.empty((count, *one.shape[1:]), one.dtype)
        column[places[0]], column[places[1]] = one, other
        return column
    values: list[Any] = [None] * count
    for leaf, where in zip((one, other), places, strict=True):
        for place, value in zip(where.tolist(), leaf, strict=True):
            values[place] = np.asarray(value)
    return values


def _dtype_to_json(dtype: np.dtype[Any], name: str) -> Any:
    if dtype.names is not None:
        fields = [[*map(_listed, field)] for field in dtype.descr]
        if _dtype_from_json(fields) == dtype:
            return fields
    elif np.dtype(dtype.str) == dtype and dtype.kind not in "OT":
        return dtype.str
    elif dtype.kind not in "OT":
        try:
            if parse_dtype(dtype.name) == dtype:
                return dtype.name
        except ValueError:
            pass
    raise SchemaError(
        f"{tree_.leaf_label(name)} is {dtype}, which cannot be kept in a .npy file. Convert it to numbers, "
        "booleans, strings or bytes of one dtype in a map() before, or keep the rows in memory: cache()"
    )


def _listed(value: Any) -> Any:
    return [_listed(part) for part in value] if isinstance(value, (list, tuple)) else value


def _dtype_from_json(content: Any) -> np.dtype[Any]:
    if isinstance(content, list):
        return np.dtype([_field(field) for field in content])
    return parse_dtype(content)


def _field(content: Any) -> tuple[Any, ...]:
    name, kind, *shape = content
    inner = _dtype_from_json(kind) if isinstance(kind, list) else kind
    return (name, inner, *(tuple(sides) for sides in shape))


def _nesting_to_json(tree: Any) -> Any:
    if type(tree) is dict and all(type(key) is str for key in tree):
        return {"dict": [[key, _nesting_to_json(part)] for key, part in tree.items()]}
    if type(tree) is tuple:
        return [_nesting_to_json(part) for part in tree]
    if type(tree) is int:
        return tree
    raise SchemaError(
        f"rows hold a {type(tree).__name__} as a nesting ({tree!r}), and a file can say that of dicts with "
        "text as keys and of plain tuples alone. Return these, or keep the rows in memory: cache()"
    )


def _nesting_from_json(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _nesting_from_json(part) for key, part in content["dict"]}
    return tuple(_nesting_from_json(part) for part in content) if isinstance(content, list) else content
