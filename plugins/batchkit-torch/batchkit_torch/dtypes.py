"""Which torch dtype a NumPy column becomes, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batchkit.errors import BackendError
from batchkit.tree import leaf_label

__all__ = ["host_dtype", "reinterpreted"]

_DIRECT = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
)
"""What ``torch.from_numpy`` takes, by NumPy's name."""

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


def reinterpreted(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], torch.dtype] | None:
    """Return the integer dtype and the torch dtype of a dtype that NumPy has only by extension, else ``None``."""
    return _REINTERPRETED.get(dtype.name)


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
        return f"is structured ({fields}), which torch has not. Return its fields as leaves of their own from a .map()"
    if dtype.kind == "O":
        return "holds Python objects, which torch tensors cannot. Turn it into numbers in a .map()"
    return f"is {dtype.name}, which torch has not. Convert it, for example with .cast() to 'float32' or 'int8'"
