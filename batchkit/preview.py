"""Trying a pipeline on its first row, to show what each stage makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, SchemaError, StageError
from batchkit.lengths import joined
from batchkit.packing import Packed, packed_columns, packed_lengths
from batchkit.padding import fresh, padded_rows
from batchkit.random import RowRandom, ScalarRandom
from batchkit.schema import LeafSpec, common_schema, describe, spec_tree
from batchkit.sources import Combination, GeneratorSource, Zip
from batchkit.sources.stacking import normalise_row, stack_rows
from batchkit.stages import Stage
from batchkit.tree import Tree

__all__ = ["Preview", "first_row", "lines", "preview"]


class Preview(NamedTuple):
    """What is known of the rows at one place of a pipeline: their schema, or why it cannot be told."""

    schema: Tree | None
    problem: BatchkitError | None = None
    columns: bool = False
    """Whether it is behind a ``batch`` that has stacked rows: not one that a function has made."""


def preview(source: Any, stages: Iterable[Stage]) -> list[Preview]:
    """Return what is known behind the source and behind every stage.

    Functions are tried on the first row alone, behind ``batch`` as a batch of one. Of a
    generator no row is asked for, and an empty source has none.
    """
    return _tried(source, list(stages))[0]


def first_row(source: Any, stages: Iterable[Stage]) -> Tree | None:
    """Return what the stages make of the first row; ``None`` if there is none. Of a generator it is pulled.

    Raises:
        BatchkitError: reading the row or one of the functions failed.
    """
    stages = list(stages)
    if isinstance(source, GeneratorSource):
        item = next(iter(source.open()), None)
        if item is None:
            return None
        tree, columns = normalise_row(item, "row 0"), source.batched
        for stage in stages:
            tree, columns = _after(stage, tree, columns)
    else:
        shown, tree = _tried(source, stages)
        if shown[-1].problem is not None:
            raise shown[-1].problem
        columns = shown[-1].columns
    return tree_.map_leaves(lambda leaf: leaf[0], tree) if columns and tree is not None else tree


def _tried(source: Any, stages: list[Stage]) -> tuple[list[Preview], Tree | None]:
    """Return the same, and what the first row is in the end; ``None`` where that is not known."""
    shown: list[Preview] = []
    try:
        schema, tree = _combined(source) if isinstance(source, Combination) else _own(source)
        shown.append(Preview(schema))
        if tree is None:
            return shown + [Preview(None)] * len(stages), None
        columns = collated = False
        for stage in stages:
            tree, columns = _after(stage, tree, columns)
            collated = collated or (isinstance(stage, st.Batch) and stage.collate is not None)
            shown.append(Preview(_open(tree) if collated else _row_schema(tree, columns), columns=columns))
    except BatchkitError as exc:
        return shown + [Preview(None, exc)] * (len(stages) + 1 - len(shown)), None
    return shown, tree


def _own(source: Any) -> tuple[Tree | None, Tree | None]:
    """Return schema and first row of a source, as far as they can be known."""
    if not hasattr(source, "schema"):
        return None, None
    schema = source.schema
    return schema, normalise_row(_first_row(source), "row 0") if len(source) else None


def _combined(source: Combination) -> tuple[Tree | None, Tree | None]:
    """Return schema and first row of a combination: of its parts, after all their stages."""
    schemas, rows = [], []
    for part in source.parts:
        shown, row = _tried(part.source, list(part.stages))
        if shown[-1].problem is not None:
            raise shown[-1].problem
        schemas.append(shown[-1].schema)
        rows.append(row)
    if isinstance(source, Zip):
        schema = None if None in schemas else tree_.unflatten(source.treedef, schemas)
        return schema, None if any(row is None for row in rows) else tree_.unflatten(source.treedef, rows)
    first = next((index for index, schema in enumerate(schemas) if schema is not None), None)
    if first is None:
        return None, None
    together = schemas[first]
    for name, schema in zip(source.names, schemas, strict=True):
        if schema is not None:
            try:
                together = common_schema(together, schema)
            except SchemaError as exc:
                raise SchemaError(
                    f"{source.kind}(): part {name} is not like part {source.names[first]}: {exc}"
                ) from exc
    return together, next((row for row in rows if row is not None), None)


def lines(source: Any, stages: Iterable[Stage], first: int = 0) -> tuple[list[str], int]:
    """Return a pipeline as text, its parts indented, and how many stages that shows.

    Stages are counted from ``first`` on: those of the parts in order, then its own.
    """
    stages, number = list(stages), first
    start, *rest = preview(source, stages)
    if isinstance(source, Combination):
        shown = [f"{source.label}{_shown(start, ': rows of ')}"]
        for name, part in zip(source.names, source.parts, strict=True):
            inner, count = lines(part.source, part.stages, number)
            number += count
            shown += [f"  {name}: {inner[0]}" if name else f"  {inner[0]}", *(f"  {line}" for line in inner[1:])]
    else:
        kind = getattr(source, "kind", type(source).__name__)
        size = f"{len(source)} rows" if hasattr(source, "__len__") else "rows as they come"
        shown = [f"{kind}: {size}{_shown(start, ' of ')}"]
    before = start
    for stage, after in zip(stages, rest, strict=True):
        now = _shown(after, " -> ")
        shown.append(f"  {number} {stage.label}{'' if before.problem or now == _shown(before, ' -> ') else now}")
        before, number = after, number + 1
    return shown, number - first


def _shown(step: Preview, lead: str) -> str:
    if step.problem is not None:
        return f"{lead}? ({type(step.problem).__name__}: {str(step.problem).splitlines()[0]})"
    return "" if step.schema is None else f"{lead}{describe(step.schema)}"


def _first_row(source: Any) -> Tree:
    first = np.zeros(1, np.int64)
    if hasattr(source, "read"):
        return source.read(first)[0]
    return tree_.map_leaves(lambda leaf: leaf[0], source.gather(first))


def _after(stage: Stage, tree: Tree, columns: bool) -> tuple[Tree, bool]:
    if isinstance(stage, st.BucketBatch):
        bound = None if stage.bounds is None else stage.bounds[-1]
        tree = padded_rows(stage.padding(bound), [tree], [0], "", fresh)
        return (st.with_mask(tree, np.ones(1, bool)) if stage.remainder == "pad" else tree), True
    if isinstance(stage, st.Batch):
        if isinstance(stage, st.PaddedBatch):
            tree = padded_rows(stage, [tree], [0], "", fresh)
        elif stage.collate is not None:
            return _collated(stage, tree), False
        else:
            tree = stack_rows([tree], [0])
        return (st.with_mask(tree, np.ones(1, bool)) if stage.remainder == "pad" else tree), True
    if isinstance(stage, st.Rebatch):
        return (st.with_mask(tree, np.ones(1, bool)) if stage.remainder == "pad" else tree), True
    if isinstance(stage, st.Unbatch):
        return tree_.map_leaves(lambda leaf: leaf[0], tree), False
    if isinstance(stage, st.Pack):
        return _packed(stage, tree), columns
    if isinstance(stage, st.Window):
        return _windowed(stage, tree), columns
    if isinstance(stage, st.FlatMap):
        return _first_made(stage, tree), columns
    if isinstance(stage, st.FunctionStage):
        return (tree if isinstance(stage, st.Filter) else _called(stage, tree, columns)), columns
    return (stage.apply(tree) if isinstance(stage, st.ColumnStage) else tree), columns


def _packed(stage: st.Pack, tree: Tree) -> Tree:
    rows = joined([tree], [0])
    ids = np.zeros(1, np.int64)
    lengths = np.minimum(
        packed_lengths(stage, rows, None, ids), stage.limits[0] if stage.leaves is None else stage.limits
    )
    stops = np.asarray(lengths, np.int64).reshape(1, -1)
    packed = Packed(np.array([0, 1]), ids, ids, stops)
    return tree_.map_leaves(lambda leaf: leaf[0], packed_columns(stage, rows, packed, ids, "", fresh))


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


def _collated(stage: st.Batch, tree: Tree) -> Tree:
    assert stage.collate is not None
    try:
        made = stage.collate([tree])
    except Exception as exc:
        raise StageError(f"{stage.label} failed on the first row: {type(exc).__name__}: {exc}") from exc
    return normalise_row(made, f"{stage.label}: row 0")


def _open(tree: Tree) -> Tree:
    """Return the schema of a batch that a function has made of the first row: all sides may be others with more."""
    return tree_.map_leaves(lambda spec: LeafSpec(spec.dtype, (None,) * len(spec.shape)), spec_tree(tree))


def _row_schema(tree: Tree, columns: bool) -> Tree:
    specs = spec_tree(tree)
    return tree_.map_leaves(lambda spec: LeafSpec(spec.dtype, spec.shape[1:]), specs) if columns else specs
