"""Chunks: runs of rows, computed anywhere, of which each row may have become any number of rows.

A chunk is a pure function of the rows that it is made of; what is cut out of chunks, and in which order, is
decided behind them (``walks.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.pipeline import Pipeline
from batchkit.plan.numbered.combining import read_places
from batchkit.plan.numbered.nodes import BatchesNode, Request, RowsNode
from batchkit.plan.rows.calls import Call, Rows
from batchkit.plan.rows.lineage import Lineage
from batchkit.plan.rows.rowwise import rowwise
from batchkit.plan.step import Step
from batchkit.tree import Tree

__all__ = ["ChunkPlan", "Feeds", "chunk_rows"]


class ChunkPlan:
    """What an executor computes chunks by; looks like a plan.

    The rows of a chunk come with its step (``node`` is ``None``), or are at the positions that the step
    names; where ``node`` reads batches the chunk is one batch, taken apart into rows.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        node: RowsNode | BatchesNode | None,
        calls: Sequence[Call],
        last_function: str,
        cut: bool = False,
        lineage: bool = False,
    ) -> None:
        self.pipeline, self.node, self.cut = pipeline, node, cut
        self.lineage = lineage
        """Whether the rows of batches that are taken apart say where they come from; others have it with the step."""
        self.sent = pipeline
        self.last_function = last_function
        self.calls = tuple(calls)
        self.shard = (0, 1)
        self.steps_per_epoch: int | None = None
        self.endless = False

    def compute(self, step: Step, slots: Any) -> Tree:
        """Return the rows of a chunk: read them back by :func:`chunk_rows`.

        Raises:
            BatchkitError: what went wrong.
        """
        guard = slots.guard
        if guard is not None:
            guard.begin()
        rows = rowwise(self.read(step, slots), self.calls, guard, slots.sheet)
        if guard is not None:
            guard.end((step.epoch, step.number))
        return {
            "ids": rows.ids,
            "epochs": np.asarray(rows.epochs),
            "rows": rows.columns if rows.items is None else rows.items,
            "subs": rows.subs,
            "origins": None if rows.origins is None else rows.origins.columns,
            "of": rows.places,
            "step": np.array([step.epoch, step.number]),
        }

    def read(self, step: Step, slots: Any) -> Rows:
        """Return the rows that a chunk is made of; their places are those among the step's."""
        given = step.rows
        assert given is not None
        if self.node is None:
            return dataclasses.replace(given, places=np.arange(len(given)))  # may be computed again: left as they are
        if self.cut:
            rows = self.node.read(int(given.ids[0]), step.epoch, (0, 1), slots)  # type: ignore[call-arg,arg-type]
            rows.places = np.zeros(len(rows), np.int64)
            return rows
        rows = read_places(self.node, given, slots)  # type: ignore[arg-type]
        if rows.places is None:
            rows.places = np.arange(len(rows))
        return rows

    def requests(self, step: Step) -> list[Request]:
        """Return the row numbers that a step has which source read, call by call; reads nothing."""
        given = step.rows
        if self.node is None or given is None:
            return [] if given is None else [Request(0, given.ids)]
        requested: Iterator[Request]
        if self.cut:
            requested = self.node.requests(int(given.ids[0]), step.epoch, (0, 1))  # type: ignore[call-arg,arg-type]
        else:
            requested = self.node.requests(given.ids, given.epochs)  # type: ignore[call-arg,arg-type]
        return list(requested)


Feeds: TypeAlias = Callable[[ChunkPlan, Iterator[Step]], Iterator[Tree]]
"""Has chunks computed: takes steps, ahead of what is asked for, and gives their results in order."""


def chunk_rows(tree: Tree) -> tuple[Rows, npt.NDArray[np.int64]]:
    """Return what :meth:`ChunkPlan.compute` returned as rows, and which row of the step each of them is made of."""
    rows, epochs = tree["rows"], tree["epochs"]
    listed = type(rows) is list
    origins = tree["origins"]
    found = Rows(
        tree["ids"],
        epochs if epochs.ndim else int(epochs),
        None if listed else rows,
        rows if listed else None,
        subs=tree["subs"],
        origins=None if origins is None else Lineage(len(tree["ids"]), *origins),
    )
    return found, tree["of"]
