"""Which source rows the rows of a batch are, told from what was computed: Loader(lineage=True)."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit.errors import PipelineError
from batchkit.pipeline import Pipeline
from batchkit.plan.numbered.combining import PartedRows, ZipRows
from batchkit.plan.numbered.nodes import BatchesNode, RowsNode
from batchkit.plan.ordered.assembling import needed
from batchkit.plan.ordered.chunks import ChunkPlan
from batchkit.plan.ordered.parted import PartedFlow, ZipFlow
from batchkit.plan.ordered.walks import Flow
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.lineage import Lineage

__all__ = ["check_lineage", "lineage_of_packed", "lineage_of_rows"]

I64 = npt.NDArray[np.int64]


class Traced(Protocol):
    """What of a plan says where its rows come from."""

    @property
    def pipeline(self) -> Pipeline: ...

    @property
    def batches(self) -> BatchesNode | None: ...

    @property
    def flow(self) -> Flow | None: ...

    @property
    def reader(self) -> RowsNode | None: ...


def check_lineage(plan: Traced) -> None:
    """Make sure that rows say where they come from.

    Raises:
        PipelineError: they do not; names the stage.
    """
    if plan.flow is None:
        return
    for stage in plan.pipeline.all_stages:
        if isinstance(stage, st.Window) and not stage.inside:
            raise PipelineError(
                f"lineage=True: {stage.label} puts several rows into one where rows are counted out in order, and then "
                "only the first of them is known. Leave lineage out, or window before filter() and generators"
            )
    if any(isinstance(flow, ZipFlow) for flow in _flows(plan.flow)):
        raise PipelineError(
            "lineage=True: a zip() of parts whose rows have no numbers does not know where its rows come from. Zip "
            "before filter(), or leave lineage out"
        )


def _flows(flow: Any) -> Any:
    yield flow
    for before in getattr(flow, "parts", None) or filter(None, [getattr(flow, "before", None)]):
        yield from _flows(before)


def lineage_of_rows(plan: Traced, rows: Rows) -> Lineage:
    """Return where rows come from, by their ids."""
    epochs: Any = rows.epochs
    ids = rows.ids[:0] if rows.surplus else rows.ids
    if rows.surplus and not isinstance(epochs, int):
        epochs = epochs[:0]
    if plan.flow is None:
        return _of_node(plan.batches, ids, epochs)
    return _of_flow(plan, plan.flow, ids, epochs)


def lineage_of_packed(plan: Traced, rows: Rows) -> Lineage:
    """The same for packed rows that are not put together yet: each is of the rows of its segments."""
    given, packed = needed(rows)
    if given.columns is None and given.items is None:
        assert plan.reader is not None
        assert given.places is not None
        found = plan.reader.origins(given.places, given.epochs)
    else:
        found = lineage_of_rows(plan, Rows(given.ids, given.epochs))
    each = found.taken(packed.rows)
    owners = np.repeat(np.arange(len(packed)), np.diff(packed.offsets))
    keep = slice(0, 0) if rows.surplus else slice(None)
    place = owners[each.place][keep]
    return Lineage(len(packed), place, each.source[keep], each.row[keep], each.epoch[keep])


def _of_flow(plan: Traced, flow: Any, ids: I64, epochs: Any) -> Lineage:
    if isinstance(flow, PartedFlow):
        counts = [len(part.sources) for part in flow.source.parts]
        firsts = list(itertools.accumulate(counts[:-1], initial=0))
        parts = len(flow.parts)

        def inner(part: int, own: I64, turns: Any) -> Lineage:
            return _of_flow(plan, flow.parts[part], own, turns).numbered(firsts[part])

        return _split(ids, epochs, np.where(ids < 0, 0, ids % parts), np.where(ids < 0, ids, ids // parts), inner)
    chunks: ChunkPlan | None = getattr(flow, "plan", None)
    if chunks is not None and chunks.node is not None:
        return _of_node(chunks.node, ids, epochs)
    before = getattr(flow, "before", None)
    if before is not None:
        return _of_flow(plan, before, ids, epochs)
    return Lineage.of(ids, epochs) if plan.reader is None else _of_node(plan.reader, ids, epochs)


def _of_node(node: Any, ids: I64, epochs: Any) -> Lineage:
    """Return where rows come from whose ids are those of a node's rows."""
    while hasattr(node, "before"):
        node = node.before
    if isinstance(node, ZipRows):
        return node.origins(ids, epochs)  # the ids are positions
    if isinstance(node, PartedRows):
        part, own = node.told_apart(ids)
        return _split(ids, epochs, part, own, lambda which, mine, turns: _of_node(node.part(which), mine, turns))
    return Lineage.of(ids, epochs).numbered(node.place)


def _split(ids: I64, epochs: Any, part: I64, own: I64, inner: Any) -> Lineage:
    """Ask each part for its rows."""
    found, order = [], []
    for which in np.unique(part).tolist():
        places = np.flatnonzero(part == which)
        found.append(inner(which, own[places], epochs if isinstance(epochs, int) else epochs[places]))
        order.append(places)
    if not found:
        return Lineage.none()
    return Lineage.joined(found).taken(np.argsort(np.concatenate(order)))
