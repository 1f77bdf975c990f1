"""Host batches as tf.data wants them: NumPy arrays in memory that it can read in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.backends import NumpyBackend
from batchkit.tree import Tree
from batchkit_tensorflow import dtypes

__all__ = ["HostBatches"]


class HostBatches(NumpyBackend):
    """NumPy batches of the dtypes that TensorFlow has.

    tf.data takes an aligned array as it is and keeps a reference to it for as long as any
    tensor reads from it, so that the core's leases hold; what is not aligned it copies at once.
    """

    name = "tensorflow"
    alignment = 64

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        """Return ``dtype`` where TensorFlow has it; raises :class:`~batchkit.BackendError` where it has not."""
        return dtypes.host_dtype(dtype, leaf)

    def device(self, device: Any) -> None:
        """Accept any: tf.data works on the host, whatever device the loader was made for."""

    def put(self, batch: Tree, device: Any) -> Tree:
        """Return the batch as it is, strings of variable width as objects."""
        return tree_.map_leaves(_plain, batch)


def _plain(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return column.astype(object) if column.dtype.kind == "T" else column
