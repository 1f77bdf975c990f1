"""Measure the engine: threads, worker processes, the first batch, and memory that stays flat.

Every line is a ratio against a named peer, or a bound, measured in this one run. A target that
is missed is printed as missed. Writes ``results/engine.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import batchkit as bk
from batchkit.bench import Contender, machine, ratio, take_turns
from lines import Line, records, table
from pictures import Targets, draw

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("batchkit-core", "numpy", "torch", "tensorflow-cpu", "grain")
LARGE = (256, 3, 224, 224)  # 154 MB of float32


def gather(rounds: int) -> list[Line]:
    """Threads against inline where a step is only a gather."""
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((200_000, 64), dtype=np.float32), "y": rng.integers(0, 10, 200_000)}
    pipe = bk.from_arrays(data).shuffle(0).batch(256)
    loaders = {name: bk.Loader(pipe, executor=name) for name in ("inline", "threads")}
    contenders = [Contender(name, lambda loader=loader: loader) for name, loader in loaders.items()]  # type: ignore[misc]
    timings = take_turns(contenders, rounds)
    return [Line("in-memory gather, threads", "inline", ratio(timings, "threads", "inline"), 0.95)]


def figures(rounds: int) -> list[Line]:
    """What it costs to measure every stage, where a step is only a gather."""
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((200_000, 64), dtype=np.float32), "y": rng.integers(0, 10, 200_000)}
    pipe = bk.from_arrays(data).shuffle(0).batch(256)
    measured, bare = bk.Loader(pipe, executor="inline"), bk.Loader(pipe, executor="inline")
    # What there would be if nothing was ever measured.
    bare._work.compute = functools.partial(bare.plan.compute, slots=bare._slots)
    contenders = [Contender("measured", lambda: measured), Contender("bare", lambda: bare)]
    timings = take_turns(contenders, 3 * rounds)
    return [Line("in-memory gather, with figures by stage", "without", ratio(timings, "measured", "bare"), 0.98)]


def heavy(batch: Any) -> Any:
    """Compute for some milliseconds without the GIL."""
    x = batch["x"]
    for _ in range(6):
        x = np.sqrt(x * x + 1.0)
    return {"x": x.astype(np.float32)}


def overlap(rounds: int) -> list[Line]:
    """A caller that computes for as long as a batch takes to load, with batches put on the device ahead."""
    pipe = bk.from_arrays({"x": np.ones((64, 400_000), np.float32)}).repeat(20).batch(2).map(heavy)
    totals = []
    with bk.Loader(pipe, "torch", device="cpu", executor="inline", prefetch_to_device=True) as loader:
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in loader:
                pass
            load = (time.perf_counter() - began) / len(loader)
            data, spent = np.ones(200_000), 0.0
            began = time.perf_counter()
            for _ in loader:
                asked = time.perf_counter()
                while time.perf_counter() - asked < load:
                    np.sqrt(data, out=data)
                spent += time.perf_counter() - asked
            total = (time.perf_counter() - began) / len(loader)
            totals.append(total / max(load, spent / len(loader)))
    work = "a caller as slow as the loading, device prefetch: total time"
    return [Line(work, "the larger of the two", statistics.median(totals), 1.15, at_most=True)]


def split(rounds: int) -> list[Line]:
    """Whether a gather pays that is shared by two threads, where two threads could do a gather each instead."""
    source = np.zeros((512, *LARGE[1:]), np.float32)
    orders = [np.random.default_rng(seed).permutation(512)[:256] for seed in range(6)]
    slots = [np.zeros(LARGE, np.float32) for _ in range(2)]

    def take(rows: Any, out: Any) -> None:
        source.take(rows, 0, out, "clip")

    def together(pool: ThreadPoolExecutor) -> None:
        for number, rows in enumerate(orders):
            out = slots[number % 2]
            list(pool.map(take, (rows[:128], rows[128:]), (out[:128], out[128:])))

    def apart(pool: ThreadPoolExecutor) -> None:
        for pair in zip(orders[::2], orders[1::2], strict=True):
            list(pool.map(take, pair, slots))

    ratios = []
    with ThreadPoolExecutor(2) as pool:
        together(pool)
        for _ in range(rounds):
            began = time.perf_counter()
            together(pool)
            half = time.perf_counter()
            apart(pool)
            ratios.append((time.perf_counter() - half) / (half - began))
    work = "a gather of 154 MB split over two threads (above 1.1x it would pay)"
    return [Line(work, "a gather each", statistics.median(ratios), 1.1, at_most=True)]


def stamped(batch: Any) -> Any:
    """Change a large leaf in place, and say when that was done."""
    batch["x"] += 1.0
    return {"x": batch["x"], "at": np.full(len(batch["x"]), time.monotonic())}


def hand_over(batches: Iterable[Any]) -> float:
    """Return the median seconds from a batch's being done in the worker to its being here; the first is warm-up."""
    took = [time.monotonic() - float(batch["at"][0]) for batch in batches]
    return statistics.median(took[2:])


