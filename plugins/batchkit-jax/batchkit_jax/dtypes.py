"""Which NumPy dtype JAX takes, narrows or refuses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from batchkit.casting import cast_mend
from batchkit.errors import BackendError
from batchkit.tree import leaf_label

__all__ = ["PACKED", "host_dtype", "refuse_wide"]

_NATIVE = frozenset(np.dtype(code) for code in "?bBhHiIqQefdFD")
_PACKED = frozenset({"float4_e2m1fn", "int2", "int4", "uint2", "uint4"})
_FLOAT8 = ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
_EXTENDED = _PACKED | {"bfloat16"} | {f"float8_{kind}" for kind in _FLOAT8}

# Older JAX lacks the youngest of these.
PACKED = frozenset(jnp.dtype(getattr(jnp, name)) for name in _PACKED if hasattr(jnp, name))
"""The dtypes of which JAX puts several values into a byte, so that it always copies them."""


def host_dtype(dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
    """Return the dtype in which JAX takes a leaf: ``dtype``, or its 32-bit sibling unless x64 is on right now.

    Raises:
        BackendError: JAX has nothing for it; names ``leaf`` and a mend.
    """
    native = dtype if dtype.isnative else dtype.newbyteorder("=")  # which not all dtypes have
    if native in _NATIVE:
        return jax.dtypes.canonicalize_dtype(native)
    if native.name in _EXTENDED and hasattr(jnp, native.name):
        return native
    raise BackendError(
        f"backend 'jax': {leaf_label(leaf)} is {_called(dtype)}, which JAX has not. {_mend(dtype, leaf)}"
    )


def refuse_wide(dtype: np.dtype[Any], leaf: str) -> None:
    """Refuse a column of 64 bits where JAX would cut it to 32 bits without a word.

    Raises:
        BackendError: x64 was on when the loader was made and is off now.
    """
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise BackendError(
            f"backend 'jax': {leaf_label(leaf)} is {dtype.name} on the host, and jax_enable_x64 is off: JAX would keep "
            "half of its bits. Set jax_enable_x64 before the loader is made, and leave it as it is"
        )


def _called(dtype: np.dtype[Any]) -> str:
    if dtype.names:
        return f"a structured dtype ({', '.join(dtype.names)})"
    return {"U": "str", "T": "str", "S": "bytes", "O": "Python objects"}.get(dtype.kind, dtype.name)


def _mend(dtype: np.dtype[Any], leaf: str) -> str:
    if dtype.names:
        mend = "Make each field a leaf of its own in a map()"
    elif dtype.kind == "f":
        mend = f"Add {cast_mend(leaf, np.dtype('float64'))}"
    elif dtype.kind == "c":
        mend = f"Add {cast_mend(leaf, np.dtype('complex128'))}"
    elif dtype.kind in "mM":
        mend = f"Add {cast_mend(leaf, np.dtype('int64'))} where its count is what you want"
    else:
        mend = "Turn it into numbers of another dtype in a map()"
    return f"{mend}, or leave it out with .drop({leaf!r})" if leaf else mend
