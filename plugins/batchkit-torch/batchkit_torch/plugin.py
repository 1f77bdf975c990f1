"""What batchkit sees of this plugin before anybody asks for the backend: no import of PyTorch."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from batchkit.errors import BackendError
from batchkit.hookspecs import hookimpl

__all__ = ["batchkit_backends", "batchkit_problem"]

# 2.4 is the first with uint16 to uint64, NumPy 2 on every platform and get_device_module.
_OLDEST = (2, 4)
_INSTALL = "pip install 'torch>=2.4' (pytorch.org/get-started says which build suits your machine)"


@hookimpl
def batchkit_backends() -> Mapping[str, Callable[[], Any]]:
    """Offer the backend ``torch``."""
    return {"torch": _backend}


@hookimpl
def batchkit_problem() -> str | None:
    """Return that PyTorch is missing or older than 2.4, or ``None``; a build of any origin counts."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        # Built from source or by a distribution: there may be a package without metadata.
        return None if importlib.util.find_spec("torch") else f"PyTorch is not installed: {_INSTALL}"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST:
        return f"PyTorch {version} is installed, but 2.4 is the oldest that works: {_INSTALL}"
    return None


def _backend() -> Any:
    """Return a new backend; this is where PyTorch is imported."""
    problem = batchkit_problem()
    if problem:
        raise BackendError(f"backend 'torch' cannot be used: {problem}")
    try:
        from batchkit_torch.backend import TorchBackend
    except Exception as exc:
        raise BackendError(
            f"backend 'torch' cannot be used: importing PyTorch failed ({type(exc).__name__}: {exc}). "
            f"Repair it: {_INSTALL}"
        ) from exc
    return TorchBackend()
