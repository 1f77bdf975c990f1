"""Packing and bucketing: walks that hold rows back until what they belong to is full.

They go by lengths alone. Where lengths are known without reading rows, rows are positions until a batch is
computed, so that nobody reads more than its own; else rows come computed, and wait here.
"""

from __future__ import annotations

import abc
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit.bucketing import Bucketer
from batchkit.errors import StateError
from batchkit.lengths import joined as joined_items
from batchkit.packing import Packed, Packer, packed_columns
from batchkit.plan.numbered.combining import read_places
from batchkit.plan.numbered.nodes import RowsNode, SlotPool
from batchkit.plan.ordered.addresses import GONE, as_columns, fetched, of_columns, width_of
from batchkit.plan.ordered.barren import Barren, pass_rows
from batchkit.plan.ordered.chunks import Feeds
from batchkit.plan.ordered.held import HeldRows
from batchkit.plan.ordered.walks import Cut, Flow, State, Walk, pull_rows
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.joining import joined
from batchkit.plan.rows.lineage import Lineage

__all__ = ["BucketFlow", "Lengths", "PackFlow", "UnpackedFlow", "needed", "origins_of", "unpacked"]

I64 = npt.NDArray[np.int64]
Lengths: TypeAlias = Callable[[Rows], "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]"]
"""Returns how long rows are, and their numbers in the source."""

RUN = 512
"""How many rows are looked at together."""
ENDED = -1


class _Snapshot(NamedTuple):
    """What is held back in front of a run.

    ``held`` is how that is put together, and ``addresses`` are those of its rows, a vector for each number that they
    have. The walk before stood at ``began``, in front of the run of ``run`` rows, ``ENDED`` if there are none left.
    Where rows have no addresses, it stood there ``passed`` rows before the run, in front of all that are held back, and
    these are counted from there.
    """

    held: State
    addresses: list[I64]
    began: State
    passed: int
    run: int


