"""Worker processes wherever Python runs: the standard library alone, and nothing that only POSIX systems have.

A worker is a new interpreter that runs a line of ours. ``multiprocessing`` would run the caller's
script once more in each of them (it imports ``__main__`` there), and fail where the script starts
its work without asking for ``__name__``; its pipes and its shared memory are used without that.

Shared memory has a name here, which the other process finds it by. On Windows it is gone with
the last process that has it open. Elsewhere a name stays until somebody takes it away, which a
worker does as soon as it has the memory; what a killed process leaves is swept when the next
one starts. There the memory is opened without ``multiprocessing.shared_memory``, which keeps two
file descriptors for each piece and starts a process that watches over the names.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing.connection
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.executors import transport

__all__ = ["LASTING_HANDLES", "Channel", "Crew", "Handle", "map_memory", "new_memory", "serve"]

LASTING_HANDLES = False  # a name is taken away as soon as somebody has found the memory by it

_LOOK_SECONDS = 0.5
"""How often a thread that waits for a message looks whether another one has closed the channel."""


class Channel:
    """One end of a connection to another process: pickled messages, names of shared memory besides."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._using = threading.Lock()
        self._closed = False

    def send(self, message: Any, handles: tuple[Handle, ...] = ()) -> None:
        """Send a message.

        Raises:
            EOFError: the other side is gone, or another thread has closed this one.
        """
        body = transport.packed((message, [(handle.name, handle.size) for handle in handles]))
        with self._using:
            self._look()
            try:
                self._connection.send_bytes(body)
            except OSError as exc:
                raise EOFError("the connection is closed") from exc

    def receive(self, timeout: float | None = None) -> tuple[Any, list[npt.NDArray[np.uint8]]]:
        """Return the next message, and the memory that came with it.

        Raises:
            EOFError: the other side is gone, or another thread has closed this one.
            TimeoutError: nothing came within ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._using:
            try:
                while True:
                    self._look()
                    left = _LOOK_SECONDS if deadline is None else deadline - time.monotonic()
                    if self._connection.poll(max(min(left, _LOOK_SECONDS), 0)):
                        break
                    if left <= 0:
                        raise TimeoutError(f"no message within {timeout} seconds")
                body = self._connection.recv_bytes()
            except TimeoutError:
                raise
            except OSError as exc:
                raise EOFError("the connection is closed") from exc
        message, names = pickle.loads(body)
        return message, [map_memory(name, size) for name, size in names]

    def _look(self) -> None:
        if self._closed:
            self._connection.close()
            raise EOFError("the connection is closed")

    def close(self) -> None:
        """End the connection."""
        self._closed = True
        # A thread that is using it finds out by itself: what it waits on must not be closed, nor its number used again.
        if self._using.acquire(blocking=False):
            try:
                self._connection.close()
            finally:
                self._using.release()


class Handle:
    """The name of a piece of shared memory, until the other process has mapped it."""

    def __init__(self, name: str, size: int, forget: Callable[[], None]) -> None:
        self.name, self.size = name, size
        # Also when the program ends, however many threads are still at work then.
        self._finalizer = weakref.finalize(self, forget)

    def close(self) -> None:
        """Take the name away, if the other process has not done it."""
        self._finalizer()


class _Mapping:
    """Shared memory of the standard library's, closed when nothing refers to it any more."""

    def __init__(self, memory: SharedMemory, size: int) -> None:
        self._memory = memory
        assert memory.buf is not None
        # An array over `memory.buf` itself would keep it from being closed.
        address = np.frombuffer(memory.buf, np.uint8).__array_interface__["data"][0]
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (address, False)}

    def __del__(self) -> None:
        self._memory.close()


