"""What batchkit finds through the entry point ``jax``. Does not import JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING

from batchkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from batchkit_jax.backend import JaxBackend

__all__ = ["batchkit_backends", "batchkit_problem"]

OLDEST = (0, 5)
BEFORE = (1, 0)


def _make_backend() -> JaxBackend:
    from batchkit_jax.backend import JaxBackend

    return JaxBackend()


@hookimpl
def batchkit_backends() -> Mapping[str, Callable[[], JaxBackend]]:
    """Offer the backend ``"jax"``; JAX is imported when it is made."""
    return {"jax": _make_backend}


@hookimpl
def batchkit_problem() -> str | None:
    """Return why JAX cannot be used here, or ``None``; looks at the installed version only."""
    wanted = f"jax>={OLDEST[0]}.{OLDEST[1]},<{BEFORE[0]}"
    try:
        found = metadata.version("jax")
    except metadata.PackageNotFoundError:
        return f"jax is not installed: pip install '{wanted}'"
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and not OLDEST <= numbers < BEFORE:
        return f"jax {found} is installed, and this plugin needs another: pip install '{wanted}'"
    return None
