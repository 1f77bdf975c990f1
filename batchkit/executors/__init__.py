"""Where a step is computed: inline, by threads or by processes."""

from batchkit.executors.executor import Executor, Run, Work, worker_count
from batchkit.executors.inline import InlineExecutor
from batchkit.executors.processes import ProcessExecutor
from batchkit.executors.threads import ThreadExecutor

__all__ = ["Executor", "InlineExecutor", "ProcessExecutor", "Run", "ThreadExecutor", "Work", "worker_count"]
