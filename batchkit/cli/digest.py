"""A digest of batches, so that two runs can be compared."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.errors import BackendError
from batchkit.tree import Tree, flatten, leaf_label, paths

__all__ = ["Digest", "host_array"]


class Digest:
    """The SHA-256 of the bytes of every leaf of every batch, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: Tree) -> None:
        """Add the leaves of a batch, in the sorted order of their keys.

        Raises:
            BackendError: NumPy cannot read a leaf of the framework.
        """
        leaves, nesting = flatten(batch)
        for path, leaf in zip(paths(nesting), leaves, strict=True):
            what = leaf_label(path)
            array = host_array(leaf, what)
            if array.dtype.kind in "OSTU":  # the width of text depends on the batch, or its bytes are pointers
                for item in array.ravel().tolist():
                    text = _bytes(item, what)
                    self._hash.update(len(text).to_bytes(8, "little") + text)
            else:
                self._hash.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """Return the digest so far."""
        return self._hash.hexdigest()


def host_array(leaf: Any, what: str) -> npt.NDArray[Any]:
    """Return a framework's array as a NumPy array, from whatever device it is on.

    Raises:
        BackendError: NumPy cannot read it.
    """
    try:
        return np.asarray(leaf)
    except (TypeError, ValueError, RuntimeError) as exc:
        if getattr(leaf, "is_cuda", False):  # torch copies from another device only when told to
            return host_array(leaf.cpu(), what)
        raise BackendError(f"NumPy cannot read {what}, a {type(leaf).__name__}: {exc}. Leave --digest out") from exc


def _bytes(item: Any, what: str) -> bytes:
    if not isinstance(item, (str, bytes)):
        raise BackendError(f"{what} holds a {type(item).__name__}, which has no bytes to digest. Leave --digest out")
    return item.encode() if isinstance(item, str) else item
