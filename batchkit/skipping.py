"""Rows that are left out because they cannot be read or computed: how many may be, and where that is written.

A row left out makes its batch smaller, or is masked where shapes are static; no other row moves,
so a batch stays a pure function of (pipeline, data, seed, k).
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from batchkit.errors import PipelineError, PipelineTypeError, StageError, nearest

__all__ = ["Guard", "GuardedRun", "Ledger", "LeftOut", "Skip", "skip_of"]

_KNOWN_ROWS = 1000  # a fraction is taken of at least so many rows where an epoch's number is unknown


class LeftOut(NamedTuple):
    """One row that was left out, and why."""

    row: int
    epoch: int
    where: str
    error: str


@dataclass(frozen=True)
class Skip:
    """``Loader(on_error=Skip(...))``: leave rows out that fail, up to a budget.

    ``budget`` is how many an epoch may lose: a count (int), or a fraction of its rows (float
    below 1; at least one row). ``log`` is a file to which a line of JSON is added for each.
    """

    budget: int | float = 0.01
    log: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, float)):
            raise PipelineTypeError(f"Skip(budget) must be a count or a fraction, not {self.budget!r}")
        if not self.budget > 0 or (isinstance(self.budget, float) and self.budget >= 1):
            raise PipelineError(
                f"Skip(budget) must be a count of at least 1 or a fraction below 1, not {self.budget!r}"
            )
        if self.log is not None and not isinstance(self.log, str):
            raise PipelineTypeError(f"Skip(log) must be a path, not {self.log!r}")


def skip_of(on_error: Any) -> Skip | None:
    """Return what ``on_error=`` means: ``"raise"``, ``"skip"``, a :class:`Skip`, or its fields as a mapping.

    Raises:
        PipelineError: it is none of these.
    """
    if on_error == "raise":
        return None
    if on_error == "skip":
        return Skip()
    if isinstance(on_error, Skip):
        return on_error
    if isinstance(on_error, Mapping) and set(on_error) <= {"budget", "log"}:
        return Skip(**on_error)
    hint = nearest(on_error, ["raise", "skip"]) if isinstance(on_error, str) else ""
    raise PipelineError(f"on_error must be 'raise', 'skip' or Skip(budget=..., log=...), not {on_error!r}{hint}")


class Guard:
    """Collects, step by step, which rows were left out. Safe to use from several threads."""

    def __init__(self) -> None:
        self._now = threading.local()
        self._steps: dict[tuple[int, int], list[LeftOut]] = {}

    def begin(self) -> None:
        """Start to collect for the step that this thread computes."""
        self._now.left_out = []

    def note(self, row: int, epoch: int, where: str, exc: BaseException) -> None:
        """Leave a row out."""
        self._now.left_out.append(LeftOut(row, epoch, where, f"{type(exc).__name__}: {exc}"))

    def mark(self) -> int:
        """Return how many rows were left out so far."""
        return len(self._now.left_out)

    def rewind(self, mark: int) -> None:
        """Forget the rows that were left out since :meth:`mark` was so many: they are computed again."""
        del self._now.left_out[mark:]

    def end(self, step: tuple[int, int]) -> None:
        """Keep what was collected until :meth:`pop`."""
        if self._now.left_out:
            self._steps[step] = self._now.left_out

    def put(self, step: tuple[int, int], left_out: list[LeftOut]) -> None:
        """Keep what was collected elsewhere."""
        if left_out:
            self._steps[step] = left_out

    def pop(self, step: tuple[int, int]) -> list[LeftOut]:
        """Return the rows that a step left out."""
        return self._steps.pop(step, [])


class GuardedRun:
    """A run of chunks, which hands on what each of them has left out."""

    def __init__(self, run: Any, guard: Guard, left_out: deque[list[LeftOut]]) -> None:
        self._run, self._guard, self._left_out = run, guard, left_out

    def __iter__(self) -> GuardedRun:
        return self

    def __next__(self) -> Any:
        chunk = next(self._run)
        found = self._guard.pop((int(chunk["step"][0]), int(chunk["step"][1])))
        if found:
            self._left_out.append(found)
        return chunk

    def close(self) -> None:
        """End the run."""
        self._run.close()


class Ledger:
    """Counts the rows that delivered batches left out, holds the budget, and writes the log."""

    def __init__(self, skip: Skip, source: str, rows_an_epoch: int | None) -> None:
        self.skip, self._source, self._known = skip, source, rows_an_epoch
        self._epoch, self._seen, self._lost = -1, 0, 0
        self.total = 0

    def add(self, epoch: int, step: int, rows: int, left_out: list[LeftOut]) -> None:
        """Account for a batch that is about to be delivered with ``rows`` rows.

        Raises:
            StageError: the budget of the epoch is used up; names the last row and why.
        """
        if epoch != self._epoch:
            self._epoch, self._seen, self._lost = epoch, 0, 0
        self._seen += rows + len(left_out)
        if not left_out:
            return
        self._lost += len(left_out)
        self.total += len(left_out)
        if self.skip.log is not None:
            with open(self.skip.log, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(self._entry(step, one)) + "\n" for one in left_out)
        if self._lost > self._allowed():
            last = left_out[-1]
            raise StageError(
                f"epoch {epoch}, step {step}: {self._lost} rows were left out, and on_error allows {self._allowed()} "
                f"an epoch (budget={self.skip.budget!r}). The last was row {last.row}: {last.where}: {last.error}. "
                "Mend the data, or allow more"
            )

    def _allowed(self) -> int:
        if isinstance(self.skip.budget, int):
            return self.skip.budget
        rows = self._known if self._known is not None else max(self._seen, _KNOWN_ROWS)
        return max(1, int(self.skip.budget * rows))

    def _entry(self, step: int, one: LeftOut) -> dict[str, Any]:
        where = {"epoch": self._epoch, "step": step, "row": one.row, "source": self._source}
        return {**where, "where": one.where, "error": one.error}
