"""The compiled form of an indexed pipeline behind ``batch``: nodes that read any batch by number, or its rows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import PipelineError, SchemaError
from batchkit.plan.memory import FreshMemory
from batchkit.plan.numbered.combining import read_kept
from batchkit.plan.numbered.nodes import BatchesNode, Request, RowsNode, SlotPool
from batchkit.plan.rows.calls import Call, Rows
from batchkit.plan.rows.cutting import cut_rows
from batchkit.plan.rows.lineage import Lineage
from batchkit.plan.rows.rowwise import call_batches
from batchkit.ragged import part, refuse_ragged
from batchkit.schema import LeafSpec
from batchkit.sources.stacking import Lease
from batchkit.stages.order import Epochs, Locator, Positions
from batchkit.tree import Tree

__all__ = ["CalledBatches", "CutRows", "OrderedBatches", "UncutRows", "none_of", "pad_columns"]


class CutRows:
    """Rows cut into batches; where ``traced``, they say where they come from."""

    def __init__(self, before: RowsNode, stage: st.Batch, number: int, after: str, traced: bool) -> None:
        self.length = stage.batches(before.length)
        self.stage, self.number = stage, number
        self.rows = before.length
        self.size = stage.size
        self.pads = stage.remainder == "pad"
        self._makes = isinstance(stage, st.PaddedBatch) or stage.collate is not None
        self.drops = stage.remainder == "drop"
        self.last = False
        """Whether nothing is done to the batch any more."""
        self.before = before
        self._after, self._traced = after, traced

    def read(self, number: int, epoch: int, shard: tuple[int, int], slots: SlotPool) -> Rows:
        positions, padded, surplus = self._cut(number, shard)
        rows = self._told(positions, epoch, slots) if self._traced else self.before.read(positions, epoch, slots)
        if rows.items is not None or self._makes:
            rows = cut_rows(self.stage, rows, self._after, self._lease(slots), self.number)
        if self.pads:
            rows = pad_columns(none_of(rows) if surplus else rows, padded)
        else:
            rows.surplus = surplus
        if slots.sheet is not None:
            slots.sheet.columns(self.number, rows.columns)
        return rows

    def requests(self, number: int, epoch: int, shard: tuple[int, int]) -> Iterator[Request]:
        """Yield what is asked of the source."""
        return self.before.requests(self._cut(number, shard)[0], epoch)

    def origins(self, number: int, epoch: int, shard: tuple[int, int]) -> Lineage:
        """Return which source rows the batch holds."""
        positions, padded, surplus = self._cut(number, shard)
        found = Lineage.none() if surplus else self.before.origins(positions, epoch)
        return found.padded(padded) if self.pads else found

    def _told(self, positions: range, epoch: int, slots: SlotPool) -> Rows:
        """Return rows with their origins."""
        rows, kept = read_kept(self.before, positions, epoch, slots)
        origins = self.before.origins(positions, epoch)
        rows.origins = origins if kept is None else origins.taken(kept)
        return rows

    def _cut(self, number: int, shard: tuple[int, int]) -> tuple[range, int, bool]:
        """Return the positions of a rank's rows, how many rows it has with padding, and whether it has none.

        A rank without rows of a batch computes one all the same, to know what columns look like.
        """
        start = number * self.size
        have = self.size if self.rows is None else min(self.size, self.rows - start)
        if shard == (0, 1):
            return range(start, start + have), self.size, False
        rank, world = shard
        cut = self.size if self.pads else have
        low, high = cut * rank // world, cut * (rank + 1) // world
        if low >= min(high, have) and have:
            return range(start, start + 1), high - low, True
        return range(start + low, start + min(high, have)), high - low, False

    def _lease(self, slots: SlotPool) -> Lease:
        return functools.partial(slots.column, final=True) if self.last and not self.pads else slots.column


class OrderedBatches:
    """Batches in another order, or fewer, or several times."""

    def __init__(self, before: BatchesNode, stage: st.OrderStage, number: int, ordinal: int) -> None:
        self.length = stage.length(before.length)
        self.before, self.number = before, number
        self._locate: Locator = stage.locator(before.length, ordinal)

    def read(self, number: int, epoch: int, shard: tuple[int, int], slots: SlotPool) -> Rows:
        return self.before.read(*self._located(number, epoch), shard, slots)

    def requests(self, number: int, epoch: int, shard: tuple[int, int]) -> Iterator[Request]:
        """Yield what is asked of the source."""
        return self.before.requests(*self._located(number, epoch), shard)

    def origins(self, number: int, epoch: int, shard: tuple[int, int]) -> Lineage:
        """Return which source rows the batch holds."""
        return self.before.origins(*self._located(number, epoch), shard)

    def _located(self, number: int, epoch: int) -> tuple[int, int]:
        numbers, epochs = self._locate(range(number, number + 1), epoch)
        return int(numbers[0]), epochs if isinstance(epochs, int) else int(epochs[0])


class CalledBatches:
    """Batches that functions were applied to, whole."""

    def __init__(self, before: BatchesNode, calls: Sequence[Call]) -> None:
        self.length = before.length
        self.before, self._calls, self.number = before, tuple(calls), calls[0].number

    def read(self, number: int, epoch: int, shard: tuple[int, int], slots: SlotPool) -> Rows:
        return call_batches(self.before.read(number, epoch, shard, slots), self._calls, slots.sheet)

    def requests(self, number: int, epoch: int, shard: tuple[int, int]) -> Iterator[Request]:
        """Yield what is asked of the source."""
        return self.before.requests(number, epoch, shard)

    def origins(self, number: int, epoch: int, shard: tuple[int, int]) -> Lineage:
        """Return which source rows the batch holds; where a filter decides, it is run.

        Raises:
            PipelineError: it has to be run, and rows were not compiled to say where they come from.
        """
        filters = [call for call in self._calls if isinstance(call.stage, st.Filter)]
        if not filters:
            return self.before.origins(number, epoch, shard)
        rows = self.read(number, epoch, shard, FreshMemory())
        if rows.origins is None:
            raise PipelineError(
                f"{filters[0].where} decides which rows the batch holds: compile(lineage=True) has it say which"
            )
        return Lineage.none() if rows.surplus else rows.origins


class UncutRows:
    """Batches taken apart into rows: each batch that a row is asked of is computed whole."""

    def __init__(self, before: BatchesNode, cut: CutRows, number: int, reordered: bool) -> None:
        self.before, self._size, self.number = before, cut.size, number
        whole = cut.pads or cut.drops or cut.rows is None or cut.rows % cut.size == 0
        if not whole and reordered:
            raise PipelineError(
                "unbatch() cannot number the rows: a smaller last batch was kept, and batches were reordered or "
                "repeated behind it. Use batch(remainder='drop'), or shuffle and repeat before batch()"
            )
        self.length = before.length if before.length is None else before.length * cut.size
        if not whole and self.length is not None:
            self.length = cut.rows

    def read(self, positions: Positions, epochs: Epochs, slots: SlotPool) -> Rows:
        numbers, which, per_row, wanted = self._wanted(positions, epochs)
        offsets = numbers - which * self._size
        parts: list[tuple[npt.NDArray[np.intp], Rows]] = []
        for epoch, number in wanted:
            chosen = np.nonzero((which == number) & (per_row == epoch))[0]
            parts.append((chosen, self.before.read(number, epoch, (0, 1), slots)))
        ids, inner = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
        items: list[Tree] = [None] * len(numbers)
        for chosen, rows in parts:
            ids[chosen] = rows.ids[offsets[chosen]]
            inner[chosen] = rows.epochs if isinstance(rows.epochs, int) else rows.epochs[offsets[chosen]]
        if not parts:
            return Rows(ids, inner, items=items)
        columns = _picked(parts, offsets, len(numbers))
        if slots.sheet is not None:
            slots.sheet.columns(self.number, columns)
        return Rows(ids, inner, columns=columns)

    def requests(self, positions: Positions, epochs: Epochs) -> Iterator[Request]:
        """Yield what is asked of the source."""
        for epoch, number in self._wanted(positions, epochs)[3]:
            yield from self.before.requests(number, epoch, (0, 1))

    def origins(self, positions: Positions, epochs: Epochs) -> Lineage:
        """Return which source rows they are."""
        numbers, which, per_row, wanted = self._wanted(positions, epochs)
        offsets, places, start = numbers - which * self._size, np.empty(len(numbers), np.int64), 0
        parts: list[Lineage] = []
        for turn, number in wanted:
            chosen = np.nonzero((which == number) & (per_row == turn))[0]
            parts.append(self.before.origins(number, turn, (0, 1)))
            places[chosen] = start + offsets[chosen]
            start += parts[-1].rows
        return Lineage.joined(parts).taken(places)

    def _wanted(self, positions: Positions, epochs: Epochs) -> tuple[Any, Any, Any, list[tuple[int, int]]]:
        """Return the positions, the batch and the epoch of each, and each (epoch, batch) once."""
        numbers = np.asarray(positions, np.int64)
        which = numbers // self._size
        per_row = np.broadcast_to(np.asarray(epochs, np.int64), numbers.shape)
        pairs = np.unique(np.stack([per_row, which]), axis=1).T
        return numbers, which, per_row, [(epoch, number) for epoch, number in pairs.tolist()]


def _picked(parts: list[tuple[npt.NDArray[np.intp], Rows]], offsets: npt.NDArray[np.int64], count: int) -> Tree:
    """Put the wanted rows of several batches together."""
    firsts, treedef = tree_.flatten(parts[0][1].columns)
    merged = [np.empty((count, *leaf.shape[1:]), leaf.dtype) for leaf in firsts]
    for chosen, rows in parts:
        leaves, other = tree_.flatten(rows.columns)
        if other != treedef:
            raise SchemaError(f"unbatch(): batches have different structures, {treedef} and {other}")
        for index, leaf in enumerate(leaves):
            if leaf.dtype != merged[index].dtype or leaf.shape[1:] != merged[index].shape[1:]:
                if leaf.dtype.kind in "US" and leaf.dtype.kind == merged[index].dtype.kind:
                    merged[index] = merged[index].astype(np.result_type(merged[index], leaf))
                else:
                    label = tree_.leaf_label(tree_.paths(treedef)[index])
                    one, two = (LeafSpec(each.dtype, each.shape[1:]) for each in (leaf, merged[index]))
                    raise SchemaError(f"unbatch(): {label} is {one} in one batch and {two} in another")
            merged[index][chosen] = leaf[offsets[chosen]]
    return tree_.unflatten(treedef, merged)


def none_of(rows: Rows) -> Rows:
    """Return no rows, with the columns that these have."""
    columns = tree_.map_leaves(lambda leaf: part(leaf, 0, 0), rows.columns)
    return Rows(rows.ids[:0], 0, columns, origins=None if rows.origins is None else Lineage.none())


def pad_columns(rows: Rows, size: int) -> Rows:
    """Return the rows filled up with zeros to ``size``, with the mask added."""
    have = len(rows.ids)
    mask = np.arange(size) < have
    origins = None if rows.origins is None else rows.origins.padded(size)
    if have == size:
        columns = st.with_mask(rows.columns, mask)
        return Rows(rows.ids, rows.epochs, columns, subs=rows.subs, origins=origins)

    refuse_ragged(rows.columns, "batch(remainder='pad')")

    def filled(leaf: npt.NDArray[Any]) -> npt.NDArray[Any]:
        whole = np.zeros((size, *leaf.shape[1:]), leaf.dtype)
        whole[:have] = leaf
        return whole

    ids = np.full(size, -1, np.int64)
    ids[:have] = rows.ids
    epochs = np.zeros(size, np.int64)  # whatever epoch the rows are of: padding is alike in all
    epochs[:have] = rows.epochs
    subs = None if rows.subs is None else np.concatenate([rows.subs, np.zeros(size - have, np.int64)])
    columns = st.with_mask(tree_.map_leaves(filled, rows.columns), mask)
    return Rows(ids, epochs, columns, subs=subs, origins=origins)
