"""What each stage of a step takes: wall time, time on a core, bytes, and whether it holds the GIL.

A cheap step is not measured every time: how often is chosen so that the measuring itself stays well below one
per cent of the steps' time, and a measured step stands for those in between.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.tree import Tree

__all__ = [
    "HOST_COPY",
    "PROBED",
    "PUT",
    "SOURCE",
    "STAGED",
    "TRANSPORT",
    "WAIT",
    "Events",
    "MeasuredSlots",
    "Meter",
    "Sheet",
    "StageFigures",
]

SOURCE = -1
"""The stage number under which the source is measured; stages of the pipeline have their own."""
HOST_COPY = 10_000
"""Copying what is not yet in the dtype and the memory that the backend wants."""
TRANSPORT = 10_001
"""The way to a worker process and back."""
STAGED = 10_002
"""The backend's copying to its device, ahead of the caller."""
PUT = 10_003
"""The backend's hand-over to the caller."""

_SHEET_SECONDS, _LAP_SECONDS = 10e-6, 1e-6  # what it costs to measure a step, and each of its laps
_COST = 0.0015  # the share of a step that measuring it may take
_RAREST = 512  # a step in so many is measured, however cheap they are
PROBED = 3  # steps during which the GIL is watched
_EVENTS = 8192  # the latest that a trace shows

_WORTH_WATCHING = 1e-3
_PULLS = 32  # a cheap pull in so many is timed on its core
_NAP = 100e-6
_LATE = 250e-6  # a nap of the probe that nobody keeps from going on takes less


WAIT = -2
"""The stage number of the caller's waiting, in a trace."""

_BOX = np.dtype(
    [
        ("stage", "i8"),
        ("start", "f8"),
        ("seconds", "f8"),
        ("process", "i8"),
        ("thread", "u8"),
        ("epoch", "i8"),
        ("step", "i8"),
    ]
)


class Events:
    """The boxes of a trace: what was done, when (seconds of ``time.perf_counter``), and by which thread.

    The latest of them, in memory that is taken once: figures must not look like a leak.
    """

    def __init__(self) -> None:
        self._boxes = np.zeros(0, _BOX)
        self._count = 0

    def add(
        self, stage: int, start: float, seconds: float, process: int, thread: int, step: tuple[int, int] = (-1, -1)
    ) -> None:
        """Add a box."""
        if not len(self._boxes):
            self._boxes = np.ones(_EVENTS, _BOX)  # writes to all of it
        self._boxes[self._count % _EVENTS] = (stage, start, seconds, process, thread, *step)
        self._count += 1

    def latest(self) -> npt.NDArray[Any]:
        """Return the boxes as a structured array, in the order of their start."""
        found = self._boxes[: min(self._count, _EVENTS)]
        return found[np.argsort(found["start"], kind="stable")]


class StageFigures:
    """What one stage took, over the steps that were measured, each weighed by the steps that it stands for."""

    __slots__ = ("alone", "bytes", "calls", "cpu", "held", "seconds", "watched")

    def __init__(self) -> None:
        self.calls = self.seconds = self.cpu = self.bytes = 0.0
        self.watched = 0.0
        """Seconds during which the GIL was watched."""
        self.held = 0.0
        """Seconds of these during which no other thread could have run Python."""
        self.alone = 0.0
        """Seconds of these that it spent on a core."""

    @property
    def cpu_share(self) -> float:
        """The share of its time that it spends on a core: while it was computed alone, if that was long enough."""
        if self.watched > 4 * _LATE:
            return self.alone / self.watched
        return self.cpu / self.seconds if self.seconds else 1.0

    @property
    def gil_share(self) -> float | None:
        """The share of its time during which the stage holds the GIL; ``None`` where it was too short to tell."""
        return min(self.held / self.watched, 1.0) if self.watched > 4 * _LATE else None


