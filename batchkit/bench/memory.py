"""How much memory this process and the workers that it started have needed."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

__all__ = ["forget_peak", "peak", "workers"]

_PROC = Path("/proc")


def forget_peak() -> None:
    """Let :func:`peak` start again from what is held now, where the system can do that."""
    with contextlib.suppress(OSError):
        (_PROC / "self/clear_refs").write_text("5")


def peak() -> int | None:
    """Return the most bytes that were resident at a time, among them pages of mapped files; ``None`` if unknown."""
    held = _kibibytes("self/status").get("VmHWM")
    if held is not None:
        return held * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def workers() -> int:
    """Return the bytes that the other processes of this session hold; shared memory is ours, and not counted.

    What several of them share is divided among them. 0 where there is no ``/proc``.
    """
    if not _PROC.is_dir():
        return 0
    here, session = os.getpid(), os.getsid(0)
    total = 0
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != here and _session(entry) == session:
            held = _kibibytes(f"{entry.name}/smaps_rollup")  # read once: its shares change at any time
            total += held.get("Pss", 0) - held.get("Pss_Shmem", 0)
    return total * 1024


def _session(process: Path) -> int | None:
    try:
        # The name in parentheses may hold anything; after it come state, parent, group and session.
        return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[3])
    except (OSError, IndexError, ValueError):  # it has ended meanwhile
        return None


def _kibibytes(path: str) -> dict[str, int]:
    """Return all sizes in a file of the process's; none if it has ended meanwhile."""
    try:
        lines = (_PROC / path).read_text(errors="replace").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) for name, size, _ in fields}
