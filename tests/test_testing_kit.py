"""The conformance kit: what is right passes it, and for each check something wrong fails that check."""

from __future__ import annotations

import collections
import ctypes
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit import tree as tree_
from batchkit.executors import InlineExecutor, ThreadExecutor
from batchkit.sources import ArraySource, NpySource, NpzSource, SequenceSource
from batchkit.testing import BackendConformance, ExecutorConformance, SourceConformance, check_resume

# -- what is right passes


class TestNumpyBackend(BackendConformance):
    def make_backend(self) -> bk.NumpyBackend:
        return bk.NumpyBackend()


class TestInlineExecutor(ExecutorConformance):
    def make_executor(self, workers: int) -> InlineExecutor:
        return InlineExecutor(workers)


class TestThreadExecutor(ExecutorConformance):
    def make_executor(self, workers: int) -> ThreadExecutor:
        return ThreadExecutor(workers)


X = np.arange(9 * 4, dtype=np.float32).reshape(9, 4)
Y = np.arange(9, dtype=np.int64) * 10
NAMES = np.array(["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis"])


class TestArraySource(SourceConformance):
    def make_source(self) -> Any:
        return ArraySource({"x": X.copy(), "meta": (Y.copy(), NAMES.copy())})

    def expected_rows(self) -> list[Any]:
        return [{"x": X[row], "meta": (Y[row], NAMES[row])} for row in range(9)]


class TestArraySourceOfOneArray(SourceConformance):
    def make_source(self) -> Any:
        return ArraySource(X.copy())

    def expected_rows(self) -> list[Any]:
        return list(X)


class TestArraySourceOfAwkwardArrays(SourceConformance):
    """Big-endian, strided, read-only: what ``take`` cannot gather as it is."""

    def make_source(self) -> Any:
        frozen = X.copy()
        frozen.flags.writeable = False
        return ArraySource({"big": Y.astype(">i8"), "strided": np.repeat(X, 2, 1)[:, ::2], "frozen": frozen})

    def expected_rows(self) -> list[Any]:
        return [{"big": Y[row], "strided": X[row], "frozen": X[row]} for row in range(9)]


class TestSequenceSource(SourceConformance):
    def make_source(self) -> Any:
        return SequenceSource([{"x": X[row].copy(), "y": int(Y[row]), "name": str(NAMES[row])} for row in range(9)])

    def expected_rows(self) -> list[Any]:
        return [{"x": X[row], "y": int(Y[row]), "name": str(NAMES[row])} for row in range(9)]


