"""Calling a user's functions on rows and on columns, with errors that say which and where."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, StageError
from batchkit.metering import Sheet
from batchkit.packing import Packed
from batchkit.plan.rows.lineage import Lineage
from batchkit.plan.rows.ownership import owned, roots
from batchkit.ragged import Ragged, part
from batchkit.random import RowRandom, ScalarRandom
from batchkit.schema import as_leaf
from batchkit.skipping import Guard
from batchkit.sources.sharing import OwnRows
from batchkit.sources.stacking import detached, split_rows
from batchkit.stages.order import Epochs
from batchkit.tree import Tree

__all__ = ["Call", "Rows", "call_columns", "call_rows", "chosen_rows", "collated"]


@dataclass(frozen=True, slots=True)
class Call:
    """A function or column stage at its place in the pipeline."""

    stage: st.Stage
    number: int
    key: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """How messages name it: ``stage 2 map(my_data:normalize)``."""
        return f"stage {self.number} {self.stage.label}"

    @property
    def function(self) -> Callable[..., Any]:
        """What is called with a row (or columns), and with ``rng`` if it draws."""
        stage = self.stage
        if isinstance(stage, st.FunctionStage):
            return functools.partial(stage.fn, **stage.kwargs) if stage.kwargs else stage.fn
        if isinstance(stage, st.Batch):
            assert stage.collate is not None
            return stage.collate
        return stage.apply  # type: ignore[attr-defined,no-any-return]


@dataclass(slots=True)
class Rows:
    """A run of rows on its way: either columns or a list of row trees, with the rows' addresses."""

    ids: npt.NDArray[np.int64]
    epochs: Epochs
    columns: Tree = None
    items: list[Tree] | None = None
    surplus: bool = False
    """Whether the rows are there only to show what none of them look like."""
    places: npt.NDArray[np.int64] | None = None
    """Behind a stage that keeps no numbering: the position of each row, or of what it comes from, before it.

    Of rows that a node read: which of those asked for they are, where some may have been left out."""
    subs: npt.NDArray[np.int64] | None = None
    """Where a row may have become several: which of them each is."""
    packed: Packed | None = None
    """Where rows are packed ones that are not put together yet: how they are made of ``segments``."""
    segments: Rows | None = None
    origins: Lineage | None = None
    """The source rows that each is made of, where that is wanted; of packed ones, what ``segments`` say."""
    collated: bool = False
    """Whether a function has made the columns of all rows together, so that they have no axis of rows."""
    at: npt.NDArray[np.int64] | None = None
    """Where each row is found again, by which a flow fetches it: some numbers a row."""

    def __len__(self) -> int:
        return len(self.ids)

    def epoch_of(self, index: int) -> int:
        """Return the epoch of one of the rows."""
        return self.epochs if isinstance(self.epochs, int) else int(self.epochs[index])

    @property
    def addresses(self) -> npt.NDArray[np.int64]:
        """What random draws are addressed by: the source row, and which of those that have come of it."""
        return self.ids if self.subs is None else _mixed(self.ids, self.subs)

    def part(self, start: int, stop: int) -> Rows:
        """Return the rows from ``start`` to ``stop``, as views."""
        if start == 0 and stop >= len(self.ids):
            return self
        cut = slice(start, stop)
        return Rows(
            self.ids[cut],
            self.epochs if isinstance(self.epochs, int) else self.epochs[cut],
            None if self.columns is None else tree_.map_leaves(lambda leaf: part(leaf, start, stop), self.columns),
            None if self.items is None else self.items[cut],
            self.surplus,
            None if self.places is None else self.places[cut],
            None if self.subs is None else self.subs[cut],
            None if self.packed is None else self.packed.part(start, stop),
            self.segments,
            None if self.origins is None else self.origins.part(start, stop),
            at=None if self.at is None else self.at[cut],
        )

    def chosen(self, which: npt.NDArray[np.int64]) -> Rows:
        """Return other rows of these, in another order."""
        columns = self.columns
        if columns is not None:
            columns = tree_.map_leaves(
                lambda leaf: leaf.take(which) if isinstance(leaf, Ragged) else leaf[which], columns
            )
        return Rows(
            self.ids[which],
            self.epochs if isinstance(self.epochs, int) else self.epochs[which],
            columns,
            None if self.items is None else [self.items[index] for index in which.tolist()],
            self.surplus,
            None if self.places is None else self.places[which],
            None if self.subs is None else self.subs[which],
            None if self.packed is None else self.packed.chosen(which),
            self.segments,
            None if self.origins is None else self.origins.taken(which),
            at=None if self.at is None else self.at[which],
        )


