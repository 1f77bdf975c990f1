"""Host slots: aligned memory that is used again when nobody refers to it any more.

Fresh memory costs three times a warm buffer, so columns are recycled. A column is *leased*:
it is free again when nothing outside the pool refers to its root array, which is the array
that every view of it keeps alive, through slices, tensors of other frameworks and autograd.
When all are held the pool grows; it never waits, and never hands out what is still held.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections import deque
from collections.abc import Callable
from sys import getrefcount
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchkit.casting import DoesNotFitError, cast_into, cast_mend
from batchkit.errors import BackendError, NarrowingError, NarrowingWarning
from batchkit.schema import native, slot_dtype
from batchkit.tree import leaf_label

__all__ = ["NARROW", "HostMemory", "Slots", "aligned_empty", "keep_freed_memory"]

NARROW = ("checked", "error")
"""What ``Loader(narrow=)`` may be: narrow where every value fits, or refuse to narrow at all."""

_LOOKED_AT = 16  # leases looked at before the pool grows: the oldest are the likeliest to be free
_TRIM_EVERY = 256  # leases between two looks at whether the pool has become too large


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any], alignment: int = 64) -> npt.NDArray[Any]:
    """Return an uninitialised C-contiguous array whose address is a multiple of ``alignment`` bytes.

    >>> aligned_empty((3, 5), np.dtype("float32")).ctypes.data % 64
    0
    """
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(nbytes + alignment, np.uint8)
    return np.ndarray(shape, dtype, raw, -raw.ctypes.data % alignment)


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep the memory that a step's temporary arrays free, for those of the next step.

    glibc raises the size up to which it does so when a larger block is freed, up to 32 MB. Until then the
    temporaries of every step are paid for with page faults, above all in threads, each of which has a heap
    of its own: two hundred a batch of 1.5 MB. A block of that size, never touched, is freed here.
    """
    np.empty((32 << 20) - (64 << 10), np.uint8)


