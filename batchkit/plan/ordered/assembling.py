"""Packing and bucketing: walks that hold rows back until what they belong to is full.

They go by lengths alone. Where lengths are known without reading rows, rows are positions until a batch is
computed, so that nobody reads more than its own; else rows come computed, and wait here.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.bucketing import Bucketer
from batchkit.errors import PipelineError, StateError
from batchkit.lengths import joined as joined_items
from batchkit.packing import Packed, Packer, packed_columns
from batchkit.plan.numbered.combining import read_places
from batchkit.plan.numbered.nodes import RowsNode, SlotPool
from batchkit.plan.ordered.walks import Cut, Feeds, Flow, Recounted, State, Walk, pull_rows
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.joining import joined
from batchkit.plan.rows.lineage import Lineage
from batchkit.sources.stacking import detached

__all__ = ["BucketFlow", "Lengths", "PackFlow", "UnpackedFlow", "needed", "origins_of", "unpacked"]

Lengths: TypeAlias = Callable[[Rows], "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]"]
"""Returns how long rows are, and their numbers in the source."""

RUN = 512
"""How many rows are looked at together."""
ENDED = -1


class _Snapshot(NamedTuple):
    """What is held back in front of a run.

    ``planner`` is its planner's state. The oldest row held back was pulled when the walk before stood at ``began``,
    as number ``first``; ``run`` rows make the run, ``ENDED`` if there are none left.
    """

    planner: State
    began: State
    first: int
    run: int


class _Holding:
    """A walk that feeds a planner run by run, and gives what comes out of it one by one.

    State: the snapshot in front of the run, and how much of what the run gave was pulled. Going on, the rows
    since the oldest that was held back are pulled again.
    """

    def __init__(self, flow: Any, epoch: int, state: State, feeds: Feeds) -> None:
        self._flow, self._epoch, self._feeds = flow, epoch, feeds
        self._lengths: Lengths = flow.lengths
        self._arrivals: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._rows: Rows | None = None
        """What is held back and the rows of the run, which arrived as ``_arrivals``."""
        self._begins: deque[tuple[int, State]] = deque()
        self._out: deque[Any] = deque()
        self._made: Any = None
        self._at = 0
        self._taken = 0
        self._failed: tuple[Exception, tuple[Any, ...]] | None = None
        if state is None:
            self._before: Walk = flow.before.walk(epoch, None, feeds)
            self._planner: Any = self._new()
            self._snapshot = _Snapshot(self._planner_state(), self._before.state(), 0, 0)
            return
        planner, began, first, run, taken = state
        self._before = flow.before.walk(epoch, began, feeds)
        lengths = self._pull_again(first, planner)
        self._planner = self._restored(planner, lengths)
        self._snapshot = _Snapshot(planner, began, first, run)
        if run == ENDED:
            self._finish()
        elif run:
            self._run(run, first)
        if taken > len(self._out):
            raise StateError(
                f"the state stands behind {taken} results of {flow.stage.label}, but now there are {len(self._out)}: "
                "the data or a function changed since"
            )
        for _ in range(taken):
            self._out.popleft()
        self._taken = self._at = taken

    def _pull_again(self, first: int, planner: State) -> npt.NDArray[np.int64]:
        """Pull the rows since the first that is held back; return how long those held back are, in their order."""
        arrived, at, held = planner[0], first, np.unique(planner[2])
        lengths = [np.zeros((0, *self._lengths_shape), np.int64)]
        counted = Recounted(self._flow.before, self._epoch, self._before, self._feeds) if at < arrived else None
        while counted is not None and at < arrived:
            began, rows = counted.pull(min(RUN, arrived - at))
            if rows is None:
                raise StateError(
                    f"the state holds rows back for {self._flow.stage.label} that are not there any more: the data or "
                    "a function changed since"
                )
            self._begins.append((at, began))
            low, high = np.searchsorted(held, [at, at + len(rows)])
            if high > low:
                kept = counted.computed(rows.chosen(held[low:high] - at))
                self._hold(held[low:high], kept)
                lengths.append(self._lengths(kept)[0].reshape(-1, *self._lengths_shape))
            at += len(rows)
        if counted is not None:
            self._before = counted.walk()
        self._keep(held)
        return np.concatenate(lengths)

    def pull(self, most: int) -> Any:
        barren = 0
        while not self._out:
            if self._snapshot.run == ENDED:
                return None
            self._try_next_run()
            barren += self._snapshot.run
            endless = self._flow.pass_rows
            if endless is not None and barren > endless and not self._out and not len(self._planner.held):
                raise PipelineError(
                    f"{self._flow.stage.label}: none of {barren:,} rows in a row has a length above 0, and repeat() "
                    "has no end: the epoch would never yield anything"
                )
        return self._given(most)

    def _try_next_run(self) -> None:
        """Do so; without the rows of a run that failed, what is held back could not be told from what is not."""
        if self._failed is not None:
            error, arguments = self._failed
            error.args = arguments
            raise error
        try:
            self._next_run()
        except Exception as exc:
            self._failed = (exc, exc.args)
            raise

    def _next_run(self) -> None:
        """Hold back what the last run left, and take in the next one."""
        held = self._planner.held
        self._keep(held)
        oldest = int(held[0]) if len(held) else self._planner.arrived
        while len(self._begins) > 1 and self._begins[1][0] <= oldest:
            self._begins.popleft()
        if self._begins and oldest < self._planner.arrived:
            first, began = self._begins[0]
        else:
            self._begins.clear()
            first, began = self._planner.arrived, self._before.state()
        self._taken = 0
        state = self._planner_state()
        taken = self._run(RUN, first)
        self._snapshot = _Snapshot(state, began, first, taken or ENDED)
        if not taken:
            self._finish()

    def _run(self, most: int, first: int) -> int:
        """Take in the next rows; return how many there were."""
        began, arrived = self._before.state(), self._planner.arrived
        parts = pull_rows(self._before, most)
        if not parts:
            return 0
        rows = joined(parts)
        made = self._planner.add(*self._lengths(rows))
        self._begins.append((arrived, began))
        self._hold(np.arange(arrived, arrived + len(rows)), rows)
        self._put(made)
        return len(rows)

    def _finish(self) -> None:
        self._put(self._planner.finish())

    def _hold(self, arrivals: npt.NDArray[np.int64], rows: Rows) -> None:
        """Take in rows that arrived."""
        self._arrivals = np.concatenate([self._arrivals, arrivals])
        self._rows = rows if self._rows is None or not len(self._rows) else joined([self._rows, rows])

    def _keep(self, held: npt.NDArray[np.int64]) -> None:
        """Let go of all rows but those held back, and of the chunks that they came in."""
        if self._rows is not None:
            self._rows = self._arrived(held)
            if self._rows.items is not None:
                self._rows.items = [detached(item, copy=_is_view(item)) for item in self._rows.items]
        self._arrivals = held

    def _arrived(self, arrivals: npt.NDArray[np.int64]) -> Rows:
        """Return rows that arrived, in the order given."""
        assert self._rows is not None
        return self._rows.chosen(np.searchsorted(self._arrivals, arrivals))

    def state(self) -> State:
        return (*self._snapshot, self._taken)

    def close(self) -> None:
        self._before.close()

    def _new(self) -> Any:
        raise NotImplementedError

    _lengths_shape: tuple[int, ...] = ()

    def _restored(self, state: State, lengths: npt.NDArray[np.int64]) -> Any:
        raise NotImplementedError

    def _planner_state(self) -> State:
        raise NotImplementedError

    def _put(self, made: Any) -> None:
        raise NotImplementedError

    def _given(self, most: int) -> Any:
        raise NotImplementedError


class PackFlow:
    """Rows of sequences packed into rows of one length, not put together yet: only how: see ``Rows.packed``."""

    batched = False

    def __init__(self, before: Flow, stage: st.Pack, lengths: Lengths, pass_rows: int | None) -> None:
        self.before, self.stage, self.lengths = before, stage, lengths
        self.pass_rows = pass_rows
        """Where the rows before never end: after how many without a result none is to be hoped for."""

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Packing(self, epoch, state, feeds)


class _Packing(_Holding):
    def _new(self) -> Packer:
        return Packer(self._flow.stage)

    @property
    def _lengths_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self._flow.stage.limits),)

    def _restored(self, state: State, lengths: npt.NDArray[np.int64]) -> Packer:
        stage = self._flow.stage
        arrived, count, rows, owners, pieces = state
        starts = np.zeros(len(rows), np.int64) if pieces is None else pieces * stage.limits[0]
        whole = lengths[np.searchsorted(np.unique(rows), rows)]
        stops = np.minimum(whole, starts[:, None] + np.array(stage.limits))
        bins: list[list[tuple[int, ...]]] = [[] for _ in range(count)]
        listed = zip(owners.tolist(), rows.tolist(), starts.tolist(), stops.tolist(), strict=True)
        for owner, row, start, stop in listed:
            bins[owner].append((row, start, *stop))
        return Packer.restored(stage, {"arrived": arrived, "bins": bins})

    def _planner_state(self) -> State:
        """Return rows and their pieces in the order of arrival, and in which of so many bins each is."""
        state = self._planner.state()
        bins = state["bins"]
        width = 2 + len(self._flow.stage.limits)
        numbers = itertools.chain.from_iterable(itertools.chain.from_iterable(bins))
        flat = np.fromiter(numbers, np.int64).reshape(-1, width)
        owners = np.repeat(np.arange(len(bins)), [len(one) for one in bins])
        order = np.lexsort((flat[:, 1], flat[:, 0]))
        pieces = flat[order, 1] // self._flow.stage.limits[0] if flat[:, 1].any() else None
        return (state["arrived"], len(bins), flat[order, 0], owners[order], pieces)

    def _put(self, made: Packed) -> None:
        if len(made):
            wanted, packed = made.needed()
            segments, firsts = self._arrived(wanted), packed.offsets[:-1]
            first = packed.rows[firsts]
            epochs = segments.epochs if isinstance(segments.epochs, int) else segments.epochs[first]
            subs = packed.starts[firsts]
            self._made = Rows(segments.ids[first], epochs, subs=subs, packed=packed.together(), segments=segments)
            self._at = 0
            self._out.extend(range(len(packed)))

    def _given(self, most: int) -> Rows:
        start = self._at
        self._at = stop = min(start + most, len(self._made))
        for _ in range(start, stop):
            self._out.popleft()
        self._taken += stop - start
        rows: Rows = self._made.part(start, stop)
        return rows


def needed(rows: Rows) -> tuple[Rows, Packed]:
    """Return the rows that packed rows are made of, each once, and how."""
    assert rows.packed is not None
    assert rows.segments is not None
    wanted, packed = rows.packed.needed()
    return rows.segments.chosen(wanted), packed


def origins_of(rows: Rows) -> Lineage | None:
    """Return the source rows that rows are made of: packed ones, of those of their segments."""
    if rows.packed is None or rows.segments is None or rows.segments.origins is None:
        return rows.origins
    return rows.segments.origins.taken(rows.packed.rows).grouped(np.diff(rows.packed.offsets))


def unpacked(stage: st.Pack, rows: Rows, reader: RowsNode | None, after: str, slots: SlotPool) -> Rows:
    """Return packed rows put together; ``reader`` reads those that are only positions so far."""
    whole = None if reader is None else _of_whole(rows, reader)
    if whole is not None:
        columns, packed, ids = whole
        columns = packed_columns(stage, columns, packed, ids, after, slots.column)
        return _put_together(rows, columns)
    given, packed = needed(rows)
    if given.columns is None and given.items is None:
        assert reader is not None
        given = read_places(reader, given, slots)
    columns = given.columns if given.items is None else joined_items(given.items, given.ids, after)
    columns = packed_columns(stage, columns, packed, given.ids, after, slots.column)
    return _put_together(rows, columns)


def _put_together(rows: Rows, columns: Any) -> Rows:
    return Rows(rows.ids, rows.epochs, columns, surplus=rows.surplus, subs=rows.subs, origins=origins_of(rows))


def _of_whole(rows: Rows, reader: RowsNode) -> tuple[Any, Packed, range] | None:
    """Return the columns of a whole source that is in memory, and packed rows as made of them."""
    whole, given, packed = getattr(reader, "whole", None), rows.segments, rows.packed
    if whole is None or given is None or packed is None or given.places is None:
        return None
    epochs = given.epochs if isinstance(given.epochs, int) else given.epochs[packed.rows]
    found = whole(given.places[packed.rows], epochs)
    return None if found is None else (found[0], packed.of_rows(found[1]), range(2**62))


class UnpackedFlow:
    """Packed rows put together, for stages that look at them and have to do so in order."""

    batched = False

    def __init__(self, before: Flow, stage: st.Pack, reader: RowsNode | None, after: str, memory: Any) -> None:
        self.before, self.stage, self.reader, self.after, self.memory = before, stage, reader, after, memory

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Unpacked(self, self.before.walk(epoch, state, feeds))


class _Unpacked:
    def __init__(self, flow: UnpackedFlow, before: Walk) -> None:
        self._flow, self._before = flow, before
        self.state, self.close = before.state, before.close

    def pull(self, most: int) -> Rows | None:
        flow, rows = self._flow, self._before.pull(most)
        return None if rows is None else unpacked(flow.stage, rows, flow.reader, flow.after, flow.memory())


def _is_view(item: Any) -> bool:
    return any(isinstance(leaf, np.ndarray) and leaf.base is not None for leaf in tree_.flatten(item)[0])


class BucketFlow:
    """Rows of like length cut into batches. With ``finishes`` they are finished here, for stages that follow."""

    batched = True
    pass_rows: int | None = None  # a row of any length is one more in its bucket

    def __init__(
        self,
        before: Flow,
        stage: st.BucketBatch,
        bounds: tuple[int | None, ...],
        lengths: Lengths,
        finishes: Callable[[Cut], Cut] | None,
    ) -> None:
        self.before, self.stage, self.bounds, self.lengths, self.finishes = before, stage, bounds, lengths, finishes

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Bucketing(self, epoch, state, feeds)


class _Bucketing(_Holding):
    def _new(self) -> Bucketer:
        return Bucketer(self._flow.stage, self._flow.bounds)

    def _restored(self, state: State, lengths: npt.NDArray[np.int64]) -> Bucketer:
        arrived, longest, rows, owners, _ = state
        held: list[list[int]] = [[] for _ in self._flow.bounds]
        for owner, row in zip(owners.tolist(), rows.tolist(), strict=True):
            held[owner].append(row)
        found = {"arrived": arrived, "held": held, "longest": longest}
        return Bucketer.restored(self._flow.stage, self._flow.bounds, found)

    def _planner_state(self) -> State:
        """Return rows in the order of arrival, and in which bucket each is."""
        state = self._planner.state()
        flat = np.fromiter(itertools.chain.from_iterable(state["held"]), np.int64)
        owners = np.repeat(np.arange(len(state["held"])), [len(rows) for rows in state["held"]])
        order = np.argsort(flat)
        return (state["arrived"], state["longest"], flat[order], owners[order], None)

    def _put(self, made: Any) -> None:
        for bucket, arrivals in made:
            size = self._planner.rows[bucket] if self._flow.stage.remainder == "pad" else None
            self._out.append(Cut(self._arrived(arrivals), size, bucket))

    def _given(self, most: int) -> Cut:
        self._taken += 1
        cut: Cut = self._out.popleft()
        return cut if self._flow.finishes is None else self._flow.finishes(cut)
