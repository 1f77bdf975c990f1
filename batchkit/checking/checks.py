"""The ways in which steps are computed once more, and whether they give the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from batchkit import stages as st
from batchkit.checking.prints import Print, printed, read_print
from batchkit.checking.running import Key, Prints, prints_of
from batchkit.errors import BatchkitError, PipelineError
from batchkit.executors import Executor, ProcessExecutor, ThreadExecutor
from batchkit.loader import Loader
from batchkit.pipeline import Pipeline
from batchkit.plan import Step, compile
from batchkit.sources import SequenceSource

__all__ = ["CHECKS", "Difference", "NotRunError", "Reference", "Way", "difference"]

TICK = 1.1  # seconds, after which a clock that counts seconds shows another one
HOUR = 3600.0


class Difference(NamedTuple):
    """The first step that came out differently."""

    key: Key
    places: tuple[int, ...]
    """The rows of the batch."""
    leaves: tuple[str, ...]
    said: str = ""
    """What was raised, or that there is no such step, or other rows."""


class NotRunError(Exception):
    """A check cannot be run on this pipeline; says why."""


@dataclass(frozen=True)
class Reference:
    """Steps as they come out when they are computed one after the other, behind the first ``place`` stages."""

    pipeline: Pipeline
    place: int
    keys: Sequence[Key]
    prints: Prints
    began: float

    @classmethod
    def taken(cls, pipeline: Pipeline, place: int, keys: Sequence[Key]) -> Reference:
        """Compute the steps."""
        began = time.monotonic()
        prints = prints_of(pipeline, place, keys)
        return cls(pipeline, place, [key for key in keys if key in prints], prints, began)

    @functools.cached_property
    def indexed(self) -> bool:
        """Whether steps can be computed in any order."""
        return compile(self.pipeline).indexed

    def some(self, keys: Sequence[Key]) -> Reference:
        """Return the same with some of the steps only."""
        return dataclasses.replace(self, keys=keys, prints={key: self.prints[key] for key in keys})

    def real_rows(self, key: Key) -> int:
        """Return how many rows of a batch are no padding."""
        if not self.indexed:
            return len(self.prints[key])
        plan = compile(printed(self.pipeline, self.place), lineage=True)
        return len(np.unique(plan.origins(Step(*key)).place))


@dataclass(frozen=True)
class Way:
    """One way to compute steps once more."""

    name: str
    done: str
    """What is done."""
    run: Callable[[Reference], Difference | None]


def difference(one: Prints, other: Prints) -> Difference | None:
    """Return the first step whose prints differ; both are of the same steps."""
    for key, first in one.items():
        if key not in other:
            return Difference(key, (), (), "there is no such step the other time")
        found = _differing(key, first, other[key])
        if found is not None:
            return found
    return None


def _differing(key: Key, one: Print, other: Print) -> Difference | None:
    if len(one) != len(other):
        return Difference(key, (), (), f"the batch has {len(one)} rows one time and {len(other)} another")
    unlike = (one.rows != other.rows).any(axis=2)
    places = tuple(np.flatnonzero(unlike.any(axis=1)).tolist())
    if not places:
        return None
    names = {*np.flatnonzero(unlike[:, 1:].any(axis=0)).tolist()}
    leaves = tuple(name for number, name in enumerate(one.leaves) if number in names)
    said = "names, dtypes or shapes differ" if unlike[:, 0].any() else ""
    return Difference(key, places, leaves, said)


def _computed(reference: Reference, keys: Sequence[Key], executor: Executor | None = None) -> Difference | None:
    try:
        prints = prints_of(reference.pipeline, reference.place, keys, executor)
    except PipelineError as exc:
        if executor is None:
            return _raised(reference, exc)
        raise NotRunError(str(exc)) from exc
    except BatchkitError as exc:
        return _raised(reference, exc)
    return difference(reference.prints, prints)


def _raised(reference: Reference, exc: Exception) -> Difference:
    return Difference(reference.keys[0], (), (), f"it raised {type(exc).__name__}: {exc}")


def _again(reference: Reference) -> Difference | None:
    return _computed(reference, reference.keys)


def _in_another_order(reference: Reference) -> Difference | None:
    time.sleep(max(reference.began + TICK - time.monotonic(), 0.0))
    if reference.indexed:
        return _computed(reference, reference.keys[::-1])
    # A stream comes in its own order; but of its steps some may be left out.
    return _computed(reference.some(reference.keys[1::2] or reference.keys), reference.keys[1::2] or reference.keys)


def _in_a_process(reference: Reference) -> Difference | None:
    executor = ProcessExecutor(workers=1)
    try:
        if reference.indexed:
            return _computed(reference, reference.keys, executor)
        # A stream is pulled by the caller; its rows are to be made elsewhere, too.
        return difference(reference.prints, _made_elsewhere(reference, executor))
    except PipelineError as exc:
        raise NotRunError(str(exc)) from exc
    except BatchkitError as exc:
        return _raised(reference, exc)
    finally:
        executor.close()


def _made_elsewhere(reference: Reference, executor: Executor) -> Prints:
    """Have a worker process run the whole pipeline, as the only row of another one."""
    whole = functools.partial(_here, pipeline=reference.pipeline, place=reference.place, keys=list(reference.keys))
    only = Pipeline(SequenceSource([0])).map(whole).batch(1)
    with Loader(only, executor=executor) as loader:
        counts, marks = (column[0] for column in next(iter(loader)))
    ends = np.cumsum(counts).tolist()
    return {
        key: Print(marks[end - count : end], reference.prints[key].leaves)
        for key, count, end in zip(reference.keys, counts.tolist(), ends, strict=True)
    }


def _here(row: Any, pipeline: Pipeline, place: int, keys: Sequence[Key]) -> Any:
    """Return how many rows each step has, and the prints of all of them."""
    prints = prints_of(pipeline, place, keys)
    rows = [prints[key].rows for key in keys if key in prints]
    return np.array([len(prints[key]) if key in prints else 0 for key in keys]), np.concatenate(rows)


def _in_threads(reference: Reference) -> Difference | None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads meet where they would once in a thousand steps
    try:
        # With a limit of time, steps are computed by the threads from the first one on, however cheap.
        executor = ThreadExecutor(workers=4, timeout=HOUR)
        return _computed(reference, reference.keys, executor) or _computed(reference, reference.keys[::-1], executor)
    finally:
        sys.setswitchinterval(before)


def _last_cut(pipeline: Pipeline) -> tuple[int, st.Batch]:
    """Return the last stage that cuts batches.

    Raises:
        NotRunError: there is none, its batches have no rows, or their shapes depend on which rows are in them.
    """
    if pipeline.collated:
        raise NotRunError("a function makes the batches (collate), which have no rows to compare")
    cuts = [(number, stage) for number, stage in enumerate(pipeline.stages) if isinstance(stage, st.Batch)]
    if not cuts:
        raise NotRunError("the source cuts the batches itself")
    if isinstance(cuts[-1][1], st.BucketBatch):
        raise NotRunError("how long rows are decides which of them make a batch")
    if any(isinstance(stage, st.PaddedBatch) and not stage.static for _, stage in cuts):
        raise NotRunError("the longest row of a batch decides how far its rows are padded")
    return cuts[-1]


def _other_size(reference: Reference) -> Difference | None:
    stages = reference.pipeline.stages
    number, cut = _last_cut(reference.pipeline)
    known = (st.Map, st.RandomMap, st.ColumnStage, st.Cache)
    if not all(isinstance(stage, known) for stage in stages[number + 1 :]):
        raise NotRunError("batches are reordered, or made into others, behind the stage that cuts them")
    size = cut.size // 2 + 1 if cut.size > 2 else cut.size + 1
    other = dataclasses.replace(cut, size=size, remainder="pad" if cut.remainder == "pad" else "keep")
    changed = Pipeline(reference.pipeline.source, (*stages[:number], other, *stages[number + 1 :]))
    ranges = {
        key: (key.step * cut.size, key.step * cut.size + reference.real_rows(key))
        for key in reference.keys
        if reference.indexed or cut.remainder != "pad"
    }
    wanted = sorted(
        {
            Key(key.epoch, step)
            for key, (start, stop) in ranges.items()
            for step in range(start // size, -(-stop // size))
        }
    )
    if not wanted:
        raise NotRunError("the batches that were looked at have no rows")
    try:
        prints = prints_of(changed, reference.place, wanted)
    except BatchkitError as exc:
        return _raised(reference, exc)
    for key, (start, stop) in ranges.items():
        steps = range(start // size, -(-stop // size))
        pieces = [prints[Key(key.epoch, step)].rows for step in steps if Key(key.epoch, step) in prints]
        if not pieces:
            continue
        joined = np.concatenate(pieces)[start - steps.start * size :][: stop - start]
        found = _differing(key, reference.prints[key].cut(0, stop - start), Print(joined, reference.prints[key].leaves))
        if found is not None:
            return found
    return None


def _as_ranks(reference: Reference) -> Difference | None:
    _last_cut(reference.pipeline)
    for world in _worlds(reference.pipeline):
        try:
            ranks = [
                prints_of(reference.pipeline, reference.place, reference.keys, shard=(rank, world))
                for rank in range(world)
            ]
        except BatchkitError as exc:
            return _raised(reference, exc)
        joined = {
            key: Print(np.concatenate([prints[key].rows for prints in ranks if key in prints]), whole.leaves)
            for key, whole in reference.prints.items()
            if any(key in prints for prints in ranks)
        }
        found = difference(reference.prints, joined)
        if found is not None:
            return found
    return None


def _worlds(pipeline: Pipeline) -> list[int]:
    """Return the numbers of ranks to try: those that batches of static shapes divide by."""
    sizes = [stage.size for stage in pipeline.stages if isinstance(stage, st.Batch) and stage.remainder == "pad"]
    fitting = [world for world in range(2, 17) if all(size % world == 0 for size in sizes)]
    if not fitting:
        raise NotRunError("batches of static shapes of this size divide by no number of ranks up to 16")
    return fitting[:2]


def _resumed(reference: Reference) -> Difference | None:
    pipe, options = printed(reference.pipeline, reference.place), {"backend": "numpy"}
    try:
        states = list(_states(pipe, reference))
    except BatchkitError as exc:
        return _raised(reference, exc)
    for key, state in states[:: max(len(states) // 4, 1)]:
        with Loader(pipe, executor="threads", workers=2, **options) as loader:  # type: ignore[arg-type]
            try:
                loader.load_state_dict(json.loads(json.dumps(state)))
                prints = {key: read_print(next(iter(loader)))}
            except (BatchkitError, StopIteration) as exc:
                return Difference(key, (), (), f"resuming at it raised {type(exc).__name__}: {exc}")
        found = difference({key: reference.prints[key]}, prints)
        if found is not None:
            return found
    return None


def _states(pipe: Pipeline, reference: Reference) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """Yield states from which the next batch is one of the steps that are known."""
    with Loader(pipe, executor="inline") as loader:
        if not reference.indexed:
            last = max(key.step for key in reference.keys if key.epoch == 0)
            batches = iter(loader)
            for step in range(last + 1):
                if Key(0, step) in reference.prints:
                    yield Key(0, step), loader.state_dict()
                if next(batches, None) is None:
                    return
            return
        steps = loader.plan.steps_per_epoch
        for key in reference.keys:
            state = {**loader.state_dict(), "epoch": key.epoch, "step": key.step}
            before = _one_before(key, steps)
            if before in reference.prints:  # a state as it is taken in the middle of a run
                loader.load_state_dict({**state, "epoch": before.epoch, "step": before.step})
                with contextlib.closing(iter(loader)) as batches:
                    next(batches, None)
                    state = loader.state_dict()
            yield key, state


def _one_before(key: Key, steps: int | None) -> Key:
    if key.step == 0 and key.epoch and steps is not None:
        return Key(key.epoch - 1, steps - 1)
    return Key(key.epoch, key.step - 1)


CHECKS = (
    Way("again", "the same steps, computed a second time", _again),
    Way("order", "in another order, and a second later", _in_another_order),
    Way("process", "in another process", _in_a_process),
    Way("threads", "twice, by four threads at once", _in_threads),
    Way("batch size", "in batches of another size, row by row", _other_size),
    Way("ranks", "as several ranks, whose parts are put together", _as_ranks),
    Way("resume", "by a new loader with two workers, from a state that went through JSON", _resumed),
)
"""Every way, in the order in which they are tried."""
