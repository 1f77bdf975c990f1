"""A worker process, as the thread that feeds it sees it: steps go out, batches come back in shared memory."""

from __future__ import annotations

import os
import pickle
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import WorkerError
from batchkit.executors.arena import Arena, find, sizes
from batchkit.executors.pieces import Holder, Piece
from batchkit.executors.transport import Channel, packed
from batchkit.metering import SOURCE, Sheet
from batchkit.sources.stacking import detached
from batchkit.tree import Tree

__all__ = ["ATTEMPTS", "FedWorker"]

ATTEMPTS = 3
"""How often a step is computed whose worker dies, before it is given up."""

SMALL = 1 << 16
"""Up to so many bytes a batch is copied out of shared memory: it takes less time than making a new piece, and a caller
who keeps tens of thousands of batches does not use up the number of pieces that the system lets a process map."""

LARGE = 1 << 20
"""From so many bytes on, a caller who keeps a small leaf of a batch shall not keep the others with it."""


class FedWorker:
    """One worker process, as the thread that feeds it sees it."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._channel: Channel | None = None
        self._process = 0
        self._pieces = pool.pieces
        self._holder = Holder()
        self._taken: list[Piece] = []
        self.busy = False
        self._interrupted = False
        self._fresh = True
        self._ready = False
        self._lock = threading.RLock()

    # -- from any thread

    def interrupt(self) -> None:
        """End what the worker is busy with or about to begin; one that is idle stays."""
        with self._lock:
            self._interrupted = True
            if self.busy:
                self._kill()

    def resume(self) -> None:
        """Be there for another run."""
        with self._lock:
            self._interrupted = False

    def shut(self) -> None:
        """End the process."""
        with self._lock:
            self._interrupted = True
            self._kill()

    def _kill(self) -> None:
        if self._channel is not None and os.getpid() == self._pool.process:  # in a forked child they are not ours
            self._pool.kill(self._process)
            self._channel.close()

    # -- from the feeding thread

    def prepare(self, _: Any = None) -> None:
        """Return when the process is there and has imported what it needs.

        Raises:
            EOFError: it died, or was ended.
        """
        try:
            channel = self._started()
            while not self._ready:
                self._ready = channel.receive(None)[0] == ("ready",)
        except EOFError:
            self._lost()
            raise

    def compute(self, step: Any) -> Tree:
        """Return the host batch of a step; start the worker again if it dies meanwhile.

        Raises:
            WorkerError: it died again and again, or took too long.
            BaseException: what computing the step raised in the worker.
        """
        with self._lock:
            if self._interrupted:
                raise WorkerError(f"{self._named(step)}: the iteration was closed")
            self.busy = True
        meter = self._pool.meter
        sheet = None if meter is None else meter.sheet(elsewhere=True)
        try:
            batch = self._tried(step, sheet)
        except BaseException:
            if meter is not None and sheet is not None:
                meter.drop(sheet)
            raise
        else:
            if meter is not None and sheet is not None:
                sheet.step = (step.epoch, step.number)
                meter.add(sheet)
            return batch
        finally:
            for piece in self._taken:
                self._pieces.give(piece)
            self._taken.clear()
            with self._lock:
                self.busy = False

    def _tried(self, step: Any, sheet: Sheet | None) -> Tree:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(step, sheet)
            except EOFError as exc:
                how = self._lost()
                if self._interrupted or self._pool.stopped:
                    raise WorkerError(f"{self._named(step)}: the iteration was closed") from exc
                if attempt == ATTEMPTS:
                    raise WorkerError(
                        f"{self._named(step)}: its worker process died {ATTEMPTS} times, the last time by {how}. "
                        f"The step was given up{self._rows(step)}; look for what crashes or uses up memory there"
                    ) from None
        raise AssertionError("unreachable")

    def _once(self, step: Any, sheet: Sheet | None) -> Tree:
        channel = self._started()
        if sheet is not None:
            sheet.restart()
        deadline = None if self._pool.timeout is None else time.monotonic() + self._pool.timeout
        piece, handed = self._handed(step)
        if piece is None and self._pieces.need:
            piece = self._piece(self._pieces.need, step)
        if sheet is not None:
            sheet.lap(SOURCE, calls=0)
        self._send(channel, step, piece, handed, sheet is not None)
        while True:
            try:
                left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
                reply, _ = channel.receive(left)
            except TimeoutError:
                self._kill()
                self._lost()
                raise WorkerError(
                    f"{self._named(step)}: its worker process did not finish within timeout={self._pool.timeout} "
                    f"seconds and was ended{self._rows(step)}. Give it more time, or look for what hangs there"
                ) from None
            kind = reply[0]
            if kind == "ready":
                self._ready = True
                continue
            if piece is not None:
                self._pieces.mapped(piece, self._holder)
            if kind == "batch":
                assert piece is not None
                if reply[2]:
                    self._pool.slots.guard.put((step.epoch, step.number), reply[2])
                if sheet is not None and reply[3] is not None:
                    sheet.include(reply[3], self._fresh)
                self._fresh = False
                return find(piece.memory, reply[1], own=_own(piece.memory.size))
            if kind == "failed":
                raise _unpacked(*reply[1:])
            if kind == "grow":
                self._pieces.need = max(self._pieces.need, reply[1], 1)
                piece = self._piece(self._pieces.need, step)
                self._send_with(channel, piece.number, piece)
            else:
                channel.send(self._host_dtype(*reply[1:]))

    def _started(self) -> Channel:
        if self._channel is None:
            channel, process = self._pool.start()
            with self._lock:
                self._channel, self._process, self._fresh, self._ready = channel, process, True, False
                if self._interrupted:  # while it started
                    raise EOFError("the iteration was closed")
            channel.send(self._pool.described)
        return self._channel

    def _lost(self) -> str:
        """Forget the process that is gone; return how it ended."""
        for piece in self._taken:  # half written; whatever becomes of the process, nobody shall get them
            self._pieces.discard(piece)
        self._taken.clear()
        self._pieces.forget(self._holder)
        self._holder = Holder()
        with self._lock:
            channel, self._channel, process = self._channel, None, self._process
        if channel is None:
            return "a stop of the pool"
        self._pool.kill(process)  # it may have closed its end only
        channel.close()
        how: str = self._pool.ending(process)
        return how

    def _send(
        self, channel: Channel, step: Any, piece: Piece | None, handed: list[tuple[int, Any]], measured: bool
    ) -> None:
        try:
            job = packed((step, handed))
        except Exception as exc:
            raise WorkerError(
                f"{self._named(step)}: its rows cannot be sent to a worker process: {exc}. "
                "Yield arrays, numbers and text, or use executor='threads'"
            ) from exc
        number = None if piece is None else piece.number
        self._send_with(channel, (job, number, self._pieces.dropped(self._holder), measured), piece)

    def _send_with(self, channel: Channel, message: Any, piece: Piece | None) -> None:
        """Send a message, and the memory that it speaks of if the worker does not have it yet."""
        channel.send(message, () if piece is None or self._holder in piece.holders else (piece.handle,))

    def _piece(self, size: int, step: Any) -> Piece:
        try:
            piece: Piece = self._pieces.take(size, self._holder)
        except OSError as exc:
            raise WorkerError(
                f"{self._named(step)}: no shared memory of {size} bytes can be made for it, beside "
                f"{self._pieces.count} that batches lie in: {exc}. Keep fewer batches or copies of them, raise the "
                "limit that the system names, or use executor='threads'"
            ) from exc
        self._taken.append(piece)
        return piece

    def _handed(self, step: Any) -> tuple[Piece | None, list[tuple[int, Any]]]:
        """Gather what the worker cannot read itself: the rows of sources that live in this process, by source."""
        plan = self._pool.plan
        sources = () if plan is None else plan.pipeline.sources
        if not any(getattr(source, "in_memory", False) for source in sources):
            return None, []
        requests = [ask for ask in plan.requests(step) if getattr(sources[ask.source], "in_memory", False)]
        kinds = {place: _kinds(sources[place]) for place in {ask.source for ask in requests}}
        room = sum(sizes(kinds[ask.source] or (), len(ask.rows)) for ask in requests)
        piece = arena = None
        if any(kinds.values()):
            piece = self._piece(max(room, self._pieces.need, 1), step)
            arena = Arena(piece.memory)
        return piece, [
            (ask.source, _gathered(sources[ask.source], ask.rows, kinds[ask.source], arena)) for ask in requests
        ]

    def _host_dtype(self, leaf: str, dtype: Any) -> Any:
        try:
            return self._pool.slots.host_dtype(leaf, dtype)
        except Exception as exc:
            return exc

    def _named(self, step: Any) -> str:
        if hasattr(step, "number"):
            return f"epoch {step.epoch}, step {step.number}"
        return f"step {step!r}"

    def _rows(self, step: Any) -> str:
        if self._pool.plan is None:
            return ""
        asked = [request.rows for request in self._pool.plan.requests(step)]
        rows = np.concatenate(asked or [np.empty(0, np.int64)]).tolist()
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        return f" (rows [{shown}])"


def _own(size: int) -> int:
    """Return up to how many bytes a column of a piece of ``size`` bytes is copied out of it."""
    if size <= SMALL:
        return size
    return size // 8 if size >= LARGE else 0


def _kinds(source: Any) -> list[tuple[np.dtype[Any], tuple[int, ...]]] | None:
    """Return dtype and shape of what goes to shared memory; ``None``: its size is not known before it is read."""
    if hasattr(source, "read"):
        return None
    kinds = [(spec.dtype, spec.shape) for spec in tree_.flatten(source.schema)[0]]
    return None if any(None in shape for _, shape in kinds) else kinds  # ragged columns


def _gathered(source: Any, ids: npt.NDArray[np.int64], kinds: Any, arena: Arena | None) -> Any:
    """Return where the rows of one request lie, or the rows themselves."""
    if hasattr(source, "read"):
        return [detached(row) for row in source.read(ids)]
    if kinds is None or arena is None:
        return source.gather(ids)
    # The large ones last: a batch that needs more room than they do finds it there and behind them.
    order = sorted(range(len(kinds)), key=lambda index: sizes(kinds[index : index + 1], 1))
    columns = {index: arena.place((len(ids), *kinds[index][1]), kinds[index][0]) for index in order}
    treedef = tree_.flatten(source.schema)[1]
    layout = arena.layout(source.gather(ids, tree_.unflatten(treedef, [columns[index] for index in range(len(kinds))])))
    assert layout is not None
    return layout


class _RemoteTraceback(Exception):
    """The traceback of a worker process, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def _unpacked(error: bytes | None, cause: bytes | None, text: str, shown: str) -> BaseException:
    """Return the error that a worker sent, with the worker's traceback behind it."""
    exc: BaseException = WorkerError(f"a worker process raised {text}") if error is None else pickle.loads(error)
    behind = pickle.loads(cause) if cause is not None else None
    if behind is not None:
        behind.__cause__ = _RemoteTraceback(shown)
        exc.__cause__ = behind
    else:
        exc.__cause__ = _RemoteTraceback(shown)
    return exc
