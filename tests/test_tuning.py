"""What ``workers="auto"`` settles on: the arithmetic against made-up machines, and the executor for real."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import batchkit as bk
from batchkit.executors import AutoExecutor, Setting, ThreadExecutor, tuning
from batchkit.executors.threads import Patience
from batchkit.executors.tuning import MOST_THREADS, Seen, Trial, Tuner
from batchkit.resources import cores
from batchkit.testing import ExecutorConformance

BOTH = ("threads", "processes")


class Machine:
    """A machine whose steps take what we say, so that it is known what would be best."""

    def __init__(self, seconds: float, cpu: float, held: float, gap: float = 0.0, cores: int = 2) -> None:
        self.seconds, self.cpu, self.held, self.gap, self.cores = seconds, cpu, held, gap, cores

    def takes(self, setting: Setting) -> float:
        """Return the seconds a batch."""
        if setting.executor == "inline":
            return self.seconds + self.gap
        workers = setting.workers
        bounds = [self.seconds / workers, self.gap, self.cpu / self.cores]
        if setting.executor == "threads":
            bounds.append(self.held)
        return max(bounds) + (1e-4 if setting.executor == "processes" else 4e-5)

    def tuned(self, tuner: Tuner, work: float = 100.0) -> Tuner:
        """Let the tuner try what it likes."""
        seen = [Seen(self.seconds, self.cpu, self.gap, 1000)] * 3
        tuner.work = work
        tuner.begin(seen, self.held / self.seconds)
        while tuner.started and (setting := tuner.proposal()) is not None:
            taken = self.takes(setting)
            tuner.result(Trial(setting, taken, max(taken - self.gap, 0.0) / taken))
        return tuner

    def best(self) -> float:
        """Return what the fastest of all settings takes."""
        threads = [Setting("threads", count) for count in range(1, max(MOST_THREADS, self.cores) + 1)]
        processes = [Setting("processes", count) for count in range(1, self.cores + 1)]
        return min(self.takes(setting) for setting in [Setting("inline"), *threads, *processes])


@pytest.mark.parametrize(
    ("machine", "executor", "workers"),
    [
        (Machine(30e-3, 30e-3, 28e-3), "processes", 2),  # pure Python
        (Machine(30e-3, 30e-3, 1e-3), "threads", 2),  # a decoder
        (Machine(30e-3, 0.1e-3, 0.1e-3), "threads", 32),  # reads that wait
        (Machine(8e-3, 4e-3, 0.0), "threads", 4),  # half of it waiting
        (Machine(1e-3, 1e-3, 1e-3), "inline", 0),  # pure Python, but too cheap to be sent away
        (Machine(5e-3, 5e-3, 5e-3, gap=20e-3), "threads", 2),  # the caller is slow: one that overlaps is enough
    ],
)
def test_what_is_chosen_for_steps_of_a_kind(machine: Machine, executor: str, workers: int) -> None:
    settled = machine.tuned(Tuner(BOTH, machine.cores)).best
    assert settled.executor == executor
    assert settled.workers <= workers


@pytest.mark.parametrize(("cold", "executor"), [(2.0, "inline"), (1.0, "threads")])
def test_first_steps_that_were_slow_do_not_decide(cold: float, executor: str) -> None:
    machine = Machine(2e-3 / cold, 2e-3 / cold, 0.5e-3)  # what the first steps take, is a time of 2 ms each
    tuner = Tuner(BOTH, 2)
    tuner.work = 100.0
    tuner.begin([Seen(2e-3, 2e-3, 0.0, 1000)] * 3, 0.25)
    tried = []
    while (setting := tuner.proposal()) is not None:
        tried.append(setting.executor)
        tuner.result(Trial(setting, 1.2e-3 if setting.executor == "threads" else machine.takes(setting), 1.0))
    assert (tried, tuner.best.executor) == (["threads", "inline"], executor)


@given(
    seconds=st.floats(1e-3, 1.0),
    cpu=st.floats(0, 1),
    held=st.floats(0, 1),
    gap=st.floats(0, 3),
    cores=st.integers(1, 64),
)
@example(seconds=1.0, cpu=1.0, held=0.3125, gap=0.0, cores=4)
@example(seconds=1.0, cpu=0.84375, held=0.0, gap=0.0, cores=1)
def test_what_is_chosen_is_near_the_best(seconds: float, cpu: float, held: float, gap: float, cores: int) -> None:
    machine = Machine(seconds, seconds * cpu, seconds * cpu * held, seconds * gap, cores)
    tuner = machine.tuned(Tuner(BOTH, cores))
    fed = machine.takes(tuner.best) <= machine.gap / 0.95 + 1e-4
    cheap = seconds < 2e-3  # such steps are not sent to processes
    assert fed or cheap or machine.takes(tuner.best) <= 1.16 * machine.best() + 2e-4
    assert len(tuner.trials) <= 8


@given(
    size=st.integers(1, 1000),
    memory=st.integers(1, 20_000),
    cores=st.integers(1, 32),
    cpu=st.floats(0, 1),
)
def test_batches_in_flight_fit_into_the_memory(size: int, memory: int, cores: int, cpu: float) -> None:
    tuner = Tuner(BOTH, cores, None, memory)
    tuner.work = 100.0
    tuner.begin([Seen(0.05, 0.05 * cpu, 0.0, size)] * 3, 0.0)
    while (setting := tuner.proposal()) is not None:
        assert setting.workers == 1 or (2 * setting.workers + setting.prefetch) * size <= memory
        tuner.result(Trial(setting, 0.05 / setting.workers, 1.0))


def test_processes_are_not_started_before_there_is_enough_work() -> None:
    tuner = Machine(30e-3, 30e-3, 30e-3).tuned(Tuner(BOTH, 2), work=0.5)
    assert [trial.setting.executor for trial in tuner.trials] == ["inline"]
    assert tuner.settled is None
    assert tuner.best.executor == "inline"
    tuner.work = 10.0
    proposal = tuner.proposal()
    assert proposal is not None
    assert proposal.executor == "processes"


def test_what_cannot_be_started_is_left_out_and_named() -> None:
    tuner = Tuner(BOTH, 2)
    tuner.work = 100.0
    tuner.begin([Seen(30e-3, 30e-3, 0.0, 1)] * 3, 1.0)
    proposal = tuner.proposal()
    assert proposal is not None
    tuner.refuse(proposal, "a lock cannot be pickled")
    assert tuner.proposal() is None
    assert tuner.settled == Setting("inline", 0, 2)
    assert "processes x 2 was left out: a lock cannot be pickled" in tuner.text()


def test_the_text_says_what_was_seen_and_measured() -> None:
    text = Machine(30e-3, 30e-3, 28e-3).tuned(Tuner(BOTH, 2)).text()
    assert text.startswith(
        "workers='auto' chose processes x 2, prefetch 2: a step takes 30.00 ms (100% of it on a core"
    )
    assert "measured: inline 30.00 ms a batch, processes x 2 15.10 ms a batch" in text


# -- for real


def nap(row: Any) -> Any:
    """Wait for three milliseconds."""
    time.sleep(0.003)
    return row


def spin(row: Any) -> Any:
    """Hold the GIL for three milliseconds."""
    end = time.thread_time() + 0.003
    while time.thread_time() < end:
        pass
    return row


def numbers(rows: int) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows)})


def rows_of(loader: bk.Loader) -> list[int]:
    return [int(row) for batch in loader for row in batch["x"]]


class TestAuto(ExecutorConformance):
    def make_executor(self, workers: int) -> Any:
        return AutoExecutor()


@pytest.fixture(autouse=True)
def only_what_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what conftest.py does to try threads whatever they gain."""
    monkeypatch.setattr(tuning, "_GAINS", 0.95)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what conftest.py does to start threads at once."""
    monkeypatch.setattr("batchkit.executors.threads.SURE_SECONDS", 20e-3)


def test_cheap_steps_stay_in_the_callers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("SURE", "SLOW", "HAND_OVER"):  # on a busy machine any step may take long
        monkeypatch.setattr(f"batchkit.executors.threads.{bound}_SECONDS", 10.0)
    with bk.Loader(numbers(2000).shuffle(0).batch(4)) as loader:
        assert sorted(rows_of(loader)) == list(range(2000))
        assert loader.setting == Setting("inline", 0, 2)
        assert "steps are so cheap" in loader.report()


class Unmoved(Patience):
    """Sees every step as too cheap for workers."""

    looks = 0

    def observe(self, cost: float, gap: float) -> bool:
        self.looks += 1
        return False


def test_steps_that_have_been_cheap_are_not_all_looked_at_again_in_the_next_epoch() -> None:
    with bk.Loader(numbers(2000).shuffle(0).batch(5)) as loader:
        assert isinstance(loader.executor, AutoExecutor)
        loader.executor.patience = patience = Unmoved()
        looks = []
        for _ in range(3):
            assert sorted(rows_of(loader)) == list(range(2000))
            looks.append(patience.looks)
    assert looks[0] > 64
    assert looks[1] - looks[0] == looks[2] - looks[1] == 400 // 128 + 1


@pytest.mark.usefixtures("patient")
def test_steps_that_wait_get_more_threads_than_there_are_cores() -> None:
    with bk.Loader(numbers(900).map(nap).batch(3)) as loader:
        assert rows_of(loader) == list(range(900))
        assert loader.setting.executor == "threads"
        assert loader.workers > 4
        assert f"workers='auto' chose threads x {loader.workers}, prefetch {loader.prefetch}" in loader.report()
        began = time.perf_counter()
        assert rows_of(loader) == list(range(900))
        assert time.perf_counter() - began < 900 * 0.003 / 2  # the next epoch begins with what was settled


@pytest.mark.usefixtures("patient")
def test_functions_that_hold_the_gil_are_tried_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_LONG", 0.1)
    with bk.Loader(numbers(600).map(spin).batch(3)) as loader:
        assert rows_of(loader) == list(range(600))
        tried = {trial.setting.executor for trial in loader.executor.tuner.trials}  # type: ignore[attr-defined]
    assert "processes" in tried


class Late:
    """A function whose import takes until a file is there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, row: Any) -> Any:
        return spin(row)

    def __reduce__(self) -> tuple[Any, ...]:
        return _late, (self.path,)


