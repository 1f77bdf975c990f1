"""Measure what the loader chooses by itself, against every setting of a grid, on five kinds of work.

A turn is a new iteration over an endless pipeline; its first quarter does not count, so that
neither start-up nor batches that were loaded ahead do. Contenders take turns after a warm-up
epoch each. The target is the median rate of ``Loader(pipe)`` over that of the best fixed
setting; their very first epochs, all measuring and starting of workers included, are compared
besides. Writes ``results/autotune.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import batchkit as bk
from batchkit.bench import interleaved, machine
from batchkit.bench.rounds import paired
from lines import Line
from pictures import Spread, Targets, draw
from workloads import WORKLOADS, Workload

RESULTS = Path(__file__).parent / "results"
TARGET = 0.85
UNCOUNTED = 0.25  # of a turn
AUTO = "auto"

Told = Callable[[str], None]


def auto_loader(pipe: Any) -> bk.Loader:
    """Return a loader that is told nothing."""
    return bk.Loader(pipe)


@dataclass(frozen=True)
class Setting:
    """An executor with a number of workers, or what the loader chooses by itself."""

    executor: str
    workers: int | None = None

    @property
    def name(self) -> str:
        """Executor and workers."""
        return self.executor if self.workers is None else f"{self.executor}, {self.workers}"

    def loader(self, pipe: Any) -> bk.Loader:
        """Return a loader with this setting."""
        if self.executor == AUTO:
            return auto_loader(pipe)
        workers: int | str = "auto" if self.workers is None else self.workers
        return bk.Loader(pipe, executor=self.executor, workers=workers)


GRID = (
    Setting("inline"),
    *(Setting("threads", workers) for workers in (1, 2, 4, 8, 16)),
    *(Setting("processes", workers) for workers in (1, 2, 4)),
)


@dataclass(frozen=True)
class Outcome:
    """What was measured on one workload: rows per second by setting, once a round.

    ``first`` has the first epochs of new loaders: of auto, and of the fixed setting that is best in the long run.
    """

    workload: str
    what: str
    epoch_rows: int
    rates: dict[str, list[float]]
    first: dict[str, list[float]]
    settled: str
    report: str

    @property
    def best(self) -> str:
        """The best fixed setting."""
        return max((name for name in self.rates if name != AUTO), key=self.median)

    @property
    def reached(self) -> float:
        """What auto reaches of the best fixed setting."""
        return paired(self.rates[AUTO], self.rates[self.best])

    @property
    def reached_first(self) -> float:
        """The same in the first epoch."""
        return paired(self.first[AUTO], self.first[self.best])

    @property
    def line(self) -> Line:
        """Auto against its target."""
        return Line(self.workload, f"best fixed: {self.best}", self.reached, TARGET)

    def median(self, setting: str) -> float:
        """Return the rows per second in the middle one of all rounds."""
        return statistics.median(self.rates[setting])


def rate(loader: bk.Loader, size: int, seconds: float) -> float:
    """Return the rows per second of a turn, from a batch that was delivered to another one."""
    batches = iter(loader)
    began, started, count = time.perf_counter(), None, 0
    try:
        for _ in batches:
            now = time.perf_counter()
            if started is not None:
                count += 1
                if now - started >= seconds * (1 - UNCOUNTED):
                    return count * size / (now - started)
            elif now - began >= seconds * UNCOUNTED:
                started = now
    finally:
        batches.close()
    raise SystemExit("the pipeline came to an end, but it has to be endless")


def first_epoch(setting: Setting, workload: Workload, pipe: Any, rows: int) -> float:
    """Return the rows per second of the first epoch of a new loader, from making it to the last batch."""
    began = time.perf_counter()
    with setting.loader(pipe) as loader:
        for _ in itertools.islice(iter(loader), steps_of(workload, rows)):
            pass
        return rows / (time.perf_counter() - began)


def warm_up(loader: bk.Loader, steps: int, seconds: float, whole: bool) -> None:
    """Iterate for at least ``seconds``, and, if ``whole``, over an epoch."""
    batches = iter(loader)
    began = time.perf_counter()
    for number, _ in enumerate(batches, 1):
        if time.perf_counter() - began >= seconds and (number >= steps or not whole):
            break
    batches.close()


def steps_of(workload: Workload, rows: int) -> int:
    """Return the number of batches in an epoch."""
    return -(-rows // workload.size)


def settled_on(loader: bk.Loader) -> str:
    """Say what the loader has chosen."""
    chosen = loader.setting
    workers = f", {chosen.workers} workers" if chosen.workers else ""
    return f"{chosen.executor}{workers}, prefetch {chosen.prefetch}"


def measure(workload: Workload, rows: int, rounds: int, seconds: float, told: Told) -> Outcome:
    """Measure one workload under all settings."""
    pipe = workload.pipe(rows)
    settings = [Setting(AUTO), *GRID]
    rates: dict[str, list[float]] = {setting.name: [] for setting in settings}
    with contextlib.ExitStack() as stack:
        loaders = {setting.name: stack.enter_context(setting.loader(pipe)) for setting in settings}
        told(f"{workload.name}: warming up")
        for name, loader in loaders.items():
            warm_up(loader, steps_of(workload, rows), seconds, whole=name == AUTO)
        for _, setting in interleaved(settings, rounds, told, f"{workload.name}: round"):
            rates[setting.name].append(rate(loaders[setting.name], workload.size, seconds))
        settled, report = settled_on(loaders[AUTO]), str(loaders[AUTO].report())
    outcome = Outcome(workload.name, workload.what, rows, rates, {}, settled, report)
    rivals = [setting for setting in settings if setting.name in (AUTO, outcome.best)]
    for _, setting in interleaved(rivals, rounds, told, f"{workload.name}: first epochs, round"):
        outcome.first.setdefault(setting.name, []).append(first_epoch(setting, workload, pipe, rows))
    return outcome


def show(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print the grid and the verdicts."""
    grid = Table(title="Rows per second, the median of all rounds; in bold: the best fixed setting")
    grid.add_column("setting")
    for outcome in outcomes:
        grid.add_column(outcome.workload, justify="right")
    for name in outcomes[0].rates:
        rates = [(outcome.median(name), outcome.best == name) for outcome in outcomes]
        grid.add_row(name, *(f"[bold]{number:,.0f}[/]" if best else f"{number:,.0f}" for number, best in rates))
    console.print(grid)
    verdicts = Table(title="What the loader chooses, against the best fixed setting")
    for heading in ("work", "against", "settled on"):
        verdicts.add_column(heading)
    for heading in ("first epoch", "target", "measured", ""):
        verdicts.add_column(heading, justify="right")
    for outcome in outcomes:
        line, first = outcome.line, f"{outcome.reached_first:.2f}x"
        style = None if line.met else "bold red"
        verdicts.add_row(
            line.work, line.reference, outcome.settled, first, line.wanted, line.found, line.verdict, style=style
        )
    console.print(verdicts)


