"""How the worker processes of a DataLoader agree on the epoch that comes next.

Every worker asks on its own, at its own time, and some may be ended before they could ask.
So none of them counts: each appends what it is to one small file, a *claim*, and replays
the file up to its own claim. The order of the claims in the file is the same for all, and
so is the outcome; nothing is locked, and a worker that is killed leaves nothing undone.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Claim", "EpochLog", "Position"]

_RECORD = struct.Struct("<9q")
# One write of less than a page at the end of a local file is not torn apart by another one.


class Position(NamedTuple):
    """A step of an epoch."""

    epoch: int
    step: int


class Claim(NamedTuple):
    """That a worker begins an iteration.

    ``run`` is a number that all workers of one DataLoader iterator share, ``turn`` how often
    this worker process has begun an iteration, ``start`` where it saw the loader stand, and
    ``placings`` how often that was put somewhere.
    """

    run: int
    turn: int
    worker: int
    workers: int
    start: Position
    placings: int


@dataclass
class _Iteration:
    at: Position
    claimed: set[int] = field(default_factory=set)


class EpochLog:
    """The file of claims. It comes into being with the first claim and goes with the dataset that made it."""

    def __init__(self) -> None:
        self.path = os.path.join(tempfile.gettempdir(), f"batchkit-epochs-{uuid.uuid4().hex}")
        weakref.finalize(self, _remove, self.path, os.getpid())

    def claim(self, claim: Claim) -> Position:
        """Return where the iteration that ``claim`` belongs to begins; equal for all its workers.

        That is where the loader stands, at first and whenever it was moved; otherwise the
        beginning of the epoch after the last one.
        """
        token = uuid.uuid4().int >> 65
        self._append(1, claim.run, claim.turn, claim.worker, claim.workers, *claim.start, claim.placings, token)
        return _replay(self._records(), token)

    def move(self, epoch: int, start: Position, placings: int) -> None:
        """Make the next iteration begin ``epoch``; ``start`` is where the loader stands, put there as the last time."""
        self._append(0, epoch, 0, 0, 0, *start, placings, 0)

    def _append(self, *record: int) -> None:
        file = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600)
        try:
            os.write(file, _RECORD.pack(*record))
        finally:
            os.close(file)

    def _records(self) -> Iterator[tuple[int, ...]]:
        with open(self.path, "rb") as file:
            content = file.read()
        return _RECORD.iter_unpack(content[: len(content) // _RECORD.size * _RECORD.size])


def _replay(records: Iterator[tuple[int, ...]], token: int) -> Position:
    """Return the position of the iteration that the claim with that token belongs to."""
    upcoming = Position(0, 0)
    seen: tuple[Position, int] | None = None
    iterations: dict[tuple[int, int, int], list[_Iteration]] = {}
    for is_claim, run, turn, worker, workers, epoch, step, placings, its in records:
        start = Position(epoch, step)
        if not is_claim:
            upcoming, seen = Position(run, 0), (start, placings)
            continue
        # Reseeding torch before each epoch gives equal runs: a worker claims each iteration once.
        same = iterations.setdefault((run, turn, workers), [])
        iteration = next((one for one in same if worker not in one.claimed), None)
        if iteration is None:
            # A worker that lives on (persistent_workers) does not see the loader move.
            if turn == 0 and (start, placings) != seen:
                upcoming, seen = start, (start, placings)
            iteration = _Iteration(upcoming)
            same.append(iteration)
            upcoming = Position(upcoming.epoch + 1, 0)
        iteration.claimed.add(worker)
        if its == token:
            return iteration.at
    raise RuntimeError("a claim that was written is not in the file: it was changed by somebody else")


def _remove(path: str, owner: int) -> None:
    # A forked worker has this finalizer, too, and must leave the file to its parent.
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            os.unlink(path)