class OnFiles(SourceConformance):
    """A source that reads files, written anew for every check."""

    @pytest.fixture(autouse=True)
    def files(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        np.save(tmp_path / "x.npy", X)
        np.save(tmp_path / "y.npy", Y)
        np.savez(tmp_path / "plain.npz", x=X, y=Y)
        np.savez_compressed(tmp_path / "packed.npz", x=X, y=Y)

    def expected_rows(self) -> list[Any]:
        return [{"x": X[row], "y": Y[row]} for row in range(9)]


class TestNpySource(OnFiles):
    def make_source(self) -> Any:
        return NpySource({"x": str(self.folder / "x.npy"), "y": str(self.folder / "y.npy")})


class TestNpySourceOfOneFile(OnFiles):
    def make_source(self) -> Any:
        return NpySource(str(self.folder / "x.npy"))

    def expected_rows(self) -> list[Any]:
        return list(X)


class TestNpzSource(OnFiles):
    def make_source(self) -> Any:
        return NpzSource(str(self.folder / "plain.npz"))


class TestCompressedNpzSource(OnFiles):
    def make_source(self) -> Any:
        return NpzSource(str(self.folder / "packed.npz"))


PIPELINES = {
    "arrays": bk.from_arrays({"x": X, "y": Y}).shuffle(seed=1).batch(4),
    "dropped": bk.from_arrays({"x": X, "y": Y}).shuffle(seed=1).batch(4, remainder="drop"),
    "padded": bk.from_arrays({"x": X, "y": Y}).shuffle(seed=1).batch(4, remainder="pad"),
    "repeated": bk.from_arrays({"x": X, "y": Y}).shuffle(seed=1).repeat(2).batch(4),
    "random rows": bk.from_arrays({"x": X})
    .shuffle(seed=1)
    .random_map(lambda row, rng: {"x": row["x"] + rng.random()})
    .batch(2),
    "random batches": bk.from_arrays(X).batch(2).random_map(lambda x, rng: x + rng.random()[:, None].astype("float32")),
    "sequence": bk.from_sequence(list(X)).shuffle(seed=1).batch(4),
    "generator": bk.from_generator(lambda: iter(X)).batch(4),
}


@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_resumes_at_every_step(name: str, executor: str) -> None:
    check_resume(PIPELINES[name], executor=executor)


def test_an_endless_pipeline_resumes_at_every_step() -> None:
    check_resume(bk.from_arrays(X).shuffle(seed=1).repeat().batch(4), batches=7)


def test_a_rank_resumes_at_every_step() -> None:
    check_resume(PIPELINES["arrays"], shard=(1, 2), executor="inline")


# -- what is wrong fails


def failing(checks: type) -> set[str]:
    """Run every check of a class and return the names of those that fail."""
    failed = set()
    for name in dir(checks):
        if name.startswith("test_"):
            for arguments in _cases(getattr(checks, name)):
                try:
                    getattr(checks(), name)(**arguments)
                except (Exception, pytest.fail.Exception):
                    failed.add(name)
    return failed


def _cases(check: Any) -> Iterator[dict[str, Any]]:
    marks = [mark for mark in getattr(check, "pytestmark", []) if mark.name == "parametrize"]
    for values in itertools.product(*(mark.args[1] for mark in marks)):
        yield {mark.args[0]: value for mark, value in zip(marks, values, strict=True)}


def names_of(wrong: list[tuple[Any, set[str]]]) -> list[str]:
    return [each.__name__ for each, _ in wrong]


def checks_of(kit: type) -> set[str]:
    return {name for name in dir(kit) if name.startswith("test_")}


class Nameless(bk.NumpyBackend):
    name = "not a word"


class TakesAnyDevice(bk.NumpyBackend):
    def device(self, device: Any) -> None:
        return None


class RefusesWithoutNaming(bk.NumpyBackend):
    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        if dtype.names:
            raise bk.BackendError("no structured dtypes here")
        return dtype


class LosesBits(bk.NumpyBackend):
    def put(self, batch: Any, device: Any) -> Any:
        return tree_.map_leaves(lambda leaf: leaf.astype("f4").astype("f8") if leaf.dtype == "f8" else leaf, batch)


class ChangesTheKind(bk.NumpyBackend):
    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        return np.dtype("float64") if dtype == np.int64 else dtype


class Widens(bk.NumpyBackend):
    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        return np.dtype("float32") if dtype == np.float16 else dtype


class AllocatesColumnMajor(bk.NumpyBackend):
    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return np.empty(shape, dtype, order="F")


class IgnoresItsAlignment(bk.NumpyBackend):
    alignment = 64

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        raw = np.empty(int(np.prod(shape)) * dtype.itemsize + 128, np.uint8)
        return np.ndarray(shape, dtype, raw, -raw.ctypes.data % 64 + 16)


class AllocatesOneColumnTwice(bk.NumpyBackend):
    def __init__(self) -> None:
        self.small = np.empty(3, np.float32)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return self.small if shape == (3,) else super().allocate(shape, dtype)


class FlattensEmptyBatches(bk.NumpyBackend):
    def put(self, batch: Any, device: Any) -> Any:
        return tree_.map_leaves(lambda leaf: leaf if leaf.size else leaf.reshape(-1), batch)


class SortsKeys(bk.NumpyBackend):
    def put(self, batch: Any, device: Any) -> Any:
        return dict(sorted(batch.items()))


class OwnsTheLeases(bk.NumpyBackend):
    """Aliases by address, and keeps the memory alive for as long as the array lives, but not longer than itself."""

    def __init__(self) -> None:
        self.leases: dict[int, Any] = {}

    def put(self, batch: Any, device: Any) -> Any:
        return tree_.map_leaves(self._alias, batch)

    def _alias(self, column: Any) -> Any:
        if not column.nbytes:
            return column
        raw = (ctypes.c_char * column.nbytes).from_address(column.ctypes.data)
        array = np.ndarray(column.shape, column.dtype, raw)
        key, leases = id(array), self.leases
        leases[key] = column, weakref.ref(array, lambda _: leases.pop(key))
        return array


class SharesWhatIsUnderneath(bk.NumpyBackend):
    """Keeps the memory alive, but through an object that the core does not count."""

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        if dtype.hasobject or not np.prod(shape):
            return super().allocate(shape, dtype)
        return np.frombuffer(bytearray(int(np.prod(shape)) * dtype.itemsize), np.uint8).view(dtype).reshape(shape)

    def put(self, batch: Any, device: Any) -> Any:
        def rewrapped(column: Any) -> Any:
            root = column[:0].base if column.ndim else None
            if root is None or not isinstance(root.base, (bytearray, memoryview)):
                return column
            return np.frombuffer(root.base, np.uint8)[: column.nbytes].view(column.dtype).reshape(column.shape)

        return tree_.map_leaves(rewrapped, batch)


class HasOneBuffer(bk.NumpyBackend):
    """Copies every batch of a thread to the same memory."""

    def __init__(self) -> None:
        self.own = threading.local()

    def put(self, batch: Any, device: Any) -> Any:
        buffers = self.own.__dict__
        leaves, nesting = tree_.flatten(batch)
        for number, leaf in enumerate(leaves):
            place = buffers.setdefault(f"{number} {leaf.shape} {leaf.dtype.char}", np.empty_like(leaf))
            place[...] = leaf
            leaves[number] = place
        return tree_.unflatten(nesting, leaves)


class Hoards(bk.NumpyBackend):
    def __init__(self) -> None:
        self.given: list[Any] = []

    def put(self, batch: Any, device: Any) -> Any:
        self.given.append(batch)
        return batch


class HasOneDesk(bk.NumpyBackend):
    """Passes the batch through an attribute that all threads share."""

    def put(self, batch: Any, device: Any) -> Any:
        self.now = batch
        time.sleep(0.0005)
        return self.now


class LosesTheLastBatch(bk.NumpyBackend):
    def as_dataset(self, loader: Any) -> Any:
        return list(loader)[:-1]


WRONG_BACKENDS = [
    (Nameless, {"test_name_is_a_word"}),
    (TakesAnyDevice, {"test_unknown_device_is_refused_by_name"}),
    (RefusesWithoutNaming, {"test_dtype_is_handed_over_whole_or_refused_by_name"}),
    (LosesBits, {"test_dtype_is_handed_over_whole_or_refused_by_name"}),
    (ChangesTheKind, {"test_host_dtype_never_widens_and_keeps_the_kind"}),
    (Widens, {"test_host_dtype_never_widens_and_keeps_the_kind"}),
    (AllocatesColumnMajor, {"test_allocated_memory_is_plain"}),
    (IgnoresItsAlignment, {"test_allocated_memory_is_aligned"}),
    (AllocatesOneColumnTwice, {"test_allocated_memory_is_the_callers_own"}),
    (FlattensEmptyBatches, {"test_shape_is_kept"}),
    (SortsKeys, {"test_nesting_is_kept"}),
    (OwnsTheLeases, {"test_memory_lives_as_long_as_the_arrays"}),
    # What may be overwritten at once is overwritten while a batch is kept: one fault, seen twice.
    (SharesWhatIsUnderneath, {"test_memory_that_is_read_is_referenced", "test_a_kept_batch_never_changes"}),
    (HasOneBuffer, {"test_a_kept_batch_never_changes"}),
    (Hoards, {"test_memory_comes_back"}),
    (HasOneDesk, {"test_put_from_several_threads"}),
    (LosesTheLastBatch, {"test_as_dataset_yields_the_batches"}),
]


RACES: dict[Any, set[str]] = {
    # Whether the memory is overwritten before it is looked at depends on how far the loader runs ahead.
    SharesWhatIsUnderneath: {"test_as_dataset_yields_the_batches"},
}


@pytest.mark.parametrize(("wrong", "expected"), WRONG_BACKENDS, ids=names_of(WRONG_BACKENDS))
def test_a_wrong_backend_fails_its_check(wrong: Callable[[], Any], expected: set[str]) -> None:
    class Checks(BackendConformance):
        def make_backend(self) -> Any:
            return wrong()

    found = failing(Checks)
    assert expected <= found
    assert found <= expected | RACES.get(wrong, set())


class Rows:
    """A right source, for wrong ones to be made from."""

    def __init__(self) -> None:
        self.columns = {"x": X.copy(), "y": Y.copy()}

    @property
    def schema(self) -> Any:
        return {"x": bk.LeafSpec(np.dtype("float32"), (4,)), "y": bk.LeafSpec(np.dtype("int64"), ())}

    def __len__(self) -> int:
        return 9

    def fingerprint(self) -> str:
        return "rows"

    def gather(self, rows: Any, out: Any = None) -> Any:
        if out is None:
            return {name: column[rows] for name, column in self.columns.items()}
        for name, place in out.items():
            place[...] = self.columns[name][rows]
        return out


class Miscounts(Rows):
    def __len__(self) -> int:
        return 8


class HasAnotherSchema(Rows):
    @property
    def schema(self) -> Any:
        return {"x": bk.LeafSpec(np.dtype("float64"), (4,)), "y": bk.LeafSpec(np.dtype("int64"), ())}


class ReadsInFileOrder(Rows):
    def gather(self, rows: Any, out: Any = None) -> Any:
        return super().gather(np.sort(rows), out)


class ReadsEachRowOnce(Rows):
    def gather(self, rows: Any, out: Any = None) -> Any:
        return super().gather(np.array(list(dict.fromkeys(rows.tolist())), np.int64), out)


class CannotReadNothing(Rows):
    def gather(self, rows: Any, out: Any = None) -> Any:
        return super().gather(rows, out) if len(rows) else {"x": np.array([]), "y": np.array([])}


class IgnoresOut(Rows):
    def gather(self, rows: Any, out: Any = None) -> Any:
        return super().gather(rows)


class CountsReads(Rows):
    reads = 0

    def fingerprint(self) -> str:
        return f"rows, read {self.reads} times"

    def gather(self, rows: Any, out: Any = None) -> Any:
        self.reads += 1
        return super().gather(rows, out)


class IsItsBirthday(Rows):
    births = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.birth = next(self.births)

    def fingerprint(self) -> str:
        return f"rows {self.birth}"


class HoldsALock(Rows):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class HasOneCursor(Rows):
    def gather(self, rows: Any, out: Any = None) -> Any:
        self.rows = rows
        time.sleep(0.0005)
        return super().gather(self.rows, out)


class GivesViews(Rows):
    def gather(self, rows: Any, out: Any = None) -> Any:
        if out is None and len(rows) and (rows == np.arange(rows[0], rows[0] + len(rows))).all():
            return {name: column[rows[0] : rows[0] + len(rows)] for name, column in self.columns.items()}
        return super().gather(rows, out)


WRONG_SOURCES = [
    (Miscounts, {"test_len_is_the_number_of_rows"}),
    (HasAnotherSchema, {"test_schema_is_that_of_the_columns"}),
    (ReadsInFileOrder, {"test_gather_follows_the_order_asked_for"}),
    (ReadsEachRowOnce, {"test_gather_repeats_a_row"}),
    (CannotReadNothing, {"test_gather_of_no_rows_is_empty"}),
    (IgnoresOut, {"test_gather_fills_out_in_place"}),
    (CountsReads, {"test_fingerprint_stays_the_same"}),
    (IsItsBirthday, {"test_equal_sources_have_equal_fingerprints"}),
    (HoldsALock, {"test_a_pickled_copy_reads_the_same"}),
    (HasOneCursor, {"test_gather_from_several_threads"}),
    (GivesViews, {"test_columns_are_the_callers_own"}),
]


@pytest.mark.parametrize(("wrong", "expected"), WRONG_SOURCES, ids=names_of(WRONG_SOURCES))
def test_a_wrong_source_fails_its_check(wrong: Callable[[], Any], expected: set[str]) -> None:
    class Checks(SourceConformance):
        def make_source(self) -> Any:
            return wrong()

        def expected_rows(self) -> list[Any]:
            return [{"x": X[row], "y": Y[row]} for row in range(9)]

    assert failing(Checks) == expected


class Sequential:
    """A right executor that computes in the caller's thread, for wrong ones to be made from."""

    name = "sequential"

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, plan: Any, steps: Iterator[Any], window: int) -> Any:
        return self.Run(plan, steps, window)

    class Run:
        def __init__(self, plan: Any, steps: Iterator[Any], window: int) -> None:
            self.compute, self.steps, self.window = plan.compute, steps, window
            self.closed = False

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            if self.closed:
                raise StopIteration
            return self.compute(next(self.steps))

        def close(self) -> None:
            self.closed = True


