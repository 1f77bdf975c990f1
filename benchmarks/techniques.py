"""Measure the classic ways to batch, which articles compare in words: ``make bench``.

Whole lists in memory, a batch function without generators, a plain generator, an
IterableDataset in a DataLoader, ``tf.data.Dataset.from_generator``, and batchkit: by peak
memory, time to the first batch, and rows per second, on ``.npy`` files of 1x and 8x the size,
read lazily where the technique allows it, in the order of the file. Every technique has two
processes of its own for each size: one is timed, in the other its memory is watched. Writes
``results/techniques.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from rich.console import Console
from rich.table import Table

from batchkit.bench import machine

RESULTS = Path(__file__).parent / "results"
WIDTH, SIZE = 256, 256
SCALES = (1, 8)

Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


# ------------------------------------------------------------------ the techniques


def mapped(folder: Path) -> Arrays:
    """Map the files into memory: nothing is read until it is used."""
    return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r")


def whole_lists(folder: Path) -> Iterator[Any]:
    """Read everything into lists, cut the lists, convert each cut."""
    x, y = np.load(folder / "x.npy").tolist(), np.load(folder / "y.npy").tolist()
    for i in range(0, len(y), SIZE):
        yield np.array(x[i : i + SIZE], np.float32), np.array(y[i : i + SIZE])


def batch_function(folder: Path) -> list[Any]:
    """Return the list of all batches: a function without ``yield``."""
    x, y = mapped(folder)
    return [(np.array(x[i : i + SIZE]), np.array(y[i : i + SIZE])) for i in range(0, len(y), SIZE)]


def plain_generator(folder: Path) -> Iterator[Any]:
    """Yield one batch after the other."""
    x, y = mapped(folder)
    for i in range(0, len(y), SIZE):
        yield np.array(x[i : i + SIZE]), np.array(y[i : i + SIZE])


def generated_rows(folder: Path) -> Iterator[Any]:
    """Yield one row after the other, as the two frameworks' generator wrappers are mostly fed."""
    x, y = mapped(folder)
    for row, label in zip(x, y, strict=True):
        yield np.array(row), label


def iterable_dataset(folder: Path) -> Iterable[Any]:
    """Let a DataLoader batch the rows of an IterableDataset."""
    from torch.utils.data import DataLoader, IterableDataset

    class Rows(IterableDataset[Any]):
        """The rows of the files."""

        def __iter__(self) -> Iterator[Any]:
            return generated_rows(folder)

    return DataLoader(Rows(), batch_size=SIZE)


def from_generator(folder: Path) -> Iterable[Any]:
    """Let tf.data batch the rows of a generator."""
    import tensorflow as tf

    signature = (tf.TensorSpec((WIDTH,), tf.float32), tf.TensorSpec((), tf.int64))
    rows = tf.data.Dataset.from_generator(lambda: generated_rows(folder), output_signature=signature)
    batches: Iterable[Any] = rows.batch(SIZE).prefetch(tf.data.AUTOTUNE)
    return batches


def batchkit_with(backend: str, executor: str = "threads") -> Callable[[Path], Iterable[Any]]:
    """Return batchkit over the same files: as it comes, with threads that read ahead, or without them."""

    def technique(folder: Path) -> Iterable[Any]:
        import batchkit as bk

        pipe = bk.from_npy({"x": folder / "x.npy", "y": folder / "y.npy"}).batch(SIZE)
        return bk.Loader(pipe, backend=backend, executor=executor)

    return technique


@dataclass(frozen=True)
class Technique:
    """One way to batch, and the modules that it needs: importing them is not measured."""

    name: str
    start: Callable[[Path], Iterable[Any]]
    modules: tuple[str, ...] = ()


TECHNIQUES = {
    technique.name: technique
    for technique in (
        Technique("whole lists in memory", whole_lists),
        Technique("batch function, no generator", batch_function),
        Technique("plain generator", plain_generator),
        Technique("IterableDataset in a DataLoader", iterable_dataset, ("torch",)),
        Technique("tf.data from_generator", from_generator, ("tensorflow",)),
        Technique("batchkit, numpy", batchkit_with("numpy"), ("batchkit",)),
        Technique("batchkit, numpy, no threads", batchkit_with("numpy", "inline"), ("batchkit",)),
        Technique("batchkit, torch", batchkit_with("torch"), ("batchkit", "torch", "batchkit_torch")),
        Technique(
            "batchkit, tensorflow", batchkit_with("tensorflow"), ("batchkit", "tensorflow", "batchkit_tensorflow")
        ),
        Technique("batchkit, jax", batchkit_with("jax"), ("batchkit", "jax", "batchkit_jax")),
    )
}


# ------------------------------------------------------------------ one measurement


