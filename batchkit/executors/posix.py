"""What only POSIX systems have: sockets that carry file descriptors, memory without a name, a fork server.

Everything here is released by the kernel when the processes that hold it end, however they
end: nothing has a name in ``/dev/shm`` or elsewhere that could be left behind.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import mmap
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Channel", "Crew", "channel_pair", "map_memory", "new_memory"]

_HEADER = struct.Struct("<QI")  # bytes of the pickled message, file descriptors that come with it
_MOST_DESCRIPTORS = 4


class Channel:
    """One end of a connection to another process: pickled messages, file descriptors besides."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._socket.fileno()

    def send(self, message: Any, descriptors: tuple[int, ...] = ()) -> None:
        """Send a message.

        Raises:
            EOFError: the other side is gone, or another thread has closed this one.
        """
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        head = _HEADER.pack(len(body), len(descriptors))
        try:
            if descriptors:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                self._socket.sendmsg([head], rights)
                self._socket.sendall(body)
            else:
                self._socket.sendall(head + body)
        except OSError as exc:
            raise EOFError("the connection is closed") from exc

    def receive(self, timeout: float | None = None) -> tuple[Any, list[int]]:
        """Return the next message, and the file descriptors that came with it.

        Raises:
            EOFError: the other side is gone, or another thread has closed this one.
            TimeoutError: nothing came within ``timeout`` seconds.
        """
        space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)
        try:
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


def new_memory(size: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Return ``size`` bytes of shared memory as an array, and the file descriptor to send along and to close then."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("batchkit", os.MFD_CLOEXEC)
    else:  # macOS: a name that is taken away again at once
        import _posixshmem  # type: ignore[import-not-found]  # the standard library's own

        name = f"/batchkit-{os.getpid()}-{threading.get_ident() & 0xFFFFFF:x}-{os.urandom(4).hex()}"
        descriptor = _posixshmem.shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
        _posixshmem.shm_unlink(name)
    try:
        os.ftruncate(descriptor, size)
        return map_memory(descriptor), descriptor
    except BaseException:
        os.close(descriptor)
        raise


def map_memory(descriptor: int) -> npt.NDArray[np.uint8]:
    """Return the memory behind a file descriptor; it stays mapped for as long as the array or a view of it lives."""
    return np.asarray(_Mapping(descriptor, os.fstat(descriptor).st_size))


class Crew:
    """Starts worker processes by forking a small server that runs nothing else, never the caller.

    The server is a new interpreter: it has none of the caller's threads and locks, so that
    forking it is safe, and it has the core imported, so that a worker is there at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server, there = channel_pair()
        # Workers hold the other end, and end when this one closes: when the caller is gone, or wants them gone.
        held, self._lifeline = os.pipe()
        program = (
            "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
            "from batchkit.executors import posix, worker; "
            "posix.serve(worker.work, int(sys.argv[2]), int(sys.argv[3]))"
        )
        arguments = [json.dumps(sys.path), str(there.fileno()), str(held)]
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                pass_fds=(there.fileno(), held),
                env={**single, **os.environ},
                stdin=subprocess.DEVNULL,
            )
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
                self._server.send("fork", (there.fileno(),))
                process, _ = self._server.receive()
        except EOFError:
            here.close()
            raise
        finally:
            there.release()
        return here, int(process)

    def status(self, process: int) -> int | None:
        """Return how a worker that is gone ended: its exit code, or minus the signal; ``None`` if unknown."""
        try:
            with self._lock:
                self._server.send(("status", process))
                status, _ = self._server.receive(timeout=5)
        except (TimeoutError, EOFError):
            return None
        return None if status is None else int(status)

    def stop(self) -> None:
        """End the server and all its workers, also those that are busy."""
        self._server.close()
        try:
            os.close(self._lifeline)
        except OSError:
            return
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(work: Callable[[Channel], None], connection: int, lifeline: int) -> None:
    """Be the fork server: fork a process that does ``work`` for every request, until the caller is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends us
    channel = Channel(socket.socket(fileno=connection))
    ended: dict[int, int] = {}
    try:
        while True:
            request, descriptors = channel.receive()
            if request == "fork":
                process = os.fork()
                if process == 0:
                    channel.release()
                    _be_worker(work, descriptors[0], lifeline)
                os.close(descriptors[0])
                channel.send(process)
            else:
                channel.send(_ending(request[1], ended))
    except EOFError:
        os._exit(0)  # the caller is gone


def _ending(process: int, ended: dict[int, int]) -> int | None:
    """Return how a worker ended; it may take a moment until the kernel says so."""
    if process not in ended:
        try:
            _, status = os.waitpid(process, 0)
        except ChildProcessError:
            return None
        ended[process] = os.waitstatus_to_exitcode(status)
    return ended[process]


def _be_worker(work: Any, connection: int, lifeline: int) -> None:
    def watch() -> None:
        os.read(lifeline, 1)  # returns when nobody holds the other end any more
        os._exit(1)

    code = 1
    try:
        threading.Thread(target=watch, name="batchkit-lifeline", daemon=True).start()
        work(Channel(socket.socket(fileno=connection)))
        code = 0
    except EOFError:
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
