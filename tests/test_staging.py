"""Batches put on the device ahead of the caller, shown with a backend that only seems to have a device."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.backends import NumpyBackend

EXECUTORS = ("inline", "threads", "processes", "auto")
executors = pytest.mark.parametrize("executor", EXECUTORS)


class Device(NumpyBackend):
    """A NumPy backend whose batches have to be fetched; notes who puts them, and when."""

    name = "device"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.sent: list[str] = []
        self.received = 0
        self.most = 0
        self.closed = 0

    def stager(self, device: Any, wanted: bool) -> Device:
        return self

    def send(self, batch: Any) -> Any:
        time.sleep(self.seconds)
        self.sent.append(threading.current_thread().name)
        self.most = max(self.most, len(self.sent) - self.received)
        return ("on the device", {name: column.copy() for name, column in batch.items()})

    def receive(self, sent: Any) -> Any:
        self.received += 1
        return sent[1]

    def close(self) -> None:
        self.closed += 1


def numbers(rows: int = 40) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows), "y": np.arange(rows * 3.0).reshape(rows, 3)})


def rows_of(batches: Any) -> list[int]:
    return [int(row) for batch in batches for row in batch["x"]]


@executors
def test_the_batches_are_the_same_in_the_same_order(executor: str) -> None:
    pipe = numbers(64).shuffle(4).map(lambda row: row).batch(5)
    with bk.Loader(pipe, executor="inline") as plain, bk.Loader(pipe, Device(), executor=executor) as staged:
        for _ in range(3):
            for ours, theirs in zip(staged, plain, strict=True):
                assert all(np.array_equal(ours[name], theirs[name]) for name in ("x", "y"))


def test_they_are_put_by_a_thread_and_not_more_than_prefetch_of_them() -> None:
    device = Device()
    with bk.Loader(numbers(60).batch(2), device, executor="inline", prefetch=3) as loader:
        for _ in loader:
            time.sleep(0.002)
    assert len(device.sent) == device.received == 30
    assert all(name.startswith("batchkit-worker") for name in device.sent)
    assert 1 < device.most <= 3
    assert device.closed == 1


@pytest.mark.parametrize(("wanted", "ahead"), [(None, False), (False, False), (True, True)])
def test_a_device_without_memory_of_its_own_is_staged_for_only_if_that_is_wanted(
    wanted: bool | None, ahead: bool
) -> None:
    putters = []

    class Noting(NumpyBackend):
        def put(self, batch: Any, device: Any) -> Any:
            putters.append(threading.current_thread() is threading.main_thread())
            return batch

    with bk.Loader(numbers().batch(5), Noting(), executor="inline", prefetch_to_device=wanted) as loader:
        assert rows_of(loader) == list(range(40))
    assert putters == [not ahead] * 8


def test_a_device_is_not_staged_for_where_that_is_declined() -> None:
    device = Device()
    with bk.Loader(numbers().batch(5), device, executor="inline", prefetch_to_device=False) as loader:
        assert rows_of(loader) == list(range(40))
    assert device.sent == []


@executors
def test_an_error_comes_at_its_place_and_the_next_batch_after_it(executor: str) -> None:
    def fails(row: Any) -> Any:
        if row["x"] == 12:
            raise ValueError("twelve")
        return row

    with bk.Loader(numbers().map(fails).batch(5), Device(), executor=executor) as loader:
        iterator = iter(loader)
        assert rows_of([next(iterator), next(iterator)]) == list(range(10))
        with pytest.raises(bk.StageError, match="row 12"):
            next(iterator)
        assert rows_of(iterator) == list(range(15, 40))


def test_a_batch_that_cannot_be_put_is_an_error_at_its_place() -> None:
    class Refusing(Device):
        def send(self, batch: Any) -> Any:
            if 12 in batch["x"]:
                raise MemoryError("the device is full")
            return super().send(batch)

    with bk.Loader(numbers().batch(5), Refusing(), executor="threads", workers=2) as loader:
        iterator = iter(loader)
        assert rows_of([next(iterator), next(iterator)]) == list(range(10))
        with pytest.raises(MemoryError, match="full"):
            next(iterator)
        assert rows_of(iterator) == list(range(15, 40))


@executors
def test_a_state_says_what_was_delivered_not_what_was_staged(executor: str) -> None:
    pipe = numbers(60).shuffle(2).batch(4)
    with bk.Loader(pipe, executor="inline") as plain:
        whole = rows_of(plain)
    with bk.Loader(pipe, Device(), executor=executor, prefetch=4) as loader:
        for stop in range(0, 15, 4):
            loader.load_state_dict({**loader.state_dict(), "epoch": 0, "step": 0})
            iterator = iter(loader)
            for _ in range(stop):
                next(iterator)
            time.sleep(0.02)  # by now more are on the device
            with bk.Loader(pipe, Device(), executor=executor) as other:
                other.load_state_dict(loader.state_dict())
                assert rows_of(other) == whole[4 * stop :]
            iterator.close()


def test_batches_unlike_the_first_are_refused_before_they_are_delivered() -> None:
    def grows(batch: Any) -> Any:
        return {"x": batch["x"], "z": np.zeros((len(batch["x"]), 1 + int(batch["x"][0] >= 10)))}

    with bk.Loader(numbers().batch(5).map(grows), Device(), executor="threads", workers=2) as loader:
        iterator = iter(loader)
        next(iterator)
        next(iterator)
        with pytest.raises(bk.BatchkitError, match="step 2"):
            next(iterator)


@executors
def test_breaking_off_closing_and_forgetting_leave_no_thread(executor: str) -> None:
    before = {thread.ident for thread in threading.enumerate()}

    def left() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.ident not in before]

    def wait() -> list[str]:
        deadline = time.monotonic() + 5
        while left() and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        return left()

    loader = bk.Loader(numbers(400).batch(2), Device(), executor=executor, workers=2 if executor != "auto" else "auto")
    for _ in loader:
        break
    loader.close()
    assert wait() == []
    iterator = iter(bk.Loader(numbers(400).batch(2), Device(), executor=executor))
    next(iterator)
    del iterator
    assert wait() == []


def test_the_report_has_a_line_for_it() -> None:
    with bk.Loader(numbers(60).batch(2), Device(0.003), executor="inline") as loader:
        list(loader)
        (staged,) = [stage for stage in loader.statistics.stages if stage.name == "copy to the device, ahead"]
        assert staged.seconds >= 0.003
        assert "bottleneck: copy to the device, ahead takes" in loader.report()


def test_copying_and_computing_overlap() -> None:
    """Two threads are inside ``send`` and the caller's own work at the same time."""
    computing = threading.Event()
    together = []

    class Watching(Device):
        def send(self, batch: Any) -> Any:
            together.append(computing.wait(0.05))
            return super().send(batch)

    with bk.Loader(numbers(40).batch(4), Watching(), executor="inline", prefetch=2) as loader:
        for _ in loader:
            computing.set()
            time.sleep(0.01)
            computing.clear()
    assert sum(together) >= 5
