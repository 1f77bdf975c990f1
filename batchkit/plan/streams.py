"""The compiled form of a pipeline over a generator: iterators that start anew each epoch.

Only what must happen in order happens here: pulling, counting and cutting rows, and functions
in front of an ``unbatch``. What can be computed anywhere is left to ``Plan.compute``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, SchemaError, SourceError
from batchkit.functions import describe_function
from batchkit.plan.calls import Call, Rows, call_columns, call_rows
from batchkit.plan.nodes import pad_columns
from batchkit.schema import as_leaf
from batchkit.sources import GeneratorSource
from batchkit.sources.stacking import normalise_row, stack_rows
from batchkit.tree import Tree

__all__ = ["CalledStream", "CutStream", "OrderedStream", "SourceStream", "Stream", "UncutStream"]


class Stream(Protocol):
    """Rows one at a time (each a :class:`Rows` of one item), or batches."""

    def iterate(self, epoch: int) -> Iterator[Rows]:
        """Start an epoch."""
        ...


class SourceStream:
    """What the generator yields: rows numbered as they come, or batches with their rows numbered."""

    def __init__(self, source: GeneratorSource) -> None:
        self._source = source
        self._name = f"from_generator({describe_function(source.fn)})"

    def iterate(self, epoch: int) -> Iterator[Rows]:
        iterator = self._source.open()
        try:
            yield from self._batches(iterator, epoch) if self._source.batched else self._rows(iterator, epoch)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def _pulled(self, iterator: Iterator[Any], what: str) -> Iterator[tuple[int, Any]]:
        for number in itertools.count():
            try:
                item = next(iterator)
            except StopIteration:
                return
            except BatchkitError:
                raise
            except Exception as exc:
                raise SourceError(f"{self._name} raised after {number} {what}: {type(exc).__name__}: {exc}") from exc
            yield number, item

    def _rows(self, iterator: Iterator[Any], epoch: int) -> Iterator[Rows]:
        for number, item in self._pulled(iterator, "rows"):
            row = normalise_row(item, f"{self._name}: row {number}")
            # A generator may yield one array again and again, changed: take the values as they are now.
            row = tree_.map_leaves(lambda leaf: leaf.copy() if type(leaf) is np.ndarray else leaf, row)
            yield Rows(np.array([number]), epoch, items=[row])

    def _batches(self, iterator: Iterator[Any], epoch: int) -> Iterator[Rows]:
        first = 0
        for number, item in self._pulled(iterator, "batches"):
            columns = self._columns(item, number)
            count = len(tree_.flatten(columns)[0][0])
            yield Rows(np.arange(first, first + count), epoch, columns=columns)
            first += count

    def _columns(self, item: Any, number: int) -> Tree:
        where = f"{self._name}: batch {number}"
        leaves, treedef = tree_.flatten(item)
        if not leaves:
            raise SchemaError(f"{where} is {item!r}, which has no leaf. Yield a tree of arrays with one leading axis")
        arrays = []
        for path, leaf in zip(tree_.paths(treedef), leaves, strict=True):
            array = as_leaf(leaf, f"{where}: {tree_.leaf_label(path)}")
            if array.ndim == 0:
                raise SchemaError(
                    f"{where}: {tree_.leaf_label(path)} is zero-dimensional. With batched=True each item is a whole batch; "
                    "for single rows leave batched out"
                )
            if arrays and len(array) != len(arrays[0]):
                raise SchemaError(f"{where}: {tree_.leaf_label(path)} has {len(array)} rows, another has {len(arrays[0])}")
            arrays.append(array.copy())
        return tree_.unflatten(treedef, arrays)


class OrderedStream:
    """Fewer rows or batches, or several passes over them."""

    def __init__(self, before: Stream, stage: st.OrderStage) -> None:
        self._before, self._stage = before, stage

    def iterate(self, epoch: int) -> Iterator[Rows]:
        return self._stage.iterate(self._before.iterate, epoch)


class CalledStream:
    """Functions in front of an ``unbatch``, which have to run before what follows can be cut."""

    def __init__(self, before: Stream, calls: Sequence[Call]) -> None:
        self._before, self._calls = before, tuple(calls)

    def iterate(self, epoch: int) -> Iterator[Rows]:
        for rows in self._before.iterate(epoch):
            if rows.items is None:
                rows.columns = call_columns(rows.columns, rows, self._calls)
                yield rows
            else:
                yield call_rows(rows, self._calls)


class CutStream:
    """Rows cut into batches; each rank keeps its slice of the rows."""

    def __init__(self, before: Stream, stage: st.Batch, shard: tuple[int, int], stacks: bool) -> None:
        self._before, self._stage, self._shard, self._stacks = before, stage, shard, stacks

    def iterate(self, epoch: int) -> Iterator[Rows]:
        size, rows = self._stage.size, self._before.iterate(epoch)
        while run := list(itertools.islice(rows, size)):
            if len(run) == size or self._stage.remainder != "drop":
                yield self._cut(run)

    def _cut(self, run: list[Rows]) -> Rows:
        rank, world = self._shard
        cut = self._stage.size if self._stage.remainder == "pad" else len(run)
        mine = run[cut * rank // world : cut * (rank + 1) // world]
        surplus = not mine
        mine = mine or run[:1]
        epochs = np.array([rows.epochs for rows in mine])
        ids = np.concatenate([rows.ids for rows in mine])
        items = [item for rows in mine for item in rows.items or ()]
        if self._stacks:
            whole = Rows(ids, epochs, columns=stack_rows(items, ids))
            return pad_columns(whole, cut) if self._stage.remainder == "pad" else whole
        return Rows(ids, epochs, items=items, surplus=surplus)


class UncutStream:
    """Batches taken apart into rows."""

    def __init__(self, before: Stream) -> None:
        self._before = before

    def iterate(self, epoch: int) -> Iterator[Rows]:
        for rows in self._before.iterate(epoch):
            leaves, treedef = tree_.flatten(rows.columns)
            for index in range(len(rows.ids)):
                row = tree_.unflatten(treedef, [leaf[index] for leaf in leaves])
                yield Rows(rows.ids[index : index + 1], rows.epoch_of(index), items=[row])
