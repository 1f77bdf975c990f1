"""Where a cache keeps its rows, and what these are told by."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit.caching import (
    WHOLE,
    DiskRuns,
    DiskStore,
    Leaves,
    MemoryRuns,
    MemoryStore,
    NoRuns,
    Outline,
    Runs,
    Store,
    Taken,
    identity,
)
from batchkit.caching.outline import Lease
from batchkit.pipeline import Pipeline
from batchkit.plan.numbered.placing import Numbering, Placed, placed_stages
from batchkit.sources import ArraySource, Combination, GeneratorSource, RaggedSource, SequenceSource

__all__ = ["Before", "LazyStores", "runs_of", "store_of", "told"]

_MEANING = 1
"""Raised when a built-in stage comes to mean something else, so that older caches are not used any more."""


@dataclass(frozen=True)
class Before:
    """What rows at one place of a pipeline are made of."""

    source: Any
    ordinal: int
    """How many random stages are counted before those of the source's parts."""
    stages: tuple[Placed, ...] = ()

    def then(self, one: Placed) -> Before:
        """Return the same with one more stage."""
        return dataclasses.replace(self, stages=(*self.stages, one))

    def key(self) -> str:
        """Return what tells these rows from all others: the data, and what is done to them."""
        return identity(_MEANING, _data(self.source, self.ordinal), _done(self.stages))

    def labels(self) -> list[str]:
        """Return the same for people to read."""
        source = getattr(self.source, "kind", type(self.source).__name__)
        return [f"source {source}", *(one.stage.label for one in self.stages)]


def _done(stages: tuple[Placed, ...] | list[Placed]) -> Any:
    done: list[Any] = []
    for stage, _, ordinal in stages:
        if isinstance(stage, st.Cache):  # it freezes what is random; where it keeps rows says nothing of them
            done.append(stage.identity)
            continue
        verb = stage.verb if st.STAGES.get(stage.verb) is type(stage) else type(stage)
        fields = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
        by_place = isinstance(stage, st.RandomMap) or (isinstance(stage, st.Shuffle) and stage.reshuffle)
        done.append((verb, fields, ordinal if by_place else 0))
    return done


def _data(source: Any, ordinal: int) -> Any:
    if isinstance(source, Combination):
        numbering, parts = Numbering(ordinal=ordinal), []
        for name, part in zip(source.names, source.parts, strict=True):
            start = numbering.ordinal
            done = _done(placed_stages(part, numbering))
            parts.append((name, _data(part.source, start), done))
        return type(source).__name__, source.arguments(), repr(getattr(source, "treedef", None)), parts
    if isinstance(source, GeneratorSource):
        return type(source).__name__, source.fn, source.kwargs, source.batched
    own = (type(source).__name__, len(source), source.fingerprint())
    if isinstance(source, SequenceSource):
        stated = isinstance(getattr(source.sequence, "_fingerprint", None), str)
        return own if stated else (own, source.sequence)
    if isinstance(source, ArraySource):
        changed = []
        if any(leaf.nbytes > WHOLE for leaf in source.leaves):  # of which only a part is looked at
            changed = [os.stat(path).st_mtime_ns for path in getattr(source, "files", ())]
        return own, source.leaves, changed
    if isinstance(source, RaggedSource):
        return own, source.held
    return own


def told(pipeline: Pipeline, numbering: Numbering | None = None) -> Pipeline:
    """Return the pipeline for a worker process: its caches are told here what their rows are, data at hand."""
    if not any(isinstance(stage, st.Cache) and stage.path for stage in pipeline.all_stages):
        return pipeline
    numbering = numbering or Numbering()
    start = dataclasses.replace(numbering)
    source = pipeline.source
    if isinstance(source, Combination):
        inner = dataclasses.replace(start)
        parts = []
        for part in source.parts:
            parts.append(told(part, dataclasses.replace(inner)))
            placed_stages(part, inner)
        source = source.with_parts(parts)
    before, keys = Before(pipeline.source, start.ordinal), []
    for one in placed_stages(pipeline, numbering):
        if isinstance(one.stage, st.Cache):
            keys.append((one.stage.known or before.key()) if one.stage.path else None)
        before = before.then(one)
    found = iter(keys)
    stages = []
    for stage in pipeline.stages:
        key = next(found) if isinstance(stage, st.Cache) else None
        stages.append(stage if key is None else stage.told(key))  # type: ignore[attr-defined]
    return Pipeline(source, tuple(stages))


def store_of(stage: st.Cache, before: Before, length: int, where: str, shard: tuple[int, int] | None = None) -> Store:
    """Return the store of a cache; of batches each rank has its own.

    Raises:
        SourceError: it cannot be made.
    """
    if not stage.keeps:
        return _NoStore()
    if stage.path is None:
        return MemoryStore(length, stage.budget, where)
    key = stage.known or before.key()
    if shard is not None:  # functions on batches are called for each rank's rows
        key = identity(key, shard)
    return DiskStore(os.path.abspath(stage.path), key, length, before.labels(), where)


def runs_of(stage: st.Cache, before: Before, where: str, shard: tuple[int, int] | None) -> Runs:
    """Return where a cache keeps what comes in order: rows, or with a ``shard`` a rank's batches.

    Raises:
        SourceError: it cannot be made.
    """
    if not stage.keeps:
        return NoRuns()
    if stage.path is None:
        return MemoryRuns(stage.budget, where, "rows" if shard is None else "batches")
    key = stage.known or before.key()
    if shard is not None:
        key = identity(key, shard)
    return DiskRuns(os.path.abspath(stage.path), key, before.labels(), where)


Kept = TypeVar("Kept")


class LazyStores(Generic[Kept]):
    """Stores that are made when they are first needed: until then nothing is looked at or written."""

    def __init__(self, make: Callable[..., Kept]) -> None:
        self._make = make
        self._made: dict[tuple[Any, ...], Kept] = {}
        self._lock = threading.Lock()

    def __call__(self, *which: Any) -> Kept:
        store = self._made.get(which)
        if store is None:
            with self._lock:
                store = self._made.get(which)
                if store is None:
                    store = self._made[which] = self._make(*which)
        return store


class _NoStore:
    """Keeps nothing, so that every row is computed each time."""

    accepts = False

    def take(self, positions: npt.NDArray[np.int64], lease: Lease) -> Taken:
        return Taken(np.zeros(len(positions), np.bool_), [], None)

    def write(self, positions: npt.NDArray[np.int64], outline: Outline, leaves: Leaves) -> None:
        """Nothing is written."""
