"""What only POSIX systems have: sockets that carry file descriptors, memory without a name, a fork server.

All that this transport uses is released by the kernel when the processes that hold it end,
however they end: nothing has a name in ``/dev/shm`` or elsewhere that could be left behind.
Memory with a name is here, too, for the :mod:`~batchkit.executors.portable` one.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchkit.executors import transport

__all__ = [
    "LASTING_HANDLES",
    "Channel",
    "Crew",
    "Handle",
    "channel_pair",
    "forget_named",
    "map_memory",
    "map_named",
    "new_memory",
    "new_named",
    "serve",
    "sweep",
]

LASTING_HANDLES = True  # a file descriptor can be sent again and again

_ENDING_SECONDS = 2.0  # how long the server waits for a worker that was killed to be gone
_HEADER = struct.Struct("<QI")  # bytes of the pickled message, file descriptors that come with it
_MOST_DESCRIPTORS = 4

_NAMES = re.compile(r"batchkit-[0-9a-f]{16}")
_SHELF = Path("/dev/shm")
"""Where Linux lists shared memory that has a name; other systems list it nowhere."""


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class Channel:
    """One end of a connection to another process: pickled messages, file descriptors besides."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        # Held while the socket is used; re-entrant, since the garbage collector may close it in the midst of that.
        self._using = threading.RLock()

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._socket.fileno()

    def send(self, message: Any, handles: tuple[_HasFileno, ...] = ()) -> None:
        """Send a message, and copies of the file descriptors of ``handles``.

        Raises:
            EOFError: the other side is gone, or another thread has closed this one.
        """
        body = transport.packed(message)
        descriptors = [handle.fileno() for handle in handles]
        head = _HEADER.pack(len(body), len(descriptors))
        try:
            with self._using:
                if descriptors:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                    self._socket.sendmsg([head], rights)
                    self._socket.sendall(body)
                else:
                    self._socket.sendall(head + body)
        except OSError as exc:
            raise EOFError("the connection is closed") from exc

    def receive(self, timeout: float | None = None) -> tuple[Any, list[npt.NDArray[np.uint8]]]:
        """Return the next message, and the memory that came with it.

        Raises:
            EOFError: the other side is gone, or another thread has closed this one.
            TimeoutError: nothing came within ``timeout`` seconds.
        """
        message, descriptors = self.receive_descriptors(timeout)
        try:
            return message, [map_memory(descriptor) for descriptor in descriptors]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def receive_descriptors(self, timeout: float | None = None) -> tuple[Any, list[int]]:
        """Return the next message, and the file descriptors that came with it.

        Raises:
            EOFError: the other side is gone, or another thread has closed this one.
            TimeoutError: nothing came within ``timeout`` seconds.
        """
        space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)
        try:
            with self._using:
                self._socket.settimeout(timeout)
                head, ancillary, _, _ = self._socket.recvmsg(_HEADER.size, space)
                self._socket.settimeout(None)
                if len(head) < _HEADER.size:
                    head += self._exactly(_HEADER.size - len(head))
                size, _ = _HEADER.unpack(head)
                body = self._exactly(size)
        except TimeoutError:
            raise
        except OSError as exc:
            raise EOFError("the connection is closed") from exc
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        return pickle.loads(body), list(descriptors)

    def _exactly(self, size: int) -> bytearray:
        body = bytearray(size)
        view = memoryview(body)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise EOFError("the other side is gone")
            view = view[got:]
        return body

    def release(self) -> None:
        """Close this process's copy of an end that another process has, too."""
        self._socket.close()

    def close(self) -> None:
        """End the connection, for every process that has a copy of either end."""
        with contextlib.suppress(OSError):
            # A thread that is waiting in receive() wakes up only by this.
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._using:  # the number of the socket may be another's as soon as it is closed
            self._socket.close()


def channel_pair() -> tuple[Channel, Channel]:
    """Return both ends of a new connection."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(here), Channel(there)


class _Mapping:
    """Shared memory mapped into this process until nothing refers to it any more.

    ``mmap.mmap`` keeps a file descriptor open for each mapping, and a caller who keeps a thousand
    batches would run out of them: this is the system call itself.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int64,
        ]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._size = size
        self._address = self._libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
        if self._address in (None, ctypes.c_void_p(-1).value):
            self._address = None
            error = ctypes.get_errno()
            raise OSError(error, f"{size} bytes of shared memory cannot be mapped: {os.strerror(error)}")
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (self._address, False)}

    def __del__(self) -> None:
        if getattr(self, "_address", None) is not None:
            self._libc.munmap(self._address, self._size)


class Handle:
    """A file descriptor by which another process maps shared memory; closed as soon as that has it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def close(self) -> None:
        """Close it; the memory itself stays for as long as anybody has it mapped."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def new_memory(size: int) -> tuple[npt.NDArray[np.uint8], Handle]:
    """Return ``size`` bytes of shared memory as an array, and the handle to send along and to close then."""
    if hasattr(os, "memfd_create"):
        handle = Handle(os.memfd_create("batchkit", os.MFD_CLOEXEC))
    else:  # macOS: a name that is taken away again at once
        name = _new_name()
        handle = Handle(_open_named(name, os.O_CREAT | os.O_EXCL | os.O_RDWR))
        _unlink(name)
    os.ftruncate(handle.fileno(), size)
    return map_memory(handle.fileno()), handle


def map_memory(descriptor: int) -> npt.NDArray[np.uint8]:
    """Return the memory behind a file descriptor; it stays mapped for as long as the array or a view of it lives."""
    return np.asarray(_Mapping(descriptor, os.fstat(descriptor).st_size))


