"""The Backend protocol, and the NumPy backend that the core brings along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from batchkit.buffers import aligned_empty
from batchkit.errors import BackendError
from batchkit.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Backend", "NumpyBackend", "Putter", "Stager", "aligned_empty", "row_count"]


@runtime_checkable
class Backend(Protocol):
    """What a framework plugin offers: where batches are gathered to, and how they are handed over.

    A backend only moves bytes: it never changes a value. All methods may be called from
    several threads.
    """

    name: str
    """The word by which users choose it: ``Loader(pipe, backend="torch")``."""

    alignment: int
    """Bytes to whose multiple a column's address must be aligned to be handed over without a copy."""

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        """Return the dtype that a host column must have before :meth:`put`.

        It is ``dtype`` itself where the framework has it. It is a narrower dtype of the same
        kind (int64 -> int32, float64 -> float32) where the framework has nothing wider: the
        core then narrows while it gathers, and refuses integers that do not fit.

        Raises:
            BackendError: the framework has nothing for this dtype; names ``leaf`` and a mend.
        """
        ...

    def device(self, device: Any) -> Any:
        """Return the framework's own device for a user's ``device=`` (``None``: the default).

        Raises:
            BackendError: there is no such device; names those that there are.
        """
        ...

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return uninitialised, C-contiguous, writable host memory for one column."""
        ...

    def put(self, batch: Tree, device: Any) -> Tree:
        """Return the framework's arrays for a host batch of the dtypes of :meth:`host_dtype`.

        ``device`` is what :meth:`device` returned. On the CPU nothing is copied where the
        framework allows it; the arrays must keep the host memory referenced for as long as
        they may read it (the core reuses a column when nothing refers to it any more).
        """
        ...

    def as_dataset(self, loader: Any) -> Iterable[Any]:
        """Return the framework's own kind of data set over ``loader``."""
        ...


class Stager(Protocol):
    """Puts batches on a device ahead of the caller: sends in a background thread, receives in the caller's.

    A backend whose device has memory of its own may offer ``stager(device, wanted) -> Stager | None``:
    ``None`` where :meth:`Backend.put` is as good, unless it is ``wanted`` all the same.
    """

    def send(self, batch: Tree) -> Any:
        """Start to copy a host batch to the device, and keep the host memory referenced until that is done."""
        ...

    def receive(self, sent: Any) -> Tree:
        """Return the framework's arrays of what :meth:`send` returned; the caller's own work waits for the copy."""
        ...

    def close(self) -> None:
        """Let go of all host memory."""
        ...


class Putter:
    """A stager for frameworks whose ``put`` only starts the copy and keeps the host memory until it is done."""

    def __init__(self, backend: Backend, device: Any) -> None:
        self._put, self._device = backend.put, device

    def send(self, batch: Tree) -> Any:
        """Put the batch."""
        return self._put(batch, self._device)

    def receive(self, sent: Any) -> Tree:
        """Return what was put."""
        return sent

    def close(self) -> None:
        """There is nothing to let go of."""


class NumpyBackend:
    """The built-in backend: batches stay NumPy arrays."""

    name = "numpy"
    alignment = 1

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        """Return ``dtype``: NumPy has them all."""
        return dtype

    def device(self, device: Any) -> None:
        """Accept ``None`` and ``"cpu"``: NumPy knows no other device."""
        if device not in (None, "cpu"):
            raise BackendError(
                f"backend 'numpy' has no device {device!r}: leave device= out, or choose another backend"
            )

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return memory aligned to a cache line."""
        return aligned_empty(shape, dtype)

    def put(self, batch: Tree, device: Any) -> Tree:
        """Return the batch as it is."""
        return batch

    def as_dataset(self, loader: Any) -> Iterable[Any]:
        """Return the loader: a NumPy user's data set is anything that can be iterated again."""
        return loader  # type: ignore[no-any-return]


def row_count(batch: Tree) -> int:
    """Return how many rows a batch has that a backend has put: those of its first leaf, an array of any framework.

    One without axes, which a function that makes the batch may return, counts as one.

    Raises:
        BackendError: there is no leaf, or it is nothing that has a length.

    >>> row_count({"x": np.zeros((3, 2))}), row_count(([1.0, 2.0],))
    (3, 2)
    """
    leaf = batch
    while isinstance(leaf, (dict, tuple)):  # flattening a batch would take longer than a cheap step
        leaf = next(iter(leaf.values() if isinstance(leaf, dict) else leaf), None)
    shape = getattr(leaf, "shape", None)
    try:
        return len(leaf) if shape is None else int(shape[0]) if len(shape) else 1
    except (TypeError, IndexError) as exc:
        what = "without a leaf" if leaf is None else f"whose first leaf, a {type(leaf).__name__}, has no rows"
        raise BackendError(
            f"the backend gave a batch {what}. Its put() must return the nesting that it was given, with an array "
            "or a list for every column"
        ) from exc