class TwoWords(Sequential):
    name = "two words"


class DeliversOutOfOrder(Sequential):
    """Delivers the tenth batch before the ninth, where the window lets it pull both."""

    class Run(Sequential.Run):
        count = 0
        late: Any = None

        def __next__(self) -> Any:
            self.count += 1
            if self.late is not None:
                late, self.late = self.late, None
                return late
            if self.count == 9 and self.window > 3:
                self.late = super().__next__()
            return super().__next__()


class LosesAStep(Sequential):
    class Run(Sequential.Run):
        count = 0

        def __next__(self) -> Any:
            self.count += 1
            if self.count == 35:
                super().__next__()
            return super().__next__()


class DeliversAStepTwice(Sequential):
    class Run(Sequential.Run):
        count = 0
        doubled: Any = None

        def __next__(self) -> Any:
            self.count += 1
            if self.count == 36:
                return self.doubled
            batch = super().__next__()
            self.doubled = batch if self.count == 35 else None
            return batch


class PullsTooMuch(Sequential):
    class Run(Sequential.Run):
        def __init__(self, plan: Any, steps: Iterator[Any], window: int) -> None:
            super().__init__(plan, steps, window)
            self.pulled: collections.deque[Any] = collections.deque()
            self.steps = self._ahead(steps)

        def _ahead(self, steps: Iterator[Any]) -> Iterator[Any]:
            failure = None
            while True:
                while failure is None and len(self.pulled) < self.window + 2:
                    try:
                        self.pulled.append(next(steps))
                    except BaseException as exc:
                        failure = exc
                if self.pulled:
                    yield self.pulled.popleft()
                elif isinstance(failure, StopIteration):
                    return
                else:
                    raise failure or AssertionError


