"""The steps of an epoch whose batches are cut in order, and the state behind each of them."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

from batchkit.errors import BatchkitError, StateError
from batchkit.plan.memory import FreshMemory
from batchkit.plan.ordered.chunks import ChunkPlan
from batchkit.plan.ordered.walks import Feeds, Flow, State, Walk
from batchkit.plan.step import Step
from batchkit.skipping import Guard
from batchkit.tree import Tree

__all__ = ["WalkedSteps", "computed_here", "skipping_here"]


def computed_here(chunks: ChunkPlan, steps: Iterator[Step]) -> Iterator[Tree]:
    """Compute chunks when they are asked for."""
    return map(functools.partial(_computed, chunks), steps)  # which goes on behind an error; a generator does not


def skipping_here(chunks: ChunkPlan, steps: Iterator[Step]) -> Iterator[Tree]:
    """The same, and leave out rows whose function fails."""
    return map(functools.partial(_skipping, chunks), steps)


def _computed(chunks: ChunkPlan, step: Step) -> Tree:
    return chunks.compute(step, FreshMemory())


def _skipping(chunks: ChunkPlan, step: Step) -> Tree:
    return chunks.compute(step, FreshMemory(Guard()))


def _fed(feeds: Feeds, runs: list[Any], chunks: ChunkPlan, steps: Iterator[Step]) -> Iterator[Tree]:
    run = feeds(chunks, steps)
    runs.append(run)
    return run


def _close_all(runs: list[Any]) -> None:
    for run in list(runs):
        close = getattr(run, "close", None)
        if close is not None and not getattr(run, "gi_running", False):
            close()


class WalkedSteps(Iterator[Step]):
    """Steps of an epoch, each with the rows that a rank needs.

    ``numbers`` are how many steps there must be at least, the first one wanted and every how many; those in between
    are walked through. What comes after a step that could not be cut is cut all the same.
    """

    def __init__(
        self,
        flow: Flow,
        shard: tuple[int, int],
        epoch: int,
        start: int,
        numbers: tuple[int, int, int],
        state: State,
        feeds: Feeds,
    ) -> None:
        self._shard, self._epoch, self._number = shard, epoch, start
        self._least, self._first, self._every = numbers
        self._runs: list[Any] = []
        # Threads that compute chunks refer to the walk: it must not refer to what ends them when it is forgotten.
        self._finalizer = weakref.finalize(self, _close_all, self._runs)
        self._lock = threading.Lock()
        self._closed = False
        self.states: deque[State] = deque()
        """Where the walk stood behind each step that was taken, or that failed; for the caller to pop."""
        try:
            self._walk: Walk = flow.walk(epoch, state, functools.partial(_fed, feeds, self._runs))
        except (TypeError, ValueError, IndexError) as exc:
            if state is None or isinstance(exc, BatchkitError):
                raise
            raise StateError(f"the state does not fit the pipeline's stages ({exc}): it is damaged") from exc

    @property
    def passed(self) -> int:
        """The number of the step behind the last one that was cut."""
        return self._number

    def __next__(self) -> Step:
        """Return the next step.

        Raises:
            BatchkitError: what went wrong while it was cut, with the epoch and the step before it.
        """
        with self._lock:
            try:
                while not self._closed:
                    cut = self._walk.pull(1)
                    if cut is None and self._number < self._least:
                        self._least = 0
                        raise StateError(
                            f"there is no step {self._first}: the epoch has {self._number} batches. The state is "
                            "damaged, or the data changed since"
                        )
                    if cut is None:
                        raise StopIteration
                    number, self._number = self._number, self._number + 1
                    if number >= self._first and (number - self._first) % self._every == 0:
                        self.states.append(self._walk.state())
                        rows, size, group, _ = cut.share(self._shard)
                        return Step(self._epoch, number, rows, size, group)
                raise StopIteration
            except StopIteration:
                raise
            except Exception as exc:
                self.states.append(None)
                if isinstance(exc, BatchkitError):
                    exc.args = (f"epoch {self._epoch}, after step {max(self._number - 1, 0)}: {exc}",)
                self._number += 1
                raise
            finally:
                if self._closed:
                    self._walk.close()

    def close(self) -> None:
        """End what computes ahead; may be called while another thread takes a step."""
        self._closed = True
        _close_all(self._runs)
        if self._lock.acquire(blocking=False):
            try:
                self._walk.close()
            finally:
                self._lock.release()
