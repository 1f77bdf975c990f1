"""Nodes that keep what the node before them has computed; all else they ask of it, as of its first epoch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit.caching import (
    Column,
    Leaves,
    Outline,
    Store,
    Taken,
    joined,
    merged,
    of_columns,
    of_items,
    to_columns,
    to_items,
)
from batchkit.errors import PipelineError, StageError
from batchkit.plan.numbered.combining import read_kept
from batchkit.plan.numbered.nodes import BatchesNode, Request, RowsNode, SlotPool
from batchkit.plan.numbered.passes import Passes
from batchkit.plan.numbered.placing import Placed
from batchkit.plan.numbered.stores import Before, LazyStores, store_of
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.lineage import Lineage
from batchkit.plan.rows.recording import SCALAR, naming, recorded_batch, restored_batch
from batchkit.sources.stacking import split_rows
from batchkit.stages.order import Epochs, Positions

__all__ = ["CachedBatches", "CachedRows", "cached_batches", "cached_rows"]


class Form(NamedTuple):
    """How rows come and go: columns, or one tree a row."""

    listed: bool
    """Whether those before may come as one tree a row."""
    by_item: bool
    """Whether those that did are given back so."""


class CachedRows:
    """Rows that are computed once. Their addresses are kept with them, so that what is random behind stays so."""

    def __init__(
        self, before: RowsNode, one: Placed, passes: Passes, form: Form, stores: LazyStores[Store], final: bool
    ) -> None:
        self.length: int | None = before.length
        self.before, self.number = before, one.number
        self._where, self._passes, self._form, self._final = _where(before, one), passes, form, final
        self._store = stores

    def read(self, positions: Positions, epochs: Epochs, slots: SlotPool) -> Rows:
        """Return the rows at ``positions``: the same in all epochs, but at their addresses of ``epochs``."""
        at = np.arange(positions.start, positions.stop) if isinstance(positions, range) else positions
        store = self._store()

        def lease(column: int, rows: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
            return slots.column((self, column), rows, dtype, shape, self._final)

        taken = store.take(at, lease)
        left = None
        if taken.outline is not None and taken.there.all():
            rows = self._restored(taken.outline, taken.leaves)
        else:
            rows, left = self._completed(at, taken, store, slots)
        if left is not None and not isinstance(epochs, int):
            epochs = epochs[left]
        rows.epochs = self._passes.later(rows.epochs, rows.ids, epochs)
        rows.places = left
        if slots.sheet is not None:
            slots.sheet.columns(self.number, rows.columns)
        return rows

    def requests(self, positions: Positions, epochs: Epochs) -> Iterator[Request]:
        """Yield what is asked of the source if none of the rows is there."""
        return self.before.requests(positions, 0)

    def origins(self, positions: Positions, epochs: Epochs) -> Lineage:
        """Return which source rows they are, as of the first epoch."""
        return self.before.origins(positions, 0)

    def _completed(
        self, at: npt.NDArray[np.int64], taken: Taken, store: Store, slots: SlotPool
    ) -> tuple[Rows, npt.NDArray[np.int64] | None]:
        """Compute what is not there, and store it; return all rows, and which are left if some had to be left out."""
        lacking = np.flatnonzero(~taken.there)
        computed, kept = read_kept(self.before, at[lacking], 0, slots)
        places = lacking if kept is None else lacking[kept]
        if not len(places) and len(at):
            if taken.outline is None:
                raise StageError("every row of the batch failed and was left out, so that nothing is left of it")
            return self._restored(taken.outline, taken.leaves), np.flatnonzero(taken.there)
        if not len(at) or (taken.outline is None and not store.accepts):
            return computed, None if kept is None else places
        outline, leaves = self._recorded(computed)
        with naming(self._where):
            store.write(at[places], outline, leaves)
            if taken.outline is None:
                return computed, None if kept is None else places
            outline = merged(taken.outline, outline)
        there = np.flatnonzero(taken.there)
        whole = np.sort(np.concatenate([there, places]))
        where = (np.searchsorted(whole, there), np.searchsorted(whole, places))
        both = [joined(one, other, where) for one, other in zip(taken.leaves, leaves, strict=True)]
        return self._restored(outline, both), None if kept is None else whole

    def _recorded(self, rows: Rows) -> tuple[Outline, Leaves]:
        """Return rows as a store takes them: their addresses, then their leaves."""
        if rows.items is not None or self._form.listed:
            items = split_rows(rows.columns) if rows.items is None else rows.items
            outline, leaves = of_items(items, rows.ids, self._where)
        else:
            outline, leaves = of_columns(rows.columns)
        addresses, columns = [rows.ids], [Column("row", SCALAR, ())]
        if not self._passes.one:
            addresses.append(np.broadcast_to(np.asarray(rows.epochs, np.int64), rows.ids.shape))
            columns.append(Column("epoch", SCALAR, ()))
        whole = dataclasses.replace(outline, columns=(*columns, *outline.columns), addresses=len(columns))
        return whole, [*addresses, *leaves]

    def _restored(self, outline: Outline, leaves: Leaves) -> Rows:
        ids = np.asarray(leaves[0])
        epochs: Any = 0 if self._passes.one else np.asarray(leaves[1])
        if outline.form == "items" and (self._form.by_item or outline.varies):
            return Rows(ids, epochs, items=to_items(outline, leaves))
        return Rows(ids, epochs, columns=to_columns(outline, leaves, ids))


class CachedBatches:
    """Batches that are computed once, by their number; each rank keeps its own.

    Where their rows come from is not kept: where ``traced``, it is asked of what is before, which runs its filters.
    """

    def __init__(
        self, before: BatchesNode, one: Placed, passes: Passes, stores: LazyStores[Store], traced: bool
    ) -> None:
        self.length: int | None = before.length
        self.before, self.number = before, one.number
        self._where, self._passes, self._store = _where(before, one), passes, stores
        self._traced = traced

    def read(self, number: int, epoch: int, shard: tuple[int, int], slots: SlotPool) -> Rows:
        """Return a batch: the same in all epochs, but its rows have their addresses of ``epoch``."""
        at = np.array([number])
        store = self._store(shard)
        taken = store.take(at, lambda column, *kind: slots.column((self, column), *kind))
        if taken.outline is not None:
            rows = restored_batch(taken.outline, taken.leaves)
        else:
            mark = None if slots.guard is None else slots.guard.mark()
            rows = self.before.read(number, 0, shard, slots)
            if store.accepts and (slots.guard is None or slots.guard.mark() == mark):
                with naming(self._where):
                    store.write(at, *recorded_batch(rows))
        rows.epochs = self._passes.later(rows.epochs, rows.ids, epoch)
        if self._traced and rows.origins is None:
            rows.origins = self.before.origins(number, 0, shard)
        if slots.sheet is not None:
            slots.sheet.columns(self.number, rows.columns)
        return rows

    def requests(self, number: int, epoch: int, shard: tuple[int, int]) -> Iterator[Request]:
        """Yield what is asked of the source if the batch is not there."""
        return self.before.requests(number, 0, shard)

    def origins(self, number: int, epoch: int, shard: tuple[int, int]) -> Lineage:
        """Return which source rows the batch holds, as of the first epoch."""
        return self.before.origins(number, 0, shard)


def cached_rows(
    before: RowsNode, one: Placed, made_of: Before, passes: Passes, listed: bool, behind: Sequence[Placed], final: bool
) -> CachedRows:
    """Return the node of a cache of rows, with the stages ``behind`` it.

    ``listed``: rows may come as one tree a row. ``final``: nothing but these stages touches the rows any more.

    Raises:
        PipelineError: the rows before are endless.
    """
    stages = [other.stage for other in behind]
    # What is cut in another way than by batch() may treat rows otherwise than columns.
    takes = next((stage for stage in stages if isinstance(stage, (st.Batch, st.Window, st.Cache))), None)
    touched = any(other.called or isinstance(other.stage, (st.Unbatch, st.Window, st.Cache)) for other in behind)
    form = Form(listed, by_item=not (isinstance(takes, st.Batch) and takes.stacks))
    assert isinstance(one.stage, st.Cache)
    stores = LazyStores(functools.partial(store_of, one.stage, made_of, before.length or 0, _where(before, one)))
    return CachedRows(before, one, passes, form, stores, final and not touched)


def cached_batches(before: BatchesNode, one: Placed, made_of: Before, passes: Passes, traced: bool) -> CachedBatches:
    """Return the node of a cache of batches; ``traced``: they say where their rows come from.

    Raises:
        PipelineError: the batches before are endless.
    """
    assert isinstance(one.stage, st.Cache)
    stores = LazyStores(functools.partial(store_of, one.stage, made_of, before.length or 0, _where(before, one)))
    return CachedBatches(before, one, passes, stores, traced)


def _where(before: RowsNode | BatchesNode, one: Placed) -> str:
    where = f"stage {one.number} {one.stage.label}"
    if before.length is None:
        raise PipelineError(f"{where} cannot keep endless rows: put repeat() behind cache()")
    return where
