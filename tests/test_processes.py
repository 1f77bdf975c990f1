"""The process executor: the same batches, and what happens when workers fail."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.executors import ProcessExecutor, portable
from batchkit.executors.transport import has_posix
from batchkit.testing import ExecutorConformance

no_windows = pytest.mark.skipif(sys.platform == "win32", reason="the test kills by signal or looks in /proc")
needs_fork = pytest.mark.skipif(not has_posix(), reason="there is no fork server without fork")


@pytest.fixture(params=[pytest.param("forkserver", marks=needs_fork), "spawn"])
def start(request: pytest.FixtureRequest) -> Any:
    """How workers are started: by the POSIX transport, and by the portable one."""
    return request.param


def pid_of(row: Any) -> Any:
    return {**row, "pid": os.getpid()}


def numbers(rows: int = 40) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows)})


def processes(
    pipe: bk.Pipeline, backend: Any = "numpy", start: str = "auto", timeout: float | None = None, **options: Any
) -> bk.Loader:
    return bk.Loader(pipe, backend, executor=ProcessExecutor(2, timeout, start), **options)


def inline(pipe: bk.Pipeline, backend: Any = "numpy", **options: Any) -> bk.Loader:
    return bk.Loader(pipe, backend, executor="inline", **options)


def same(one: Any, two: Any) -> None:
    one, two = list(one), list(two)
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert list(first) == list(second)
        for key in first:
            assert first[key].dtype == second[key].dtype
            np.testing.assert_array_equal(first[key], second[key])


def children() -> set[int]:
    """Return the processes that descend from this one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found, new = set(), {os.getpid()}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def wait_for_no_children(before: set[int]) -> None:
    deadline = time.monotonic() + 10
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children() - before == set()


offset = 100
factor = (lambda: 3)()


def pipelines() -> dict[str, bk.Pipeline]:
    local = offset + 1
    rows = [{"x": value, "name": f"row {value}", "v": np.full(3, value, np.float32)} for value in range(40)]
    return {
        "gather alone": numbers().shuffle(0).batch(7),
        "closure before batch": numbers().shuffle(0).map(lambda row: {"y": row["x"] + local}).batch(7),
        "closure behind batch": numbers().batch(7).map(lambda b: {**b, "y": b["x"] * factor}),
        "random": numbers().random_map(lambda row, rng: {**row, "r": rng.normal()}).batch(7, remainder="drop"),
        "random behind batch": numbers().shuffle(1).batch(7).random_map(lambda b, rng: {**b, "r": rng.random(size=3)}),
        "padded": numbers().batch(16, remainder="pad").map(lambda b: {**b, "y": b["x"] + 1}),
        "unbatched": numbers().batch(8).map(lambda b: {"x": b["x"] * 2}).unbatch().shuffle(3).batch(5),
        "list of rows": bk.from_sequence(rows).shuffle(2).map(lambda row: row).batch(6),
        "list of rows as it is": bk.from_sequence(rows).batch(6),
        "generator": bk.from_generator(lambda: iter(rows)).map(lambda row: row).batch(6),
        "batched generator": bk.from_generator(
            lambda: ({"x": np.arange(n, n + 5)} for n in range(0, 40, 5)), batched=True
        ).map(lambda b: {"x": b["x"] + 1}),
        "text of varying length": bk.from_sequence([{"t": "ab" * (n % 5)} for n in range(20)])
        .map(lambda row: {"t": row["t"] + "!"})
        .batch(3),
        "nothing": numbers(0).map(lambda row: row).batch(3),
    }


@pytest.mark.parametrize("name", list(pipelines()))
def test_batches_are_those_of_the_inline_executor(name: str, start: str) -> None:
    pipe = pipelines()[name]
    with processes(pipe, start=start) as loader, inline(pipe) as reference:
        for _ in range(2):
            same(loader, reference)


def test_files_are_opened_in_the_worker(tmp_path: Path, start: str) -> None:
    np.save(tmp_path / "x.npy", np.arange(100.0))
    pipe = bk.from_npy({"x": tmp_path / "x.npy"}).shuffle(0).map(pid_of).batch(9)
    with processes(pipe, start=start) as loader, inline(pipe.drop("pid")) as reference:
        batches = list(loader)
        assert os.getpid() not in {int(pid) for batch in batches for pid in batch["pid"]}
        same([{"x": batch["x"]} for batch in batches], reference)