class _Holding(abc.ABC):
    """A walk that feeds a planner run by run, and gives what comes out of it one by one.

    State: the snapshot in front of the run, and how much of what the run gave was pulled. A run is what the walk before
    gives at once, of one chunk at the most. Going on, the rows held back are fetched from their addresses and those of
    the run are pulled again; where rows have no addresses, all since the oldest that was held back.
    """

    def __init__(self, flow: Any, epoch: int, state: State, feeds: Feeds) -> None:
        self._flow, self._epoch, self._feeds = flow, epoch, feeds
        self._lengths: Lengths = flow.lengths
        self._addressed = width_of(flow.before) is not None
        self._rows = HeldRows()
        """What is held back, the rows of the run, and some that were given out and are not let go of yet."""
        self._begins: deque[tuple[int, State]] = deque()
        """Without addresses: where the walk before stood in front of each run that may have rows held back."""
        self._out: deque[Any] = deque()
        self._made: Any = None
        self._at = 0
        self._taken = 0
        self._failed: tuple[Exception, tuple[Any, ...]] | None = None
        if state is None:
            self._before: Walk = flow.before.walk(epoch, None, feeds)
            self._planner: Any = self._new()
            self._snapshot = _Snapshot(self._put_apart()[0], [], self._before.state(), 0, 0)
            return
        self._snapshot, taken = self._checked(state)
        self._before = flow.before.walk(epoch, self._snapshot.began, feeds)
        self._planner = self._restored(self._snapshot.held, *self._held_again(self._snapshot))
        self._run_again(self._snapshot.run, taken)

    def _checked(self, state: State) -> tuple[_Snapshot, int]:
        """Return a snapshot, and how much was pulled behind it, after checking that they are of this form."""
        held, addresses, began, passed, run, taken = state
        whole = [type(passed), type(run), type(taken)] == [int] * 3 and min(passed, run - ENDED, taken) >= 0
        vectors = isinstance(addresses, list) and all(isinstance(each, np.ndarray) for each in addresses)
        whole = whole and run <= RUN
        if not whole or not vectors or len({each.shape for each in addresses}) > 1:
            raise StateError(f"{self._flow.stage.label}: the state does not say what is held back: it is damaged")
        return _Snapshot(held, addresses, began, passed, run), taken

    def _held_again(self, snapshot: _Snapshot) -> tuple[int, I64, I64]:
        """Compute the rows again that are held back.

        Returns how many are to be taken for arrived, and of each address the number of its row and how long it is.
        """
        at = of_columns(snapshot.addresses) if snapshot.addresses else np.zeros((0, 1), np.int64)
        if not self._addressed:
            return self._pulled_again(at, snapshot.passed)
        if not len(at):
            return 0, at[:, 0], np.zeros((0, *self._lengths_shape), np.int64)
        found, firsts, each = np.unique(at, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(firsts)  # so that numbers rise as they did when the rows arrived
        rows = fetched(self._flow.before, self._epoch, found[order], self._feeds)
        every = np.arange(len(rows))
        self._rows.add(every, rows)
        self._rows.keep(every)
        numbers = np.argsort(order)[each.reshape(-1)]
        return len(rows), numbers, self._lengths(rows)[0].reshape(-1, *self._lengths_shape)[numbers]

    def _pulled_again(self, at: I64, passed: int) -> tuple[int, I64, I64]:
        numbers, here = at[:, 0], 0
        held = np.unique(numbers)
        lengths = [np.zeros((0, *self._lengths_shape), np.int64)]
        if at.shape[1] != 1 or (len(held) and (held[0] < 0 or held[-1] >= passed)):
            raise StateError(f"{self._flow.stage.label}: the state holds rows back that did not arrive: it is damaged")
        while here < passed:
            began, rows = self._before.state(), self._before.pull(min(RUN, passed - here))
            if rows is None:
                raise StateError(f"{self._flow.stage.label}: {GONE}")
            self._begins.append((here, began))
            kept = held[slice(*np.searchsorted(held, [here, here + len(rows)]))]
            if len(kept):
                mine = rows.chosen(kept - here)
                self._rows.add(kept, mine)
                lengths.append(self._lengths(mine)[0].reshape(-1, *self._lengths_shape))
            here += len(rows)
        self._rows.keep(held)
        return passed, numbers, np.concatenate(lengths)[np.searchsorted(held, numbers)]

    def _run_again(self, run: int, taken: int) -> None:
        """Take the rows of a run in again, and leave out what was pulled of what it gives."""
        if run == ENDED:
            self._finish()
        elif run:
            began, parts = self._before.state(), pull_rows(self._before, run)
            if sum(map(len, parts)) < run:
                raise StateError(f"{self._flow.stage.label}: {GONE}")
            self._take_in(joined(parts), began)
        if taken > len(self._out):
            raise StateError(
                f"the state stands behind {taken} results of {self._flow.stage.label}, but now there are "
                f"{len(self._out)}: the data or a function changed since"
            )
        for _ in range(taken):
            self._out.popleft()
        self._taken = self._at = taken

    def pull(self, most: int) -> Any:
        barren = Barren(f"{self._flow.stage.label}:")
        while not self._out:
            if self._snapshot.run == ENDED:
                return None
            self._try_next_run()
            kept = len(self._out) + len(self._planner.held)
            of_pass = pass_rows(self._before)
            barren.count(of_pass, self._snapshot.run, kept, "none of {} rows in a row has a length above 0")
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
        put_apart, numbers = self._put_apart()
        held = self._rising(numbers)
        if len(self._rows) - len(held) >= RUN // 2:
            self._rows.keep(held)
        here = self._before.state()
        began, passed = (here, 0) if self._addressed else self._oldest(held, here)
        addresses = self._addresses(numbers, passed)
        rows = self._before.pull(RUN)
        if rows is None:
            self._finish()
        else:
            self._take_in(rows, here)
        run = ENDED if rows is None else len(rows)
        self._snapshot, self._taken = _Snapshot(put_apart, as_columns(addresses), began, passed, run), 0

    def _oldest(self, held: I64, here: State) -> tuple[State, int]:
        """Return where the walk before stood in front of all that is held back, and how many rows ago."""
        arrived = self._planner.arrived
        oldest = int(held[0]) if len(held) else arrived
        while len(self._begins) > 1 and self._begins[1][0] <= oldest:
            self._begins.popleft()
        if oldest == arrived:
            self._begins.clear()
            return here, 0
        first, began = self._begins[0]
        return began, arrived - first

    def _addresses(self, numbers: I64, passed: int) -> I64:
        """Return where what is held back is found again."""
        if self._addressed and len(numbers):
            return self._rows.addresses(numbers)
        first: int = self._planner.arrived - passed
        return (numbers - first)[:, None]

    def _take_in(self, rows: Rows, began: State) -> None:
        """Have rows planned, in front of which the walk before stood at ``began``."""
        arrived = self._planner.arrived
        made = self._planner.add(*self._lengths(rows))
        if not self._addressed:
            self._begins.append((arrived, began))
        self._rows.add(np.arange(arrived, arrived + len(rows)), rows)
        self._put(made)

    def _finish(self) -> None:
        self._put(self._planner.finish())

    def _arrived(self, arrivals: I64) -> Rows:
        """Return rows that arrived, to be given out; the numbers rise."""
        rows = self._rows.of(arrivals)
        rows.at = None  # nobody asks for it any more: a step is not to carry it
        return rows

    def state(self) -> State:
        return (*self._snapshot, self._taken)

    def close(self) -> None:
        self._before.close()

    @abc.abstractmethod
    def _new(self) -> Any:
        """Return the planner at the beginning."""

    _lengths_shape: tuple[int, ...] = ()

    @abc.abstractmethod
    def _restored(self, held: State, arrived: int, numbers: I64, lengths: I64) -> Any:
        """Return the planner again: ``held`` as it was put apart, with the rows' new numbers, and how long they are."""

    @abc.abstractmethod
    def _put_apart(self) -> tuple[State, I64]:
        """Return how what is held back is put together, and the numbers of the rows that it is made of, in order."""

    def _rising(self, numbers: I64) -> I64:
        """Return the numbers of the rows that are held back, each once, in order."""
        return np.unique(numbers)

    def _shares(self, counts: Any, numbers: I64) -> npt.NDArray[np.intp]:
        """Return where each of the shares of what is held back begins, and the last one ends."""
        whole = isinstance(counts, np.ndarray) and counts.min(initial=0) >= 0
        if not whole or counts.max(initial=0) > len(numbers) or counts.sum() != len(numbers):
            raise StateError(f"{self._flow.stage.label}: the state does not say what is held back where: it is damaged")
        return np.cumsum([0, *counts.tolist()])

    @abc.abstractmethod
    def _put(self, made: Any) -> None:
        """Take in what the planner gave."""

    @abc.abstractmethod
    def _given(self, most: int) -> Any:
        """Return the next of what it gave, at most so much."""


class PackFlow:
    """Rows of sequences packed into rows of one length, not put together yet: only how: see ``Rows.packed``."""

    batched = False

    def __init__(self, before: Flow, stage: st.Pack, lengths: Lengths) -> None:
        self.before, self.stage, self.lengths = before, stage, lengths

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Packing(self, epoch, state, feeds)


class _Packing(_Holding):
    def _new(self) -> Packer:
        return Packer(self._flow.stage)

    @property
    def _lengths_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self._flow.stage.limits),)

    def _restored(self, held: State, arrived: int, numbers: I64, lengths: I64) -> Packer:
        stage, (counts, pieces) = self._flow.stage, held
        offsets = self._shares(counts, numbers)
        starts = np.zeros(len(numbers), np.int64) if pieces is None else pieces * stage.limits[0]
        stops = np.minimum(lengths, starts[:, None] + np.array(stage.limits))
        segments = list(zip(numbers.tolist(), starts.tolist(), *stops.T.tolist(), strict=True))
        bins = [segments[start:stop] for start, stop in itertools.pairwise(offsets.tolist())]
        return Packer.restored(stage, {"arrived": arrived, "bins": bins})

    def _put_apart(self) -> tuple[State, I64]:
        """Return how many segments each open row has and which pieces they are, and their rows."""
        bins = self._planner.state()["bins"]
        width = 2 + len(self._flow.stage.limits)
        numbers = itertools.chain.from_iterable(itertools.chain.from_iterable(bins))
        flat = np.fromiter(numbers, np.int64).reshape(-1, width)
        pieces = flat[:, 1] // self._flow.stage.limits[0] if flat[:, 1].any() else None
        return (np.fromiter(map(len, bins), np.int64), pieces), flat[:, 0]

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


