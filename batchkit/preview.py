"""Trying a pipeline on its first row, to show what each stage makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, StageError
from batchkit.padding import fresh, padded_rows
from batchkit.random import RowRandom, ScalarRandom
from batchkit.schema import LeafSpec, spec_tree
from batchkit.sources.stacking import normalise_row, stack_rows
from batchkit.stages import Stage
from batchkit.tree import Tree

__all__ = ["Preview", "preview"]


class Preview(NamedTuple):
    """What is known of the rows at one place of a pipeline: their schema, or why it cannot be told."""

    schema: Tree | None
    problem: BatchkitError | None = None


def preview(source: Any, stages: Iterable[Stage]) -> list[Preview]:
    """Return what is known behind the source and behind every stage.

    Functions are tried on the first row alone, behind ``batch`` as a batch of one. Of a
    generator no row is asked for, and an empty source has none.
    """
    stages = list(stages)
    if not hasattr(source, "schema"):
        return [Preview(None)] * (len(stages) + 1)
    shown: list[Preview] = []
    try:
        shown.append(Preview(source.schema))
        if not len(source):
            return shown + [Preview(None)] * len(stages)
        tree, columns = normalise_row(_first_row(source), "row 0"), False
        for stage in stages:
            tree, columns = _after(stage, tree, columns)
            shown.append(Preview(_row_schema(tree, columns)))
    except BatchkitError as exc:
        return shown + [Preview(None, exc)] * (len(stages) + 1 - len(shown))
    return shown


def _first_row(source: Any) -> Tree:
    first = np.zeros(1, np.int64)
    if hasattr(source, "read"):
        return source.read(first)[0]
    return tree_.map_leaves(lambda leaf: leaf[0], source.gather(first))


def _after(stage: Stage, tree: Tree, columns: bool) -> tuple[Tree, bool]:
    if isinstance(stage, st.Batch):
        if isinstance(stage, st.PaddedBatch):
            tree = padded_rows(stage, [tree], [0], "", fresh)
        else:
            tree = stack_rows([tree], [0])
        return (st.with_mask(tree, np.ones(1, bool)) if stage.remainder == "pad" else tree), True
    if isinstance(stage, st.Rebatch):
        return (st.with_mask(tree, np.ones(1, bool)) if stage.remainder == "pad" else tree), True
    if isinstance(stage, st.Unbatch):
        return tree_.map_leaves(lambda leaf: leaf[0], tree), False
    if isinstance(stage, st.Window):
        return _windowed(stage, tree), columns
    if isinstance(stage, st.FlatMap):
        return _first_made(stage, tree), columns
    if isinstance(stage, st.FunctionStage):
        return (tree if isinstance(stage, st.Filter) else _called(stage, tree, columns)), columns
    return (stage.apply(tree) if isinstance(stage, st.ColumnStage) else tree), columns


def _windowed(stage: st.Window, tree: Tree) -> Tree:
    if stage.inside:
        return tree_.map_leaves(lambda leaf: leaf[: stage.length] if np.ndim(leaf) else leaf, tree)
    window = tree_.map_leaves(lambda leaf: np.repeat(np.asarray(leaf)[None], stage.length, axis=0), tree)
    return st.with_mask(window, np.ones(stage.length, bool)) if stage.remainder == "pad" else window


def _first_made(stage: st.FlatMap, tree: Tree) -> Tree:
    try:
        made = next(iter(stage.fn(tree, **stage.kwargs)), None)
    except Exception as exc:
        raise StageError(f"{stage.label} failed on the first row: {type(exc).__name__}: {exc}") from exc
    if made is None:
        raise StageError(f"{stage.label} makes nothing of the first row")
    return normalise_row(made, f"{stage.label}: row 0")


def _called(stage: st.FunctionStage, tree: Tree, columns: bool) -> Tree:
    key = (st.RANDOM_MAP, getattr(stage, "seed", 0), 0)
    rng = RowRandom(key, 0, np.zeros(1, np.int64)) if columns else ScalarRandom(key, 0, 0)
    arguments = (tree, rng) if isinstance(stage, st.RandomMap) else (tree,)
    try:
        made = stage.fn(*arguments, **stage.kwargs)
    except Exception as exc:
        raise StageError(f"{stage.label} failed on the first row: {type(exc).__name__}: {exc}") from exc
    return normalise_row(made, f"{stage.label}: row 0")


def _row_schema(tree: Tree, columns: bool) -> Tree:
    specs = spec_tree(tree)
    return tree_.map_leaves(lambda spec: LeafSpec(spec.dtype, spec.shape[1:]), specs) if columns else specs
