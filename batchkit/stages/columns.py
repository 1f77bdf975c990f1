"""Stages that pick, rename or convert leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from batchkit import tree as tree_
from batchkit.casting import DoesNotFitError, cast_into, cast_text, dtype_name, parse_dtype
from batchkit.errors import MissingLeafError, PipelineError, PipelineTypeError, SchemaError, nearest
from batchkit.ragged import Ragged
from batchkit.schema import LeafSpec, as_leaf
from batchkit.stages.stage import ColumnStage
from batchkit.tree import Tree

__all__ = ["Cast", "Drop", "Rename", "Select"]


def _names(names: Any, verb: str) -> tuple[str, ...]:
    given: tuple[str, ...] = (names,) if isinstance(names, str) else tuple(names)
    if not given or not all(isinstance(name, str) for name in given):
        raise PipelineTypeError(f"{verb}() takes one or more leaf names, such as 'image' or 'meta/id', not {given!r}")
    return given


def _missing(name: str, tree: Tree, verb: str) -> MissingLeafError:
    known = list(tree_.paths(tree_.flatten(tree)[1]))
    return MissingLeafError(
        f"{verb}: there is no leaf {name!r}{nearest(name, known)} (there are: {', '.join(known) or 'none with a name'})"
    )


def _covers(name: str, path: str) -> bool:
    return path == name or path.startswith(name + "/")


def _check_names(names: tuple[str, ...] | Mapping[str, Any], tree: Tree, verb: str) -> None:
    known = list(tree_.paths(tree_.flatten(tree)[1]))
    for name in names:
        if not any(_covers(name, path) for path in known):
            raise _missing(name, tree, verb)


def _prune(tree: Tree, keep: Callable[[str], bool], prefix: str = "") -> Tree:
    """Return the tree with only the leaves whose path ``keep`` accepts; emptied branches go too."""
    if isinstance(tree, dict):
        parts = {key: _prune(value, keep, f"{prefix}{key}/") for key, value in tree.items()}
        return {key: value for key, value in parts.items() if value is not _GONE} or _GONE
    if isinstance(tree, tuple):
        kept = tuple(
            part for index, value in enumerate(tree) if (part := _prune(value, keep, f"{prefix}{index}/")) is not _GONE
        )
        return kept or _GONE
    return tree if keep(prefix[:-1]) else _GONE


_GONE: Any = object()


@dataclass(frozen=True)
class Select(ColumnStage):
    """Keep only the leaves of these names, in this order; ``"meta/id"`` reaches into a nesting."""

    verb: ClassVar[str] = "select"
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "names", _names(self.names, self.verb))

    def arguments(self) -> dict[str, Any]:
        return {"names": list(self.names)}

    def apply(self, columns: Tree) -> Tree:
        _check_names(self.names, columns, self.label)
        kept = _prune(columns, lambda path: any(_covers(name, path) for name in self.names))
        if type(kept) is dict:
            order = {name.partition("/")[0]: None for name in self.names}
            return {key: kept[key] for key in order}
        return kept


@dataclass(frozen=True)
class Drop(ColumnStage):
    """Leave out the leaves of these names."""

    verb: ClassVar[str] = "drop"
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "names", _names(self.names, self.verb))

    def arguments(self) -> dict[str, Any]:
        return {"names": list(self.names)}

    def apply(self, columns: Tree) -> Tree:
        _check_names(self.names, columns, self.label)
        kept = _prune(columns, lambda path: not any(_covers(name, path) for name in self.names))
        if kept is _GONE:
            raise SchemaError(f"{self.label} leaves no leaf over: keep at least one")
        return kept


@dataclass(frozen=True)
class Rename(ColumnStage):
    """Give dict keys other names; ``{"meta/id": "uid"}`` renames inside a nesting."""

    verb: ClassVar[str] = "rename"
    names: Mapping[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = isinstance(self.names, Mapping) and self.names
        if not valid or not all(isinstance(name, str) and isinstance(new, str) for name, new in self.names.items()):
            raise PipelineTypeError(f"rename() maps old names to new ones, such as old='new', not {self.names!r}")
        object.__setattr__(self, "names", dict(self.names))

    def arguments(self) -> dict[str, Any]:
        return {"names": dict(self.names)}

    def apply(self, columns: Tree) -> Tree:
        _check_names(dict(self.names), columns, self.label)
        return self._renamed(columns, "")

    def _renamed(self, tree: Tree, prefix: str) -> Tree:
        if isinstance(tree, dict):
            renamed = {}
            for key, value in tree.items():
                new = self.names.get(f"{prefix}{key}", key)
                if new in renamed or (new != key and new in tree and f"{prefix}{new}" not in self.names):
                    raise SchemaError(
                        f"{self.label} would give two leaves the name {new!r}: drop or rename the other one"
                    )
                renamed[new] = self._renamed(value, f"{prefix}{key}/")
            return renamed
        if isinstance(tree, tuple):
            for index in range(len(tree)):
                if f"{prefix}{index}" in self.names:
                    raise SchemaError(f"{self.label}: {prefix}{index} is a place in a tuple and has no name to change")
            parts = (self._renamed(value, f"{prefix}{index}/") for index, value in enumerate(tree))
            return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
        return tree


def _name(dtype: Any) -> str:
    known = parse_dtype(dtype)
    name = dtype_name(known)
    if known.kind == "V" and known.isbuiltin != 2:
        raise PipelineError(f"cast() makes numbers, booleans, text, bytes or times, not {known}. Use a map()")
    return name


@dataclass(frozen=True)
class Cast(ColumnStage):
    """Convert leaves to other dtypes: ``{"image": "float32"}``.

    What is rounded, and what is an error, says :func:`~batchkit.casting.cast_into`; text is never cut off.
    """

    verb: ClassVar[str] = "cast"
    dtypes: Mapping[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.dtypes, Mapping) or not self.dtypes:
            raise PipelineTypeError(f"cast() maps leaf names to dtypes, such as label='int32', not {self.dtypes!r}")
        object.__setattr__(self, "dtypes", {name: _name(dtype) for name, dtype in self.dtypes.items()})

    def arguments(self) -> dict[str, Any]:
        return {"dtypes": dict(self.dtypes)}

    def apply(self, columns: Tree) -> Tree:
        leaves, treedef = tree_.flatten(columns)
        known = tree_.paths(treedef)
        _check_names(self.dtypes, columns, self.label)
        for index, path in enumerate(known):
            for name, dtype in self.dtypes.items():
                if _covers(name, path):
                    leaves[index] = self._cast(leaves[index], parse_dtype(dtype), path)
        return tree_.unflatten(treedef, leaves)

    def _cast(self, leaf: Any, dtype: np.dtype[Any], path: str) -> Any:
        if isinstance(leaf, LeafSpec):
            return LeafSpec(dtype, leaf.shape)
        column = as_leaf(leaf, f"{self.label}: {tree_.leaf_label(path)}")
        if column.dtype == dtype:
            return column
        if isinstance(column, Ragged):
            return Ragged(self._cast(column.values, dtype, path), column.offsets)
        try:
            if column.dtype.kind in "UST" or dtype.kind in "US":
                return cast_text(column, dtype)
            out = np.empty(column.shape, dtype)
            cast_into(column, out)
        except (DoesNotFitError, ValueError, TypeError, OverflowError) as exc:
            raise SchemaError(
                f"{self.label}: {tree_.leaf_label(path)}: {exc}. Cast to a wider dtype, or change the value in a map()"
            ) from exc
        return out
