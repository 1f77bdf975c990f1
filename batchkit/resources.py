"""How many cores and how much memory this process may use, the limits of its container included."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchkit.errors import PipelineError, PipelineTypeError

__all__ = ["cores", "free_memory", "queued_seconds", "size_in_bytes"]

_CGROUPS = Path("/sys/fs/cgroup")
_SCHEDULED = "/proc/thread-self/schedstat"
_UNLIMITED = 1 << 60  # what version 1 writes where there is no limit is of this order


def cores() -> int:
    """Return how many cores this process may use: its affinity, and the quota of its cgroup."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(_quotas(), default=float(usable))
    return max(1, min(usable, math.ceil(quota)))


def free_memory() -> int | None:
    """Return how many bytes can still be used: what the machine has free, or less where a cgroup sets a limit.

    ``None`` where the system does not say.
    """
    known = [size for size in (_available(), *_left_in_cgroups()) if size is not None]
    return max(min(known), 0) if known else None


def queued_seconds() -> float:
    """Return how long this thread has been ready so far without a free core; 0 where the system does not say."""
    try:
        with open(_SCHEDULED, "rb") as file:
            return int(file.read().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        return 0.0


def size_in_bytes(size: Any, option: str) -> int:
    """Return a size given as a number of bytes, or as text such as ``"2GB"`` or ``"512 MiB"``.

    Raises:
        PipelineError: it is neither; names ``option``.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?\s*", size)
        if not match:
            raise PipelineError(f"{option} must be a number of bytes, or text such as '2GB' or '512MiB', not {size!r}")
        factor = (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " ")
        size = int(float(match[1]) * factor)
    if isinstance(size, bool) or not isinstance(size, int):
        raise PipelineTypeError(f"{option} must be a number of bytes, or text such as '2GB', not {size!r}")
    if size < 1:
        raise PipelineError(f"{option} must be at least 1 byte, not {size}")
    return size


def _available() -> int | None:
    text = _read(Path("/proc/meminfo"))
    for line in (text or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return None


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of those above it, in version 2 or 1."""
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        group = root / path.lstrip("/")
        yield group
        for above in group.parents:
            if above == _CGROUPS.parent:
                break
            yield above


def _left_in_cgroups() -> Iterator[int]:
    for group in _groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _number(group / limit), _number(group / used)
            if most is not None and now is not None and most < _UNLIMITED:
                yield most - now + _cache(group)


def _cache(group: Path) -> int:
    """Return the bytes of files that the group has read and that can be dropped: they count as used."""
    for line in (_read(group / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _quotas() -> Iterator[float]:
    for group in _groups("cpu"):
        both = (_read(group / "cpu.max") or "").split()
        if len(both) == 2 and both[0] != "max":
            yield int(both[0]) / int(both[1])
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            yield quota / period


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