# -- memory with a name


def new_named(size: int) -> tuple[npt.NDArray[np.uint8], str, int]:
    """Return ``size`` bytes of shared memory, their name, and a file descriptor.

    The name is there until :func:`map_named` or :func:`forget_named` takes it away. While the
    descriptor is open in any process, :func:`sweep` leaves the name alone.

    Raises:
        OSError: there is not so much memory.
    """
    while True:
        name = _new_name()
        descriptor = _open_named(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        try:
            if not _kept(descriptor):
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, size)
            _reserve(descriptor, size)
            return map_memory(descriptor), name, descriptor
        except BaseException:
            forget_named(name, descriptor, os.getpid())
            raise


def _kept(descriptor: int) -> bool:
    """Have sweeps leave the name of this memory alone; return whether none has come before."""
    if not _SHELF.is_dir():
        return True
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0


def _reserve(descriptor: int, size: int) -> None:
    """Have the system set the memory apart now: later it would end the process that writes to what is not there."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as exc:
            raise OSError(
                exc.errno,
                f"{size} bytes of shared memory are not to be had: {exc.strerror}. Make {_SHELF} larger (docker run "
                "--shm-size=...), make batches smaller, or use start='forkserver', whose memory does not lie there",
            ) from exc


def map_named(name: str) -> npt.NDArray[np.uint8]:
    """Return the memory of that name, and take the name away: both processes have it now."""
    descriptor = _open_named(name, os.O_RDWR)
    try:
        return map_memory(descriptor)
    finally:
        forget_named(name, descriptor, os.getpid())


def forget_named(name: str, descriptor: int, process: int) -> None:
    """Take a name away if it is still there, and close the descriptor; nothing in other processes than its own."""
    if os.getpid() == process:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            _unlink(name)


def sweep() -> None:
    """Take away the names that processes have left which were killed: those that nobody holds a lock on."""
    for path in _SHELF.glob("batchkit-*"):
        if not _NAMES.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, another user's, or in use
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def _new_name() -> str:
    return f"/batchkit-{os.urandom(8).hex()}"  # macOS allows 31 characters


def _open_named(name: str, flags: int) -> int:
    import _posixshmem  # type: ignore[import-not-found]  # the standard library's own

    descriptor: int = _posixshmem.shm_open(name, flags, mode=0o600)
    return descriptor


def _unlink(name: str) -> None:
    import _posixshmem

    _posixshmem.shm_unlink(name)


# -- processes


class Crew:
    """Starts worker processes by forking a small server that runs nothing else, never the caller.

    The server is a new interpreter: it has none of the caller's threads and locks, so that
    forking it is safe, and it has the core imported, so that a worker is there at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server, there = channel_pair()
        # Workers hold the other end, and end when this one closes: when the caller is gone, or wants them gone.
        held, lifeline = os.pipe()
        self._lifeline = weakref.finalize(self, os.close, lifeline)
        try:
            numbers = (there.fileno(), held)
            self._process = transport.launch("posix", numbers, pass_fds=numbers)
        finally:
            there.release()
            os.close(held)

    def start(self) -> tuple[Channel, int]:
        """Start a worker; return the connection to it, and its process id.

        Raises:
            EOFError: the server is gone.
        """
        here, there = channel_pair()
        try:
            with self._lock:
                self._server.send("fork", (there,))
                process, _ = self._server.receive()
        except EOFError:
            here.close()
            raise
        finally:
            there.release()
        return here, int(process)

    def kill(self, process: int) -> None:
        """End a worker at once. Until :meth:`status` was asked for, no other process has its number."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def status(self, process: int) -> int | None:
        """Return how a worker that is gone ended: its exit code, or minus the signal; ``None`` if unknown."""
        try:
            with self._lock:
                self._server.send(("status", process))
                status, _ = self._server.receive()  # no timeout: what came too late would answer the next request
        except EOFError:
            return None
        return None if status is None else int(status)

    def stop(self) -> None:
        """End the server and all its workers, also those that are busy."""
        self._server.close()
        self._lifeline()
        try:
            # At the end of the program the lifeline's own finalizer has run before: newer ones come first.
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(work: Callable[[transport.Channel], None], connection: int, lifeline: int) -> None:
    """Be the fork server: fork a process that does ``work`` for every request, until the caller is gone."""
    channel = Channel(socket.socket(fileno=connection))
    ended: dict[int, int] = {}
    try:
        while True:
            request, descriptors = channel.receive_descriptors()
            if request == "fork":
                process = os.fork()
                if process == 0:
                    channel.release()
                    there = Channel(socket.socket(fileno=descriptors[0]))
                    # Reading returns when nobody holds the other end any more.
                    transport.live(work, there, lambda: os.read(lifeline, 1))
                os.close(descriptors[0])
                channel.send(process)
            else:
                channel.send(_ending(request[1], ended))
    except EOFError:
        os._exit(0)  # the caller is gone


def _ending(process: int, ended: dict[int, int]) -> int | None:
    """Return how a worker ended; ``None`` if that cannot be known, or is not within a moment."""
    deadline = time.monotonic() + _ENDING_SECONDS  # the kernel may have to free a lot of memory first
    while process not in ended:
        try:
            gone, status = os.waitpid(process, os.WNOHANG)
        except ChildProcessError:
            return None
        if gone:
            ended[process] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            return None
        else:
            time.sleep(0.001)
    return ended[process]
