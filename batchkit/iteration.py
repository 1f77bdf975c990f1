"""One pass over an epoch: host batches taken from the executor, checked, and handed over by the backend."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from batchkit.buffers import Slots
from batchkit.errors import WorkerError
from batchkit.executors import Run
from batchkit.metering import MeasuredSlots, Meter
from batchkit.plan import ChunkPlan, Feeds, Plan, Step
from batchkit.report import Statistics
from batchkit.tree import Tree

__all__ = ["BatchIterator", "Cursor", "Delivery", "Work"]

SLOW = 500e-6  # seconds: of batches that take longer every one is measured
RARELY = 128  # of others one in so many


class Cursor:
    """Where an iteration is: ``step`` batches of ``epoch`` were delivered. ``fresh``: the next one starts here.

    ``walk`` is where the plan's walk stood behind the last of them, if it has one.
    """

    __slots__ = ("epoch", "fresh", "step", "walk")

    def __init__(self, epoch: int, step: int, fresh: bool = False, walk: Any = None) -> None:
        self.epoch, self.step, self.fresh, self.walk = epoch, step, fresh, walk


class Work:
    """A plan together with the memory it writes to and what measures it, as executors see it."""

    __slots__ = ("compute", "meter", "plan", "slots")

    def __init__(self, plan: Plan | ChunkPlan, slots: Slots, meter: Meter) -> None:
        self.plan, self.slots, self.meter = plan, slots, meter
        self.compute = _computing(plan, slots, meter)


def _computing(plan: Plan | ChunkPlan, slots: Slots, meter: Meter) -> Callable[[Step], Tree]:
    plan_compute = plan.compute

    def compute(step: Step) -> Tree:
        """Return the host batch of a step."""
        meter.due = due = meter.due - 1
        return plan_compute(step, slots) if due > 0 else measured(step)

    def measured(step: Step) -> Tree:
        sheet = meter.open()
        sheet.step = (step.epoch, step.number)
        try:
            sheet.watch()
            tree = plan_compute(step, MeasuredSlots(slots, sheet))
        except BaseException:
            meter.drop(sheet)
            raise
        meter.add(sheet)
        return tree

    return compute


class Delivery(NamedTuple):
    """What an iteration needs of its loader."""

    plan: Plan
    start: Callable[[Iterator[Step]], Run]
    """Has the executor compute steps."""
    check: Callable[[Any, int, int], None] | None
    """Looks at what came, before it is delivered: batch, epoch, number."""
    put: Callable[[Any, Any], Tree]
    """Makes the framework's arrays of what came, on the device."""
    device: Any
    statistics: Statistics
    feeds: Feeds
    """Has the executor compute chunks."""


class BatchIterator(Iterator[Tree]):
    """The batches of one epoch, in order. Several threads may share it: each batch goes to exactly one."""

    def __init__(self, delivery: Delivery, cursor: Cursor, part: tuple[int, int], moves_on: bool) -> None:
        self._delivery, self._cursor, self._part, self._moves_on = delivery, cursor, part, moves_on
        self._lock = threading.Lock()
        self._threads = {threading.get_ident()}
        self._done = self._closed = False
        self._check, self._put, self._device = delivery.check, delivery.put, delivery.device
        self._statistics = delivery.statistics
        self._due = self._every_due = 1
        self._states: deque[Any] = deque()
        self._begin()

    def _begin(self) -> None:
        cursor, (index, every) = self._cursor, self._part
        self._started = cursor.step
        self._number, self._every = cursor.step + (index - cursor.step) % every, every
        plan = self._delivery.plan
        if plan.indexed:
            self._run = self._delivery.start(plan.steps(cursor.epoch, cursor.step, self._part))
        else:
            walked = plan.steps(cursor.epoch, cursor.step, self._part, cursor.walk, self._delivery.feeds)
            self._states = walked.states  # type: ignore[attr-defined]
            self._run = self._delivery.start(walked if plan.chunks else self._statistics.meter.pulled(walked))
        self._take = self._run.__next__

    @property
    def epoch(self) -> int:
        """The epoch that is iterated over."""
        return self._cursor.epoch

    def joined(self) -> bool:
        """Let another thread take part, if the epoch is still going on."""
        here = threading.get_ident()
        if self._done or self._closed or here in self._threads:
            return False
        self._threads.add(here)
        return True

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Tree:
        """Return the next batch; safe to call from several threads."""
        with self._lock:
            if self._done or self._closed:
                return self._over()
            return self._deliver(time.perf_counter())

    def _deliver(self, asked: float) -> Tree:
        number = self._number
        self._due = due = self._due - 1
        came = asked
        try:
            host = self._take()
            if self._check is not None:
                self._check(host, self._cursor.epoch, number)
            if due <= 0:
                came = time.perf_counter()
            batch = self._put(host, self._device)
        except StopIteration:
            return self._ended(asked)
        except Exception:
            if self._states:
                self._states.popleft()
            self._number = number + self._every  # the next call goes on with the step after the one that failed
            raise
        except BaseException:  # Ctrl-C: where the run stands is unknown now
            self.close()
            raise
        self._number = number + self._every
        self._cursor.step = number + 1
        if self._states:
            self._cursor.walk = self._states.popleft()
        given = time.perf_counter()
        statistics = self._statistics
        statistics.batches += 1
        statistics.waited += given - asked
        statistics.ended = given
        if due <= 0:
            self._measured(asked, came, given)
        return batch

    def _measured(self, asked: float, came: float, given: float) -> None:
        statistics = self._statistics
        if statistics.began is None:
            statistics.begin(asked, given)
        statistics.meter.delivered(asked, came, given, self._every_due)
        # Of batches that come fast one in so many is looked at.
        self._due = self._every_due = 1 if given - asked > SLOW else RARELY

    def _ended(self, asked: float) -> Tree:
        if self._closed:
            return self._over()
        self._run.close()
        cursor = self._cursor
        if self._moves_on:
            at_the_end = self._number == self._started > 0
            cursor.epoch, cursor.step, cursor.walk = cursor.epoch + 1, 0, None
            if at_the_end and not self._delivery.plan.indexed:
                # Only now is it known that the state was taken after a generator's last batch.
                self._begin()
                return self._deliver(asked)
            cursor.fresh = True
        self._done = True
        raise StopIteration

    def _over(self) -> Tree:
        if self._closed and not self._done:
            raise WorkerError("the iteration was closed before its end: iterate over the loader again")
        raise StopIteration

    def close(self) -> None:
        """End the iteration; no thread stays behind."""
        self._closed = True
        self._run.close()
