"""The portable transport: named memory that nobody leaves behind, and a Python without what POSIX has."""

from __future__ import annotations

import ast
import errno
import importlib
import json
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.executors import ProcessExecutor, portable
from batchkit.executors.processes import transport_of

fcntl: Any = pytest.importorskip("fcntl", reason="looks for names of shared memory where only Linux lists them")
posix: Any = importlib.import_module("batchkit.executors.posix")
SHELF = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not SHELF.is_dir(), reason="looks for names where only Linux lists them")


def names() -> set[str]:
    """Return the names of batchkit's shared memory."""
    return {path.name for path in SHELF.glob("batchkit-*")}


def left_since(before: set[str]) -> set[str]:
    """Return what has come and stays; another program's memory has a name for a moment, too."""
    deadline = time.monotonic() + 5
    while names() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    return names() - before


@pytest.fixture
def before() -> set[str]:
    """The names that there are already."""
    return names()


def spawned(pipe: bk.Pipeline, workers: int = 1) -> bk.Loader:
    return bk.Loader(pipe, executor=ProcessExecutor(workers, start="spawn"))


def numbers(rows: int = 12) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows)})


# -- the choice


def test_auto_is_the_fork_server_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert transport_of("auto") is posix
    monkeypatch.delattr(os, "fork")
    assert transport_of("auto") is portable


def test_spawn_is_the_portable_transport() -> None:
    assert transport_of("spawn") is portable


def test_a_fork_server_is_refused_where_there_is_no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(bk.PipelineError, match=r"start='forkserver' needs fork .* leave start out"):
        ProcessExecutor(1, start="forkserver")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("spwan", "start must be 'auto', 'forkserver' or 'spawn', not 'spwan'; did you mean 'spawn'?"),
        ("fork", "not 'fork'"),
        (None, "not None"),
    ],
)
def test_an_unknown_start_is_answered_with_the_nearest(start: Any, message: str) -> None:
    with pytest.raises(bk.PipelineError) as caught:
        ProcessExecutor(1, start=start)
    assert message in str(caught.value)


def test_a_pickled_executor_starts_workers_in_the_same_way() -> None:
    copy = pickle.loads(pickle.dumps(ProcessExecutor(3, timeout=2.0, start="spawn")))
    assert (copy.workers, copy.timeout, copy.start) == (3, 2.0, "spawn")


ONLY_POSIX = {"fcntl", "grp", "pwd", "resource", "termios", "batchkit.executors.posix"}
ONLY_POSIX_CALLS = {
    "fork",
    "waitpid",
    "memfd_create",
    "posix_fallocate",
    "socketpair",
    "sendmsg",
    "recvmsg",
    "SCM_RIGHTS",
}


def test_what_only_posix_has_is_used_in_one_file_of_the_executors() -> None:
    used: dict[str, set[str]] = {}
    for path in Path(portable.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used[path.name] = names & ONLY_POSIX | called & ONLY_POSIX_CALLS
    assert used.pop("posix.py") >= {"fork", "memfd_create", "SCM_RIGHTS"}
    assert {name: found for name, found in used.items() if found} == {}


# -- memory


def test_memory_is_shared_and_its_name_goes_when_the_other_side_has_mapped_it(before: set[str]) -> None:
    one, handle = portable.new_memory(8192)
    assert handle.name[1:] in names()
    two = portable.map_memory(handle.name, handle.size)
    assert left_since(before) == set()
    one[5] = 7
    two[6] = 8
    assert (one[5:7].tolist(), two[5:7].tolist(), one.size, two.size) == ([7, 8], [7, 8], 8192, 8192)
    handle.close()
    del two
    one[:] = 3
    assert int(one.sum()) == 3 * 8192


def test_a_name_that_nobody_maps_goes_with_its_handle(before: set[str]) -> None:
    _, closed = portable.new_memory(4096)
    closed.close()
    assert left_since(before) == set()
    _, forgotten = portable.new_memory(4096)
    assert forgotten.name[1:] in names()
    del forgotten
    assert left_since(before) == set()


def test_a_name_that_nobody_maps_goes_with_its_program(before: set[str]) -> None:
    program = "from batchkit.executors import portable; kept = portable.new_memory(4096); print(kept[1].name[1:])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (len(done.stdout.split()), done.stderr) == (1, "")
    assert left_since(before) == set()


def test_memory_costs_no_descriptors(before: set[str]) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    kept = []
    for _ in range(200):
        array, handle = portable.new_memory(4096)
        kept += [array, portable.map_memory(handle.name, handle.size)]
        handle.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert left_since(before) == set()


def test_a_name_taken_by_a_sweep_before_it_is_locked_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, before: set[str]
) -> None:
    lock, swept = fcntl.flock, list[Path]()

    def too_late(descriptor: int, how: int) -> None:
        if not swept:
            swept.append(Path(f"/proc/self/fd/{descriptor}").resolve())
            swept[0].unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    _, handle = portable.new_memory(4096)
    assert len(swept) == 1
    assert handle.name[1:] in names()
    assert handle.name[1:] != swept[0].name


