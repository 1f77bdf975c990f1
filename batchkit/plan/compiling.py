"""compile(pipeline) -> Plan: which nodes read a pipeline's batches."""

from __future__ import annotations

from typing import Any

from batchkit import stages as st
from batchkit.errors import PipelineError, PipelineTypeError
from batchkit.pipeline import Pipeline
from batchkit.plan.flows import compile_chunks, compile_flow, numbered_source, numbered_stages
from batchkit.plan.numbered.batches import CutRows
from batchkit.plan.numbered.indexed import indexed_nodes
from batchkit.plan.numbered.placing import Placed, after, call_of, placed_stages, planned_before
from batchkit.plan.plan import Plan
from batchkit.sources import Combination
from batchkit.stages.stage import whole

__all__ = ["check_shard", "compile"]


def check_shard(shard: Any) -> tuple[int, int]:
    """Return ``shard`` as ``(rank, world)``.

    Raises:
        PipelineError: it is not two whole numbers with ``0 <= rank < world``.
    """
    try:
        rank, world = shard
    except (TypeError, ValueError) as exc:
        raise PipelineTypeError(f"shard must be (rank, world), such as (0, 4), not {shard!r}") from exc
    rank, world = whole(rank, "shard's rank"), whole(world, "shard's world")
    if world < 1 or not 0 <= rank < world:
        raise PipelineError(
            f"shard=({rank}, {world}): the rank must be in 0..{max(world - 1, 0)}, and the world at least 1"
        )
    return rank, world


def compile(pipeline: Pipeline, shard: tuple[int, int] = (0, 1), lineage: bool = False) -> Plan:
    """Compile a pipeline for one rank; ``lineage``: batches say which source rows they hold.

    Raises:
        PipelineError: it does not end in batches, or a stage cannot do its work there.
        SchemaError: a column stage names a leaf that is not there.
    """
    if not isinstance(pipeline, Pipeline):
        raise PipelineTypeError(
            f"expected a Pipeline, not a {type(pipeline).__name__}. Make one with from_arrays(), say"
        )
    shard = check_shard(shard)
    if pipeline.stages and isinstance(pipeline.stages[-1], st.Chunk):
        return compile_chunks(pipeline, lineage)  # type: ignore[return-value]  # it looks like a plan to an executor
    if not pipeline.batched:
        raise PipelineError("the pipeline ends in rows, and a loader hands out batches: add .batch(size)")
    _check_pads(pipeline, shard[1])
    placed = placed_stages(pipeline)
    if not numbered_source(pipeline.source):
        return compile_flow(pipeline, shard, placed, 0, lineage)
    placed = planned_before(placed)
    numbered = numbered_stages(placed)
    if numbered < len(placed):
        return compile_flow(pipeline, shard, placed, numbered, lineage)
    return _compile_indexed(pipeline, shard, placed, lineage)


def _check_pads(pipeline: Pipeline, world: int) -> None:
    cuts = [stage for stage in pipeline.stages if isinstance(stage, (st.Batch, st.Rebatch))]
    for stage in cuts[-1:]:  # ranks take their slices of what the last one cuts
        if stage.remainder == "pad" and stage.size is not None and stage.size % world:
            raise PipelineError(
                f"{stage.label} has static shapes, so every rank needs as many rows: {stage.size} does not divide by "
                f"{world} ranks. Use a size that does, such as {-(-stage.size // world) * world}"
            )


def _compile_indexed(pipeline: Pipeline, shard: tuple[int, int], placed: list[Placed], lineage: bool) -> Plan:
    found = indexed_nodes(pipeline.source, placed, final=True, traced=lineage)
    cut = found.cut
    assert cut is not None
    rank, world = shard
    static = cut.pads or cut.rows is None or cut.rows % cut.size == 0 or cut.drops
    counted = not any(isinstance(one.stage, st.Filter) for one in placed)
    static = static and counted
    calls = [call_of(one) for one in placed if one.called]
    touched = calls or any(isinstance(one.stage, (st.Unbatch, st.PaddedBatch, st.Window, st.Cache)) for one in placed)
    touched = touched or pipeline.collated or isinstance(pipeline.source, Combination)
    return Plan(
        pipeline=pipeline,
        shard=shard,
        steps_per_epoch=found.length,
        endless=found.length is None,
        batches=found.batches,
        flow=None,
        late_calls=((), ()),
        cut=None,
        sent=pipeline,
        reader=None,
        packs=None,
        paddings=(),
        rows_per_batch=(cut.size * (rank + 1) // world - cut.size * rank // world) if static else None,
        # Columns that were handed to a worker are as the source has them, not yet as the backend wants them.
        direct=not (touched or lineage or found.by_row or cut.pads or hasattr(pipeline.source, "handed")),
        after="",
        last_function=after(found.last),
        by_row=found.by_row,
        counted=counted,
        lineage=lineage,
        fewest_rows=_fewest_rows(cut, placed),
    )


def _fewest_rows(cut: CutRows, placed: list[Placed]) -> int | None:
    behind = [one.stage for one in placed if one.number > cut.number]
    if any(isinstance(stage, (st.Filter, st.Take, st.Skip)) for stage in behind):  # smaller ones, or not the last one
        return None
    rest = 0 if cut.rows is None or cut.pads or cut.drops else cut.rows % cut.size
    return rest or cut.size
