"""Measure sequences: packing, bucketing, padding, filtering, and what does not grow with the data.

Every line is a ratio against a named peer, or a bound, measured in this one run. A target that
is missed is printed as missed. Writes ``results/sequences.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

import batchkit as bk
import sequence_peers as peers
from batchkit.bench import Contender, Timing, machine, ratio, take_turns
from lines import Line, records, table
from pictures import Targets, draw
from sequence_peers import BINS, BOUNDARIES, LONGEST, PACKED, SHORTEST, SIZE, Sequences

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("batchkit-core", "numpy", "torch", "tensorflow-cpu", "grain")
FEW, MANY = 10_000, 1_000_000_000  # rows of the virtual source
STEPS = 512  # two blocks of a permutation that is evaluated block by block


# ------------------------------------------------------------------ batchkit's side


def sequences(data: Sequences) -> Any:
    """Return the pipeline of the tokens."""
    return bk.from_ragged({"tokens": data.tokens}, data.offsets)


def packed(data: Sequences, method: str) -> Any:
    """Return what packs."""
    return sequences(data).shuffle(seed=0).pack(LONGEST, method=method, bins=BINS).batch(PACKED)


def bucketed(data: Sequences, shuffled: bool = True) -> Any:
    """Return what buckets."""
    pipe = sequences(data).shuffle(seed=0) if shuffled else sequences(data)
    return pipe.bucket_batch(SIZE, boundaries=list(BOUNDARIES), pad_to="longest")


def padded(data: Sequences) -> Any:
    """Return what pads."""
    return sequences(data).shuffle(seed=0).padded_batch(SIZE)


def long_enough(row: Any) -> Any:
    """Say which rows are kept: of one row, or of columns."""
    return row["length"] >= SHORTEST


def filtered(data: Sequences, whole: bool) -> Any:
    """Return what filters rows, or whole batches that are cut anew."""
    pipe = bk.from_arrays({"features": data.features, "length": data.lengths}).shuffle(seed=0)
    if whole:
        return pipe.batch(1024).filter(long_enough).rebatch(256)
    return pipe.filter(long_enough).batch(256)


class Virtual:
    """A source of any number of rows, which are made when they are read."""

    kind = "virtual"

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.schema = {"x": bk.LeafSpec(np.dtype(np.int64), ())}

    def __len__(self) -> int:
        return self._rows

    def fingerprint(self) -> str:
        """Return what tells it from others."""
        return f"virtual:{self._rows}"

    def gather(self, rows: npt.NDArray[np.int64], out: Any = None) -> Any:
        """Return rows."""
        if out is None:
            return {"x": rows * 3}
        np.multiply(rows, 3, out=out["x"])
        return out


def virtual(rows: int) -> Any:
    """Return its pipeline; passes follow each other in one epoch, so that few rows have as many steps."""
    return bk.from_source(Virtual(rows)).shuffle(seed=0).repeat().batch(256)


# ------------------------------------------------------------------ the lines


def ours(name: str, pipe: Any, backend: str = "numpy", **options: Any) -> Contender:
    """Return a contender of batchkit's."""
    loader = bk.Loader(pipe, backend=backend, **options)
    return Contender(name, lambda: loader)


def proved(contenders: Sequence[Contender], count: Callable[[Any], int], wanted: int) -> None:
    """Run an epoch of each before it is timed, and see that nothing is lost.

    Raises:
        SystemExit: one did not deliver what it should.
    """
    for contender in contenders:
        found = sum(count(batch) for batch in contender.epoch())
        if found != wanted:
            raise SystemExit(f"{contender.name} delivered {found:,} in an epoch, where there are {wanted:,}")


def tokens_in(batch: Any) -> int:
    """Return how many tokens a batch has; 0 is padding."""
    return int(np.count_nonzero(np.asarray(batch["tokens"] if isinstance(batch, dict) else batch)))


def filled_share(batches: Iterable[Any]) -> float:
    """Return which share of what batches hold is no padding."""
    held, real = 0, 0
    for batch in batches:
        real, held = real + tokens_in(batch), held + np.size(batch["tokens"] if isinstance(batch, dict) else batch)
    return real / held


