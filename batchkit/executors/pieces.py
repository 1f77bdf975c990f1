"""Pieces of shared memory, one a batch: leased to the worker that writes to it, then to the caller who reads it."""

from __future__ import annotations

import threading
from sys import getrefcount

from batchkit.executors.transport import Handle, Transport

__all__ = ["Holder", "Piece", "Pieces"]

PAGE = 4096
OPEN = 64
"""How many handles may stay open: a caller may keep any number of batches, but not of open files."""


class Holder:
    """A worker process that maps pieces."""

    __slots__ = ("dropped",)

    def __init__(self) -> None:
        self.dropped: list[int] = []
        """The numbers of pieces that it has mapped and shall let go of."""


class Piece:
    """One piece of shared memory, leased as host slots are: by the references to its root array."""

    __slots__ = ("baseline", "handle", "holders", "memory", "number", "taken")

    def __init__(self, size: int, number: int, transport: Transport) -> None:
        self.handle: Handle | None
        self.memory, self.handle = transport.new_memory(size)
        self.number = number
        self.holders: set[Holder] = set()
        self.taken = True
        """Whether it is a worker's: no array refers to it yet."""
        self.baseline = getrefcount(self.memory)

    @property
    def free(self) -> bool:
        """Whether nobody refers to it any more."""
        if self.taken:
            return False
        # Without a GIL a reference that moves from one thread to another can be missed: look twice.
        return getrefcount(self.memory) == self.baseline and getrefcount(self.memory) == self.baseline

    def settle(self) -> None:
        """Close the handle: no other process will map the memory."""
        handle, self.handle = self.handle, None
        if handle is not None:
            handle.close()


class Pieces:
    """The pieces of a pool of workers: any of them takes any piece. Safe to use from several threads.

    A new one is made only when all others are in use, so that there are never more than batches
    in flight, but where a handle serves one process only: there, each worker has pieces of its own.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._pieces: list[Piece] = []
        self._count = 0
        self._wanted, self._workers = 0, 1
        self._lock = threading.RLock()  # the garbage collector may close this in the middle of anything
        self.need = 0
        """How many bytes a step has needed."""

    @property
    def count(self) -> int:
        """How many there are, those that a caller keeps included."""
        return len(self._pieces)

    def expect(self, workers: int, window: int) -> None:
        """Prepare for a run: ``window`` batches in flight, one that the caller has, and one that is on its way."""
        with self._lock:
            self._wanted, self._workers = window + 2, workers

    def take(self, size: int, holder: Holder) -> Piece:
        """Return memory that nobody refers to, of at least ``size`` bytes, for a worker alone."""
        with self._lock:
            idle = [piece for piece in self._pieces if piece.free]
            fitting = [
                piece
                for piece in idle
                if piece.memory.size >= size and (holder in piece.holders or piece.handle is not None)
            ]
            chosen = min(fitting, key=lambda piece: holder not in piece.holders, default=None)
            if chosen is not None:
                chosen.taken = True
            self._trim([piece for piece in idle if piece is not chosen], size)
            if chosen is not None:
                return chosen
            self._count += 1
            number = self._count
        chosen = Piece(-(-size // PAGE) * PAGE, number, self._transport)
        with self._lock:
            self._pieces.append(chosen)
        return chosen

    def _trim(self, idle: list[Piece], size: int) -> None:
        """Let go of what is too small, and of what is more than it takes to keep all workers busy."""
        small = [piece for piece in idle if piece.memory.size < size]
        large = [piece for piece in idle if piece.memory.size >= size]
        surplus = min(len(self._pieces) - len(small) - self._wanted, len(large) - self._workers)
        for piece in small + large[: max(surplus, 0)]:
            self.discard(piece)

    def mapped(self, piece: Piece, holder: Holder) -> None:
        """Take note that a worker has mapped what it has taken."""
        if holder in piece.holders:
            return
        with self._lock:
            piece.holders.add(holder)
            still_open = sum(each.handle is not None for each in self._pieces)
            if not self._transport.LASTING_HANDLES or still_open > OPEN:
                piece.settle()

    def give(self, piece: Piece) -> None:
        """Take a piece back from a worker: the references to its memory count from now on."""
        piece.taken = False

    def discard(self, piece: Piece) -> None:
        """Use a piece no more; its memory goes when the caller has let go of it, and the workers that had it."""
        with self._lock:
            if piece in self._pieces:
                self._pieces.remove(piece)
            piece.settle()
            for holder in piece.holders:
                holder.dropped.append(piece.number)

    def forget(self, holder: Holder) -> None:
        """Forget a worker that is gone, and the pieces that nobody else could map any more."""
        with self._lock:
            for piece in list(self._pieces):
                piece.holders.discard(holder)
                if not piece.holders and piece.handle is None:
                    self.discard(piece)

    def dropped(self, holder: Holder) -> list[int]:
        """Return the pieces that a worker shall let go of, once."""
        with self._lock:
            dropped, holder.dropped = holder.dropped, []
            return dropped

    def close(self) -> None:
        """Let go of all pieces; what the caller still has stays."""
        with self._lock:
            for piece in list(self._pieces):
                self.discard(piece)
