"""A process that loads is killed a hundred times; what it recorded is what one that nobody disturbs would have.

Run as a program, this file is the process that is killed: it goes on from the last whole line of its record.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk

KILLS = 100
ROWS, LENGTH = 400, 64
MOST_SECONDS = 0.04  # from the first batch of a process to its death
PAUSE = 0.001  # seconds between batches: a process delivers some dozens in its life
EXECUTORS = (*["inline"] * 4, *["threads"] * 4, *["auto"] * 3, "processes")


# -- the process that is killed


def jittered(row: Any, rng: Any) -> Any:
    """Change the values by what is drawn."""
    return {"x": row["x"] + rng.integers(0, 1000)}


def is_kept(row: Any) -> bool:
    """Leave out every seventh row."""
    return bool(row["x"][0] % 7)


def sequences(rows: int, seed: int) -> bk.Pipeline:
    """Return rows of 1 to 32 numbers."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(1, 33, rows)])
    return bk.from_ragged({"x": rng.integers(0, 1 << 30, offsets[-1])}, offsets)


def pipeline() -> bk.Pipeline:
    """Return what is loaded: all that holds rows back, as far as it exists.

    One epoch has some dozens of batches, so that epochs end between two deaths.
    """
    pipe: Any = sequences(ROWS, 0).shuffle(seed=1)
    if hasattr(bk, "mix"):
        pipe = bk.mix([pipe, sequences(ROWS // 4, 2).shuffle(seed=2)], weights=[3, 1], stop="all")
    pipe = pipe.random_map(jittered, seed=3)
    if hasattr(bk.Pipeline, "filter"):
        pipe = pipe.filter(is_kept).shuffle(seed=4, window=50)
    if hasattr(bk.Pipeline, "pack"):
        return pipe.pack(LENGTH, bins=8).batch(4).repeat(2)
    return pipe.repeat(2).padded_batch(12, length=32)


def lines(record: Path) -> list[dict[str, Any]]:
    """Return what was recorded; a last line that was torn is ignored, and cut off."""
    if not record.exists():
        return []
    text = record.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(record, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def digest(batch: Any) -> str:
    """Return a hash of dtypes, shapes and bytes."""
    found = hashlib.blake2b(digest_size=8)
    for name, leaf in batch.items():
        found.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return found.hexdigest()


def consume(record: Path, executor: str, workers: int, until: int) -> None:
    """Go on to batch ``until``, and append to the record each batch's digest and the state after it."""
    done = lines(record)
    count = "auto" if executor == "auto" else workers
    loader = bk.Loader(pipeline(), executor=executor, workers=count, prefetch=workers)
    if done:
        loader.load_state_dict(done[-1]["state"])
    with record.open("ab", buffering=0) as file, loader:
        while len(done) < until:
            for batch in loader:
                done.append({"digest": digest(batch), "state": loader.state_dict()})
                file.write(json.dumps({"number": len(done) - 1, **done[-1]}).encode() + b"\n")
                if len(done) >= until:
                    return
                time.sleep(PAUSE)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("executor")
    parser.add_argument("workers", type=int)
    parser.add_argument("until", type=int)
    consume(**vars(parser.parse_args()))


# -- the one that kills


def started(record: Path, executor: str, workers: int, until: int) -> subprocess.Popen[bytes]:
    """Start the process."""
    return subprocess.Popen([sys.executable, __file__, str(record), executor, str(workers), str(until)])


def finished(record: Path, executor: str, workers: int, until: int) -> list[dict[str, Any]]:
    """Run the process to its end, and return the record."""
    with started(record, executor, workers, until) as process:
        assert process.wait(120) == 0
    return lines(record)


def killed(record: Path, chance: random.Random) -> None:
    """Start the process, and kill it some time after it has recorded something; one in ten at any time before."""
    size = record.stat().st_size if record.exists() else 0
    with started(record, chance.choice(EXECUTORS), chance.randint(1, 3), 1 << 40) as process:
        if chance.random() < 0.1:
            time.sleep(chance.uniform(0, 0.4))
        else:
            while not (record.exists() and record.stat().st_size > size):
                assert process.poll() is None, f"the process ended with {process.returncode}"
                time.sleep(0.002)
            time.sleep(chance.uniform(0, MOST_SECONDS))
        process.send_signal(signal.SIGKILL)


@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL to send on this system")
def test_killed_a_hundred_times_the_record_is_that_of_one_uninterrupted_run(tmp_path: Path) -> None:
    record, chance = tmp_path / "record", random.Random(0)
    for _ in range(KILLS):
        killed(record, chance)
    until = len(lines(record)) + 50
    found = finished(record, "threads", 2, until)
    wanted = finished(tmp_path / "undisturbed", "inline", 1, until)
    assert len(found) == len(wanted) == until
    assert until > 2 * KILLS
    assert len({each["state"]["epoch"] for each in found}) > 2
    assert found == wanted


if __name__ == "__main__":
    main()
