"""Compiling the stages behind which rows have no numbers: those over a generator, and those that keep no count."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.bucketing import bounds_of, filled_leaves
from batchkit.caching import NoRuns
from batchkit.errors import PipelineError
from batchkit.pipeline import Pipeline
from batchkit.plan.memory import FreshMemory
from batchkit.plan.numbered import nodes
from batchkit.plan.numbered.combining import read_places
from batchkit.plan.numbered.indexed import indexed_nodes
from batchkit.plan.numbered.passes import Passes
from batchkit.plan.numbered.placing import (
    Numbering,
    Placed,
    batched,
    behind,
    call_of,
    named_after,
    placed_stages,
    planned_before,
    refuse_shuffle,
)
from batchkit.plan.numbered.stores import Before, LazyStores, runs_of
from batchkit.plan.ordered import cuts, walks
from batchkit.plan.ordered.assembling import BucketFlow, Lengths, PackFlow, UnpackedFlow
from batchkit.plan.ordered.caching import FinishedFlow, KeptBatchesFlow, KeptRowsFlow
from batchkit.plan.ordered.chunks import ChunkPlan
from batchkit.plan.ordered.computed import ChunkFlow
from batchkit.plan.ordered.lengths import all_lengths, known_lengths, lengths_of, row_schema
from batchkit.plan.ordered.parted import PartedFlow, ZipFlow
from batchkit.plan.ordered.streams import StreamFlow
from batchkit.plan.plan import Plan
from batchkit.plan.rows.calls import Call, Rows
from batchkit.plan.rows.rowwise import changes_number
from batchkit.plan.step import Step
from batchkit.sources import Combination, GeneratorSource, Mix, Zip

__all__ = ["compile_chunks", "compile_flow", "numbered_source", "numbered_stages"]

CHUNK = 256
"""How many rows a chunk has where no batch size says what is wanted."""


def numbered_stages(placed: Sequence[Placed]) -> int:
    """Return how many stages of an indexed source map positions to positions, before the first that does not."""
    filtered = False
    for place, one in enumerate(placed):
        in_batches = batched(placed[:place])
        if isinstance(one.stage, (st.Pack, st.BucketBatch)):
            return place
        if changes_number(one.stage):
            if not in_batches:
                return place
            filtered = True
        elif isinstance(one.stage, st.Unbatch):
            if filtered:
                return place
        elif isinstance(one.stage, st.Batch):
            filtered = False
    return len(placed)


def numbered_source(source: Any) -> bool:
    """Whether the rows of a source, of all parts if it is a combination, have numbers."""
    if not isinstance(source, Combination):
        return not isinstance(source, GeneratorSource)
    return all(
        numbered_source(part.source) and numbered_stages(placed := placed_stages(part)) == len(placed)
        for part in source.parts
    )


def _parted(source: Combination, numbering: Numbering, traced: bool) -> tuple[Any, Passes, bool]:
    """Compile a combination of parts some of which have rows without numbers.

    Returns its flow, how its rows are counted by epochs, and whether they are known to have no end.
    """
    numbering = dataclasses.replace(numbering)
    flows: list[Any] = []
    passes: list[Passes] = []
    endless: list[bool] = []
    for part in source.parts:
        start = dataclasses.replace(numbering)
        placed = placed_stages(part, numbering)
        first = 0
        if numbered_source(part.source):
            placed = planned_before(placed)
            first = numbered_stages(placed)
        compiler = _Compiler(part, placed, first, start, (0, 1), traced)
        for place in range(first, len(placed)):
            compiler.add(place)
        flows.append(compiler.rows())
        passes.append(compiler.passes.repeated(None))
        endless.append(compiler.endless)
    if isinstance(source, Zip):
        return ZipFlow(source, flows), Passes(), all(endless)
    parts = len(flows)
    counted = Passes((), tuple(passes), lambda ids: (ids % parts, ids // parts))
    return PartedFlow(source, flows), counted, _goes_on(source, endless)


def _goes_on(source: Combination, endless: list[bool]) -> bool:
    """Say whether a combination has no end, from which of its parts have none."""
    if not isinstance(source, Mix):
        return any(endless)
    drawn = [its for its, weight in zip(endless, source.pieces()[-1][1], strict=True) if weight]
    return source.stop == "forever" or (any(drawn) if source.stop == "all" else all(drawn))


def compile_chunks(pipeline: Pipeline, lineage: bool = False) -> ChunkPlan:
    """Compile what an executor computes chunks by, from the pipeline that ends in a ``Chunk``."""
    chunk, placed = pipeline.stages[-1], placed_stages(pipeline)
    assert isinstance(chunk, st.Chunk)
    calls = [call_of(one) for one in placed if one.called]
    if chunk.carried:
        return ChunkPlan(pipeline, None, calls, named_after(calls))
    first = numbered_stages(placed)
    found = indexed_nodes(pipeline.source, placed[:first], False, Numbering(*chunk.start), lineage)
    if found.batches is not None:
        return ChunkPlan(pipeline, found.batches, (), named_after(calls), cut=True, lineage=lineage)
    return ChunkPlan(pipeline, found.rows, [call_of(one) for one in placed[first:]], named_after(calls))


def compile_flow(
    pipeline: Pipeline, shard: tuple[int, int], placed: list[Placed], numbered: int, lineage: bool = False
) -> Plan:
    """Compile a pipeline whose first ``numbered`` stages map positions to positions.

    Raises:
        PipelineError: a stage cannot do its work there.
    """
    compiler = _Compiler(pipeline, placed, numbered, Numbering(), shard, lineage)
    for place in range(numbered, len(placed)):
        compiler.add(place)
    return compiler.plan()


class _Compiler:
    """Takes up one stage after the other."""

    def __init__(
        self,
        pipeline: Pipeline,
        placed: list[Placed],
        numbered: int,
        numbering: Numbering,
        shard: tuple[int, int],
        traced: bool,
    ) -> None:
        self._pipeline, self._placed, self._numbered, self._start = pipeline, placed, numbered, numbering
        self._shard, self._traced = shard, traced
        self._last_uncut = max((n for n, one in enumerate(placed) if isinstance(one.stage, st.Unbatch)), default=-1)
        self._pending: list[Placed] = []
        self.late: list[Call] = []
        self.batch_calls: list[Call] = []
        self.last_cut: st.Batch | None = None
        self.finished = False
        """Whether batches have everything done to them that the stages so far say."""
        self.passes = Passes()
        self.filtered = False
        self.endless = False
        self.stages = list(pipeline.stages)
        """The stages with what only the caller can find out filled in."""
        self.reader: Any = None
        self.packs: st.Pack | None = None
        self.paddings: tuple[st.PaddedBatch, ...] = ()
        self.read = True
        """Whether rows were read; else they are positions so far."""
        source = pipeline.source
        if isinstance(source, GeneratorSource):
            self.flow: Any = StreamFlow(source, traced)
            return
        if not numbered_source(source):
            self.flow, self.passes, self.endless = _parted(source, numbering, traced)
            return
        found = indexed_nodes(source, placed[:numbered], final=False, numbering=dataclasses.replace(numbering))
        self.read = False
        self.passes = found.passes
        self.reader = found.rows if found.batches is None else None
        self.endless = found.length is None
        most = _pass_rows(pipeline) if self.endless else None
        if most is not None and found.batches is not None:  # a position is a batch
            sizes = [one.stage.size for one in placed[:numbered] if isinstance(one.stage, st.Batch) and one.stage.size]
            most = -(-most // sizes[-1])
        self.flow = walks.PositionsFlow(found.length, self.reader if traced else None, most)
        if found.batches is not None:  # a batch, made smaller by a filter, is a chunk
            self._compute([], 1)

    def plan(self) -> Plan:
        """Return the plan of the stages so far."""
        cut, (rank, world) = self.last_cut, self._shard
        static = cut is not None and cut.remainder != "keep" and not self.filtered and cut.size is not None
        size = (cut.size if cut is not None else 0) or 0
        calls = [call_of(one) for one in self._placed if one.called or st.function_of(one.stage) is not None]
        return Plan(
            pipeline=self._pipeline,
            shard=self._shard,
            steps_per_epoch=None,
            endless=self.endless,
            batches=None,
            flow=self.flow,
            late_calls=(tuple(self.late), tuple(self.batch_calls)),
            cut=None if self.finished else cut,
            sent=Pipeline(self._pipeline.source, tuple(self.stages)),
            reader=self.reader,
            packs=self.packs,
            paddings=self.paddings,
            rows_per_batch=size * (rank + 1) // world - size * rank // world if static else None,
            direct=False,
            after=named_after(self.late),
            last_function=named_after(calls),
            by_row=True,
            counted=not self.read and not any(isinstance(call.stage, st.Filter) for call in self.batch_calls),
            lineage=self._traced,
        )

    def rows(self) -> Any:
        """Return the flow of the rows in the end, computed."""
        self._computed()
        return self.flow

    def add(self, place: int) -> None:
        """Take up the stage at a place."""
        one = self._placed[place]
        stage = one.stage
        if one.called:
            self._call(one, place)
        elif isinstance(stage, st.OrderStage):
            self._order(one, stage, place)
        elif isinstance(stage, st.Pack):
            self._check_leaves(stage, place)
            lengths = self._lengths(stage, place)  # may change the flow
            self.flow = PackFlow(self.flow, stage, lengths)
            self.packs = stage
        elif isinstance(stage, st.BucketBatch):
            self._check_leaves(stage, place)
            self._bucketed(one, stage, place)
        elif isinstance(stage, st.Batch):
            if isinstance(stage, st.PaddedBatch):
                self._check_leaves(stage, place)
            self._cut(one, stage, place > self._last_uncut)
        elif isinstance(stage, st.Unbatch):
            if self.flow.batched:  # else it was a chunk
                self.flow = cuts.UncutFlow(self.flow)
        elif isinstance(stage, st.Window):
            self._computed()
            self.flow = cuts.WindowFlow(self.flow, stage, self._after(place))
        elif isinstance(stage, st.Cache):
            self._kept(one, stage, place)
        else:
            raise PipelineError(
                f"stage {one.number} {stage.label} is of no kind that can be compiled: subclass ColumnStage"
            )

    def _call(self, one: Placed, place: int) -> None:
        if not self.flow.batched:
            self._pending.append(one)
            return
        if isinstance(one.stage, (st.FlatMap, st.Window)):
            raise PipelineError(f"{one.stage.label} works on rows: put it before batch(), or add unbatch() before it")
        self.filtered = self.filtered or isinstance(one.stage, st.Filter)
        if place > self._last_uncut:
            self.batch_calls.append(call_of(one))
        else:
            self.flow = cuts.BatchCallsFlow(self.flow, [call_of(one)])

    def _order(self, one: Placed, stage: st.OrderStage, place: int) -> None:
        if any(changes_number(pending.stage) for pending in self._pending):
            self._computed()
        if isinstance(stage, st.Take):
            self.flow, self.endless = walks.TakeFlow(self.flow, stage.count), False
        elif isinstance(stage, st.Skip):
            self.flow = walks.SkipFlow(self.flow, stage.count)
        elif isinstance(stage, st.Repeat):
            self.flow, self.endless = walks.RepeatFlow(self.flow, stage.count), self.endless or stage.count is None
            self.passes = self.passes.repeated(stage.count)
        elif isinstance(stage, st.Shuffle) and stage.window is not None and not self.flow.batched:
            self.flow = walks.WindowShuffleFlow(self.flow, stage, one.ordinal)
        elif isinstance(stage, st.Shuffle):
            raise refuse_shuffle(stage, behind(self._placed[:place], self._pipeline.source))
        else:
            raise PipelineError(f"stage {one.number} {stage.label} cannot follow rows that have no numbers")

    def _check_leaves(self, stage: st.PaddedBatch | st.BucketBatch | st.Pack, place: int) -> None:
        """Say now what is named and not there, where the leaves of rows are known without looking at one."""
        schema = row_schema(self._pipeline.source, self._placed[:place])
        if schema is not None:
            stage.check_leaves(tree_.paths(tree_.flatten(schema)[1]))

    def _cut(self, one: Placed, stage: st.Batch, final: bool) -> None:
        counted = any(changes_number(pending.stage) for pending in self._pending)
        if not final or counted or (not self.read and self.packs is None):
            self._computed(stage.size)
        self.late = [call_of(pending) for pending in self._pending]
        self._pending = []
        self.flow = cuts.CutFlow(self.flow, stage, named_after(self.late), stacks=not final)
        self.last_cut, self.filtered, self.finished = stage, False, False

    def _kept(self, one: Placed, stage: st.Cache, place: int) -> None:
        where = f"stage {one.number} {stage.label}"
        if self.endless:
            raise PipelineError(f"{where} cannot keep endless rows: put repeat() behind cache()")
        made_of = Before(self._pipeline.source, self._start.ordinal, tuple(self._placed[:place]))
        final = self.flow.batched and place > self._last_uncut
        shard = (self._shard if final else (0, 1)) if self.flow.batched else None
        runs: Any = LazyStores(functools.partial(runs_of, stage, made_of, where, shard))
        if self._traced:  # where rows come from is not kept: they are computed as if there was nothing
            runs = NoRuns
        if shard is None:
            self._computed()
            takes = next((each.stage for each in self._placed[place + 1 :] if _cuts(each.stage)), None)
            by_item = not (isinstance(takes, st.Batch) and takes.stacks)
            self.flow = KeptRowsFlow(self.flow, where, self.passes, by_item, runs)
            return
        if final:
            self.flow = FinishedFlow(self.flow, shard, functools.partial(_of_plan, self.plan()))
            self.late, self.batch_calls, self.packs, self.finished = [], [], None, True
        self.flow = KeptBatchesFlow(self.flow, where, self.passes, runs)

    def _bucketed(self, one: Placed, stage: st.BucketBatch, place: int) -> None:
        source, final, after = self._pipeline.source, place > self._last_uncut, self._after(place)
        lengths = self._lengths(stage, place)
        bounds = bounds_of(stage, None if self.read else all_lengths(source, stage))
        first = min(each.number for each in self._placed)  # behind a combination those of its parts are counted before
        self.stages[one.number - first] = dataclasses.replace(stage, boundaries=bounds)
        if not self.read:
            nodes.only_filled_up(self.reader)
        schema = row_schema(source, self._placed[:place])
        leaves = None if schema is None else filled_leaves(stage, schema)
        self.paddings = tuple(stage.padding(bound, leaves) for bound in bounds)
        finishes = None
        if not final:
            finishes = functools.partial(_finished, self.paddings, None if self.read else self.reader, after)
        self.flow = BucketFlow(self.flow, stage, bounds, lengths, finishes)
        self.late, self.last_cut, self.filtered, self.read = [], stage, False, self.read or not final
        self.finished = False
        if not final:
            self.paddings = ()

    def _lengths(self, stage: st.Stage, place: int) -> Lengths:
        """Return what tells how long rows are; has them computed where only looking at them tells."""
        known = None
        if not self.read and self.packs is None and not self._pending:
            known = known_lengths(self._pipeline.source, self._placed, place)
        self._unpacked()
        if known is None:
            self._computed()
        return known or lengths_of(stage, self._after(place))

    def _after(self, place: int) -> str:
        return named_after([call_of(one) for one in self._placed[:place] if one.called])

    def _unpacked(self) -> None:
        """Put packed rows together, for a stage that looks at them."""
        if self.packs is not None:
            reader = None if self.read else self.reader
            self.flow = UnpackedFlow(self.flow, self.packs, reader, "", FreshMemory)
            self.packs, self.read = None, True

    def _computed(self, wanted: int = CHUNK) -> None:
        """Have what is pending computed in chunks, so that what follows sees rows."""
        self._unpacked()
        if self._pending or not self.read:
            self._compute(self._pending, min(max(wanted, 16), 1024))
            self._pending = []

    def _compute(self, pending: list[Placed], size: int) -> None:
        carried = self.read
        source: Any = GeneratorSource(_nothing) if carried else self._pipeline.source
        stages = pending if carried else [*self._placed[: self._numbered], *pending]
        start = (0, 0) if carried else (self._start.stage, self._start.ordinal)
        chunk = st.Chunk(
            size, tuple(one.number for one in stages), tuple(one.ordinal for one in stages), carried, start
        )
        plan = compile_chunks(Pipeline(source, (*(one.stage for one in stages), chunk)), self._traced)
        fewer = [one for one in pending if changes_number(one.stage)]
        name = f"stage {fewer[-1].number} {fewer[-1].stage.label}" if fewer else "a stage"
        self.flow = ChunkFlow(self.flow, plan, size, name)
        self.read = True


def _finished(paddings: Sequence[st.PaddedBatch], reader: Any, after: str, cut: walks.Cut) -> walks.Cut:
    """Return a batch of a bucket with its rows filled up, for stages on batches that have to run in order."""
    rows = cut.rows
    if rows.columns is None and rows.items is None:
        rows = read_places(reader, rows, FreshMemory())
    return cuts.stacked(walks.Cut(rows, cut.size, cut.group), paddings[cut.group], after)


def _of_plan(plan: Plan, cut: walks.Cut) -> Rows:
    """Return a rank's batch with all done to it that a plan leaves to its steps."""
    return plan.finished(Step(0, 0, cut.rows, cut.size, cut.group), FreshMemory())


def _pass_rows(pipeline: Pipeline) -> int:
    """Return how many rows at the most go by until every row of every source has come once."""
    source = pipeline.source
    if not isinstance(source, Combination):
        return len(source)
    parts = [_pass_rows(part) for part in source.parts]
    if not isinstance(source, Mix):
        return sum(parts)
    weights = source.pieces()[-1][1]
    return max(-(-rows * sum(weights) // weight) for rows, weight in zip(parts, weights, strict=True) if weight)


def _cuts(stage: st.Stage) -> bool:
    """Whether a stage takes rows in a way of its own, rather than one by one."""
    return isinstance(stage, (st.Batch, st.Window, st.Pack, st.Cache))


def _nothing() -> tuple[Any, ...]:
    return ()
