"""Whatever ends an iteration, on any executor: nothing is left behind, and nobody else is disturbed."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from executors import KILLABLE, every, killable, loaded, numbers, runs, values
from holdings import Holding, held, in_proc, left_behind

import batchkit as bk


class Ways:
    """How an iteration may end; each returns what was held in the middle of it."""

    def __init__(self, executor: str) -> None:
        def naps(row: Any) -> Any:
            time.sleep(0.002)
            return {**row, "x": row["x"] + 0}

        self.make = lambda: loaded(numbers(60).shuffle(0).map(naps).batch(2), executor, 3)

    def end_of_the_epoch(self) -> set[Holding]:
        with self.make() as loader:
            for number, batch in enumerate(loader):
                assert batch["x"].shape == (2,)
                if number == 5:
                    during = held()
        return during

    def early_break(self) -> set[Holding]:
        for number, _ in enumerate(self.make()):
            if number == 5:
                during = held()
                break
        return during

    def exception_in_the_consumer(self) -> set[Holding]:
        during: set[Holding] = set()

        def consume() -> None:
            for number, _ in enumerate(self.make()):
                if number == 5:
                    during.update(held())
                    raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            consume()
        return during

    def forgetting_the_iterator(self) -> set[Holding]:
        iterator = iter(self.make())
        for _ in range(5):
            next(iterator)
        return held()

    def a_reference_cycle(self) -> set[Holding]:
        cycle: list[Any] = [iter(self.make())]
        cycle.append(cycle)
        for _ in range(5):
            next(cycle[0])
        return held()

    def forgetting_it_before_the_first_batch(self) -> set[Holding]:
        iterator = iter(self.make())
        assert iterator.epoch == 0
        return held()

    def close(self) -> set[Holding]:
        loader = self.make()
        iterator = iter(loader)
        for _ in range(5):
            next(iterator)
        during = held()
        loader.close()
        return during

    def close_by_another_thread(self) -> set[Holding]:
        loader = self.make()
        iterator = iter(loader)
        for _ in range(5):
            next(iterator)
        during = held()
        closer = threading.Thread(target=loader.close)
        closer.start()
        with pytest.raises(bk.WorkerError, match="closed before its end"):
            list(iterator)
        closer.join()
        return during


@in_proc
@every
@pytest.mark.parametrize("way", [name for name in vars(Ways) if not name.startswith("_")])
def test_no_thread_process_descriptor_or_memory_is_left_behind_by(way: str, executor: str) -> None:
    gc.collect()
    before = held()
    during = getattr(Ways(executor), way)()
    kinds = {one[0] for one in during - before}
    if way != "forgetting_it_before_the_first_batch":
        assert kinds >= ({"thread"} if executor == "threads" else {"process"} if executor in KILLABLE else set())
    assert left_behind(before, during) == set()


@in_proc
@every
def test_a_batch_outlives_its_loader_and_then_leaves_nothing_behind(executor: str) -> None:
    gc.collect()
    before = held()
    with loaded(numbers(8).batch(8).map(lambda batch: {"x": batch["x"] + 1}), executor) as loader:
        (batch,) = loader
    part = batch["x"][2:5]
    del loader, batch
    gc.collect()
    assert part.tolist() == [3, 4, 5]
    del part
    assert left_behind(before, set()) == set()


@every
def test_close_ends_an_iteration_that_is_going_on_and_says_so(executor: str) -> None:
    loader = loaded(numbers(100).map(lambda row: row).batch(1), executor, 3)
    iterator = iter(loader)
    next(iterator)
    loader.close()
    with pytest.raises(bk.WorkerError, match="closed before its end"):
        next(iterator)
    with pytest.raises(bk.PipelineError, match="this loader is closed"):
        iter(loader)
    loader.close()


@every
def test_close_may_come_while_another_thread_waits_for_a_generator(executor: str) -> None:
    entered, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def rows() -> Any:
        try:
            for value in range(100):
                entered.set()
                go_on.wait(10)
                yield {"x": value}
        finally:
            closed.set()

    loader = loaded(bk.from_generator(rows).batch(1), executor, 1)
    iterator = iter(loader)
    ended: list[Any] = []

    def consume() -> None:
        try:
            for _ in iterator:
                pass
        except bk.WorkerError as exc:
            ended.append(str(exc))

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert entered.wait(10)
    threading.Timer(0.1, go_on.set).start()
    loader.close()
    consumer.join()
    assert ended == ["the iteration was closed before its end: iterate over the loader again"]
    assert closed.is_set()


@every
def test_an_iteration_closed_at_once_leaves_the_next_one_whole(
    executor: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("batchkit.executors.threads.JOIN_SECONDS", 0.2)
    release = str(tmp_path / "go on")

    def hangs_at_seven(row: Any) -> Any:
        while row["x"] == 7 and not os.path.exists(release):
            time.sleep(0.01)
        return row

    with loaded(numbers(60).map(hangs_at_seven).batch(1), executor, 1, prefetch=0) as loader:
        loader.iterate(0, start=7).close()  # a worker may be about to begin with the step that hangs
        rest = loader.iterate(0, start=8)
        found: list[Any] = []
        reader = threading.Thread(target=lambda: found.extend(values(rest)), daemon=True)
        reader.start()
        reader.join(10)
        in_time = list(found)
        Path(release).touch()
        reader.join(10)
    assert in_time == [[row] for row in range(8, 60)]


@every
def test_loaders_that_share_an_executor_object_are_closed_one_by_one(executor: str) -> None:
    with loaded(numbers(4).batch(2), executor) as any_one:
        shared = any_one.executor
        first = bk.Loader(numbers(20).map(lambda row: row).batch(2), executor=shared)
        second = bk.Loader(numbers(20).map(lambda row: row).batch(2), executor=shared)
        iterator = iter(second)
        got = values(itertools.islice(iterator, 2))
        list(first)
        first.close()
        assert got + values(iterator) == runs(20, 2)
        second.close()


SCRIPT = """
import gc, os, sys, threading, time, numpy as np, batchkit as bk
def slow(row):
    time.sleep(0.005)
    return row
