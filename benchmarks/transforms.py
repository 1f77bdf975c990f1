"""Measure ``batchkit.transforms``: each against a plain copy, and an epoch of CIFAR-like augmentation.

The first table has what every transform takes for a batch of 128 pictures of 32 x 32 x 3, in ns a
byte that it is given, against ``np.copyto`` of the same bytes. The second is an epoch over 50,000
such pictures: shuffled, padded by 4 and cropped, flipped, normalised to float32, against the same in
straightforward NumPy. Contenders take turns. Writes ``results/transforms.json``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from rich.table import Table

import batchkit as bk
from batchkit import transforms as tf
from batchkit.bench import Contender, Timing, machine, ratio, take_turns
from batchkit.random import RowRandom

RESULTS = Path(__file__).parent / "results"
SIZE, SIDE, PADDING = 128, 32, 4
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
CALLS = 20  # in a row, so that reading the clock does not count
TARGET = 1.3


def transform_calls() -> dict[str, tuple[Callable[[], Any], np.ndarray]]:
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


def copied(source: np.ndarray) -> Callable[[], None]:
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


class Straightforward:
    """The same epoch as one writes it by hand: one permutation, then whole batches in NumPy."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray) -> None:
        self.pictures, self.labels = pictures, labels
        self.random = np.random.default_rng(0)
        self.mean, self.std = np.array(MEAN, np.float32), np.array(STD, np.float32)

    def epoch(self, augment: Callable[[np.ndarray], np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of an epoch in a new order."""
        order = self.random.permutation(len(self.pictures))
        for begin in range(0, len(order), SIZE):
            rows = order[begin : begin + SIZE]
            yield {"image": augment(self.pictures[rows]), "label": self.labels[rows]}

    def _draw(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        places = 2 * PADDING + 1
        return (
            self.random.integers(places, size=rows),
            self.random.integers(places, size=rows),
            self.random.random(rows),
        )

    def _padded(self, x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))

    def by_index(self, x: np.ndarray) -> np.ndarray:
        """Crop with index arrays, flip with ``np.where``."""
        tops, lefts, coin = self._draw(len(x))
        rows, side = np.arange(len(x))[:, None, None], np.arange(SIDE)
        x = self._padded(x)[rows, (tops[:, None] + side)[:, :, None], (lefts[:, None] + side)[:, None, :]]
        x = np.where((coin < 0.5)[:, None, None, None], x[:, :, ::-1], x)
        return (x.astype(np.float32) / 255 - self.mean) / self.std

    def by_window(self, x: np.ndarray) -> np.ndarray:
        """Crop with ``sliding_window_view``, flip with ``np.where``."""
        tops, lefts, coin = self._draw(len(x))
        windows = sliding_window_view(self._padded(x), (SIDE, SIDE), axis=(1, 2))
        x = windows[np.arange(len(x)), tops, lefts].transpose(0, 2, 3, 1)
        x = np.where((coin < 0.5)[:, None, None, None], x[:, :, ::-1], x)
        return np.ascontiguousarray((x.astype(np.float32) / 255 - self.mean) / self.std)

    def with_care(self, x: np.ndarray) -> np.ndarray:
        """Crop with ``sliding_window_view``, flip only the rows that are to be, and compute in place."""
        tops, lefts, coin = self._draw(len(x))
        windows = sliding_window_view(self._padded(x), (SIDE, SIDE), axis=(1, 2))
        x = np.ascontiguousarray(windows[np.arange(len(x)), tops, lefts].transpose(0, 2, 3, 1))
        flipped = coin < 0.5
        x[flipped] = x[flipped, :, ::-1]
        y = x.astype(np.float32)
        y *= 1 / (255 * self.std)
        y -= self.mean / self.std
        return y


def measure_epoch(rows: int, rounds: int) -> tuple[dict[str, Timing], str]:
    """Return the timings of an epoch by contender, and which of the hand-written ones is best."""
    drawn = np.random.default_rng(0)
    pictures = drawn.integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8)
    labels = drawn.integers(0, 10, rows)
    pipe = bk.from_arrays({"image": pictures, "label": labels}).shuffle(seed=0).batch(SIZE)
    pipe = pipe.random_map(tf.random_crop, leaf="image", padding=PADDING).random_map(tf.random_flip, leaf="image")
    pipe = pipe.map(tf.normalize, leaf="image", mean=MEAN, std=STD)
    by_hand = Straightforward(pictures, labels)
    peers = {
        "NumPy, index arrays": by_hand.by_index,
        "NumPy, windows": by_hand.by_window,
        "NumPy, with care": by_hand.with_care,
    }
    contenders = [Contender(name, lambda augment=augment: by_hand.epoch(augment)) for name, augment in peers.items()]
    with (
        bk.Loader(pipe, executor="inline") as inline,
        bk.Loader(pipe, executor="threads") as threads,
    ):
        contenders += [
            Contender("batchkit, inline", lambda: inline),
            Contender("batchkit, threads", lambda: threads),
        ]
        for contender in contenders:  # warm, and seen to be whole
            shapes = [(len(batch["label"]), batch["image"].shape, batch["image"].dtype) for batch in contender.epoch()]
            whole = [(count, (count, SIDE, SIDE, 3), np.float32) for count, *_ in shapes]
            if shapes != whole or sum(count for count, *_ in shapes) != rows:
                raise SystemExit(f"{contender.name} did not yield every row of {rows:,} as float32 pictures")
        timings = take_turns(contenders, rounds)
    return timings, min(peers, key=lambda name: timings[name].median)


def show(console: Console, records: list[dict[str, Any]], timings: dict[str, Timing], best: str) -> None:
    """Print the two tables."""
    table = Table(title=f"A batch of {SIZE} pictures, {SIDE} x {SIDE} x 3; bytes are those that it is given")
    table.add_column("transform")
    for heading in ("µs a batch", "ns a byte", "a copy: ns a byte", "times a copy"):
        table.add_column(heading, justify="right")
    for record in records:
        table.add_row(
            record["transform"],
            f"{record['microseconds_a_batch']:,.0f}",
            f"{record['ns_a_byte']:.2f}",
            f"{record['copy_ns_a_byte']:.3f}",
            f"{record['times_a_copy']:.1f}",
        )
    console.print(table)
    table = Table(title="One epoch: shuffle, pad and crop, flip, normalise")
    table.add_column("contender")
    for heading in ("median ms", "fastest to slowest", f"times '{best}'"):
        table.add_column(heading, justify="right")
    for name, timing in sorted(timings.items(), key=lambda item: item[1].median):
        low, high = timing.spread
        table.add_row(
            name,
            f"{timing.median * 1e3:,.0f}",
            f"{low * 1e3:,.0f} to {high * 1e3:,.0f}",
            f"{ratio(timings, name, best):.2f}",
        )
    console.print(table)
    for name in ("batchkit, inline", "batchkit, threads"):
        reached = ratio(timings, name, best)
        verdict = "met" if reached >= TARGET else "[bold red]MISSED[/]"
        console.print(f"{name}: {reached:.2f} times as fast as '{best}', target {TARGET}: {verdict}")


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args(None if arguments is None else list(arguments))
    console = Console(width=None if os.isatty(1) else 120)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        console.print(f"[bold]this machine is busy (load {load:.1f}): the ratios will be rough[/]")
    records = measure_transforms(options.rounds)
    timings, best = measure_epoch(options.rows, options.rounds)
    show(console, records, timings, best)
    options.results.mkdir(parents=True, exist_ok=True)
    record = {
        "batch": {"rows": SIZE, "picture": [SIDE, SIDE, 3]},
        "machine": {**machine(("batchkit-core", "numpy")), "load": round(load, 2)},
        "transforms": records,
        "epoch": {
            "rows": options.rows,
            "seconds": {name: [round(second, 5) for second in timing.seconds] for name, timing in timings.items()},
            "reference": best,
            "times_the_reference": {name: round(ratio(timings, name, best), 3) for name in timings},
            "target": TARGET,
        },
    }
    path = options.results / "transforms.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