class Sheet:
    """What one step takes, stage by stage: time goes to the stage that calls :meth:`lap` at its end."""

    __slots__ = (
        "_cpu",
        "_wall",
        "began",
        "doubtful",
        "held",
        "laps",
        "probe",
        "process",
        "stages",
        "step",
        "thread",
        "weight",
    )

    def __init__(self, weight: int = 1, probed: bool = False) -> None:
        self.stages: dict[int, list[float]] = {}  # calls, seconds, seconds on a core, bytes
        self.laps = 0
        self.weight = weight
        """How many steps this one stands for: itself, and those before it that were not measured."""
        self.probe = _Probe() if probed else None
        """What watches the GIL, from :meth:`watch` on."""
        self.held: dict[int, tuple[float, float, float]] = {}
        self.doubtful = False
        """Whether another step was computed while the GIL was watched."""
        self.step: tuple[int, int] | None = None
        self.process, self.thread = os.getpid(), threading.get_ident()
        self._cpu = time.thread_time()
        self.began = self._wall = time.perf_counter()

    def lap(self, stage: int, calls: int = 1, nbytes: int = 0) -> None:
        """Count what was done since the last lap as work of ``stage``."""
        wall, cpu = time.perf_counter(), time.thread_time()
        self.laps += 1
        if self.probe is not None:
            self.probe.intervals.append((stage, self._wall, wall, cpu - self._cpu))
        figures = self.stages.get(stage)
        if figures is None:
            self.stages[stage] = [calls, wall - self._wall, cpu - self._cpu, nbytes]
        else:
            figures[0] += calls
            figures[1] += wall - self._wall
            figures[2] += cpu - self._cpu
            figures[3] += nbytes
        self._wall, self._cpu = wall, cpu

    def restart(self) -> None:
        """Count what was done since the last lap as nobody's work."""
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def columns(self, stage: int, columns: Tree, times: int = 1) -> None:
        """The same, with the bytes of the columns that the stage has made, or of ``times`` rows that are like this."""
        self.lap(stage, 1, _size(columns) * times)

    @property
    def seconds(self) -> float:
        """From the beginning to the last lap."""
        return self._wall - self.began

    def watch(self) -> None:
        """Begin to watch the GIL, if that is to be done. Whatever comes then, :meth:`end` must be called."""
        if self.probe is not None:
            self.probe.start()

    def end(self) -> None:
        """End the watch over the GIL, if there is one."""
        if self.probe is not None:
            self.held, self.probe = self.probe.shares(), None

    def packed(self) -> tuple[Any, ...]:
        """Return the figures as a worker process sends them."""
        self.end()
        return self.stages, self.laps, self.held, self.process, self.thread

    def include(self, packed: tuple[Any, ...], first: bool) -> None:
        """Add what a worker process has sent, and count the rest of the time since the last lap as its transport.

        Of a worker's ``first`` step the rest is not counted: it is the worker's getting ready.
        """
        stages, laps, self.held, self.process, self.thread = packed
        if first:
            self.restart()
        else:
            self.lap(TRANSPORT)
            self.stages[TRANSPORT][1] -= sum(figures[1] for figures in stages.values())
        for stage, figures in stages.items():
            mine = self.stages.setdefault(stage, [0.0, 0.0, 0.0, 0.0])
            for index, figure in enumerate(figures):
                mine[index] += figure
        self.laps += laps


