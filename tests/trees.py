"""Rows and batches as trees, dicts and tuples of NumPy scalars and arrays, in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def leaves(function: Callable[..., Any], *trees: Any) -> Any:
    """Apply a function to the leaves of trees of one structure."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: leaves(function, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, tuple):
        return tuple(leaves(function, *parts) for parts in zip(*trees, strict=True))
    return function(*trees)


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves by their path.

    >>> flat({"a": 1, "b": (2, {"c": 3})})
    {'a': 1, 'b/0': 2, 'b/1/c': 3}
    """
    if isinstance(tree, (dict, tuple)):
        parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
        found = [flat(part, f"{path}/{key}" if path else str(key)) for key, part in parts]
        return {name: leaf for part in found for name, leaf in part.items()}
    return {path: tree}


def stacked(rows: Sequence[Any]) -> Any:
    """Return rows as columns."""
    return leaves(lambda *values: np.stack([np.asarray(value) for value in values]), *rows)


def joined(row: Any, name: str, value: Any) -> Any:
    """Add a leaf: a dict's key, else a tuple's last part."""
    if isinstance(row, dict):
        return {**row, name: value}
    return (*row, value) if isinstance(row, tuple) else (row, value)


def replaced(tree: Any, path: list[str], leaf: Any) -> Any:
    if not path or path == [""]:
        return leaf
    if isinstance(tree, dict):
        return {**tree, path[0]: replaced(tree[path[0]], path[1:], leaf)}
    place = int(path[0])
    return (*tree[:place], replaced(tree[place], path[1:], leaf), *tree[place + 1 :])


def grown(leaf: Any, grow: int, value: Any = 0) -> Any:
    """Add entries behind an array's first axis."""
    if not np.ndim(leaf) or not grow:
        return leaf
    return np.concatenate([leaf, np.full((grow, *leaf.shape[1:]), value, leaf.dtype)])
