"""Arithmetic on whole batches in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError
from batchkit.transforms.leaves import Array

__all__ = ["float_dtype", "in_blocks"]

_PIECE = 1 << 16
"""Numbers in a piece: 256 KiB of float32, about half of a core's own cache."""


def in_blocks(source: Array, out: Array, change: Callable[[Array, slice], None]) -> None:
    """Fill ``out`` with ``source`` changed in place by ``change(piece, lines)``, some lines at a time.

    Both have the same two axes. ``change`` is called with float32 or float64: the dtype of ``out``, or
    float32 where that is narrower or an integer.
    """
    step = max(1, _PIECE // max(1, source.shape[1]))
    work = out.dtype if out.dtype in (np.float32, np.float64) else np.dtype(np.float32)
    scratch = None if out.dtype == work else np.empty((min(step, len(source)), source.shape[1]), work)
    for begin in range(0, len(source), step):
        lines = slice(begin, min(begin + step, len(source)))
        piece = out[lines] if scratch is None else scratch[: lines.stop - begin]
        piece[...] = source[lines]
        change(piece, lines)
        if scratch is not None:
            # `change` has rounded and clipped: an integer holds what is there.
            np.copyto(out[lines], piece, casting="unsafe")


def float_dtype(dtype: npt.DTypeLike, name: str) -> np.dtype[Any]:
    """Return a floating dtype of two, four or eight bytes."""
    try:
        known = np.dtype(dtype)
    except TypeError:
        known = np.dtype(object)
    if known not in (np.float16, np.float32, np.float64):
        raise PipelineError(f"{name} must be 'float16', 'float32' or 'float64', not {dtype!r}")
    return known
