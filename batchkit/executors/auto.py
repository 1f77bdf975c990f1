"""An executor that finds out in the first steps which one, with how many workers, computes fastest."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterator
from typing import Any

from batchkit import tree as tree_
from batchkit.errors import PipelineError, WorkerError
from batchkit.executors.executor import Executor, Run, Work, close_steps
from batchkit.executors.inline import InlineExecutor
from batchkit.executors.threads import Patience, ThreadRun, at_once, meter_of
from batchkit.executors.tuning import MOST_THREADS, Seen, Setting, Trial, Tuner
from batchkit.resources import cores, free_memory, queued_seconds
from batchkit.tree import Tree

__all__ = ["AutoExecutor"]

MEMORY_SHARE = 0.25
"""The share of the free memory that batches in flight may take where no ``memory_limit`` is given."""

_TRIAL_SECONDS = 0.3
_FEWEST, _MOST = 6, 64  # steps of a trial, besides those that come while its workers start
_LEAST_SECONDS = 0.05  # more steps than that, if they are so cheap
_ENDLESS = 1 << 62
_SEEN, _CHEAP = 12, 5e-3  # so many steps are looked at, if they take less than that (seconds)
_ENOUGH = 0.25  # seconds of work after which fewer than three steps will do
_QUEUED = 3e-4  # only behind a step that took as long (seconds) it is asked how long a thread had to wait for a core
_CALM, _RARELY = 64, 128  # after so many cheap steps in a row only one in so many is looked at


class AutoExecutor:
    """Computes the first steps in the caller's thread, measures, tries what should be faster, and settles.

    The batches are the same whatever it tries: a step is a pure function. What it has settled on
    holds for the loader's next epochs, too.

    Args:
        name: how users choose it: ``"auto"``, or ``"threads"`` where only the number of threads is open.
        prefetch: how many finished batches may wait; ``"auto"`` to choose that, too.
        memory_limit: bytes that batches in flight may take; by default a quarter of what is free at
            the start, the limits of the container respected.
    """

    def __init__(
        self,
        workers: Any = "auto",
        timeout: float | None = None,
        *,
        name: str = "auto",
        prefetch: int | str = "auto",
        memory_limit: int | None = None,
    ) -> None:
        if workers != "auto":
            raise PipelineError(f"executor {name!r} chooses its workers: use 'threads' or 'processes' with {workers!r}")
        if timeout is not None:
            raise PipelineError(
                f"executor {name!r} computes its first steps in the caller's thread, which cannot be interrupted: with "
                "a timeout give the number of workers"
            )
        self.name = name
        self._arguments = (prefetch, memory_limit)
        if memory_limit is None:
            free = free_memory()
            memory_limit = None if free is None else int(MEMORY_SHARE * free)
        self.memory_limit = memory_limit
        self.tuner = Tuner(
            ("threads", "processes") if name == "auto" else (name,),
            cores(),
            None if prefetch == "auto" else int(prefetch),
            memory_limit,
        )
        self.patience = Patience()
        self.cheap = 0
        """How many of the steps that were looked at in a row were too cheap for workers."""
        self.seen: list[Seen] = []
        self.spent = 0.0
        """Seconds of work in the caller's thread."""
        self.began: float | None = None
        self._made: dict[Setting, Any] = {}
        self._finalizer = weakref.finalize(self, _close_all, self._made)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.name, *self._arguments)

    @property
    def setting(self) -> Setting:
        """What computes the steps now, as far as that is settled."""
        return self.tuner.best

    @property
    def workers(self) -> int:
        """How many workers it has settled on; 0 while steps are computed in the caller's thread."""
        return self.setting.workers

    @property
    def window(self) -> int:
        """How many steps may be in flight at most, whatever it settles on."""
        return 2 * max(MOST_THREADS, cores())

    def run(self, plan: Work, steps: Iterator[Any], window: int) -> Run:
        """Start computing; what is not settled yet is tried on the way."""
        return _AutoRun(self, plan, steps, max(window, 1))

    def ready(self, setting: Setting, work: Work) -> bool:
        """Say whether the workers of a setting are there; processes are started by the first call.

        Raises:
            PipelineError, WorkerError: they cannot be started.
        """
        return setting.executor != "processes" or bool(self._processes(setting).ready(work))

    def _processes(self, setting: Setting) -> Any:
        executor = self._made.get(setting)
        if executor is None:
            from batchkit.executors.processes import ProcessExecutor

            self._made[setting] = executor = ProcessExecutor(setting.workers)
        return executor

    def start(self, setting: Setting, work: Work, steps: Iterator[Any], window: int) -> Run:
        """Start a run with one setting.

        Raises:
            PipelineError, WorkerError: it cannot be started.
        """
        if setting.executor == "inline":
            return InlineExecutor().run(work, steps, 1)
        if setting.executor == "threads":
            return ThreadRun(steps, min(window, setting.window), [work.compute] * setting.workers, meter=meter_of(work))
        run: Run = self._processes(setting).run(work, steps, min(window, setting.window))
        return run

    def keep(self, setting: Setting | None) -> None:
        """End the workers of all settings but one."""
        for other in [made for made in self._made if made != setting]:
            self._made.pop(other).close()

    def close(self) -> None:
        """End all workers."""
        _close_all(self._made)


