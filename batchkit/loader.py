"""The Loader: joins a plan, an executor, host slots and a backend."""

from __future__ import annotations

import os
import pickle
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from batchkit import tree as tree_
from batchkit.backends import Backend, NumpyBackend, Stager
from batchkit.buffers import NARROW, Slots, keep_freed_memory
from batchkit.choosing import chosen_backend, chosen_executor
from batchkit.errors import PipelineError, PipelineTypeError, StateError, nearest
from batchkit.executors import AutoExecutor, Executor, InlineExecutor, Run, Setting
from batchkit.iteration import BatchIterator, Cursor, Delivery, Work
from batchkit.likeness import Likeness
from batchkit.peers import known_options, option_hint
from batchkit.pipeline import Pipeline
from batchkit.plan import ChunkPlan, Feeds, Plan, Step, compile, empty_slices, static_shapes
from batchkit.plugins import Plugins, installed
from batchkit.report import Statistics, stage_names, text
from batchkit.resources import size_in_bytes
from batchkit.schema import LeafSpec
from batchkit.skipping import Guard, GuardedRun, Ledger, LeftOut, Skip, skip_of
from batchkit.sources import GeneratorSource
from batchkit.stages import Rebatch, Unbatch
from batchkit.stages.stage import at_least
from batchkit.staging import Staged, StagedRun, stager_for
from batchkit.state import STATE_VERSION, checked_cursor, packed_walk, unpacked_walk
from batchkit.trace import write_trace
from batchkit.tree import Tree

__all__ = ["Loader"]


