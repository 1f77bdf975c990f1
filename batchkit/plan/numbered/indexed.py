"""The nodes of the stages that map positions to positions: any row, or any batch, can be computed by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import PipelineError
from batchkit.plan.numbered import batches, nodes
from batchkit.plan.numbered.caching import cached_batches, cached_rows
from batchkit.plan.numbered.combining import PartedRows, PartRows, ZipRows, known_schema, source_schema
from batchkit.plan.numbered.passes import Passes
from batchkit.plan.numbered.placing import Numbering, Placed, after, call_of, placed_stages
from batchkit.plan.numbered.stores import Before
from batchkit.plan.rows.calls import Call
from batchkit.sources import Combination, Zip

__all__ = ["Indexed", "indexed_nodes", "source_nodes"]


@dataclass(slots=True)
class Indexed:
    """What reads rows, or behind a cut batches, by position, and what is known of them."""

    rows: Any
    """What reads the rows; out of date behind a batch stage."""
    ids_below: int | None
    """What every row id is smaller than; ``None``: there is no bound."""
    made_of: Before
    """The source and the stages so far."""
    passes: Passes = field(default_factory=Passes)
    """How rows are counted by epochs."""
    listed: bool = False
    """Whether rows may come as one tree a row."""
    batches: Any = None
    """What reads the batches; ``None`` in front of a batch stage."""
    cut: batches.CutRows | None = None
    by_row: bool = False
    """Whether a function or a source is called row by row."""
    last: list[Call] = field(default_factory=list)
    """The last function that rows go through: one, or behind a combination one a part."""
    uncut: list[Call] = field(default_factory=list)
    """The same since the last batch stage."""
    reordered: bool = False
    traced: bool = False
    """Whether batches say where their rows come from."""

    @property
    def length(self) -> int | None:
        """How many rows, or batches, there are; ``None`` where they never end."""
        node = self.rows if self.batches is None else self.batches
        return node.length  # type: ignore[no-any-return]


def indexed_nodes(
    source: Any, placed: Sequence[Placed], final: bool, numbering: Numbering | None = None, traced: bool = False
) -> Indexed:
    """Return the nodes of stages over a random-access source.

    ``final``: what is gathered may go to where the backend wants it at once, if no stage touches it. ``numbering``
    counts the stages and sources of a combination's parts. ``traced``: batches say where their rows come from.

    Raises:
        PipelineError: a stage cannot do its work there.
        SchemaError: a column stage names a leaf that is not there; parts of a combination are not alike.
    """
    combined = isinstance(source, Combination)
    untouched = not combined and not any(
        one.called
        or isinstance(one.stage, (st.Unbatch, st.PaddedBatch, st.Window, st.Cache))
        or st.function_of(one.stage) is not None
        for one in placed
    )
    whole = final and _whole(source, placed)
    made = source_nodes(source, numbering or Numbering(), final and untouched and not hasattr(source, "read"), whole)
    made.traced = traced
    _add_all(made, placed, final)
    if made.cut is not None:
        made.cut.last = made.batches is made.cut and final
    return made


def _add_all(made: Indexed, placed: Sequence[Placed], final: bool) -> None:
    for place, one in enumerate(placed):
        if isinstance(one.stage, st.Cache):
            _keep(made, one, placed[place + 1 :], final)
        else:
            _add(made, one)
        made.made_of = made.made_of.then(one)


def _keep(made: Indexed, one: Placed, behind: Sequence[Placed], final: bool) -> None:
    if made.batches is None:
        made.rows = cached_rows(made.rows, one, made.made_of, made.passes, made.listed, behind, final)
    else:
        made.batches = cached_batches(made.batches, one, made.made_of, made.passes, made.traced)


def _add(made: Indexed, one: Placed) -> None:
    stage, number, ordinal = one
    if isinstance(stage, st.Window):
        made.rows = nodes.WindowRows(made.rows, stage, number, after(made.uncut))
        made.listed = made.listed or stage.remainder != "drop"
    elif one.called:
        call = call_of(one)
        if isinstance(stage, st.FunctionStage):
            made.last = made.uncut = [call]
            made.by_row = made.by_row or made.batches is None
            made.listed = made.listed or made.batches is None
        if made.batches is None:
            made.rows = nodes.CalledRows(made.rows, [call])
        else:
            made.batches = batches.CalledBatches(made.batches, [call])
    elif isinstance(stage, st.OrderStage):
        if isinstance(stage, st.Repeat):
            made.passes = made.passes.repeated(stage.count)
        if made.batches is None:
            made.rows = nodes.OrderedRows(made.rows, stage, number, ordinal)
        else:
            made.batches, made.reordered = batches.OrderedBatches(made.batches, stage, number, ordinal), True
    elif isinstance(stage, st.Batch):
        if isinstance(stage, st.PaddedBatch):
            schema = known_schema(made.made_of.source, [before.stage for before in made.made_of.stages])
            if schema is not None:
                stage.check_leaves(tree_.paths(tree_.flatten(schema)[1]))
            nodes.only_filled_up(made.rows)
        if stage.collate is None:
            nodes.only_stacked(made.rows)
        made.batches = made.cut = batches.CutRows(made.rows, stage, number, after(made.uncut), made.traced)
        if stage.collate is not None:
            made.last = [call_of(one)]
        made.uncut, made.reordered = [], False
    elif isinstance(stage, st.Unbatch):
        assert made.cut is not None
        made.rows, made.batches = batches.UncutRows(made.batches, made.cut, number, made.reordered), None
        made.listed = False
    else:
        raise PipelineError(f"stage {number} {stage.label} is of no kind that can be compiled: subclass ColumnStage")


def source_nodes(source: Any, numbering: Numbering, final: bool, whole: bool) -> Indexed:
    """Return the nodes of a source, and of the parts of a combination."""
    if not isinstance(source, Combination):
        place, numbering.source = numbering.source, numbering.source + 1
        node = nodes.SourceRows(source, final, whole, place)
        by_row = hasattr(source, "read")
        return Indexed(node, node.length, Before(source, numbering.ordinal), listed=by_row, by_row=by_row)
    begun = Before(source, numbering.ordinal)
    made, parts = [], []
    for name, part in zip(source.names, source.parts, strict=True):
        start = dataclasses.replace(numbering)
        placed = placed_stages(part, numbering)
        its = source_nodes(part.source, start, False, whole and isinstance(source, Zip))
        numbering.source = start.source
        _add_all(its, placed, final=False)
        made.append(its)
        parts.append(PartRows(name, its.rows, its.ids_below))
    source_schema(source)  # says now what is known not to fit together
    combined: ZipRows | PartedRows
    if isinstance(source, Zip):  # its rows are counted as one
        combined, passes = ZipRows(source, parts), Passes()
    else:
        combined = PartedRows(source, parts, whole)
        turns = [its.passes.repeated(None) if combined.restarts(n) else its.passes for n, its in enumerate(made)]
        passes = Passes((), tuple(turns), combined.part_of)
    return Indexed(
        combined,
        combined.ids_below,
        begun,
        passes,
        listed=any(its.listed for its in made),
        by_row=any(its.by_row for its in made),
        last=[call for its in made for call in its.last],
        uncut=[call for its in made for call in its.uncut],
    )


def _whole(source: Any, placed: Sequence[Placed]) -> bool:
    """Say whether what is gathered reaches the functions behind ``batch`` in one piece."""
    cut = next((place for place, one in enumerate(placed) if isinstance(one.stage, st.Batch)), 0)
    inner = [stage for part in getattr(source, "parts", ()) for stage in part.all_stages]
    before = [*inner, *(one.stage for one in placed[:cut])]
    if any(isinstance(stage, (st.FunctionStage, st.Window, st.Unbatch, st.Cache)) for stage in before):
        return False
    if any(isinstance(one.stage, st.Batch) and one.stage.collate is not None for one in placed):
        return False
    return not any(isinstance(one.stage, (st.Unbatch, st.Cache)) for one in placed)
