"""Batches put on the device ahead of the caller, by a background thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from batchkit.backends import Backend, Putter, Stager
from batchkit.errors import PipelineTypeError
from batchkit.executors import Run, ThreadRun
from batchkit.metering import Meter
from batchkit.tree import Tree

__all__ = ["Staged", "StagedRun", "stager_for"]


class Staged(NamedTuple):
    """A batch on its way to the device."""

    host: Tree
    """The host batch; it is checked when it is delivered, and is held until then."""
    sent: Any
    """What the stager made of it."""


def stager_for(backend: Backend, device: Any, wanted: Any) -> Stager | None:
    """Return what puts batches on ``device`` ahead of the caller; ``None`` to have the caller's thread do it.

    ``wanted`` is ``Loader(prefetch_to_device=)``: ``None`` for wherever the device has memory of its own.

    Raises:
        PipelineTypeError: ``wanted`` is neither ``None`` nor a bool.
    """
    if wanted is not None and not isinstance(wanted, bool):
        raise PipelineTypeError(f"prefetch_to_device must be True, False or None, not {wanted!r}")
    if wanted is False:
        return None
    make = getattr(backend, "stager", None)
    stager: Stager | None = None if make is None else make(device, wanted is True)
    return Putter(backend, device) if stager is None and wanted else stager


class StagedRun:
    """The batches of a run as :class:`Staged`, in their order, at most ``depth`` of them ahead of the caller."""

    def __init__(self, run: Run, stager: Stager, depth: int, meter: Meter) -> None:
        def send(taken: Any) -> Staged:
            if type(taken) is _Failed:
                raise taken.error
            began = time.perf_counter()
            sent = stager.send(taken)
            meter.staged(began, time.perf_counter())
            return Staged(taken, sent)

        self._run = ThreadRun(_Taken(run), max(depth, 1), [send], before=run.close)
        self._next = self._run.__next__

    def __iter__(self) -> Iterator[Staged]:
        return self

    def __next__(self) -> Staged:
        """Return the next batch, or raise what came in its place; the call after goes on with the next one."""
        staged: Staged = self._next()
        return staged

    def close(self) -> None:
        """End the thread and the run."""
        self._run.close()


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


class _Taken:
    """The batches of a run; one that failed is an item, too, so that it is raised at its place."""

    def __init__(self, run: Run) -> None:
        self._next = run.__next__
        self.close = run.close

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._next()
        except StopIteration:
            raise
        except Exception as exc:
            return _Failed(exc)
