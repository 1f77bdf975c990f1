"""Which shapes batches can have, where that is settled before any is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import SchemaError
from batchkit.padding import fresh, padded_rows
from batchkit.plan.memory import FreshMemory
from batchkit.plan.numbered.batches import pad_columns
from batchkit.plan.numbered.placing import Placed, call_of, placed_stages
from batchkit.plan.plan import Plan
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.rowwise import call_batches
from batchkit.preview import first_row
from batchkit.schema import LeafSpec
from batchkit.sources.stacking import stack_rows
from batchkit.tree import Tree

__all__ = ["empty_slices", "static_shapes"]


def empty_slices(plan: Plan) -> str | None:
    """Return why some ranks get batches of no rows, and the mend; ``None`` where that is not so, or not known.

    A batch is cut for all ranks, so that one of fewer rows than there are ranks leaves some without any.
    """
    _, world = plan.shard
    cuts = [stage for stage in plan.pipeline.stages if isinstance(stage, (st.Batch, st.Rebatch))]
    if not cuts or cuts[-1].size is None:
        return None
    nothing = "get nothing of it (a mean over no rows is NaN)"
    if cuts[-1].size < world:
        return (
            f"{cuts[-1].label} is cut for {world} ranks, so that some {nothing}: size counts the rows over all ranks, "
            f"give at least {world}"
        )
    if plan.fewest_rows is None or plan.fewest_rows >= world:
        return None
    return (
        f"{cuts[-1].label}: the last batch of an epoch has only {plan.fewest_rows} of its rows left for {world} ranks, "
        f"so that some {nothing}. Say remainder='drop', or remainder='pad'"
    )


def static_shapes(plan: Plan) -> tuple[Tree, ...]:
    """Return the schema of every shape that a rank's batches can have, each once.

    What the stages make of the first row is tried for every shape.

    Raises:
        SchemaError: the shapes depend on the data; names the stage and the mend.
    """
    placed = placed_stages(plan.pipeline)
    cuts = [place for place, one in enumerate(placed) if isinstance(one.stage, st.Batch)]
    if not cuts:
        raise SchemaError("the generator cuts the batches, so that their shapes are not known: add rebatch(size)")
    cut, behind = placed[cuts[-1]], placed[cuts[-1] + 1 :]
    for one in behind:
        if isinstance(one.stage, st.Filter):
            raise _varies(one, "leaves rows out of batches", "Filter in front of the last batch()")
    if plan.collates:
        raise _varies(
            cut,
            "leaves the shapes of a batch to its function",
            "Use padded_batch(length=...) or bucket_batch()",
        )
    row = first_row(plan.pipeline.source, [one.stage for one in placed[: cuts[-1]]])
    if row is None:
        raise SchemaError("there is no first row to look at, so that the shapes of batches are not known")
    made: list[Tree] = []
    for rows, padding in _variants(plan, cut):
        shape = _tried(row, rows, padding, cut.stage.remainder == "pad", behind)  # type: ignore[attr-defined]
        if shape not in made:
            made.append(shape)
    return tuple(made)


def _variants(plan: Plan, cut: Placed) -> list[tuple[int, st.PaddedBatch | None]]:
    """Return how many rows each kind of batch has on this rank, and how they are filled up."""
    stage = cut.stage
    assert isinstance(stage, st.Batch)
    if isinstance(stage, st.BucketBatch):
        if stage.pad_to != "bucket" or any(padding.length is None for padding in plan.paddings):
            raise _varies(cut, "fills rows up to the longest", "Use pad_to='bucket', with a last boundary")
        if stage.remainder == "keep":
            raise _varies(cut, "keeps smaller batches at the end", "Use remainder='pad' or 'drop'")
        return [(_share(padding.size, stage.remainder, plan.shard), padding) for padding in plan.paddings]
    padding = stage if isinstance(stage, st.PaddedBatch) else None
    if padding is not None and not padding.static:
        raise _varies(cut, "fills rows up to the longest", "Give it a length")
    if stage.remainder == "keep" and plan.rows_per_batch is None:
        raise _varies(cut, "may keep a smaller last batch", "Use remainder='pad' or 'drop'")
    return [(_share(stage.size, stage.remainder, plan.shard), padding)]


def _share(size: int, remainder: str, shard: tuple[int, int]) -> int:
    rank, world = shard
    return -(-size // world) if remainder == "pad" else size * (rank + 1) // world - size * rank // world


def _varies(one: Placed, what: str, mend: str) -> SchemaError:
    return SchemaError(f"stage {one.number} {one.stage.label} {what}, so that shapes are not static. {mend}")


def _tried(row: Tree, rows: int, padding: st.PaddedBatch | None, masked: bool, behind: Sequence[Placed]) -> Tree:
    ids = np.zeros(rows, np.int64)
    if padding is None:
        columns = stack_rows([row] * rows, ids)
    else:
        columns = padded_rows(padding, [_cut_off(row, padding)] * rows, ids, "", fresh)
    made = Rows(ids, 0, columns)
    if masked:
        made = pad_columns(made, rows)
    made = call_batches(made, [call_of(one) for one in behind if one.called], FreshMemory().sheet)
    return tree_.map_leaves(lambda leaf: LeafSpec(_unsized(leaf.dtype), leaf.shape), made.columns)


def _cut_off(row: Tree, padding: st.PaddedBatch) -> Tree:
    """Return a row that is not longer than its bucket."""
    leaves, treedef = tree_.flatten(row)
    for index, path in enumerate(tree_.paths(treedef)):
        sides = padding.sides(path)
        if sides is not None and np.ndim(leaves[index]):
            leaves[index] = np.asarray(leaves[index])[tuple(slice(side) for side in sides)]
    return tree_.unflatten(treedef, leaves)


def _unsized(dtype: Any) -> Any:
    return np.dtype(dtype.kind) if dtype.kind in "US" else dtype
