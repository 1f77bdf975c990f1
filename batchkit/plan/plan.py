"""compile(pipeline) -> Plan; Plan.batch(k), a pure function of (pipeline, data, seed, k)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, PipelineError, PipelineTypeError, SchemaError
from batchkit.pipeline import Pipeline
from batchkit.plan import nodes, streams
from batchkit.plan.calls import Call, Rows, call_columns, call_rows
from batchkit.schema import LeafSpec, spec_of
from batchkit.sources import GeneratorSource
from batchkit.sources.stacking import stack_rows
from batchkit.stages.stage import whole
from batchkit.tree import Tree

__all__ = ["Plan", "Step", "check_shard", "compile"]


class Step(NamedTuple):
    """One batch to be computed: which epoch, which of its batches, and for a stream the rows pulled for it."""

    epoch: int
    number: int
    rows: Rows | None = None


class FreshMemory:
    """A slot pool that reuses nothing and narrows nothing: for a batch on its own."""

    def __init__(self) -> None:
        self.prepared: dict[Any, Any] = {}

    def lessor(
        self, key: Any, dtype: np.dtype[Any], row_shape: tuple[int, ...]
    ) -> Callable[[int], npt.NDArray[Any]]:
        """Return what makes new memory of one kind."""
        return lambda rows: np.empty((rows, *row_shape), dtype)

    def column(self, key: Any, rows: int, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return new memory."""
        return np.empty((rows, *row_shape), dtype)

    def host_dtype(self, leaf: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype itself."""
        return dtype

    def narrow_into(self, leaf: str, column: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Copy; dtypes never differ here."""
        out[...] = column

    def ready(self, leaf: str, column: npt.NDArray[Any], key: Any) -> npt.NDArray[Any]:
        """Return the column."""
        return column


@dataclass(frozen=True)
class Plan:
    """A compiled pipeline, as one rank of ``shard=(rank, world)`` sees it. Made by :func:`compile`."""

    pipeline: Pipeline
    shard: tuple[int, int]
    steps_per_epoch: int | None
    """How many batches an epoch has; ``None`` where it is endless or cannot be known."""
    endless: bool
    batches: nodes.BatchesNode | None = field(repr=False)
    stream: streams.Stream | None = field(repr=False)
    late_calls: tuple[tuple[Call, ...], tuple[Call, ...]] = field(repr=False)
    """For a stream: the functions on rows and on batches that ``compute`` applies."""
    pads_to: int | None = field(repr=False)
    rows_per_batch: int | None = field(repr=False)
    """How many rows every batch of this rank has; ``None`` where that varies."""
    direct: bool = field(repr=False)
    """Whether rows are gathered to where the backend wants them, with nothing left to do."""
    after: str = field(repr=False)
    by_row: bool = field(repr=False)
    """Whether a function or the source is called row by row."""

    def __reduce__(self) -> tuple[Any, ...]:
        return compile, (self.pipeline, self.shard)

    @property
    def indexed(self) -> bool:
        """Whether any step can be computed without those before it."""
        return self.stream is None

    @property
    def has_functions(self) -> bool:
        """Whether a user's function is called."""
        return any(isinstance(stage, st.FunctionStage) for stage in self.pipeline.stages)

    def last_function(self) -> str:
        """Return how a message says which function the batches come from; empty without one."""
        calls = _numbered_calls(self.pipeline)
        return _where(list(calls.values()))

    def steps(self, epoch: int, start: int = 0, part: tuple[int, int] = (0, 1)) -> Iterator[Step]:
        """Return the steps of an epoch from ``start`` on whose number ``k`` has ``k % part[1] == part[0]``."""
        index, count = part
        first = start + (index - start) % count
        if self.stream is None:
            numbers = itertools.count(first, count) if self.endless else range(first, self.steps_per_epoch or 0, count)
            return (Step(epoch, number) for number in numbers)
        return self._pulled(epoch, first, count)

    def _pulled(self, epoch: int, first: int, every: int) -> Iterator[Step]:
        assert self.stream is not None
        pulled = self.stream.iterate(epoch)
        number = 0
        try:
            for number, rows in enumerate(pulled):
                if number >= first and (number - first) % every == 0:
                    yield Step(epoch, number, rows)
        except BatchkitError as exc:
            exc.args = (f"epoch {epoch}, after step {number}: {exc}",)
            raise

    def compute(self, step: Step, slots: Any) -> Tree:
        """Return the host batch of a step: a pure function of it, safe to call from several threads.

        Raises:
            BatchkitError: what went wrong, with the epoch and the step in front.
        """
        try:
            if self.batches is not None:
                rows = self.batches.read(step.number, step.epoch, self.shard, slots)
            else:
                rows = self._finished(step, slots)
            if self.direct and not rows.surplus:
                return rows.columns
            return self._ready(rows, slots)
        except BatchkitError as exc:
            exc.args = (f"epoch {step.epoch}, step {step.number}: {exc}",)
            raise

    def _finished(self, step: Step, slots: Any) -> Rows:
        """Do to a stream's rows what is left to do."""
        assert step.rows is not None
        # The step may be computed again after a failure: leave its rows as they are.
        rows = Rows(step.rows.ids, step.rows.epochs, step.rows.columns, step.rows.items, step.rows.surplus)
        row_calls, batch_calls = self.late_calls
        surplus = rows.surplus
        if rows.items is not None:
            rows = call_rows(rows, row_calls)
            rows = Rows(rows.ids, rows.epochs, columns=stack_rows(rows.items or [], rows.ids, self.after))
            if self.pads_to is not None:
                rows = nodes.pad_columns(nodes.none_of(rows) if surplus else rows, self.pads_to)
                surplus = False
        elif self.shard != (0, 1):
            rows, surplus = self._rank_slice(rows)
        rows.columns = call_columns(rows.columns, rows, batch_calls)
        rows.surplus = surplus
        return rows

    def _rank_slice(self, rows: Rows) -> tuple[Rows, bool]:
        rank, world = self.shard
        count = len(rows.ids)
        low, high = count * rank // world, count * (rank + 1) // world
        surplus = low == high and count > 0
        if surplus:
            low, high = 0, 1
        epochs = rows.epochs if isinstance(rows.epochs, int) else rows.epochs[low:high]
        columns = tree_.map_leaves(lambda leaf: leaf[low:high], rows.columns)
        return Rows(rows.ids[low:high], epochs, columns=columns), surplus

    def _ready(self, rows: Rows, slots: Any) -> Tree:
        leaves, treedef = tree_.flatten(rows.columns)
        if rows.surplus:
            leaves = [leaf[:0] for leaf in leaves]
        paths = tree_.paths(treedef)
        for index, path in enumerate(paths):
            leaves[index] = slots.ready(path, leaves[index], (path, "ready"))
        return tree_.unflatten(treedef, leaves)

    def batch(self, k: int) -> Tree:
        """Return batch ``k``, counted over epochs, in memory of its own. Equal arguments give equal arrays.

        Over a generator this replays the epoch up to the batch.

        Raises:
            PipelineError: there is no batch ``k``.
        """
        if k < 0:
            raise PipelineError(f"there is no batch {k}: batches are counted from 0")
        if self.stream is None and not self.endless:
            if not self.steps_per_epoch:
                raise PipelineError(f"there is no batch {k}: the pipeline has no batches")
            epoch, number = divmod(k, self.steps_per_epoch)
            return self.compute(Step(epoch, number), FreshMemory())
        if self.stream is None:
            return self.compute(Step(0, k), FreshMemory())
        seen = 0
        for epoch in itertools.count():
            number = -1
            for step in self.steps(epoch):
                number = step.number
                if seen + number == k:
                    return self.compute(step, FreshMemory())
            if number < 0:
                raise PipelineError(f"there is no batch {k}: epoch {epoch} of the generator has none")
            seen += number + 1
        raise AssertionError("unreachable")

    def schema(self) -> Tree:
        """Return the schema of a batch, before a backend narrows it.

        Known at once where no function and no row-wise source is involved; else the first
        batch of the first epoch is computed.

        Raises:
            SchemaError: there is no first batch to look at.
        """
        if not self.by_row and not self.has_functions and self._plain_columns():
            return self._static_schema()
        step = next(iter(self.steps(0)), None)
        if step is None:
            raise SchemaError("the pipeline has no batches, so that their schema cannot be known. Give it rows")
        columns = self.compute(step, FreshMemory())

        def batch_spec(leaf: npt.NDArray[Any]) -> LeafSpec:
            spec = spec_of(leaf)
            return LeafSpec(spec.dtype, (self.rows_per_batch, *spec.shape[1:]))

        return tree_.map_leaves(batch_spec, columns)

    def _plain_columns(self) -> bool:
        return hasattr(self.pipeline.source, "schema") and all(
            type(stage) in (st.Select, st.Drop, st.Rename, st.Cast)
            for stage in self.pipeline.stages
            if isinstance(stage, st.ColumnStage)
        )

    def _static_schema(self) -> Tree:
        schema = self.pipeline.source.schema
        for stage in self.pipeline.stages:
            if isinstance(stage, st.ColumnStage):
                schema = stage.apply(schema)
            elif isinstance(stage, st.Batch) and stage.remainder == "pad":
                schema = st.with_mask(schema, LeafSpec(np.dtype(bool), ()))
        return tree_.map_leaves(lambda spec: LeafSpec(_unsized(spec.dtype), (self.rows_per_batch, *spec.shape)), schema)

    def fingerprint(self) -> dict[str, Any]:
        """Return what a state must match: the data's fingerprint, and a line a stage. Reads at most a few rows."""
        return {
            "source": self.pipeline.source.fingerprint(),
            "stages": [_shortened(stage.label) for stage in self.pipeline.stages],
        }


def _unsized(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(dtype.kind) if dtype.kind in "US" else dtype


def _shortened(label: str, most: int = 60) -> str:
    if len(label) <= most:
        return label
    return f"{label[: most - 13]}...{hashlib.blake2b(label.encode(), digest_size=5).hexdigest()}"


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
        raise PipelineError(f"shard=({rank}, {world}): the rank must be in 0..{max(world - 1, 0)}, and the world at least 1")
    return rank, world


def compile(pipeline: Pipeline, shard: tuple[int, int] = (0, 1)) -> Plan:
    """Compile a pipeline for one rank.

    Raises:
        PipelineError: it does not end in batches, or a stage cannot do its work there.
        SchemaError: a column stage names a leaf that is not there.
    """
    if not isinstance(pipeline, Pipeline):
        raise PipelineTypeError(f"expected a Pipeline, not a {type(pipeline).__name__}. Make one with from_arrays(), say")
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
    final = not calls and not by_row and not any(isinstance(stage, st.Unbatch) for stage in pipeline.stages)
    rows: Any = nodes.SourceRows(pipeline.source, final)
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
                rows = nodes.OrderedRows(rows, stage, ordinal)
            else:
                batches, reordered = nodes.OrderedBatches(batches, stage, ordinal), True
        elif isinstance(stage, st.Batch):
            batches = cut = nodes.CutRows(rows, stage, _where(seen))
            seen, reordered = [], False
        elif isinstance(stage, st.Unbatch):
            assert cut is not None
            rows, batches = nodes.UncutRows(batches, cut, reordered), None
        else:
            raise PipelineError(f"stage {number} {stage.label} is of no kind that can be compiled: subclass ColumnStage")
        ordinal += isinstance(stage, (st.RandomMap, st.Shuffle))
    assert cut is not None
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
        direct=final and not cut.pads,
        after="",
        by_row=by_row,
    )


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
                stream = streams.CalledStream(stream, [calls[number]])
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
            raise PipelineError(f"stage {number} {stage.label} is of no kind that can be compiled: subclass ColumnStage")
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
        by_row=True,
    )
