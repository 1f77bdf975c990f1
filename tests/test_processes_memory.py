"""Worker processes and memory: what crosses between them and the caller, and what neither of them ever copies."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holdings import in_proc, parents

import batchkit as bk
from batchkit.executors import ProcessExecutor
from batchkit.executors.transport import has_posix

pytestmark = in_proc
needs_fork = pytest.mark.skipif(not has_posix(), reason="there is no fork server without fork")


@pytest.fixture(params=[pytest.param("forkserver", marks=needs_fork), "spawn"])
def start(request: pytest.FixtureRequest) -> Any:
    """How workers are started: by the POSIX transport, and by the portable one."""
    return request.param


def loaded(pipe: bk.Pipeline, start: str, workers: int = 1) -> bk.Loader:
    return bk.Loader(pipe, executor=ProcessExecutor(workers, start=start))


def test_a_worker_is_never_forked_from_the_caller(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "batchkit_was_here", True, raising=False)

    def look(batch: Any) -> Any:
        return {
            **batch,
            "inherited": hasattr(sys, "batchkit_was_here") | batch["x"] * 0,
            "pid": batch["x"] * 0 + os.getpid(),
        }

    with loaded(bk.from_arrays({"x": np.arange(8)}).batch(4).map(look), start) as loader:
        batches = list(loader)
        of_caller = [pid for pid, parent in parents().items() if parent == os.getpid()]
    assert [batch["inherited"].tolist() for batch in batches] == [[0] * 4] * 2
    workers = {int(pid) for batch in batches for pid in batch["pid"]}
    assert os.getpid() not in workers
    # Under "forkserver" it is the server's child; under "spawn" the caller's, and a new interpreter.
    assert (workers & {*of_caller} == set()) is (start == "forkserver")


LARGE = 128 << 20


@pytest.mark.parametrize("place", ["behind batch", "row by row"])
def test_a_large_array_is_gathered_by_the_caller_and_mapped_in_place_by_the_worker(start: str, place: str) -> None:
    width = 1 << 20
    source = np.ones((LARGE // width, width), np.uint8)
    source[:, 0] = np.arange(len(source)) % 251

    def look(given: Any) -> Any:
        address = given["x"].__array_interface__["data"][0]
        maps = Path("/proc/self/maps").read_text().splitlines()
        spans = [line.split()[0].split("-") for line in maps if "batchkit" in line]
        mapped = any(int(low, 16) <= address < int(high, 16) for low, high in spans)
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        some = given["x"][..., 0].astype(np.int64)
        return {"first": some, "mapped": some * 0 + mapped, "peak": some * 0 + peak}

    pipe = bk.from_arrays({"x": source})
    pipe = pipe.batch(4).map(look) if place == "behind batch" else pipe.map(look).batch(4)
    with loaded(pipe, start) as loader:
        batches = list(loader)
    assert np.concatenate([batch["first"] for batch in batches]).tolist() == source[:, 0].tolist()
    assert all(batch["mapped"].all() for batch in batches)
    assert max(int(batch["peak"].max()) for batch in batches) < LARGE  # with the interpreter and NumPy in it


@pytest.mark.parametrize("way", ["gathered", "new arrays", "from a file"])
def test_only_a_header_crosses_the_connection(
    start: str, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crossed: list[int] = []
    channel: Any = importlib.import_module(
        "batchkit.executors.posix" if start == "forkserver" else "batchkit.executors.portable"
    ).Channel
    send, receive = channel.send, channel.receive

    def sending(self: Any, message: Any, handles: Any = ()) -> None:
        crossed.append(len(message) if isinstance(message, bytes) else len(pickle.dumps(message)))
        send(self, message, handles)

    def receiving(self: Any, timeout: Any = None) -> Any:
        found = receive(self, timeout)
        crossed.append(len(pickle.dumps(found[0])))
        return found

    x = np.arange(40 * (1 << 16)).reshape(40, 1 << 16)
    np.save(tmp_path / "x.npy", x)
    pipe = (bk.from_npy({"x": tmp_path / "x.npy"}) if way == "from a file" else bk.from_arrays({"x": x})).batch(4)
    pipe = pipe.map(lambda batch: {"x": batch["x"] + 1}) if way == "new arrays" else pipe
    with loaded(pipe, start) as loader:
        monkeypatch.setattr(channel, "send", sending)
        monkeypatch.setattr(channel, "receive", receiving)
        for number, batch in enumerate(loader):
            assert batch["x"].nbytes == 4 * x[0].nbytes == 2 << 20
            assert np.array_equal(batch["x"], x[4 * number : 4 * number + 4] + (way == "new arrays"))
    assert number == 9
    assert len(crossed) >= 2 * 10
    described, *others = sorted(crossed, reverse=True)  # the pipeline, once, is the largest
    assert described < 16_384
    assert max(others) < 4096