class PullsFromManyThreads(Sequential):
    """Pulls three steps at once, each from a thread of its own, where the window lets it."""

    class Run(Sequential.Run):
        def __init__(self, plan: Any, steps: Iterator[Any], window: int) -> None:
            super().__init__(plan, self._at_once(steps) if window > 3 else steps, window)

        def _at_once(self, steps: Iterator[Any]) -> Iterator[Any]:
            while True:
                with ThreadPoolExecutor(3) as pool:
                    pulls = [pool.submit(next, steps, None) for _ in range(3)]
                failures = [pull.exception() for pull in pulls if pull.exception()]
                pulled = sorted(pull.result() for pull in pulls if not pull.exception() and pull.result() is not None)
                yield from pulled
                if failures:
                    raise failures[0]
                if len(pulled) < 3:
                    return


class NeedsAStep(Sequential):
    class Run(Sequential.Run):
        began = False

        def __next__(self) -> Any:
            try:
                batch = super().__next__()
            except StopIteration:
                if not self.began and not self.closed:
                    raise RuntimeError("there is nothing to do") from None
                raise
            self.began = True
            return batch


class EndsOnceOnly(Sequential):
    class Run(Sequential.Run):
        ended = False

        def __next__(self) -> Any:
            try:
                return super().__next__()
            except StopIteration:
                if self.ended:
                    raise RuntimeError("this run has ended") from None
                self.ended = True
                raise


