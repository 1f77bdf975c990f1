"""Which source rows a step holds, without reading any."""

from __future__ import annotations

from batchkit.errors import PipelineError
from batchkit.pipeline import Pipeline
from batchkit.plan import Step, compile
from batchkit.plan.rows.lineage import Lineage, Origin
from batchkit.stages.stage import at_least

__all__ = ["Lineage", "Origin", "explain"]


def explain(pipeline: Pipeline, step: int, shard: tuple[int, int] = (0, 1), *, epoch: int = 0) -> Lineage:
    """Return which source rows a rank's batch of one step holds; no row is read and no function is called.

    ``step`` counts the batches of ``epoch`` from 0. Rows that a loader leaves out under ``on_error="skip"`` are among
    them: that they fail is not known before they are read.

    >>> import numpy as np
    >>> from batchkit.pipeline import from_arrays
    >>> pipe = from_arrays(np.zeros(10)).skip(2).repeat(2).batch(4)
    >>> found = explain(pipe, 1), explain(pipe, 2, shard=(1, 2))
    >>> [(one.row.tolist(), one.epoch.tolist()) for one in found]
    [([6, 7, 8, 9], [0, 0, 0, 0]), ([4, 5], [1, 1])]

    Raises:
        PipelineError: there is no such step, or the pipeline reads a generator, whose rows have no numbers before
            they come.
    """
    plan = compile(pipeline, shard)
    step, epoch = at_least(step, "explain(step)", 0), at_least(epoch, "explain(epoch)", 0)
    steps = plan.steps_per_epoch
    if plan.indexed and steps is not None and step >= steps:
        last = f"the last one is step {steps - 1}" if steps else "there are no batches"
        raise PipelineError(f"there is no step {step}: an epoch has {steps} steps, counted from 0 ({last})")
    return plan.origins(Step(epoch, step))
