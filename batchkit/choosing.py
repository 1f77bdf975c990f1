"""The backend and the executor that a loader's arguments name."""

from __future__ import annotations

from typing import Any

from batchkit.backends import Backend
from batchkit.errors import BackendError, PipelineError
from batchkit.executors import AutoExecutor, Executor
from batchkit.plugins import Plugins

__all__ = ["chosen_backend", "chosen_executor"]


def chosen_backend(known: Plugins, backend: Any) -> Backend:
    """Return the backend of a name, or the object as it is.

    Raises:
        BackendError: there is none of that name, or the object is no backend.
    """
    if isinstance(backend, str):
        return known.backend(backend)
    if isinstance(backend, type) or not isinstance(backend, Backend):
        parts = ("name", "alignment", "host_dtype", "device", "allocate", "put", "as_dataset")
        lacking = [part for part in parts if not hasattr(backend, part)]
        what = f"the class {backend.__name__}, not an object of it" if isinstance(backend, type) else repr(backend)
        lacks = f", which lacks {', '.join(lacking)}" if lacking else ""
        raise BackendError(f"backend must be a name such as 'torch' or a Backend object, not {what}{lacks}")
    return backend


def chosen_executor(
    known: Plugins,
    executor: Any,
    workers: int | str,
    prefetch: int | str,
    memory_limit: int | None,
    timeout: float | None,
) -> Executor:
    """Return the executor of a name with its workers, or the object as it is.

    Raises:
        PipelineError: there is none of that name, the object is no executor, or ``memory_limit`` bounds nothing there.
    """
    made = _made(known, executor, workers, prefetch, memory_limit, timeout) if isinstance(executor, str) else executor
    if isinstance(made, type) or not isinstance(made, Executor):
        raise PipelineError(f"executor must be a name such as 'threads' or an Executor object, not {made!r}")
    if memory_limit is not None and not isinstance(made, AutoExecutor):
        raise PipelineError(
            "memory_limit bounds what workers='auto' chooses with executor 'auto' or 'threads': leave it out here, "
            "or leave the workers to be chosen"
        )
    return made


def _made(
    known: Plugins,
    name: str,
    workers: int | str,
    prefetch: int | str,
    memory_limit: int | None,
    timeout: float | None,
) -> Any:
    if name == "auto" and (workers != "auto" or timeout is not None):
        name = "threads"
    if name in ("auto", "threads") and workers == "auto" and timeout is None:
        return AutoExecutor(name=name, prefetch=prefetch, memory_limit=memory_limit)
    limit = {} if timeout is None else {"timeout": timeout}
    return known.executor(name)(workers=workers, **limit)
