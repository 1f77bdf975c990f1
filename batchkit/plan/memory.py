"""Memory for batches that are computed on their own, outside of a loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.metering import Sheet
from batchkit.skipping import Guard

__all__ = ["FreshMemory"]


class FreshMemory:
    """A slot pool that reuses nothing and narrows nothing: for a batch on its own.

    With a ``guard`` rows whose function fails are left out.
    """

    def __init__(self, guard: Guard | None = None) -> None:
        self.prepared: dict[Any, Any] = {}
        self.guard = guard
        self.sheet: Sheet | None = None

    def lessor(
        self, key: Any, dtype: np.dtype[Any], row_shape: tuple[int, ...], final: bool = False
    ) -> Callable[[int], npt.NDArray[Any]]:
        """Return what makes new memory of one kind."""
        return lambda rows: np.empty((rows, *row_shape), dtype)

    def column(
        self, key: Any, rows: int, dtype: np.dtype[Any], row_shape: tuple[int, ...], final: bool = False
    ) -> npt.NDArray[Any]:
        """Return new memory."""
        return np.empty((rows, *row_shape), dtype)

    def host_dtype(self, leaf: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype itself."""
        return dtype

    def narrow_into(self, leaf: str, column: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Copy; dtypes never differ here."""
        out[...] = column

    def ready(self, leaf: str, column: npt.NDArray[Any], key: Any) -> npt.NDArray[Any]:
        """Return the column."""
        return column