def new_memory(size: int) -> tuple[npt.NDArray[np.uint8], Handle]:
    """Return ``size`` bytes of shared memory as an array, and the handle to send along.

    Raises:
        OSError: there is not so much memory.
    """
    if transport.has_posix():
        from batchkit.executors import posix

        array, name, descriptor = posix.new_named(size)
        return array, Handle(name, size, functools.partial(posix.forget_named, name, descriptor, os.getpid()))
    memory = SharedMemory(f"batchkit-{os.urandom(8).hex()}", create=True, size=size)
    return np.asarray(_Mapping(memory, size)), Handle(memory.name, size, _nothing)


def _nothing() -> None:
    """Leave the name to Windows, which takes it away with the last process that has the memory."""


def map_memory(name: str, size: int) -> npt.NDArray[np.uint8]:
    """Return the memory that another process has made; it stays mapped for as long as the array or a view of it."""
    if transport.has_posix():
        from batchkit.executors import posix

        return posix.map_named(name)
    return np.asarray(_Mapping(SharedMemory(name), size))


class Crew:
    """Starts worker processes, each of them a new interpreter."""

    def __init__(self) -> None:
        # Re-entrant: the garbage collector may stop a crew in the middle of anything.
        self._lock = threading.RLock()
        self._members: dict[int, tuple[subprocess.Popen[bytes], Any]] = {}
        self._stopped = False
        if transport.has_posix():
            from batchkit.executors import posix

            posix.sweep()

    def start(self) -> tuple[Channel, int]:
        """Start a worker; return the connection to it, and its process id, when it is there.

        Raises:
            EOFError: the worker ended at once, or the crew was stopped.
            OSError: the system starts no more processes.
        """
        here, there = multiprocessing.connection.Pipe()
        # The worker waits at the other end of a second pipe, and ends when this one closes: when we are gone.
        held, lifeline = multiprocessing.connection.Pipe(duplex=False)
        try:
            with self._lock:
                numbers = (there.fileno(), held.fileno())
                process = transport.launch("portable", numbers, **_inheriting(numbers))
                self._members[process.pid] = process, lifeline
        except BaseException:
            here.close()
            lifeline.close()
            raise
        finally:
            there.close()
            held.close()
        channel = Channel(here)
        try:
            if self._stopped:  # meanwhile
                raise EOFError("the crew was stopped")
            channel.receive()  # an interpreter takes its time to start, which is not the first step's
        except EOFError:
            channel.close()
            self.kill(process.pid)
            self.status(process.pid)
            raise
        return channel, process.pid

    def kill(self, process: int) -> None:
        """End a worker at once."""
        with self._lock:
            if process in self._members:
                _kill(self._members[process][0])

    def status(self, process: int) -> int | None:
        """Return how a worker that is gone ended: its exit code, or minus the signal; ``None`` if unknown."""
        with self._lock:
            member = self._members.pop(process, None)
        return None if member is None else _ended(*member)

    def stop(self) -> None:
        """End all workers, also those that are busy."""
        with self._lock:
            self._stopped = True
            members, self._members = list(self._members.values()), {}
        for process, _ in members:
            _kill(process)
        for member in members:
            _ended(*member)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):  # it has ended by itself
        process.kill()


def _ended(process: subprocess.Popen[bytes], lifeline: Any) -> int | None:
    lifeline.close()
    try:
        return process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return None


def _inheriting(numbers: tuple[int, ...]) -> dict[str, Any]:
    """Return how Popen is told that a process gets these file descriptors (on Windows: handles) and no others."""
    if sys.platform != "win32":
        return {"pass_fds": numbers}
    for number in numbers:
        os.set_handle_inheritable(number, True)
    return {"startupinfo": subprocess.STARTUPINFO(lpAttributeList={"handle_list": list(numbers)})}


def serve(work: Callable[[transport.Channel], None], connection: int, lifeline: int) -> None:
    """Be a worker process: do ``work`` until the caller is gone."""
    pipe: Any = getattr(multiprocessing.connection, "PipeConnection", multiprocessing.connection.Connection)
    alive, channel = pipe(lifeline, writable=False), Channel(pipe(connection))
    channel.send("here")
    transport.live(work, channel, alive.recv_bytes)
