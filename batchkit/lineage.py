"""Which source rows a step holds, reading none of them where they can be counted without."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from batchkit.errors import PipelineError, StateError
from batchkit.pipeline import Pipeline
from batchkit.plan import Plan, Step, compile
from batchkit.plan.rows.lineage import Lineage, Origin
from batchkit.stages.stage import at_least
from batchkit.state import checked_cursor, unpacked_walk

__all__ = ["Lineage", "Origin", "explain", "uncounted"]


def explain(
    pipeline: Pipeline,
    step: int,
    shard: tuple[int, int] = (0, 1),
    *,
    epoch: int | None = None,
    state: Mapping[str, Any] | None = None,
) -> Lineage:
    """Return which source rows a rank's batch of one step holds: what ``Loader(lineage=True)`` adds to that batch.

    ``step`` counts the batches of ``epoch`` from 0. No row is read and no function called, unless a stage keeps no
    count of its rows: a generator, ``filter``, ``flat_map``, or packing and bucketing by lengths that only the rows
    tell. What comes before the cut is then computed up to the step, here and one chunk after the other, and thrown
    away; what comes behind it is not. With a ``state``, as a loader of the pipeline gave it at this step or at one
    before it in the same epoch, that begins there. Without ``epoch`` it is the state's, or 0.

    Rows that a loader leaves out under ``on_error="skip"`` are among those shown: that they fail is not known before
    they are read. Where they have to be computed on the way, failing is an error.

    >>> import numpy as np
    >>> from batchkit.pipeline import from_arrays
    >>> pipe = from_arrays(np.zeros(10)).skip(2).repeat(2).batch(4)
    >>> found = explain(pipe, 1), explain(pipe, 2, shard=(1, 2))
    >>> [(one.row.tolist(), one.epoch.tolist()) for one in found]
    [([6, 7, 8, 9], [0, 0, 0, 0]), ([4, 5], [1, 1])]
    >>> odd = from_arrays(np.arange(10)).filter(lambda row: row % 2 == 1).batch(2)
    >>> explain(odd, 1).row.tolist()
    [5, 7]

    Raises:
        PipelineError: there is no such step.
        StateError: the state is damaged, of another pipeline or epoch, or of a later step; says which.
        BatchkitError: a row in front of the step cannot be computed.
    """
    plan = compile(pipeline, shard, lineage=True)
    step = at_least(step, "explain(step)", 0)
    epoch = None if epoch is None else at_least(epoch, "explain(epoch)", 0)
    epoch, start, walk = _begun(plan, epoch, step, state)
    if not plan.indexed:
        return _walked_to(plan, Step(epoch, step), start, walk)
    steps = plan.steps_per_epoch
    if steps is not None and step >= steps:
        raise _no_step(step, "an epoch", steps)
    return plan.origins(Step(epoch, step))


def uncounted(pipeline: Pipeline) -> str | None:
    """Return what keeps no count of its rows, so that :func:`explain` has to compute some: a generator, or a stage.

    ``None``: it reads nothing.

    Raises:
        PipelineError: the pipeline is not valid.
    """
    return compile(pipeline).uncounted


def _begun(plan: Plan, epoch: int | None, step: int, state: Mapping[str, Any] | None) -> tuple[int, int, Any]:
    """Return the epoch, and from which step on, and with which walk, its batches are counted."""
    if state is None:
        return epoch or 0, 0, None
    at_epoch, at = checked_cursor(state, plan.fingerprint())
    walk = unpacked_walk(state, plan.indexed)
    if epoch is not None and epoch != at_epoch:
        raise StateError(
            f"the state is of epoch {at_epoch}, and epoch {epoch} is to be explained: take a state of that epoch, or "
            "leave it out"
        )
    if at > step:
        raise StateError(
            f"the state stands at step {at}, behind step {step}, which is to be explained: take one of an earlier "
            "step, or leave it out"
        )
    return at_epoch, 0 if walk is None else at, walk


def _walked_to(plan: Plan, wanted: Step, start: int, walk: Any) -> Lineage:
    """Return the same where batches are cut in order: by cutting those in front."""
    only = (wanted.number, wanted.number + 1)
    with contextlib.closing(plan.steps(wanted.epoch, start, only, walk)) as steps:  # type: ignore[type-var]
        for found in steps:
            return plan.origins(found)
        raise _no_step(wanted.number, f"epoch {wanted.epoch}", steps.passed)  # type: ignore[attr-defined]


def _no_step(step: int, where: str, steps: int) -> PipelineError:
    last = f"the last one is step {steps - 1}" if steps else "there are no batches"
    return PipelineError(f"there is no step {step}: {where} has {steps} steps, counted from 0 ({last})")
