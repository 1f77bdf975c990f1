"""Load for minutes while somebody kills a worker process every second: nothing may be lost, doubled or changed.

    python tests/soak.py --seconds 300 --every 1 --seed 0

Every batch is compared with what plain NumPy makes of its rows, the order and the random numbers
with a loader that nobody disturbs, and every epoch must have each row exactly once. A killed
worker's step is computed again; workers note which rows they begin with in a file, so that it is
known how often that happened. The last line has the figures; the exit status is 1 if one is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from holdings import Holding, held, left_behind, parents

import batchkit as bk

ROWS, SIZE, WORKERS, PREFETCH = 1600, 16, 3, 2
NAP = 0.003
"""What a row takes, asleep: a worker is in the middle of a step nearly always, and the machine has nothing to do."""
MOST_GROWTH = 32.0
"""How many MB the caller's memory may grow after the first epochs."""
X = np.random.default_rng(0).standard_normal((ROWS, 16)).astype(np.float32)


@dataclass
class Soak:
    """What came of it."""

    seconds: float = 0.0
    batches: int = 0
    rows: int = 0
    epochs: int = 0
    kills: int = 0
    again: int = 0
    """Rows that were computed more than once, because their worker was killed in the middle of the step."""
    processes: int = 0
    """How many worker processes delivered a batch."""
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    growth: float = 0.0
    left: Counter[str] = field(default_factory=Counter)

    def problems(self) -> list[str]:
        """Return what is not as it must be."""
        said = {
            f"{self.lost} rows were lost": self.lost,
            f"{self.doubled} rows were doubled": self.doubled,
            f"{len(self.wrong)} batches were wrong, the first: {(self.wrong or [''])[0]}": self.wrong,
            f"memory grew by {self.growth:.1f} MB": self.growth > MOST_GROWTH,
            f"left behind: {dict(self.left)}": self.left,
            "no worker was killed": not self.kills,
            "no worker was killed in the middle of a step": not self.again,
            "no whole epoch was loaded": not self.epochs,
        }
        return [text for text, bad in said.items() if bad]

    def __str__(self) -> str:
        kinds = {"descriptor": "descriptors", "memory": "mappings", "thread": "threads", "process": "processes"}
        left = ", ".join(f"{self.left[kind]} {kinds}" for kind, kinds in kinds.items())
        return (
            f"{self.seconds:.0f} s: {self.batches} batches, {self.rows} rows, {self.kills} kills "
            f"({self.processes} worker processes, {self.again} rows computed again), lost {self.lost}, doubled "
            f"{self.doubled}, wrong {len(self.wrong)}, memory +{max(self.growth, 0):.1f} MB, left behind: {left}"
        )


def pipeline(seed: int, calls: str = "") -> bk.Pipeline:
    """Return what is loaded; without the file of ``calls`` the rows take no time."""

    def decode(row: Any) -> Any:
        if calls:
            with open(calls, "ab", buffering=0) as file:
                file.write(b".")  # appended, whoever else writes
            time.sleep(NAP)
        return {**row, "y": row["x"] * 2 + np.float32(row["row"])}

    def jitter(row: Any, rng: Any) -> Any:
        return {**row, "noise": rng.random(), "worker": os.getpid()}

    def pick(batch: Any, rng: Any) -> Any:
        return {**batch, "pick": rng.integers(0, 1000)}

    data = bk.from_arrays({"row": np.arange(ROWS), "x": X})
    return data.shuffle(seed).map(decode).random_map(jitter, seed=seed).batch(SIZE).random_map(pick, seed=seed)


class Killer(threading.Thread):
    """Kills a random worker process every so many seconds.

    By design a step is given up whose worker dies three times. That must not happen by chance:
    between two kills all steps are finished that were going on at the first of them.
    """

    def __init__(self, every: float, seed: int, found: Soak) -> None:
        super().__init__(name="killer", daemon=True)
        self._every, self._random, self._found = every, random.Random(seed), found
        self._over = threading.Event()

    def run(self) -> None:
        """Kill until :meth:`stop`."""
        enough = 0
        while not self._over.wait(self._every * self._random.uniform(0.5, 1.5)):
            workers = self._workers()
            if workers and self._found.batches >= enough:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._random.choice(workers), signal.SIGKILL)
                    self._found.kills += 1
                    enough = self._found.batches + 2 * (PREFETCH + WORKERS)

    def stop(self) -> None:
        """End."""
        self._over.set()
        self.join()

    def _workers(self) -> list[int]:
        """Return the children of the fork server, which is a child of this process."""
        known = parents()
        return sorted(pid for pid, parent in known.items() if known.get(parent) == os.getpid())


def resident() -> float:
    """Return the resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(seconds: float, every: float = 1.0, seed: int = 0) -> Soak:
    """Load for so many seconds, and to the end of the epoch, while workers are killed."""
    found, before = Soak(), held()
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder) / "calls"
        killer = Killer(every, seed, found)
        began = time.monotonic()
        during = _loaded(seconds, seed, str(calls), killer, found)
        found.seconds = time.monotonic() - began
        found.again = calls.stat().st_size - found.rows
    found.left = Counter(kind for kind, *_ in left_behind(before, during))
    return found


def _loaded(seconds: float, seed: int, calls: str, killer: Killer, found: Soak) -> set[Holding]:
    ends, memory, processes = time.monotonic() + seconds, 0.0, set[int]()
    undisturbed = bk.Loader(pipeline(seed), executor="inline")
    options = {"executor": "processes", "workers": WORKERS, "prefetch": PREFETCH, "timeout": 60}
    with bk.Loader(pipeline(seed, calls), **options) as loader, undisturbed:
        during = set[Holding]()
        killer.start()
        try:
            while time.monotonic() < ends:
                seen: list[int] = []
                for number, (batch, same) in enumerate(zip(loader, undisturbed, strict=True)):
                    seen += batch["row"].tolist()
                    processes |= set(batch["worker"].tolist())
                    if (wrong := _difference(batch, same)) is not None:
                        found.wrong.append(f"epoch {found.epochs}, step {number}: {wrong}")
                    found.batches, found.rows = found.batches + 1, found.rows + len(batch["row"])
                    found.growth = max(found.growth, resident() - memory) if memory else 0.0
                times = np.bincount(seen, minlength=ROWS)
                found.lost, found.doubled = found.lost + int((times == 0).sum()), found.doubled + int((times > 1).sum())
                found.epochs += 1
                memory = memory or (resident() if found.epochs > 1 else 0.0)
                during |= held()
        finally:
            killer.stop()
    found.processes = len(processes)
    return during


def _difference(batch: Any, same: Any) -> str | None:
    """Return how a batch differs from what it must be, if it does."""
    x = X[same["row"]]
    wanted = {**same, "x": x, "y": x * 2 + same["row"][:, None].astype(np.float32), "worker": batch["worker"]}
    if [*batch] != [*wanted]:
        return f"the leaves are {[*batch]}"
    for leaf, want in wanted.items():
        if batch[leaf].dtype != want.dtype or batch[leaf].tobytes() != want.tobytes():
            return f"leaf {leaf!r} is {batch[leaf].tolist()}, not {want.tolist()}"
    return None


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to load")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two kills, half as many to half more")
    parser.add_argument("--seed", type=int, default=0, help="of the order, the random numbers and the killer")
    options = parser.parse_args()
    found = soak(options.seconds, options.every, options.seed)
    print(found)
    for problem in found.problems():
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if found.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
