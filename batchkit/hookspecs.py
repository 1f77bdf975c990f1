"""What a plugin may offer. Every hook is called at set-up only, never per batch.

A plugin is a module (or any object) with some of these functions, each marked with
``@batchkit.hookimpl``, found through an entry point of the group ``"batchkit"`` or as a
local file. It must be cheap to import: import the framework inside the factory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy

__all__ = ["GROUP", "hookimpl", "hookspec"]

GROUP = "batchkit"
"""The entry point group, and the name of the pluggy project."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def batchkit_backends() -> Mapping[str, Callable[[], Any]]:  # type: ignore[empty-body]
    """Return backends by name: ``{"torch": TorchBackend}``; called without arguments when one is chosen."""


@hookspec
def batchkit_sources() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Return sources by kind: ``{"lmdb": LmdbSource}``; called with the keys of the config as keywords."""


@hookspec
def batchkit_stages() -> Mapping[str, type[Any]]:  # type: ignore[empty-body]
    """Return stages by verb: ``{"grayscale": Grayscale}``, frozen dataclasses with a ``ColumnStage.apply``."""


@hookspec
def batchkit_executors() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Return executors by name: ``{"pool": PoolExecutor}``; called with ``workers=``."""


@hookspec
def batchkit_commands() -> Sequence[Any]:  # type: ignore[empty-body]
    """Return click commands that the command line shall have besides its own."""


@hookspec
def batchkit_problem() -> str | None:
    """Return why the plugin cannot work here (a framework missing or too old), or ``None``.

    Must not import the framework: look at the versions of the installed distributions.
    """