def quickest(timings: dict[str, Timing], names: Sequence[str]) -> str:
    """Return the one of these that was the quickest."""
    return min(names, key=lambda name: timings[name].median)


def packing(data: Sequences, rounds: int) -> list[Line]:
    """Sequences a second, and how full the packed rows are."""
    theirs = peers.packing(data)
    mine = [ours(f"batchkit, {method}", packed(data, method)) for method in ("first_fit", "best_fit")]
    proved([*theirs, *mine], tokens_in, len(data.tokens))
    shares = {contender.name: filled_share(contender.epoch()) for contender in (*theirs, *mine)}
    timings, lines = take_turns([*theirs, *mine], rounds), []
    for one, other in zip(mine, theirs, strict=True):
        lines.append(
            Line(one.name.replace("batchkit", "packing"), other.name, ratio(timings, one.name, other.name), 15)
        )
        work = f"{one.name.replace('batchkit', 'packing')}: filled share {shares[one.name]:.4f}"
        lines.append(Line(work, f"{other.name}: {shares[other.name]:.4f}", shares[one.name] / shares[other.name], 1.0))
    return lines


def bucketing(data: Sequences, rounds: int) -> list[Line]:
    """Sequences a second; padding is compared in one order for both, so that chance has no part in it."""
    theirs = peers.bucketing(data)
    mine = [ours("batchkit", bucketed(data))]
    proved([*theirs, *mine], tokens_in, len(data.tokens))
    (their_rows,), our_rows = peers.bucketing(data, shuffled=False), ours("batchkit", bucketed(data, shuffled=False))
    pad, their_pad = (1 / filled_share(each.epoch()) - 1 for each in (our_rows, their_rows))
    timings = take_turns([*theirs, *mine], rounds)
    return [
        Line("bucketing", theirs[0].name, ratio(timings, "batchkit", theirs[0].name), 15),
        Line(f"bucketing: padding {pad:.3f} a token", f"tf.data: {their_pad:.3f}", pad / their_pad, 1.0, at_most=True),
    ]


def padding(data: Sequences, rounds: int) -> list[Line]:
    """Shuffled sequences, padded to the longest of their batch, as torch tensors."""
    theirs, mine = peers.padding(data), [ours("batchkit", padded(data), "torch", device="cpu")]
    proved([*theirs, *mine], tokens_in, len(data.tokens))
    timings = take_turns([*theirs, *mine], rounds)
    best = quickest(timings, [each.name for each in theirs])
    return [Line("shuffled padding, as torch tensors", best, ratio(timings, "batchkit", best), 1.5)]


def filtering(data: Sequences, rounds: int) -> list[Line]:
    """Rows filtered and batched: one by one, and in whole batches."""
    theirs = peers.filtering(data)
    mine = [
        ours("filter and batch, row by row", filtered(data, whole=False), executor="inline"),
        ours("filter and batch, whole batches", filtered(data, whole=True), executor="inline"),
    ]
    wanted = int((data.lengths >= SHORTEST).sum())
    proved([*theirs, *mine], lambda batch: len(batch["length"]), wanted)
    timings = take_turns([*theirs, *mine], rounds)
    return [Line(each.name, theirs[0].name, ratio(timings, each.name, theirs[0].name), 10) for each in mine]


def scale(data: Sequences, rounds: int) -> list[Line]:
    """What the number of rows must not change: at 10**9 of them against 10**4, each in turn."""
    kinds = {"the order": _order_seconds, "a step": _step_seconds, "the first batch": _first_seconds}
    lines = []
    for name, seconds in kinds.items():
        seconds(FEW), seconds(MANY)
        found = [(seconds(MANY), seconds(FEW)) for _ in range(5 * rounds)]
        times = statistics.median(many / few for many, few in found)
        lines.append(Line(f"{name}, {MANY:,} rows", f"{FEW:,} rows", times, 1.2, at_most=True))
    return lines


