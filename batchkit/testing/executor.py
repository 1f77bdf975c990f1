"""What every executor must do."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from batchkit.executors import Executor, Run
from batchkit.tree import Tree

__all__ = ["ExecutorConformance"]


class BrokenStepError(Exception):
    """What a step of :class:`Numbers` fails with."""


@dataclass(frozen=True)
class Numbers:
    """Work whose batch of step ``k`` holds ``k``; some steps are slow, some fail. Can be pickled."""

    seconds: Mapping[int, float] = field(default_factory=dict)
    broken: frozenset[int] = frozenset()

    def compute(self, step: int) -> Tree:
        """Return the batch of one step."""
        time.sleep(self.seconds.get(step, 0.0))
        if step in self.broken:
            _break(step)
        return {"step": np.full(4, step)}


def _break(step: int) -> None:
    raise BrokenStepError(f"step {step} is broken")


class ExecutorConformance:
    """Subclass it, override :meth:`make_executor`, and pytest runs every check.

    ``patience`` is how many seconds a worker may take to end once it is told to.
    """

    patience: float = 5.0

    def make_executor(self, workers: int) -> Executor:
        """Return a new executor with so many workers, if it has any."""
        raise NotImplementedError("override make_executor(workers) to return your executor")

    def test_name_is_a_word(self) -> None:
        """``name`` is what users write in ``Loader(executor=...)``, and the methods of the protocol are there."""
        executor = self.make_executor(2)
        assert isinstance(executor, Executor)
        assert isinstance(executor.name, str)
        assert executor.name.split() == [executor.name]

    def test_batches_come_in_the_order_of_the_steps(self) -> None:
        """A slow step holds up those behind it; nothing overtakes."""
        delivered = self._all(Numbers({0: 0.05, 1: 0.02, 5: 0.05}), range(12), workers=3, window=4)
        assert delivered == sorted(delivered)

    def test_every_step_is_delivered_once(self) -> None:
        """No step is lost and none is delivered twice, whatever the number of workers."""
        for workers in (1, 2, 3):
            assert sorted(self._all(Numbers(), range(40), workers, window=4)) == list(range(40))

    @pytest.mark.parametrize("window", [1, 3])
    def test_window_bounds_what_is_pulled_ahead(self, window: int) -> None:
        """At most ``window`` steps are pulled beyond those that were delivered."""
        pulled = [0]

        def steps() -> Iterator[int]:
            for step in range(20):
                pulled[0] += 1
                yield step

        run = self.make_executor(3).run(Numbers(), steps(), window)
        try:
            time.sleep(0.02)
            assert pulled[0] <= window, f"{pulled[0]} steps were pulled before the first was asked for"
            for delivered in range(1, 7):
                next(run)
                time.sleep(0.005)  # time enough for a worker that pulls too much
                assert pulled[0] - delivered <= window, f"{pulled[0]} steps were pulled when {delivered} were delivered"
        finally:
            run.close()

    def test_steps_are_pulled_by_one_at_a_time(self) -> None:
        """``steps`` may be a generator, which two threads must not enter at once."""

        def steps() -> Iterator[int]:
            for step in range(24):
                time.sleep(0.001)
                yield step

        assert sorted(self._all(Numbers(), steps(), workers=3, window=4)) == list(range(24))

    def test_no_steps_are_no_batches(self) -> None:
        """A run over nothing ends at once."""
        assert self._all(Numbers(), range(0), workers=2, window=2) == []

    def test_the_end_stays_the_end(self) -> None:
        """After the last batch every call raises StopIteration."""
        run = self.make_executor(2).run(Numbers(), iter(range(2)), 2)
        try:
            assert _drain(run) == [0, 1]
            for _ in range(2):
                with pytest.raises(StopIteration):
                    next(run)
        finally:
            run.close()

    def test_an_error_is_raised_in_the_place_of_its_batch(self) -> None:
        """What came before it is delivered first, and the call after it goes on with the next step."""
        slow_ones = {1: 0.005, 2: 0.005}
        run = self.make_executor(3).run(Numbers(slow_ones, frozenset({3})), iter(range(8)), 4)
        try:
            assert [_number(next(run)) for _ in range(3)] == [0, 1, 2]
            with pytest.raises(Exception, match="step 3 is broken"):
                next(run)
            assert _drain(run) == [4, 5, 6, 7]
        finally:
            run.close()

    def test_an_error_shows_where_it_came_from(self) -> None:
        """The printed traceback has the line of the user's own code, from a worker too."""
        run = self.make_executor(2).run(Numbers(broken=frozenset({0})), iter(range(1)), 2)
        try:
            with pytest.raises(Exception, match="step 0 is broken") as caught:
                next(run)
        finally:
            run.close()
        shown = "".join(traceback.format_exception(caught.value))
        assert "in _break" in shown, f"the traceback hides the function that failed:\n{shown}"

    def test_an_error_of_the_steps_is_raised_in_its_place(self) -> None:
        """Where pulling the next step fails, as a generator source may, that is raised after the batches before."""

        def steps() -> Iterator[int]:
            yield from range(3)
            raise BrokenStepError("the source is broken")

        run = self.make_executor(2).run(Numbers({0: 0.005}), steps(), 4)
        try:
            assert [_number(next(run)) for _ in range(3)] == [0, 1, 2]
            with pytest.raises(Exception, match="the source is broken"):
                next(run)
            assert _drain(run) == []
        finally:
            run.close()

    def test_two_runs_at_once(self) -> None:
        """One executor runs two epochs side by side, and they do not mix."""
        executor = self.make_executor(2)
        first = executor.run(Numbers(), iter(range(10)), 3)
        second = executor.run(Numbers(), iter(range(100, 110)), 3)
        try:
            pairs = [(_number(next(first)), _number(next(second))) for _ in range(10)]
        finally:
            first.close()
            second.close()
        assert pairs == [(step, step + 100) for step in range(10)]

    def test_close_stops_everything(self) -> None:
        """``close()`` in the middle leaves no thread and no process behind."""
        before = _alive()
        run = self.make_executor(3).run(Numbers({5: 0.02}), iter(range(1000)), 4)
        next(run)
        run.close()
        assert self._gone(before), f"left behind: {sorted(str(one) for one in _alive() - before)}"

    def test_a_forgotten_run_stops_everything(self) -> None:
        """A run that is collected without ``close()`` leaves no thread and no process behind either."""
        before = _alive()
        run = self.make_executor(3).run(Numbers(), iter(range(1000)), 4)
        next(run)
        del run
        gc.collect()
        assert self._gone(before), f"left behind: {sorted(str(one) for one in _alive() - before)}"

    def test_close_is_final(self) -> None:
        """``close()`` may be called again, and a closed run has ended."""
        run = self.make_executor(2).run(Numbers(), iter(range(100)), 4)
        next(run)
        run.close()
        run.close()
        assert _drain(run) == []

    def test_a_delivered_batch_is_let_go(self) -> None:
        """The run keeps no reference to what it delivered, or its memory could never be used again."""
        run = self.make_executor(2).run(Numbers(), iter(range(12)), 2)
        try:
            first = weakref.ref(next(run)["step"])
            for _ in range(8):
                next(run)
            assert self._eventually(lambda: gc.collect() >= 0 and first() is None), (
                "a delivered batch is still referred to"
            )
        finally:
            run.close()

    def _all(self, work: Numbers, steps: Any, workers: int, window: int) -> list[int]:
        run = self.make_executor(workers).run(work, iter(steps), window)
        try:
            return _drain(run)
        finally:
            run.close()

    def _gone(self, before: set[Any]) -> bool:
        return self._eventually(lambda: _alive() <= before)

    def _eventually(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self.patience
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _number(batch: Tree) -> int:
    values = np.unique(batch["step"])
    assert len(values) == 1, f"a batch mixes the steps {values}"
    return int(values[0])


def _drain(run: Run) -> list[int]:
    return [_number(batch) for batch in run]


def _alive() -> set[Any]:
    return {*threading.enumerate(), *multiprocessing.active_children()}
