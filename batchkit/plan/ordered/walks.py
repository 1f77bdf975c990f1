"""What has to happen in order: walks over rows or batches, which say at any time where they stand.

A *flow* is the compiled form of a stage behind which rows have no numbers any more, because how many there are
depends on what is in them, or of a generator, whose rows never had any. Its *walk* goes through one epoch.
What can be computed anywhere is not done here: rows come from chunks, which an executor computes ahead, and a
finished batch is stacked, padded and given to functions by ``Plan.compute``.

A walk over rows gives runs of them (:class:`~batchkit.plan.rows.calls.Rows`), one over batches a :class:`Cut` at a
time. A state is made of whole numbers and lists; a walk that is started from it goes on behind what was pulled.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from batchkit import stages as st
from batchkit.errors import PipelineError, StateError
from batchkit.plan.memory import FreshMemory
from batchkit.plan.numbered.nodes import RowsNode
from batchkit.plan.ordered.chunks import ChunkPlan, chunk_rows
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.joining import joined
from batchkit.plan.step import Step
from batchkit.stages.order import ENDLESS, pass_epochs
from batchkit.tree import Tree

__all__ = [
    "ChunkFlow",
    "Cut",
    "Feeds",
    "Flow",
    "PositionsFlow",
    "Recounted",
    "RepeatFlow",
    "SkipFlow",
    "TakeFlow",
    "Walk",
    "WindowShuffleFlow",
    "chunk_plans",
    "pull_rows",
]

Feeds: TypeAlias = Callable[[ChunkPlan, Iterator[Step]], Iterator[Tree]]
"""Has chunks computed: takes steps, ahead of what is asked for, and gives their results in order."""

State: TypeAlias = Any
"""Whole numbers and lists of them; ``None`` is the beginning."""


class Cut(NamedTuple):
    """A batch that was cut: its rows over all ranks, what they are padded to, and which of the shapes it has."""

    rows: Rows
    size: int | None = None
    group: int = 0
    shared: bool = False
    """Whether these are the rows of one rank already."""

    def share(self, shard: tuple[int, int]) -> Cut:
        """Return what a rank has of it; where it has no row, one that shows what rows are like."""
        rank, world = shard
        if world == 1 or self.shared:
            return self
        have = len(self.rows)
        whole = have if self.size is None else self.size
        low, high = whole * rank // world, whole * (rank + 1) // world
        size = None if self.size is None else -(-whole // world)  # every rank has the same shapes
        if low >= min(high, have) and have:
            mine = dataclasses.replace(self.rows.part(0, 1), surplus=True)
            return Cut(mine, size, self.group, True)
        return Cut(self.rows.part(low, min(high, have)), size, self.group, True)


class Walk(Protocol):
    """One epoch's way through a flow."""

    def pull(self, most: int) -> Any:
        """Return the next rows, at least one and ``most`` at the most, or the next batch; ``None`` at the end."""
        ...

    def state(self) -> State:
        """Return where the walk stands; no later pull changes it."""
        ...

    def close(self) -> None:
        """End what computes ahead."""
        ...


class Flow(Protocol):
    """The compiled form of a stage."""

    batched: bool
    """Whether its walks go over batches."""

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        """Start an epoch, at its beginning (``None``) or where a walk said that it stood."""
        ...


class PositionsFlow:
    """The positions of an indexed part of the pipeline; no row is read. With ``traced``, it says what rows they are."""

    batched = False

    def __init__(self, length: int | None, traced: RowsNode | None = None) -> None:
        self.length, self.traced = length, traced

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Positions(self, epoch, state or 0)


class _Positions:
    def __init__(self, flow: PositionsFlow, epoch: int, at: int) -> None:
        self._length, self._traced, self._epoch, self._at = flow.length, flow.traced, epoch, at

    def pull(self, most: int) -> Rows | None:
        start = self._at
        stop = start + most if self._length is None else min(start + most, self._length)
        if stop <= start:
            return None
        self._at = stop
        positions = np.arange(start, stop)
        origins = None if self._traced is None else self._traced.origins(positions, self._epoch)
        return Rows(positions, self._epoch, places=positions, origins=origins)

    def state(self) -> State:
        return self._at

    def close(self) -> None:
        """Nothing is computed ahead."""


class ChunkFlow:
    """Rows that were computed in chunks of ``size`` of those before."""

    batched = False

    def __init__(self, before: Flow, plan: ChunkPlan, size: int, pass_rows: int | None, name: str) -> None:
        self.before, self.plan, self.size, self.name = before, plan, size, name
        self.pass_rows = pass_rows
        """Where the rows before never end: after how many without a result none is to be hoped for."""

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Chunks(self, epoch, state, feeds)


