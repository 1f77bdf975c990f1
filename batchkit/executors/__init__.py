"""Where a step is computed: inline, by threads, by processes, or by what is measured to be the fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchkit.executors.auto import AutoExecutor
from batchkit.executors.executor import Executor, Run, Work, seconds, worker_count
from batchkit.executors.inline import InlineExecutor
from batchkit.executors.threads import ThreadExecutor, ThreadRun
from batchkit.executors.tuning import Setting

if TYPE_CHECKING:
    from batchkit.executors.processes import ProcessExecutor

__all__ = [
    "AutoExecutor",
    "Executor",
    "InlineExecutor",
    "ProcessExecutor",
    "Run",
    "Setting",
    "ThreadExecutor",
    "ThreadRun",
    "Work",
    "seconds",
    "worker_count",
]


def __getattr__(name: str) -> Any:
    # Sockets, ctypes and subprocess are for those who start processes.
    if name == "ProcessExecutor":
        from batchkit.executors.processes import ProcessExecutor

        return ProcessExecutor
    raise AttributeError(f"module 'batchkit.executors' has no attribute {name!r}")
