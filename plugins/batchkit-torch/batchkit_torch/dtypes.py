"""Which torch dtype a NumPy column becomes, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from batchkit.errors import BackendError
from batchkit.tree import leaf_label

__all__ = ["host_dtype", "reinterpreted"]

_DIRECT = frozenset(
    [
        "bool",
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
        *("float16", "float32", "float64", "complex64", "complex128"),
    ]
)
"""What ``torch.from_numpy`` takes, by NumPy's name."""


def _is_taken(char: str) -> bool:
    try:
        torch.from_numpy(np.zeros(1, char))
    except TypeError:
        return False
    return True


TAKEN = frozenset(np.dtype(char).num for char in "?bhilqBHILQefdFD" if _is_taken(char))
"""What ``torch.from_numpy`` takes, by NumPy's number: not every C type (unsigned long long) that has a name above."""

# Recognised by name, so that ml_dtypes, which registers them with NumPy, need not be imported.
_REINTERPRETED = {
    name: (np.dtype(f"uint{bits}"), getattr(torch, name))
    for name, bits in {
        "bfloat16": 16,
        "float8_e4m3fn": 8,
        "float8_e4m3fnuz": 8,
        "float8_e5m2": 8,
        "float8_e5m2fnuz": 8,
        "float8_e8m0fnu": 8,
    }.items()
    if hasattr(torch, name)
}
"""What goes through integers of the same width: that NumPy dtype, and the torch dtype it is viewed as."""

_NO_DOUBLE = {"float64": np.dtype("float32"), "complex128": np.dtype("complex64")}
"""What a device without 64-bit floats (Apple's MPS) gets instead."""


def reinterpreted(name: str) -> tuple[np.dtype[Any], torch.dtype]:
    """Return for a dtype of that name that is not in ``TAKEN`` the dtype to hand over and the torch dtype meant.

    Raises:
        TypeError: torch has none; :func:`host_dtype` refuses it.
    """
    if name in _REINTERPRETED:
        return _REINTERPRETED[name]
    if name in _DIRECT:
        return np.dtype(name), getattr(torch, name)
    raise TypeError(f"torch has no dtype {name}")


def host_dtype(dtype: np.dtype[Any], leaf: str, device_type: str = "cpu") -> np.dtype[Any]:
    """Return the dtype that a host column of ``dtype`` must have to become a tensor on such a device.

    Raises:
        BackendError: PyTorch has nothing for it; names ``leaf`` and the mend.
    """
    name = dtype.name
    if device_type == "mps" and name in _NO_DOUBLE:
        return _NO_DOUBLE[name]
    if name in _DIRECT:
        return dtype if dtype.isnative else dtype.newbyteorder("=")
    if name in _REINTERPRETED:
        return dtype
    where = leaf_label(leaf)
    drop = f', or leave it out with .drop("{leaf}")' if leaf else ""
    raise BackendError(f"backend 'torch': {where} {_why_not(dtype)}{drop}")


def _why_not(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "UST":
        kind = "bytes" if dtype.kind == "S" else "strings"
        return f"holds {kind}, which torch tensors cannot. Turn it into numbers in a .map()"
    if dtype.kind in "mM":
        return f"is {dtype}, which torch has not. View it as integers in a .map(): leaf.view('int64')"
    if dtype.names is not None:
        fields = ", ".join(dtype.names)
        return f"is structured ({fields}), which torch has not. Return its fields as leaves from a .map()"
    if dtype.kind == "O":
        return "holds Python objects, which torch tensors cannot. Turn it into numbers in a .map()"
    return f"is {dtype.name}, which torch has not. Convert it, for example with .cast() to 'float32' or 'int8'"