class BucketFlow:
    """Rows of like length cut into batches. With ``finishes`` they are finished here, for stages that follow."""

    batched = True

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

    def _restored(self, held: State, arrived: int, numbers: I64, lengths: I64) -> Bucketer:
        counts, longest = held
        offsets = self._shares(counts, numbers)
        shares = [numbers[start:stop].tolist() for start, stop in itertools.pairwise(offsets.tolist())]
        found = {"arrived": arrived, "held": shares, "longest": longest}
        return Bucketer.restored(self._flow.stage, self._flow.bounds, found)

    def _put_apart(self) -> tuple[State, I64]:
        """Return how many rows each bucket has and the longest of them, and the rows."""
        shares = self._planner.shares
        return (np.fromiter(map(len, shares), np.int64), self._planner.longest), np.concatenate(shares)

    def _rising(self, numbers: I64) -> I64:
        return np.sort(numbers)  # a row is in one bucket

    def _put(self, made: Any) -> None:
        for bucket, arrivals in made:
            size = self._planner.rows[bucket] if self._flow.stage.remainder == "pad" else None
            self._out.append(Cut(self._arrived(arrivals), size, bucket))

    def _given(self, most: int) -> Cut:
        self._taken += 1
        cut: Cut = self._out.popleft()
        return cut if self._flow.finishes is None else self._flow.finishes(cut)
