"""Plan.batch(k): a pure function of (pipeline, data, seed, k)."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, PipelineError, SchemaError
from batchkit.metering import HOST_COPY
from batchkit.padding import padded_schema
from batchkit.pipeline import Pipeline
from batchkit.plan import nodes, streams
from batchkit.plan.calls import Call, Rows, call_columns, call_rows
from batchkit.plan.cutting import cut_rows
from batchkit.ragged import Ragged, part, refuse_ragged
from batchkit.schema import LeafSpec, spec_of
from batchkit.tree import Tree

__all__ = ["FreshMemory", "Plan", "Step"]


class Step(NamedTuple):
    """One batch to be computed: which epoch, which of its batches, and for a stream the rows pulled for it."""

    epoch: int
    number: int
    rows: Rows | None = None


class FreshMemory:
    """A slot pool that reuses nothing and narrows nothing: for a batch on its own."""

    def __init__(self) -> None:
        self.prepared: dict[Any, Any] = {}
        self.guard = self.sheet = None

    def lessor(
        self, key: Any, dtype: np.dtype[Any], row_shape: tuple[int, ...], final: bool = False
    ) -> Callable[[int], npt.NDArray[Any]]:
        """Return what makes new memory of one kind."""
        return lambda rows: np.empty((rows, *row_shape), dtype)

    def column(
        self, key: Any, rows: int, dtype: np.dtype[Any], row_shape: tuple[int, ...], final: bool = False
    ) -> npt.NDArray[Any]:
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
    """A compiled pipeline, as one rank of ``shard=(rank, world)`` sees it. Made by :func:`~batchkit.plan.compile`."""

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
    """How a message about stacked rows names the function that they come from."""
    last_function: str = field(repr=False)
    """How a message about a batch names the last function that it went through; empty without one."""
    by_row: bool = field(repr=False)
    """Whether a function or the source is called row by row."""

    @property
    def indexed(self) -> bool:
        """Whether any step can be computed without those before it."""
        return self.stream is None

    @property
    def has_functions(self) -> bool:
        """Whether a user's function is called."""
        return any(isinstance(stage, st.FunctionStage) for stage in self.pipeline.stages)

    @property
    def varies(self) -> bool:
        """Whether the row shapes of batches differ, because the longest row of each decides."""
        return any(isinstance(stage, st.PaddedBatch) and not stage.static for stage in self.pipeline.stages)

    def steps(self, epoch: int, start: int = 0, part: tuple[int, int] = (0, 1)) -> Iterator[Step]:
        """Return the steps of an epoch from ``start`` on whose number ``k`` has ``k % part[1] == part[0]``."""
        index, count = part
        first = start + (index - start) % count
        if self.stream is None:
            numbers = itertools.count(first, count) if self.endless else range(first, self.steps_per_epoch or 0, count)
            return map(functools.partial(Step, epoch), numbers)
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
        guard = slots.guard
        if guard is not None:
            guard.begin()
        try:
            if self.batches is not None:
                rows = self.batches.read(step.number, step.epoch, self.shard, slots)
            else:
                rows = self._finished(step, slots)
            if self.direct and not rows.surplus:
                return rows.columns
            tree = self.ready(rows, slots)
            if slots.sheet is not None:
                slots.sheet.lap(HOST_COPY)
            if guard is not None:
                guard.end((step.epoch, step.number))
            return tree
        except BatchkitError as exc:
            exc.args = (f"epoch {step.epoch}, step {step.number}: {exc}",)
            raise

    def requests(self, step: Step) -> list[npt.NDArray[np.int64]]:
        """Return the row numbers that a step has the source read, call by call; reads nothing."""
        if self.batches is None:
            return [] if step.rows is None else [step.rows.ids]
        return list(self.batches.requests(step.number, step.epoch, self.shard))

    def _finished(self, step: Step, slots: Any) -> Rows:
        """Do to a stream's rows what is left to do."""
        assert step.rows is not None
        # The step may be computed again after a failure: leave its rows as they are.
        rows = Rows(step.rows.ids, step.rows.epochs, step.rows.columns, step.rows.items, step.rows.surplus)
        row_calls, batch_calls = self.late_calls
        surplus = rows.surplus
        if rows.items is not None:
            rows = call_rows(rows, row_calls, slots.guard, slots.sheet)
            rows = cut_rows(self.pipeline.stages[self.last_batch], rows, self.after, slots.column)  # type: ignore[arg-type]
            if self.pads_to is not None:
                rows = nodes.pad_columns(nodes.none_of(rows) if surplus else rows, self.pads_to)
                surplus = False
            if slots.sheet is not None:
                slots.sheet.columns(self.last_batch, rows.columns)
        elif self.shard != (0, 1):
            rows, surplus = self._rank_slice(rows)
        rows.columns = call_columns(rows.columns, rows, batch_calls, slots.sheet)
        rows.surplus = surplus
        return rows

    @functools.cached_property
    def last_batch(self) -> int:
        """The number of the last stage that cuts batches."""
        return max(
            (number for number, stage in enumerate(self.pipeline.stages) if isinstance(stage, st.Batch)), default=0
        )

    def _rank_slice(self, rows: Rows) -> tuple[Rows, bool]:
        rank, world = self.shard
        count = len(rows.ids)
        low, high = count * rank // world, count * (rank + 1) // world
        surplus = low == high and count > 0
        if surplus:
            low, high = 0, 1
        epochs = rows.epochs if isinstance(rows.epochs, int) else rows.epochs[low:high]
        columns = tree_.map_leaves(lambda leaf: part(leaf, low, high), rows.columns)
        return Rows(rows.ids[low:high], epochs, columns=columns), surplus

    def ready(self, rows: Rows, slots: Any) -> Tree:
        """Return the columns of a finished batch as the backend wants them."""
        leaves, treedef = tree_.flatten(rows.columns)
        if any(isinstance(leaf, Ragged) for leaf in leaves):
            refuse_ragged(rows.columns, "a batch")
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

        varies = self.varies

        def batch_spec(leaf: npt.NDArray[Any]) -> LeafSpec:
            spec = spec_of(leaf)
            row = tuple([None] * (leaf.ndim - 1)) if varies else spec.shape[1:]
            return LeafSpec(spec.dtype, (self.rows_per_batch, *row))

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
            elif isinstance(stage, st.Batch):
                schema = padded_schema(stage, schema) if isinstance(stage, st.PaddedBatch) else schema
                if stage.remainder == "pad":
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
