"""What ``workers="auto"`` chooses, from what the first steps have shown: arithmetic only, no clock and no thread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["MOST_THREADS", "Seen", "Setting", "Trial", "Tuner"]

MOST_THREADS = 32
"""More threads than that, or than there are cores, are never started, however much they wait."""

_FED = 0.05  # a caller who waits for less than this share of its time has what it needs
_CLOSE = 0.05  # of two settings that differ by less than this share the simpler one is taken
_PAYS = 0.8  # processes are tried first where they should need less than this share of the threads' time
_NEAR = 0.87  # where they should need more than this share of it, only if threads disappoint
_CHEAP = 2e-3  # seconds: steps below this are never sent to other processes
_GAINS = 0.95  # a setting is tried if it should need less than this share of the time of inline
_HAND_OVER = {"inline": 0.0, "threads": 40e-6, "processes": 150e-6}  # seconds a batch
_WARM = 5e-3  # seconds: the first steps that are shorter may have been slow for reasons of their own
_LONG = 2.0  # seconds of work: below this the start of processes does not pay
_SIMPLE = ("inline", "threads", "processes")


class Setting(NamedTuple):
    """An executor, its workers (0 where it has none), and how many finished batches may wait besides one a worker."""

    executor: str
    workers: int = 0
    prefetch: int = 2

    @property
    def window(self) -> int:
        """How many steps may be in flight."""
        return max(self.workers, 1) + self.prefetch

    def __str__(self) -> str:
        return self.executor if not self.workers else f"{self.executor} x {self.workers}"


class Seen(NamedTuple):
    """One step computed in the caller's thread."""

    seconds: float
    cpu: float
    """Seconds of it on a core, or waiting for one that others have: more threads would not make that shorter."""
    gap: float
    """Seconds that the caller took for itself before it asked."""
    bytes: int


class Trial(NamedTuple):
    """What one setting has come to."""

    setting: Setting
    seconds: float
    """A batch, the caller's own time included."""
    waited: float
    """The share of it during which the caller waited."""


class _Step(NamedTuple):
    """What a step is like: the medians of what was seen."""

    seconds: float
    cpu: float
    gap: float
    bytes: int
    held: float
    """The share of its time during which it holds the GIL."""


