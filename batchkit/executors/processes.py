"""Steps computed by worker processes, which write their batches to memory that the caller shares."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any, cast

from batchkit.errors import PipelineError, WorkerError, nearest
from batchkit.executors.executor import Run, Work, seconds, worker_count
from batchkit.executors.feeding import FedWorker
from batchkit.executors.pieces import Pieces
from batchkit.executors.threads import ThreadRun, meter_of
from batchkit.executors.transport import Channel, Crew, Transport, has_posix
from batchkit.executors.worker import PlannedWork

__all__ = ["ProcessExecutor"]

STARTS = ("auto", "forkserver", "spawn")
"""How workers may be started; ``"auto"`` is ``"forkserver"`` where there is one."""


class ProcessExecutor:
    """``workers`` processes, for functions that hold the GIL.

    Each worker is fed by a thread of the caller's, so that order, window and closing are
    those of the thread executor. Workers stay for the next epoch; they end with the loader.
    ``timeout`` is how many seconds a step may take. ``start`` is how workers are started:
    ``"forkserver"`` on Linux and macOS, ``"spawn"`` everywhere, ``"auto"`` for the first that there is.
    """

    name = "processes"

    def __init__(self, workers: Any = "auto", timeout: float | None = None, start: str = "auto") -> None:
        self.workers = worker_count(workers)
        self.timeout = seconds(timeout)
        self.start = start
        self._transport = transport_of(start)
        self._pools: list[_Pool] = []
        self._finalizer = weakref.finalize(self, _stop_all, self._pools)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.workers, self.timeout, self.start)

    def run(self, plan: Work, steps: Iterator[Any], window: int) -> Run:
        """Start computing; the first run starts the workers.

        Raises:
            PipelineError: a function cannot be sent to another process; names its stage.
        """
        return _ProcessRun(self, self._pool(plan), steps, max(window, 1))

    def ready(self, plan: Work) -> bool:
        """Start the workers, if they are not there yet; say at once whether they have imported what they need.

        Raises:
            PipelineError: a function cannot be sent to another process; names its stage.
        """
        return self._pool(plan).ready(self.workers)

    def _pool(self, plan: Work) -> _Pool:
        key = getattr(plan, "plan", plan)
        # A forked child has the pools of its parent, whose workers are not for both of them.
        pool = next((pool for pool in self._pools if pool.key is key and pool.process == os.getpid()), None)
        if pool is None:
            pool = _Pool(key, plan, self.timeout, self._transport)
            self._pools.append(pool)
        return pool

    def release(self, plan: Any) -> None:
        """End the workers of one plan."""
        for pool in [pool for pool in self._pools if pool.key is plan]:
            self._pools.remove(pool)
            pool.stop()

    def close(self) -> None:
        """End all workers."""
        _stop_all(self._pools)


def _stop_all(pools: list[_Pool]) -> None:
    while pools:
        with contextlib.suppress(IndexError):  # another thread stops them, too
            pools.pop().stop()


class _ProcessRun(ThreadRun):
    """A run of threads each of which has a worker process do its work."""

    def __init__(self, executor: ProcessExecutor, pool: _Pool, steps: Iterator[Any], window: int) -> None:
        self._executor = executor  # whose end would be the workers' end
        workers = [pool.take() for _ in range(min(executor.workers, window))]
        pool.pieces.expect(len(workers), window)

        def interrupt() -> None:
            for worker in workers:
                worker.interrupt()

        def give_back() -> None:
            for worker in workers:
                pool.give(worker)

        super().__init__(steps, window, [worker.compute for worker in workers], interrupt, give_back, meter=pool.meter)


class _Pool:
    """The workers of one plan, and the crew that starts them."""

    def __init__(self, key: Any, work: Any, timeout: float | None, transport: Transport) -> None:
        self.key, self.timeout, self.transport = key, timeout, transport
        self.pieces = Pieces(transport)
        self.plan: Any = getattr(work, "plan", None)
        self.slots = cast(Any, getattr(work, "slots", None))
        self.meter = meter_of(work)
        self.described = _described(
            work if self.plan is None else PlannedWork(self.plan, self.slots.backend, self.slots.guard is not None),
            self.plan,
        )
        # Re-entrant: the garbage collector may stop a pool in the middle of anything.
        self._lock = threading.RLock()
        self._free: list[FedWorker] = []
        self._all: list[FedWorker] = []
        self._crew: Crew | None = None
        self._preparing: ThreadRun | None = None
        self.prepared = False
        self.process = os.getpid()
        self.stopped = False

    def take(self) -> FedWorker:
        """Return a worker that nobody else has."""
        with self._lock:
            if self._free:
                worker = self._free.pop(0)
                worker.resume()
                return worker
            worker = FedWorker(self)
            self._all.append(worker)
            return worker

    def give(self, worker: FedWorker) -> None:
        """Take a worker back, unless its thread is still about to find out that it was interrupted."""
        with self._lock:
            if worker not in self._free and not worker.busy:
                self._free.append(worker)

    def ready(self, count: int) -> bool:
        """Have so many workers start, at first; say whether that is done. A worker that fails to fails again later."""
        if not self.prepared:
            with self._lock:
                if self._preparing is None and not self.stopped:
                    workers = [self.take() for _ in range(count)]
                    self._preparing = ThreadRun(iter(workers), count, [FedWorker.prepare] * count)
                preparing = self._preparing
            if preparing is not None and preparing.waiting < count:
                return False
            self._end_preparing()
            self.prepared = True
        return True

    def _end_preparing(self) -> None:
        with self._lock:
            preparing, self._preparing = self._preparing, None
        if preparing is not None:
            preparing.close()
            for worker in self._all:
                self.give(worker)

    def start(self) -> tuple[Channel, int]:
        """Start a worker process.

        Raises:
            EOFError: the pool was stopped.
        """
        for _ in range(2):
            with self._lock:
                if self.stopped:
                    raise EOFError("the pool was stopped")
                crew = self._crew = self._crew or self.transport.Crew()
            if self.stopped:  # meanwhile
                crew.stop()
            try:
                return crew.start()
            except EOFError:  # somebody has killed the server: its workers are gone, too
                with self._lock:
                    if self._crew is crew:
                        self._crew = None
                crew.stop()
        raise WorkerError("worker processes, or what starts them, end at once: see what they printed on stderr")

    def kill(self, process: int) -> None:
        """End a worker process; without a crew there is none that does not end by itself."""
        crew = self._crew
        if crew is not None:
            crew.kill(process)

    def ending(self, process: int) -> str:
        """Return in words how a worker ended."""
        crew = self._crew
        status = crew.status(process) if crew is not None else None
        if status is None:
            return "it is gone"
        if status < 0:
            return f"signal {-status} ({signal.Signals(-status).name})"
        return f"exit code {status}"

    def stop(self) -> None:
        """End all workers and the crew."""
        if os.getpid() != self.process:
            return
        with self._lock:
            self.stopped = True
            workers, self._all, self._free = self._all, [], []
        for worker in workers:
            worker.shut()
        self._end_preparing()
        with self._lock:
            crew, self._crew = self._crew, None
        if crew is not None:
            crew.stop()
        self.pieces.close()


def _described(job: Any, plan: Any) -> bytes:
    import cloudpickle

    try:
        described: bytes = cloudpickle.dumps(job)
        return described
    except Exception as exc:
        what = _culprit(plan.pipeline) if plan is not None else f"the {type(job).__name__}"
        raise PipelineError(
            f"{what} cannot be sent to a worker process: {exc}. Leave out what belongs to this process alone "
            "(locks, open files, connections), or use executor='threads'"
        ) from exc


def _culprit(pipeline: Any) -> str:
    import cloudpickle

    for number, stage in enumerate(pipeline.all_stages):
        try:
            cloudpickle.dumps(stage)
        except Exception:
            return f"stage {number} {stage.label}"
    source = pipeline.sources[0]
    for source in pipeline.sources:
        try:
            cloudpickle.dumps(source)
        except Exception:
            break
    return f"the source {getattr(source, 'kind', type(source).__name__)!r}"


def transport_of(start: Any) -> Transport:
    """Return the transport that starts workers as ``start=`` says.

    Raises:
        PipelineError: it is no such way, or there is none here.
    """
    if start not in STARTS:
        hint = nearest(start, list(STARTS)) if isinstance(start, str) else ""
        raise PipelineError(f"start must be 'auto', 'forkserver' or 'spawn', not {start!r}{hint}")
    if start == "forkserver" and not has_posix():
        raise PipelineError("start='forkserver' needs fork and Unix sockets, which this Python lacks: leave start out")
    if start == "spawn" or not has_posix():
        from batchkit.executors import portable

        return portable
    from batchkit.executors import posix

    return posix
