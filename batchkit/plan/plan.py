"""Plan.batch(k): a pure function of (pipeline, data, seed, k)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, PipelineError, SchemaError
from batchkit.metering import HOST_COPY
from batchkit.padding import padded_schema
from batchkit.pipeline import Pipeline
from batchkit.plan.memory import FreshMemory
from batchkit.plan.numbered import batches, nodes
from batchkit.plan.numbered.combining import read_places, source_schema
from batchkit.plan.ordered import walks
from batchkit.plan.ordered.assembling import needed, origins_of, unpacked
from batchkit.plan.ordered.caching import KeptBatchesFlow, KeptRowsFlow, kept_flows
from batchkit.plan.ordered.chunks import ChunkPlan
from batchkit.plan.ordered.computed import chunk_plans
from batchkit.plan.ordered.walked import WalkedSteps, computed_here, skipping_here
from batchkit.plan.rows.calls import Call, Rows, call_rows
from batchkit.plan.rows.cutting import cut_rows
from batchkit.plan.rows.lineage import Lineage, with_lineage
from batchkit.plan.rows.rowwise import call_batches
from batchkit.plan.step import Step
from batchkit.plan.tracing import first_uncounted
from batchkit.ragged import Ragged, refuse_ragged
from batchkit.schema import LeafSpec, spec_of
from batchkit.skipping import Guard
from batchkit.tree import Tree

__all__ = ["FreshMemory", "Plan", "Step"]

_LISTED = 24  # stages of parts that a state has a line each for


@dataclass(frozen=True)
class Plan:
    """A compiled pipeline, as one rank of ``shard=(rank, world)`` sees it. Made by :func:`~batchkit.plan.compile`."""

    pipeline: Pipeline
    shard: tuple[int, int]
    steps_per_epoch: int | None
    """How many batches an epoch has; ``None`` where it is endless or cannot be known."""
    endless: bool
    batches: nodes.BatchesNode | None = field(repr=False)
    flow: walks.Flow | None = field(repr=False)
    """What cuts the batches where they cannot be computed by their number alone."""
    late_calls: tuple[tuple[Call, ...], tuple[Call, ...]] = field(repr=False)
    """For a flow: the functions on rows and on batches that ``compute`` applies."""
    rows_per_batch: int | None = field(repr=False)
    """How many rows every batch of this rank has; ``None`` where that varies."""
    direct: bool = field(repr=False)
    """Whether rows are gathered to where the backend wants them, with nothing left to do."""
    cut: st.Batch | None = field(repr=False)
    """For a flow: the last stage that cuts batches; ``None`` where the generator yields them."""
    sent: Pipeline = field(repr=False)
    """The pipeline as other processes compile it."""
    reader: nodes.RowsNode | None = field(repr=False)
    """For a flow of positions: what reads the rows."""
    packs: st.Pack | None = field(repr=False)
    """For a flow of packed rows that ``compute`` puts together: how."""
    paddings: tuple[st.PaddedBatch, ...] = field(repr=False)
    """For a flow of buckets: how the batches of each are filled up."""
    after: str = field(repr=False)
    """How a message about stacked rows names the function that they come from."""
    last_function: str = field(repr=False)
    """How a message about a batch names the last function that it went through; empty without one."""
    by_row: bool = field(repr=False)
    """Whether a function or the source is called row by row."""
    counted: bool = field(repr=False)
    """Whether which rows a batch holds is known without looking at any."""
    lineage: bool = field(repr=False)
    """Whether batches say which source rows they hold."""
    fewest_rows: int | None = field(default=None, repr=False)
    """How many rows the smallest batch has over all ranks; ``None`` where that is not known beforehand."""

    @property
    def indexed(self) -> bool:
        """Whether any step can be computed without those before it."""
        return self.flow is None

    @functools.cached_property
    def chunks(self) -> tuple[ChunkPlan, ...]:
        """What is computed in chunks in front of the stages that cut the batches."""
        return tuple(chunk_plans(self.flow))

    @functools.cached_property
    def keeps(self) -> tuple[KeptRowsFlow | KeptBatchesFlow, ...]:
        """The caches of what comes in order."""
        return tuple(kept_flows(self.flow))

    @property
    def counts_what_may_fail(self) -> str | None:
        """How messages name a cache in order that rows come to which may be left out; ``None`` if there is none."""
        return next((kept.where for kept in self.keeps if any(chunk_plans(kept.before))), None)

    @property
    def has_late_functions(self) -> bool:
        """Whether a user's function is called on what was cut in order."""
        if self.cut is not None and self.cut.collate is not None:
            return True
        return any(isinstance(call.stage, st.FunctionStage) for calls in self.late_calls for call in calls)

    @property
    def has_functions(self) -> bool:
        """Whether a user's function is called."""
        return any(st.function_of(stage) is not None for stage in self.pipeline.all_stages)

    @functools.cached_property
    def collates(self) -> bool:
        """Whether a user's function makes the batches, so that nothing is known of their shapes."""
        return self.pipeline.collated

    @functools.cached_property
    def share(self) -> int:
        """How many rows of a full batch this rank has; 0 where no stage cuts batches of one size."""
        rank, world = self.shard
        cuts = [stage for stage in self.pipeline.stages if isinstance(stage, (st.Batch, st.Rebatch))]
        size = (cuts[-1].size if cuts else 0) or 0
        return size * (rank + 1) // world - size * rank // world

    @property
    def varies(self) -> bool:
        """Whether the row shapes of batches differ, because the longest row of each decides."""
        longest = (isinstance(stage, st.PaddedBatch) and not stage.static for stage in self.pipeline.stages)
        return any(longest) or any(isinstance(stage, st.BucketBatch) for stage in self.pipeline.stages)

    def steps(
        self,
        epoch: int,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
        state: Any = None,
        feeds: walks.Feeds = computed_here,
    ) -> Iterator[Step]:
        """Return the steps of an epoch from ``start`` on whose number ``k`` has ``k % part[1] == part[0]``.

        Where batches are cut in order, ``state`` is where the walk stood in front of step ``start`` (without it
        the steps before it are walked through), and ``feeds`` has chunks computed.
        """
        index, count = part
        first = start + (index - start) % count
        if self.flow is None:
            numbers = itertools.count(first, count) if self.endless else range(first, self.steps_per_epoch or 0, count)
            return map(functools.partial(Step, epoch), numbers)
        return WalkedSteps(
            self.flow, self.shard, epoch, 0 if state is None else start, (start, first, count), state, feeds
        )

    def compute(self, step: Step, slots: Any) -> Tree:
        """Return the host batch of a step: a pure function of it, safe to call from several threads.

        Raises:
            BatchkitError: what went wrong, with the epoch and the step in front.
        """
        guard = slots.guard
        if guard is not None:
            guard.begin()
        try:
            if self.batches is not None:
                rows = self.batches.read(step.number, step.epoch, self.shard, slots)
            else:
                rows = self.finished(step, slots)
            if self.direct and not rows.surplus:
                return rows.columns
            if self.lineage:
                rows.columns = with_lineage(rows.columns, _told(rows))
            tree = self.ready(rows, slots)
            if slots.sheet is not None:
                slots.sheet.lap(HOST_COPY)
            if guard is not None:
                guard.end((step.epoch, step.number))
            return tree
        except BatchkitError as exc:
            exc.args = (f"epoch {step.epoch}, step {step.number}: {exc}",)
            raise

    def requests(self, step: Step) -> list[nodes.Request]:
        """Return the row numbers that a step has which source read, call by call; reads nothing."""
        if self.batches is None:
            return [] if step.rows is None else list(self._asked(step.rows))
        return list(self.batches.requests(step.number, step.epoch, self.shard))

    def _asked(self, rows: Rows) -> Iterator[nodes.Request]:
        """Yield the row numbers that are read for rows which were cut."""
        given = needed(rows)[0] if self.packs is not None else rows
        if self.reader is None:
            yield nodes.Request(0, given.ids)
        elif given.places is not None:
            yield from self.reader.requests(given.places, given.epochs)

    @property
    def uncounted(self) -> str | None:
        """What has to look at rows before it is known which of them a batch holds; ``None`` where nothing has to."""
        return None if self.counted else first_uncounted(self.pipeline)

    def origins(self, step: Step) -> Lineage:
        """Return which source rows the batch of a step holds, for this rank.

        Where batches are cut in order, ``step`` is one that :meth:`steps` gave. No row is read and no function called
        for it, unless a filter on batches has to look at this one.

        Raises:
            PipelineError: the plan was not compiled with ``lineage=True``, and has to be.
        """
        if self.batches is not None:
            return self.batches.origins(step.number, step.epoch, self.shard)
        assert step.rows is not None
        calls = self.late_calls[1]
        filters = [place for place, call in enumerate(calls) if isinstance(call.stage, st.Filter)]
        if filters:
            return _told(self._finished(step, FreshMemory(), calls[: filters[-1] + 1]))
        found = Lineage.none() if step.rows.surplus else origins_of(step.rows)
        if found is None:
            raise PipelineError("the rows of this step do not say where they come from: compile(lineage=True)")
        return found if step.size is None else found.padded(step.size)

    def finished(self, step: Step, slots: Any) -> Rows:
        """Do to the rows that were cut what is left to do."""
        return self._finished(step, slots, self.late_calls[1])

    def _finished(self, step: Step, slots: Any, batch_calls: Sequence[Call]) -> Rows:
        """Do to the rows that were cut what is left to do, up to these functions on batches."""
        rows = self.given(step, slots)
        row_calls = self.late_calls[0]
        surplus = rows.surplus
        if self.cut is not None:
            rows = call_rows(rows, row_calls, slots.guard, slots.sheet)
            rows = self.cut_rows(rows, step.group, slots)
            if step.size is not None:
                rows = batches.pad_columns(batches.none_of(rows) if surplus else rows, step.size)
                surplus = False
            if slots.sheet is not None:
                slots.sheet.columns(self.last_batch, rows.columns)
        rows = call_batches(rows, batch_calls, slots.sheet)
        rows.surplus = surplus
        return rows

    def given(self, step: Step, slots: Any = None) -> Rows:
        """Return the rows that were cut for a step: read where they are only positions, packed rows put together."""
        given = step.rows
        assert given is not None
        slots = FreshMemory() if slots is None else slots
        if self.packs is not None:
            return unpacked(self.packs, given, self.reader, self.after, slots)
        if given.columns is None and given.items is None:
            assert self.reader is not None
            rows = read_places(self.reader, given, slots)
            rows.surplus = given.surplus
            return rows
        return dataclasses.replace(given)  # the step may be computed again after a failure: leave its rows as they are

    def cut_rows(self, rows: Rows, group: int, slots: Any) -> Rows:
        """Return the rows of a step as columns, filled up as the stage that cut them says."""
        assert self.cut is not None
        stage = self.paddings[group] if self.paddings else self.cut
        return cut_rows(stage, rows, self.after, slots.column, self.last_batch)

    @functools.cached_property
    def cuts_at(self) -> int:
        """The number of the stage that takes the most part in cutting in order."""
        found = [n for n, stage in enumerate(self.pipeline.all_stages) if isinstance(stage, (st.Pack, st.BucketBatch))]
        return found[-1] if found else self.last_batch

    @functools.cached_property
    def last_batch(self) -> int:
        """The number of the last stage that cuts batches."""
        return max(
            (n for n, stage in enumerate(self.pipeline.all_stages) if isinstance(stage, (st.Batch, st.Rebatch))),
            default=0,
        )

    def ready(self, rows: Rows, slots: Any) -> Tree:
        """Return the columns of a finished batch as the backend wants them."""
        leaves, treedef = tree_.flatten(rows.columns)
        if any(isinstance(leaf, Ragged) for leaf in leaves):
            refuse_ragged(rows.columns, "a batch")
        if rows.surplus:
            leaves = [leaf[:0] if leaf.ndim else leaf for leaf in leaves]
        paths = tree_.paths(treedef)
        for index, path in enumerate(paths):
            leaves[index] = slots.ready(path, leaves[index], (path, "ready"))
        return tree_.unflatten(treedef, leaves)

    def batch(self, k: int) -> Tree:
        """Return batch ``k``, counted over epochs, in memory of its own. Equal arguments give equal arrays.

        Where batches are cut in order, this goes through the epoch up to the batch.

        Raises:
            PipelineError: there is no batch ``k``.
        """
        if k < 0:
            raise PipelineError(f"there is no batch {k}: batches are counted from 0")
        if self.flow is None and not self.endless:
            if not self.steps_per_epoch:
                raise PipelineError(f"there is no batch {k}: the pipeline has no batches")
            epoch, number = divmod(k, self.steps_per_epoch)
            return self.compute(Step(epoch, number), FreshMemory())
        if self.flow is None:
            return self.compute(Step(0, k), FreshMemory())
        seen = 0
        for epoch in itertools.count():
            number = -1
            with contextlib.closing(self.steps(epoch)) as steps:  # type: ignore[type-var]
                for step in steps:
                    number = step.number
                    if seen + number == k:
                        return self.compute(step, FreshMemory())
            if number < 0:
                raise PipelineError(f"there is no batch {k}: epoch {epoch} has none")
            seen += number + 1
        raise AssertionError("unreachable")

    def schema(self, skips: bool = False) -> Tree:
        """Return the schema of a batch, before a backend narrows it.

        Known at once where no function and no row-wise source is involved; else the first
        batch of the first epoch is computed. With ``skips`` rows whose function fails are
        left out, so that batches that are not filled up may have fewer than they should.

        Raises:
            SchemaError: there is no first batch to look at.
        """
        if not self.by_row and not self.has_functions and not self.lineage and self._plain_columns():
            return self._static_schema()
        steps = iter(self.steps(0, feeds=skipping_here if skips else computed_here))
        step = next(steps, None)
        if step is None:
            raise SchemaError("the pipeline has no batches, so that their schema cannot be known. Give it rows")
        columns = self.compute(step, FreshMemory(Guard() if skips else None))
        if self.flow is not None:
            steps.close()  # type: ignore[attr-defined]

        size = None if skips and self._loses_rows else self.rows_per_batch
        leaves, treedef = tree_.flatten(columns)
        specs = []
        for path, leaf in zip(tree_.paths(treedef), leaves, strict=True):
            spec = spec_of(leaf)
            if self.collates:
                specs.append(LeafSpec(spec.dtype, (None,) * leaf.ndim))
                continue
            row = tuple([None] * (leaf.ndim - 1)) if self.varies else spec.shape[1:]
            rows = None if self.lineage and "lineage" in path.split("/")[:1] else size
            specs.append(LeafSpec(spec.dtype, (rows, *row)))
        return tree_.unflatten(treedef, specs)

    @property
    def _loses_rows(self) -> bool:
        """Whether a batch is smaller where rows are left out: cut by number, or before their functions are called."""
        filled = getattr(self.pipeline.all_stages[self.last_batch], "remainder", None) == "pad"
        return not filled and (self.flow is None or bool(self.late_calls[0]))

    def _plain_columns(self) -> bool:
        return source_schema(self.pipeline.source) is not None and all(
            type(stage) in (st.Select, st.Drop, st.Rename, st.Cast)
            for stage in self.pipeline.stages
            if isinstance(stage, st.ColumnStage)
        )

    def _static_schema(self) -> Tree:
        schema = source_schema(self.pipeline.source)
        for stage in self.pipeline.stages:
            if isinstance(stage, st.ColumnStage):
                schema = stage.apply(schema)
            elif isinstance(stage, st.Batch):
                schema = padded_schema(stage, schema) if isinstance(stage, st.PaddedBatch) else schema
                if stage.remainder == "pad":
                    schema = st.with_mask(schema, LeafSpec(np.dtype(bool), ()))
        return tree_.map_leaves(lambda spec: LeafSpec(_unsized(spec.dtype), (self.rows_per_batch, *spec.shape)), schema)

    def fingerprint(self) -> dict[str, Any]:
        """Return what a state must match: the data's fingerprint, and a line a stage. Reads at most a few rows.

        Stages of the parts of a combination come first; many of them are one line together, since a state is small.
        """
        pipeline = self.pipeline
        own = [_shortened(stage.identity) for stage in pipeline.stages]
        inner = [_shortened(stage.identity) for part in pipeline.parts for stage in part.all_stages]
        if len(inner) > _LISTED:
            inner = [f"{len(inner)} stages of parts {_digest(repr(inner))}"]
        return {"source": pipeline.source.fingerprint(), "stages": inner + own}


def _told(rows: Rows) -> Lineage:
    """Return which source rows finished rows are made of."""
    if rows.surplus:
        return Lineage.none()
    assert rows.origins is not None
    return rows.origins


def _unsized(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(dtype.kind) if dtype.kind in "US" else dtype


def _shortened(label: str, most: int = 60) -> str:
    return label if len(label) <= most else f"{label[: most - 13]}...{_digest(label)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()
