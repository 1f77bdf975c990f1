"""Host columns as tensors that share their memory."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from batchkit_torch import dtypes

__all__ = ["tensor_of"]

_ALIAS = torch.from_numpy


def tensor_of(column: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor that shares the memory of ``column``."""
    if not column.flags.writeable:
        column = column.copy()
    dtype = column.dtype
    if dtype.num in dtypes.TAKEN:
        return _ALIAS(column)
    bits, wanted = dtypes.reinterpreted(dtype.name)
    return _ALIAS(column.view(bits)).view(wanted)
