"""The TensorFlow backend passes batchkit's conformance kit."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchkit.testing import BackendConformance
from batchkit_tensorflow.backend import TensorFlowBackend


class TestTensorFlowConformance(BackendConformance):
    def make_backend(self) -> TensorFlowBackend:
        return TensorFlowBackend()

    def to_numpy(self, array: Any) -> np.ndarray[Any, Any]:
        return np.asarray(array.numpy())
