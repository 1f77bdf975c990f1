"""Combinations of which a part has rows without numbers: walks over several walks.

How many rows a part has is seen only when it ends, so that the parts are gone through in order, each a little
ahead: state is where each part stands, and how many rows have come of all.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import PipelineError, StateError
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
from batchkit.plan.ordered.walks import Flow, State, Walk
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.joining import joined
from batchkit.plan.rows.lineage import Lineage
from batchkit.plan.rows.scattering import Scattered, scattered_rows
from batchkit.schedule import MixSchedule
from batchkit.sources import Combination, Concat, Interleave, Mix, Zip
from batchkit.sources.stacking import split_rows
from batchkit.stages.order import ENDLESS, pass_epochs
from batchkit.tree import Tree

__all__ = ["PartedFlow", "ZipFlow"]

I64 = npt.NDArray[np.int64]
MOST = 256
"""How many rows of all parts are looked at together."""


class _Part:
    """The walk of a part, with rows that were pulled and not given yet. State: the pass, whether it has had any, where
    its walk stood in front of the oldest run that holds such rows, and how many of that run were given.
    """

    def __init__(self, flow: Flow, epoch: int, state: State, feeds: Feeds) -> None:
        self._flow, self._epoch, self._feeds = flow, epoch, feeds
        turn, any_, began, offset = state or (0, 0, None, 0)
        self.turn: int = turn
        self._any: int = any_
        self._offset: int = offset
        self._runs: deque[tuple[State, Rows]] = deque()
        self._rows = 0
        self.ended = False
        self.since = 0
        """How many rows were given since all parts were through."""
        self.through = False
        """Whether a pass has ended since then."""
        self._walk = self._start(began)

    def _start(self, state: State) -> Walk:
        return self._flow.walk(pass_epochs(self._epoch, self.turn), state, self._feeds)

    @property
    def have(self) -> int:
        """How many rows are there to be given."""
        return max(self._rows - self._offset, 0)

    def need(self, count: int) -> None:
        """Pull until so many rows are there, or the pass has ended."""
        while self.have < count and not self.ended:
            began = self._walk.state()
            rows = self._walk.pull(max(count - self.have, 1))
            if rows is None:
                self.ended = True
            else:
                self._any = 1
                self._runs.append((began, rows))
                self._rows += len(rows)

    def give(self, count: int) -> list[Rows]:
        """Return the next rows, which are there."""
        given: list[Rows] = []
        while count > 0:
            rows = self._runs[0][1]
            if self._offset >= len(rows):  # after going on from a state, runs may be cut otherwise
                self._runs.popleft()
                self._rows, self._offset = self._rows - len(rows), self._offset - len(rows)
                continue
            stop = min(self._offset + count, len(rows))
            given.append(rows.part(self._offset, stop))
            self.since += stop - self._offset
            count, self._offset = count - (stop - self._offset), stop
        return given

    def pass_rows(self) -> int | None:
        """Return how many rows a pass has at the most, where the part itself has no end."""
        return pass_rows(self._walk)

    def done(self) -> bool:
        """Say whether a pass has ended since all parts were through."""
        own = self.pass_rows()
        return self.through or (self.ended and not self.have) or (own is not None and self.since >= own)

    def begin_anew(self) -> None:
        """Take note that all parts were through."""
        self.since, self.through = 0, False

    def restart(self) -> None:
        """Begin the next pass.

        Raises:
            PipelineError: the one before has given nothing.
        """
        if not self._any:
            raise PipelineError("a part that has no rows cannot start again: leave it out, or give it weight 0")
        self._walk.close()
        self.turn, self._any, self._offset, self._rows, self.ended = self.turn + 1, 0, 0, 0, False
        self.through = True
        self._runs.clear()
        self._walk = self._start(None)

    def state(self) -> State:
        offset = self._offset
        for began, rows in self._runs:
            if offset < len(rows):
                return (self.turn, self._any, began, offset)
            offset -= len(rows)
        return (self.turn, self._any, self._walk.state(), offset)

    def close(self) -> None:
        """End what computes ahead."""
        self._walk.close()


class _Order(Protocol):
    """Says whose row is next."""

    def wanted(self, most: int) -> I64:
        """Return the parts of the next rows, as far as no part ends; empty at the end of all."""
        ...

    def gave(self, parts: I64) -> None:
        """Take note that these rows were given."""
        ...

    def ended(self, part: int) -> bool:
        """Take note that a part is due that has ended; return whether it is to start again."""
        ...

    @property
    def todo(self) -> list[int]:
        """The parts that were not through once, where that ends it all."""
        ...

    def state(self) -> State: ...


class _InTurn:
    """Concat and interleave: ``block`` rows of each part that has not ended; ``None``: all."""

    def __init__(self, parts: int, block: int | None, state: State) -> None:
        self._block = block
        alive, turn, left = state or (list(range(parts)), 0, block or 0)
        self._alive: list[int] = list(alive)
        self._turn: int = turn
        self._left: int = left
        self.todo: list[int] = []

    def wanted(self, most: int) -> I64:
        if not self._alive:
            return np.empty(0, np.int64)
        if self._block is None:
            return np.full(most, self._alive[0])
        turns = np.repeat(np.roll(self._alive, -self._turn), self._block)
        whole = np.tile(turns, most // len(turns) + 2)
        start = self._block - self._left
        return whole[start : start + most]

    def gave(self, parts: I64) -> None:
        if self._block is None:
            return
        given = self._block - self._left + len(parts)
        self._turn = (self._turn + given // self._block) % len(self._alive)
        self._left = self._block - given % self._block

    def ended(self, part: int) -> bool:
        place = self._alive.index(part)
        self._alive.remove(part)
        self._left = self._block or 0
        self._turn = place % len(self._alive) if self._alive else 0
        return False

    def state(self) -> State:
        return (list(self._alive), self._turn, self._left)


class _Mixed:
    """Mix: by the schedule, whatever the lengths."""

    def __init__(self, source: Mix, state: State) -> None:
        pieces = source.pieces()
        self._schedule = MixSchedule(pieces, [None] * len(source.parts), "first")
        self._stop = source.stop
        given, todo = state or (0, [part for part, weight in enumerate(pieces[-1][1]) if weight])
        self._given: int = given
        self.todo: list[int] = list(todo)
        """The parts that were not through once, where that ends the mix."""

    def wanted(self, most: int) -> I64:
        if self._stop == "all" and not self.todo:
            return np.empty(0, np.int64)
        return self._schedule.locate(np.arange(self._given, self._given + most))[0]

    def gave(self, parts: I64) -> None:
        self._given += len(parts)

    def ended(self, part: int) -> bool:
        if self._stop == "first":
            self._stop, self.todo = "all", []
        return self._stop != "all" or bool(self.todo)

    def state(self) -> State:
        return (self._given, list(self.todo))


class PartedFlow:
    """Each row from one of several parts: one after the other, in turns, or mixed."""

    batched = False

    def __init__(self, source: Combination, parts: Sequence[Flow]) -> None:
        self.source, self.parts = source, tuple(parts)
        self._firsts = _first_sources(source)
        widths = [width_of(part) for part in parts]
        known = [width for width in widths if width is not None]
        self.width = 2 + max(known) if len(known) == len(widths) else None
        """Part and pass, and the address in them."""

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Parted(self, epoch, state, feeds)

    def fetch(self, epoch: int, addresses: Addresses, feeds: Feeds) -> Rows:
        """Return the rows at some addresses, part by part and pass by pass."""
        found = []
        for part, places in groups(addresses[:, 0]):
            if part >= len(self.parts):
                raise StateError(GONE)
            flow, passes = self.parts[part], []
            for turn, mine in groups(addresses[places, 1]):
                if turn >= ENDLESS:
                    raise StateError(GONE)
                inner = addresses[places[mine], 2 : 2 + (width_of(flow) or 0)]
                passes.append((mine, fetched(flow, pass_epochs(epoch, turn), inner, feeds)))
            found.append((part, places, dataclasses.replace(put_in_place(passes), at=None)))
        return dataclasses.replace(self.together(found, len(addresses)), at=addresses)

    def together(self, found: Sequence[tuple[int, I64, Rows]], count: int) -> Rows:
        """Return ``count`` rows of parts, each in its place, numbered so that no two parts have a number in common."""
        bare = []
        for part, _, rows in found:
            ids = np.where(rows.ids < 0, rows.ids, rows.ids * len(self.parts) + part)
            origins = None if rows.origins is None else rows.origins.numbered(self._firsts[part])
            bare.append(Rows(ids, rows.epochs, subs=rows.subs, origins=origins, at=rows.at))
        if len(found) == 1:
            ((_, _, rows),) = found
            return dataclasses.replace(bare[0], columns=rows.columns, items=rows.items)
        source = self.source
        scattered = [Scattered(source.names[part], places, rows) for part, places, rows in found]
        columns, items = scattered_rows(scattered, count, _fresh(count), f"{source.kind}()")
        order = np.argsort(np.concatenate([places for _, places, _ in found]))
        return dataclasses.replace(joined(bare).chosen(order), columns=columns, items=items)


class _Parted:
    """State: that of the order, and of each part."""

    def __init__(self, flow: PartedFlow, epoch: int, state: State, feeds: Feeds) -> None:
        source = flow.source
        order, parts = state or (None, [None] * len(flow.parts))
        self._flow = flow
        self._parts = [_Part(part, epoch, its, feeds) for part, its in zip(flow.parts, parts, strict=True)]
        self._order: _Order
        if isinstance(source, Mix):
            self._order = _Mixed(source, order)
        else:
            assert isinstance(source, (Concat, Interleave))
            self._order = _InTurn(len(flow.parts), getattr(source, "block", None), order)
        self._ahead = isinstance(source, Mix) and source.stop == "all"
        weights = source.pieces()[-1][1] if isinstance(source, Mix) else [1] * len(self._parts)
        self._drawn = [part for part, weight in zip(self._parts, weights, strict=True) if weight]
        self._passes, self._whole = PassRows(), state is None

    def pull(self, most: int) -> Rows | None:
        while True:
            wanted = self._order.wanted(min(most, MOST))
            if not len(wanted):
                return None
            count = self._there(wanted)
            if count:
                wanted = wanted[:count]
                rows = self._given(wanted)
                self._order.gave(wanted)
                self._through()
                self._passes.count(None, 0, count)
                if all(part.done() for part in self._drawn):
                    self._passes.begin_anew(self._whole)
                    self._whole = True
                    for one in self._drawn:
                        one.begin_anew()
                return rows
            part = int(wanted[0])
            if self._order.ended(part):
                self._parts[part].restart()

    def _there(self, wanted: I64) -> int:
        """Return how many of the rows wanted can be given before the pass of a part ends, or all parts were through."""
        count = len(wanted)
        last = -1
        for part in np.unique(wanted).tolist():
            places = np.flatnonzero(wanted == part)
            one = self._parts[part]
            one.need(len(places) + self._ahead)
            if one.have < len(places):
                count = min(count, int(places[one.have]))
            if self._ahead and part in self._order.todo:
                done = one.ended and one.have <= len(places)
                last = max(last, int(places[one.have - 1]) if done and one.have else len(wanted))
        if self._ahead and last >= 0 and set(self._order.todo) <= set(wanted.tolist()):
            count = min(count, last + 1)
        return count

    def pass_rows(self) -> int | None:
        source = self._flow.source
        endless = [part.pass_rows() is not None for part in self._drawn]
        if isinstance(source, Mix) and source.stop != "all":
            goes_on = source.stop == "forever" or all(endless)
        else:
            goes_on = any(endless)
        return self._passes.most if goes_on else None

    def _through(self) -> None:
        if self._ahead:
            for part in list(self._order.todo):
                if self._parts[part].ended and not self._parts[part].have:
                    self._order.todo.remove(part)

    def _given(self, wanted: I64) -> Rows:
        found = []
        for part, places in groups(wanted):
            one = self._parts[part]
            rows = joined(one.give(len(places)))
            found.append((part, places, self._addressed(rows, part, one.turn)))
        return self._flow.together(found, len(wanted))

    def _addressed(self, rows: Rows, part: int, turn: int) -> Rows:
        width = self._flow.width
        if width is None:  # but the part's own may have, of more numbers than another's
            return dataclasses.replace(rows, at=None)
        own = addresses_of(rows)
        at = np.zeros((len(rows), width), np.int64)
        at[:, 0], at[:, 1], at[:, 2 : 2 + own.shape[1]] = part, turn, own
        return dataclasses.replace(rows, at=at)

    def state(self) -> State:
        return (self._order.state(), [part.state() for part in self._parts])

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _first_sources(source: Combination) -> list[int]:
    """Return for each part how many sources come before its own."""
    return list(itertools.accumulate((len(part.sources) for part in source.parts[:-1]), initial=0))


def _fresh(rows: int) -> Any:
    return lambda leaf, dtype, row_shape: np.empty((rows, *row_shape), dtype)


class ZipFlow:
    """Row ``i`` of every part, side by side."""

    batched = False

    def __init__(self, source: Zip, parts: Sequence[Flow]) -> None:
        self.source, self.parts = source, tuple(parts)

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Zipped(self, epoch, state, feeds)


class _Zipped:
    """State: how many rows were given, and where each part stands."""

    def __init__(self, flow: ZipFlow, epoch: int, state: State, feeds: Feeds) -> None:
        given, parts = state or (0, [None] * len(flow.parts))
        self._source, self._epoch = flow.source, epoch
        self._firsts = _first_sources(flow.source)
        self._given: int = given
        self._parts = [_Part(part, epoch, its, feeds) for part, its in zip(flow.parts, parts, strict=True)]

    def pull(self, most: int) -> Rows | None:
        for part in self._parts:
            part.need(most)
        count = min(most, *(part.have for part in self._parts)) if len(self._parts) > 1 else self._parts[0].have
        if not count:
            self._check_ends()
            return None
        given = [joined(part.give(count)) for part in self._parts]
        ids = np.arange(self._given, self._given + count)
        self._given += count
        treedef = self._source.treedef
        if all(rows.items is None for rows in given):
            columns = tree_.unflatten(treedef, [rows.columns for rows in given])
            return Rows(ids, self._epoch, columns, origins=self._origins(given))
        sides = [split_rows(rows.columns) if rows.items is None else rows.items for rows in given]
        items: list[Tree] = [tree_.unflatten(treedef, each) for each in zip(*sides, strict=True)]
        return Rows(ids, self._epoch, items=items, origins=self._origins(given))

    def _origins(self, given: Sequence[Rows]) -> Lineage | None:
        pairs = zip(given, self._firsts, strict=True)
        found = [rows.origins.numbered(first) for rows, first in pairs if rows.origins is not None]
        return Lineage.merged(found) if found else None

    def _check_ends(self) -> None:
        if self._source.stop == "error" and any(part.have for part in self._parts):
            names = self._source.names
            ended = [name for name, part in zip(names, self._parts, strict=True) if not part.have]
            raise PipelineError(
                f"zip(): part {', '.join(ended)} ended after {self._given} rows, and others have more. Use "
                "stop='shortest' to end with the shortest"
            )

    def pass_rows(self) -> int | None:
        found = [part.pass_rows() for part in self._parts]
        known = [rows for rows in found if rows is not None]
        return max(known) if len(known) == len(found) else None

    def state(self) -> State:
        return (self._given, [part.state() for part in self._parts])

    def close(self) -> None:
        for part in self._parts:
            part.close()