def _late(path: str) -> Late:
    for _ in range(6000):
        if Path(path).exists():
            return Late(path)
        time.sleep(0.01)
    raise TimeoutError(path)


@pytest.mark.usefixtures("patient")
def test_batches_come_while_worker_processes_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuning, "_LONG", 0.1)
    path = tmp_path / "imported"
    with bk.Loader(numbers(3000).map(Late(str(path))).batch(3)) as loader:
        executor, rows, beside = loader.executor, [], 0
        assert isinstance(executor, AutoExecutor)
        for batch in loader:
            rows += batch["x"].tolist()
            beside += bool(executor._made)
            if beside == 30:  # which waited for the file in vain if they waited for the workers
                path.touch()
            if any(trial.setting.executor == "processes" for trial in executor.tuner.trials):
                break
        assert rows == list(range(len(rows)))
        assert beside >= 30


@pytest.mark.usefixtures("patient")
def test_closing_ends_worker_processes_that_still_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuning, "_LONG", 0.1)
    before = set(threading.enumerate())
    with bk.Loader(numbers(3000).map(Late(str(tmp_path / "never"))).batch(3)) as loader:
        for _ in loader:
            if loader.executor._made:  # type: ignore[attr-defined]
                break
    assert set(threading.enumerate()) == before


@pytest.mark.usefixtures("patient")
def test_a_function_that_cannot_be_sent_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_LONG", 0.1)
    lock = threading.Lock()

    def locked(row: Any) -> Any:
        with lock:
            return spin(row)

    with bk.Loader(numbers(200).map(locked).batch(2)) as loader:
        assert rows_of(loader) == list(range(200))
        assert "processes x" in loader.report()
        assert "was left out: " in loader.report()


