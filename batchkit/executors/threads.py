"""Steps computed by threads, ahead of the caller and handed over in order."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from batchkit.errors import WorkerError
from batchkit.executors.executor import Run, Work, close_steps, seconds, worker_count
from batchkit.metering import Meter
from batchkit.tree import Tree

__all__ = ["Patience", "ThreadExecutor", "ThreadRun", "at_once", "meter_of"]

HAND_OVER_SECONDS = 40e-6
"""What it costs to hand a batch from one thread to another, both sides together."""
SLOW_SECONDS = 300e-6
"""A step for which the hand-over is next to nothing."""
SURE_SECONDS = 20e-3
"""A step so slow that not even the making of an epoch's order explains it."""
SEEN_STEPS, SEEN_SECONDS = (3, 32), 4e-3
"""How many slow steps in a row show that steps are slow: at least, and at most; between, those that take so long."""
JOIN_SECONDS = 5.0
"""How long closing waits for threads; one that is stuck in a user's function ends when that returns."""


class ThreadExecutor:
    """``workers`` threads that compute up to ``window`` steps ahead; NumPy and decoders release the GIL."""

    name = "threads"

    def __init__(self, workers: Any = "auto", timeout: float | None = None) -> None:
        self.workers = worker_count(workers)
        self.timeout = seconds(timeout)

    def run(self, plan: Work, steps: Iterator[Any], window: int) -> Run:
        """Return a run that starts its threads when they are worth it."""
        if self.timeout is not None:  # a step in the caller's own thread could not be given up
            return ThreadRun(
                steps, max(window, 1), [plan.compute] * self.workers, timeout=self.timeout, meter=meter_of(plan)
            )
        return _PatientRun(plan, steps, max(window, 1), self.workers)


class Patience:
    """Says when threads would be faster than the caller's own.

    What threads gain in a step is what it and the caller's own work can overlap, or what
    several of them share; what they lose is the hand-over. Both are seen in the first steps.
    """

    def __init__(self) -> None:
        self._worth = 0  # how many steps in a row threads would have paid for
        self._seconds = 0.0  # how long these took
        self.pays = False
        """Whether threads would pay, after what was seen last."""

    def observe(self, cost: float, gap: float) -> bool:
        """Take in how long a step took, and the caller before it; return whether threads would pay."""
        worth = cost > SLOW_SECONDS or (cost > HAND_OVER_SECONDS and gap > HAND_OVER_SECONDS)
        self._worth, self._seconds = (self._worth + 1, self._seconds + cost) if worth else (0, 0.0)
        # One slow step says little: the first one makes the epoch's order, and any may be interrupted. Of short ones
        # a few say little, too: on a busy machine, or in new memory, they take several times as long.
        least, most = SEEN_STEPS
        seen = self._worth >= most or (self._worth >= least and self._seconds >= SEEN_SECONDS)
        self.pays = cost > SURE_SECONDS or seen
        return self.pays


def at_once() -> bool:
    """Whether every step counts as a slow one."""
    return SURE_SECONDS < 0


class _PatientRun:
    """Computes in the caller's thread until threads would be faster, and hands over to them then."""

    def __init__(self, plan: Work, steps: Iterator[Any], window: int, workers: int) -> None:
        self._plan, self._steps, self._window, self._workers = plan, steps, window, workers
        self._threads: ThreadRun | None = None
        self._returned = 0.0
        self._patience = Patience()
        self._closed = False

    def __iter__(self) -> Iterator[Tree]:
        return self

    def __next__(self) -> Tree:
        if self._threads is not None:
            return next(self._threads)
        if self._closed:
            raise StopIteration
        asked = time.perf_counter()
        try:
            return self._plan.compute(next(self._steps))
        finally:
            now = time.perf_counter()
            if self._closed:  # meanwhile, by another thread
                close_steps(self._steps)
            if self._patience.observe(now - asked, asked - self._returned) and not self._closed:
                computers = [self._plan.compute] * self._workers
                self._threads = ThreadRun(self._steps, self._window, computers, meter=meter_of(self._plan))
            self._returned = now

    def close(self) -> None:
        """End the threads, if there are any."""
        self._closed = True
        if self._threads is not None:
            self._threads.close()
            return
        close_steps(self._steps)


def meter_of(work: Any) -> Meter | None:
    """Return what measures the work, if anything does."""
    return getattr(work, "meter", None)


