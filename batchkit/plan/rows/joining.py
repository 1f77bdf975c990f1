"""Several runs of rows put together into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from batchkit import tree as tree_
from batchkit.packing import Packed
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.lineage import Lineage
from batchkit.ragged import Ragged
from batchkit.sources.stacking import split_rows
from batchkit.tree import Tree

__all__ = ["joined"]


def joined(parts: Sequence[Rows]) -> Rows:
    """Return runs of rows, at least one, as one run: columns where all have columns and they are alike."""
    if len(parts) == 1:
        return parts[0]
    epochs: Any = parts[0].epochs
    if not all(isinstance(part.epochs, int) and part.epochs == epochs for part in parts):
        epochs = np.concatenate([np.broadcast_to(np.asarray(part.epochs, np.int64), len(part)) for part in parts])
    columns, items = None, None
    if any(part.items is not None or part.columns is not None for part in parts):
        columns = _columns(parts) if all(part.items is None for part in parts) else None
        if columns is None:
            items = [
                item for part in parts for item in (split_rows(part.columns) if part.items is None else part.items)
            ]
    return Rows(
        np.concatenate([part.ids for part in parts]),
        epochs,
        columns,
        items,
        places=_optional([part.places for part in parts]),
        subs=_subs(parts),
        origins=_origins(parts),
        at=_optional([part.at for part in parts]),
        **_packed(parts),
    )


def _packed(parts: Sequence[Rows]) -> dict[str, Any]:
    """Return packed rows that are not put together yet as of one run of segments."""
    if any(part.packed is None or part.segments is None for part in parts):
        return {}
    segments: list[Rows] = []
    moved: list[Packed] = []
    first = 0
    for part in parts:
        assert part.packed is not None
        assert part.segments is not None
        if not segments or segments[-1] is not part.segments:
            first += len(segments[-1]) if segments else 0
            segments.append(part.segments)
        moved.append(part.packed.of_rows(part.packed.rows + first))
    return {"packed": Packed.joined(moved), "segments": joined(segments)}


def _optional(arrays: list[Any]) -> Any:
    return None if any(array is None for array in arrays) else np.concatenate(arrays)


def _origins(parts: Sequence[Rows]) -> Lineage | None:
    found = [part.origins for part in parts if part.origins is not None]
    return Lineage.joined(found) if len(found) == len(parts) else None


def _subs(parts: Sequence[Rows]) -> Any:
    if all(part.subs is None for part in parts):
        return None
    return np.concatenate([np.zeros(len(part), np.int64) if part.subs is None else part.subs for part in parts])


def _columns(parts: Sequence[Rows]) -> Tree | None:
    first, treedef = tree_.flatten(parts[0].columns)
    columns = [first]
    for part in parts[1:]:
        leaves, other = tree_.flatten(part.columns)
        if other != treedef or not all(map(_alike, first, leaves)):
            return None
        columns.append(leaves)
    return tree_.unflatten(treedef, [_concatenated(leaves) for leaves in zip(*columns, strict=True)])


def _alike(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one.dtype == other.dtype and one.shape[1:] == other.shape[1:]


def _concatenated(leaves: Sequence[Any]) -> Any:
    if not isinstance(leaves[0], Ragged):
        return np.concatenate(leaves)
    values = np.concatenate([leaf.values[leaf.offsets[0] : leaf.offsets[-1]] for leaf in leaves])
    offsets = np.zeros(sum(map(len, leaves)) + 1, np.int64)
    np.cumsum(np.concatenate([leaf.lengths for leaf in leaves]), out=offsets[1:])
    return Ragged(values, offsets)