def _remade(name: str, prefetch: int | str, memory_limit: int | None) -> AutoExecutor:
    return AutoExecutor(name=name, prefetch=prefetch, memory_limit=memory_limit)


def _close_all(made: dict[Setting, Executor]) -> None:
    while made:
        made.popitem()[1].close()  # type: ignore[attr-defined]


class _Feed:
    """Steps, of which only so many are let through at a time."""

    def __init__(self, steps: Iterator[Any]) -> None:
        self._steps = steps
        self.left = 0
        self.ended = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.left <= 0:
            raise StopIteration
        self.left -= 1
        try:
            return next(self._steps)
        except StopIteration:  # behind an error there may be more
            self.ended = True
            raise


class _Clock:
    """Times a trial: from when its workers are all at work until its last batch."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        # A worker process is slow with its first step, for which it imports what it needs.
        self.warm = max(setting.workers, 1) * (2 if setting.executor == "processes" else 1)
        self.delivered = 0
        self._began = self._ended = self._waited = 0.0

    def add(self, asked: float, given: float) -> None:
        self.delivered += 1
        if self.delivered <= self.warm:
            self._began = given
        else:
            self._waited += given - asked
            self._ended = given

    def trial(self) -> Trial | None:
        """Return the result, if there were enough batches."""
        batches = self.delivered - self.warm
        seconds = self._ended - self._began
        if batches < _FEWEST / 2 or seconds <= 0:
            return None
        return Trial(self.setting, seconds / batches, self._waited / seconds)


class _AutoRun:
    """Steps inline, then trial after trial, then what was settled on until the end."""

    def __init__(self, executor: AutoExecutor, work: Work, steps: Iterator[Any], window: int) -> None:
        self._executor, self._work, self._steps, self._window = executor, work, steps, window
        self._compute = work.compute
        self._feed = _Feed(steps)
        self._run: Run | None = None
        self._clock: _Clock | None = None
        self._coming: Setting | None = None
        """What is to be tried when its workers are there: what they import may take longer than an epoch."""
        self._returned = 0.0
        # Where steps have been cheap, an epoch's first ones are not looked at: they may have the order to make.
        self._calm = 3 if executor.cheap > _CALM else 0
        self._closed = False
        self._choose()

    def __iter__(self) -> Iterator[Tree]:
        return self

    def __next__(self) -> Tree:
        if self._calm > 2:  # computed here, and not looked at
            self._calm -= 1
            try:
                return self._compute(next(self._steps))
            finally:
                if self._closed:
                    self._calm = 0
                    close_steps(self._steps)
        if self._calm == 2:
            self._calm = 1
            return self._here()
        while self._run is not None or self._coming is not None:
            if self._coming is not None and self._executor.ready(self._coming, self._work):
                self._feed.left = 0  # what is in flight is handed over before the trial begins
                if self._run is None:
                    self._choose()
                    continue
            if self._run is None:
                return self._here()
            asked = time.perf_counter()
            try:
                batch = next(self._run)
            except StopIteration:
                if self._closed or (self._clock is None and self._coming is None):
                    raise
                if self._tried():
                    continue
                raise
            if self._clock is not None:
                self._clock.add(asked, time.perf_counter())
            return batch
        if self._executor.tuner.started:  # and nothing was faster than this
            self._calm = _ENDLESS
            return self._here()
        return self._watched()

    def _here(self) -> Tree:
        """Compute a step in the caller's thread."""
        if self._closed:
            raise StopIteration
        try:
            return self._compute(next(self._steps))
        finally:
            if self._calm == 1:  # the next step is looked at, and how long the caller took before it
                self._returned = time.perf_counter()
            if self._closed:  # meanwhile, by another thread
                close_steps(self._steps)

    def _watched(self) -> Tree:
        """Do the same, and see whether workers would pay."""
        seen = self._executor.seen
        looks = bool(seen) and seen[-1].seconds > _QUEUED  # which takes longer than a cheap step
        queued = queued_seconds() if looks else 0.0
        asked, cpu, size = time.perf_counter(), time.thread_time(), 0
        gap = asked - self._returned if self._returned else 0.0
        try:
            batch = self._here()
            size = _size(batch)
            return batch
        finally:
            now = self._returned = time.perf_counter()
            cpu = time.thread_time() - cpu
            queued = queued_seconds() - queued if looks else 0.0
            self._observe(Seen(now - asked, cpu + queued, gap, size))

    def _observe(self, seen: Seen) -> None:
        executor = self._executor
        executor.spent += seen.seconds
        executor.seen = [*executor.seen[1 - _SEEN :], seen]
        executor.cheap = 0 if executor.patience.observe(seen.seconds, seen.gap) else executor.cheap + 1
        self._calm = _RARELY if executor.cheap > _CALM else 1
        if not executor.cheap and not self._closed and self._seen_enough():
            self._choose()
            if not executor.tuner.started:  # nothing should be faster: look again later
                self._calm = _CALM

    def _seen_enough(self) -> bool:
        """Return whether enough was seen to tell what later steps will be like: the first ones are slower."""
        executor = self._executor
        cheap = executor.spent < _CHEAP * len(executor.seen)
        return len(executor.seen) >= (_SEEN if cheap else 3) or executor.spent > _ENOUGH or at_once()

    def _choose(self) -> None:
        """Start what is to be tried next, or the best that is known; nothing while too little was seen."""
        executor, tuner = self._executor, self._executor.tuner
        if not tuner.started:
            if not executor.seen or not executor.patience.pays:
                return
            meter = meter_of(self._work)
            tuner.begin(executor.seen, None if meter is None else meter.gil_share)
            if not tuner.started:
                return
            executor.began = time.perf_counter() - executor.spent
        assert executor.began is not None
        tuner.work = time.perf_counter() - executor.began + self._left()
        while self._run is None:
            proposed = tuner.proposal()
            setting = proposed or tuner.best
            try:
                self._coming = proposed if proposed is not None and not executor.ready(setting, self._work) else None
                if proposed is None or self._coming is not None:
                    setting, self._clock, self._feed.left = tuner.best, None, _ENDLESS
                    if tuner.settled is not None:
                        executor.keep(setting)
                    if setting.executor == "inline":
                        return
                else:
                    self._clock = _Clock(setting)
                    self._feed.left = self._clock.warm + self._steps_of_trial(setting)
                self._run = executor.start(setting, self._work, self._feed, self._window)
            except (PipelineError, WorkerError) as exc:
                tuner.refuse(setting, str(exc))

    def _steps_of_trial(self, setting: Setting) -> int:
        wanted = math.ceil(_TRIAL_SECONDS / max(self._executor.tuner.predicted(setting), 1e-6))
        most = max(_MOST, int(wanted * _LEAST_SECONDS / _TRIAL_SECONDS))
        workers = max(setting.workers, 1)
        steps = min(max(wanted, _FEWEST, 2 * workers), most)
        return -(-steps // workers) * workers  # so that no worker is idle at the end

    def _left(self) -> float:
        """Return how much work an epoch is, in seconds; infinity where it has no known end."""
        plan = getattr(self._work, "plan", None)
        steps = getattr(plan, "steps_per_epoch", None)
        return math.inf if plan is not None and steps is None else (steps or 0) * self._executor.seen[-1].seconds

    def _tried(self) -> bool:
        """Take in the result of the trial that is over; go on with what comes next, and say whether there was more."""
        run, clock = self._run, self._clock
        assert run is not None
        run.close()
        trial = None if clock is None else clock.trial()
        self._run = self._clock = None
        if trial is not None:
            self._executor.tuner.result(trial)
        if self._feed.ended:
            return False
        if clock is not None and trial is None:
            self._executor.tuner.refuse(clock.setting, "too many of its steps failed")
        self._choose()
        return True

    def close(self) -> None:
        """End what is running."""
        self._closed, self._calm = True, 0
        if self._run is not None:
            self._run.close()
        close_steps(self._steps)


def _size(batch: Tree) -> int:
    return sum(int(getattr(leaf, "nbytes", 0)) for leaf in tree_.flatten(batch)[0])
