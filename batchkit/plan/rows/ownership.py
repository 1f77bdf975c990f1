"""Whether an array that a user's function returned belongs to the batch alone.

A function may return an array that somebody else holds, too: a view of the data set, a table
of its own, a buffer that it fills anew at each call. Handed over as it is, a batch that the
caller keeps could change later. Such arrays are copied; all others are not.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.ragged import Ragged
from batchkit.tree import Tree

__all__ = ["owned", "roots"]


def roots(columns: Tree) -> set[int]:
    """Return the identities of what holds the memory of each leaf."""
    return {id(_root(leaf)) for leaf in tree_.flatten(columns)[0]}


def owned(leaves: list[Any], given: set[int]) -> None:
    """Replace by copies those of the leaves that somebody else refers to.

    Nobody but this list holds ``leaves``. ``given`` are the :func:`roots` of what the function
    was given, which belongs to the batch already.
    """
    fresh = _fresh_references()
    for index in range(len(leaves)):
        if isinstance(leaves[index], Ragged):  # never handed over as it is
            continue
        if _references(leaves, index, given) > fresh[leaves[index].base is not None]:
            leaves[index] = leaves[index].copy()


def _references(leaves: list[Any], index: int, given: set[int]) -> int:
    root = _root(leaves[index])
    if id(root) in given:
        return 0
    if isinstance(root, memoryview):  # says nothing of who else holds the memory behind it
        return sys.maxsize
    return sys.getrefcount(root)


def _root(array: npt.NDArray[Any]) -> Any:
    root: Any = array
    while isinstance(root, np.ndarray) and root.base is not None:
        root = root.base
    return root


@functools.cache
def _fresh_references() -> tuple[int, int]:
    """Count the references to a new array in a list, and to one behind a new view of it.

    Counted rather than known: interpreters differ in which references they count.
    """
    leaves: list[Any] = [np.empty(2), np.empty(2)[:1]]
    return _references(leaves, 0, set()), _references(leaves, 1, set())
