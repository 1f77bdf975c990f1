"""Stages that make any number of rows of each row: filter, flat_map, window(inside=True)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, StageError
from batchkit.metering import Sheet
from batchkit.plan.rows.apart import apart
from batchkit.plan.rows.calls import Call, Rows, call_columns, call_rows
from batchkit.skipping import Guard
from batchkit.sources.sharing import OwnRows
from batchkit.sources.stacking import detached, split_rows
from batchkit.tree import Tree

__all__ = ["call_batches", "changes_number", "rowwise"]

MOST = 1 << 20
"""How many rows flat_map() may make of one."""


def changes_number(stage: st.Stage) -> bool:
    """Whether how many rows come out of a stage on rows depends on what is in them."""
    return isinstance(stage, (st.Filter, st.FlatMap)) or (isinstance(stage, st.Window) and stage.inside)


def rowwise(rows: Rows, calls: Sequence[Call], guard: Guard | None, sheet: Sheet | None) -> Rows:
    """Apply stages that treat every row on its own.

    Raises:
        StageError: a function failed, or returned what it must not; names the stage and the row.
    """
    plain: list[Call] = []
    for call in calls:
        if not changes_number(call.stage):
            plain.append(call)
            continue
        rows, plain = _plain(rows, plain, guard, sheet), []
        rows = _filtered(rows, call, guard) if isinstance(call.stage, st.Filter) else _expanded(rows, call, guard)
        if sheet is not None:
            sheet.columns(call.number, rows.items[0] if rows.items else rows.columns, len(rows))
    return _plain(rows, plain, guard, sheet)


def _plain(rows: Rows, calls: list[Call], guard: Guard | None, sheet: Sheet | None) -> Rows:
    return call_rows(rows, calls, guard, sheet) if calls and len(rows) else rows


def call_batches(rows: Rows, calls: Sequence[Call], sheet: Sheet | None = None) -> Rows:
    """Apply stages to the columns of a batch; a filter leaves rows out.

    Raises:
        StageError: a function failed, or returned what it must not; names the stage.
    """
    for call in calls:
        if isinstance(call.stage, st.Filter):
            rows = rows.chosen(np.flatnonzero(_mask(rows, call)))
            if sheet is not None:
                sheet.columns(call.number, rows.columns)
        else:
            rows.columns = call_columns(rows.columns, rows, [call], sheet)
    return rows


def _mask(rows: Rows, call: Call) -> npt.NDArray[np.bool_]:
    """Have a filter look at the columns of a batch."""
    try:
        made = np.asarray(call.function(rows.columns))
    except BatchkitError as exc:
        exc.args = (f"{call.where}: {exc}",)
        raise
    except Exception as exc:
        raise StageError(f"{call.where} failed on a batch: {type(exc).__name__}: {exc}") from exc
    if made.dtype != bool or made.shape != (len(rows),):
        raise StageError(
            f"{call.where} returned {made.dtype.name}{list(made.shape)}, but the batch has {len(rows)} rows. Behind "
            "batch() a filter returns one boolean a row"
        )
    return made


def _each(
    rows: Rows, call: Call, guard: Guard | None, function: Callable[[Tree, int], Any]
) -> Iterator[tuple[int, Tree, Any]]:
    """Yield the place of every row, the row, and what the function makes of it; leave out what a guard lets fail."""
    items = split_rows(rows.columns) if rows.items is None else rows.items
    for place, item in enumerate(items):
        row = rows.ids[place]
        try:
            yield place, item, function(item, place)
            continue
        except BatchkitError as exc:
            exc.args = (f"{call.where}: row {row}: {exc}",)
            error: BatchkitError = exc
        except Exception as exc:
            hint = " (an iterator inside the function ran out)" if isinstance(exc, StopIteration) else ""
            error = StageError(f"{call.where} failed on row {row}: {type(exc).__name__}: {exc}{hint}")
            error.__cause__ = exc
        if guard is None or not isinstance(error, StageError):
            raise error
        guard.note(int(row), rows.epoch_of(place), "a function", error)


def _filtered(rows: Rows, call: Call, guard: Guard | None) -> Rows:
    predicate = call.function

    def kept(item: Tree, place: int) -> bool:
        verdict = predicate(item)
        if verdict is True or verdict is False:
            return verdict
        array = np.asarray(verdict)
        if array.dtype != bool or array.ndim:
            raise StageError(
                f"the filter returned {verdict!r:.60}, a {type(verdict).__name__}, not True or False. "
                "Return a comparison, or bool(...)"
            )
        return bool(array)

    which = [place for place, _, keep in _each(rows, call, guard, kept) if keep]
    return rows if len(which) == len(rows) else rows.chosen(np.array(which, np.int64))


def _expanded(rows: Rows, call: Call, guard: Guard | None) -> Rows:
    stage = call.stage
    if isinstance(stage, st.Window):

        def expand(item: Tree, place: int) -> list[Tree]:
            return windows_inside(item, stage)

    else:
        function = call.function

        owned: OwnRows | None = None

        def expand(item: Tree, place: int) -> list[Tree]:
            nonlocal owned
            if owned is None or not owned.looked:
                owned = OwnRows(detached(item))
            return _listed(function(item), item, owned)

    places: list[int] = []
    numbers: list[int] = []
    items: list[Tree] = []
    for place, _, made in _each(rows, call, guard, expand):
        places += [place] * len(made)
        numbers += range(len(made))
        items += apart(made)
    rows.columns, rows.items = None, [None] * len(rows)
    chosen = rows.chosen(np.array(places, np.int64))
    chosen.items = items
    subs = np.array(numbers, np.int64)
    chosen.subs = subs if chosen.subs is None else chosen.subs * MOST + subs
    return chosen


def _listed(made: Any, item: Tree, owned: OwnRows) -> list[Tree]:
    """Return the rows that a function has made of one, each its own before the next one is asked for."""
    if isinstance(made, (dict, str, bytes, np.ndarray)) or not hasattr(made, "__iter__"):
        raise StageError(
            f"flat_map() needs a list of rows, or a generator, not a {type(made).__name__}. For one row return [row]"
        )
    rows: list[Tree] = []
    copies = owned.copies
    for row in made:
        rows.append(tree_.mapped(row))
        if not owned.looked:
            row = None  # a generator, and the list that was returned, may hold it: then it is copied needlessly
            copies = owned.look(rows, -1, item)
        if copies:
            rows[-1] = owned(rows[-1])
        if len(rows) > MOST:
            raise StageError(f"flat_map() made more than {MOST:,} rows of one: does the function's iterator end?")
    return rows


def windows_inside(row: Tree, stage: st.Window) -> list[Tree]:
    """Return the windows of a row's leaves along their first axis; leaves without one are repeated.

    Raises:
        StageError: no leaf has an axis, or their lengths differ.
    """
    leaves, treedef = tree_.flatten(row)
    arrays = [np.asarray(leaf) if isinstance(leaf, (list, np.ndarray)) else leaf for leaf in leaves]
    long = [isinstance(array, np.ndarray) and array.ndim > 0 for array in arrays]
    lengths = {path: len(array) for path, array, yes in zip(tree_.paths(treedef), arrays, long, strict=True) if yes}
    if not lengths:
        raise StageError("window(inside=True) found no leaf with an axis to cut")
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{path or 'the row'} has {length}" for path, length in lengths.items())
        raise StageError(f"window(inside=True) cuts all leaves alike, but {shown}: drop() or select() some before it")
    total = next(iter(lengths.values()))
    made = []
    for number in range(stage.windows(total)):
        start = number * stage.step
        cut = [array[start : start + stage.length] if yes else array for array, yes in zip(arrays, long, strict=True)]
        have = min(stage.length, total - start)
        made.append(window_padded(tree_.unflatten(treedef, cut), stage, have, long))
    return made


def window_padded(window: Tree, stage: st.Window, have: int, long: Sequence[bool] | None = None) -> Tree:
    """Return a window with what ``remainder="pad"`` adds: zeros behind ``have`` rows, and the mask."""
    if stage.remainder != "pad":
        return window
    leaves, treedef = tree_.flatten(window)
    for index, leaf in enumerate(leaves):
        if have < stage.length and (long is None or long[index]):
            whole = np.zeros((stage.length, *leaf.shape[1:]), leaf.dtype)
            whole[:have] = leaf
            leaves[index] = whole
    return st.with_mask(tree_.unflatten(treedef, leaves), np.arange(stage.length) < have)
