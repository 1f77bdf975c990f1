"""Where a step is computed: inline, by threads or by processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchkit.executors.executor import Executor, Run, Work, seconds, worker_count
from batchkit.executors.inline import InlineExecutor
from batchkit.executors.threads import ThreadExecutor

if TYPE_CHECKING:
    from batchkit.executors.processes import ProcessExecutor

__all__ = ["Executor", "InlineExecutor", "ProcessExecutor", "Run", "ThreadExecutor", "Work", "seconds", "worker_count"]


def __getattr__(name: str) -> Any:
    # Sockets, ctypes and subprocess are for those who start processes.
    if name == "ProcessExecutor":
        from batchkit.executors.processes import ProcessExecutor

        return ProcessExecutor
    raise AttributeError(f"module 'batchkit.executors' has no attribute {name!r}")