name, _, start = sys.argv[1].partition("-")
executor = bk.executors.ProcessExecutor(2, start=start) if start else name
loader = bk.Loader(bk.from_arrays({"x": np.arange(1000)}).map(slow).batch(4), executor=executor, workers=2)
"""


def script(executor: str, body: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT + textwrap.dedent(body), executor]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a program prints, and end it with all its children if it does not end by itself."""
    try:
        return process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@every
def test_ctrl_c_while_waiting_ends_the_program_at_once(executor: str) -> None:
    process = script(
        executor,
        """
        try:
            for batch in loader:
                print("started", flush=True)
        except KeyboardInterrupt:
            loader.close()
            print([thread.name for thread in threading.enumerate()])
        """,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    out, err = ended(process)
    assert out.splitlines()[-1] == "['MainThread']", err
    assert (err, process.returncode) == ("", 0)


@every
def test_a_program_that_ends_in_mid_epoch_does_not_hang(executor: str) -> None:
    process = script(executor, "iterator = iter(loader); next(iterator); print('done')")
    out, err = ended(process)
    assert (out, err, process.returncode) == ("done\n", "", 0)


@every
def test_a_forked_child_and_its_parent_may_both_go_on(executor: str) -> None:
    process = script(
        executor,
        """
        first = list(loader.iterate(0, start=248))
        child = os.fork()
        got = [row for batch in loader.iterate(0, start=230) for row in batch["x"].tolist()]
        right = got == list(range(920, 1000))
        if child == 0:
            os._exit(0 if right else 1)
        print(right, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    )
    out, err = ended(process)
    assert out == "True 0\n", err


@killable
def test_a_run_may_be_collected_at_the_moment_when_another_begins(executor: str) -> None:
    process = script(
        executor,
        """
        from batchkit.executors import processes

        class Collecting(processes.FedWorker):
            def __init__(self, pool):
                gc.collect()  # as it may happen wherever memory is allocated
                super().__init__(pool)

        cycle = [loader.iterate(0)]
        cycle.append(cycle)
        next(cycle[0])
        gc.disable()
        del cycle
        processes.FedWorker = Collecting
        others = [loader.iterate(0, start=240), loader.iterate(0, start=240)]
        print([sum(len(batch["x"]) for batch in other) for other in others])
        """,
    )
    out, err = ended(process)
    assert out == "[40, 40]\n", err
