"""The stages of a pipeline with what they need to know of those before them, in the order in which they are planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from batchkit import stages as st
from batchkit.errors import PipelineError
from batchkit.pipeline import Pipeline
from batchkit.plan.rows.calls import Call
from batchkit.plan.rows.rowwise import changes_number
from batchkit.sources import Combination, GeneratorSource

__all__ = ["Numbering", "Placed", "call_of", "named_after", "placed_stages", "planned_before"]


class Placed(NamedTuple):
    """A stage at its place: its number in the pipeline, and how many random stages come before it."""

    stage: st.Stage
    number: int
    ordinal: int

    @property
    def called(self) -> bool:
        """Whether it changes rows or batches one by one, and nothing else."""
        row = isinstance(self.stage, (st.FunctionStage, st.ColumnStage))
        return row or (isinstance(self.stage, st.Window) and self.stage.inside)


@dataclass(slots=True)
class Numbering:
    """Counts stages, random stages and sources: those of a combination's parts in order, then what is behind it."""

    stage: int = 0
    ordinal: int = 0
    source: int = 0


def placed_stages(pipeline: Pipeline, numbering: Numbering | None = None) -> list[Placed]:
    """Return the stages of a pipeline, counted on from ``numbering``; ``rebatch`` is ``unbatch`` and ``batch``.

    Of a pipeline that ends in a ``Chunk``, those before it, as the ``Chunk`` counts them.
    """
    if pipeline.stages and isinstance(chunk := pipeline.stages[-1], st.Chunk):
        return [Placed(*each) for each in zip(pipeline.stages[:-1], chunk.numbers, chunk.ordinals, strict=True)]
    numbering = numbering or Numbering()
    for part in pipeline.parts:
        placed_stages(part, numbering)  # they are counted first
    placed: list[Placed] = []
    for stage in pipeline.stages:
        number, ordinal = numbering.stage, numbering.ordinal
        numbering.stage += 1
        numbering.ordinal += isinstance(stage, (st.RandomMap, st.Shuffle))
        if isinstance(stage, st.Rebatch):
            placed += [
                Placed(st.Unbatch(), number, ordinal),
                Placed(st.Batch(stage.size, stage.remainder), number, ordinal),
            ]
        else:
            placed.append(Placed(stage, number, ordinal))
    return placed


def call_of(placed: Placed) -> Call:
    """Return a function or column stage as what is called."""
    stage = placed.stage
    if isinstance(stage, st.RandomMap):
        return Call(stage, placed.number, (st.RANDOM_MAP, stage.seed, placed.ordinal))
    return Call(stage, placed.number)


def named_after(calls: Sequence[Call]) -> str:
    """Return how a message names the last function that rows went through; empty without one."""
    functions = [call for call in calls if st.function_of(call.stage) is not None]
    return after(functions[-1:])


def after(calls: Sequence[Call]) -> str:
    """Return how a message names the functions that rows come from: one, or behind a combination one a part."""
    return f", after {' or '.join(call.where for call in calls)}" if calls else ""


def planned_before(placed: list[Placed]) -> list[Placed]:
    """Return the stages with those orders moved to the front that may as well be planned before rows are left out.

    A shuffle of what a filter leaves is what a filter leaves of a shuffle, and a pass over it is a pass over all.
    """
    first = next((i for i, one in enumerate(placed) if _leaves_out(one, placed[:i])), None)
    if first is None:
        return placed
    moved: list[Placed] = []
    rest: list[Placed] = []
    open_, spread = True, False
    for one in placed[first:]:
        stage = one.stage
        plain = isinstance(stage, st.Repeat) or (isinstance(stage, st.Shuffle) and stage.window is None and not spread)
        if open_ and plain:
            moved.append(one)
            continue
        if not one.called:
            open_ = False
        spread = spread or isinstance(stage, (st.FlatMap, st.Window))
        rest.append(one)
    return [*placed[:first], *moved, *rest]


def _leaves_out(one: Placed, before: Sequence[Placed]) -> bool:
    return changes_number(one.stage) and not batched(before)


def batched(placed: Sequence[Placed]) -> bool:
    """Whether what comes out of these stages of an indexed source are batches."""
    cuts = [one.stage for one in placed if isinstance(one.stage, (st.Batch, st.Unbatch))]
    return bool(cuts) and isinstance(cuts[-1], st.Batch)


def refuse_shuffle(stage: st.Shuffle, behind: str) -> PipelineError:
    """Return the error for a shuffle of rows that have no numbers."""
    mend = (
        "Shuffle inside the generator, use from_sequence() for rows in a list"
        if "generator" in behind
        else ("Put shuffle() before it")
    )
    return PipelineError(
        f"{stage.label} cannot follow {behind}: its rows have no numbers to permute. {mend}, or give it a window of "
        "rows to permute among themselves: shuffle(seed, window=1000)"
    )


def behind(placed: Sequence[Placed], source: Any) -> str:
    """Return what message names as the reason why rows have no numbers."""
    if isinstance(source, GeneratorSource):
        return "a generator"
    if isinstance(source, Combination):
        return f"{source.kind}() of parts whose rows have no numbers"
    found = [f"stage {one.number} {one.stage.label}" for one in placed if changes_number(one.stage) or not one.called]
    return found[-1] if found else "this"