def test_resuming_and_sharding_work_across_executors() -> None:
    pipe = numbers().shuffle(5).map(lambda row: {"x": row["x"] + 1}).batch(8)
    with processes(pipe) as loader:
        iterator = iter(loader)
        next(iterator), next(iterator)
        state = json.loads(json.dumps(loader.state_dict()))
    for shard in ((0, 1), (1, 3)):
        with inline(pipe, shard=shard) as one, processes(pipe, shard=shard) as two:
            one.load_state_dict(state)
            two.load_state_dict(state)
            same(two, one)


def test_kept_batches_never_change_and_dropped_ones_are_used_again(start: str) -> None:
    pipe = numbers(400).batch(4).map(lambda b: {"x": b["x"] * 2})
    with processes(pipe, start=start) as loader:
        kept = list(loader)
        assert [batch["x"].tolist() for batch in kept] == [[2 * v for v in range(s, s + 4)] for s in range(0, 400, 4)]
        del kept
        seen = {batch["x"].__array_interface__["data"][0] for batch in loader}
    assert len(seen) < 30


@no_windows
def test_thousands_of_batches_may_be_kept(start: str) -> None:
    with processes(numbers(3000).batch(1).map(lambda b: {"x": b["x"] * 2}), start=start) as loader:
        kept = list(loader)
    assert [int(batch["x"][0]) for batch in kept] == list(range(0, 6000, 2))
    assert len(os.listdir("/proc/self/fd")) < 500


@no_windows
def test_small_batches_that_are_kept_hold_no_shared_memory(start: str) -> None:
    def mapped() -> int:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return sum("memfd:batchkit" in line or "/dev/shm/batchkit-" in line for line in lines)

    before = mapped()
    with processes(numbers(300).batch(1).map(lambda b: {"x": b["x"] * 2}), start=start) as loader:
        kept = list(loader)
        assert mapped() - before < 20
    assert [int(batch["x"][0]) for batch in kept] == list(range(0, 600, 2))