def _mixed(ids: npt.NDArray[np.int64], subs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return an address for each pair; the first of a row has the address of the row itself."""
    word = subs.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return ids ^ ((word ^ (word >> np.uint64(29))) >> np.uint64(1)).astype(np.int64)


def call_rows(rows: Rows, calls: Sequence[Call], guard: Guard | None = None, sheet: Sheet | None = None) -> Rows:
    """Apply row stages: column stages to whole columns for as long as no function needs rows.

    With a ``guard``, rows whose function fails are left out.
    """
    calls = list(calls)
    while rows.items is None and calls and isinstance(calls[0].stage, st.ColumnStage):
        rows.columns = call_columns(rows.columns, rows, [calls.pop(0)], sheet)
    if calls:
        items = split_rows(rows.columns) if rows.items is None else rows.items
        if guard is not None:
            return _called_one_by_one(items, rows, calls, guard, sheet)
        rows.columns, rows.items = None, _called_rows(items, rows, calls, sheet)
    return rows


def chosen_rows(rows: Rows, places: list[int], items: list[Tree]) -> Rows:
    """Return the rows at some places, with what has become of them."""
    if not items:
        raise StageError("every row of the batch failed and was left out, so that nothing is left of it")
    whole = Rows(rows.ids, rows.epochs, None, None, rows.surplus, rows.places, rows.subs, origins=rows.origins)
    chosen = whole.chosen(np.array(places, np.int64))
    chosen.items = items
    return chosen


def _called_one_by_one(items: list[Tree], rows: Rows, calls: Sequence[Call], guard: Guard, sheet: Sheet | None) -> Rows:
    places, done = [], []
    for place, item in enumerate(items):
        one = Rows(rows.ids[place : place + 1], rows.epoch_of(place))
        one.subs = None if rows.subs is None else rows.subs[place : place + 1]
        try:
            done.append(_called_rows([item], one, calls, sheet)[0])
        except StageError as exc:
            guard.note(int(one.ids[0]), rows.epoch_of(place), "a function", exc)
        else:
            places.append(place)
    return chosen_rows(rows, places, done)


def _called_rows(items: list[Tree], rows: Rows, calls: Sequence[Call], sheet: Sheet | None) -> list[Tree]:
    """Take each row through all functions before the next one, so that few are in memory in between."""
    functions = [(call, call.function, isinstance(call.stage, st.RandomMap)) for call in calls]
    addresses = rows.addresses
    done: list[Tree] = []
    call = calls[0]
    owned = OwnRows(detached(items[0]))
    try:
        for stretch in (items[:1], items[1:]):
            for item in stretch:
                for call, function, draws in functions:  # the handlers below name it
                    if draws:
                        index = len(done)
                        item = function(item, ScalarRandom(call.key, rows.epoch_of(index), int(addresses[index])))
                    else:
                        item = function(item)
                    if sheet is not None:
                        sheet.lap(call.number) if done else sheet.columns(call.number, item, len(items))
                done.append(tree_.mapped(item))
            item = None  # the list alone holds the row now
            if not owned.looked and owned.look(done, 0, items[0]):
                done[0] = owned(done[0])
                functions[-1] = (call, _behind(functions[-1][1], owned), functions[-1][2])
    except BatchkitError as exc:
        exc.args = (f"{call.where}: row {rows.ids[len(done)]}: {exc}",)
        raise
    except Exception as exc:
        raise _failed(call, f"row {rows.ids[len(done)]}", exc) from exc
    return done


def _behind(function: Callable[..., Any], owned: OwnRows) -> Callable[..., Any]:
    """Return the function with what it returns made its own before it is called again."""

    def called(*given: Any) -> Any:
        return owned(function(*given))

    return called


def call_columns(columns: Tree, rows: Rows, calls: Sequence[Call], sheet: Sheet | None = None) -> Tree:
    """Apply batch stages to the columns of ``rows``."""
    for call in calls:
        given = roots(columns) if isinstance(call.stage, st.FunctionStage) else set()
        columns = _apply(call, columns, rows, given)
        if sheet is not None:
            sheet.columns(call.number, columns)
    return columns


def collated(call: Call, rows: Rows) -> Rows:
    """Have a function make the batch of the list of its rows.

    Raises:
        StageError: it failed, or returned what is no batch; names the stage and the rows.
    """
    given = set() if rows.columns is None else roots(rows.columns)
    # Collators take keys out of the rows they are given, and a row may come twice (flat_map), or once more (a retry).
    items = split_rows(rows.columns) if rows.items is None else rows.items
    items = [dict(item) if type(item) is dict else item for item in items]
    made = Rows(rows.ids, rows.epochs, subs=rows.subs, collated=True, origins=rows.origins)
    made.columns = _apply(call, items, made, given)
    return made


def _apply(call: Call, columns: Any, rows: Rows, given: set[int]) -> Tree:
    """Call a function with columns, or where it makes the batch with a list of rows."""
    stage = call.stage
    try:
        # What a function returns is taken apart at once, so that nothing here refers to it besides the leaves.
        if isinstance(stage, st.RandomMap):
            drawn = RowRandom(call.key, rows.epochs, rows.addresses)
            leaves, treedef = tree_.flatten(tree_.mapped(call.function(columns, drawn)))
        elif isinstance(stage, (st.FunctionStage, st.Batch)):
            leaves, treedef = tree_.flatten(tree_.mapped(call.function(columns)))
        else:
            return call.function(columns)
    except BatchkitError as exc:
        exc.args = (f"{call.where}: {_shown(rows.ids)}: {exc}",)
        raise
    except Exception as exc:
        raise _failed(call, _shown(rows.ids), exc) from exc
    for index, path in enumerate(tree_.paths(treedef)):
        _check_column(leaves, index, path, call, rows)
    if not leaves:
        raise StageError(f"{call.where} returned {treedef}, which has no leaf. Return the columns of the batch")
    owned(leaves, given)
    return tree_.unflatten(treedef, leaves)


def _check_column(leaves: list[Any], index: int, path: str, call: Call, rows: Rows) -> None:
    """Make sure that a leaf is an array, with as many rows as the function was given if it was given columns."""
    label = tree_.leaf_label(path)
    leaves[index] = array = as_leaf(leaves[index], f"{call.where}: {label}")
    if rows.collated:
        if isinstance(array, Ragged):
            raise StageError(f"{call.where}: {label} is ragged, which no framework takes. Fill it up in the function")
        return
    if array.ndim == 0 or len(array) != len(rows.ids):
        has = "is zero-dimensional" if array.ndim == 0 else f"has {len(array)} rows"
        raise StageError(
            f"{call.where}: {label} {has}, but the batch has {len(rows.ids)}. "
            "Behind batch() a function returns columns with as many rows as it was given"
        )


def _failed(call: Call, which: str, exc: Exception) -> StageError:
    hint = " (an iterator inside the function ran out: pass next() a default)" if isinstance(exc, StopIteration) else ""
    return StageError(f"{call.where} failed on {which}: {type(exc).__name__}: {exc}{hint}")


def _shown(ids: npt.NDArray[np.int64]) -> str:
    real = ids[ids >= 0]
    listed = ", ".join(str(row) for row in real[:8])
    return f"rows [{listed}{', ...' if len(real) > 8 else ''}]"
