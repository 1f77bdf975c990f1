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
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit.errors import PipelineError, StateError
from batchkit.plan.numbered.nodes import RowsNode
from batchkit.plan.ordered.addresses import (
    GONE,
    Addresses,
    addresses_of,
    fetched,
    groups,
    put_in_place,
    width_of,
)
from batchkit.plan.ordered.barren import PassRows, pass_rows
from batchkit.plan.ordered.chunks import Feeds
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.joining import joined
from batchkit.stages.order import ENDLESS, pass_epochs

__all__ = [
    "Cut",
    "Feeds",
    "Flow",
    "PositionsFlow",
    "RepeatFlow",
    "SkipFlow",
    "TakeFlow",
    "Walk",
    "WindowShuffleFlow",
    "pull_rows",
]

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

    def __init__(self, length: int | None, traced: RowsNode | None = None, pass_rows: int | None = None) -> None:
        self.length, self.traced, self.width = length, traced, 1
        self.pass_rows = pass_rows
        """How many positions a pass has at the most, where there is no end to them."""

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Positions(self, epoch, state or 0)

    def fetch(self, epoch: int, addresses: Addresses, feeds: Feeds) -> Rows:
        """Return the rows at some addresses."""
        positions = addresses[:, 0]
        if self.length is not None and positions.max() >= self.length:
            raise StateError(GONE)
        return self.rows(positions, epoch)

    def rows(self, positions: npt.NDArray[np.int64], epoch: int) -> Rows:
        """Return rows at some positions, there are such."""
        origins = None if self.traced is None else self.traced.origins(positions, epoch)
        return Rows(positions, epoch, places=positions, origins=origins)


class _Positions:
    def __init__(self, flow: PositionsFlow, epoch: int, at: int) -> None:
        self._flow, self._epoch, self._at = flow, epoch, at

    def pull(self, most: int) -> Rows | None:
        start, length = self._at, self._flow.length
        stop = start + most if length is None else min(start + most, length)
        if stop <= start:
            return None
        self._at = stop
        return self._flow.rows(np.arange(start, stop), self._epoch)

    def pass_rows(self) -> int | None:
        return self._flow.pass_rows

    def state(self) -> State:
        return self._at

    def close(self) -> None:
        """Nothing is computed ahead."""


class TakeFlow:
    """The first rows, or batches."""

    def __init__(self, before: Flow, count: int) -> None:
        self.before, self.count, self.batched = before, count, before.batched
        self.width = width_of(before)

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Take(self, epoch, state, feeds)

    def fetch(self, epoch: int, addresses: Addresses, feeds: Feeds) -> Rows:
        """Return the rows at some addresses."""
        return fetched(self.before, epoch, addresses, feeds)


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

    def pass_rows(self) -> int | None:
        return None  # they end

    def state(self) -> State:
        return (self._left, self._before.state())

    def close(self) -> None:
        self._before.close()


class SkipFlow:
    """All but the first rows, or batches."""

    def __init__(self, before: Flow, count: int) -> None:
        self.before, self.count, self.batched = before, count, before.batched
        self.width = width_of(before)

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Skip(self, epoch, state, feeds)

    def fetch(self, epoch: int, addresses: Addresses, feeds: Feeds) -> Rows:
        """Return the rows at some addresses."""
        return fetched(self.before, epoch, addresses, feeds)


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
        width = width_of(before)
        self.width = None if width is None else width + 1

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Repeat(self, epoch, state, feeds)

    def fetch(self, epoch: int, addresses: Addresses, feeds: Feeds) -> Rows:
        """Return the rows at some addresses, pass by pass."""
        found = []
        for which, places in groups(addresses[:, 0]):
            if which >= (self.count or ENDLESS):
                raise StateError(GONE)
            found.append((places, fetched(self.before, self.epoch(epoch, which), addresses[places, 1:], feeds)))
        return dataclasses.replace(put_in_place(found), at=addresses)

    def epoch(self, epoch: int, which: int) -> int:
        """Return which epoch of what comes before a pass is."""
        passed: int = pass_epochs(epoch, which, self.count or ENDLESS)
        return passed


class _Repeat:
    """State: the pass, whether it has yielded anything yet, and where the walk before stands in it."""

    def __init__(self, flow: RepeatFlow, epoch: int, state: State, feeds: Feeds) -> None:
        self._flow, self._epoch, self._feeds = flow, epoch, feeds
        which, any_, before = state or (0, 0, None)
        self._which: int = which
        self._any: int = any_
        self._passes = PassRows()
        self._whole = before is None
        """Whether the pass was begun here, and not gone on with."""
        self._before: Walk | None = self._start(before)

    def _start(self, state: State) -> Walk | None:
        if self._flow.count is not None and self._which >= self._flow.count:
            return None
        return self._flow.before.walk(self._flow.epoch(self._epoch, self._which), state, self._feeds)

    def pull(self, most: int) -> Any:
        while self._before is not None:
            pulled = self._before.pull(most)
            if pulled is not None:
                self._any = 1
                self._passes.count(None, 0, 1 if self._flow.batched else len(pulled))
                if self._flow.width is None:
                    return pulled
                inner = addresses_of(pulled)
                return dataclasses.replace(pulled, at=np.insert(inner, 0, self._which, axis=1))
            if self._flow.count is None and not self._any:
                raise PipelineError("repeat() for ever over what yields nothing would never end")
            self._passes.begin_anew(self._whole)
            self._before.close()
            self._which, self._any, self._whole = self._which + 1, 0, True
            self._before = self._start(None)
        return None

    def pass_rows(self) -> int | None:
        inner = pass_rows(self._before)  # of what never ends itself
        return self._passes.most if inner is None and self._flow.count is None else inner

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
        self.width = width_of(before)

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _WindowShuffle(self, epoch, state, feeds)

    def fetch(self, epoch: int, addresses: Addresses, feeds: Feeds) -> Rows:
        """Return the rows at some addresses."""
        return fetched(self.before, epoch, addresses, feeds)


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
        """Those of the window; ``None`` before it was filled, and behind the end."""

    def pull(self, most: int) -> Rows | None:
        if self._rows is None:
            self._rows = self._filled()
        if self._rows is not None and self._offset >= len(self._rows):
            # Were they still there if the next ones cannot be had, they would be given out a second time.
            self._rows, self._number, self._offset = None, self._number + 1, 0
            self._rows = self._filled()
        if self._rows is None:
            return None
        start, self._offset = self._offset, min(self._offset + most, len(self._rows))
        return self._rows.part(start, self._offset)

    def _filled(self) -> Rows | None:
        self._began = self._before.state()
        parts = pull_rows(self._before, self._flow.stage.window or 1)
        if not parts:
            return None
        rows = joined(parts)
        return rows.chosen(self._flow.stage.block(len(rows), self._flow.ordinal, self._epoch, self._number))

    def state(self) -> State:
        if self._rows is not None and self._offset >= len(self._rows):
            return (self._number + 1, self._before.state(), 0)  # nothing is needed of a window that was given out
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
