"""What a worker process does: compute steps, one after the other, until the caller is gone."""

from __future__ import annotations

import functools
import pickle
import signal
import traceback
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.buffers import keep_freed_memory
from batchkit.errors import BatchkitError, WorkerError
from batchkit.executors.arena import Arena, ArenaSlots, Layout, RemoteBackend, size_of
from batchkit.executors.transport import Channel
from batchkit.metering import PROBED, MeasuredSlots, Sheet
from batchkit.plan import Plan, compile
from batchkit.plan.numbered.stores import told
from batchkit.ragged import Ragged
from batchkit.skipping import Guard, LeftOut
from batchkit.sources import GeneratorSource
from batchkit.sources.stacking import detached
from batchkit.stages import Cache
from batchkit.tree import Tree

__all__ = ["HandedColumns", "HandedRows", "PlannedWork", "work"]


def _nothing() -> tuple[Any, ...]:
    return ()


class _Handed:
    """Stands in for a source that stays with the caller, who hands over the rows of each step.

    Whether rows may be read ``again`` has its price: a batch is not written over rows that are kept.
    """

    def __init__(self, source: Any, again: bool) -> None:
        self.kind, self._again = getattr(source, "kind", type(source).__name__), again
        self._length, self._fingerprint = len(source), source.fingerprint()
        self.waiting: deque[Any] = deque()
        """What was handed over for the step and not read yet, a call's rows together."""
        self.numbers: list[npt.NDArray[np.int64]] | None = None
        """Whose rows are waiting, where a cache may ask for some of them only, in any order."""
        self._last: tuple[list[int], Any] = ([], None)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def fingerprint(self) -> str:
        """Return what the source itself says."""
        return self._fingerprint  # type: ignore[no-any-return]

    def _taken(self, rows: npt.NDArray[np.int64]) -> tuple[list[int] | None, Any]:
        """Return what was handed over for a call, and for rows that are read again which of those they are."""
        if self.numbers is not None:
            return self._found(rows, self.numbers)
        if self.waiting:
            block = self.waiting.popleft()
            if self._again:
                self._last = (rows.tolist(), block)
            return None, block
        ids, block = self._last
        return [ids.index(row) for row in rows.tolist()], block

    def _found(self, rows: npt.NDArray[np.int64], numbers: list[npt.NDArray[np.int64]]) -> tuple[list[int], Any]:
        """Return the call whose rows have all these among them, and which of its rows they are."""
        for there, block in zip(numbers, self.waiting, strict=True):
            order = np.argsort(there, kind="stable")
            found = np.searchsorted(there, rows, sorter=order)
            if len(there) and (found < len(there)).all() and (there[places := order[found]] == rows).all():
                return places.tolist(), block
        raise WorkerError(
            f"rows {rows[:8].tolist()} were not handed over. This is an error in batchkit: please report it"
        )


class HandedColumns(_Handed):
    """The columns that the caller has gathered."""

    def __init__(self, source: Any, again: bool) -> None:
        super().__init__(source, again)
        self.schema = source.schema

    def handed(self, rows: npt.NDArray[np.int64]) -> Tree:
        """Return the columns that the caller has gathered for these rows."""
        places, block = self._taken(rows)
        if places is None:
            return block
        again = np.array(places, np.int64)
        return tree_.map_leaves(lambda leaf: leaf.take(again) if isinstance(leaf, Ragged) else leaf[again], block)

    def gather(self, rows: npt.NDArray[np.int64], out: Tree | None = None) -> Tree:
        """Return the same; what is handed over needs no ``out``."""
        return self.handed(rows)


class HandedRows(_Handed):
    """The same for a source that is read row by row."""

    def read(self, rows: npt.NDArray[np.int64]) -> list[Tree]:
        """Return the rows that the caller has read."""
        places, block = self._taken(rows)
        if places is None:
            return [detached(row) for row in block]
        return [detached(block[place], copy=True) for place in places]


class PlannedWork:
    """A plan as a worker gets it: described, with the facts of the backend, compiled on arrival."""

    def __init__(self, plan: Plan, backend: Any, skips: bool) -> None:
        self._skips = skips
        self._shard, self._lineage = plan.shard, getattr(plan, "lineage", False)
        self._facts = (backend.name, backend.alignment, getattr(backend, "widening", ""))
        self._pipeline = told(plan.sent).with_sources(functools.partial(_stand_in, again=skips))
        self._caches = any(isinstance(stage, Cache) for stage in plan.sent.all_stages)

    def arrive(self, channel: Channel) -> None:
        """Get ready, in the worker."""
        keep_freed_memory()
        self._plan = compile(self._pipeline, self._shard, self._lineage)
        self._slots = ArenaSlots(RemoteBackend(*self._facts, lambda leaf, dtype: _asked(channel, leaf, dtype)))
        self._slots.guard = Guard() if self._skips else None
        self._probes = PROBED

    @property
    def last_function(self) -> str:
        """How a message about a batch names the last function that it went through."""
        last: str = self._plan.last_function
        return last

    def left_out(self, step: Any) -> list[LeftOut]:
        """Return the rows that a step has left out."""
        return self._slots.guard.pop((step.epoch, step.number)) if self._skips else []

    def compute(
        self, step: Any, arena: Arena | None, handed: list[tuple[int, Any]], measured: bool
    ) -> tuple[Tree, Any]:
        """Return the host batch of a step, and what it took if it is ``measured``.

        What was handed over is read instead of the source.
        """
        self._hand_over(handed, step)
        self._slots.arena = arena
        if not measured:
            return self._plan.compute(step, self._slots), None
        sheet = Sheet(probed=self._probes > 0)
        self._probes -= 1
        sheet.watch()
        try:
            return self._plan.compute(step, MeasuredSlots(self._slots, sheet)), sheet.packed()
        finally:
            sheet.end()

    def _hand_over(self, handed: list[tuple[int, Any]], step: Any) -> None:
        """Have the rows read that the caller has sent; whoever else refers to them keeps their memory in use."""
        sources = self._pipeline.sources
        for source in sources:
            if isinstance(source, _Handed):
                source.waiting.clear()
                source.numbers = [] if self._caches else None
        for place, block in handed:
            sources[place].waiting.append(block)
        handed.clear()
        for ask in self._plan.requests(step) if self._caches else ():
            numbers = getattr(sources[ask.source], "numbers", None)
            if numbers is not None:
                numbers.append(ask.rows)


