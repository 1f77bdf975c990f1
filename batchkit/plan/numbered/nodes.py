"""The compiled form of an indexed pipeline: nodes that read any rows, or any batch, by position.

Each node asks the one before it; positions are mapped down to row numbers before anything is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, SchemaError, SourceError
from batchkit.metering import SOURCE, Sheet
from batchkit.plan.rows.calls import Call, Rows, call_rows, chosen_rows
from batchkit.plan.rows.cutting import cut_rows
from batchkit.plan.rows.lineage import Lineage
from batchkit.plan.rows.rowwise import window_padded
from batchkit.ragged import refuse_ragged
from batchkit.skipping import Guard
from batchkit.sources import ArraySource
from batchkit.sources.source import checked_schema
from batchkit.stages.order import Epochs, Locator, Positions
from batchkit.tree import Tree

__all__ = [
    "BatchesNode",
    "CalledRows",
    "OrderedRows",
    "Request",
    "RowsNode",
    "SlotPool",
    "SourceRows",
    "WindowRows",
    "only_filled_up",
    "only_stacked",
]


class SlotPool(Protocol):
    """Where a node may write to; what :class:`batchkit.buffers.Slots` offers."""

    prepared: dict[Any, Any]
    """What nodes keep with the pool."""
    guard: Guard | None
    """What notes rows that are left out; ``None`` where a row that fails is an error."""
    sheet: Sheet | None
    """What measures the step; ``None`` for a step that is not measured."""

    def lessor(
        self, key: Any, dtype: np.dtype[Any], row_shape: tuple[int, ...], final: bool = False
    ) -> Callable[[int], npt.NDArray[Any]]: ...

    def column(
        self, key: Any, rows: int, dtype: np.dtype[Any], row_shape: tuple[int, ...], final: bool = False
    ) -> npt.NDArray[Any]: ...

    def host_dtype(self, leaf: str, dtype: np.dtype[Any]) -> np.dtype[Any]: ...

    def narrow_into(self, leaf: str, column: npt.NDArray[Any], out: npt.NDArray[Any]) -> None: ...

    def ready(self, leaf: str, column: npt.NDArray[Any], key: Any) -> npt.NDArray[Any]: ...


class Request(NamedTuple):
    """Rows that a source is asked for in one call."""

    source: int
    """Which of the pipeline's sources, as :attr:`Pipeline.sources <batchkit.Pipeline.sources>` lists them."""
    rows: npt.NDArray[np.int64]


class RowsNode(Protocol):
    """Rows by position. Every node but the source's has the one ``before`` it."""

    length: int | None
    number: int
    """The stage that it is, as the report counts them."""

    def read(self, positions: Positions, epochs: Epochs, slots: SlotPool) -> Rows:
        """Return the rows at ``positions`` (int64, or a range) of ``epochs`` (one for all, or one each)."""
        ...

    def requests(self, positions: Positions, epochs: Epochs) -> Iterator[Request]:
        """Yield the row numbers that :meth:`read` would have which source read, call by call."""
        ...

    def origins(self, positions: Positions, epochs: Epochs) -> Lineage:
        """Return which source rows :meth:`read` would return; reads nothing."""
        ...


class BatchesNode(Protocol):
    """Batches by number."""

    length: int | None
    number: int

    def read(self, number: int, epoch: int, shard: tuple[int, int], slots: SlotPool) -> Rows:
        """Return rank ``shard[0]``'s rows of a batch, as columns."""
        ...

    def requests(self, number: int, epoch: int, shard: tuple[int, int]) -> Iterator[Request]:
        """Yield the row numbers that :meth:`read` would have which source read, call by call."""
        ...

    def origins(self, number: int, epoch: int, shard: tuple[int, int]) -> Lineage:
        """Return which source rows the batch holds; reads nothing, unless a filter has to look.

        Raises:
            PipelineError: it has to, and the batches were not compiled to say where their rows come from.
        """
        ...


class _Memory(NamedTuple):
    """Where a source's leaves go: what leases a column of so many rows, and which leaves are narrowed."""

    leases: list[Callable[[int], npt.NDArray[Any]]]
    narrowed: list[int]
    takes: list[Callable[..., Any]] | None
    """``leaf.take`` for every leaf, where the source is nothing but arrays that can be taken from."""


