"""A generator as a flow: its rows, or batches, numbered as they come."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from batchkit import tree as tree_
from batchkit.errors import BatchkitError, SchemaError, SourceError, StateError
from batchkit.functions import describe_function
from batchkit.plan.ordered.walks import Cut, Feeds, State, Walk
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.lineage import Lineage
from batchkit.schema import as_leaf
from batchkit.sources import GeneratorSource
from batchkit.sources.stacking import detached
from batchkit.tree import Tree

__all__ = ["StreamFlow"]


class StreamFlow:
    """What the generator yields: rows, or where it is batched, batches. Where ``traced``, rows say their numbers.

    State: how many items were pulled, and what the iterator's own ``state_dict()`` returned if it has one and
    ``load_state_dict()`` besides; without it going on means pulling as many items again.
    """

    def __init__(self, source: GeneratorSource, traced: bool) -> None:
        self.source, self.batched, self.traced = source, source.batched, traced
        self.name = f"from_generator({describe_function(source.fn)})"

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Batches(self, epoch, state) if self.batched else _Rows(self, epoch, state)


class _Stream:
    def __init__(self, flow: StreamFlow, epoch: int, state: State) -> None:
        self._flow, self._epoch = flow, epoch
        items, row, own = state or (0, 0, None)
        self._items: int = items
        self._row: int = row
        self._own = None if own is None else own["state"]
        self._replay = self._items
        self._iterator: Iterator[Any] | None = None
        self._stateful = False

    def _open(self) -> Iterator[Any]:
        self._iterator = iterator = self._flow.source.open()
        self._stateful = hasattr(iterator, "state_dict") and hasattr(iterator, "load_state_dict")
        if self._own is not None:
            if not self._stateful:
                raise StateError(
                    f"{self._flow.name}: the state is of an iterator with load_state_dict(), which it lacks"
                )
            self._guarded("load_state_dict()", lambda: iterator.load_state_dict(self._own))  # type: ignore[attr-defined]
            self._replay = 0
        for number in range(self._replay):
            if self._pulled(number) is _END:
                raise StateError(
                    f"{self._flow.name}: the state is behind item {self._replay}, but now there are only {number}: "
                    "the generator yields something else than when the state was taken"
                )
        return iterator

    def _next(self) -> Any:
        """Return the next item, or ``_END``."""
        if self._iterator is None:
            self._open()
        item = self._pulled(self._items)
        if item is not _END:
            self._items += 1
            if self._stateful:
                own = self._guarded("state_dict()", self._iterator.state_dict)  # type: ignore[union-attr]
                self._own = copy.deepcopy(own)  # it may be the very dict that the iterator goes on with
        return item

    def _pulled(self, number: int) -> Any:
        assert self._iterator is not None
        try:
            return next(self._iterator)
        except StopIteration:
            return _END
        except BatchkitError:
            raise
        except Exception as exc:
            what = "batches" if self._flow.batched else "rows"
            raise SourceError(f"{self._flow.name} raised after {number} {what}: {type(exc).__name__}: {exc}") from exc

    def _guarded(self, what: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as exc:
            raise SourceError(f"{self._flow.name}: its {what} raised {type(exc).__name__}: {exc}") from exc

    def _numbered(self, first: int, count: int, columns: Tree = None, items: list[Any] | None = None) -> Rows:
        """Return rows with their numbers."""
        ids = np.arange(first, first + count)
        origins = Lineage.of(ids, self._epoch) if self._flow.traced else None
        return Rows(ids, self._epoch, columns, items, origins=origins)

    def state(self) -> State:
        return (self._items, self._row, None if self._own is None else {"state": self._own})

    def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


_END = object()


class _Rows(_Stream):
    def pull(self, most: int) -> Rows | None:
        first, items = self._items, []
        for _ in range(most):
            item = self._next()
            if item is _END:
                break
            # A generator may yield one array again and again, changed: take the values as they are now.
            items.append(detached(item, copy=True))
        if not items:
            return None
        return self._numbered(first, len(items), items=items)


class _Batches(_Stream):
    def pull(self, most: int) -> Cut | None:
        number, item = self._items, self._next()
        if item is _END:
            return None
        columns = self._columns(item, number)
        first, count = self._row, len(tree_.flatten(columns)[0][0])
        self._row += count
        return Cut(self._numbered(first, count, columns))

    def _columns(self, item: Any, number: int) -> Tree:
        where = f"{self._flow.name}: batch {number}"
        leaves, treedef = tree_.flatten(tree_.mapped(item))
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