class Meter:
    """Decides which steps are measured, and adds up what they took. Safe to use from several threads."""

    def __init__(self) -> None:
        self.stages: dict[int, StageFigures] = {}
        self.steps = 0.0
        """How many steps the figures stand for."""
        self.pulls = 0
        """How many steps a generator's rows were pulled for."""
        self.events = Events()
        self._waiting = self._asked = 0
        self._lock = threading.Lock()
        self.due = 1
        """In how many steps the next one is measured; two threads that count down at once do no harm."""
        self._period = self._since = 1
        self._open = 0
        self._probes = PROBED
        self._long = True  # whether the last step was long enough to watch the GIL during the next one
        self._watched: Sheet | None = None

    def sheet(self, elsewhere: bool = False) -> Sheet | None:
        """Return what a step is to be measured with, or ``None`` for a step that is not measured.

        A step that is computed ``elsewhere`` says nothing of the GIL here.
        """
        self.due -= 1
        return None if self.due > 0 else self.open(elsewhere)

    def open(self, elsewhere: bool = False) -> Sheet:
        """Return what a step is measured with that is due."""
        weight, self.due, self._since = self._since, self._period, self._period
        with self._lock:
            if self._watched is not None:  # whether it is that step or this one that holds the GIL cannot be told
                self._watched.doubtful = True
            probed = self._open == 0 and not elsewhere and self._probes > 0 and self._long
            self._open += 1
            self._probes -= probed
            sheet = Sheet(weight, probed)
            if probed:
                self._watched = sheet
        return sheet

    def add(self, sheet: Sheet) -> None:
        """Add up what a step took."""
        sheet.end()
        cost = _SHEET_SECONDS + sheet.laps * _LAP_SECONDS
        with self._lock:
            self._close(sheet)
            self._long = sheet.seconds > _WORTH_WATCHING
            self._period = min(max(int(cost / (_COST * max(sheet.seconds, 1e-9))), 1), _RAREST)
            self.steps += sheet.weight
            for stage, figures in sheet.stages.items():
                self._add(stage, figures, sheet.weight)
            for stage, (watched, held, cpu) in () if sheet.doubtful else sheet.held.items():
                mine = self.stages.setdefault(stage, StageFigures())
                mine.watched += watched
                mine.held += held
                mine.alone += cpu
        self._trace(sheet)

    def drop(self, sheet: Sheet) -> None:
        """Forget a step that failed."""
        sheet.end()
        with self._lock:
            self._close(sheet)

    def _close(self, sheet: Sheet) -> None:
        self._open -= 1
        if self._watched is sheet:
            self._watched = None

    def pulled(self, steps: Iterator[Any]) -> Iterator[Any]:
        """Return the same steps; what it takes to pull them is counted as the source's."""
        return _Pulled(self, steps)

    def pull(self, began: float, seconds: float, on_core: float | None, timed: int) -> None:
        """Count a pull, and where it was timed on its core, what that is for ``timed`` of them."""
        with self._lock:
            self.pulls += 1
            self._add(SOURCE, [1.0, seconds, 0.0, 0.0], 1)
            if on_core is not None:
                self.stages[SOURCE].cpu += min(on_core, seconds) * timed
        if on_core is not None:
            self._box(SOURCE, began, seconds)

    @property
    def gil_share(self) -> float | None:
        """The share of the time of all stages during which the GIL is held; ``None`` if that is not known."""
        with self._lock:
            watched = sum(figures.watched for figures in self.stages.values())
            held = sum(figures.held for figures in self.stages.values())
        return min(held / watched, 1.0) if watched > 4 * _LATE else None

    def queued(self, waiting: int) -> None:
        """Note how many finished batches were waiting when the caller asked for one."""
        self._waiting += waiting
        self._asked += 1

    @property
    def occupancy(self) -> float | None:
        """How many finished batches were waiting on average; ``None`` where nothing is computed ahead."""
        return self._waiting / self._asked if self._asked else None

    def staged(self, began: float, ended: float) -> None:
        """Count a batch that was put on the device ahead of the caller."""
        with self._lock:
            self._add(STAGED, [1.0, ended - began, ended - began, 0.0], 1)
        self._box(STAGED, began, ended - began)

    def delivered(self, asked: float, came: float, given: float, weight: int) -> None:
        """Count a batch, standing for ``weight``, that was asked for, came, and was given to the caller."""
        with self._lock:
            self._add(PUT, [1.0, given - came, given - came, 0.0], weight)
        self._box(WAIT, asked, came - asked)

    def _add(self, stage: int, figures: list[float], weight: float) -> None:
        mine = self.stages.get(stage)
        if mine is None:
            mine = self.stages[stage] = StageFigures()
        mine.calls += figures[0] * weight
        mine.seconds += figures[1] * weight
        mine.cpu += figures[2] * weight
        mine.bytes += figures[3] * weight

    def _box(self, stage: int, start: float, seconds: float) -> None:
        self.events.add(stage, start, seconds, os.getpid(), threading.get_ident())

    def _trace(self, sheet: Sheet) -> None:
        """Draw the stages one behind the other, also functions through which rows go in turn."""
        at = sheet.began
        for stage, figures in sheet.stages.items():
            self.events.add(stage, at, figures[1], sheet.process, sheet.thread, sheet.step or (-1, -1))
            at += figures[1]