class SourceRows:
    """The source itself. Gathers into slots; narrows meanwhile if it is the last to touch the rows."""

    number = SOURCE
    BLOCK_BYTES = 1 << 18  # a scratch that stays in the second-level cache while it is narrowed

    def __init__(self, source: Any, final: bool, whole: bool, place: int = 0) -> None:
        self.length: int | None = len(source)
        self.source = source
        self.place = place
        self._final = final
        self._whole = whole  # functions are given the columns as they are, and may hand them on
        self._by_row = hasattr(source, "read")
        self._handed = getattr(source, "handed", None)
        self.views = False
        """Whether the rows are only filled up, which takes no copy of them before."""
        self._reader: Callable[[npt.NDArray[np.int64]], list[Tree]] = getattr(source, "read", _no_rows)
        if not self._by_row:
            schema = checked_schema(source)
            specs, self._treedef = tree_.flatten(schema)
            self._unflatten = tree_.joiner(schema)
            self._specs = [
                (path, spec.dtype, spec.shape) for path, spec in zip(tree_.paths(self._treedef), specs, strict=True)
            ]

    def lend(self) -> None:
        """Take rows that may be the source's own from now on, where it has a way to lend them."""
        self._reader = getattr(self.source, "lent", self._reader)

    def read(self, positions: Positions, epochs: Epochs, slots: SlotPool) -> Rows:
        ids = np.arange(positions.start, positions.stop) if type(positions) is range else positions
        try:
            if self._by_row:
                rows = self._read(Rows(ids, epochs), slots.guard)
            elif self._handed is not None:
                rows = Rows(ids, epochs, self.source.views(ids) if self.views else self._handed(ids))
            else:
                rows = Rows(ids, epochs, self._unflatten(self._gather(positions, ids, slots)))
            if slots.sheet is not None:
                items = rows.items
                slots.sheet.columns(SOURCE, items[0] if items else rows.columns, len(items) if items else 1)
            return rows
        except BatchkitError:
            raise
        except Exception as exc:
            name = getattr(self.source, "kind", type(self.source).__name__)
            raise SourceError(f"{name}: reading rows {_few(ids)} failed: {type(exc).__name__}: {exc}") from exc

    def _read(self, rows: Rows, guard: Guard | None) -> Rows:
        """Read row by row; with a guard, rows that cannot be read are left out."""
        try:
            rows.items = self._reader(rows.ids)
            return rows
        except Exception:
            if guard is None:
                raise
        places, items = [], []
        for place in range(len(rows.ids)):
            try:
                items += self.source.read(rows.ids[place : place + 1])  # not lent: the next row may be filled into it
                places.append(place)
            except Exception as exc:
                guard.note(int(rows.ids[place]), rows.epoch_of(place), "the source", exc)
        found = chosen_rows(rows, places, items)
        found.places = np.array(places, np.int64)
        return found

    def whole(self, positions: Positions, epochs: Epochs) -> tuple[Tree, npt.NDArray[np.int64]] | None:
        """Return all columns and the rows of them at the positions; ``None`` if the source is not in memory."""
        columns = getattr(self.source, "columns", None)
        if columns is None:
            return None
        rows = np.asarray(positions, np.int64)
        self.source.expect(rows)
        return columns, rows

    def requests(self, positions: Positions, epochs: Epochs) -> Iterator[Request]:
        """Yield what is asked of the source."""
        rows = np.arange(positions.start, positions.stop) if isinstance(positions, range) else positions
        yield Request(self.place, rows)

    def origins(self, positions: Positions, epochs: Epochs) -> Lineage:
        """Return which source rows they are."""
        ids = np.arange(positions.start, positions.stop) if isinstance(positions, range) else positions
        return Lineage.of(ids, epochs).numbered(self.place)

    def _gather(self, positions: Positions, ids: npt.NDArray[np.int64], slots: SlotPool) -> list[npt.NDArray[Any]]:
        memory = slots.prepared.get(self) or self._prepare(slots)
        rows = len(ids)
        columns = [lease(rows) for lease in memory.leases]
        if memory.takes is not None and type(positions) is range:  # rows in their own order: one piece of memory
            for leaf, column in zip(self.source.leaves, columns, strict=True):
                column[...] = leaf[positions.start : positions.stop]
        elif memory.takes is not None:
            for take, column in zip(memory.takes, columns):  # noqa: B905  # once a batch: strict costs
                take(ids, 0, column, "clip")  # mode="raise" would go through a buffer
        elif memory.narrowed:
            self._fill_narrowed(ids, columns, memory.narrowed, slots)
        else:
            self._fill(ids, columns)
        return columns

    def _prepare(self, slots: SlotPool) -> _Memory:
        """Look once for where each leaf is gathered to; a pool and a source never change their mind."""
        leases, narrowed = [], []
        for index, (path, dtype, shape) in enumerate(self._specs):
            host = slots.host_dtype(path, dtype) if self._final else dtype
            leases.append(slots.lessor(index, host, shape, self._final or self._whole))
            if host != dtype:
                narrowed.append(index)
        takes = self.source.takes if isinstance(self.source, ArraySource) and not narrowed else None
        slots.prepared[self] = memory = _Memory(leases, narrowed, takes)
        return memory

    def _fill(self, ids: npt.NDArray[np.int64], columns: list[npt.NDArray[Any]]) -> None:
        if isinstance(self.source, ArraySource):
            self.source.gather_leaves(ids, columns)
            return
        out = tree_.unflatten(self._treedef, columns)
        made = self.source.gather(ids, out)
        if made is out:
            return
        leaves, treedef = tree_.flatten(made)
        if treedef != self._treedef:
            raise SchemaError(f"gather() returned the structure {treedef}, but the schema says {self._treedef}")
        for (path, dtype, _), leaf, column in zip(self._specs, leaves, columns, strict=True):
            if leaf is not column:
                array = np.asarray(leaf)
                if array.shape != column.shape or array.dtype != dtype:
                    raise SchemaError(
                        f"gather() returned {array.dtype.name}{list(array.shape)} for {tree_.leaf_label(path)}, "
                        f"but the schema says {dtype.name}{list(column.shape)}"
                    )
                column[...] = array

    def _fill_narrowed(
        self, ids: npt.NDArray[np.int64], columns: list[npt.NDArray[Any]], narrowed: list[int], slots: SlotPool
    ) -> None:
        """Gather in blocks of rows small enough that a wide value is narrowed while it is in the cache."""
        row_bytes = max(self._specs[i][1].itemsize * int(np.prod(self._specs[i][2], dtype=np.int64)) for i in narrowed)
        block = max(self.BLOCK_BYTES // max(row_bytes, 1), 1)
        scratch = {
            i: slots.column((i, "wide"), min(block, len(ids)), self._specs[i][1], self._specs[i][2]) for i in narrowed
        }
        for start in range(0, len(ids), block):
            part = ids[start : start + block]
            places = [
                scratch[i][: len(part)] if i in scratch else column[start : start + len(part)]
                for i, column in enumerate(columns)
            ]
            self._fill(part, places)
            for i in narrowed:
                slots.narrow_into(self._specs[i][0], places[i], columns[i][start : start + len(part)])


def _no_rows(ids: npt.NDArray[np.int64]) -> list[Tree]:
    raise TypeError("this source is not read row by row")


def only_filled_up(node: Any) -> None:
    """Have a source give views of its rows, where nothing but an order comes before they are filled up."""
    while isinstance(node, OrderedRows):
        node = node.before
    if isinstance(node, SourceRows) and hasattr(node.source, "views"):
        node.views = True


def only_stacked(node: Any) -> None:
    """Have a source lend its rows, where nothing but an order comes before they are made columns."""
    while isinstance(node, OrderedRows):
        node = node.before
    if isinstance(node, SourceRows):
        node.lend()


class OrderedRows:
    """Rows in another order, or fewer, or several times."""

    def __init__(self, before: RowsNode, stage: st.OrderStage, number: int, ordinal: int) -> None:
        self.length = stage.length(before.length)
        self.before, self.number = before, number
        self._locate: Locator = stage.locator(before.length, ordinal)

    def read(self, positions: Positions, epochs: Epochs, slots: SlotPool) -> Rows:
        located = self._locate(positions, epochs)
        if slots.sheet is not None:
            slots.sheet.lap(self.number)
        return self.before.read(*located, slots)

    def whole(self, positions: Positions, epochs: Epochs) -> tuple[Tree, npt.NDArray[np.int64]] | None:
        """Return what the node before returns for the rows before."""
        whole = getattr(self.before, "whole", None)
        found: tuple[Tree, npt.NDArray[np.int64]] | None = None
        if whole is not None:
            found = whole(*self._locate(positions, epochs))
        return found

    def requests(self, positions: Positions, epochs: Epochs) -> Iterator[Request]:
        """Yield what is asked of the source."""
        return self.before.requests(*self._locate(positions, epochs))

    def origins(self, positions: Positions, epochs: Epochs) -> Lineage:
        """Return which source rows they are."""
        return self.before.origins(*self._locate(positions, epochs))


class CalledRows:
    """Rows that functions were applied to, one by one."""

    def __init__(self, before: RowsNode, calls: Sequence[Call]) -> None:
        self.length = before.length
        self.before, self._calls, self.number = before, tuple(calls), calls[0].number

    def read(self, positions: Positions, epochs: Epochs, slots: SlotPool) -> Rows:
        rows = self.before.read(positions, epochs, slots)
        if slots.guard is not None and rows.places is None and len(rows) == len(positions):
            rows.places = np.arange(len(rows))  # which of those asked for they are, where some are left out now
        return call_rows(rows, self._calls, slots.guard, slots.sheet)

    def requests(self, positions: Positions, epochs: Epochs) -> Iterator[Request]:
        """Yield what is asked of the source."""
        return self.before.requests(positions, epochs)

    def origins(self, positions: Positions, epochs: Epochs) -> Lineage:
        """Return which source rows they are."""
        return self.before.origins(positions, epochs)


class WindowRows:
    """Rows each of which is a run of rows."""

    def __init__(self, before: RowsNode, stage: st.Window, number: int, after: str) -> None:
        if before.length is None and stage.remainder != "drop":
            stage = dataclasses.replace(stage, remainder="drop")  # there is no end that could cut a window short
        self.length = None if before.length is None else stage.windows(before.length)
        self.before, self.number, self._stage, self._after = before, number, stage, after

    def read(self, positions: Positions, epochs: Epochs, slots: SlotPool) -> Rows:
        starts, counts, wanted, per_row = self._wanted(positions, epochs)
        rows = self.before.read(wanted, per_row, slots)
        firsts = np.cumsum(counts) - counts
        columns: Tree = None
        items: list[Tree] | None = None
        stage, length = self._stage, self._stage.length
        if rows.items is None and counts.min(initial=length) == length and stage.remainder != "pad":
            refuse_ragged(rows.columns, "window()")
            columns = tree_.map_leaves(lambda leaf: leaf.reshape(len(starts), length, *leaf.shape[1:]), rows.columns)
        else:
            items = []
            for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
                window = cut_rows(_STACK, rows.part(first, first + count), self._after, slots.column).columns
                items.append(window_padded(window, stage, count))
        chosen = rows.epochs if isinstance(rows.epochs, int) else rows.epochs[firsts]
        if slots.sheet is not None:
            slots.sheet.columns(self.number, columns if items is None else None)
        return Rows(rows.ids[firsts], chosen, columns, items)

    def origins(self, positions: Positions, epochs: Epochs) -> Lineage:
        """Return the source rows, in the order of the windows."""
        _, counts, wanted, per_row = self._wanted(positions, epochs)
        return self.before.origins(wanted, per_row).grouped(counts)

    def requests(self, positions: Positions, epochs: Epochs) -> Iterator[Request]:
        """Yield what is asked of the source."""
        _, _, wanted, per_row = self._wanted(positions, epochs)
        return self.before.requests(wanted, per_row)

    def _wanted(self, positions: Positions, epochs: Epochs) -> tuple[Any, Any, npt.NDArray[np.int64], Epochs]:
        """Return where each window begins, how long it is, and the positions and epochs of all their rows."""
        starts = np.asarray(positions, np.int64) * self._stage.step
        counts = np.full(len(starts), self._stage.length, np.int64)
        if self.before.length is not None:
            counts = np.minimum(counts, self.before.length - starts)
        ends = np.cumsum(counts)
        wanted = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
        return starts, counts, wanted, epochs if isinstance(epochs, int) else np.repeat(epochs, counts)


_STACK = st.Batch(1)


def _few(ids: npt.NDArray[np.int64]) -> str:
    return f"[{', '.join(map(str, ids[:8].tolist()))}{', ...' if len(ids) > 8 else ''}]"
