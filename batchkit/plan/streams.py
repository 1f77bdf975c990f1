"""The compiled form of a pipeline over a generator: iterators that start anew each epoch.

Only what must happen in order happens here: pulling, counting and cutting rows, and functions
in front of an ``unbatch``. What can be computed anywhere is left to ``Plan.compute``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, SchemaError, SourceError
from batchkit.functions import describe_function
from batchkit.padding import fresh
from batchkit.plan.calls import Call, Rows, call_columns, call_rows
from batchkit.plan.cutting import cut_rows
from batchkit.plan.nodes import pad_columns
from batchkit.schema import as_leaf
from batchkit.sources import GeneratorSource
from batchkit.sources.stacking import detached, split_rows
from batchkit.tree import Tree

__all__ = [
    "CalledBatchStream",
    "CalledRowStream",
    "CutStream",
    "OrderedStream",
    "SourceStream",
    "Stream",
    "UncutStream",
]


class Row(NamedTuple):
    """One row of a stream and its address."""

    id: int
    epoch: int
    item: Tree


class Stream(Protocol):
    """Rows one at a time (:class:`Row`), or batches (:class:`Rows`)."""

    def iterate(self, epoch: int) -> Iterator[Any]:
        """Start an epoch."""
        ...


class SourceStream:
    """What the generator yields: rows numbered as they come, or batches with their rows numbered."""

    def __init__(self, source: GeneratorSource) -> None:
        self._source = source
        self._name = f"from_generator({describe_function(source.fn)})"

    def iterate(self, epoch: int) -> Iterator[Row | Rows]:
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

    def _rows(self, iterator: Iterator[Any], epoch: int) -> Iterator[Row]:
        for number, item in self._pulled(iterator, "rows"):
            # A generator may yield one array again and again, changed: take the values as they are now.
            yield Row(number, epoch, detached(item, copy=True))

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
        arrays: list[Any] = []
        for path, leaf in zip(tree_.paths(treedef), leaves, strict=True):
            array = as_leaf(leaf, f"{where}: {tree_.leaf_label(path)}")
            if array.ndim == 0:
                raise SchemaError(
                    f"{where}: {tree_.leaf_label(path)} is zero-dimensional. With batched=True each item is a whole "
                    "batch; for single rows leave batched out"
                )
            if arrays and len(array) != len(arrays[0]):
                raise SchemaError(
                    f"{where}: {tree_.leaf_label(path)} has {len(array)} rows, another has {len(arrays[0])}"
                )
            arrays.append(array.copy())
        return tree_.unflatten(treedef, arrays)


class OrderedStream:
    """Fewer rows or batches, or several passes over them."""

    def __init__(self, before: Stream, stage: st.OrderStage) -> None:
        self._before, self._stage = before, stage

    def iterate(self, epoch: int) -> Iterator[Any]:
        return self._stage.iterate(self._before.iterate, epoch)


class CalledRowStream:
    """Functions on rows in front of an ``unbatch``, which have to run before what follows can be cut."""

    def __init__(self, before: Stream, calls: Sequence[Call]) -> None:
        self._before, self._calls = before, tuple(calls)

    def iterate(self, epoch: int) -> Iterator[Row]:
        for row in self._before.iterate(epoch):
            called = call_rows(Rows(np.array([row.id]), row.epoch, items=[row.item]), self._calls)
            assert called.items is not None
            yield Row(row.id, row.epoch, called.items[0])


class CalledBatchStream:
    """The same for functions on batches."""

    def __init__(self, before: Stream, calls: Sequence[Call]) -> None:
        self._before, self._calls = before, tuple(calls)

    def iterate(self, epoch: int) -> Iterator[Rows]:
        for rows in self._before.iterate(epoch):
            rows.columns = call_columns(rows.columns, rows, self._calls)
            yield rows


class CutStream:
    """Rows cut into batches; each rank keeps its slice of the rows."""

    def __init__(self, before: Stream, stage: st.Batch, shard: tuple[int, int], stacks: bool) -> None:
        self._before, self._stage, self._shard, self._stacks = before, stage, shard, stacks

    def iterate(self, epoch: int) -> Iterator[Rows]:
        size, rows = self._stage.size, self._before.iterate(epoch)
        while run := list(itertools.islice(rows, size)):
            if len(run) == size or self._stage.remainder != "drop":
                yield self._cut(run)

    def _cut(self, run: list[Row]) -> Rows:
        rank, world = self._shard
        cut = self._stage.size if self._stage.remainder == "pad" else len(run)
        mine = run[cut * rank // world : cut * (rank + 1) // world]
        surplus = not mine
        numbers, turns, items = zip(*(mine or run[:1]), strict=True)
        ids = np.array(numbers)
        epochs = turns[0] if turns[0] == turns[-1] else np.array(turns)  # epochs only grow
        if self._stacks:
            whole = cut_rows(self._stage, Rows(ids, epochs, items=list(items)), "", fresh)
            return pad_columns(whole, cut) if self._stage.remainder == "pad" else whole
        return Rows(ids, epochs, items=list(items), surplus=surplus)


class UncutStream:
    """Batches taken apart into rows."""

    def __init__(self, before: Stream) -> None:
        self._before = before

    def iterate(self, epoch: int) -> Iterator[Row]:
        for rows in self._before.iterate(epoch):
            for index, item in enumerate(split_rows(rows.columns)):
                yield Row(int(rows.ids[index]), rows.epoch_of(index), item)
