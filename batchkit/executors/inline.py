"""Steps computed where they are asked for, in the caller's thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batchkit.errors import PipelineError
from batchkit.executors.executor import Run, Work, close_steps
from batchkit.tree import Tree

__all__ = ["InlineExecutor"]


class InlineExecutor:
    """No thread and no queue: the simplest, and for cheap steps the fastest."""

    name = "inline"

    def __init__(self, workers: Any = "auto", timeout: float | None = None) -> None:
        if timeout is not None:
            raise PipelineError(
                "executor 'inline' computes in the caller's thread, which cannot be interrupted: leave timeout out, or "
                "use executor='processes'"
            )
        self.workers = 0

    def run(self, plan: Work, steps: Iterator[Any], window: int) -> Run:
        """Return an iterator that computes each step when it is asked for; pulls nothing ahead."""
        return _InlineRun(plan, steps)


class _InlineRun:
    def __init__(self, plan: Work, steps: Iterator[Any]) -> None:
        self._compute = plan.compute
        self._steps = self._given = steps
        self._closed = False

    def __iter__(self) -> Iterator[Tree]:
        return self

    def __next__(self) -> Tree:
        try:
            return self._compute(next(self._steps))
        finally:
            if self._closed:  # maybe meanwhile, by another thread
                close_steps(self._given)

    def close(self) -> None:
        self._closed, self._steps = True, iter(())
        close_steps(self._given)