class Loader:
    """Batches of a pipeline, as the arrays of one framework.

    One iteration is one epoch, and the next iteration is the next epoch. Batch ``k`` is a
    pure function of (pipeline, data, seed, k): nothing below changes what is in it.

    Args:
        pipeline: what to load; it ends in batches.
        backend: the name of a backend (``"numpy"``, ``"torch"``, ...) or a Backend object.
        device: the framework's device, or its name; the backend's default without it.
        executor: ``"auto"``: what the first steps show to be the fastest, or with a number of workers
            ``"threads"``; or ``"threads"``, ``"processes"``, ``"inline"``, another's name, an Executor object.
        workers: how many workers the executor has (``"inline"`` has none); ``"auto"``: what the first steps show
            to be the fastest with ``"auto"`` and ``"threads"``, else one a core.
        prefetch: how many finished batches may wait for the caller, besides one a worker; ``"auto"``:
            chosen together with the workers, else 2.
        memory_limit: how much memory batches in flight may take where workers are chosen: bytes, or text
            such as ``"2GB"``. By default a quarter of what is free, limits of the container respected.
        prefetch_to_device: whether a background thread keeps ``prefetch`` batches on the device; ``None``:
            where the device has memory of its own.
        shard: ``(rank, world)``: of every batch, this rank loads its slice of the rows.
        narrow: ``"checked"``: where the framework has no 64-bit type, narrow what fits and
            refuse what does not; ``"error"``: refuse to narrow at all.
        timeout: how many seconds a step may take, with ``"processes"`` (the worker is ended) or
            ``"threads"`` (the caller stops waiting).
        on_error: ``"raise"``, or ``"skip"`` or :class:`~batchkit.Skip` to leave out rows that
            cannot be read or whose function fails, up to a budget. Such a row makes its batch
            smaller, or is masked under ``remainder="pad"``.
        lineage: whether every batch says which source rows it holds: a leaf ``"lineage"`` (of a batch that is no dict:
            a last part) of int64 vectors ``place`` (row of the batch), ``source`` (0 unless pipelines are combined),
            ``row`` and ``epoch`` (the pass over the source), one entry for each source row.
        plugins: local plugins, by file (``"./my_plugin.py"``) or module name; one, or several.

    Raises:
        PipelineError: the pipeline or an option is not valid.
        BackendError: there is no such backend or device, or it cannot take a leaf's dtype.
    """

    @known_options
    def __init__(
        self,
        pipeline: Pipeline,
        backend: str | Backend = "numpy",
        *,
        device: Any = None,
        executor: str | Executor = "auto",
        workers: int | str = "auto",
        prefetch: int | str = "auto",
        memory_limit: int | str | None = None,
        prefetch_to_device: bool | None = None,
        shard: tuple[int, int] = (0, 1),
        narrow: str = "checked",
        timeout: float | None = None,
        on_error: str | Skip | Mapping[str, Any] = "raise",
        lineage: bool = False,
        plugins: str | Sequence[str] | Plugins = (),
    ) -> None:
        self._options: dict[str, Any] = {
            "backend": backend,
            "device": device,
            "executor": executor,
            "workers": workers,
            "prefetch": prefetch,
            "memory_limit": memory_limit,
            "prefetch_to_device": prefetch_to_device,
            "shard": shard,
            "narrow": narrow,
            "timeout": timeout,
            "on_error": on_error,
            "lineage": lineage,
            "plugins": plugins,
        }
        if narrow not in NARROW:
            raise PipelineError(
                f"narrow must be 'checked' or 'error', not {narrow!r}{nearest(str(narrow), list(NARROW))}"
            )
        if prefetch != "auto":
            prefetch = at_least(prefetch, "prefetch", 0)
        if not isinstance(lineage, bool):
            raise PipelineTypeError(f"lineage must be True or False, not {lineage!r}")
        self.plan: Plan = compile(pipeline, shard, lineage)
        _warn_of_empty_slices(self.plan)
        known = plugins if isinstance(plugins, Plugins) else installed().with_local(plugins) if plugins else installed()
        self.backend: Backend = chosen_backend(known, backend)
        self.device = self.backend.device(device)
        self._stager = stager_for(self.backend, self.device, prefetch_to_device)
        limit = None if memory_limit is None else size_in_bytes(memory_limit, "memory_limit")
        self.executor: Executor = chosen_executor(known, executor, workers, prefetch, limit, timeout)
        self._prefetch = 2 if prefetch == "auto" else int(prefetch)
        self._slots = Slots(self.backend, narrow)
        self.statistics = Statistics(stage_names(self.plan.pipeline))
        self._work = Work(self.plan, self._slots, self.statistics.meter)
        self._ledger = self._ledger_for(skip_of(on_error))
        self._chunk_works: dict[ChunkPlan, Work] = {}
        self._left_out: deque[list[LeftOut]] = deque()
        """What chunks have left out, for the batch that comes next."""
        self._lock = threading.RLock()
        self._cursor = Cursor(0, 0, fresh=True)
        self._placings = 0
        self._current: weakref.ref[BatchIterator] | None = None
        self._iterators: weakref.WeakSet[BatchIterator] = weakref.WeakSet()
        self._schema: Tree = None
        self._likeness: Likeness | None = None
        self._known_fingerprint: dict[str, Any] | None = None
        self._closed = False
        if not self.plan.by_row and not self.plan.has_functions:
            _ = self.schema  # an unknown leaf or dtype is better said now than with the first batch

    def _ledger_for(self, skip: Skip | None) -> Ledger | None:
        if skip is None:
            return None
        if any(isinstance(stage, (Unbatch, Rebatch)) for stage in self.pipeline.all_stages):
            raise PipelineError(
                "on_error='skip' cannot be used with unbatch(), whose rows are counted by their batches"
            )
        if self.plan.counts_what_may_fail is not None:
            raise PipelineError(
                f"on_error='skip' cannot be used with {self.plan.counts_what_may_fail} there: what it keeps is counted "
                "as it comes, and would be something else if a row was left out before. Put cache() before stages "
                "that are cut in order, or the functions that may fail behind cache()"
            )
        self._slots.guard = Guard()
        source = self.pipeline.source
        steps, size = self.plan.steps_per_epoch, self.plan.rows_per_batch
        known = None if steps is None else steps * size if size is not None else sum(map(len, self.pipeline.sources))
        return Ledger(skip, getattr(source, "kind", type(source).__name__), known)

    @property
    def skipped(self) -> int:
        """How many rows delivered batches have left out, under ``on_error="skip"``."""
        return 0 if self._ledger is None else self._ledger.total

    # -- what it is

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline."""
        return self.plan.pipeline

    @property
    def shard(self) -> tuple[int, int]:
        """``(rank, world)``."""
        return self.plan.shard

    @property
    def workers(self) -> int:
        """How many workers the executor has; 0 where it has none."""
        return int(getattr(self.executor, "workers", 0))

    @property
    def prefetch(self) -> int:
        """How many finished batches may wait for the caller, besides one a worker."""
        return self.setting.prefetch

    @property
    def setting(self) -> Setting:
        """What computes the steps: executor, workers and prefetch; where they are chosen, what was chosen so far."""
        if isinstance(self.executor, AutoExecutor):
            return self.executor.setting
        return Setting(self.executor.name, self.workers, self._prefetch)

    @property
    def epoch(self) -> int:
        """The epoch being iterated over, or, between two, the one that comes next."""
        return self._cursor.epoch

    @property
    def schema(self) -> Tree:
        """The :class:`~batchkit.schema.LeafSpec` of every leaf of a batch, as the backend gets it.

        Where functions or row-wise sources are involved, the first batch is computed to know.

        Raises:
            SchemaError: there is no batch.
            BackendError: the framework has nothing for a leaf's dtype.
        """
        if self._schema is None:
            self._schema = self._hosted(self.plan.schema(self._ledger is not None))
        return self._schema

    def _hosted(self, schema: Tree) -> Tree:
        """Return a schema with the dtypes that the backend wants."""
        leaves, treedef = tree_.flatten(schema)
        specs = [
            LeafSpec(self._slots.host_dtype(path, spec.dtype), spec.shape)
            for path, spec in zip(tree_.paths(treedef), leaves, strict=True)
        ]
        return tree_.unflatten(treedef, specs)

    @property
    def shapes(self) -> tuple[Tree, ...]:
        """The schema of every shape that a batch can have, as the backend gets it: a jitted step compiles once each.

        Known beforehand where shapes are static: with ``remainder="pad"`` or ``"drop"``, ``padded_batch(length=...)``,
        ``bucket_batch`` and ``pack``. Functions are tried on the first row.

        Raises:
            SchemaError: the shapes depend on the data; names the stage and the mend.
        """
        return tuple(map(self._hosted, static_shapes(self.plan)))

    @property
    def narrowing(self) -> Mapping[str, tuple[np.dtype[Any], np.dtype[Any]]]:
        """The leaves that the framework has only a narrower dtype for: ``{path: (data's, framework's)}``."""
        leaves, treedef = tree_.flatten(self.plan.schema(self._ledger is not None))
        pairs = {
            path: (spec.dtype, self._slots.host_dtype(path, spec.dtype))
            for path, spec in zip(tree_.paths(treedef), leaves, strict=True)
        }
        return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}

    def __len__(self) -> int:
        """Return the number of batches of an epoch.

        Raises:
            TypeError: the epoch is endless, or the number cannot be known.
        """
        if self.plan.steps_per_epoch is None:
            why = "a generator does not say how many rows it has"
            if self.plan.endless:
                why = "it is endless, as repeat() and mix(stop='forever') are"
            elif self.plan.chunks or not isinstance(self.pipeline.source, GeneratorSource):
                why = "how many batches come out is known only in the end"
            raise TypeError(f"this loader has no length: {why}")
        return self.plan.steps_per_epoch

    def __bool__(self) -> bool:
        """Return ``True``, also where there is no length, or no batch."""
        return True

    def __repr__(self) -> str:
        where = f"backend={self.backend.name!r} executor={self.executor.name!r}"
        return f"<Loader {where} shard={self.shard} epoch={self.epoch}>"

    # -- iterating

    def __iter__(self) -> BatchIterator:
        """Start the next epoch, or go on in the middle of one after :meth:`load_state_dict`.

        A thread that comes while others iterate joins them: each batch goes to exactly one.
        """
        with self._lock:
            self._check_open()
            current = self._current() if self._current is not None else None
            if current is not None and current.joined():
                return current
            before = self._cursor
            cursor = Cursor(before.epoch + 1, 0)
            if before.fresh:
                cursor = Cursor(before.epoch, before.step, walk=before.walk)
            iterator = self._iterator(cursor, (0, 1), moves_on=True)
            self._cursor, self._current = cursor, weakref.ref(iterator)
            return iterator

    def iterate(self, epoch: int, part: tuple[int, int] = (0, 1), start: int = 0) -> BatchIterator:
        """Return the batches of one epoch without moving the loader's own cursor.

        Only batches ``k`` with ``k >= start`` and ``k % part[1] == part[0]`` are loaded.
        """
        with self._lock:
            self._check_open()
            cursor = Cursor(at_least(epoch, "epoch", 0), at_least(start, "start", 0))
            return self._iterator(cursor, part, moves_on=False)

    def _iterator(self, cursor: Cursor, part: tuple[int, int], moves_on: bool) -> BatchIterator:
        check = self._check if self.plan.has_functions or self.plan.by_row else None
        if self._stager is None:
            delivery = Delivery(
                self.plan, self._start, check, self.backend.put, self.device, self.statistics, self._feed
            )
        else:
            delivery = _staged(self._stager, self.plan, self._start_staged, check, self.statistics, self._feed)
        iterator = BatchIterator(delivery, cursor, part, moves_on)
        self._iterators.add(iterator)
        return iterator

    def _start(self, steps: Iterator[Step]) -> Run:
        """Have steps computed: by the executor, unless that has chunks to compute and nothing is left of the work."""
        keep_freed_memory()
        if self.plan.chunks and (isinstance(self.executor, AutoExecutor) or not self.plan.has_late_functions):
            return InlineExecutor().run(self._work, steps, 1)
        return self._run(self._work, steps)

    def _feed(self, chunks: ChunkPlan, steps: Iterator[Step]) -> Run:
        """Have the executor compute chunks."""
        work = self._chunk_works.get(chunks)
        if work is None:
            slots = Slots(NumpyBackend(), "checked")
            slots.guard = None if self._ledger is None else Guard()
            work = self._chunk_works[chunks] = Work(chunks, slots, self.statistics.meter)
        run = self._run(work, steps)
        return run if work.slots.guard is None else GuardedRun(run, work.slots.guard, self._left_out)

    def _run(self, work: Work, steps: Iterator[Step]) -> Run:
        executor = self.executor
        window = executor.window if isinstance(executor, AutoExecutor) else self.setting.window
        return executor.run(work, steps, window)

    def _start_staged(self, steps: Iterator[Step]) -> Run:
        """The same, and have a thread put the batches on the device."""
        assert self._stager is not None
        return StagedRun(self._start(steps), self._stager, self._prefetch, self.statistics.meter)

    def _check_open(self) -> None:
        if self._closed:
            raise PipelineError("this loader is closed. Make a new one, or leave close() and the with statement out")

    def _check(self, host: Tree, epoch: int, number: int) -> None:
        """Look at a batch before it is delivered: are rows missing, and is it like the first one?"""
        if self._ledger is not None:
            left_out = self._slots.guard.pop((epoch, number))
            while self._left_out:
                left_out = [*left_out, *self._left_out.popleft()]
            # A batch that a function has made does not say of how many rows: of a full one's, as good as always.
            rows = self.plan.share if self.plan.collates else len(tree_.flatten(host)[0][0])
            self._ledger.add(epoch, number, rows, left_out)
        if self._likeness is None:
            self._likeness = Likeness(host, (epoch, number), self.plan.varies, self.plan.collates)
        else:
            self._likeness.check(host, (epoch, number), self.plan.last_function)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return where the caller is: what was delivered, never what was prefetched.

        JSON-able, of constant size, and the same for every rank, executor and backend.
        """
        epoch, step, walk = self._place()
        state = {"version": STATE_VERSION, "epoch": epoch, "step": step, "pipeline": self._fingerprint()}
        if walk is not None:
            state["walk"] = packed_walk(epoch, step, walk)
        return state

    def _place(self) -> tuple[int, int, Any]:
        """Return epoch, step and walk; behind the last batch of an epoch those of the next one."""
        with self._lock:
            epoch, step, walk = self._cursor.epoch, self._cursor.step, self._cursor.walk
        if self.plan.steps_per_epoch is not None and step >= self.plan.steps_per_epoch:
            epoch, step = epoch + 1, 0
        return epoch, step, walk

    def _fingerprint(self) -> dict[str, Any]:
        if self._known_fingerprint is None:
            self._known_fingerprint = self.plan.fingerprint()
        return {"source": self._known_fingerprint["source"], "stages": list(self._known_fingerprint["stages"])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where ``state`` was taken: the next iteration goes on with the batch after it.

        Raises:
            StateError: the state is damaged, or of another pipeline or data set; names what differs.
        """
        epoch, step = checked_cursor(state, self._fingerprint())
        steps = self.plan.steps_per_epoch
        if steps is not None and step > steps:
            raise StateError(f"the state is at step {step}, but an epoch has {steps} batches: it is damaged")
        if steps is not None and step == steps and steps:
            epoch, step = epoch + 1, 0
        walk = unpacked_walk(state, self.plan.indexed)
        with self._lock:
            self._check_open()
            self._put(Cursor(epoch, step, fresh=True, walk=walk))

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one: the next iteration begins with its first batch.

        An iteration that is going on goes on by itself, and no longer moves the loader.

        Raises:
            PipelineError: it is negative, or no whole number.
        """
        wanted = at_least(epoch, "set_epoch(epoch)", 0)
        with self._lock:
            self._check_open()
            self._put(Cursor(wanted, 0, fresh=True))

    @property
    def placings(self) -> int:
        """How often the loader was put somewhere, by :meth:`load_state_dict` or :meth:`set_epoch`.

        For data sets that count epochs by themselves: the place alone does not show that a loader
        was put to where it stood already.
        """
        return self._placings

    def _put(self, cursor: Cursor) -> None:
        self._cursor, self._current = cursor, None
        self._placings += 1

    # -- handing over

    def as_dataset(self) -> Any:
        """Return the framework's own data set: an ``IterableDataset``, a ``tf.data.Dataset``, a JAX iterator."""
        self._check_open()
        return self.backend.as_dataset(self)

    def host_slots(self) -> Slots:
        """Return new host memory of the kind that this loader's batches are written to."""
        return Slots(self.backend, self._options["narrow"])

    def replicate(self, **changes: Any) -> Loader:
        """Return a new loader of the same pipeline and options, some of them changed, at epoch 0."""
        for name in changes:
            if name not in self._options:
                raise PipelineError(f"Loader has no option {name!r}{option_hint(name, self._options)}")
        return Loader(self.pipeline, **{**self._options, **changes})

    def __reduce__(self) -> tuple[Any, ...]:
        # Functions may be lambdas, which pickle refuses; a copy starts where this loader is.
        import cloudpickle

        options = {**self._options, "backend": self.backend, "executor": self.executor, "plugins": ()}
        described = cloudpickle.dumps((self.pipeline, options))
        return _restored, (described, *self._place())

    def report(self) -> str:
        """Return where the time went: what each stage takes, how long the caller waits, and the bottleneck."""
        tuner = self.executor.tuner if isinstance(self.executor, AutoExecutor) else None
        chosen, settled = ("", False) if tuner is None else (tuner.text(), tuner.settled is not None)
        return text(self.statistics, self.setting, self.backend.name, chosen, settled)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write what was measured so far as Chrome trace events, which Perfetto and ``chrome://tracing`` open.

        One row a thread, one box a stage of a step, and the caller's waiting. The latest 8,192
        boxes are kept; of steps that take less than about a millisecond only some are measured.

        Raises:
            OSError: the file cannot be written.
        """
        write_trace(self.statistics, path)

    def close(self) -> None:
        """End all iterations; no thread stays behind. May be called again."""
        with self._lock:
            self._closed = True
            iterators = list(self._iterators)
        for iterator in iterators:
            iterator.close()
        if isinstance(self._options["executor"], str):
            end_workers = getattr(self.executor, "close", None)
            if end_workers is not None:
                end_workers()
        else:  # others may share it
            release = getattr(self.executor, "release", None)
            if release is not None:
                for plan in (self.plan, *self.plan.chunks):
                    release(plan)
        if self._stager is not None:
            self._stager.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _warn_of_empty_slices(plan: Plan) -> None:
    told = empty_slices(plan)
    if told is not None:
        warnings.warn(told, UserWarning, stacklevel=4)


def _staged(
    stager: Stager,
    plan: Plan,
    start: Callable[[Iterator[Step]], Run],
    check: Callable[[Tree, int, int], None] | None,
    statistics: Statistics,
    feeds: Feeds,
) -> Delivery:
    """Return the delivery of batches that a stager has put on the device."""

    def checked(staged: Staged, epoch: int, number: int) -> None:
        assert check is not None
        check(staged.host, epoch, number)

    def received(staged: Staged, device: Any) -> Tree:
        return stager.receive(staged.sent)

    return Delivery(plan, start, None if check is None else checked, received, None, statistics, feeds)


def _restored(described: bytes, epoch: int, step: int, walk: Any) -> Loader:
    pipeline, options = pickle.loads(described)
    loader = Loader(pipeline, **options)
    loader._cursor = Cursor(epoch, step, fresh=True, walk=walk)
    return loader
