"""How a run is shown while it goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["BarDisplay", "Display", "LineDisplay", "make_display"]


class Display(Protocol):
    """What a run tells as it goes on."""

    def epoch(self, number: int, done: int, total: int | None) -> None:
        """Begin an epoch of ``total`` batches (``None``: unknown), ``done`` of which an earlier run has had."""

    def batch(self, rows: int) -> None:
        """Count a batch."""

    def close(self) -> None:
        """End the display."""


def make_display() -> Display:
    """Return the display that suits stderr."""
    console = Console(stderr=True)
    return BarDisplay(console) if console.is_terminal else LineDisplay()


class _Counts:
    """What was delivered, and when it was last shown."""

    def __init__(self, show_every: float) -> None:
        self._every = show_every
        self._began = self._shown = time.perf_counter()
        self.number, self.done, self.seen, self.rows = 0, 0, 0, 0
        self.total: int | None = None

    def begin(self, number: int, done: int, total: int | None) -> None:
        self.number, self.done, self.total = number, done, total

    def add(self, rows: int) -> bool:
        """Count a batch, and say whether it is time to show the counts."""
        self.done += 1
        self.seen += 1
        self.rows += rows
        now = time.perf_counter()
        if now - self._shown < self._every:
            return False
        self._shown = now
        return True

    def rate(self) -> str:
        count, what = (self.rows, "rows") if self.rows else (self.seen, "batches")  # rows that are not known are none
        return f"{count:,} {what}, {count / max(time.perf_counter() - self._began, 1e-9):,.0f} {what}/s"


class LineDisplay:
    """A line on stderr every two seconds."""

    def __init__(self, every: float = 2.0) -> None:
        self._counts = _Counts(every)

    def epoch(self, number: int, done: int, total: int | None) -> None:
        """Begin an epoch; prints nothing, because it may end at once."""
        self._counts.begin(number, done, total)

    def batch(self, rows: int) -> None:
        """Count a batch, and print a line if it is time."""
        counts = self._counts
        if counts.add(rows):
            total = "" if counts.total is None else f" of {counts.total}"
            click.echo(f"epoch {counts.number}: batch {counts.done}{total}, {counts.rate()}", err=True)

    def close(self) -> None:
        """Do nothing: the summary follows."""


class BarDisplay:
    """A bar for every epoch."""

    def __init__(self, console: Console, every: float = 0.1) -> None:
        self._counts = _Counts(every)
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._progress.start()

    def epoch(self, number: int, done: int, total: int | None) -> None:
        """Finish the last bar, and begin another."""
        self._show()
        self._counts.begin(number, done, total)
        self._task = self._progress.add_task(f"epoch {number}", total=total, completed=done, rate="")

    def batch(self, rows: int) -> None:
        """Count a batch, and move the bar if it is time."""
        if self._counts.add(rows):
            self._show()

    def close(self) -> None:
        """Leave the bars as they are."""
        self._show()
        self._progress.stop()

    def _show(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=self._counts.done, rate=self._counts.rate())