@pytest.mark.parametrize("steps", [1, 2, 5, 17, 40, 90])
@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_the_batches_are_the_same_whatever_is_tried_on_the_way(steps: int, seconds: float) -> None:
    def slow(row: Any) -> Any:
        time.sleep(seconds)
        return row

    pipe = numbers(steps * 2).shuffle(3).map(slow).batch(2)
    with bk.Loader(pipe, executor="inline") as plain, bk.Loader(pipe) as auto:
        for _ in range(3):
            assert rows_of(auto) == rows_of(plain)


def test_it_resumes_in_the_middle_of_a_trial() -> None:
    pipe = numbers(120).shuffle(3).map(nap).batch(2)
    with bk.Loader(pipe, executor="inline") as plain:
        whole = rows_of(plain)
    for stop in (1, 2, 3, 7, 19, 33):
        with bk.Loader(pipe) as loader, bk.Loader(pipe) as other:
            iterator = iter(loader)
            seen = [int(row) for _ in range(stop) for row in next(iterator)["x"]]
            other.load_state_dict(loader.state_dict())
            assert seen + rows_of(other) == whole


def test_an_error_in_a_trial_comes_at_its_place() -> None:
    def fails(row: Any) -> Any:
        if row["x"] in (7, 40, 101):
            raise ValueError(f"row {row['x']}")
        return nap(row)

    with bk.Loader(numbers(120).map(fails).batch(2)) as loader:
        iterator, seen, failed = iter(loader), [], []
        while True:
            try:
                seen += next(iterator)["x"].tolist()
            except bk.StageError as exc:
                failed.append(str(exc.__cause__))
            except StopIteration:
                break
    assert seen == [row for row in range(120) if row // 2 not in (3, 20, 50)]
    assert failed == ["row 7", "row 40", "row 101"]


def test_breaking_off_in_a_trial_leaves_no_thread() -> None:
    before = threading.active_count()
    with bk.Loader(numbers(400).map(nap).batch(2)) as loader:
        for number, _ in enumerate(loader):
            if number == 12:
                break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("options", "name", "chosen"),
    [
        ({}, "auto", True),
        ({"executor": "auto"}, "auto", True),
        ({"executor": "threads"}, "threads", True),
        ({"workers": 2}, "threads", False),
        ({"executor": "threads", "workers": 2}, "threads", False),
        ({"executor": "inline"}, "inline", False),
        ({"timeout": 5}, "threads", False),
    ],
)
def test_what_is_said_is_not_chosen(options: dict[str, Any], name: str, chosen: bool) -> None:
    loader = bk.Loader(numbers(4).batch(2), **options)
    assert loader.executor.name == name
    assert isinstance(loader.executor, AutoExecutor) is chosen


