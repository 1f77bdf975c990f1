"""Calling a user's functions on rows and on columns, with errors that say which and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, StageError
from batchkit.random import RowRandom, ScalarRandom
from batchkit.schema import as_leaf
from batchkit.sources.stacking import normalise_row
from batchkit.stages.order import Epochs
from batchkit.tree import Tree

__all__ = ["Call", "Rows", "call_columns", "call_rows"]


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


@dataclass(slots=True)
class Rows:
    """A run of rows on its way: either columns or a list of row trees, with the rows' addresses."""

    ids: npt.NDArray[np.int64]
    epochs: Epochs
    columns: Tree = None
    items: list[Tree] | None = None
    surplus: bool = False
    """Whether the rows are there only to show what none of them look like."""

    def epoch_of(self, index: int) -> int:
        """Return the epoch of one of the rows."""
        return self.epochs if isinstance(self.epochs, int) else int(self.epochs[index])


def call_rows(rows: Rows, calls: Sequence[Call]) -> Rows:
    """Apply row stages: column stages to whole columns for as long as no function needs rows."""
    calls = list(calls)
    while rows.items is None and calls and isinstance(calls[0].stage, st.ColumnStage):
        rows.columns = _apply(calls.pop(0), rows.columns, rows)
    if not calls:
        return rows
    if rows.items is None:
        leaves, treedef = tree_.flatten(rows.columns)
        rows.items = [tree_.unflatten(treedef, list(values)) for values in zip(*leaves, strict=True)]
        rows.columns = None
    rows.items = [_one_row(item, index, rows, calls) for index, item in enumerate(rows.items)]
    return rows


def _one_row(item: Tree, index: int, rows: Rows, calls: Sequence[Call]) -> Tree:
    row = int(rows.ids[index])
    for call in calls:
        stage = call.stage
        try:
            if isinstance(stage, st.RandomMap):
                rng = ScalarRandom(call.key, rows.epoch_of(index), row)
                item = stage.fn(item, rng, **stage.kwargs)
            elif isinstance(stage, st.Map):
                item = stage.fn(item, **stage.kwargs)
            else:
                item = stage.apply(item)  # type: ignore[attr-defined]
        except BatchkitError as exc:
            exc.args = (f"{call.where}: row {row}: {exc}",)
            raise
        except Exception as exc:
            raise _failed(call, f"row {row}", exc) from exc
        item = normalise_row(item, f"{call.where}: row {row}")
    return item


def call_columns(columns: Tree, rows: Rows, calls: Sequence[Call]) -> Tree:
    """Apply batch stages to the columns of ``rows``."""
    for call in calls:
        columns = _apply(call, columns, rows)
    return columns


def _apply(call: Call, columns: Tree, rows: Rows) -> Tree:
    stage = call.stage
    try:
        if isinstance(stage, st.RandomMap):
            made = stage.fn(columns, RowRandom(call.key, rows.epochs, rows.ids), **stage.kwargs)
        elif isinstance(stage, st.Map):
            made = stage.fn(columns, **stage.kwargs)
        else:
            return stage.apply(columns)  # type: ignore[attr-defined]
    except BatchkitError as exc:
        exc.args = (f"{call.where}: {_shown(rows.ids)}: {exc}",)
        raise
    except Exception as exc:
        raise _failed(call, _shown(rows.ids), exc) from exc
    return _checked(made, call, rows)


def _checked(made: Any, call: Call, rows: Rows) -> Tree:
    leaves, treedef = tree_.flatten(made)
    if not leaves:
        raise StageError(f"{call.where} returned {made!r}, which has no leaf. Return the columns of the batch")
    for index, leaf in enumerate(leaves):
        if type(leaf) is not np.ndarray or leaf.dtype.kind == "O" or leaf.ndim == 0 or len(leaf) != len(rows.ids):
            label = tree_.leaf_label(tree_.paths(treedef)[index])
            leaves[index] = array = as_leaf(leaf, f"{call.where}: {label}")
            if array.ndim == 0 or len(array) != len(rows.ids):
                has = "is zero-dimensional" if array.ndim == 0 else f"has {len(array)} rows"
                raise StageError(
                    f"{call.where}: {label} {has}, but the batch has {len(rows.ids)}. "
                    "Behind batch() a function returns columns with as many rows as it was given"
                )
    return tree_.unflatten(treedef, leaves)


def _failed(call: Call, which: str, exc: Exception) -> StageError:
    hint = " (an iterator inside the function ran out: pass next() a default)" if isinstance(exc, StopIteration) else ""
    return StageError(f"{call.where} failed on {which}: {type(exc).__name__}: {exc}{hint}")


def _shown(ids: npt.NDArray[np.int64]) -> str:
    real = ids[ids >= 0]
    listed = ", ".join(str(row) for row in real[:8])
    return f"rows [{listed}{', ...' if len(real) > 8 else ''}]"
