"""The backend itself: a host batch becomes torch tensors on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchkit import tree as tree_
from batchkit.backends import aligned_empty
from batchkit.tree import Tree
from batchkit_torch import devices, dtypes
from batchkit_torch.dataset import TorchDataset
from batchkit_torch.hosting import tensor_of
from batchkit_torch.staging import StreamStager

__all__ = ["TorchBackend"]


class TorchBackend:
    """Batches are torch tensors; on the CPU they share the host batch's memory.

    On another device they are copies, complete when :meth:`put` returns, so that the host
    memory may be reused at once. ``allocate`` gives page-locked memory after a CUDA device
    was chosen, which the copy is faster from.
    """

    name = "torch"
    alignment = 1

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._narrows_for: str | None = None

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        """Return ``dtype`` where torch has it; on Apple's MPS, 64-bit floats become 32-bit ones.

        Raises:
            BackendError: torch has nothing for it (strings, dates, structs, ...).
        """
        return dtypes.host_dtype(dtype, leaf, self._narrows_for or self._device.type)

    def device(self, device: Any) -> torch.device:
        """Return the device for ``None`` (torch's default), a name such as ``"cuda:1"``, or a ``torch.device``.

        Raises:
            BackendError: there is no such device here; lists those that there are.
        """
        self._device = devices.resolve(device)
        return self._device

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return host memory for one column: page-locked for CUDA, else aligned to a cache line."""
        if self._device.type != "cuda":
            return aligned_empty(shape, dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw: npt.NDArray[Any] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
        return np.ndarray(shape, dtype, raw)

    def put(self, batch: Tree, device: torch.device) -> Tree:
        """Return the same nesting of tensors on ``device``, bit for bit; on the CPU nothing is copied.

        A column that may not be written to is copied, since torch would write to it.
        """
        on_host = device.type == "cpu"
        if on_host and type(batch) is dict:
            # One call a leaf: several times faster than a walk over the nesting.
            try:
                return {name: tensor_of(column) for name, column in batch.items()}
            except AttributeError:
                pass  # A leaf with leaves of its own.
        leaves, nesting = tree_.flatten(batch)
        tensors = [tensor_of(leaf) for leaf in leaves]
        if not on_host:
            # Blocking: the core may fill the host memory anew as soon as nothing refers to it.
            tensors = [tensor.to(device) for tensor in tensors]
        return tree_.unflatten(nesting, tensors)

    def stager(self, device: torch.device, wanted: bool) -> StreamStager | None:
        """Return what copies batches ahead of the caller, on a stream of its own; on the CPU only if ``wanted``."""
        return StreamStager(device) if wanted or device.type in ("cuda", "xpu") else None

    def as_dataset(self, loader: Any) -> TorchDataset:
        """Return a ``torch.utils.data.IterableDataset`` of the batches of ``loader``."""
        host = TorchBackend()
        # A batch that a worker makes on the CPU must be one that the loader's device can take.
        host._narrows_for = self._device.type
        return TorchDataset(loader, host)
