"""Finding a leaf of a batch by its path, and putting another array in its place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.errors import MissingLeafError, PipelineError, PipelineTypeError, SchemaError, nearest

if TYPE_CHECKING:
    from batchkit.random import RowRandom

__all__ = ["Array", "Leaf", "check_rng", "choice", "fitting", "number", "pair", "probability"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of a batch: its array, the way to it, and how messages name it (``normalize: leaf 'image'``)."""

    array: Array
    way: tuple[Any, ...]
    where: str

    @classmethod
    def of(cls, batch: Any, path: str | None, who: str, kinds: str = "biuf") -> Leaf:
        """Return the leaf at ``path``; ``kinds`` are the dtype kinds it may have.

        Raises :class:`MissingLeafError` where there is none, :class:`SchemaError` where it is no
        array of one row or more axes, or one of another kind.
        """
        way = _way(batch, path, who)
        found = _follow(batch, way)
        where = f"{who}: leaf {path!r}" if path is not None else f"{who}: the only leaf"
        if not isinstance(found, np.ndarray):
            raise SchemaError(
                f"{where} is a {type(found).__name__}: transforms take NumPy arrays. "
                "Name a leaf, not a branch, and put the transform behind batch()"
            )
        if found.ndim == 0:
            raise SchemaError(f"{where} is a single number without a row axis: put the transform behind batch()")
        if found.dtype.kind not in kinds:
            raise SchemaError(f"{where} is {found.dtype}: use {_KINDS[kinds]}, for instance behind a cast()")
        return cls(found, way, where)

    def replaced(self, batch: Any, array: Array) -> Any:
        """Return the batch with ``array`` in this place; all else is what it was."""
        return _replaced(batch, self.way, array)


_KINDS = {"biuf": "numbers", "iu": "integers", "iuf": "integers or floats", "f": "floats"}


def _names(node: Any) -> list[tuple[str, Any]]:
    """Return the names and keys of the branches of a node; none for a leaf."""
    if isinstance(node, dict):
        return [(str(key), key) for key in node]
    if isinstance(node, tuple):
        return [(str(name), index) for index, name in enumerate(getattr(node, "_fields", range(len(node))))]
    return []


def _way(node: Any, path: str | None, who: str) -> tuple[Any, ...]:
    if path is None:
        if not _names(node):
            return ()
        raise MissingLeafError(f"{who}: say which leaf: leaf='...' (there are: {', '.join(_paths(node))})")
    if not isinstance(path, str):
        raise PipelineTypeError(f"{who}(leaf) is the name of a leaf, such as 'image' or 'meta/image', not {path!r}")
    way = _search(node, path)
    if way is None:
        known = list(_paths(node))
        there = f"there are: {', '.join(known)}" if known else "the batch is one array without names: leave leaf out"
        raise MissingLeafError(f"{who}: there is no leaf {path!r}{nearest(path, known)} ({there})")
    return way


def _search(node: Any, path: str) -> tuple[Any, ...] | None:
    for name, key in _names(node):
        if path == name:
            return (key,)
        if path.startswith(f"{name}/"):
            rest = _search(node[key], path[len(name) + 1 :])
            if rest is not None:
                return (key, *rest)
    return None


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    branches = _names(node)
    if not branches and prefix:
        yield prefix[:-1]
    for name, key in branches:
        yield from _paths(node[key], f"{prefix}{name}/")


def _follow(node: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        node = node[key]
    return node


def _replaced(node: Any, way: tuple[Any, ...], array: Array) -> Any:
    if not way:
        return array
    inner = _replaced(node[way[0]], way[1:], array)
    if isinstance(node, tuple):
        parts = [inner if index == way[0] else part for index, part in enumerate(node)]
        return type(node)(*parts) if hasattr(node, "_fields") else tuple(parts)
    changed = copy.copy(node)
    changed[way[0]] = inner
    return changed


def check_rng(rng: RowRandom, leaf: Leaf, who: str) -> None:
    """Make sure that ``rng`` draws a value for every row of the leaf."""
    if not hasattr(rng, "__len__"):
        raise PipelineTypeError(f"{who} works on whole batches: put random_map({who}) behind batch()")
    if len(rng) != len(leaf.array):
        raise SchemaError(
            f"{leaf.where} has {len(leaf.array)} rows, but rng draws for {len(rng)}: give the rng of this batch"
        )


def number(value: Any, name: str, least: float = -np.inf, above: float = -np.inf) -> float:
    """Return a finite number that is at least ``least`` and more than ``above``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise PipelineTypeError(f"{name} must be a number, not {value!r}")
    if not (np.isfinite(value) and value >= least and value > above):
        wanted = f" >= {least:g}" if least > -np.inf else f" > {above:g}" if above > -np.inf else ""
        raise PipelineError(f"{name} must be a finite number{wanted}, not {value!r}")
    return float(value)


def probability(value: Any, name: str) -> float:
    """Return a number in [0, 1]."""
    chance = number(value, name)
    if not 0.0 <= chance <= 1.0:
        raise PipelineError(f"{name} is a probability, in 0..1, not {value!r}")
    return chance


def pair(value: Any, name: str, least: int) -> tuple[int, int]:
    """Return (vertical, horizontal) of one integer or a pair of integers."""
    given = (value, value) if isinstance(value, (int, np.integer)) else tuple(value) if _listed(value) else ()
    if len(given) != 2 or not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in given):
        raise PipelineTypeError(f"{name} must be an integer or a pair (vertical, horizontal), not {value!r}")
    if min(given) < least:
        raise PipelineError(f"{name} must be >= {least}, not {value!r}")
    return int(given[0]), int(given[1])


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def choice(value: Any, name: str, known: tuple[str, ...]) -> str:
    """Return ``value``, which must be one of ``known``."""
    if value not in known:
        hint = nearest(value, list(known)) if isinstance(value, str) else ""
        raise PipelineError(f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}{hint}")
    return str(value)


def fitting(value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return ``value`` as a scalar of ``dtype``; a fill that the dtype cannot hold is an error."""
    wanted = number(value, name) if not isinstance(value, bool) else value
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if wanted != int(wanted) or not limits.min <= wanted <= limits.max:
            raise PipelineError(f"{name}={value!r} does not fit {dtype}: give an integer in {limits.min}..{limits.max}")
        return dtype.type(int(value))
    if dtype.kind == "b" and wanted not in (0, 1):
        raise PipelineError(f"{name}={value!r} does not fit bool: give True or False")
    return dtype.type(wanted)
