"""What every backend must do."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

import batchkit as bk
from batchkit import tree as tree_
from batchkit.backends import Backend
from batchkit.errors import BackendError
from batchkit.testing.samples import DTYPES, assert_same, assert_same_tree, dtype_id, sample
from batchkit.tree import Tree

__all__ = ["BackendConformance"]

_FLOAT, _INT = np.dtype("float32"), np.dtype("int32")
_BATCHES, _ROWS = 40, 16


class Point(NamedTuple):
    """A nesting that is neither a dict nor a plain tuple."""

    x: Any
    y: Any


class BackendConformance:
    """Subclass it, override :meth:`make_backend`, and pytest runs every check.

    ``device`` is what the checks give to ``device=``.
    """

    device: Any = None

    def make_backend(self) -> Backend:
        """Return a new backend."""
        raise NotImplementedError("override make_backend() to return your backend")

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        """Return one of the framework's arrays as a NumPy array of the host dtype; override it where this fails."""
        return np.asarray(array)

    # -- what it says of itself

    def test_name_is_a_word(self) -> None:
        """``name`` is what users write in ``Loader(backend=...)``, and the methods of the protocol are there."""
        backend = self.make_backend()
        assert isinstance(backend, Backend)
        assert isinstance(backend.name, str)
        assert backend.name.split() == [backend.name]

    def test_unknown_device_is_refused_by_name(self) -> None:
        """A device that is not there is a BackendError that names it."""
        with pytest.raises(BackendError, match="no-such-device:7"):
            self.make_backend().device("no-such-device:7")

    # -- dtypes

    @pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
    def test_dtype_is_handed_over_whole_or_refused_by_name(self, dtype: np.dtype[Any]) -> None:
        """Every byte arrives, or a BackendError names the leaf; nothing in between."""
        backend = self.make_backend()
        try:
            host = backend.host_dtype(dtype, "branch/leaf")
        except BackendError as exc:
            assert "branch/leaf" in str(exc), f"the error does not name the leaf 'branch/leaf': {exc}"  # noqa: PT017
            return
        values = sample(host, (5, 3))
        assert_same(self._through(backend, values), values, f"{host}[5, 3]")

    @pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
    def test_host_dtype_never_widens_and_keeps_the_kind(self, dtype: np.dtype[Any]) -> None:
        """An integer stays an integer of its signedness, a float a float; asking again changes nothing."""
        backend = self.make_backend()
        try:
            host = backend.host_dtype(dtype, "leaf")
        except BackendError:
            return
        assert host.kind == dtype.kind, f"{dtype} would become {host}"
        assert host.itemsize <= dtype.itemsize, f"{dtype} would become {host}"
        assert host == dtype or dtype.kind in "iufcUS", f"{dtype} would become {host}"
        assert backend.host_dtype(host, "leaf") == host

    # -- host memory

    @pytest.mark.parametrize("shape", [(5,), (5, 3), (1, 7, 2), (0, 3), ()])
    def test_allocated_memory_is_plain(self, shape: tuple[int, ...]) -> None:
        """A writable C-contiguous ndarray of the shape and dtype asked for."""
        for dtype in (_FLOAT, np.dtype("int8"), np.dtype("bool")):
            column = self.make_backend().allocate(shape, dtype)
            assert type(column) is np.ndarray
            assert (column.shape, column.dtype) == (shape, dtype)
            assert column.flags.c_contiguous
            assert column.flags.writeable

    def test_allocated_memory_is_aligned(self) -> None:
        """Every column starts at a multiple of ``alignment`` bytes."""
        backend = self.make_backend()
        kept = [backend.allocate((rows, 3), np.dtype("int8")) for rows in range(1, 20)]
        assert [column.ctypes.data % backend.alignment for column in kept] == [0] * len(kept)

    def test_allocated_memory_is_the_callers_own(self) -> None:
        """Two columns never share memory."""
        backend = self.make_backend()
        columns = [backend.allocate((3,), _FLOAT) for _ in range(4)]
        for number, column in enumerate(columns):
            column[...] = number
        assert [column.tolist() for column in columns] == [[number] * 3 for number in range(4)]

    # -- handing over

    @pytest.mark.parametrize("shape", [(7,), (1,), (2, 3, 4), (0,), (0, 3), ()])
    def test_shape_is_kept(self, shape: tuple[int, ...]) -> None:
        """Batches of one row and of none, many axes and none: the shape stays what it is."""
        backend = self.make_backend()
        values = sample(_INT, shape)
        assert_same(self._through(backend, values), values, f"int32{list(shape)}")

    def test_nesting_is_kept(self) -> None:
        """Dicts keep the order of their keys, tuples and named tuples their type."""
        backend = self.make_backend()
        x, y = sample(_FLOAT, (4, 2), 1), sample(_INT, (4,), 2)
        tree = {"z": x, "a": (y, Point(x, y)), "m": {"deep": y}}
        got = self._put(backend, tree_.map_leaves(lambda values: _column(backend, values), tree))
        assert list(got) == ["z", "a", "m"], f"the keys came in the order {list(got)}"
        assert type(got["a"]) is tuple
        assert type(got["a"][1]) is Point
        assert_same_tree(tree_.map_leaves(self.to_numpy, got), tree, "the batch")

    def test_memory_lives_as_long_as_the_arrays(self) -> None:
        """The arrays stay right when nothing else is left: not the host batch, nor the backend."""
        values = sample(np.dtype("uint8"), (256, 64), 3)
        backend = self.make_backend()
        given = self._put(backend, {"x": _column(backend, values)})
        del backend
        gc.collect()
        noise = [np.full(values.nbytes + extra, 255, np.uint8) for extra in (0, 1, 64) for _ in range(8)]
        assert_same(self.to_numpy(given["x"]), values, f"an array, after {len(noise)} other allocations")

    def test_memory_that_is_read_is_referenced(self) -> None:
        """Host memory that nothing refers to any more may be overwritten at once, as the core does."""
        backend = self.make_backend()
        values = sample(np.dtype("uint8"), (4096, 256), 4)
        column = _column(backend, values)
        root = column if column[:0].base is None else column[:0].base
        free = sys.getrefcount(root)
        given = self._put(backend, {"x": column[:4000]})
        if sys.getrefcount(root) <= free:
            column[...] = 0
        assert_same(self.to_numpy(given["x"]), values[:4000], "an array whose host memory was free to be overwritten")

    @pytest.mark.parametrize("columns", ["gathered", "unaligned"])
    def test_a_kept_batch_never_changes(self, columns: str) -> None:
        """Two epochs of batches, all kept while threads run ahead, still hold their own rows at the end."""
        x, y = _data()
        pipe = bk.from_arrays({"x": x, "y": y}).batch(_ROWS)
        if columns == "unaligned":
            pipe = pipe.map(_moved)
        with self._loader(pipe, executor="threads", workers=2, prefetch=4) as loader:
            kept = [*loader, *loader]
        assert len(kept) == 2 * _BATCHES
        for number, batch in enumerate(kept):
            rows = slice(number % _BATCHES * _ROWS, (number % _BATCHES + 1) * _ROWS)
            got = tree_.map_leaves(self.to_numpy, batch)
            assert_same_tree(got, {"x": x[rows], "y": y[rows]}, f"batch {number}")

    def test_memory_comes_back(self) -> None:
        """The host memory of batches that nobody keeps is used again, so that a long run does not grow."""
        x, y = _data()
        counting = _CountingBackend(self.make_backend())
        with bk.Loader(
            bk.from_arrays({"x": x, "y": y}).batch(_ROWS), backend=counting, device=self.device, executor="inline"
        ) as loader:
            for _ in range(2):
                for batch in loader:
                    del batch
        assert counting.allocated <= _BATCHES, f"{counting.allocated} columns for {2 * _BATCHES} batches of two leaves"

    def test_put_from_several_threads(self) -> None:
        """Four threads that hand over at once get their own batches."""
        backend = self.make_backend()
        device = backend.device(self.device)
        start = threading.Barrier(4)

        def hand_over(thread: int) -> None:
            start.wait()
            for turn in range(20):
                values = np.full((8, 4), 100 * thread + turn, _INT)
                given = backend.put({"x": _column(backend, values)}, device)
                assert_same(self.to_numpy(given["x"]), values, f"batch {turn} of thread {thread}")

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(hand_over, thread) for thread in range(4)]:
                done.result()

    def test_as_dataset_yields_the_batches(self) -> None:
        """The framework's own data set yields the batches of an epoch, the shorter last one too."""
        x, y = _data()
        with self._loader(bk.from_arrays({"x": x, "y": y}).take(5 * _ROWS + 3).batch(_ROWS)) as loader:
            got = [tree_.map_leaves(self._copied, batch) for batch in loader.as_dataset()]
        assert len(got) == 6
        for number, batch in enumerate(got):
            rows = slice(number * _ROWS, min((number + 1) * _ROWS, 5 * _ROWS + 3))
            assert_same_tree(batch, {"x": x[rows], "y": y[rows]}, f"batch {number}")

    # -- what the checks share

    def _loader(self, pipe: bk.Pipeline, **options: Any) -> bk.Loader:
        return bk.Loader(pipe, backend=self.make_backend(), device=self.device, **options)

    def _copied(self, array: Any) -> npt.NDArray[Any]:
        return np.array(self.to_numpy(array))

    def _put(self, backend: Backend, tree: Tree) -> Tree:
        return backend.put(tree, backend.device(self.device))

    def _through(self, backend: Backend, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self.to_numpy(self._put(backend, {"branch": {"leaf": _column(backend, values)}})["branch"]["leaf"])


class _CountingBackend:
    """A backend that counts how often memory was allocated."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.allocated = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        self.allocated += 1
        return self._backend.allocate(shape, dtype)


def _column(backend: Backend, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    column = backend.allocate(values.shape, values.dtype)
    column[...] = values
    return column


def _data() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rows = _BATCHES * _ROWS
    return sample(_FLOAT, (rows, 24), 5), np.arange(rows, dtype=_INT)


def _moved(columns: Tree) -> Tree:
    """Return the same values where no framework can read them in place."""

    def moved(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        raw = np.empty(column.nbytes + 64, np.uint8)
        away = -raw.ctypes.data % 64 + 4
        place: npt.NDArray[Any] = raw[away : away + column.nbytes].view(column.dtype).reshape(column.shape)
        place[...] = column
        return place

    return tree_.map_leaves(moved, columns)
