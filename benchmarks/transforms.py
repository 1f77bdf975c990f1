"""Measure ``batchkit.transforms``: each against a plain copy, and an epoch of CIFAR-like augmentation.

The first table has what every transform takes for a batch of 128 pictures of 32 x 32 x 3, in ns a
byte that it is given, against ``np.copyto`` of the same bytes. The second is an epoch over 50,000
such pictures: shuffled, padded by 4 and cropped, flipped, normalised to float32, against the same
by hand in NumPy, by tf.data, torch's DataLoader and Grain (``cifar/``). Contenders take turns, after
each has proved that it does the whole work. Writes ``results/transforms.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import batchkit as bk
from batchkit import transforms as tf
from batchkit.bench import Contender, Timing, machine, ratio, take_turns
from batchkit.random import RowRandom
from cifar.proof import prove
from cifar.workload import MEAN, PADDING, SIDE, SIZE, STD, Peer, Pictures, again, pipeline
from lines import Line, records, table
from pictures import Rates, Targets, bars_of, draw

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("batchkit-core", "numpy", "torch", "tensorflow-cpu", "grain")
CALLS = 20  # in a row, so that reading the clock does not count
LEAST_ROWS = 1024  # fewer do not show whether crops and flips are drawn at random
EXECUTORS: dict[str, int | str] = {"inline": "auto", "threads": 2, "processes": 2}
OURS = "batchkit"
TARGETS = {
    "NumPy": 1.3,
    "tf.data, per row": 3.0,
    "tf.data, whole batches": 3.0,
    "DataLoader, 2 workers, per row": 3.0,
    "DataLoader, 2 workers, whole batches": 3.0,
    "Grain, per row": 10.0,
    "Grain, whole batches in NumPy": 10.0,
}


def transform_calls() -> dict[str, tuple[Callable[[], Any], npt.NDArray[Any]]]:
    """Return every transform as a call without arguments, and the array that it is given."""
    drawn = np.random.default_rng(0)
    pictures = drawn.integers(0, 256, (SIZE, SIDE, SIDE, 3), dtype=np.uint8)
    floats = tf.normalize(pictures, mean=MEAN, std=STD)
    labels = drawn.integers(0, 10, SIZE)
    mixed = {"image": floats, "label": tf.one_hot(labels, classes=10)}
    rows = drawn.permutation(50_000)[:SIZE].astype(np.int64)

    def rng() -> RowRandom:
        return RowRandom((2, 0, 0), 0, rows)

    return {
        "normalize": (lambda: tf.normalize(pictures, mean=MEAN, std=STD), pictures),
        "clip_and_scale": (lambda: tf.clip_and_scale(pictures, low=0, high=255), pictures),
        "one_hot": (lambda: tf.one_hot(labels, classes=10), labels),
        "pad_to": (lambda: tf.pad_to(pictures, shape=[40, 40, 3]), pictures),
        "random_crop": (lambda: tf.random_crop(pictures, rng(), padding=PADDING), pictures),
        "random_flip": (lambda: tf.random_flip(pictures, rng()), pictures),
        "random_erasing": (lambda: tf.random_erasing(pictures, rng()), pictures),
        "color_jitter": (lambda: tf.color_jitter(pictures, rng(), brightness=0.4, contrast=0.4), pictures),
        "color_jitter, float32": (lambda: tf.color_jitter(floats, rng(), brightness=0.4, contrast=0.4), floats),
        "mixup, float32": (lambda: tf.mixup(mixed, rng(), leaf="image"), floats),
        "cutmix, float32": (lambda: tf.cutmix(mixed, rng(), leaf="image"), floats),
    }


def called(function: Callable[[], Any]) -> Callable[[], Iterable[Any]]:
    """Return an epoch that calls ``function`` some times."""
    return lambda: (function() for _ in range(CALLS))


def copied(source: npt.NDArray[Any]) -> Callable[[], None]:
    """Return a plain copy of ``source`` into memory that is there."""
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


def measure_transforms(rounds: int) -> list[dict[str, Any]]:
    """Return a record a transform."""
    calls = transform_calls()
    sources = {id(source): source for _, source in calls.values()}
    contenders = [Contender(name, called(function)) for name, (function, _) in calls.items()]
    contenders += [Contender(f"copy of {key}", called(copied(source))) for key, source in sources.items()]
    timings = take_turns(contenders, rounds, budget=0.05)
    records = []
    for name, (_, source) in calls.items():
        taken, copy = timings[name].median / CALLS, timings[f"copy of {id(source)}"].median / CALLS
        records.append(
            {
                "transform": name,
                "bytes": source.nbytes,
                "microseconds_a_batch": round(taken * 1e6, 1),
                "ns_a_byte": round(taken * 1e9 / source.nbytes, 3),
                "copy_ns_a_byte": round(copy * 1e9 / source.nbytes, 4),
                "times_a_copy": round(1 / ratio(timings, name, f"copy of {id(source)}"), 2),
            }
        )
    return records


def measure_epoch(rows: int, rounds: int, told: Callable[[str], None]) -> tuple[dict[str, Timing], list[Line]]:
    """Return the timings of an epoch by contender, and how batchkit's best executor does against each family."""
    work = Pictures.of(rows)
    with contextlib.ExitStack() as stack:
        loaders = {
            name: stack.enter_context(bk.Loader(pipeline(work), executor=name, workers=workers))
            for name, workers in EXECUTORS.items()
        }
        ours = [Peer(f"{OURS}, {name}", again(loader), OURS) for name, loader in loaders.items()]
        peers = everybody(work, ours, told)
        timings = take_turns(peers, rounds, told=told)
        lines = judged(peers, timings)
        del peers
        gc.collect()  # Grain's iterators end their workers when they are forgotten, not at the interpreter's end
    return timings, lines


