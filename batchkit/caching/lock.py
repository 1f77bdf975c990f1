"""A lock between processes, which the system takes back from a process that is killed."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["locked"]


def _grab(descriptor: int) -> None:
    """Take the lock, or raise at once. Where the system has none, rows still certify themselves."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        try:
            import fcntl
        except ImportError:
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(path: Path, patience: float) -> Iterator[bool]:
    """Hold the lock of a file while the block runs; yields ``False`` if it is not to be had for ``patience`` seconds.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = _held(path, time.monotonic() + patience)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which gives the lock back


def _held(path: Path, until: float) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            _grab(descriptor)
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            pass
        except PermissionError:  # what Windows says of a lock that somebody else holds
            if sys.platform != "win32":
                os.close(descriptor)
                raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def _is_at(descriptor: int, path: Path) -> bool:
    """Say whether the file is still the one at ``path``: who clears a cache takes its lock file away."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