class StopsAtAnError(Sequential):
    class Run(Sequential.Run):
        def __next__(self) -> Any:
            try:
                return super().__next__()
            except BaseException:
                self.closed = True
                raise


class HidesTheCause(Sequential):
    class Run(Sequential.Run):
        def __next__(self) -> Any:
            try:
                return super().__next__()
            except StopIteration:
                raise
            except Exception as exc:
                message = str(exc)
            raise bk.WorkerError(message)


class TakesASourceErrorForTheEnd(Sequential):
    def run(self, plan: Any, steps: Iterator[Any], window: int) -> Any:
        def quiet() -> Iterator[Any]:
            while True:
                try:
                    yield next(steps)
                except Exception:  # a StopIteration, too
                    return

        return super().run(plan, quiet(), window)


class HasOneRun(Sequential):
    def run(self, plan: Any, steps: Iterator[Any], window: int) -> Any:
        self.steps = steps

        def shared() -> Iterator[Any]:
            while True:
                try:
                    yield next(self.steps)
                except StopIteration:
                    return

        return super().run(plan, shared(), window)


STOP_ALL = threading.Event()


def _linger(stop: threading.Event) -> None:
    while not stop.wait(0.01) and not STOP_ALL.is_set():
        pass


class LeavesAThreadUntilCollected(Sequential):
    class Run(Sequential.Run):
        def __init__(self, plan: Any, steps: Iterator[Any], window: int) -> None:
            super().__init__(plan, steps, window)
            self.stop = threading.Event()
            weakref.finalize(self, self.stop.set)
            threading.Thread(target=_linger, args=(self.stop,), daemon=True).start()