def private_memory() -> int:
    """Return the bytes that this process alone holds: mapped files, which the system may drop, are not counted."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


class Peak:
    """Watches private memory while the block runs: from a thread, and whenever it is told to look."""

    def __enter__(self) -> Peak:
        self.baseline = self.highest = private_memory()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def look(self) -> None:
        """Look now."""
        self.highest = max(self.highest, private_memory())

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.look()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()


def watched(technique: Technique, folder: Path) -> dict[str, float]:
    """Run one epoch; return the megabytes at the peak beyond those at the beginning."""
    with Peak() as peak:
        for _ in technique.start(folder):
            peak.look()
    return {"peak_mb": (peak.highest - peak.baseline) / 2**20}


def timed(technique: Technique, folder: Path) -> dict[str, float]:
    """Run one epoch, and see that every row came once; return the time to the first batch, and the speed."""
    rows, total, first = 0, 0, 0.0
    begin = time.perf_counter()
    for batch in technique.start(folder):
        first = first or time.perf_counter() - begin
        labels = np.asarray(batch["y"] if isinstance(batch, dict) else batch[1])
        rows, total = rows + len(labels), total + int(labels.sum())
    seconds = time.perf_counter() - begin
    if total != int(np.load(folder / "y.npy").sum()):
        raise SystemExit(f"{technique.name} did not yield every row once")
    return {"rows": rows, "first_batch_ms": first * 1e3, "rows_per_second": rows / seconds}


MEASURES = {"watched": watched, "timed": timed}


def measure(name: str, folder: Path, measure: str) -> dict[str, float]:
    """Measure one technique in this process, after what any program would have done before."""
    technique = TECHNIQUES[name]
    for module in technique.modules:
        import_module(module)
    if "jax" in technique.modules:
        import_module("jax").device_put(np.zeros(1))  # the first use of JAX starts its runtime
    return MEASURES[measure](technique, folder)


@dataclass(frozen=True)
class Measurement:
    """What one technique cost at one size."""

    technique: str
    scale: int
    rows: int
    peak_mb: float
    first_batch_ms: float
    rows_per_second: float


# ------------------------------------------------------------------ all of them


def write_data(folder: Path, rows: int) -> None:
    """Write the files, warm in the system's cache for everybody alike."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.standard_normal((rows, WIDTH), dtype=np.float32))
    np.save(folder / "y.npy", rng.integers(0, 10, rows))


def measure_all(rows: int, console: Console) -> list[Measurement]:
    """Measure every technique that can run here at every scale, each in a fresh process."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "JAX_PLATFORMS": "cpu"}
    environment = {**quiet, **os.environ, "CUDA_VISIBLE_DEVICES": ""}
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {scale: Path(temporary) / f"{scale}x" for scale in SCALES}
        for scale, folder in folders.items():
            write_data(folder, rows * scale)
        for technique in TECHNIQUES.values():
            absent = [module for module in technique.modules if not find_spec(module)]
            if absent:
                console.print(f"{technique.name} is left out: {', '.join(absent)} is not installed")
                continue
            for scale, folder in folders.items():
                console.print(f"{technique.name}, {scale}x")
                numbers: dict[str, Any] = {}
                for name in MEASURES:
                    command = [sys.executable, __file__, "--one", technique.name, str(folder), name]
                    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                    numbers |= json.loads(done.stdout.splitlines()[-1])
                found.append(Measurement(technique.name, scale, **numbers))
    return found


def show(console: Console, found: list[Measurement], rows: int) -> None:
    """Print the table."""
    megabytes = rows * WIDTH * 4 / 2**20
    table = Table(title=f"1x: {rows:,} rows, {megabytes:.0f} MB; 8x: {8 * rows:,} rows, {8 * megabytes:.0f} MB")
    table.add_column("technique", no_wrap=True)
    for heading in ("peak MB", "first batch ms", "rows/s"):
        for scale in SCALES:
            table.add_column(f"{heading}, {scale}x", justify="right", no_wrap=True)
    for name in dict.fromkeys(one.technique for one in found):
        ours = [one for one in found if one.technique == name]
        table.add_row(
            name,
            *(f"{one.peak_mb:,.1f}" for one in ours),
            *(f"{one.first_batch_ms:,.1f}" for one in ours),
            *(f"{one.rows_per_second:,.0f}" for one in ours),
        )
    console.print(table)


def draw(found: list[Measurement], path: Path) -> None:
    """Draw the three measures side by side, both sizes of data, logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(one.technique for one in found))
    measures: list[tuple[str, Callable[[Measurement], float]]] = [
        ("peak memory, MB", lambda one: max(one.peak_mb, 0.1)),
        ("time to the first batch, ms", lambda one: one.first_batch_ms),
        ("rows per second", lambda one: one.rows_per_second),
    ]
    figure, panels = plt.subplots(1, 3, figsize=(13, 0.5 * len(names) + 1.4), sharey=True, layout="constrained")
    for axes, (title, value) in zip(panels, measures, strict=True):
        for scale, shade, shift in zip(SCALES, ("#8ecae6", "#1d5c7a"), (-0.2, 0.2), strict=True):
            values = [
                next(value(one) for one in found if (one.technique, one.scale) == (name, scale)) for name in names
            ]
            places = [place + shift for place in range(len(names))]
            drawn = axes.barh(places, values, height=0.38, color=shade, label=f"{scale}x the data")
            axes.bar_label(drawn, [f" {each:,.3g}" if each < 100 else f" {each:,.0f}" for each in values], fontsize=8)
        axes.set(xscale="log", title=title)
        axes.set_xlim(right=axes.get_xlim()[1] * 6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Measure, show, write and draw; with ``--one``, measure one technique and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="the rows of the 1x data")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    parser.add_argument("--one", nargs=3, metavar=("TECHNIQUE", "FOLDER", "MEASURE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, folder, kind = options.one
        print(json.dumps(measure(name, Path(folder), kind)))
        return
    console = Console(width=None if os.isatty(1) else 150)
    found = measure_all(options.rows, console)
    show(console, found, options.rows)
    options.results.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine(("batchkit-core", "numpy", "torch", "tensorflow-cpu", "jax")),
        "row": f"float32[{WIDTH}] and int64",
        "batch": SIZE,
        "measurements": [asdict(one) for one in found],
    }
    (options.results / "techniques.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(found, options.results / "techniques.png")
    console.print(f"written: {options.results / 'techniques.json'} and techniques.png")


if __name__ == "__main__":
    main()