def large_batches(rounds: int) -> list[Line]:
    """How a batch of 154 MB gets from a worker process to the caller."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Large(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            x = torch.zeros(LARGE)
            x += 1.0
            return {"x": x, "at": torch.tensor([time.monotonic()], dtype=torch.float64)}

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", np.zeros((512, *LARGE[1:]), np.float32))
        pipe = bk.from_npy({"x": Path(folder) / "x.npy"}).repeat(4).batch(256).map(stamped)
        for _ in range(max(rounds // 2, 1)):
            theirs = hand_over(DataLoader(Large(), batch_size=None, num_workers=1))
            with bk.Loader(pipe, executor="processes", workers=1) as loader:
                ratios.append(theirs / hand_over(loader))
    return [Line("154 MB from a worker to the caller", "DataLoader, 1 worker", statistics.median(ratios), 20.0)]


def slow_row(row: Any) -> Any:
    """Hold the GIL for about a millisecond."""
    total = 0
    for number in range(16_000):
        total += number & 3
    return {"x": row["x"] if isinstance(row, dict) else row, "total": total}


def python_map(rounds: int) -> list[Line]:
    """A pure-Python function of about 1 ms a row: one process, two, and torch's two."""
    from torch.utils.data import DataLoader, Dataset

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return 1024

        def __getitem__(self, index: int) -> Any:
            return slow_row(index)

    pipe = bk.from_arrays({"x": np.arange(1024)}).map(slow_row).batch(32)
    two = bk.Loader(pipe, executor="processes", workers=2)
    one = bk.Loader(pipe, executor="processes", workers=1)
    theirs = DataLoader(Rows(), batch_size=32, num_workers=2, persistent_workers=True)
    contenders = [Contender("two", lambda: two), Contender("one", lambda: one), Contender("torch", lambda: theirs)]
    for contender in contenders:
        for _ in contender.epoch():
            pass
    timings = take_turns(contenders, rounds)
    lines = [
        Line("pure-Python map, 2 processes", "1 process", ratio(timings, "two", "one"), 1.8),
        Line("pure-Python map, 2 processes", "DataLoader, 2 workers", ratio(timings, "two", "torch"), 1.0),
    ]
    two.close()
    one.close()
    return lines


def quick_row(row: Any) -> Any:
    """Do next to nothing."""
    return {"x": row["x"]}


def first_batch(rounds: int) -> list[Line]:
    """The time to the first batch with two new workers."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    pipe = bk.from_arrays({"x": np.arange(4096)}).map(quick_row).batch(32)
    ratios = []
    for _ in range(rounds):
        began = time.perf_counter()
        with bk.Loader(pipe, executor="processes", workers=2) as loader:
            next(iter(loader))
            ours = time.perf_counter() - began
        began = time.perf_counter()
        theirs_iterator = iter(
            DataLoader(TensorDataset(torch.arange(4096)), batch_size=32, num_workers=2, multiprocessing_context="spawn")
        )
        next(theirs_iterator)
        ratios.append(ours / (time.perf_counter() - began))
        del theirs_iterator
    return [
        Line(
            "time to the first batch, 2 workers",
            "DataLoader, 2 spawned workers",
            statistics.median(ratios),
            0.5,
            at_most=True,
        )
    ]


MEMORY = """
import os, sys, numpy as np, batchkit as bk
def change(batch):
    return {"x": batch["x"] + 1}
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
if __name__ == "__main__":
    executor, steps = sys.argv[1], int(sys.argv[2])
    pipe = bk.from_arrays({"x": np.zeros((4096, 1024), np.float32)}).shuffle(0).repeat().batch(64)
    if executor == "processes":
        pipe = pipe.map(change)
    with bk.Loader(pipe, executor=executor, workers="auto" if executor == "inline" else 2) as loader:
        for number, batch in enumerate(loader):
            if number == steps // 10:
                warm = peak = resident()
            elif number > steps // 10 and number % 500 == 0:
                peak = max(peak, resident())
            if number == steps:
                break
    print((peak - warm) / batch["x"].nbytes)