class LeavesAThreadUnlessClosed(Sequential):
    class Run(Sequential.Run):
        def __init__(self, plan: Any, steps: Iterator[Any], window: int) -> None:
            super().__init__(plan, steps, window)
            self.stop = threading.Event()
            threading.Thread(target=_linger, args=(self.stop,), daemon=True).start()

        def close(self) -> None:
            super().close()
            self.stop.set()


class GoesOnAfterClose(Sequential):
    class Run(Sequential.Run):
        def close(self) -> None:
            pass


class ClosesOnce(Sequential):
    class Run(Sequential.Run):
        def close(self) -> None:
            if self.closed:
                raise RuntimeError("already closed")
            super().close()


class RemembersBatches(Sequential):
    class Run(Sequential.Run):
        def __init__(self, plan: Any, steps: Iterator[Any], window: int) -> None:
            super().__init__(plan, steps, window)
            self.batches: list[Any] = []

        def __next__(self) -> Any:
            self.batches.append(super().__next__())
            return self.batches[-1]


WRONG_EXECUTORS = [
    (TwoWords, {"test_name_is_a_word"}),
    (DeliversOutOfOrder, {"test_batches_come_in_the_order_of_the_steps"}),
    (LosesAStep, {"test_every_step_is_delivered_once"}),
    (DeliversAStepTwice, {"test_every_step_is_delivered_once"}),
    (PullsTooMuch, {"test_window_bounds_what_is_pulled_ahead"}),
    (PullsFromManyThreads, {"test_steps_are_pulled_by_one_at_a_time"}),
    (NeedsAStep, {"test_no_steps_are_no_batches"}),
    (EndsOnceOnly, {"test_the_end_stays_the_end"}),
    (StopsAtAnError, {"test_an_error_is_raised_in_the_place_of_its_batch"}),
    (HidesTheCause, {"test_an_error_shows_where_it_came_from"}),
    (TakesASourceErrorForTheEnd, {"test_an_error_of_the_steps_is_raised_in_its_place"}),
    (HasOneRun, {"test_two_runs_at_once"}),
    (LeavesAThreadUntilCollected, {"test_close_stops_everything"}),
    (LeavesAThreadUnlessClosed, {"test_a_forgotten_run_stops_everything"}),
    (GoesOnAfterClose, {"test_close_is_final"}),
    (ClosesOnce, {"test_close_is_final"}),
    (RemembersBatches, {"test_a_delivered_batch_is_let_go"}),
]