def write(outcomes: Sequence[Outcome], seconds: float, path: Path) -> None:
    """Write what was measured as JSON."""
    found = []
    for outcome in outcomes:
        verdict = {"best": outcome.best, "measured": round(outcome.reached, 4), "target": TARGET}
        besides = {"met": outcome.line.met, "first_epoch": round(outcome.reached_first, 4)}
        found.append({**asdict(outcome), **verdict, **besides})
    record = {
        "machine": machine(("batchkit-core", "numpy")),
        "turn": {"seconds": seconds, "not_counted": UNCOUNTED},
        "workloads": found,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def picture(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw the verdicts, and all settings next to the best one."""
    relative = {
        outcome.workload: {name: outcome.median(name) / outcome.median(outcome.best) for name in outcome.rates}
        for outcome in outcomes
    }
    settled = {outcome.workload: outcome.settled for outcome in outcomes}
    draw(
        path,
        Targets("What the loader chooses by itself, against the best fixed setting", [one.line for one in outcomes]),
        Spread("Every setting, against the best fixed one", relative, TARGET, settled),
    )


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, show, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="at most so many rows in an epoch")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long a turn is")
    parser.add_argument("--only", help="the workloads with this in their names")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args(None if arguments is None else list(arguments))
    console = Console(width=None if os.isatty(1) else 150)
    chosen = [workload for workload in WORKLOADS if (options.only or "") in workload.name]
    if not chosen:
        parser.error(f"--only {options.only}: there are {', '.join(workload.name for workload in WORKLOADS)}")
    most = options.rows or max(workload.rows for workload in WORKLOADS)
    outcomes = [
        measure(workload, min(workload.rows, most), options.rounds, options.seconds, console.print)
        for workload in chosen
    ]
    show(console, outcomes)
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "autotune.json"
    write(outcomes, options.seconds, path)
    picture(outcomes, path.with_suffix(".png"))
    console.print(f"written: {path} and {path.stem}.png")


if __name__ == "__main__":
    main()