def _stand_in(source: Any, again: bool) -> Any:
    """Return what a worker has in the place of a source that only the caller can read."""
    if getattr(source, "in_memory", False):
        return HandedRows(source, again) if hasattr(source, "read") else HandedColumns(source, again)
    if isinstance(source, GeneratorSource):  # pulled by the caller, and maybe of what only the caller has
        return GeneratorSource(_nothing, source.batched)
    return source


def _asked(channel: Channel, leaf: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    channel.send(("host_dtype", leaf, dtype))
    answer, _ = channel.receive()
    if isinstance(answer, BaseException):
        raise answer
    return answer  # type: ignore[no-any-return]


def work(channel: Channel) -> None:
    """Compute what comes until the caller is gone.

    Raises:
        EOFError: the caller is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends us
    described, _ = channel.receive()
    job: Any = None
    problem: BaseException | None = None
    try:
        job = pickle.loads(described)
        if isinstance(job, PlannedWork):
            job.arrive(channel)
    except Exception as exc:
        problem = exc
    channel.send(("ready",))
    arenas: dict[int, npt.NDArray[np.uint8]] = {}
    while True:
        (sent, number, dropped, measured), memories = channel.receive()
        for old in dropped:
            arenas.pop(old, None)
        _map(arenas, number, memories)
        arena = Arena(arenas[number]) if number is not None else None
        try:
            if problem is not None:
                raise WorkerError(f"a worker could not take the pipeline over: {problem}") from problem
            step, handed = pickle.loads(sent)
            tree, took = _computed(job, step, arena, handed, measured)
            left_out = job.left_out(step) if isinstance(job, PlannedWork) else []
        except BaseException as exc:
            channel.send(("failed", *_packed(exc)))
        else:
            try:
                _deliver(channel, tree, arena, arenas, (left_out, took))
            except EOFError:
                raise
            except Exception as exc:
                channel.send(("failed", *_packed(_unsendable(job, step, exc))))
        tree = arena = None


def _computed(
    job: Any, step: Any, arena: Arena | None, handed: list[tuple[int, Any]], measured: bool
) -> tuple[Tree, Any]:
    if not isinstance(job, PlannedWork):
        return job.compute(step), None
    if arena is not None:
        handed = [(place, arena.handed(block) if isinstance(block, Layout) else block) for place, block in handed]
    return job.compute(step, arena, handed, measured)


def _deliver(
    channel: Channel, tree: Tree, arena: Arena | None, arenas: dict[int, Any], besides: tuple[list[LeftOut], Any]
) -> None:
    """Send where the batch lies; if it does not fit, ask for more room first."""
    layout = arena.layout(tree) if arena is not None else None
    while layout is None:
        channel.send(("grow", size_of(tree) if arena is None else arena.wanted(tree)))
        number, memories = channel.receive()
        _map(arenas, number, memories)
        arena = Arena(arenas[number])
        layout = arena.layout(tree)
    channel.send(("batch", layout, *besides))


def _unsendable(job: Any, step: Any, exc: Exception) -> WorkerError:
    where, after = f"step {step!r}", ""
    if isinstance(job, PlannedWork):
        where, after = f"epoch {step.epoch}, step {step.number}", job.last_function
    error = WorkerError(
        f"{where}: the batch cannot be sent to the caller{after}: {exc}. Return dicts, tuples and named tuples of "
        "arrays, or use executor='threads'"
    )
    error.__cause__ = exc
    return error


def _map(arenas: dict[int, Any], number: int | None, memories: list[npt.NDArray[np.uint8]]) -> None:
    for memory in memories:
        assert number is not None
        arenas[number] = memory


def _packed(exc: BaseException) -> tuple[bytes | None, bytes | None, str, str]:
    """Return an error and its cause as far as they can be pickled, its text, and the worker's traceback."""
    shown = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    return _pickled(exc), _pickled(exc.__cause__), f"{type(exc).__name__}: {exc}", shown


def _pickled(exc: BaseException | None) -> bytes | None:
    if exc is None:
        return None
    try:
        import cloudpickle

        packed: bytes = cloudpickle.dumps(exc)
        same = type(pickle.loads(packed)) is type(exc) or isinstance(exc, BatchkitError)
        return packed if same else None
    except Exception:  # an exception may hold anything: its text goes in its place
        return None
