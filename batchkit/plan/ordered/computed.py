"""Rows that were computed in chunks, by an executor that is some chunks ahead."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from batchkit.errors import StateError
from batchkit.plan.ordered.addresses import (
    GONE,
    Addresses,
    addresses_of,
    fetched,
    places_made,
    put_in_place,
    width_of,
)
from batchkit.plan.ordered.barren import Barren, PassRows, pass_rows
from batchkit.plan.ordered.chunks import ChunkPlan, Feeds, chunk_rows
from batchkit.plan.ordered.walks import Flow, State, Walk
from batchkit.plan.rows.calls import Rows
from batchkit.plan.step import Step

__all__ = ["ChunkFlow", "chunk_plans"]


class ChunkFlow:
    """Rows that were computed in chunks of ``size`` of those before."""

    batched = False

    def __init__(self, before: Flow, plan: ChunkPlan, size: int, name: str) -> None:
        self.before, self.plan, self.size, self.name = before, plan, size, name
        width = width_of(before)
        self.width = None if width is None else width + 1

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Chunks(self, epoch, state, feeds)

    def fetch(self, epoch: int, addresses: Addresses, feeds: Feeds) -> Rows:
        """Return the rows at some addresses: has the chunks computed that are made of what these rows are made of."""
        before, origins = np.unique(addresses[:, :-1], axis=0, return_inverse=True)
        origins = origins.reshape(-1)
        given = dataclasses.replace(fetched(self.before, epoch, before, feeds), at=None)
        starts = range(0, len(given), self.size)
        steps = (Step(epoch, number, given.part(at, at + self.size)) for number, at in enumerate(starts))
        found = []
        for start, tree in zip(starts, feeds(self.plan, steps), strict=True):
            rows, made_of = chunk_rows(tree)
            wanted = np.flatnonzero((origins >= start) & (origins < start + self.size))
            places = np.searchsorted(made_of, origins[wanted] - start) + addresses[wanted, -1]
            there = places < len(rows)
            if not there.all() or (made_of[places] != origins[wanted] - start).any():
                raise StateError(f"{self.name}: {GONE}")
            found.append((wanted, rows.chosen(places)))
        return dataclasses.replace(put_in_place(found), at=addresses)


class _Begun(NamedTuple):
    """A chunk that is computed ahead: where the walk before stood in front of it and behind, and what it is made of."""

    began: State
    ended: State
    taken: int
    addresses: Addresses | None


class _Steps(Iterator[Step]):
    """The chunks that are computed ahead, as they are pulled from the walk before.

    One that cannot be pulled is an error at its place, and those behind it come all the same.
    """

    def __init__(self, flow: ChunkFlow, epoch: int, before: Walk, begun: deque[_Begun | None]) -> None:
        self._flow, self._epoch, self._before, self._begun = flow, epoch, before, begun
        self._numbers = itertools.count()

    def __next__(self) -> Step:
        began = self._before.state()
        try:
            rows = self._before.pull(self._flow.size)
        except BaseException:
            self._begun.append(None)
            raise
        if rows is None:
            raise StopIteration
        found = None if self._flow.width is None else addresses_of(rows)
        self._begun.append(_Begun(began, self._before.state(), len(rows), found))
        return Step(self._epoch, next(self._numbers), rows if rows.at is None else dataclasses.replace(rows, at=None))


class _Chunks:
    """The rows of one chunk after the other; the run that computes them is some chunks ahead.

    State: where the walk before stood at the beginning of the chunk, and how many of its results were pulled.
    """

    def __init__(self, flow: ChunkFlow, epoch: int, state: State, feeds: Feeds) -> None:
        self._flow, self._epoch, self._feeds = flow, epoch, feeds
        began, drop = state or (None, 0)
        self._drop: int = drop
        self._before = flow.before.walk(epoch, began, feeds)
        self._begun: deque[_Begun | None] = deque()
        """Of each chunk that was pulled and did not come out of the run yet; ``None`` where it could not be pulled."""
        self._now: State = self._before.state() if began is None else began
        self._then: State = None
        self._run: Any = None
        self._rows: Rows | None = None
        self._offset = 0
        self._barren, self._passes = Barren(flow.name), PassRows()

    def pull(self, most: int) -> Rows | None:
        while self._rows is None or self._offset >= len(self._rows):
            if not self._next():
                return None
        assert self._rows is not None
        start, self._offset = self._offset, min(self._offset + most, len(self._rows))
        return self._rows.part(start, self._offset)

    def _next(self) -> bool:
        if self._run is None:
            self._run = self._feeds(self._flow.plan, _Steps(self._flow, self._epoch, self._before, self._begun))
        try:
            tree = next(self._run)
        except StopIteration:
            self._rows, self._now, self._offset = None, self._before.state(), 0
            return False
        except BaseException:
            if self._begun:  # the chunk that failed is left out if somebody goes on
                self._begun.popleft()
            raise
        begun = self._begun.popleft()
        assert begun is not None
        self._now, self._then, taken, before = begun
        self._rows, made_of = chunk_rows(tree)
        if before is not None:
            self._rows.at = np.concatenate([before[made_of], places_made(made_of)[:, None]], axis=1)
        self._offset, self._drop = self._drop, 0
        if self._offset > len(self._rows):
            raise StateError(
                f"the state stands behind {self._offset} rows that {self._flow.name} made of some rows, but now they "
                f"make {len(self._rows)}: the data or a function changed since"
            )
        of_pass = pass_rows(self._before)
        self._passes.count(of_pass, taken, len(self._rows))
        self._barren.count(of_pass, taken, len(self._rows))
        return True

    def pass_rows(self) -> int | None:
        return self._passes.most

    def state(self) -> State:
        if self._rows is not None and self._offset >= len(self._rows):
            return (self._then, 0)  # going on needs nothing of a chunk that was pulled to its end
        return (self._now, self._offset + self._drop)

    def close(self) -> None:
        close = getattr(self._run, "close", None)
        if close is not None:
            close()
        self._before.close()


def chunk_plans(flow: Any) -> Iterator[ChunkPlan]:
    """Yield the plans of all chunks that a flow is made of."""
    if isinstance(flow, ChunkFlow):
        yield flow.plan
    for before in getattr(flow, "parts", None) or filter(None, [getattr(flow, "before", None)]):
        yield from chunk_plans(before)
