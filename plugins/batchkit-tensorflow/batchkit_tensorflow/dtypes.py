"""Which TensorFlow dtype a NumPy column becomes, bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from batchkit.errors import BackendError
from batchkit.tree import leaf_label

__all__ = ["BFLOAT16", "DIRECT", "host_dtype", "tensor_dtype"]

# By their C types: on most machines long and long long are both int64, and two numbers.
DIRECT = frozenset(np.dtype(char).num for char in "?bhilqBHILQefdFD")
"""NumPy's numbers of the dtypes that DLPack hands over; a look-up by number costs less than one by dtype."""

BFLOAT16: int = np.dtype(tf.bfloat16.as_numpy_dtype).num
"""NumPy's number of bfloat16, which is handed over as uint16."""


def host_dtype(dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
    """Return the dtype that a host column of ``dtype`` must have to become a tensor.

    Raises:
        BackendError: TensorFlow has nothing for it; names ``leaf`` and the mend.
    """
    if dtype.num in DIRECT:
        return dtype if dtype.isnative else dtype.newbyteorder("=")
    if dtype.kind in "UST" or _converts(dtype):
        return dtype
    where = leaf_label(leaf)
    drop = f', or leave it out with .drop("{leaf}")' if leaf else ""
    raise BackendError(f"backend 'tensorflow': {where} {_why_not(dtype)}{drop}")


def tensor_dtype(dtype: np.dtype[Any]) -> tf.DType:
    """Return the dtype of the tensor that a column of ``dtype`` becomes; strings and bytes become ``tf.string``."""
    return tf.string if dtype.kind in "UST" else tf.as_dtype(dtype)


@functools.cache
def _converts(dtype: np.dtype[Any]) -> bool:
    """Say whether this version of TensorFlow has a dtype that NumPy has only by extension."""
    if dtype.names is not None or dtype.kind in "mMO" or dtype.num < np.dtype(object).num:
        return False
    try:
        with tf.device("/device:CPU:0"):
            return bool(tf.convert_to_tensor(np.zeros(2, dtype)).dtype == tf.as_dtype(dtype))
    except (ValueError, TypeError, tf.errors.OpError):
        return False


def _why_not(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "mM":
        return f"is {dtype}, which TensorFlow has not. View it as integers in a .map(): leaf.view('int64')"
    if dtype.names is not None:
        fields = ", ".join(dtype.names)
        return f"is structured ({fields}), which TensorFlow has not. Return its fields as leaves from a .map()"
    if dtype.kind == "O":
        return "holds Python objects, which tensors cannot. Turn it into numbers or strings in a .map()"
    return f"is {dtype.name}, which TensorFlow has not. Convert it, for example with .cast() to 'float32' or 'int8'"
