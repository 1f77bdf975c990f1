"""How worker processes are started and reached: what every transport offers.

There are two: :mod:`~batchkit.executors.posix` (a fork server, memory without a name) and
:mod:`~batchkit.executors.portable`, which needs nothing that only POSIX systems have.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Channel", "Crew", "Handle", "Transport", "has_posix", "launch", "live", "packed"]


def packed(message: Any) -> bytes:
    """Return a message pickled; classes that the other process could not import go along by value."""
    try:
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if b"__main__" not in body:  # the other process has another one
            return body
    except Exception:  # a class inside a function, say
        pass
    import cloudpickle

    by_value: bytes = cloudpickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return by_value


class Handle(Protocol):
    """What the other process maps a piece of shared memory by."""

    def close(self) -> None:
        """Give it up: the other process has mapped the memory, or never will. May be called again."""
        ...


class Channel(Protocol):
    """One end of a connection to another process."""

    def send(self, message: Any, handles: tuple[Any, ...] = ()) -> None:
        """Send a message, and shared memory with it; raises ``EOFError`` if the other side is gone."""
        ...

    def receive(self, timeout: float | None = None) -> tuple[Any, list[npt.NDArray[np.uint8]]]:
        """Return the next message and the memory that came with it; raises ``EOFError`` or ``TimeoutError``."""
        ...

    def close(self) -> None:
        """End the connection; whoever waits in :meth:`receive` gets an ``EOFError``."""
        ...


class Crew(Protocol):
    """Starts worker processes, and ends them all."""

    def start(self) -> tuple[Channel, int]:
        """Start a worker; return the connection to it and its process id; raises ``EOFError`` if that is over."""
        ...

    def kill(self, process: int) -> None:
        """End a worker at once, whatever it is busy with."""
        ...

    def status(self, process: int) -> int | None:
        """Return how a worker that is gone ended: its exit code, or minus the signal; ``None`` if unknown."""
        ...

    def stop(self) -> None:
        """End all workers, also those that are busy."""
        ...


class Transport(Protocol):
    """A module that offers a crew and shared memory."""

    @property
    def LASTING_HANDLES(self) -> bool:
        """Whether any number of workers may map a piece of memory by its handle, rather than the first one alone."""
        ...

    @property
    def Crew(self) -> Callable[[], Crew]:
        """What starts workers."""
        ...

    def new_memory(self, size: int) -> tuple[npt.NDArray[np.uint8], Handle]:
        """Return ``size`` bytes of shared memory, mapped while the array or a view of it lives, and their handle."""
        ...


def has_posix() -> bool:
    """Return whether this Python has what :mod:`~batchkit.executors.posix` needs."""
    return hasattr(os, "fork") and hasattr(socket, "AF_UNIX")


def launch(module: str, numbers: tuple[int, ...], **options: Any) -> subprocess.Popen[bytes]:
    """Start a new interpreter that calls a transport's ``serve(work, *numbers)``, and nothing of the caller's script.

    It finds modules where the caller does. ``options`` are for :class:`subprocess.Popen`.
    """
    program = (
        # First of all: Ctrl-C is for the caller, who ends us; and the working directory is no place for `json`.
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path = [p for p in sys.path if p]; "
        "import json; sys.path[:] = json.loads(sys.argv[1]); "
        f"from batchkit.executors import {module}, worker; {module}.serve(worker.work, *map(int, sys.argv[2:]))"
    )
    # A worker is one of several: libraries that would start a thread a core of their own would only be in their way.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**single, **os.environ}
    executable = sys.executable
    if sys.platform == "win32" and sys.executable != (base := getattr(sys, "_base_executable", None) or executable):
        # A virtual environment's python.exe starts another process, which is the one to be watched and ended.
        executable, environment["__PYVENV_LAUNCHER__"] = base, executable
    path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])  # Python ignores all else there
    return subprocess.Popen(
        [executable, "-c", program, path, *map(str, numbers)],
        env=environment,
        stdin=subprocess.DEVNULL,
        **options,
    )


def live(work: Callable[[Channel], None], channel: Channel, until: Callable[[], Any]) -> NoReturn:
    """Be a worker process: do ``work`` until the caller is gone, which is when ``until`` returns.

    The end comes also in the middle of a step.
    """

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            until()
        os._exit(1)

    code = 1
    try:
        threading.Thread(target=watch, name="batchkit-lifeline", daemon=True).start()
        work(channel)
        code = 0
    except EOFError:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # Windows programs without a console have none
                stream.flush()
        os._exit(code)
