"""Some steps of a pipeline, computed in a way that is chosen, as prints."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from batchkit.backends import NumpyBackend
from batchkit.buffers import Slots
from batchkit.checking.prints import Print, printed, read_print
from batchkit.executors import Executor, InlineExecutor
from batchkit.iteration import Work
from batchkit.pipeline import Pipeline
from batchkit.plan import Plan, Step, compile
from batchkit.report import Statistics, stage_names

__all__ = ["Key", "Prints", "chosen_steps", "prints_of"]

FAR = 1_000_000
"""How far into an endless epoch is looked."""


class Key(NamedTuple):
    """A step: the epoch, and the batch of it."""

    epoch: int
    step: int


Prints = dict[Key, Print]


def chosen_steps(plan: Plan, count: int, seed: int) -> list[Key]:
    """Return which steps are looked at: the first and the last, one and the one after it, others anywhere.

    The same for equal arguments. A stream is read from its beginning: there, they are the first ones.
    """
    rng = np.random.default_rng(seed)
    steps = plan.steps_per_epoch
    if steps == 0:
        return []
    later = max(count // 4, 1)
    if not plan.indexed:
        return [Key(0, step) for step in range(max(count - later, 1))] + [Key(1, step) for step in range(later)]
    if steps is None:
        far = [int(10**power) for power in rng.uniform(1, np.log10(FAR), count)]
        return [Key(0, step) for step in sorted({0, 1, *far[: max(count - 2, 0)]})]
    first = {0, steps - 1}
    middle = [int(step) for step in rng.integers(0, steps, count)]
    middle[1:1] = [middle[0] + 1]  # for a state between two steps that are known
    wanted = dict.fromkeys(step for step in middle if step not in first)
    found = sorted(first | {*[*wanted][: max(count - later - len(first), 0)]})
    again = sorted({0, *(int(step) for step in rng.integers(0, steps, later - 1))})
    return [Key(0, step) for step in found if step < steps] + [Key(1, step) for step in again if step < steps]


def prints_of(
    pipeline: Pipeline,
    place: int,
    keys: Sequence[Key],
    executor: Executor | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Prints:
    """Compute steps, in the order of ``keys``, and return the prints of the rows behind ``place`` stages.

    Steps that a stream does not come to are missing.

    Raises:
        BatchkitError: a step cannot be computed.
    """
    plan = compile(printed(pipeline, place), shard)
    executor = executor or InlineExecutor()
    work = Work(plan, Slots(NumpyBackend(), "checked"), Statistics(stage_names(plan.pipeline)).meter)
    done: list[Key] = []
    steps = _noted(plan, keys, done)
    run = executor.run(work, steps, 2 * max(getattr(executor, "workers", 1), 1))
    try:
        prints = [read_print(batch) for batch in run]
    finally:
        run.close()
        release = getattr(executor, "release", None)
        if release is not None:
            release(plan)
        with contextlib.suppress(ValueError):  # a worker thread is still pulling; it closes them
            steps.close()
    return dict(zip(done, prints, strict=True))


def _noted(plan: Plan, keys: Sequence[Key], done: list[Key]) -> Any:
    """Yield the steps, and note the key of each."""
    for step in _steps(plan, keys):
        done.append(Key(step.epoch, step.number))
        yield step


def _steps(plan: Plan, keys: Sequence[Key]) -> Iterator[Step]:
    if plan.indexed:
        yield from (Step(epoch, step) for epoch, step in keys)
        return
    for epoch in sorted({key.epoch for key in keys}):
        wanted = {key.step for key in keys if key.epoch == epoch}
        pulled: Any = plan.steps(epoch)
        with contextlib.closing(pulled):
            for step in itertools.islice(pulled, max(wanted) + 1):
                if step.number in wanted:
                    yield step
