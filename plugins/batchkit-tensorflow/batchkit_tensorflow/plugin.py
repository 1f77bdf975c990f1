"""What batchkit sees of this plugin before anybody asks for the backend: no import of TensorFlow."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from batchkit.errors import BackendError
from batchkit.hookspecs import hookimpl

__all__ = ["batchkit_backends", "batchkit_problem"]

# 2.16 is the first with Keras 3.
_OLDEST = (2, 16)
_INSTALL = "pip install 'tensorflow>=2.16' (or tensorflow-cpu)"

_DISTRIBUTIONS = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-intel",
    "tensorflow-macos",
    "tensorflow-rocm",
    "tensorflow-cpu-aws",
    "intel-tensorflow",
    "tf-nightly",
    "tf-nightly-cpu",
)
"""The distributions that have the package ``tensorflow``."""


@hookimpl
def batchkit_backends() -> Mapping[str, Callable[[], Any]]:
    """Offer the backend ``tensorflow``."""
    return {"tensorflow": _backend}


@hookimpl
def batchkit_problem() -> str | None:
    """Return that TensorFlow is missing or older than 2.16, or ``None``; a build of any origin counts."""
    old = None
    for distribution in _DISTRIBUTIONS:
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if not numbers or (int(numbers[1]), int(numbers[2])) >= _OLDEST:
            return None
        old = f"{distribution} {version} is installed, but 2.16 is the oldest that works: {_INSTALL}"
    if old is not None:
        return old
    # Built from source: there may be a package without metadata.
    return None if importlib.util.find_spec("tensorflow") else f"TensorFlow is not installed: {_INSTALL}"


def _backend() -> Any:
    """Return a new backend; this is where TensorFlow is imported."""
    problem = batchkit_problem()
    if problem:
        raise BackendError(f"backend 'tensorflow' cannot be used: {problem}")
    try:
        from batchkit_tensorflow.backend import TensorFlowBackend
    except Exception as exc:
        raise BackendError(
            "backend 'tensorflow' cannot be used: importing TensorFlow failed "
            f"({type(exc).__name__}: {exc}). Repair it: {_INSTALL}"
        ) from exc
    return TensorFlowBackend()