class HostMemory(Protocol):
    """What slots need of a backend."""

    name: str
    alignment: int

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        """Return the dtype that a column must have."""
        ...

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return new memory for a column."""
        ...


class _Ring:
    """The columns of one leaf: all of one dtype, row shape and capacity, oldest lease first."""

    __slots__ = ("_backend", "_baseline", "_capacity", "_columns", "_dtype", "_leases", "_lock", "_row_shape")

    def __init__(self, backend: HostMemory, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self._backend, self._dtype, self._row_shape = backend, dtype, row_shape
        self._capacity = 0
        self._columns: deque[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = deque()
        self._baseline = 0
        self._leases = 0
        self._lock = threading.Lock()

    def lease(self, rows: int) -> npt.NDArray[Any]:
        """Return a column of ``rows`` rows that nobody else refers to."""
        with self._lock:
            columns = self._columns
            if rows > self._capacity:
                self._capacity = rows
                columns.clear()
            self._leases += 1
            if self._leases % _TRIM_EVERY == 0:
                self._trim()
            baseline = self._baseline
            # min() would take longer than the rest of the line.
            for _ in range(len(columns) if len(columns) < _LOOKED_AT else _LOOKED_AT):
                entry = columns[0]
                columns.rotate(-1)
                references = getrefcount(entry[0])
                # Without a GIL a reference that moves from one thread to another can be missed: look twice.
                if references == baseline and getrefcount(entry[0]) == baseline:
                    return entry[1][:rows]
                if references < baseline and getrefcount(entry[0]) < baseline:
                    # A transient reference was counted: a held slot would look free.
                    raise BackendError(
                        f"a host slot has {references} references, fewer than the {baseline} it was made with. "
                        "This is an error in batchkit or in the backend's allocate(): please report it"
                    )
            return self._grow()[:rows]

    def _grow(self) -> npt.NDArray[Any]:
        column = self._backend.allocate((self._capacity, *self._row_shape), self._dtype)
        root = column[:0].base
        entry = (column if root is None else root, column)
        del root
        self._columns.append(entry)
        # One count for all: allocate() makes every column in the same way.
        self._baseline = self._baseline or getrefcount(entry[0]) - (column is entry[0])
        return column

    def _trim(self) -> None:
        free = [entry for entry in self._columns if getrefcount(entry[0]) == self._baseline]
        if len(free) > max(_LOOKED_AT, len(self._columns) // 2):
            doomed = {id(entry) for entry in free[len(free) // 2 :]}
            self._columns = deque(entry for entry in self._columns if id(entry) not in doomed)


class Slots:
    """The host memory of one run: leases columns, and says what dtype each must have.

    Safe to use from several threads.
    """

    def __init__(self, backend: HostMemory, narrow: str = "checked") -> None:
        self.backend = backend
        self.alignment = backend.alignment
        self.narrow = narrow
        self.prepared: dict[Any, Any] = {}
        self.guard: Any = None
        self.sheet: Any = None
        self._lessors: dict[tuple[Any, ...], Callable[[int], npt.NDArray[Any]]] = {}
        self._host_dtypes: dict[tuple[str, np.dtype[Any]], np.dtype[Any]] = {}
        self._lock = threading.Lock()

    def lessor(
        self, key: Any, dtype: np.dtype[Any], row_shape: tuple[int, ...], final: bool = False
    ) -> Callable[[int], npt.NDArray[Any]]:
        """Return what leases columns of so many rows; recycled where values are plain bytes of one size.

        ``final`` columns are, or may become, those of the batch itself; here all lie in the same kind of memory.
        """
        lessor = self._lessors.get((key, dtype, row_shape))
        if lessor is None:
            if dtype.kind in "US" or not slot_dtype(dtype):
                return lambda rows: np.empty((rows, *row_shape), dtype)
            with self._lock:
                lessor = self._lessors.setdefault((key, dtype, row_shape), _Ring(self.backend, dtype, row_shape).lease)
        return lessor

    def column(
        self, key: Any, rows: int, dtype: np.dtype[Any], row_shape: tuple[int, ...], final: bool = False
    ) -> npt.NDArray[Any]:
        """Lease one column."""
        return self.lessor(key, dtype, row_shape, final)(rows)

    def host_dtype(self, leaf: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype that the backend wants for a leaf.

        Raises:
            BackendError: the framework has none.
            NarrowingError: it has a narrower one only, and ``narrow="error"``.
        """
        found = self._host_dtypes.get((leaf, dtype))
        if found is None:
            found = self.backend.host_dtype(dtype, leaf)
            if found != dtype:
                self._announce(leaf, dtype, found)
            self._host_dtypes[leaf, dtype] = found
        return found

    def _announce(self, leaf: str, dtype: np.dtype[Any], host: np.dtype[Any]) -> None:
        name = self.backend.name
        if self.narrow == "error":
            raise NarrowingError(
                f"backend {name!r} has no {dtype.name}: {leaf_label(leaf)} would become {host.name}, and "
                f"narrow='error' forbids that. Add {cast_mend(leaf, host)}{self._widening()}"
            )
        if dtype.kind in "fc":
            warnings.warn(
                f"backend {name!r} has no {dtype.name}: {leaf_label(leaf)} becomes {host.name} and loses precision. "
                f"Say so with {cast_mend(leaf, host)}{self._widening()}",
                NarrowingWarning,
                stacklevel=2,
            )

    def _widening(self) -> str:
        hint = getattr(self.backend, "widening", "")
        return f", or {hint}" if hint else ""

    def narrow_into(self, leaf: str, column: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Write ``column`` to ``out`` of the backend's narrower dtype.

        Raises:
            NarrowingError: a value does not fit; names the leaf, the value and the mends.
        """
        try:
            cast_into(column, out)
        except DoesNotFitError as exc:
            raise NarrowingError(
                f"{leaf_label(leaf)}: the value {exc.value} does not fit {out.dtype.name}, and backend "
                f"{self.backend.name!r} has no {column.dtype.name}. Make the values fit and add "
                f"{cast_mend(leaf, out.dtype)}{self._widening()}"
            ) from None

    def ready(self, leaf: str, column: npt.NDArray[Any], key: Any) -> npt.NDArray[Any]:
        """Return ``column`` if it can be handed over as it is, else a copy of it in a slot."""
        dtype = column.dtype
        host = self.host_dtype(leaf, native(dtype))
        flags = column.flags
        if (
            dtype == host
            and flags.c_contiguous
            and flags.writeable
            and type(column) is np.ndarray
            and (
                self.alignment == 1
                or column.__array_interface__["data"][0] % self.alignment == 0
                or not slot_dtype(dtype)
            )
        ):
            return column
        if column.ndim == 0:  # a value of the batch rather than of its rows: nothing worth recycling
            out = self.backend.allocate((), host)
        else:
            # Leased by its size: a function may return another shape for every batch, and each would keep its memory.
            out = self.column(key, column.size, host, (), final=True).reshape(column.shape)
        if host == native(dtype):
            out[...] = column
        else:
            self.narrow_into(leaf, column, out)
        return out