class _Chunks:
    """The rows of one chunk after the other; the run that computes them is some chunks ahead.

    State: where the walk before stood at the beginning of the chunk, and how many of its results were pulled.
    """

    def __init__(self, flow: ChunkFlow, epoch: int, state: State, feeds: Feeds) -> None:
        self._flow, self._epoch, self._feeds = flow, epoch, feeds
        began, drop = state or (None, 0)
        self._drop: int = drop
        self._before = flow.before.walk(epoch, began, feeds)
        self._began: deque[State] = deque()
        self._now: State = self._before.state() if began is None else began
        self._run: Any = None
        self._rows: Rows | None = None
        self._offset = 0
        self._barren = 0
        self._number = itertools.count()

    def _steps(self) -> Iterator[Step]:
        while True:
            began = self._before.state()
            rows = self._before.pull(self._flow.size)
            if rows is None:
                return
            self._began.append((began, len(rows)))
            yield Step(self._epoch, next(self._number), rows)

    def pull(self, most: int) -> Rows | None:
        while self._rows is None or self._offset >= len(self._rows):
            if not self._next():
                return None
        assert self._rows is not None
        start, self._offset = self._offset, min(self._offset + most, len(self._rows))
        return self._rows.part(start, self._offset)

    def _next(self) -> bool:
        if self._run is None:
            self._run = self._feeds(self._flow.plan, self._steps())
        try:
            tree = next(self._run)
        except StopIteration:
            self._rows, self._now, self._offset = None, self._before.state(), 0
            return False
        except BaseException:
            if self._began:  # the chunk that failed is left out if somebody goes on
                self._began.popleft()
            raise
        self._now, taken = self._began.popleft()
        self._rows, self._offset, self._drop = chunk_rows(tree), self._drop, 0
        if self._offset > len(self._rows):
            raise StateError(
                f"the state stands behind {self._offset} rows that {self._flow.name} made of some rows, but now they "
                f"make {len(self._rows)}: the data or a function changed since"
            )
        self._barren = 0 if len(self._rows) else self._barren + taken
        if self._flow.pass_rows is not None and self._barren > self._flow.pass_rows:
            raise PipelineError(
                f"{self._flow.name} left nothing of {self._barren:,} rows in a row, and repeat() has no end: the epoch "
                "would never yield anything. Give repeat() a count, or look at what is filtered"
            )
        return True

    def state(self) -> State:
        return (self._now, self._offset + self._drop)

    def close(self) -> None:
        close = getattr(self._run, "close", None)
        if close is not None:
            close()
        self._before.close()


class Recounted:
    """Rows pulled again by a walk that goes on from a state, of which only some are wanted.

    Where chunks make one row of each, only those wanted are computed.
    """

    def __init__(self, flow: Flow, epoch: int, walk: Walk, feeds: Feeds) -> None:
        self._flow, self._epoch, self._walk, self._feeds = flow, epoch, walk, feeds
        self._chunks = flow if isinstance(flow, ChunkFlow) and flow.plan.one_each else None
        if self._chunks is not None:
            began, passed = walk.state()
            self._inner = self._chunks.before.walk(epoch, began, feeds)
            pull_rows(self._inner, passed)

    def pull(self, most: int) -> tuple[State, Rows | None]:
        """Return where the walk stood, and the next rows, maybe not computed."""
        if self._chunks is None:
            return self._walk.state(), self._walk.pull(most)
        return (self._inner.state(), 0), self._inner.pull(most)

    def computed(self, rows: Rows) -> Rows:
        """Return rows that were pulled, computed."""
        if self._chunks is None:
            return rows
        return chunk_rows(self._chunks.plan.compute(Step(self._epoch, 0, rows), FreshMemory()))

    def walk(self) -> Walk:
        """Return the walk behind what was pulled."""
        if self._chunks is None:
            return self._walk
        self._walk.close()
        return self._chunks.walk(self._epoch, (self._inner.state(), 0), self._feeds)


class TakeFlow:
    """The first rows, or batches."""

    def __init__(self, before: Flow, count: int) -> None:
        self.before, self.count, self.batched = before, count, before.batched

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Take(self, epoch, state, feeds)


class _Take:
    def __init__(self, flow: TakeFlow, epoch: int, state: State, feeds: Feeds) -> None:
        left, before = state or (flow.count, None)
        self._left, self._batched = left, flow.batched
        self._before = flow.before.walk(epoch, before, feeds)

    def pull(self, most: int) -> Any:
        if self._left <= 0:
            self._before.close()
            return None
        pulled = self._before.pull(min(most, self._left))
        if pulled is not None:
            self._left -= 1 if self._batched else len(pulled)
        return pulled

    def state(self) -> State:
        return (self._left, self._before.state())

    def close(self) -> None:
        self._before.close()


