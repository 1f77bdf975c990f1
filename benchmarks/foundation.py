"""Measure batchkit against its peers on the Foundation's workload: ``make bench``.

200,000 rows of 64 float32 and an int64 label in memory, batches of 256, one epoch including
its shuffle. Every claim is a ratio between two contenders that took turns in this one run;
a target that is missed is printed as missed. Writes ``results/foundation.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import batchkit as bk
from batchkit.bench import Contender, Timing, machine, ratio, take_turns
from peers import Workload, grain_peers, numpy_loops, tensorflow_peers, torch_peers
from pictures import Rates, bars_of, draw

RESULTS = Path(__file__).parent / "results"
PLAIN = "plain loop"
BACKENDS = ("numpy", "torch", "tensorflow", "jax")
PACKAGES = ("batchkit-core", "numpy", "torch", "tensorflow-cpu", "jax", "grain")


@dataclass(frozen=True)
class Target:
    """A claim: ``contender`` is at least ``least`` times as fast as the best of the ``references``."""

    contender: str
    references: tuple[str, ...]
    least: float
    claim: str


TARGETS = (
    Target("batchkit numpy", (PLAIN,), 1.0, "NumPy backend: no slower than the plain loop"),
    Target("batchkit numpy", (PLAIN,), 1.2, "NumPy backend: what slots and take make possible"),
    Target("batchkit torch", (PLAIN,), 0.8, "torch backend, against the plain loop"),
    Target("batchkit tensorflow", (PLAIN,), 0.6, "TensorFlow backend, against the plain loop"),
    Target("batchkit torch", ("DataLoader",), 5.0, "against the best torch DataLoader"),
    Target("batchkit tensorflow", ("tf.data",), 10.0, "against the best tf.data"),
    Target("batchkit numpy", ("Grain",), 10.0, "against the best Grain"),
)
OWN_TIME = 25.0  # µs of batchkit's own for a two-leaf batch


def ours(work: Workload, backend: str) -> list[Contender]:
    """Return batchkit with that backend, inline: every iteration is another epoch, shuffled anew."""
    if backend != "numpy" and not find_spec(backend):
        return []
    pipe = bk.from_arrays({"x": work.x, "y": work.y}).shuffle(seed=0).batch(work.size)
    loader = bk.Loader(pipe, backend=backend, executor="inline")
    return [Contender(f"batchkit {backend}", lambda: loader)]


def warmed_up(contenders: list[Contender], work: Workload) -> list[Contender]:
    """Run one epoch of each, and see that it was a whole one."""
    for contender in contenders:
        rows, total = 0, 0
        for batch in contender.epoch():
            labels = np.asarray(batch["y"] if isinstance(batch, dict) else batch[1])
            rows, total = rows + len(labels), total + int(labels.sum())
        if (rows, total) != (len(work.y), int(work.y.sum())):
            raise SystemExit(f"{contender.name} yielded {rows:,} rows, not every row of {len(work.y):,} once")
    return contenders


def gather_contenders(work: Workload, console: Console) -> list[Contender]:
    """Return everybody who can run here, warmed up.

    One family after the other, torch first: its workers are forked in the warm-up, before
    TensorFlow and JAX have started threads that do not survive a fork.
    """
    families: list[tuple[str, Callable[[], list[Contender]]]] = [
        ("numpy", lambda: numpy_loops(work) + ours(work, "numpy")),
        ("torch", lambda: torch_peers(work) + ours(work, "torch")),
        ("tensorflow", lambda: ours(work, "tensorflow") + tensorflow_peers(work)),
        ("jax", lambda: ours(work, "jax")),
        ("grain", lambda: grain_peers(work)),
    ]
    everybody: list[Contender] = []
    for name, make in families:
        console.print(f"warming up: {name}")
        family = warmed_up(make(), work)
        if not family:
            console.print(f"{name} is not installed, and is left out")
        everybody += family
    return everybody


def judge(timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """Return for every target what was measured, and whether it is met."""
    verdicts = []
    for target in TARGETS:
        rivals = [name for name in timings if name.startswith(target.references)]
        if not rivals or target.contender not in timings:
            continue
        best = min(rivals, key=lambda name: timings[name].median)
        measured = ratio(timings, target.contender, best)
        verdicts.append(
            {
                "claim": target.claim,
                "contender": target.contender,
                "reference": best,
                "target": target.least,
                "measured": measured,
                "met": measured >= target.least,
            }
        )
    return verdicts


def own_time(timings: dict[str, Timing], steps: int) -> float:
    """Return batchkit's own time in µs a step: what it takes beyond a bare ``take`` into one buffer."""
    pairs = zip(timings["batchkit numpy"].seconds, timings["bare take"].seconds, strict=True)
    return float(np.median([ours - bare for ours, bare in pairs])) / steps * 1e6