class _Pulled(Iterator[Any]):
    """Steps that are timed. Of those that take less than a millisecond only some are timed on their core, which costs
    a system call. A step that fails does not end them.
    """

    def __init__(self, meter: Meter, steps: Iterator[Any]) -> None:
        self._meter, self._steps = meter, steps
        self._timed = self._due = 1

    def __next__(self) -> Any:
        self._due -= 1
        due = self._due <= 0
        cpu = time.thread_time() if due else 0.0
        began = time.perf_counter()
        step = next(self._steps)
        seconds = time.perf_counter() - began
        self._meter.pull(began, seconds, time.thread_time() - cpu if due else None, self._timed)
        if due:
            self._timed = self._due = 1 if seconds > _WORTH_WATCHING else _PULLS
        return step

    def close(self) -> None:
        """Close the steps."""
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()


class MeasuredSlots:
    """The slots of a step that is measured."""

    def __init__(self, slots: Any, sheet: Sheet) -> None:
        self.sheet = sheet
        self.prepared, self.guard = slots.prepared, slots.guard
        self.lessor, self.column, self.ready = slots.lessor, slots.column, slots.ready
        self.host_dtype, self.narrow_into = slots.host_dtype, slots.narrow_into


class _Probe:
    """A thread that naps again and again: how late it wakes says whether the GIL could be had."""

    def __init__(self) -> None:
        self.intervals: list[tuple[int, float, float, float]] = []
        self._wakes: list[float] = []
        self._over, self._ended = threading.Event(), threading.Event()
        self._ended.set()
        self._thread = threading.Thread(target=self._watch, name="batchkit-probe", daemon=True)

    def start(self) -> None:
        """Begin the watch."""
        self._wakes = [time.perf_counter()]
        self._ended.clear()
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(_NAP):
            self._wakes.append(time.perf_counter())
        self._ended.set()

    def shares(self) -> dict[int, tuple[float, float, float]]:
        """End the watch; return for each stage how long it was watched, held the GIL, and was on a core."""
        self._over.set()
        # Ctrl-C may have come while the thread was being started: joining it would be an error then.
        self._ended.wait(1.0)
        if self._thread.ident is not None:
            self._thread.join()
        wakes = [*self._wakes, time.perf_counter()]
        shares: dict[int, list[float]] = {}
        place = 0
        for stage, start, end, cpu in self.intervals:
            share = shares.setdefault(stage, [0.0, 0.0, 0.0])
            share[0] += end - start
            share[2] += cpu
            while place + 1 < len(wakes) and wakes[place + 1] <= start:
                place += 1
            at = place
            while at + 1 < len(wakes) and wakes[at] < end:
                whole = wakes[at + 1] - wakes[at]
                late = max(whole - _LATE, 0.0) / whole
                share[1] += late * (min(end, wakes[at + 1]) - max(start, wakes[at]))
                at += 1
        return {stage: (watched, held, cpu) for stage, (watched, held, cpu) in shares.items()}


def _size(tree: Tree) -> int:
    """Return the bytes of all leaves; 0 for a leaf that is no array."""
    return sum(getattr(leaf, "nbytes", 0) for leaf in tree_.flatten(tree)[0])
