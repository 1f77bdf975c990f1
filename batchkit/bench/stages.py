"""Each stage of a pipeline on its own: what comes to it is computed before the clock runs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from batchkit import tree as tree_
from batchkit.errors import PipelineError
from batchkit.loader import Loader
from batchkit.metering import HOST_COPY, PUT, SOURCE, MeasuredSlots, Sheet
from batchkit.plan import ChunkPlan, Plan, Step, compile
from batchkit.plan.memory import FreshMemory
from batchkit.plan.ordered.walked import computed_here
from batchkit.plan.rows.calls import Call, Rows, call_columns, call_rows
from batchkit.report import stage_names
from batchkit.tree import Tree

__all__ = ["StageLimit", "stage_limits"]


class StageLimit(NamedTuple):
    """How long one stage alone takes."""

    name: str
    seconds: tuple[float, ...]
    """A batch, once a round."""
    rows: float
    """The rows of a batch."""

    @property
    def median(self) -> float:
        """The middle one of the rounds."""
        return statistics.median(self.seconds)

    @property
    def rows_per_s(self) -> float:
        """The most rows that can come through this stage in a second, with one worker."""
        return self.rows / max(self.median, 1e-9)


def stage_limits(loader: Loader, steps: int = 16, rounds: int = 5) -> list[StageLimit]:
    """Measure each stage of a loader's pipeline by itself, in the caller's thread.

    ``steps`` batches of the first epoch are taken, and held in memory as they are in front of the
    stage that is measured. Every stage gets copies, in every one of ``rounds`` rounds.

    Raises:
        PipelineError: the pipeline has no batches.
    """
    plan = compile(loader.pipeline, loader.shard)
    wanted = list(itertools.islice(plan.steps(0), steps))
    if not wanted:
        raise PipelineError("the pipeline has no batches, so that there is nothing to measure. Give it rows")
    measured = _Indexed(plan, wanted, loader) if plan.indexed else _Streamed(plan, wanted, loader)
    names, rows = stage_names(loader.pipeline), measured.rows()
    found: dict[int, list[float]] = {}
    for number, run in measured.stages():
        run()  # the first time caches are cold, and slots are made
        found[number] = [run() / len(wanted) for _ in range(rounds)]
    return [StageLimit(names[number], tuple(seconds), rows) for number, seconds in sorted(found.items())]


class _Replay:
    """Stands in for a node: hands out copies of what it has returned, and counts the time that the copies take."""

    def __init__(self, node: Any) -> None:
        self.node, self.length = node, node.length
        self.recorded: list[Rows] = []
        self.recording = True
        self.spent = 0.0
        self._next = 0

    def read(self, *arguments: Any) -> Rows:
        began = time.perf_counter()
        if self.recording:
            self.recorded.append(_copied(self.node.read(*arguments)))
            rows = self.recorded[-1]
        else:
            rows = self.recorded[self._next % len(self.recorded)]
            self._next += 1
        copied = _copied(rows)
        self.spent += time.perf_counter() - began
        return copied


class _Indexed:
    """The nodes of a plan, each measured with a replay of the one before it."""

    def __init__(self, plan: Plan, steps: Sequence[Step], loader: Loader) -> None:
        self._plan, self._steps, self._loader = plan, steps, loader
        self._slots = loader.host_slots()

    def rows(self) -> float:
        return statistics.fmean(len(self._read(step).ids) for step in self._steps)

    def _read(self, step: Step) -> Rows:
        rows: Rows = self._plan.batches.read(step.number, step.epoch, self._plan.shard, self._slots)  # type: ignore[union-attr]
        return rows

    def stages(self) -> Any:
        """Yield the number of every stage, and what runs it over all steps and returns the seconds."""
        nodes = [self._plan.batches]
        while hasattr(nodes[-1], "before"):
            nodes.append(nodes[-1].before)  # type: ignore[union-attr]
        for place, node in reversed(list(enumerate(nodes))):
            yield node.number, functools.partial(self._alone, nodes, place)  # type: ignore[union-attr]
        yield from _delivery(self._plan, self._loader, [self._read(step) for step in self._steps], self._slots)

    def _alone(self, nodes: list[Any], place: int) -> float:
        """Run one node over all steps: what comes to it from below is replayed, and what is above it left out."""
        node, calls = nodes[place], self._calls_of(nodes, place)
        if place + 1 == len(nodes):
            return _timed(lambda: [node.read(*arguments, self._slots) for arguments in calls])
        replay = node.before = _Replay(nodes[place + 1])
        try:
            for arguments in calls:
                node.read(*arguments, self._slots)
            replay.recording, replay.spent = False, 0.0
            return _timed(lambda: [node.read(*arguments, self._slots) for arguments in calls]) - replay.spent
        finally:
            node.before = nodes[place + 1]

    def _calls_of(self, nodes: list[Any], place: int) -> list[tuple[Any, ...]]:
        """Return what a node is asked for during the steps."""
        if place == 0:
            return [(step.number, step.epoch, self._plan.shard) for step in self._steps]
        above, calls = nodes[place - 1], []

        class Asked:
            length = nodes[place].length

            def read(self, *arguments: Any) -> Rows:
                calls.append(arguments[:-1])
                rows: Rows = nodes[place].read(*arguments)
                return rows

        above.before = Asked()
        try:
            for step in self._steps:
                self._read(step)
        finally:
            above.before = nodes[place]
        return calls


class _Streamed:
    """Batches that are cut in order: what is computed in chunks, the cutting, and what is done to what was cut."""

    def __init__(self, plan: Plan, steps: Sequence[Step], loader: Loader) -> None:
        self._plan, self._steps, self._loader = plan, steps, loader
        self._slots = loader.host_slots()
        self._chunks: list[tuple[ChunkPlan, Step]] = []
        self._results: list[list[Tree]] = []
        if plan.chunks:
            self._walked(self._recorded)

    def _walked(self, feeds: Any) -> list[Step]:
        with contextlib.closing(self._plan.steps(0, feeds=feeds)) as steps:  # type: ignore[type-var]
            return list(itertools.islice(steps, len(self._steps)))

    def _recorded(self, chunks: ChunkPlan, steps: Iterator[Step]) -> Iterator[Tree]:
        results: list[Tree] = []
        self._results.append(results)
        for step in steps:
            self._chunks.append((chunks, step))
            results.append(chunks.compute(step, FreshMemory()))
            yield results[-1]

    def _replayed(self) -> Any:
        kept = iter(self._results)
        return lambda chunks, steps: (tree for _, tree in zip(steps, next(kept), strict=False))

    def rows(self) -> float:
        return statistics.fmean(len(step.rows.ids) for step in self._steps if step.rows is not None)

    def stages(self) -> Any:
        """Yield the number of every stage, and what runs it over all steps and returns the seconds."""
        plan = self._plan
        if plan.chunks:
            yield from self._in_chunks()
            yield plan.cuts_at, lambda: _timed(lambda: self._walked(self._replayed()))
        elif plan.cuts_at != plan.last_batch or plan.paddings:  # by lengths alone: nothing is read on the way
            yield plan.cuts_at, lambda: _timed(lambda: [*map(plan.given, self._walked(computed_here))])
        else:
            yield SOURCE, lambda: _timed(lambda: self._walked(computed_here))
        now = [plan.given(step) for step in self._steps]
        row_calls, batch_calls = plan.late_calls
        for call in row_calls:
            yield call.number, _repeated(now, functools.partial(_called_rows, call))
            now = [_called_rows(call, _copied(rows)) for rows in now]
        if plan.cut is not None:
            groups = [step.group for step in self._steps]
            if plan.cuts_at != plan.last_batch or not (plan.chunks or plan.paddings):
                yield plan.last_batch, _timed_in_turn(now, groups, self._cut)
            now = [self._cut(_copied(rows), group) for rows, group in zip(now, groups, strict=True)]
        for call in batch_calls:
            yield call.number, _repeated(now, functools.partial(_called_columns, call))
            now = [_called_columns(call, _copied(rows)) for rows in now]
        yield from _delivery(plan, self._loader, now, self._slots)

    def _in_chunks(self) -> Any:
        """Yield the source and the stages that are computed in chunks."""
        for number in sorted(self._measured()):
            yield number, functools.partial(self._seconds, number)

    def _seconds(self, number: int) -> float:
        return self._measured().get(number, 0.0)

    def _measured(self) -> dict[int, float]:
        """Compute all chunks; return what each stage took of them."""
        found: dict[int, float] = {}
        for chunks, step in self._chunks:
            sheet = Sheet()
            chunks.compute(step, MeasuredSlots(FreshMemory(), sheet))
            for number, figures in sheet.stages.items():
                found[number] = found.get(number, 0.0) + figures[1]
            sheet.end()
        return found

    def _cut(self, rows: Rows, group: int) -> Rows:
        return self._plan.cut_rows(rows, group, self._slots)


def _timed_in_turn(
    inputs: Sequence[Rows], groups: Sequence[int], function: Callable[[Rows, int], Any]
) -> Callable[[], float]:
    def run() -> float:
        copies = [_copied(rows) for rows in inputs]
        return _timed(lambda: [function(rows, group) for rows, group in zip(copies, groups, strict=True)])

    return run


def _called_rows(call: Call, rows: Rows) -> Rows:
    return call_rows(rows, [call])


def _called_columns(call: Call, rows: Rows) -> Rows:
    rows.columns = call_columns(rows.columns, rows, [call])
    return rows


def _delivery(plan: Plan, loader: Loader, batches: list[Rows], slots: Any) -> Any:
    """Yield the copy for the backend, and the hand-over."""
    kept = [_copied(rows) for rows in batches]
    yield HOST_COPY, _repeated(kept, lambda rows: plan.ready(rows, slots))
    hosts = [plan.ready(_copied(rows), slots) for rows in kept]
    put, device = loader.backend.put, loader.device
    yield PUT, lambda: _timed(lambda: [put(host, device) for host in hosts])


def _repeated(inputs: Sequence[Rows], function: Callable[[Rows], Any]) -> Callable[[], float]:
    def run() -> float:
        copies = [_copied(rows) for rows in inputs]
        return _timed(lambda: [function(rows) for rows in copies])

    return run


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _copied(rows: Rows) -> Rows:
    """Return rows of their own: a function may change what it is given."""
    columns = None if rows.columns is None else tree_.map_leaves(_copy, rows.columns)
    items = None if rows.items is None else [tree_.map_leaves(_copy, item) for item in rows.items]
    return Rows(rows.ids, rows.epochs, columns, items, rows.surplus, collated=rows.collated)


def _copy(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf
