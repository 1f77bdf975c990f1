"""What this process holds: threads, processes, file descriptors and shared memory. Read from ``/proc``."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

Holding = tuple[Any, ...]

in_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what a process holds is read from /proc")


def alive(pid: int) -> bool:
    """Say whether a process is still there, other than as what nobody has asked the end of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parents() -> dict[int, int]:
    """Return the parent of every process there is, but for those whose end nobody has asked for yet."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has ended meanwhile
                continue
            if state != "Z":
                found[int(entry.name)] = int(parent)
    return found


def descendants() -> set[int]:
    """Return the processes that descend from this one."""
    known, found, new = parents(), set[int](), {os.getpid()}
    while new:
        new = {child for child, parent in known.items() if parent in new} - found
        found |= new
    return found


def held() -> set[Holding]:
    """Return the threads, processes, file descriptors and shared memory of this process."""
    found: set[Holding] = {("thread", thread.name, thread.ident) for thread in threading.enumerate()}
    found |= {("process", pid) for pid in descendants()}
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(("descriptor", number, os.readlink(f"/proc/self/fd/{number}")))
        except OSError:  # that of the listing itself
            continue
    mapped = Path("/proc/self/maps").read_text().splitlines()
    found |= {("memory", line.split()[0]) for line in mapped if "memfd:" in line or "/dev/shm/" in line}
    # What other programs name there, semaphores above all, comes and goes.
    return found | {("shared memory", name) for name in os.listdir("/dev/shm") if "batchkit" in name}


def left_behind(before: set[Holding], during: set[Holding]) -> set[Holding]:
    """Return what is still there after some seconds, of all that came."""
    deadline = time.monotonic() + 10
    while True:
        gc.collect()
        # A worker that has lost its parent is no descendant any more.
        orphans = {one for one in during if one[0] == "process" and alive(one[1])}
        rest = (held() | orphans) - before
        if not rest or time.monotonic() > deadline:
            return rest
        time.sleep(0.02)


LATE = 0 if getattr(sys, "_is_gil_enabled", lambda: True)() else 2
"""How many batches more may be in memory: without a GIL it is seen a little later that nobody refers to one."""