class _Failure:
    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Desk:
    """What the threads and the caller share. The threads refer to this alone, so that a run can be collected."""

    def __init__(self, steps: Iterator[Any], window: int) -> None:
        self.steps = steps
        self.room = threading.Semaphore(window)
        self.pulling = threading.RLock()
        self.changed = threading.Condition(threading.RLock())
        self.results: dict[int, Any] = {}
        self.pulled = 0
        self.delivered = 0
        self.end: int | None = None
        self.closed = False
        self.process = os.getpid()
        self.threads: list[threading.Thread] = []

    def pull(self) -> tuple[int, Any] | None:
        """Return the next step and its place, or ``None`` when there is none for this thread.

        A step that cannot be pulled is a failure at its place, and those behind it are pulled all the same: whether
        anything is behind it the steps say themselves, by StopIteration. (A generator that raised has ended.)
        """
        while True:
            self.room.acquire()
            with self.pulling:
                if self.closed or self.end is not None:
                    self.room.release()  # let the next thread see it, too
                    return None
                place = self.pulled
                try:
                    step = next(self.steps)
                except StopIteration:
                    self.finish(place)
                    self.room.release()
                    return None
                except BaseException as exc:
                    self.pulled = place + 1
                    self.put(place, _Failure(exc))
                else:
                    self.pulled = place + 1
                    return place, step

    def finish(self, end: int) -> None:
        with self.changed:
            self.end = end
            self.changed.notify_all()

    def put(self, place: int, result: Any) -> None:
        with self.changed:
            if not self.closed and place >= self.delivered:
                self.results[place] = result
                if place == self.delivered:
                    self.changed.notify()

    def stop(self, interrupt: Callable[[], None] | None = None) -> None:
        """End the threads, after ``interrupt`` has ended what they wait for.

        Those that are in the middle of a step finish it, and its batch is dropped. The garbage
        collector may call this from any thread, one of these among them, which is why the locks
        are re-entrant and why a worker does not wait for the others.
        """
        if os.getpid() != self.process:  # a forked child has none of these threads, and maybe a lock that was held
            return
        with self.changed:
            if self.closed:
                return
            self.closed = True
            self.results.clear()
            self.changed.notify_all()
        self.room.release()
        if interrupt is not None:
            interrupt()
        if threading.current_thread() in self.threads:
            return
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self.threads:
            thread.join(max(deadline - time.monotonic(), 0))
        if self.pulling.acquire(timeout=max(deadline - time.monotonic(), 0)):
            try:
                close = getattr(self.steps, "close", None)
                if close is not None:
                    close()
            finally:
                self.pulling.release()


def _stop(desk: _Desk, before: Callable[[], None] | None, after: Callable[[], None] | None) -> None:
    desk.stop(before)
    if after is not None:
        after()


def _work(desk: _Desk, compute: Callable[[Any], Tree]) -> None:
    while (pulled := desk.pull()) is not None:
        place, step = pulled
        try:
            result = compute(step)
        except BaseException as exc:  # handed to the caller, KeyboardInterrupt and SystemExit included
            result = _Failure(exc)
        desk.put(place, result)
        del result, step, pulled  # a batch that lingers here would keep its slot leased


class ThreadRun:
    """A run with a thread for each of ``computers``, which say how a thread computes a step.

    When the run is closed or forgotten, ``before`` is called first, and ``after`` when the threads have ended.
    """

    def __init__(
        self,
        steps: Iterator[Any],
        window: int,
        computers: Sequence[Callable[[Any], Tree]],
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
        timeout: float | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._timeout, self._meter = timeout, meter
        self._desk = desk = _Desk(steps, window)
        self._finalizer = weakref.finalize(self, _stop, desk, before, after)
        desk.threads = [
            threading.Thread(target=_work, args=(desk, compute), name=f"batchkit-worker-{number}", daemon=True)
            for number, compute in enumerate(computers[:window])
        ]
        for thread in desk.threads:
            thread.start()

    def __iter__(self) -> Iterator[Tree]:
        return self

    def __next__(self) -> Tree:
        """Return the next batch, in the order of the steps."""
        desk = self._desk
        with desk.changed:
            place = desk.delivered
            if self._meter is not None:
                self._meter.queued(len(desk.results))
            while place not in desk.results:
                if desk.closed or (desk.end is not None and place >= desk.end):
                    raise StopIteration
                if not desk.changed.wait(self._timeout) and place not in desk.results:
                    desk.delivered = place + 1  # whatever becomes of it, the next call goes on behind it
                    desk.room.release()
                    raise WorkerError(
                        f"batch {place} of this iteration was not there within timeout={self._timeout} seconds. Its "
                        "thread cannot be ended: use executor='processes' for functions that may hang"
                    )
            result = desk.results.pop(place)
            desk.delivered = place + 1
        desk.room.release()
        if type(result) is _Failure:
            raise result.error
        return result

    @property
    def waiting(self) -> int:
        """How many results are there that nobody has asked for yet."""
        with self._desk.changed:
            return len(self._desk.results)

    def close(self) -> None:
        """End the threads."""
        self._finalizer()