def everybody(work: Pictures, ours: Sequence[Peer], told: Callable[[str], None]) -> list[Peer]:
    """Return all who can run here; each has proved that it does the work, and is warm.

    One family after the other, torch first: its workers are forked when it proves itself, before
    others have started threads that do not survive a fork.
    """
    modules = {"torch": "torch_peers", "numpy": "numpy_loops", "tensorflow": "tensorflow_peers", "grain": "grain_peers"}
    found = []
    for package, module in modules.items():
        if not find_spec(package):
            told(f"{package} is not installed, and is left out")
            continue
        family: list[Peer] = getattr(import_module(f"cifar.{module}"), f"{package}_peers")(work)
        for peer in [*family, *(ours if package == "numpy" else [])]:
            told(f"seeing that it does the work: {peer.name}")
            prove(peer, work)
            found.append(peer)
    return found


def best_of_ours(timings: Mapping[str, Timing]) -> str:
    """Return the name of batchkit's quickest contender."""
    return min((name for name in timings if name.startswith(OURS)), key=lambda name: timings[name].median)


def judged(peers: Sequence[Peer], timings: Mapping[str, Timing]) -> list[Line]:
    """Hold the best of batchkit against the best of each family."""
    slowest_first = sorted(peers, key=lambda peer: timings[peer.name].median, reverse=True)
    best = {peer.family: peer.name for peer in slowest_first}  # the last one of a family stays
    ours = best_of_ours(timings)
    return [
        Line(f"CIFAR-like epoch, {ours}", best[family], ratio(timings, ours, best[family]), target)
        for family, target in TARGETS.items()
        if family in best
    ]


def show(console: Console, measured: list[dict[str, Any]], timings: dict[str, Timing], rows: int) -> None:
    """Print what a transform takes, and what an epoch takes."""
    costs = Table(title=f"A batch of {SIZE} pictures, {SIDE} x {SIDE} x 3; bytes are those that it is given")
    costs.add_column("transform")
    for heading in ("µs a batch", "ns a byte", "a copy: ns a byte", "times a copy"):
        costs.add_column(heading, justify="right")
    for record in measured:
        costs.add_row(
            record["transform"],
            f"{record['microseconds_a_batch']:,.0f}",
            f"{record['ns_a_byte']:.2f}",
            f"{record['copy_ns_a_byte']:.3f}",
            f"{record['times_a_copy']:.1f}",
        )
    console.print(costs)
    quickest = best_of_ours(timings)
    epoch = Table(title=f"One epoch of {rows:,} pictures: shuffle, pad and crop, flip, normalise")
    epoch.add_column("contender")
    for heading in ("median ms", "fastest to slowest", "rows per second", f"{quickest} is faster"):
        epoch.add_column(heading, justify="right")
    for name, timing in sorted(timings.items(), key=lambda item: item[1].median):
        low, high = timing.spread
        epoch.add_row(
            name,
            f"{timing.median * 1e3:,.0f}",
            f"{low * 1e3:,.0f} to {high * 1e3:,.0f}",
            f"{rows / timing.median:,.0f}",
            f"{ratio(timings, quickest, name):.2f}x",
        )
    console.print(epoch)


def write(measured: list[dict[str, Any]], timings: dict[str, Timing], lines: list[Line], rows: int, path: Path) -> None:
    """Write what was measured as JSON."""
    quickest = best_of_ours(timings)
    record = {
        "batch": {"rows": SIZE, "picture": [SIDE, SIDE, 3]},
        "machine": {**machine(PACKAGES), "load": round(load(), 2)},
        "transforms": measured,
        "epoch": {
            "rows": rows,
            "seconds": {name: [round(second, 5) for second in timing.seconds] for name, timing in timings.items()},
            "best_of_batchkit": quickest,
            "times_the_best_of_batchkit": {name: round(ratio(timings, name, quickest), 3) for name in timings},
        },
        "lines": records(lines),
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def picture(timings: dict[str, Timing], lines: list[Line], rows: int, path: Path) -> None:
    """Draw the rows per second of everybody, and the targets."""
    quickest = best_of_ours(timings)
    notes = {name: f"{ratio(timings, name, quickest):.3g}x" for name in timings}
    title = f"{rows:,} pictures of {SIDE} x {SIDE} x 3 bytes: shuffle, crop, flip, normalise; batches of {SIZE}"
    draw(
        path,
        Rates(title, bars_of(timings, rows, notes), f"times {quickest}"),
        Targets("Against the best of each family", lines),
    )


def load() -> float:
    """Return how many processes wanted a core in the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, show, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=50_000, help=f"pictures of an epoch, at least {LEAST_ROWS}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.rows < LEAST_ROWS:
        parser.error(f"--rows {options.rows}: fewer than {LEAST_ROWS} do not show whether crops and flips are random")
    # Before a framework is imported: they are to say less, and to stay on the CPU.
    for name, value in {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "JAX_PLATFORMS": "cpu"}.items():
        os.environ.setdefault(name, value)
    console = Console(width=None if os.isatty(1) else 120)
    busy = load()
    if busy > 0.5:
        console.print(f"[bold]this machine is busy (load {busy:.1f}): the ratios will be rough[/]")
    measured = measure_transforms(options.rounds)
    timings, lines = measure_epoch(options.rows, options.rounds, console.print)
    show(console, measured, timings, options.rows)
    console.print(table("The CIFAR-like epoch", lines))
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "transforms.json"
    write(measured, timings, lines, options.rows, path)
    picture(timings, lines, options.rows, path.with_suffix(".png"))
    console.print(f"written: {path} and {path.stem}.png")


if __name__ == "__main__":
    main()