def show(
    console: Console, timings: dict[str, Timing], verdicts: list[dict[str, Any]], work: Workload, own: float
) -> None:
    """Print the two tables."""
    table = Table(title="One epoch, shuffle included")
    table.add_column("contender")
    for heading in ("median ms", "fastest to slowest", "rows per second", "times the plain loop"):
        table.add_column(heading, justify="right")
    for name, timing in sorted(timings.items(), key=lambda item: item[1].median):
        low, high = timing.spread
        table.add_row(
            name,
            f"{timing.median * 1e3:,.1f}",
            f"{low * 1e3:,.1f} to {high * 1e3:,.1f}",
            f"{len(work.x) / timing.median:,.0f}",
            f"{ratio(timings, name, PLAIN):.3g}",
        )
    console.print(table)

    table = Table(title="Targets")
    for heading in ("claim", "reference"):
        table.add_column(heading)
    for heading in ("target", "measured", ""):
        table.add_column(heading, justify="right")
    for verdict in verdicts:
        table.add_row(
            verdict["claim"],
            verdict["reference"],
            f"{verdict['target']:.1f}x",
            f"{verdict['measured']:.2f}x",
            "met" if verdict["met"] else "[bold red]MISSED[/]",
        )
    met = "met" if own <= OWN_TIME else "[bold red]MISSED[/]"
    table.add_row("NumPy backend: own time a batch", "bare take", f"{OWN_TIME:.0f} µs", f"{own:.1f} µs", met)
    console.print(table)


def picture(timings: dict[str, Timing], work: Workload, path: Path) -> None:
    """Draw the rows per second of everybody."""
    notes = {name: f"{ratio(timings, name, PLAIN):.3g}x" for name in timings}
    title = f"{len(work.x):,} rows of 64 float32 and a label, batches of {work.size}, shuffled"
    draw(path, Rates(title, bars_of(timings, len(work.x), notes), "times the plain loop"))


def write(timings: dict[str, Timing], verdicts: list[dict[str, Any]], work: Workload, own: float, path: Path) -> None:
    """Write what was measured as JSON."""
    record = {
        "workload": {"rows": len(work.x), "leaves": ["float32[64]", "int64"], "batch": work.size, "steps": work.steps},
        "machine": machine(PACKAGES),
        "seconds": {name: [round(second, 6) for second in timing.seconds] for name, timing in timings.items()},
        "times_the_plain_loop": {name: round(ratio(timings, name, PLAIN), 3) for name in timings},
        "own_microseconds_a_step": round(own, 2),
        "targets": [{**verdict, "measured": round(verdict["measured"], 3)} for verdict in verdicts],
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def load() -> float:
    """Return how many processes wanted a core in the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, show, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args(None if arguments is None else list(arguments))

    # Before a framework is imported: they are to say less, and to stay on the CPU.
    for name, value in {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "JAX_PLATFORMS": "cpu"}.items():
        os.environ.setdefault(name, value)
    console = Console(width=None if os.isatty(1) else 120)
    busy = load()
    if busy > 0.5:
        console.print(f"[bold]this machine is busy (load {busy:.1f}): the ratios will be rough[/]")
    work = Workload.of(options.rows)
    contenders = gather_contenders(work, console)
    timings = take_turns(contenders, options.rounds, told=console.print)
    verdicts, own = judge(timings), own_time(timings, work.steps)
    show(console, timings, verdicts, work, own)
    options.results.mkdir(parents=True, exist_ok=True)
    write(timings, verdicts, work, own, options.results / "foundation.json")
    picture(timings, work, options.results / "foundation.png")
    console.print(f"written: {options.results / 'foundation.json'} and foundation.png")


if __name__ == "__main__":
    main()