@pytest.mark.parametrize(("wrong", "expected"), WRONG_EXECUTORS, ids=names_of(WRONG_EXECUTORS))
def test_a_wrong_executor_fails_its_check(wrong: Callable[[int], Any], expected: set[str]) -> None:
    class Checks(ExecutorConformance):
        patience = 0.6

        def make_executor(self, workers: int) -> Any:
            return wrong(workers)

    try:
        assert failing(Checks) == expected
    finally:
        STOP_ALL.set()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and thread.daemon:
                thread.join(1)
        STOP_ALL.clear()


@pytest.mark.parametrize(
    ("kit", "wrong"),
    [(BackendConformance, WRONG_BACKENDS), (SourceConformance, WRONG_SOURCES), (ExecutorConformance, WRONG_EXECUTORS)],
    ids=["backend", "source", "executor"],
)
def test_every_check_has_something_wrong_that_fails_it(kit: type, wrong: list[tuple[Any, set[str]]]) -> None:
    assert set().union(*(expected for _, expected in wrong)) == checks_of(kit)


@pytest.mark.parametrize("kit", [BackendConformance, SourceConformance, ExecutorConformance])
def test_every_check_says_what_it_proves(kit: type) -> None:
    assert [name for name in checks_of(kit) if not getattr(kit, name).__doc__] == []


@pytest.mark.parametrize(
    ("kit", "factory"),
    [
        (BackendConformance, lambda kit: kit.make_backend()),
        (SourceConformance, lambda kit: kit.make_source()),
        (SourceConformance, lambda kit: kit.expected_rows()),
        (ExecutorConformance, lambda kit: kit.make_executor(1)),
    ],
)
def test_a_factory_that_was_not_overridden_says_so(kit: type, factory: Callable[[Any], Any]) -> None:
    with pytest.raises(NotImplementedError, match="override"):
        factory(kit())


# -- check_resume


class StartsAgain(bk.Loader):
    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({**state, "step": 0})


class SkipsABatch(bk.Loader):
    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({**state, "step": state["step"] + bool(state["step"])})


class StaysInItsEpoch(bk.Loader):
    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({**state, "epoch": 0})


class CountsWhatWasPrefetched(bk.Loader):
    def state_dict(self) -> Any:
        state = super().state_dict()
        return {**state, "step": min(state["step"] + 1, len(self))} if state["step"] else state


@pytest.mark.parametrize("wrong", [StartsAgain, SkipsABatch, StaysInItsEpoch, CountsWhatWasPrefetched])
def test_a_loader_that_resumes_wrongly_is_caught(wrong: type[bk.Loader], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bk, "Loader", wrong)
    with pytest.raises(AssertionError, match="restored after"):
        check_resume(PIPELINES["arrays"], executor="inline")


def test_a_pipeline_that_remembers_is_caught() -> None:
    calls = itertools.count()
    pipe = bk.from_arrays({"x": X}).batch(2).map(lambda batch: {"x": batch["x"] + next(calls)})
    with pytest.raises(AssertionError, match="restored after batch 0 of 5, the rest of the epoch, batch 0, leaf 'x'"):
        check_resume(pipe, executor="inline")


def test_a_state_that_is_not_json_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opaque(bk.Loader):
        def state_dict(self) -> Any:
            return {**super().state_dict(), "cursor": object()}

    monkeypatch.setattr(bk, "Loader", Opaque)
    with pytest.raises(TypeError, match="JSON"):
        check_resume(PIPELINES["arrays"], executor="inline")
