"""Where a step is computed: inline or by threads."""

from batchkit.executors.executor import Executor, Run, Work, worker_count
from batchkit.executors.inline import InlineExecutor
from batchkit.executors.threads import ThreadExecutor

__all__ = ["Executor", "InlineExecutor", "Run", "ThreadExecutor", "Work", "worker_count"]
