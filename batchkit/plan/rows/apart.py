"""Rows that were made of one row, none of which shares with another what a function may change.

A function may change the row that it is given: put another array under a name, or write to an array. Where
``flat_map`` returns ``[row] * 3``, or windows overlap, that would change the other rows, too.
"""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.sources.sharing import own
from batchkit.tree import Tree

__all__ = ["apart"]

_PLAIN = frozenset({int, float, bool, str, bytes, type(None), np.int64, np.int32, np.float64, np.float32, np.bool_})

_COMPARED = 8
"""With so many arrays another one is compared: beyond, finding out where each lies takes less time."""

_Taken: TypeAlias = "dict[int, Any]"
"""By the identity of what holds memory, what of it is some row's: arrays, or from which address to which."""


def apart(rows: list[Tree]) -> list[Tree]:
    """Return the rows in dicts of their own; what a row before has, too, is copied.

    >>> row = {"x": np.zeros(4)}
    >>> first, second = apart([row, row])
    >>> first["x"] is row["x"], second["x"] is row["x"]
    (True, False)
    >>> [part["x"].base is row["x"] for part in apart([{"x": row["x"][:2]}, {"x": row["x"][2:]}, {"x": row["x"][1:3]}])]
    [True, True, False]
    """
    if len(rows) < 2:
        return rows
    taken: _Taken = {}
    return [_apart(row, taken) for row in rows]


def _apart(part: Any, taken: _Taken) -> Any:
    kind = type(part)
    if kind is dict:
        # Once a row, so that what most rows are made of is told apart here.
        return {
            key: value
            if type(value) in _PLAIN or (type(value) is np.ndarray and _takes(value, taken))
            else _apart(value, taken)
            for key, value in part.items()
        }
    if kind is tuple:
        return tuple([_apart(value, taken) for value in part])
    if isinstance(part, np.ndarray):
        return part if _takes(part, taken) else part.copy()
    if hasattr(part, "_fields"):
        return kind(*[_apart(value, taken) for value in part])
    if kind is not list and not hasattr(kind, "clone"):  # nothing that can be changed, or not by what is known here
        return part
    known = id(part) in taken
    taken[id(part)] = None
    return own(part) if known else part


def _takes(array: npt.NDArray[Any], taken: _Taken) -> bool:
    """Take memory for a row; say whether no row before has any of it."""
    root: Any = array
    while (base := getattr(root, "base", None)) is not None and isinstance(root, np.ndarray):
        root = base
    before = taken.get(id(root))
    if before is None:
        taken[id(root)] = [array]
        return True
    if not array.flags.writeable:
        return True
    if type(before) is list and len(before) < _COMPARED:
        for other in before:
            if np.may_share_memory(array, other):
                return False
        before.append(array)
        return True
    if type(before) is list:
        spans = [_span(other) for other in before]
        before = min(start for start, _ in spans), max(stop for _, stop in spans)
    start, stop = _span(array)
    if array.size and start < before[1] and stop > before[0]:
        return False
    taken[id(root)] = min(start, before[0]), max(stop, before[1])
    return True


def _span(array: npt.NDArray[Any]) -> tuple[int, int]:
    if not array.flags.c_contiguous:
        return 0, sys.maxsize
    start = int(array.__array_interface__["data"][0])
    return start, start + array.nbytes