def test_shared_memory_that_cannot_be_had_is_named_with_step_and_mend(
    start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(size: int) -> Any:
        raise OSError(24, "Too many open files")

    with processes(numbers(8).batch(4), start=start) as loader:
        monkeypatch.setattr(loader.executor._transport, "new_memory", none_left)  # type: ignore[attr-defined]
        with pytest.raises(
            bk.WorkerError, match=r"epoch 0, step 0: no shared memory of \d+ bytes .*executor='threads'"
        ):
            next(iter(loader))


def test_a_batch_outlives_its_loader(start: str) -> None:
    with processes(numbers(8).batch(8).map(lambda b: {"x": b["x"] + 1}), start=start) as loader:
        (batch,) = loader
    gc.collect()
    assert batch["x"].tolist() == list(range(1, 9))


class Narrow(bk.NumpyBackend):
    name = "narrow"
    alignment = 64
    widening = "switch on 64 bits"

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        if dtype.kind == "U":
            raise bk.BackendError(f"no text here: leaf {leaf!r}")
        return np.dtype({"int64": "int32", "float64": "float32"}.get(dtype.name, dtype))


def test_workers_narrow_as_the_backend_says_without_having_it() -> None:
    pipe = numbers(12).batch(4).map(lambda b: {**b, "f": b["x"] / 3})
    with processes(pipe, Narrow()) as loader, inline(pipe, Narrow()) as reference:
        with pytest.warns(bk.NarrowingWarning, match="leaf 'f' becomes float32"):
            batches = list(loader)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(batches, reference)
        assert all(batch[key].__array_interface__["data"][0] % 64 == 0 for batch in batches for key in batch)
    wide = bk.from_arrays({"x": np.array([1, 2**40])}).batch(2).map(lambda b: b)
    with (
        processes(wide, Narrow()) as loader,
        pytest.raises(
            bk.NarrowingError, match=r"leaf 'x': the value 1099511627776 does not fit int32.*switch on 64 bits"
        ),
    ):
        list(loader)
    text = bk.from_sequence([{"t": "a"}]).map(lambda row: row).batch(1)
    with (
        processes(text, Narrow()) as loader,
        pytest.raises(bk.BackendError, match="no text here: leaf 't'"),
    ):
        list(loader)


@needs_fork
class TestForkedProcesses(ExecutorConformance):
    def make_executor(self, workers: int) -> Any:
        return ProcessExecutor(workers, start="forkserver")


class TestSpawnedProcesses(ExecutorConformance):
    def make_executor(self, workers: int) -> Any:
        return ProcessExecutor(workers, start="spawn")


# -- faults


def fails_at_seven(row: Any) -> Any:
    if row["x"] == 7:
        raise RuntimeError("seven is bad")
    return row


def test_an_error_arrives_with_stage_row_and_the_workers_traceback_and_the_next_step_goes_on(start: str) -> None:
    with processes(numbers(12).map(fails_at_seven).batch(3), start=start) as loader:
        iterator = iter(loader)
        assert [next(iterator)["x"].tolist() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(
            bk.StageError, match=r"epoch 0, step 2: stage 0 map\(.*failed on row 7: RuntimeError"
        ) as caught:
            next(iterator)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert "in fails_at_seven" in str(caught.value.__cause__.__cause__)
        assert next(iterator)["x"].tolist() == [9, 10, 11]


class Awkward(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.lock = threading.Lock()


def test_an_exception_that_cannot_be_pickled_arrives_as_text() -> None:
    def fails(row: Any) -> Any:
        raise Awkward(1, 2)

    with (
        processes(numbers(4).map(fails).batch(2)) as loader,
        pytest.raises(bk.StageError, match="failed on row 0: Awkward: 1 and 2"),
    ):
        list(loader)


def test_a_function_that_cannot_be_sent_is_named(start: str) -> None:
    lock = threading.Lock()

    def locked(row: Any) -> Any:
        with lock:
            return row

    with (
        processes(numbers().shuffle(0).map(locked).batch(2), start=start) as loader,
        pytest.raises(
            bk.PipelineError, match=r"stage 1 map\(.*locked\) cannot be sent to a worker process.*executor='threads'"
        ),
    ):
        list(loader)


@no_windows
def test_a_killed_worker_is_replaced_and_the_batches_are_unchanged(start: str) -> None:
    pipe = numbers(200).shuffle(1).map(pid_of).batch(4)
    with processes(pipe, start=start) as loader, inline(pipe) as reference:
        got, killed = [], 0
        for number, batch in enumerate(loader):
            got.append(batch["x"].tolist())
            if number in (5, 20, 30):
                os.kill(int(batch["pid"][0]), signal.SIGKILL)
                killed += 1
        assert killed == 3
        assert got == [batch["x"].tolist() for batch in reference]


@needs_fork
def test_a_killed_server_is_replaced_too() -> None:
    before = children()
    with processes(numbers(200).map(pid_of).batch(4)) as loader:
        got = []
        for number, batch in enumerate(loader):
            got += batch["x"].tolist()
            if number == 5:
                for child in children() - before:
                    os.kill(child, signal.SIGKILL)
        assert got == list(range(200))
    wait_for_no_children(before)


def dies_at_seven(row: Any) -> Any:
    if row["x"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return row


@no_windows
def test_a_step_at_which_workers_die_again_and_again_is_given_up_by_name(start: str) -> None:
    with processes(numbers(12).map(dies_at_seven).batch(3), start=start) as loader:
        iterator = iter(loader)
        assert [next(iterator)["x"].tolist() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(
            bk.WorkerError, match=r"epoch 0, step 2: its worker process died 3 times.*SIGKILL.*\[6, 7, 8\]"
        ):
            next(iterator)
        assert next(iterator)["x"].tolist() == [9, 10, 11]


def test_workers_that_cannot_start_are_an_error(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with (
        processes(numbers().batch(4), start=start) as loader,
        pytest.raises(bk.WorkerError, match="end at once: see what they printed on stderr"),
    ):
        next(iter(loader))


def hangs_at_seven(row: Any) -> Any:
    if row["x"] == 7:
        time.sleep(1000)
    return row


def test_a_hung_worker_meets_the_timeout(start: str) -> None:
    def hangs(row: Any) -> Any:  # sent by value: a worker that imports this module first needs a second for that
        time.sleep(1000 if row["x"] == 7 else 0)
        return row

    with processes(numbers(12).map(hangs).batch(3), start=start, timeout=2.0) as loader:
        iterator = iter(loader)
        next(iterator), next(iterator)
        with pytest.raises(
            bk.WorkerError, match=r"step 2: .*did not finish within timeout=2.0 seconds.*rows \[6, 7, 8\]"
        ):
            next(iterator)
        assert next(iterator)["x"].tolist() == [9, 10, 11]


# -- leaving nothing behind


def naps(row: Any) -> Any:
    time.sleep(0.02)
    return row


@no_windows
def test_close_break_and_garbage_leave_no_process(start: str) -> None:
    before = children()
    loader = processes(numbers(100).map(naps).batch(1), start=start)
    for _ in loader:
        break
    loader.close()
    wait_for_no_children(before)
    loader = processes(numbers(100).map(naps).batch(1), start=start)
    iterator = iter(loader)
    next(iterator)
    del loader, iterator
    gc.collect()
    wait_for_no_children(before)


@no_windows
def test_closing_does_not_wait_for_a_hung_worker(start: str) -> None:
    before = children()
    loader = processes(numbers(100).map(hangs_at_seven).batch(1), start=start)
    iterator = iter(loader)
    for _ in range(7):
        next(iterator)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 4
    wait_for_no_children(before)


def test_workers_stay_for_the_next_epoch(start: str) -> None:
    with processes(numbers(40).map(pid_of).batch(1), start=start) as loader:
        epochs = [{int(batch["pid"][0]) for batch in loader} for _ in range(3)]
    assert len(set.union(*epochs)) <= 2


def test_an_iteration_broken_off_again_and_again_leaves_the_next_one_whole(start: str) -> None:
    with processes(numbers(2000).shuffle(0).map(pid_of).batch(16), start=start) as loader:
        for cut in range(12) if start == "forkserver" else (0, 3, 11):
            iterator = iter(loader)
            for _ in range(cut * 3):
                next(iterator)
            iterator.close()
        assert sorted(np.concatenate([batch["x"] for batch in loader]).tolist()) == list(range(2000))


SCRIPT = """
import os, signal, sys, threading, time, numpy as np, batchkit as bk
def slow(row):
    time.sleep(0.05)
    return {**row, "pid": os.getpid()}
from batchkit.executors import ProcessExecutor
executor = ProcessExecutor(2, start="START")
loader = bk.Loader(bk.from_arrays({"x": np.arange(1000)}).map(slow).batch(4), executor=executor)
"""


def script(start: str, body: str, **options: Any) -> subprocess.Popen[str]:
    program = SCRIPT.replace("START", start) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def shared_memory() -> set[str]:
    """Return what is named in /dev/shm, but for what is other programs'."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("batchkit-")}


def wait_for_no_memory(before: set[str]) -> None:
    deadline = time.monotonic() + 5
    while shared_memory() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert shared_memory() - before == set()


def all_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return all(map(gone, pids))


@no_windows
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_the_death_of_the_parent_takes_the_workers_with_it(number: str, start: str) -> None:
    shared = shared_memory()
    process = script(
        start,
        """
        for batch in loader:
            print(batch["pid"][0], flush=True)
        """,
    )
    assert process.stdout is not None
    pids = sorted({int(process.stdout.readline()) for _ in range(6)})
    process.send_signal(signal.Signals[number])
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert all_gone(pids)
    if start == "spawn" and number != "SIGINT":
        portable.Crew().stop()  # the next start sweeps what was just on its way
    wait_for_no_memory(shared)


@no_windows
def test_ctrl_c_in_a_terminal_goes_to_all_and_only_the_caller_says_so(start: str) -> None:
    shared = shared_memory()
    process = script(start, "for batch in loader: print(batch['pid'][0], flush=True)", start_new_session=True)
    assert process.stdout is not None
    pids = sorted({int(process.stdout.readline()) for _ in range(6)})
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (err.count("Traceback"), err.rstrip().splitlines()[-1]) == (1, "KeyboardInterrupt")
    assert all_gone(pids)
    wait_for_no_memory(shared)


@no_windows
def test_a_program_that_ends_in_mid_epoch_ends_at_once(start: str) -> None:
    process = script(start, "iterator = iter(loader); print(next(iterator)['pid'][0])")
    out, err = process.communicate(timeout=20)
    assert (err, process.returncode) == ("", 0)
    assert all_gone([int(out)])


@no_windows
@pytest.mark.parametrize("body", ["next(iter(loader))", "iterator = iter(loader); next(iterator)"])
def test_a_loader_that_is_never_closed_leaves_no_process_to_warn_of(start: str, body: str) -> None:
    program = SCRIPT.replace("START", start) + body
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_script_is_not_run_again_in_its_workers(tmp_path: Path, start: str) -> None:
    program = (
        "print('top', flush=True)\n"
        + SCRIPT.replace("START", start)
        + "print(len(list(loader.iterate(0, start=240))))\n"
    )
    (tmp_path / "train.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "train.py"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["top", "10"]