def test_a_prefetch_that_is_said_is_kept() -> None:
    with bk.Loader(numbers(200).map(nap).batch(2), prefetch=5) as loader:
        assert loader.prefetch == 5
        list(loader)
        assert loader.prefetch == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_limit": "many"}, "memory_limit must be a number of bytes, or text such as '2GB' or '512MiB'"),
        ({"memory_limit": 0}, "memory_limit must be at least 1 byte"),
        ({"memory_limit": 1.5}, "memory_limit must be a number of bytes"),
        ({"memory_limit": "1GB", "executor": "inline"}, "memory_limit bounds what workers='auto' chooses"),
        ({"memory_limit": "1GB", "workers": 4}, "memory_limit bounds what workers='auto' chooses"),
        ({"prefetch_to_device": "yes"}, "prefetch_to_device must be True, False or None, not 'yes'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(bk.PipelineError, match=message):
        bk.Loader(numbers(4).batch(2), **options)


@pytest.mark.parametrize(("options", "free"), [({"memory_limit": "8MB"}, 1 << 40), ({}, 32_000_000)])
def test_a_memory_limit_or_a_quarter_of_what_is_free_keeps_batches_in_flight_few(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], free: int
) -> None:
    monkeypatch.setattr("batchkit.executors.auto.free_memory", lambda: free)
    made: list[int] = []
    delivered = 0
    most = 0

    def large(batch: Any) -> Any:
        nonlocal most
        time.sleep(0.004)
        made.append(1)
        most = max(most, len(made) - delivered)
        return {"x": batch["x"], "y": np.zeros((len(batch["x"]), 250_000), np.uint8)}

    with bk.Loader(numbers(400).batch(4).map(large), **options) as loader:
        for _ in loader:
            delivered += 1
        assert loader.workers <= 3
        assert 2 * loader.workers + loader.prefetch <= 8
    assert most <= 8


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2_000_000_000), ("512MiB", 512 << 20), ("1.5 kB", 1500), ("7", 7), (7, 7)]
)
def test_sizes_are_read(text: Any, size: int) -> None:
    from batchkit.resources import size_in_bytes

    assert size_in_bytes(text, "memory_limit") == size