def test_memory_that_is_not_to_be_had_is_an_error_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, before: set[str]
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"4096 bytes .*No space left.*--shm-size.*start='forkserver'") as caught:
        portable.new_memory(4096)
    assert caught.value.errno == errno.ENOSPC
    assert left_since(before) == set()


# -- what is left behind


KILLED = """
import os, signal, sys
from batchkit.executors import portable
array, handle = portable.new_memory(4096)
print(handle.name[1:], flush=True)
"""


def left_by_a_killed_process() -> str:
    program = KILLED + "os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    return done.stdout.strip()


def test_what_a_killed_process_left_is_swept_when_the_next_one_starts() -> None:
    left = left_by_a_killed_process()
    assert left in names()
    with spawned(numbers().batch(4)) as loader:
        assert [batch["x"].tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        assert left not in names()


def test_what_a_killed_process_left_stays_no_longer_than_a_living_one_needs_it() -> None:
    living = subprocess.Popen(
        [sys.executable, "-c", KILLED + "sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with living:
        assert living.stdout is not None
        name = living.stdout.readline().strip()
        posix.sweep()
        assert name in names()
    assert name not in names()


@pytest.mark.parametrize("name", ["batchkit-notes", "batchkit-0123456789abcdef.txt", "other-0123456789abcdef"])
def test_what_others_have_there_is_left_alone(name: str) -> None:
    path = SHELF / name
    path.write_bytes(b"mine")
    try:
        posix.sweep()
        assert path.read_bytes() == b"mine"
    finally:
        path.unlink()


def test_a_parent_killed_while_it_hands_memory_over_leaves_what_the_next_start_sweeps() -> None:
    program = """
    import os, signal, numpy as np, batchkit as bk
    from batchkit.executors import ProcessExecutor, portable
    send = portable.Channel.send
    def last(channel, message, handles=()):
        if handles:
            os.kill(os.getpid(), signal.SIGKILL)
        send(channel, message, handles)
    portable.Channel.send = last
    list(bk.Loader(bk.from_arrays({"x": np.arange(9)}).batch(3), executor=ProcessExecutor(1, start="spawn")))
    """
    before = names()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert names() - before
    portable.Crew().stop()
    assert left_since(before) == set()


class EndsWhoeverReadsIt:
    """Ends the process that unpickles it."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return os._exit, (self.code,)


def test_nothing_is_left_when_workers_die_before_they_have_mapped_it(before: set[str]) -> None:
    deadly = EndsWhoeverReadsIt(3)
    with (
        spawned(numbers().map(lambda row: {**row, "d": deadly.code}).batch(4)) as loader,
        pytest.raises(bk.WorkerError, match="died 3 times, the last time by exit code 3"),
    ):
        next(iter(loader))
    assert left_since(before) == set()


def test_nothing_is_left_after_an_end_a_break_an_exception_and_a_killed_worker(before: set[str]) -> None:
    def falls_at_seven(row: Any) -> Any:
        if row["x"] == 7:
            raise RuntimeError("seven is bad")
        return {**row, "pid": os.getpid()}

    with spawned(numbers().map(falls_at_seven).batch(2), workers=2) as loader:
        for _ in loader:
            break
        with pytest.raises(bk.StageError, match="seven is bad"):
            list(loader)
        rest = []
        for batch in loader.iterate(0, start=4):
            rest.append(batch["x"].tolist())
            os.kill(int(batch["pid"][0]), signal.SIGKILL)
        assert rest == [[8, 9], [10, 11]]
    assert left_since(before) == set()


# -- the channel


def test_a_channel_that_another_thread_closes_wakes_who_waits_on_it() -> None:
    here, there = multiprocessing.connection.Pipe()  # `there` stays open, as in a process that a worker has started
    channel, woken = portable.Channel(here), threading.Event()

    def wait() -> None:
        with pytest.raises(EOFError):
            channel.receive()
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    channel.close()
    thread.join(timeout=30)
    assert woken.is_set()
    with pytest.raises(EOFError):
        channel.send("late")
    there.close()


def test_a_channel_gives_up_after_its_timeout_and_still_works() -> None:
    here, there = map(portable.Channel, multiprocessing.connection.Pipe())
    with pytest.raises(TimeoutError):
        here.receive(timeout=0.01)
    there.send({"a": 1})
    assert here.receive(timeout=30) == ({"a": 1}, [])
    there.close()
    with pytest.raises(EOFError):
        here.receive()
    here.close()


def test_a_crew_that_was_stopped_starts_nobody() -> None:
    crew = portable.Crew()
    crew.stop()
    with pytest.raises(EOFError, match="stopped"):
        crew.start()


# -- a Python without what POSIX has

WINDOWS = """
# Takes from this Python what Python on Windows lacks, as far as Linux can do without it. What stays is what the
# standard library itself needs to start a process here, and SharedMemory's way to open memory.
import os, sys, _socket
for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
for name in ("AF_UNIX", "socketpair", "SCM_RIGHTS", "CMSG_SPACE", "CMSG_LEN"):
    delattr(_socket, name)  # socket.socketpair() is then the one that Windows has, too
for name in ("fork", "forkpty", "memfd_create", "posix_fallocate", "sched_getaffinity", "register_at_fork", "getuid"):
    delattr(os, name)
# Windows has no process that watches over names; there they go with the memory, here with this program.
import atexit, _posixshmem
from multiprocessing import resource_tracker
resource_tracker.register = resource_tracker.unregister = lambda *_: None
shm_open = _posixshmem.shm_open
def named(name, flags, mode=0o600):
    if flags & os.O_CREAT:
        atexit.register(_posixshmem.shm_unlink, name)
    return shm_open(name, flags, mode=mode)
_posixshmem.shm_open = named
"""

PROGRAM = """
import json, os, signal, sys
import numpy as np, batchkit as bk
from batchkit.executors import ProcessExecutor, portable, processes, transport, worker
def looks(row):
    row["pid"] = os.getpid()
    row["posix"] = "batchkit.executors.posix" in sys.modules or hasattr(os, "fork")
    return row
factor = 3
pipe = bk.from_arrays({"x": np.arange(60)}).shuffle(0).map(looks).batch(4).map(lambda b: {**b, "y": b["x"] * factor})
got, kept = [], []
with bk.Loader(pipe, executor=ProcessExecutor(2)) as loader:
    for _ in range(2):
        for number, batch in enumerate(loader):
            got.append([batch["x"].tolist(), batch["y"].tolist()])
            kept.append(batch)
            assert not batch["posix"].any()
            if number == 5:
                os.kill(int(batch["pid"][0]), signal.SIGTERM)
assert got == [[batch["x"].tolist(), batch["y"].tolist()] for batch in kept]
try:
    ProcessExecutor(2, start="forkserver")
except bk.PipelineError as exc:
    refused = str(exc)
print(json.dumps({
    "got": got,
    "refused": refused,
    "pids": sorted({int(pid) for batch in kept for pid in batch["pid"]} - {os.getpid()}),
    "posix": "batchkit.executors.posix" in sys.modules,
}))
"""


def test_the_executor_works_where_a_python_has_nothing_that_only_posix_has(tmp_path: Path, before: set[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(WINDOWS)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    pipe = numbers(60).shuffle(0).batch(4)
    with bk.Loader(pipe, executor="inline") as reference:
        expected = [batch["x"].tolist() for _ in range(2) for batch in reference]
    assert said["got"] == [[x, [3 * value for value in x]] for x in expected]
    assert len(said["pids"]) >= 4  # two were ended, and others came in their place
    assert said["posix"] is False
    assert "leave start out" in said["refused"]
    assert left_since(before) == set()