class SkipFlow:
    """All but the first rows, or batches."""

    def __init__(self, before: Flow, count: int) -> None:
        self.before, self.count, self.batched = before, count, before.batched

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Skip(self, epoch, state, feeds)


class _Skip:
    def __init__(self, flow: SkipFlow, epoch: int, state: State, feeds: Feeds) -> None:
        left, before = state or (flow.count, None)
        self._left: int = left
        self._batched = flow.batched
        self._before = flow.before.walk(epoch, before, feeds)

    def pull(self, most: int) -> Any:
        while self._left > 0:
            skipped = self._before.pull(self._left)
            if skipped is None:
                return None
            self._left -= 1 if self._batched else len(skipped)
        return self._before.pull(most)

    def state(self) -> State:
        return (self._left, self._before.state())

    def close(self) -> None:
        self._before.close()


class RepeatFlow:
    """Pass after pass over the same rows, or batches; each is an epoch of what comes before."""

    def __init__(self, before: Flow, count: int | None) -> None:
        self.before, self.count, self.batched = before, count, before.batched

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Repeat(self, epoch, state, feeds)


class _Repeat:
    """State: the pass, whether it has yielded anything yet, and where the walk before stands in it."""

    def __init__(self, flow: RepeatFlow, epoch: int, state: State, feeds: Feeds) -> None:
        self._flow, self._epoch, self._feeds = flow, epoch, feeds
        which, any_, before = state or (0, 0, None)
        self._which: int = which
        self._any: int = any_
        self._before: Walk | None = self._start(before)

    def _start(self, state: State) -> Walk | None:
        if self._flow.count is not None and self._which >= self._flow.count:
            return None
        epoch = pass_epochs(self._epoch, self._which, self._flow.count or ENDLESS)
        return self._flow.before.walk(epoch, state, self._feeds)

    def pull(self, most: int) -> Any:
        while self._before is not None:
            pulled = self._before.pull(most)
            if pulled is not None:
                self._any = 1
                return pulled
            if self._flow.count is None and not self._any:
                raise PipelineError("repeat() for ever over what yields nothing would never end")
            self._before.close()
            self._which, self._any = self._which + 1, 0
            self._before = self._start(None)
        return None

    def state(self) -> State:
        return (self._which, self._any, None if self._before is None else self._before.state())

    def close(self) -> None:
        if self._before is not None:
            self._before.close()


class WindowShuffleFlow:
    """Rows of which each run of ``window`` is permuted."""

    batched = False

    def __init__(self, before: Flow, stage: st.Shuffle, ordinal: int) -> None:
        self.before, self.stage, self.ordinal = before, stage, ordinal

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _WindowShuffle(self, epoch, state, feeds)


class _WindowShuffle:
    """State: the window's number, where the walk before stood at its beginning, and how many were pulled of it."""

    def __init__(self, flow: WindowShuffleFlow, epoch: int, state: State, feeds: Feeds) -> None:
        self._flow, self._epoch = flow, epoch
        number, began, offset = state or (0, None, 0)
        self._number: int = number
        self._offset: int = offset
        self._before = flow.before.walk(epoch, began, feeds)
        self._began = self._before.state()
        self._rows: Rows | None = None

    def pull(self, most: int) -> Rows | None:
        if self._rows is None:
            self._rows = self._filled()
        if self._rows is not None and self._offset >= len(self._rows):
            self._began, self._number, self._offset = self._before.state(), self._number + 1, 0
            self._rows = self._filled()
        if self._rows is None:
            return None
        start, self._offset = self._offset, min(self._offset + most, len(self._rows))
        return self._rows.part(start, self._offset)

    def _filled(self) -> Rows | None:
        parts = pull_rows(self._before, self._flow.stage.window or 1)
        if not parts:
            return None
        rows = joined(parts)
        return rows.chosen(self._flow.stage.block(len(rows), self._flow.ordinal, self._epoch, self._number))

    def state(self) -> State:
        return (self._number, self._began, self._offset)

    def close(self) -> None:
        self._before.close()


def pull_rows(walk: Walk, count: int) -> list[Rows]:
    """Return the next ``count`` rows of a walk in as many runs as they come in; fewer at the end."""
    parts: list[Rows] = []
    while count > 0:
        rows = walk.pull(count)
        if rows is None:
            break
        parts.append(rows)
        count -= len(rows)
    return parts


def chunk_plans(flow: Any) -> Iterator[ChunkPlan]:
    """Yield the plans of all chunks that a flow is made of."""
    if isinstance(flow, ChunkFlow):
        yield flow.plan
    for before in getattr(flow, "parts", None) or filter(None, [getattr(flow, "before", None)]):
        yield from chunk_plans(before)