class Tuner:
    """Proposes settings one after the other, is told what each has come to, and settles on one.

    Args:
        allowed: the executors to choose from.
        cores: how many cores there are.
        prefetch: how many finished batches may wait; ``None`` to choose that, too.
        memory: how many bytes batches in flight may take; ``None`` for no limit.
    """

    def __init__(
        self, allowed: Sequence[str], cores: int, prefetch: int | None = None, memory: int | None = None
    ) -> None:
        self._allowed, self._cores, self._prefetch, self._memory = tuple(allowed), cores, prefetch, memory
        self._most = max(MOST_THREADS, cores)
        self._inline = Setting("inline", 0, 2 if prefetch is None else prefetch)
        self.trials: list[Trial] = []
        self.refused: list[tuple[Setting, str]] = []
        self.settled: Setting | None = None
        self.work = 0.0
        """How many seconds of work there are or were, as far as that is known."""
        self._step: _Step | None = None
        self._queue: list[Setting] = []
        self._again = False
        """Whether inline was measured a second time."""

    # -- what was seen

    def begin(self, seen: Sequence[Seen], held: float | None) -> None:
        """Take in the latest steps, computed inline. Where nothing should be faster, it is as if they had not been.

        ``held`` is the share of their time during which they held the GIL, ``None`` if that is not known.
        """
        usual = seen[len(seen) // 3 :]  # the first step makes the order, and those after it find cold caches
        seconds, gap = (
            min(_median([one.seconds for one in usual]), seen[-1].seconds),
            _median([one.gap for one in usual]),
        )
        cpu = min(_median([one.cpu for one in usual]), seconds)
        share = min(cpu / seconds if seconds else 1.0, 1.0) if held is None else held
        self._step = _Step(max(seconds, 1e-9), cpu, gap, max(one.bytes for one in seen), share)
        self.trials = [Trial(self._inline, seconds + gap, seconds / (seconds + gap or 1))]
        inline = self.predicted(self._inline)
        self._queue = [one for one in self._candidates(self._step) if self.predicted(one) < _GAINS * inline]
        if not self._queue:
            self._step, self.trials = None, []

    @property
    def started(self) -> bool:
        """Whether enough was seen to propose something."""
        return self._step is not None

    # -- what to try

    def proposal(self) -> Setting | None:
        """Return what is to be tried next; ``None`` when it is settled, or for as long as :attr:`best` will do.

        Processes are only started once there is enough :attr:`work` for them. Before anything else than inline is
        settled on, that is tried again: the first steps, from which it is known, find cold caches and new memory.
        """
        if not self.started:
            return None
        ready = [one for one in self._queue if one.executor != "processes" or self.work > _LONG]
        if not self._queue and self.settled is None:
            if not self._again and self._known().seconds < _WARM and self._fastest().executor != "inline":
                self._again = True
                return self._inline
            self._settle()
        return ready[0] if ready and self.settled is None else None

    @property
    def best(self) -> Setting:
        """What has been the fastest so far; inline before anything was seen."""
        if not self.started:
            return self._inline
        return self.settled or self._fastest()

    def result(self, trial: Trial) -> None:
        """Take in what the proposal has come to."""
        self._queue = [setting for setting in self._queue if setting != trial.setting]
        before = min(self.trials, key=lambda one: one.seconds)
        if trial.setting == self._inline:
            self.trials[0] = trial
            self._settle()
            return
        self.trials.append(trial)
        if self.fed(trial):
            self._settle()
            return
        self._queue[:0] = self._further(trial, before)

    def refuse(self, setting: Setting, why: str) -> None:
        """Leave a proposal out that could not be tried."""
        self._queue = [one for one in self._queue if one.executor != setting.executor]
        self.refused.append((setting, why))

    def predicted(self, setting: Setting) -> float:
        """Return how many seconds a batch should take with a setting."""
        step = self._known()
        if setting.executor == "inline":
            return step.seconds + step.gap
        workers = max(setting.workers, 1)
        bounds = [step.seconds / workers, step.gap, step.cpu / self._cores]
        if setting.executor == "threads":
            bounds.append(step.seconds * step.held)
        return max(bounds) + _HAND_OVER[setting.executor]

    @staticmethod
    def fed(trial: Trial) -> bool:
        """Whether the caller hardly waits."""
        return trial.waited < _FED

    def _candidates(self, step: _Step) -> list[Setting]:
        threads = self._within("threads", min(self._useful(step), self._most))
        processes = self._within("processes", min(self._useful(step), self._cores))
        first = [setting for setting in (threads, processes) if setting is not None]
        if step.seconds < _CHEAP:
            first = [setting for setting in first if setting.executor != "processes"]
        if len(first) == 2:
            gain = self.predicted(processes) / self.predicted(threads)  # type: ignore[arg-type]
            if gain < _PAYS:
                first.reverse()
            elif gain > _NEAR:
                first.pop()  # only tried if threads disappoint
        return first

    def _useful(self, step: _Step) -> int:
        """Return how many workers could be busy at once: by the cores, and by what the caller can take."""
        waiting = step.seconds / max(step.cpu, step.seconds / self._most)
        busy = math.ceil(self._cores * waiting - 0.14)  # the last one would gain less than that share
        wanted = math.ceil(step.seconds / step.gap) + 1 if step.gap > 0.05 * step.seconds else busy
        return max(1, min(busy, wanted))

    def _within(self, executor: str, workers: int) -> Setting | None:
        """Return a setting whose batches in flight fit into the memory that there is."""
        if executor not in self._allowed:
            return None
        prefetch = max(2, workers // 2) if self._prefetch is None else self._prefetch
        if self._memory is not None and self._known_bytes():
            # A worker holds the batch that it makes, and what that is made from.
            most = self._memory // self._known_bytes()
            workers = max(1, min(workers, (most - min(prefetch, 2)) // 2))
            if self._prefetch is None:
                prefetch = max(1, min(prefetch, most - 2 * workers))
        return Setting(executor, workers, prefetch)

    def _further(self, trial: Trial, before: Trial) -> list[Setting]:
        """Return what else is worth a try after a trial that does not feed the caller."""
        step, setting = self._known(), trial.setting
        if setting.executor != "threads":
            return []
        more: list[Setting | None] = []
        if trial.seconds < 0.85 * before.seconds and step.cpu < 0.7 * step.seconds:
            more.append(self._within("threads", min(2 * setting.workers, self._most)))
        elif setting.workers > self._cores and trial.seconds > 1.5 * self.predicted(setting):
            more.append(self._within("threads", max(setting.workers // 2, self._cores)))
        elif trial.seconds > 0.75 * self.trials[0].seconds and step.seconds >= _CHEAP and step.cpu > 0.5 * step.seconds:
            more.append(self._within("processes", min(self._useful(step), self._cores)))
        tried = {one.setting for one in self.trials} | {one for one, _ in self.refused} | set(self._queue)
        return [one for one in more if one is not None and one not in tried]

    def _settle(self) -> None:
        self.settled = self._fastest()

    def _fastest(self) -> Setting:
        step, fastest = self._known(), min(trial.seconds for trial in self.trials)
        good = [trial for trial in self.trials if trial.seconds <= (1 + _CLOSE) * fastest]
        overlaps = step.gap > _CLOSE * step.seconds  # computing ahead gains that, even if it is too little to be seen
        return min(
            (trial.setting for trial in good),
            key=lambda one: (overlaps and one.executor == "inline", _SIMPLE.index(one.executor), one.workers),
        )

    def _known(self) -> _Step:
        assert self._step is not None
        return self._step

    def _known_bytes(self) -> int:
        return self._known().bytes

    # -- why

    def text(self) -> str:
        """Return in a sentence what was chosen, and why."""
        if self._step is None:
            return "workers='auto': steps are so cheap that they are computed where they are asked for"
        step = self._step
        what = f"{self.best}, prefetch {self.best.prefetch}{'' if self.settled is not None else ' so far'}"
        seen = (
            f"a step takes {step.seconds * 1e3:.2f} ms ({step.cpu / step.seconds:.0%} of it on a core, holding the GIL "
            f"for {step.held:.0%}), the caller {step.gap * 1e3:.2f} ms"
        )
        tried = ", ".join(f"{trial.setting} {trial.seconds * 1e3:.2f} ms a batch" for trial in self.trials)
        left_out = "".join(f"; {setting} was left out: {why}" for setting, why in self.refused)
        return f"workers='auto' chose {what}: {seen}; measured: {tried}{left_out}"


def _median(values: list[float]) -> float:
    # statistics.median would cost 10 ms at import.
    return sorted(values)[len(values) // 2]
