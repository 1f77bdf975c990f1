"""compile(pipeline) -> Plan: which nodes read a pipeline's batches."""

from __future__ import annotations

from typing import Any

from batchkit import stages as st
from batchkit.errors import PipelineError, PipelineTypeError
from batchkit.pipeline import Pipeline
from batchkit.plan import nodes, streams
from batchkit.plan.calls import Call
from batchkit.plan.plan import Plan
from batchkit.sources import GeneratorSource
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


def compile(pipeline: Pipeline, shard: tuple[int, int] = (0, 1)) -> Plan:
    """Compile a pipeline for one rank.

    Raises:
        PipelineError: it does not end in batches, or a stage cannot do its work there.
        SchemaError: a column stage names a leaf that is not there.
    """
    if not isinstance(pipeline, Pipeline):
        raise PipelineTypeError(
            f"expected a Pipeline, not a {type(pipeline).__name__}. Make one with from_arrays(), say"
        )
    shard = check_shard(shard)
    if not pipeline.batched:
        raise PipelineError("the pipeline ends in rows, and a loader hands out batches: add .batch(size)")
    _check_pads(pipeline, shard[1])
    if isinstance(pipeline.source, GeneratorSource):
        return _compile_stream(pipeline, shard)
    return _compile_indexed(pipeline, shard)


def _check_pads(pipeline: Pipeline, world: int) -> None:
    for stage in pipeline.stages:
        if isinstance(stage, st.Batch) and stage.remainder == "pad" and stage.size % world:
            raise PipelineError(
                f"{stage.label} has static shapes, so every rank needs as many rows: {stage.size} does not divide by "
                f"{world} ranks. Use a size that does, such as {-(-stage.size // world) * world}"
            )


def _numbered_calls(pipeline: Pipeline) -> dict[int, Call]:
    """Return the function and column stages by their place, with the key of their random numbers."""
    calls, ordinal = {}, 0
    for number, stage in enumerate(pipeline.stages):
        if isinstance(stage, st.RandomMap):
            calls[number] = Call(stage, number, (st.RANDOM_MAP, stage.seed, ordinal))
        elif isinstance(stage, (st.FunctionStage, st.ColumnStage)):
            calls[number] = Call(stage, number)
        ordinal += isinstance(stage, (st.RandomMap, st.Shuffle))
    return calls


def _where(calls: list[Call]) -> str:
    functions = [call for call in calls if isinstance(call.stage, st.FunctionStage)]
    return f", after {functions[-1].where}" if functions else ""


def _compile_indexed(pipeline: Pipeline, shard: tuple[int, int]) -> Plan:
    calls = _numbered_calls(pipeline)
    by_row = hasattr(pipeline.source, "read")
    changed = any(isinstance(stage, (st.Unbatch, st.PaddedBatch)) for stage in pipeline.stages)
    final = not calls and not by_row and not changed
    rows: Any = nodes.SourceRows(pipeline.source, final, _whole(pipeline))
    batches: Any = None
    cut: nodes.CutRows | None = None
    seen: list[Call] = []
    ordinal, reordered = 0, False
    for number, stage in enumerate(pipeline.stages):
        if number in calls:
            seen.append(calls[number])
            by_row = by_row or (batches is None and isinstance(stage, st.FunctionStage))
            if batches is None:
                rows = nodes.CalledRows(rows, [calls[number]])
            else:
                batches = nodes.CalledBatches(batches, [calls[number]])
        elif isinstance(stage, st.OrderStage):
            if batches is None:
                rows = nodes.OrderedRows(rows, stage, number, ordinal)
            else:
                batches, reordered = nodes.OrderedBatches(batches, stage, number, ordinal), True
        elif isinstance(stage, st.Batch):
            batches = cut = nodes.CutRows(rows, stage, number, _where(seen))
            seen, reordered = [], False
        elif isinstance(stage, st.Unbatch):
            assert cut is not None
            rows, batches = nodes.UncutRows(batches, cut, number, reordered), None
        else:
            raise PipelineError(
                f"stage {number} {stage.label} is of no kind that can be compiled: subclass ColumnStage"
            )
        ordinal += isinstance(stage, (st.RandomMap, st.Shuffle))
    assert cut is not None
    cut.last = batches is cut
    rank, world = shard
    static = cut.pads or cut.rows is None or cut.rows % cut.size == 0 or cut.drops
    return Plan(
        pipeline=pipeline,
        shard=shard,
        steps_per_epoch=batches.length,
        endless=batches.length is None,
        batches=batches,
        stream=None,
        late_calls=((), ()),
        pads_to=None,
        rows_per_batch=(cut.size * (rank + 1) // world - cut.size * rank // world) if static else None,
        # Columns that were handed to a worker are as the source has them, not yet as the backend wants them.
        direct=final and not cut.pads and not hasattr(pipeline.source, "handed"),
        after="",
        last_function=_where(list(calls.values())),
        by_row=by_row,
    )


def _whole(pipeline: Pipeline) -> bool:
    """Say whether what is gathered reaches the functions behind ``batch`` in one piece."""
    stages = pipeline.stages
    cut = next(number for number, stage in enumerate(stages) if isinstance(stage, st.Batch))
    before = any(isinstance(stage, st.FunctionStage) for stage in stages[:cut])
    return not before and not any(isinstance(stage, st.Unbatch) for stage in stages)


def _compile_stream(pipeline: Pipeline, shard: tuple[int, int]) -> Plan:
    stages, calls = pipeline.stages, _numbered_calls(pipeline)
    last_uncut = max((n for n, stage in enumerate(stages) if isinstance(stage, st.Unbatch)), default=-1)
    stream: Any = streams.SourceStream(pipeline.source)
    row_calls: list[Call] = []
    batch_calls: list[Call] = []
    batched, last_cut = pipeline.source.batched, None
    for number, stage in enumerate(stages):
        if number in calls:
            if number < last_uncut:
                called = streams.CalledBatchStream if batched else streams.CalledRowStream
                stream = called(stream, [calls[number]])
            else:
                (batch_calls if batched else row_calls).append(calls[number])
        elif isinstance(stage, st.OrderStage):
            if isinstance(stage, st.Shuffle):
                stage.iterate(stream.iterate, 0)  # says why it cannot
            stream = streams.OrderedStream(stream, stage)
        elif isinstance(stage, st.Batch):
            final = number > last_uncut
            stream = streams.CutStream(stream, stage, shard if final else (0, 1), stacks=not final)
            batched, last_cut = True, stage
        elif isinstance(stage, st.Unbatch):
            stream, batched = streams.UncutStream(stream), False
        else:
            raise PipelineError(
                f"stage {number} {stage.label} is of no kind that can be compiled: subclass ColumnStage"
            )
    rank, world = shard
    static = last_cut is not None and last_cut.remainder != "keep"
    size = last_cut.size if last_cut is not None else 0
    mine = size * (rank + 1) // world - size * rank // world
    return Plan(
        pipeline=pipeline,
        shard=shard,
        steps_per_epoch=None,
        endless=False,
        batches=None,
        stream=stream,
        late_calls=(tuple(row_calls), tuple(batch_calls)),
        pads_to=mine if last_cut is not None and last_cut.remainder == "pad" else None,
        rows_per_batch=mine if static else None,
        direct=False,
        after=_where(row_calls),
        last_function=_where(list(calls.values())),
        by_row=True,
    )
