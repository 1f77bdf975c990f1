"""The Executor protocol: where a step is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from batchkit.errors import PipelineError, PipelineTypeError
from batchkit.resources import cores
from batchkit.stages.stage import at_least
from batchkit.tree import Tree

__all__ = ["Executor", "Run", "Work", "close_steps", "seconds", "worker_count"]


class Work(Protocol):
    """What an executor computes: a plan together with the memory it writes to."""

    def compute(self, step: Any) -> Tree:
        """Return the host batch of one step; a pure function that several threads may call."""
        ...


class Run(Protocol):
    """One pass over some steps: an iterator of host batches, in the order of the steps."""

    def __iter__(self) -> Iterator[Tree]: ...

    def __next__(self) -> Tree:
        """Return the next batch, or raise what computing it raised; the call after goes on with the next step."""
        ...

    def close(self) -> None:
        """Stop, and leave no thread or process behind. May be called again, and from any thread."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Computes steps, somewhere."""

    name: str
    """The word by which users choose it: ``Loader(pipe, executor="threads")``."""

    def run(self, plan: Work, steps: Iterator[Any], window: int) -> Run:
        """Start computing ``steps``.

        ``steps`` is not safe to call from several threads: pull from it under a lock. At most
        ``window`` steps may be pulled beyond those whose batch was delivered.
        """
        ...


def close_steps(steps: Iterator[Any]) -> None:
    """Close steps that come from a generator, unless another thread is in the middle of pulling one.

    That thread has to call this again when it is done: a generator cannot be closed while it runs.
    """
    close = getattr(steps, "close", None)
    if close is None:
        return
    try:
        close()
    except ValueError:
        if not getattr(steps, "gi_running", False):
            raise


def seconds(timeout: Any) -> float | None:
    """Return ``timeout=`` as seconds, or ``None`` for no limit.

    Raises:
        PipelineError: it is not a number above 0.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise PipelineError(f"timeout must be a number of seconds above 0, or None, not {timeout!r}")
    return float(timeout)


def worker_count(workers: Any) -> int:
    """Return how many workers ``workers=`` means: a number, or ``"auto"`` for one a core that this process may use.

    Raises:
        PipelineError: it is neither ``"auto"`` nor a whole number of at least 1.
    """
    if workers == "auto":
        return min(cores(), 16)
    if isinstance(workers, str):
        raise PipelineError(f"workers must be 'auto' or a number of at least 1, not {workers!r}")
    try:
        return at_least(workers, "workers", 1)
    except PipelineTypeError as exc:
        raise PipelineTypeError(f"workers must be 'auto' or a whole number, not {workers!r}") from exc
