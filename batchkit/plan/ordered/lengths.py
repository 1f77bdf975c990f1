"""How long rows are, as packing and bucketing ask: known beforehand, or seen in the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.bucketing import bucket_lengths
from batchkit.packing import packed_lengths, packed_schema
from batchkit.plan.numbered.indexed import indexed_nodes
from batchkit.plan.numbered.placing import Placed
from batchkit.plan.ordered.assembling import Lengths
from batchkit.plan.rows.calls import Rows
from batchkit.sources import RaggedSource
from batchkit.tree import Tree

__all__ = ["all_lengths", "known_lengths", "lengths_of", "row_schema"]

_KEEPS_LENGTHS = (st.Select, st.Drop, st.Rename, st.Cast)


def known_lengths(source: Any, placed: Sequence[Placed], place: int) -> Lengths | None:
    """Return what tells how long rows at positions are without reading them; ``None`` if nothing does.

    ``placed[place]`` is the stage that asks, behind stages that map positions to positions.
    """
    stage, before = placed[place].stage, placed[:place]
    given = stage.known_lengths if isinstance(stage, st.BucketBatch) else None
    if not all(isinstance(one.stage, (st.OrderStage, st.Cache)) or one.called for one in before):
        return None  # behind windows and batches a row is not a row of the source
    if given is None and not _ragged(source, stage, before):
        return None
    node = indexed_nodes(source, before, final=False).rows
    width = None if isinstance(stage, st.BucketBatch) or stage.leaves is None else len(stage.leaves)  # type: ignore[attr-defined]

    def known(rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        assert rows.places is not None
        ids = np.concatenate([asked.rows for asked in node.requests(rows.places, rows.epochs)])
        if given is not None:
            return bucket_lengths(stage, None, [], ids), ids  # type: ignore[arg-type]
        lengths = source.lengths(ids)
        return (lengths if width is None else np.repeat(lengths[:, None], width, axis=1)), ids

    return known


def _ragged(source: Any, stage: st.Stage, before: Sequence[Placed]) -> bool:
    """Whether the offsets of the source are the lengths that a stage asks for."""
    if not isinstance(source, RaggedSource):
        return False
    if not all(isinstance(one.stage, (st.OrderStage, st.Cache, *_KEEPS_LENGTHS)) for one in before):
        return False
    schema = row_schema(source, before)
    leaves, treedef = tree_.flatten(schema)
    specs = dict(zip(tree_.paths(treedef), leaves, strict=True))
    ragged = [path for path, spec in specs.items() if spec.shape and spec.shape[0] is None]
    if isinstance(stage, st.Pack):
        packed_schema(stage, schema)  # says what cannot be packed
        return len(ragged) == len(specs)
    assert isinstance(stage, st.BucketBatch)
    return bool(ragged) and (stage.length is None or stage.length in ragged)


def all_lengths(source: Any, stage: st.BucketBatch) -> npt.NDArray[np.int64]:
    """Return the known lengths of all rows of a source."""
    if stage.known_lengths is not None:
        return stage.known_lengths
    lengths: npt.NDArray[np.int64] = source.lengths(np.arange(len(source)))
    return lengths


def lengths_of(stage: st.Stage, after: str) -> Lengths:
    """Return what tells how long rows are that were read."""

    def seen(rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        if isinstance(stage, st.Pack):
            return packed_lengths(stage, rows.columns, rows.items, rows.ids, after), rows.ids
        assert isinstance(stage, st.BucketBatch)
        return bucket_lengths(stage, rows.columns, rows.items, rows.ids, after), rows.ids

    return seen


def row_schema(source: Any, before: Sequence[Placed]) -> Tree | None:
    """Return the schema of rows behind some stages; ``None`` where that takes looking at rows."""
    if hasattr(source, "read"):  # which learns it from its first row
        return None
    schema = getattr(source, "schema", None)
    for one in before:
        if isinstance(one.stage, _KEEPS_LENGTHS) and schema is not None:
            schema = one.stage.apply(schema)
        elif not isinstance(one.stage, (st.OrderStage, st.Filter, st.Cache)):
            return None
    return schema