def cgroup(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("group", "files", "free"),
    [
        ("0::/box", {"box/memory.max": "1000", "box/memory.current": "400"}, 600),
        ("0::/box/inner", {"box/memory.max": "1000", "box/memory.current": "400", "box/inner/memory.max": "max"}, 600),
        (
            "0::/box",
            {"box/memory.max": "1000", "box/memory.current": "900", "box/memory.stat": "anon 1\ninactive_file 300"},
            400,
        ),
        (
            "4:memory:/box",
            {"memory/box/memory.limit_in_bytes": "5000", "memory/box/memory.usage_in_bytes": "5500"},
            0,
        ),
    ],
)
def test_the_memory_that_a_container_leaves_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str, files: dict[str, str], free: int
) -> None:
    from batchkit import resources

    cgroup(tmp_path, files)
    faked: Callable[[Path], str | None] = resources._read
    monkeypatch.setattr(resources, "_CGROUPS", tmp_path)
    monkeypatch.setattr(resources, "_read", lambda path: group if str(path) == "/proc/self/cgroup" else faked(path))
    assert resources.free_memory() == free


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/box", {"box/cpu.max": "150000 100000"}),
        (
            "3:cpu,cpuacct:/box",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "200000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
        ),
    ],
)
def test_the_cores_that_a_container_grants_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str, files: dict[str, str]
) -> None:
    from batchkit import resources

    cgroup(tmp_path, files)
    faked: Callable[[Path], str | None] = resources._read
    monkeypatch.setattr(resources, "_CGROUPS", tmp_path)
    monkeypatch.setattr(resources, "_read", lambda path: group if str(path) == "/proc/self/cgroup" else faked(path))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert resources.cores() == 2


def test_without_a_limit_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchkit import resources

    monkeypatch.setattr(resources, "_read", lambda path: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(5)), raising=False)
    assert resources.cores() == 5
    assert ThreadExecutor("auto").workers >= 1


@pytest.mark.parametrize(("content", "seconds"), [("5 2000000000 7", 2.0), ("", 0.0), ("5", 0.0), (None, 0.0)])
def test_how_long_a_thread_was_queued_is_found(
    content: str | None, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchkit import resources

    file = tmp_path / "schedstat"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(resources, "_SCHEDULED", str(file))
    assert resources.queued_seconds() == seconds


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("queued", [False, True])
def test_waiting_for_a_core_that_others_have_gets_no_more_threads_than_there_are_cores(
    queued: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchkit.executors.auto.queued_seconds", time.perf_counter if queued else lambda: 0.0)
    with bk.Loader(numbers(900).map(nap).batch(3)) as loader:
        assert rows_of(loader) == list(range(900))
        assert isinstance(loader.executor, AutoExecutor)
        tried = max(trial.setting.workers for trial in loader.executor.tuner.trials)
    assert (tried <= cores()) is queued
