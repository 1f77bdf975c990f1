"""What the report says of a pipeline whose costs are known, and what the trace draws."""

from __future__ import annotations

import itertools
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.executors import Setting
from batchkit.metering import PUT, SOURCE, TRANSPORT, Meter, StageFigures
from batchkit.report import StageReport, bottleneck

EXECUTORS = ("inline", "threads", "processes")
executors = pytest.mark.parametrize("executor", EXECUTORS)
PACKED = zlib.compress(np.random.default_rng(0).integers(0, 4, 200_000, dtype=np.uint8).tobytes())


def nap(row: Any) -> Any:
    """Wait, without a core and without the GIL."""
    time.sleep(0.002)
    return row


def spin(row: Any) -> Any:
    """Hold the GIL for about two milliseconds."""
    end = time.perf_counter() + 0.002
    while time.perf_counter() < end:
        pass
    return row


def unpack(row: Any) -> Any:
    """Work without the GIL for about two milliseconds."""
    for _ in range(2):
        zlib.decompress(PACKED)
    return row


def numbers(rows: int = 40) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows), "y": np.zeros((rows, 5), np.float32)})


def stages_of(loader: bk.Loader) -> dict[str, StageReport]:
    return {stage.name: stage for stage in loader.statistics.stages}


@executors
def test_every_stage_has_its_line_with_its_calls_and_bytes(executor: str) -> None:
    pipe = numbers().shuffle(1).map(nap).batch(8).map(lambda batch: {"z": batch["y"].astype(np.float64)})
    with bk.Loader(pipe, executor=executor, workers="auto" if executor == "inline" else 2) as loader:
        list(loader)
        found = stages_of(loader)
    names = ["source arrays", "shuffle(seed=1)", "map(nap)", "batch(size=8)", "map(<lambda>)"]
    assert [name for name in found if "to and from" not in name][:4] == names[:4]
    assert found["map(nap)"].calls == 40
    assert found["source arrays"].calls == found["batch(size=8)"].calls == 5
    assert found["source arrays"].bytes == found["batch(size=8)"].bytes == 8 * (8 + 5 * 4)
    behind = next(stage for stage in found.values() if stage.kind == 3)
    assert behind.bytes == 8 * 5 * 8
    assert sum(stage.share for stage in found.values()) == pytest.approx(1.0)
    assert (TRANSPORT in {stage.kind for stage in found.values()}) is (executor == "processes")


@executors
@pytest.mark.parametrize(
    ("function", "gil_bound", "waits"), [(nap, False, True), (spin, True, False), (unpack, False, False)]
)
def test_the_slowest_stage_and_how_it_spends_its_time_are_found(
    executor: str, function: Any, gil_bound: bool, waits: bool
) -> None:
    for _ in range(20):  # other programs on the machine take a thread from its core, which looks like waiting
        # With threads the first step is computed alone, which is when the GIL can be watched.
        with bk.Loader(numbers().map(function).batch(8), executor=executor, workers=1) as loader:
            list(loader)
            slowest = max(loader.statistics.stages, key=lambda stage: stage.seconds)
            report = loader.report()
        assert slowest.name == f"map({function.__name__})"
        assert slowest.seconds >= 0.001 * 8 * 0.5
        assert f"bottleneck: map({function.__name__}) takes " in report
        assert report.splitlines()[-1].endswith("; the source is not the limit")
        if slowest.gil_bound is gil_bound and (gil_bound or slowest.waits is waits):
            return
    pytest.fail(f"in twenty runs {slowest} was never found to be gil_bound={gil_bound}, waits={waits}")


def test_a_slow_source_is_told_from_what_is_behind_it() -> None:
    class Slow:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, row: int) -> Any:
            time.sleep(0.002)
            return {"x": row}

    with bk.Loader(bk.from_sequence(Slow()).batch(5), executor="inline") as loader:
        list(loader)
        assert "bottleneck: source sequence takes " in loader.report()
        assert loader.report().endswith("the stages behind it are not the limit")


def test_what_a_generator_takes_to_yield_is_the_sources_time() -> None:
    def rows() -> Any:
        for number in range(20):
            time.sleep(0.002)
            yield {"x": number}

    with bk.Loader(bk.from_generator(rows).batch(5), executor="inline") as loader:
        list(loader)
        (source,) = [stage for stage in loader.statistics.stages if stage.kind == SOURCE]
    assert source.name == "source generator"
    assert source.seconds >= 0.01
    assert source.waits


def test_a_caller_that_is_slower_than_the_loader_is_named_as_the_limit() -> None:
    with bk.Loader(numbers().batch(8), executor="inline") as loader:
        for _ in loader:
            time.sleep(0.1)
        assert "the caller is the limit" in loader.report()
        assert loader.statistics.wait_share < 0.05


def test_waiting_is_counted_and_so_are_the_batches_that_wait() -> None:
    with bk.Loader(numbers().map(nap).batch(8), executor="threads", workers=2, prefetch=2) as loader:
        for _ in loader:
            time.sleep(0.03)
        waiting = loader.statistics.queue
        assert waiting is not None
        assert waiting > 0.5  # the caller is slower than two workers
        assert 0 < loader.statistics.waited < loader.statistics.seconds
        assert "finished batches were waiting on average, of at most 4" in loader.report()


def test_a_loader_that_has_loaded_nothing_says_so() -> None:
    assert bk.Loader(numbers().batch(8)).report() == "nothing was loaded yet"