"""


def memory(steps: int) -> list[Line]:
    """By how many batches resident memory grows after warm-up."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "memory.py"
        script.write_text(MEMORY)
        for executor in ("inline", "threads", "processes"):
            done = subprocess.run(
                [sys.executable, script, executor, str(steps)], capture_output=True, text=True, check=True
            )
            grown = float(done.stdout)
            work = f"memory over {steps:,} batches, {executor}: growth after warm-up"
            lines.append(Line(work, "one batch", grown, 2.0, "batches", at_most=True))
    return lines


PEAK = """
import sys, numpy as np, batchkit as bk
from batchkit.bench.memory import forget_peak, peak, workers
def change(batch):
    return {"x": batch["x"] + 1}
if __name__ == "__main__":
    executor, changed, row = sys.argv[1], sys.argv[2] == "changed", int(sys.argv[3])
    pipe = bk.from_arrays({"x": np.ones((256, row), np.float32)}).shuffle(0).repeat(10).batch(64)
    pipe = pipe.map(change) if changed else pipe
    with bk.Loader(pipe, executor=executor, workers=2, prefetch=2) as loader:
        forget_peak()
        before, elsewhere = peak(), 0
        for batch in loader:
            batch["x"].sum()
            elsewhere = max(elsewhere, workers())
        print(peak() - before + elsewhere)
"""
ROW = 1 << 18  # a batch of 64 MiB: far from where the C library keeps for later what is freed


def peak_memory() -> list[Line]:
    """How many batches are in memory at a time, besides the source, wherever they are; shared memory counts once."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "peak.py"
        script.write_text(PEAK)

        def taken(*arguments: str) -> int:
            command = [sys.executable, str(script), *arguments]
            # A session of its own: its workers are found by that.
            done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
            return int(done.stdout)

        for work, what in {"as they are": "plain", "through x + 1": "changed"}.items():
            for executor, workers in {"inline": 0, "threads": 2, "processes": 2}.items():
                fixed = taken(executor, what, "1")  # modules, interpreters
                batches = (taken(executor, what, str(ROW)) - fixed) / (64 * ROW * 4)
                work_done = f"peak memory, {executor}, 2 prefetched: rows {work}"
                lines.append(
                    Line(work_done, "prefetch + workers + 2", batches, 2.0 + workers + 2.0, "batches", at_most=True)
                )
    return lines


def main() -> None:
    """Measure, show, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000, help="batches of the memory test")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args()
    console = Console(width=None if os.isatty(1) else 120)
    if not find_spec("torch"):
        raise SystemExit("torch, which is the peer, is not installed")
    parts: list[Callable[[], list[Line]]] = [
        lambda: gather(options.rounds),
        lambda: figures(options.rounds),
        lambda: overlap(options.rounds),
        lambda: split(options.rounds),
        lambda: python_map(options.rounds),
        lambda: first_batch(options.rounds),
        lambda: large_batches(options.rounds),
        lambda: memory(options.steps),
        peak_memory,
    ]
    lines: list[Line] = []
    for part in parts:
        lines += part()
        console.print(f"measured: {lines[-1].work}")
    console.print(table("The engine", lines))
    options.results.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(PACKAGES), "lines": records(lines)}
    path = options.results / "engine.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    draw(path.with_suffix(".png"), Targets("The engine against its targets", lines))
    console.print(f"written: {path} and {path.stem}.png")


if __name__ == "__main__":
    main()
