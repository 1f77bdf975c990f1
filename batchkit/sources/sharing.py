"""Whether a row that a user's code returned may still change: rows made its own where it may.

A function, or a sequence, may fill one array (or dict, or list) anew for every row. All rows of a batch are read
before they are stacked, and would be the last one then. Whoever does that holds the array from the first row on, so
that a run of rows shows it there: by references that the row does not account for.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from batchkit import tree as tree_
from batchkit.tree import Tree

__all__ = ["OwnRows", "lie_apart", "own"]

_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})

_Shared: TypeAlias = "bool | dict[Any, Any]"
"""Of a row, or a part of one: nothing; all of it; or the dict itself, with what of its values."""


def own(row: Tree) -> Tree:
    """Return the row in dicts, tuples, lists and arrays (tensors, too) of its own.

    >>> held = {"x": np.zeros(2), "y": (1, [2, 3])}
    >>> made = own(held)
    >>> made["x"] is held["x"], made["y"][1] is held["y"][1], made["y"]
    (False, False, (1, [2, 3]))
    """
    row = tree_.mapped(row)
    kind = type(row)
    if kind is dict:
        return {key: own(value) for key, value in row.items()}
    if kind is tuple:
        return tuple([own(value) for value in row])
    if isinstance(row, np.ndarray):
        return row.copy()
    if kind is list:
        return [own(value) for value in row]
    if hasattr(row, "_fields"):
        return kind(*map(own, row))
    clone = None if kind in _PLAIN else getattr(row, "clone", None)
    return row if clone is None else clone()


def lie_apart(rows: Sequence[Tree]) -> bool:
    """Whether rows that were read one after the other have no memory in common, so that none was filled anew.

    >>> data, buffer = np.zeros((2, 3)), np.zeros(3)
    >>> lie_apart([(data[0], 1), (data[1], 2)]), lie_apart([(buffer, 1), (buffer, 2)]), lie_apart([data[0], data[0]])
    (True, False, False)
    """
    kind = type(rows[0])
    if set(map(type, rows)) != {kind}:
        return False
    if kind in _PLAIN or issubclass(kind, np.generic):
        return True
    if kind is tuple or hasattr(kind, "_fields"):
        return len(set(map(len, rows))) == 1 and all(map(lie_apart, zip(*rows, strict=True)))
    if len(set(map(id, rows))) < len(rows):
        return False
    if isinstance(rows[0], Mapping):
        keys = rows[0].keys()
        return all(row.keys() == keys for row in rows) and all(lie_apart([row[key] for row in rows]) for key in keys)
    if kind is np.ndarray:
        return _arrays_apart(rows)
    if hasattr(kind, "data_ptr"):  # a tensor
        return len({row.data_ptr() for row in rows}) == len(rows)
    return kind is list and set(map(type, rows[0])) <= _PLAIN


def _arrays_apart(arrays: Sequence[Any]) -> bool:
    if all(array.base is None for array in arrays):
        return True
    if not all(array.flags.c_contiguous for array in arrays):
        return False
    begins = sorted([array.__array_interface__["data"][0] for array in arrays])
    most = max([array.nbytes for array in arrays])
    return all(after - begin >= most for begin, after in itertools.pairwise(begins))


class OwnRows:
    """Makes the rows of one run their own, as far as its first row shows that somebody else holds them."""

    __slots__ = ("_given", "_made_of", "_shared", "looked")

    def __init__(self, made_of: Tree = None) -> None:
        """``made_of`` is what the first row is made of, in containers that no function gets."""
        self._made_of = made_of
        self._given: set[int] | None = None
        self._shared: _Shared = False
        self.looked = False
        """Whether a row was looked at."""

    @property
    def copies(self) -> bool:
        """Whether there is anything to be copied."""
        return self._shared is not False

    def look(self, rows: list[Tree], place: int, given: Tree = None) -> bool:
        """Look at the first row of a run, ``rows[place]``; say whether there is anything to be copied.

        Nothing but the list holds the row. ``given`` is the row that a function was given to make it of, whose arrays
        stay as they are.
        """
        self.looked = True
        if type(given) is dict and rows[place] is given:  # the function has changed the row that it was given
            self._shared = self._values(given) or False
        else:
            self._shared = self._part(rows, place)
        self._made_of = self._given = None
        return self._shared is not False

    def __call__(self, row: Tree) -> Tree:
        """Return the row, with copies of what somebody else holds."""
        return _owned(row, self._shared)

    def _part(self, holder: Any, key: Any) -> _Shared:
        """Say what of ``holder[key]`` is held by somebody else. No name stands for it here, as that would count."""
        kind = type(holder[key])
        if kind in _PLAIN or issubclass(kind, np.generic):
            return False
        if kind is dict:
            values = self._values(holder[key])
            return values if values or _references(holder, key) > _alone() else False
        if kind is tuple or hasattr(kind, "_fields"):
            return any(self._part(holder[key], place) is not False for place in range(len(holder[key])))
        if kind is not list and not issubclass(kind, np.ndarray) and not hasattr(kind, "clone"):
            return False  # nothing that can be filled anew, or not by what is known here
        if _references(holder, key) <= _alone():
            return False
        return not _fixed(holder[key]) and not self._was_given(_root(holder[key]))

    def _values(self, part: dict[Any, Any]) -> dict[Any, _Shared]:
        return {key: shared for key in part if (shared := self._part(part, key)) is not False}

    def _was_given(self, root: Any) -> bool:
        if self._given is None:
            self._given = {id(_root(leaf)) for leaf in tree_.flatten(self._made_of)[0]}
        return id(root) in self._given


def _owned(part: Any, shared: _Shared) -> Any:
    if shared is False:
        return part
    if shared is True or type(part) is not dict:
        return own(part)
    made = dict(part)
    for key, inner in shared.items():
        if key in made:
            made[key] = made[key].copy() if type(made[key]) is np.ndarray else _owned(made[key], inner)
    return made


def _references(holder: Any, key: Any) -> int:
    root = holder[key]
    while isinstance(root, np.ndarray) and root.base is not None:
        root = root.base
    return sys.getrefcount(root)


@functools.cache
def _alone() -> int:
    """Count the references to what only a list holds; of a view, to what only the view holds.

    Counted rather than known: interpreters differ in which references they count.
    """
    return _references([np.empty(2)], 0)


def _fixed(part: Any) -> bool:
    """Whether the memory is read only: a file that is mapped, say, or an array of a framework that never changes."""
    while isinstance(part, np.ndarray) and isinstance(part.base, np.ndarray):
        part = part.base
    return isinstance(part, np.ndarray) and not part.flags.writeable


def _root(part: Any) -> Any:
    while isinstance(part, np.ndarray) and part.base is not None:
        part = part.base
    return part