def test_cheap_steps_are_measured_rarely_and_count_in_full() -> None:
    with bk.Loader(numbers(60_000).batch(8), executor="inline") as loader:
        list(loader)
        meter, batches = loader.statistics.meter, loader.statistics.batches
        measured = int((meter.events.latest()["stage"] == SOURCE).sum())
        (source,) = [stage for stage in loader.statistics.stages if stage.kind == SOURCE]
    assert batches == 7_500
    assert measured < batches / 10
    assert source.calls == pytest.approx(batches, rel=0.05)


def test_the_figures_of_a_failed_step_are_dropped() -> None:
    def fails_once(row: Any) -> Any:
        if row["x"] == 3:
            raise ValueError("three")
        return nap(row)

    with bk.Loader(numbers().map(fails_once).batch(8), executor="inline") as loader:
        iterator = iter(loader)
        with pytest.raises(bk.StageError):
            next(iterator)
        assert len(list(iterator)) == 4
        assert stages_of(loader)["source arrays"].calls == 4


@executors
def test_the_trace_is_chrome_trace_json_with_a_box_a_stage_and_a_step(tmp_path: Path, executor: str) -> None:
    path = tmp_path / "trace.json"
    with bk.Loader(
        numbers().map(nap).batch(8), executor=executor, workers="auto" if executor == "inline" else 2
    ) as loader:
        list(loader)
        loader.trace(path)
    content = json.loads(path.read_text())
    boxes = [event for event in content["traceEvents"] if event["ph"] == "X"]
    named = {event["pid"]: event["args"]["name"] for event in content["traceEvents"] if event["ph"] == "M"}
    naps = [box for box in boxes if box["name"] == "map(nap)"]
    assert sorted((box["args"]["epoch"], box["args"]["step"]) for box in naps) == [(0, step) for step in range(5)]
    assert all(box["dur"] >= 16_000 * 0.9 for box in naps)
    assert all(set(box) >= {"name", "cat", "ph", "ts", "dur", "pid", "tid"} and box["ts"] >= 0 for box in boxes)
    assert any(box["name"] == "wait" for box in boxes)
    assert named[os.getpid()] == "caller"
    assert all((box["pid"] == os.getpid()) is (executor != "processes") for box in naps)


def test_boxes_of_one_thread_do_not_overlap(tmp_path: Path) -> None:
    with bk.Loader(numbers().shuffle(0).map(nap).batch(8), executor="threads", workers=2) as loader:
        list(loader)
        loader.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    boxes = [event for event in events if event["ph"] == "X" and event["cat"] == "stage" and "args" in event]
    for thread in {box["tid"] for box in boxes}:
        mine = sorted((box["ts"], box["ts"] + box["dur"]) for box in boxes if box["tid"] == thread)
        assert all(end <= start + 1.0 for (_, end), (start, _) in itertools.pairwise(mine))


def test_an_empty_trace_is_valid_json(tmp_path: Path) -> None:
    bk.Loader(numbers().batch(8)).trace(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []


def figures(kind: int = 0, seconds: float = 1e-3, cpu: float = 1.0, gil: float | None = 0.0) -> StageReport:
    return StageReport("map(f)", kind, 1, seconds, 1.0, 0, cpu, gil)


@pytest.mark.parametrize(
    ("stage", "setting", "settled", "advice"),
    [
        (figures(gil=0.9), Setting("threads", 2), False, "holds the GIL: executor='processes' helps"),
        (figures(gil=0.0), Setting("inline", 0), False, "releases the GIL: executor='threads' computes ahead"),
        (figures(cpu=0.1), Setting("inline", 0), False, "mostly waits: executor='threads' with workers="),
        (figures(cpu=0.1), Setting("threads", 3), False, "mostly waits: more workers help (3 so far"),
        (figures(), Setting("threads", 1), False, "more workers help (1 so far, on 8 cores)"),
        (figures(), Setting("threads", 8), False, "all 8 cores are used"),
        (figures(seconds=6e-5, gil=0.9), Setting("inline", 0), False, "too cheap for other workers to help"),
        (figures(seconds=6e-5), Setting("threads", 2), False, "too cheap for other workers to help"),
        (figures(seconds=6e-5, cpu=0.1), Setting("inline", 0), False, "mostly waits: executor='threads'"),
        (figures(), Setting("threads", 2), True, "no other setting was faster here"),
        (figures(kind=TRANSPORT), Setting("processes", 2), False, "too cheap to be sent to other processes"),
        (figures(kind=PUT), Setting("threads", 2), False, "the backend copies to its device"),
    ],
)
def test_the_sentence_names_the_change_that_would_help(
    monkeypatch: pytest.MonkeyPatch, stage: StageReport, setting: Setting, settled: bool, advice: str
) -> None:
    monkeypatch.setattr("batchkit.report.cores", lambda: 8)

    class Measured:
        wait_share = 0.9
        stages = (stage,)

    assert advice in bottleneck(Measured(), setting, settled)  # type: ignore[arg-type]


def test_a_stage_too_short_to_watch_claims_nothing_of_the_gil() -> None:
    short = StageFigures()
    short.watched = 1e-4
    assert short.gil_share is None


def test_a_step_beside_which_another_was_computed_says_nothing_of_the_gil() -> None:
    meter = Meter()
    first = meter.open()
    first.watch()
    second = meter.open()
    assert first.probe is not None
    assert second.probe is None
    end = time.perf_counter() + 0.003
    while time.perf_counter() < end:
        pass
    for sheet in (first, second):
        sheet.lap(0)
        meter.add(sheet)
    assert meter.gil_share is None
    third = meter.open()
    third.watch()
    end = time.perf_counter() + 0.006
    while time.perf_counter() < end:
        pass
    third.lap(0)
    meter.add(third)
    assert meter.gil_share is not None
    assert meter.gil_share > 0.5
