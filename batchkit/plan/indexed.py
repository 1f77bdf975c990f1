"""The nodes of the stages that map positions to positions: any row, or any batch, can be computed by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from batchkit import stages as st
from batchkit.errors import PipelineError
from batchkit.plan import nodes
from batchkit.plan.calls import Call
from batchkit.plan.placing import Placed, call_of, named_after

__all__ = ["Indexed", "indexed_nodes"]


class Indexed(NamedTuple):
    """What reads rows, or behind a cut batches, by position."""

    rows: Any
    batches: Any
    cut: nodes.CutRows | None
    by_row: bool
    """Whether a function or the source is called row by row."""

    @property
    def length(self) -> int | None:
        """How many rows, or batches, there are; ``None`` where they never end."""
        node = self.rows if self.batches is None else self.batches
        return node.length  # type: ignore[no-any-return]


def indexed_nodes(source: Any, placed: Sequence[Placed], final: bool) -> Indexed:
    """Return the nodes of stages over a random-access source.

    ``final``: what is gathered may go to where the backend wants it at once, if no stage touches it.

    Raises:
        PipelineError: a stage cannot do its work there.
        SchemaError: a column stage names a leaf that is not there.
    """
    by_row = hasattr(source, "read")
    untouched = not by_row and not any(
        one.called or isinstance(one.stage, (st.Unbatch, st.PaddedBatch, st.Window)) for one in placed
    )
    rows: Any = nodes.SourceRows(source, final and untouched, final and _whole(placed))
    batches: Any = None
    cut: nodes.CutRows | None = None
    seen: list[Call] = []
    reordered = False
    for one in placed:
        stage, number, ordinal = one
        if isinstance(stage, st.Window):
            rows = nodes.WindowRows(rows, stage, number, named_after(seen))
        elif one.called:
            call = call_of(one)
            seen.append(call)
            by_row = by_row or (batches is None and isinstance(stage, st.FunctionStage))
            if batches is None:
                rows = nodes.CalledRows(rows, [call])
            else:
                batches = nodes.CalledBatches(batches, [call])
        elif isinstance(stage, st.OrderStage):
            if batches is None:
                rows = nodes.OrderedRows(rows, stage, number, ordinal)
            else:
                batches, reordered = nodes.OrderedBatches(batches, stage, number, ordinal), True
        elif isinstance(stage, st.Batch):
            batches = cut = nodes.CutRows(rows, stage, number, named_after(seen))
            seen, reordered = [], False
        elif isinstance(stage, st.Unbatch):
            assert cut is not None
            rows, batches = nodes.UncutRows(batches, cut, number, reordered), None
        else:
            raise PipelineError(
                f"stage {number} {stage.label} is of no kind that can be compiled: subclass ColumnStage"
            )
    if cut is not None:
        cut.last = batches is cut and final
    return Indexed(rows, batches, cut, by_row)


def _whole(placed: Sequence[Placed]) -> bool:
    """Say whether what is gathered reaches the functions behind ``batch`` in one piece."""
    cut = next((place for place, one in enumerate(placed) if isinstance(one.stage, st.Batch)), 0)
    before = any(isinstance(one.stage, (st.FunctionStage, st.Window)) for one in placed[:cut])
    return not before and not any(isinstance(one.stage, st.Unbatch) for one in placed)
