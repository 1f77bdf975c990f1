"""Nesting: how dicts, tuples and named tuples of arrays are taken apart and put together.

A *tree* is any nesting of dicts, tuples and named tuples; everything else is a *leaf*.
A list is a leaf: it is an array written out (``{"x": [1, 2, 3]}`` has one leaf, not three).
``None`` is a leaf too, so that it is reported instead of being dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import optree

__all__ = ["Tree", "TreeDef", "flatten", "joiner", "leaf_label", "map_leaves", "mapped", "paths", "unflatten"]

Tree: TypeAlias = Any
"""A nesting of dicts, tuples and named tuples with leaves in it."""

TreeDef: TypeAlias = optree.PyTreeSpec
"""The nesting alone, without the leaves."""


def _is_leaf(node: Any) -> bool:
    return type(node) is list


def flatten(tree: Tree) -> tuple[list[Any], TreeDef]:
    """Return the leaves, dict keys in sorted order, and the nesting they came from.

    >>> leaves, nesting = flatten({"b": 1, "a": (2, [3, 4])})
    >>> leaves
    [2, [3, 4], 1]
    >>> unflatten(nesting, leaves)
    {'b': 1, 'a': (2, [3, 4])}
    """
    leaves, treedef = optree.tree_flatten(tree, is_leaf=_is_leaf, none_is_leaf=True)
    return leaves, treedef


def unflatten(treedef: TreeDef, leaves: Sequence[Any]) -> Tree:
    """Put leaves back into their nesting; the dict keys keep their first order."""
    return treedef.unflatten(leaves)


def joiner(tree: Tree) -> Callable[[Sequence[Any]], Tree]:
    """Return what puts leaves into the nesting of ``tree``; for use with every batch.

    >>> joiner({"a": 1, "b": 2})([3, 4]), joiner({"b": 1, "a": (2,)})([3, 4])
    ({'a': 3, 'b': 4}, {'b': 4, 'a': (3,)})
    """
    treedef = flatten(tree)[1]
    if type(tree) is dict and tuple(tree) == paths(treedef):  # flat, and in order: half the time
        return lambda leaves: dict(zip(tree, leaves))  # noqa: B905  # once a batch: strict costs
    unflattened: Callable[[Sequence[Any]], Tree] = treedef.unflatten
    return unflattened


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Return the same nesting with ``function`` applied to every leaf.

    >>> map_leaves(str, {"a": 1, "b": (2,)})
    {'a': '1', 'b': ('2',)}
    """
    return optree.tree_map(function, tree, is_leaf=_is_leaf, none_is_leaf=True)


def mapped(tree: Any) -> Any:
    """Return a mapping that would be a leaf as a dict: rows and batches of Hugging Face's tokenizers and collators.

    >>> from collections import UserDict
    >>> mapped(UserDict(a=1)), mapped((1, 2))
    ({'a': 1}, (1, 2))
    """
    if type(tree) is dict or not isinstance(tree, Mapping):
        return tree
    node: Any = tree
    return dict(tree) if optree.tree_is_leaf(node, none_is_leaf=True) else tree


@functools.lru_cache(maxsize=256)
def paths(treedef: TreeDef) -> tuple[str, ...]:
    """Return a readable path for every leaf, in the order of :func:`flatten`.

    >>> paths(flatten({"image": 0, "meta": (1, 2)})[1])
    ('image', 'meta/0', 'meta/1')
    """
    accessors = treedef.accessors()
    return tuple("/".join(str(getattr(step, "field", step.entry)) for step in accessor) for accessor in accessors)


def leaf_label(path: str) -> str:
    """Return how an error message names a leaf.

    >>> leaf_label("meta/0"), leaf_label("")
    ("leaf 'meta/0'", 'the only leaf')
    """
    return f"leaf {path!r}" if path else "the only leaf"
