"""A contender's own process: it loads the config for one backend and executor, and runs a turn when told to.

Requests and replies are JSON, one a line. A reply has ``problem`` where it failed. The process
ends when its standard input does, even in the middle of a turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from batchkit.backends import row_count
from batchkit.bench import memory
from batchkit.config import load
from batchkit.errors import BatchkitError, ConfigError
from batchkit.loader import Loader
from batchkit.plugins import installed
from batchkit.tree import Tree, flatten

__all__ = ["Contestant", "main", "run_turn"]

LONG_ENOUGH = 0.3
"""Seconds: epochs that take less are repeated within a turn, because one of them measures little but noise."""


def main() -> NoReturn:
    """Answer requests until the process ends with its standard input."""
    requests, replies = _own_streams()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is narrowed is none of the benchmark's business
        contestant = Contestant()
        while True:
            replies.write(json.dumps(_answer(contestant, json.loads(requests.get()))) + "\n")
            replies.flush()


def _own_streams() -> tuple[queue.SimpleQueue[str], TextIO]:
    """Take stdin and stdout away from the user's functions, and watch for the end of the caller."""
    incoming = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in incoming:
            requests.put(line)
        os._exit(0)  # the caller is gone, or wants no more; a turn may be hanging

    threading.Thread(target=listen, name="batchkit-bench", daemon=True).start()
    return requests, replies


def _answer(contestant: Contestant, request: dict[str, Any]) -> dict[str, Any]:
    kind = request.pop("request")
    try:
        if kind == "open":
            return contestant.open(**request)
        if kind == "turn":
            return contestant.turn(**request)
        contestant.close()
        return {}
    except Exception as exc:  # also those of a framework or of the user's own
        return {"problem": f"{type(exc).__name__}: {exc}", "config": isinstance(exc, ConfigError)}


class Contestant:
    """One backend and executor."""

    def __init__(self) -> None:
        self._loader: Loader | None = None
        self._imported: int | None = None
        self._row_bytes: int | None = None
        self._sized = False

    def open(
        self, config: str, pipeline: str | None, overrides: dict[str, Any], allow_imports: bool, backend: str
    ) -> dict[str, Any]:
        """Load the config, and return what is to be known of the contender."""
        began = time.perf_counter()
        with contextlib.suppress(BatchkitError):  # one of a local plugin is only known to the config
            installed().backend(backend)
        memory.forget_peak()
        self._imported = memory.peak()
        self._loader = load(config, pipeline=pipeline, overrides=overrides, allow_imports=allow_imports)
        facts = {
            "device": None if self._loader.device is None else str(self._loader.device),
            "workers": self._loader.workers,
            "prefetch": self._loader.prefetch,
            "version": str(getattr(sys.modules.get(backend), "__version__", "")),
        }
        return {"start_s": time.perf_counter() - began, "facts": facts}

    def turn(self, steps: int | None, seconds: float, work_ms: float, busy: bool) -> dict[str, Any]:
        """Run one turn, and return the raw figures of it."""
        assert self._loader is not None
        memory.forget_peak()
        figures = run_turn(self._loader, steps, seconds, _consumer(work_ms / 1e3, busy), self._held)
        if not self._sized:
            self._row_bytes, self._sized = _row_bytes(self._loader), True
        if self._row_bytes is not None:
            figures["bytes"] = figures["rows"] * self._row_bytes
        return figures

    def _held(self) -> int | None:
        peak = memory.peak()
        if peak is None or self._imported is None:
            return None
        return max(peak - self._imported, 0) + memory.workers()

    def close(self) -> None:
        """End the workers."""
        if self._loader is not None:
            self._loader.close()


def run_turn(
    loader: Loader,
    steps: int | None,
    seconds: float,
    work: Callable[[], None] | None = None,
    held: Callable[[], int | None] = lambda: None,
) -> dict[str, Any]:
    """Load batches and return how long that took, under the names of :class:`~batchkit.bench.record.Turn`.

    ``work`` is called for every batch; ``held`` at the end, when the workers are still there.

    Raises:
        BatchkitError: there is no batch, or loading one failed.
    """
    now = time.perf_counter
    batches, rows, waited, taken = 0, 0, 0.0, 0.0
    first: float | None = None
    peak: int | None = None
    batch: Tree = None
    enough = False
    began = now()
    while not enough:
        asked = now() if batches else began
        iterator = iter(loader)
        try:
            for batch in iterator:
                got = now()
                waited += got - asked
                first = got - began if first is None else first
                batches += 1
                rows += row_count(batch)
                if work is not None:
                    work()
                asked = now()
                enough = batches == steps or asked - began >= seconds
                if enough:
                    break
            else:
                waited += now() - asked
            if first is None:
                raise BatchkitError("the pipeline has no batches: there is nothing to measure")
            _finish(batch)
            taken = now() - began
            enough = enough or (steps is None and taken >= min(LONG_ENOUGH, seconds))
            if enough:
                peak = held()
        finally:
            iterator.close()
    return {
        "seconds": taken,
        "batches": batches,
        "rows": rows,
        "waited_s": waited,
        "first_s": first,
        "bytes": None,
        "peak_bytes": peak,
    }


def _finish(batch: Tree) -> None:
    """Wait until an accelerator has the batch: frameworks copy to it in the background."""
    for leaf in flatten(batch)[0]:
        if hasattr(leaf, "block_until_ready"):
            leaf.block_until_ready()
        elif getattr(leaf, "is_cuda", False):
            leaf.ravel()[:1].cpu()


def _consumer(seconds: float, busy: bool) -> Callable[[], None] | None:
    """Return what takes the consumer's time for every batch."""
    if not seconds:
        return None

    def compute() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return compute if busy else lambda: time.sleep(seconds)


def _row_bytes(loader: Loader) -> int | None:
    """Return the bytes of a row as the backend gets it; ``None`` where rows differ or are not plain bytes."""
    total = 0
    if loader.plan.collates:
        return None
    try:
        leaves = flatten(loader.schema)[0]
    except BatchkitError:
        return None
    for spec in leaves:
        sides = spec.shape[1:]
        if None in sides or spec.dtype.hasobject or spec.dtype.kind == "T":
            return None
        size = spec.dtype.itemsize
        for side in sides:
            size *= side
        total += size
    return total
