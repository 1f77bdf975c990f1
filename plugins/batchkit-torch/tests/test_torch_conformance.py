"""The torch backend passes batchkit's conformance kit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from batchkit.testing import BackendConformance
from batchkit_torch.backend import TorchBackend


class TestTorchConformance(BackendConformance):
    def make_backend(self) -> TorchBackend:
        return TorchBackend()

    def to_numpy(self, array: torch.Tensor) -> np.ndarray[Any, Any]:
        try:
            return array.numpy()
        except TypeError:  # bfloat16 and float8, which NumPy has by way of ml_dtypes
            import ml_dtypes

            name = str(array.dtype).removeprefix("torch.")
            bits = getattr(torch, f"uint{8 * array.element_size()}")
            return array.view(bits).numpy().view(getattr(ml_dtypes, name))