def _order_seconds(rows: int) -> float:
    """Return how long the row numbers of so many steps take, with nothing read."""
    plan = bk.Loader(virtual(rows), executor="inline").plan
    began = time.perf_counter()
    for number in range(STEPS):
        for _ in plan.batches.requests(number, 0, (0, 1)):  # type: ignore[union-attr]
            pass
    return time.perf_counter() - began


def _step_seconds(rows: int) -> float:
    """Return how long so many steps take behind the first."""
    with bk.Loader(virtual(rows), executor="inline") as loader:
        iterator = iter(loader)
        next(iterator)
        began = time.perf_counter()
        for _ in range(STEPS):
            next(iterator)
        return time.perf_counter() - began


def _first_seconds(rows: int) -> float:
    """Return how long it takes from the description to the first batch."""
    began = time.perf_counter()
    with bk.Loader(virtual(rows), executor="inline") as loader:
        next(iter(loader))
    return time.perf_counter() - began


def states(data: Sequences, rounds: int) -> list[Line]:
    """What it costs to take the state in every step."""
    loader = bk.Loader(padded(data), executor="inline")

    def with_states() -> Iterable[Any]:
        for batch in loader:
            loader.state_dict()
            yield batch

    def without() -> Iterable[Any]:
        yield from loader

    timings = take_turns([Contender("with", with_states), Contender("without", without)], 3 * rounds)
    times = 1 / ratio(timings, "with", "without")
    lines = [Line("an epoch, with state_dict() in every step", "without", times, 1.03, at_most=True)]
    held = packed(data, "first_fit")
    for name, pipe, bound in (("by number", padded(data), 20), (f"{BINS} open rows being packed", held, 200)):
        seconds, size = _state_seconds(pipe)
        lines.append(Line(f"state_dict(), {name}", f"JSON of {size} bytes", 1e6 * seconds, bound, "us", at_most=True))
    return lines


def _state_seconds(pipe: Any, steps: int = 100) -> tuple[float, int]:
    """Return the median time of state_dict() over some steps, and the size of the largest."""
    taken, size = [], 0
    with bk.Loader(pipe, executor="inline") as loader:
        for _ in itertools.islice(loader, steps):
            began = time.perf_counter()
            state = loader.state_dict()
            taken.append(time.perf_counter() - began)
            size = max(size, len(json.dumps(state)))
    return statistics.median(taken), size


@dataclass(frozen=True)
class Part:
    """Lines that are measured together, and the verbs that batchkit needs for them."""

    measure: Callable[[Sequences, int], list[Line]]
    verbs: tuple[str, ...] = ()

    @property
    def lacking(self) -> list[str]:
        """The verbs that there are not."""
        return [verb for verb in self.verbs if not hasattr(bk.Pipeline, verb)]


PARTS = (
    Part(packing, ("pack",)),
    Part(bucketing, ("bucket_batch",)),
    Part(padding),
    Part(filtering, ("filter", "rebatch")),
    Part(scale),
    Part(states),
)


def main() -> None:
    """Measure, show, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=20_000, help="how many there are")
    parser.add_argument("--only", help="the name of one part: " + ", ".join(part.measure.__name__ for part in PARTS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    options = parser.parse_args()
    console = Console(width=None if os.isatty(1) else 120)
    data, lines = Sequences.of(options.sequences), list[Line]()
    for part in PARTS:
        name = part.measure.__name__
        if options.only not in (None, name):
            continue
        if part.lacking:
            console.print(f"left out: {name}, for which batchkit has no {', '.join(part.lacking)}")
            continue
        lines += part.measure(data, options.rounds)
        console.print(f"measured: {name}")
    console.print(table(f"{len(data):,} sequences of {data.lengths.mean():.0f} tokens on average", lines))
    options.results.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(PACKAGES), "lines": records(lines)}
    path = options.results / "sequences.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    draw(path.with_suffix(".png"), Targets("Sequences against their targets", lines))
    console.print(f"written: {path} and {path.stem}.png")


if __name__ == "__main__":
    main()
