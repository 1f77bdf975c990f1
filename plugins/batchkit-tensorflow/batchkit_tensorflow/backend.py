"""The backend itself: a host batch becomes tensors on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batchkit import tree as tree_
from batchkit.backends import Putter, aligned_empty
from batchkit.tree import Tree
from batchkit_tensorflow import devices, dtypes
from batchkit_tensorflow.dataset import dataset_of

__all__ = ["TensorFlowBackend"]

_ALIGNMENT = 64
_UINT16 = np.dtype(np.uint16)


class TensorFlowBackend:
    """Batches are eager tensors; on the CPU they share the host batch's memory.

    Strings, bytes and the 8-bit floats are copied, and so is memory that is not aligned to
    64 bytes. Strings and bytes stay on the CPU whatever the device is.
    """

    name = "tensorflow"
    alignment = _ALIGNMENT

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        """Return ``dtype`` where TensorFlow has it.

        Raises:
            BackendError: TensorFlow has nothing for it (dates, structs, ...).
        """
        return dtypes.host_dtype(dtype, leaf)

    def device(self, device: Any) -> str:
        """Return TensorFlow's name of the device for ``None`` (its default), ``"cpu"``, ``"gpu:1"``, ``"/GPU:0"``, ...

        Raises:
            BackendError: there is no such device here; lists those that there are.
        """
        return devices.resolve(device)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return memory that TensorFlow can read without a copy."""
        return aligned_empty(shape, dtype, _ALIGNMENT)

    def put(self, batch: Tree, device: str) -> Tree:
        """Return the same nesting of tensors on ``device``, bit for bit."""
        if type(batch) is dict and device == devices.CPU:
            try:
                return {name: _tensor(column) for name, column in batch.items()}
            except AttributeError:
                pass  # A leaf with leaves of its own.
        leaves, nesting = tree_.flatten(batch)
        tensors = [_tensor(leaf) for leaf in leaves]
        if device != devices.CPU:
            # The copy keeps the tensor on the host, and with it the host's memory, until it is done.
            with tf.device(device):
                tensors = [one if one.dtype == tf.string else tf.identity(one) for one in tensors]
        return tree_.unflatten(nesting, tensors)

    def stager(self, device: str, wanted: bool) -> Putter | None:
        """Return what puts batches on ``device`` ahead of the caller; on the CPU only if it is ``wanted``."""
        return Putter(self, device) if wanted or device != devices.CPU else None

    def as_dataset(self, loader: Any) -> tf.data.Dataset:
        """Return a ``tf.data.Dataset`` of the batches of ``loader``, with their exact shapes and dtypes."""
        return dataset_of(loader)


def _tensor(column: npt.NDArray[Any]) -> tf.Tensor:
    """Return a tensor on the CPU, which shares the memory of ``column`` if it can."""
    number = column.dtype.num
    direct = number in dtypes.DIRECT
    if (direct or number == dtypes.BFLOAT16) and _shareable(column):
        try:
            if direct:
                return tf.experimental.dlpack.from_dlpack(column.__dlpack__())
            with tf.device(devices.CPU):
                return tf.bitcast(tf.experimental.dlpack.from_dlpack(column.view(_UINT16).__dlpack__()), tf.bfloat16)
        except (BufferError, TypeError, tf.errors.OpError):
            pass  # Which dtypes go through DLPack depends on both versions; a copy is right as well.
    if column.dtype.kind == "T":
        column = column.astype(object)
    with tf.device(devices.CPU):
        return tf.convert_to_tensor(column)


def _shareable(column: npt.NDArray[Any]) -> bool:
    # TensorFlow ends the process when given memory that is not aligned: look before, every time.
    return bool(column.__array_interface__["data"][0] % _ALIGNMENT == 0 and column.flags.carray and column.size)
