"""The compiled form of a combination: nodes that read any rows of several parts by position.

Row ids tell parts apart, since random stages behind a combination draw by (epoch, id). In a concat, interleave or mix
the ids of a part are raised by the number of ids that the parts before it can have. Where one of them has no bound
(it holds an endless zip), each id becomes ``id * parts + part`` instead. In a zip the id is the position.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import PipelineError, SchemaError, StageError
from batchkit.metering import SOURCE
from batchkit.plan.numbered.nodes import Request, RowsNode, SlotPool
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.lineage import Lineage
from batchkit.plan.rows.scattering import Scattered, scattered_rows
from batchkit.schema import common_schema
from batchkit.sources import Combination, Zip
from batchkit.sources.stacking import split_rows
from batchkit.stages.order import Epochs, Positions, pass_epochs
from batchkit.tree import Tree

__all__ = ["PartRows", "PartedRows", "ZipRows", "known_schema", "read_kept", "read_places", "source_schema"]

I64: TypeAlias = "npt.NDArray[np.int64]"


class PartRows(NamedTuple):
    """The rows of one part, and what is known of their ids."""

    name: str
    node: RowsNode
    ids_below: int | None
    """What every id is smaller than; ``None``: there is no bound."""


class _Share(NamedTuple):
    """What one part is asked for, and where its rows go."""

    part: int
    places: I64
    positions: Positions
    epochs: Epochs


class PartedRows:
    """Each row from one of several parts: one after the other, in turns, or mixed."""

    number = SOURCE

    def __init__(self, source: Combination, parts: Sequence[PartRows], whole: bool) -> None:
        self._where, self._restarts, self._parts, self._whole = f"{source.kind}()", source.restarts, list(parts), whole
        self._lengths = [part.node.length for part in parts]
        self._order = source.order(self._lengths)
        self.length = self._order.length
        bounds = [part.ids_below for part in parts]
        known = [bound for bound in bounds if bound is not None]
        self.ids_below = sum(known) if len(known) == len(bounds) else None
        self._shifts = list(itertools.accumulate(known[:-1], initial=0)) if self.ids_below is not None else None

    def read(self, positions: Positions, epochs: Epochs, slots: SlotPool) -> Rows:
        shares, count = self._shares(positions, epochs), len(positions)
        if slots.sheet is not None:
            slots.sheet.lap(SOURCE, calls=0)
        found = []
        for share in shares:
            part = self._parts[share.part]
            rows, kept = read_kept(part.node, share.positions, share.epochs, slots)
            rows.ids = self._ids(share.part, rows.ids)
            if len(rows.ids):
                found.append(Scattered(part.name, share.places if kept is None else share.places[kept], rows))
        if not found and count:
            raise StageError("every row of the batch failed and was left out, so that nothing is left of it")
        if not found:
            return Rows(np.empty(0, np.int64), 0, items=[])
        if len(found) == 1:  # its places rise: they are in order
            found[0].rows.places = found[0].places
            return found[0].rows
        joined = self._joined(found, slots)
        if slots.sheet is not None:
            slots.sheet.lap(SOURCE, calls=0)
        return joined

    def requests(self, positions: Positions, epochs: Epochs) -> Iterator[Request]:
        """Yield what is asked of the sources."""
        for share in self._shares(positions, epochs):
            yield from self._parts[share.part].node.requests(share.positions, share.epochs)

    def origins(self, positions: Positions, epochs: Epochs) -> Lineage:
        """Return which rows of which sources they are."""
        shares = self._shares(positions, epochs)
        if not shares:
            return Lineage.none()
        found = Lineage.joined([self._parts[one.part].node.origins(one.positions, one.epochs) for one in shares])
        return found.taken(np.argsort(np.concatenate([one.places for one in shares])))

    def _shares(self, positions: Positions, epochs: Epochs) -> list[_Share]:
        """Return what each part is asked for, each part once."""
        run = isinstance(positions, range)
        numbers = np.arange(positions.start, positions.stop) if isinstance(positions, range) else positions
        part, index = self._order.locate(numbers)
        shares = []
        for which in np.unique(part).tolist():
            places = np.flatnonzero(part == which)
            inner: Positions = index[places]
            if run:  # of rows in order each part is asked for rows in order
                inner = range(int(inner[0]), int(inner[-1]) + 1)
            turns = epochs if isinstance(epochs, int) else epochs[places]
            shares.append(_Share(which, places, *self._passes(which, inner, turns)))
        return shares

    def _passes(self, part: int, index: Positions, epochs: Epochs) -> tuple[Positions, Epochs]:
        """Return where in which pass the rows of a part are; each pass is an epoch of the part."""
        length = self._lengths[part]
        if not self.restarts(part) or length is None:
            return index, epochs
        if isinstance(index, range) and index.start // length == (index.stop - 1) // length:
            turn = index.start // length
            inner = range(index.start - turn * length, index.stop - turn * length)
            return inner, pass_epochs(epochs, turn)
        turns, places = np.divmod(np.asarray(index, np.int64), length)
        return places, pass_epochs(epochs, turns)

    def restarts(self, part: int) -> bool:
        """Whether a part starts again when it has ended: each time is a pass over it."""
        return self._restarts and self._lengths[part] is not None

    def part_of(self, ids: I64) -> tuple[I64, I64]:
        """Return which part each of some ids is of, and the id there."""
        if self._shifts is None:
            inner, part = np.divmod(ids, len(self._parts))
            return part, inner
        shifts = np.array(self._shifts)
        part = np.searchsorted(shifts, ids, side="right") - 1
        return part, ids - shifts[part]

    def _ids(self, part: int, ids: I64) -> I64:
        if self._shifts is None:
            raised = ids * len(self._parts) + part
        elif not self._shifts[part]:
            return ids
        else:
            raised = ids + self._shifts[part]
        return np.where(ids < 0, ids, raised)  # rows that only fill a batch up have none

    def _joined(self, found: list[Scattered], slots: SlotPool) -> Rows:
        count = sum(len(part.rows.ids) for part in found)
        kept = np.sort(np.concatenate([part.places for part in found]))
        found = [part._replace(places=np.searchsorted(kept, part.places)) for part in found]
        ids = np.empty(count, np.int64)
        turns = [part.rows.epochs for part in found]
        epochs: Epochs = turns[0]
        if any(not isinstance(turn, int) or turn != turns[0] for turn in turns):
            epochs = np.empty(count, np.int64)
        for part in found:
            ids[part.places] = part.rows.ids
            if not isinstance(epochs, int):
                epochs[part.places] = part.rows.epochs

        def lease(leaf: int, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> npt.NDArray[Any]:
            return slots.column(("parts", leaf), count, dtype, row_shape, self._whole)

        columns, items = scattered_rows(found, count, lease, self._where)
        return Rows(ids, epochs, columns=columns, items=items, places=kept)


class ZipRows:
    """Row ``i`` of every part, side by side."""

    number = SOURCE

    def __init__(self, source: Zip, parts: Sequence[PartRows]) -> None:
        self._parts, self._treedef = [part.node for part in parts], source.treedef
        lengths = [part.node.length for part in parts]
        if source.stop == "error" and len(set(lengths)) > 1:
            shown = ", ".join(
                f"{part.name}: {'endless' if part.node.length is None else part.node.length}" for part in parts
            )
            raise PipelineError(
                f"zip(): the parts have unequal numbers of rows ({shown}). Use stop='shortest' to end with the "
                "shortest, or take() as many of each"
            )
        self.length = min((length for length in lengths if length is not None), default=None)
        self.ids_below = self.length

    def read(self, positions: Positions, epochs: Epochs, slots: SlotPool) -> Rows:
        ids = np.arange(positions.start, positions.stop) if isinstance(positions, range) else positions
        read = [read_kept(part, positions, epochs, slots) for part in self._parts]
        parts = [rows for rows, _ in read]
        if any(kept is not None for _, kept in read):  # a row is left out where one of its parts is
            whole = np.arange(len(ids))
            kepts = [whole if kept is None else kept for _, kept in read]
            common = whole[np.all([np.isin(whole, kept) for kept in kepts], axis=0)]
            if not len(common):
                raise StageError("every row of the batch failed and was left out, so that nothing is left of it")
            rows = []
            for part, kept in zip(parts, kepts, strict=True):
                items = _items(part)
                rows.append([items[place] for place in np.searchsorted(kept, common).tolist()])
            epochs = epochs if isinstance(epochs, int) else epochs[common]
            return Rows(ids[common], epochs, items=self._side_by_side(rows))
        if all(part.items is None for part in parts):
            columns = tree_.unflatten(self._treedef, [part.columns for part in parts])
            return Rows(ids, epochs, columns=columns)
        zipped = Rows(ids, epochs, items=self._side_by_side([_items(part) for part in parts]))
        if slots.sheet is not None:
            slots.sheet.lap(SOURCE, calls=0)
        return zipped

    def origins(self, positions: Positions, epochs: Epochs) -> Lineage:
        """Return which rows of which sources they are."""
        return Lineage.merged([part.origins(positions, epochs) for part in self._parts])

    def _side_by_side(self, rows: list[list[Tree]]) -> list[Tree]:
        return [tree_.unflatten(self._treedef, each) for each in zip(*rows, strict=True)]

    def requests(self, positions: Positions, epochs: Epochs) -> Iterator[Request]:
        """Yield what is asked of the sources."""
        for part in self._parts:
            yield from part.requests(positions, epochs)


def _items(rows: Rows) -> list[Tree]:
    return split_rows(rows.columns) if rows.items is None else rows.items


def read_kept(node: RowsNode, positions: Positions, epochs: Epochs, slots: SlotPool) -> tuple[Rows, I64 | None]:
    """Read rows; where a guard leaves some out, return besides which of those asked for these are.

    Then each row is read again on its own, since the rows that came do not say where one is missing.
    """
    guard = slots.guard
    if guard is None:
        return node.read(positions, epochs, slots), None
    mark = guard.mark()
    try:
        rows = node.read(positions, epochs, slots)
        if guard.mark() == mark:
            return rows, None
    except StageError:
        if guard.mark() == mark:
            raise
    guard.rewind(mark)
    ones, kept = [], []
    numbers = np.asarray(positions, np.int64)
    for place in range(len(numbers)):
        mark, here = guard.mark(), slice(place, place + 1)
        try:
            one = node.read(numbers[here], epochs if isinstance(epochs, int) else epochs[here], slots)
        except StageError:
            if guard.mark() == mark:
                raise
        else:
            ones.append(one)
            kept.append(place)
    ids = np.concatenate([np.empty(0, np.int64), *(one.ids for one in ones)])
    turns = np.array([one.epoch_of(0) for one in ones], np.int64)
    return Rows(ids, turns, items=[item for one in ones for item in _items(one)]), np.array(kept, np.int64)


def read_places(node: RowsNode, given: Rows, slots: SlotPool) -> Rows:
    """Return rows of which only the places are known so far; they have the origins that these have.

    Where a guard leaves some out, their own places are which of those given they are.
    """
    assert given.places is not None
    guard = slots.guard
    mark = 0 if guard is None else guard.mark()
    rows = node.read(given.places, given.epochs, slots)
    if guard is not None and rows.places is None and len(rows) < len(given):
        guard.rewind(mark)
        rows, rows.places = read_kept(node, given.places, given.epochs, slots)
    if given.origins is not None:
        rows.origins = given.origins if rows.places is None else given.origins.taken(rows.places)
    return rows


def known_schema(source: Any, stages: Sequence[st.Stage]) -> Tree | None:
    """Return the schema of a row behind all stages if it is known without computing one, else ``None``.

    Raises:
        SchemaError: parts of a combination differ in what is known of them; a stage names a leaf that is not there.
    """
    schema = source_schema(source)
    for stage in stages if schema is not None else ():
        if type(stage) in (st.Select, st.Drop, st.Rename, st.Cast):
            schema = stage.apply(schema)  # type: ignore[attr-defined]
        elif not isinstance(stage, (st.OrderStage, st.Unbatch, st.Cache)) and (
            type(stage) is not st.Batch or stage.remainder == "pad"
        ):
            return None
    return schema


def source_schema(source: Any) -> Tree | None:
    """The same for a source."""
    if not isinstance(source, Combination):
        return None if hasattr(source, "read") else getattr(source, "schema", None)
    schemas = [known_schema(part.source, part.stages) for part in source.parts]
    if isinstance(source, Zip):
        return None if None in schemas else tree_.unflatten(source.treedef, schemas)
    known = [index for index, schema in enumerate(schemas) if schema is not None]
    for index in known[1:]:
        try:
            schemas[known[0]] = common_schema(schemas[known[0]], schemas[index], exact=True)
        except SchemaError as exc:
            names = source.names
            raise SchemaError(
                f"{source.kind}(): part {names[index]} is not like part {names[known[0]]}: {exc}"
            ) from exc
    return schemas[0] if len(known) == len(schemas) else None
