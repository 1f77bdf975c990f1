"""The backend ``"jax"``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.backends import Putter, aligned_empty
from batchkit.tree import Tree
from batchkit_jax import devices, dtypes
from batchkit_jax.dataset import JaxDataset
from batchkit_jax.placement import ALIGNMENT, place

__all__ = ["JaxBackend"]


class JaxBackend:
    """Hands batches over as ``jax.Array``; on the CPU they are the host columns' own memory.

    JAX keeps a reference to that memory for as long as an array, or a computation that is
    still pending, may read it.
    """

    name = "jax"
    alignment = ALIGNMENT
    widening = 'turn on 64 bits with jax.config.update("jax_enable_x64", True)'

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        """Return ``dtype``, or without ``jax_enable_x64`` its 32-bit sibling.

        Raises:
            BackendError: JAX has nothing for it (strings, dates, structured dtypes, longdouble).
        """
        return dtypes.host_dtype(dtype, leaf)

    def device(self, device: Any) -> devices.Target:
        """Return the device or sharding for ``None``, ``"cpu"``, ``"gpu:1"``, a ``jax.Device`` or a ``Sharding``.

        ``None`` stays ``None``: JAX's default device, to which the arrays are not committed.
        A number counts this process's own devices.

        Raises:
            BackendError: there is no such device; names those that there are.
        """
        return devices.resolve(device)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return memory that JAX on the CPU can read in place."""
        return aligned_empty(shape, dtype, ALIGNMENT)

    def put(self, batch: Tree, device: devices.Target) -> Tree:
        """Return the batch as ``jax.Array`` of the same nesting, values and dtypes.

        Raises:
            BackendError: a leaf cannot be cut as the sharding says, or has 64 bits although
                x64 was turned off since the loader was made.
        """
        columns, nesting = tree_.flatten(batch)
        for number, column in enumerate(columns):
            if column.dtype.itemsize >= 8:
                dtypes.refuse_wide(column.dtype, tree_.paths(nesting)[number])
        return tree_.unflatten(nesting, place(columns, nesting, device))

    def stager(self, device: devices.Target, wanted: bool) -> Putter | None:
        """Return what puts batches on ``device`` ahead of the caller; on the CPU only if it is ``wanted``."""
        return Putter(self, device) if wanted or devices.has_own_memory(device) else None

    def as_dataset(self, loader: Any) -> JaxDataset:
        """Return a data set whose every iteration is the next epoch of ``loader``."""
        return JaxDataset(loader)
