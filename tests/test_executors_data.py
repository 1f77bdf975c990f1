"""Data that are not what they should be: every executor says the same of them, and where they are."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from executors import every, loaded, numbers, runs, values

import batchkit as bk


def odd_one(change: Callable[[Any], Any]) -> bk.Pipeline:
    """Return twelve rows in batches of four, of which a function changes the one numbered six."""
    return numbers(12).map(lambda row: change(row) if row["x"] == 6 else row).batch(4)


ROWS = [{"x": np.zeros(3 if row == 6 else 2)} for row in range(12)]
UNLIKE: dict[str, tuple[Callable[[], bk.Pipeline], str]] = {
    "another dtype": (
        lambda: odd_one(lambda row: {"x": row["x"] * 0.5}),
        r"step 1: row 6: leaf 'x' is float64, but row 4 has int64, after stage 0 map.*\.cast",
    ),
    "another shape": (
        lambda: bk.from_sequence(ROWS).batch(4),
        r"step 1: row 6: leaf 'x' is float64\[3\], but row 4 has float64\[2\]. Use padded_batch\(\), or bring",
    ),
    "another structure": (
        lambda: odd_one(lambda row: {**row, "y": 1}),
        r"step 1: row 6 has the structure \{x, y\}, but row 4 has \{x\}",
    ),
}


@every
@pytest.mark.parametrize("kind", UNLIKE)
def test_a_row_unlike_the_others_is_named_with_the_mend_and_the_next_step_goes_on(kind: str, executor: str) -> None:
    make, says = UNLIKE[kind]
    with loaded(make(), executor) as loader:
        iterator = iter(loader)
        assert len(next(iterator)["x"]) == 4
        with pytest.raises(bk.SchemaError, match=says):
            next(iterator)
        assert [len(batch["x"]) for batch in iterator] == [4]


@every
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_file_or_a_column_that_is_not_there_is_named_with_what_is_near(
    on_error: str, executor: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "label.npy", np.arange(12))
    np.savez(tmp_path / "both.npz", image=np.zeros((12, 2)), label=np.arange(12))
    with pytest.raises(bk.SourceNotFoundError, match=r"lable.npy.*did you mean 'label.npy'"):
        loaded(bk.from_npy(tmp_path / "lable.npy").batch(4), executor, on_error=on_error)
    with pytest.raises(KeyError, match=r"both.npz.* has no array 'lable'; did you mean 'label'"):
        loaded(bk.from_npz(tmp_path / "both.npz", keys=["lable"]).batch(4), executor, on_error=on_error)
    with pytest.raises(bk.MissingLeafError, match=r"'lable'.*did you mean 'label'"):
        loaded(bk.from_npz(tmp_path / "both.npz").batch(4).select("lable"), executor, on_error=on_error)


@every
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_corrupt_npz_is_an_error_that_names_the_file(on_error: str, executor: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).standard_normal(4000))
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.infolist()
    raw = bytearray(path.read_bytes())
    raw[member.header_offset + member.compress_size // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(bk.CorruptSourceError, match=rf"^{path} .*"):
        list(loaded(bk.from_npz(path).batch(10), executor, on_error=on_error))


# -- a generator, of which nobody may pull while another does


class Watched:
    """Counts from 0, and notes when two threads pull at once."""

    def __init__(self, rows: int) -> None:
        self.rows, self.overlaps = rows, 0

    def __call__(self) -> Any:
        pulling, pulled = threading.Lock(), iter(range(self.rows))
        watched = self

        class Pulled:
            def __iter__(self) -> Any:
                return self

            def __next__(self) -> dict[str, int]:
                if not pulling.acquire(blocking=False):
                    watched.overlaps += 1
                    raise RuntimeError("two threads pull at once")
                try:
                    time.sleep(1e-4)  # long enough for another thread to come in between
                    return {"x": next(pulled)}
                finally:
                    pulling.release()

        return Pulled()


@every
def test_several_workers_and_consumers_pull_from_a_generator_one_at_a_time(executor: str) -> None:
    rows = Watched(400)
    with loaded(bk.from_generator(rows).map(lambda row: row).batch(1), executor, 3, prefetch=6) as loader:
        for _ in range(2):
            iterator, got = iter(loader), list[list[int]]()

            def consume(iterator: Any = iterator, got: Any = got) -> None:
                got.append([int(batch["x"][0]) for batch in iterator])

            consumers = [threading.Thread(target=consume) for _ in range(4)]
            for consumer in consumers:
                consumer.start()
            for consumer in consumers:
                consumer.join()
            assert sorted(row for mine in got for row in mine) == list(range(400))
            assert [sorted(mine) for mine in got] == got
    assert rows.overlaps == 0


@every
def test_several_loaders_pull_from_one_generator_each_for_itself(executor: str) -> None:
    pipe = bk.from_generator(Watched(60)).map(lambda row: row).batch(7)
    with loaded(pipe, executor) as one, loaded(pipe, executor) as two:
        both = list(zip(one, two, strict=True))
    assert values(batch for batch, _ in both) == values(batch for _, batch in both) == runs(60)
