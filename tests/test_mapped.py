"""Files that are mapped and do not fit into memory: rows are asked for before they are read, and are what they are."""

from __future__ import annotations

import errno
import mmap
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.sources import mapped
from batchkit.sources.mapped import RowsAhead

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no such advice")

ROWS, WIDTH = 3000, 50
DATA = np.arange(ROWS * WIDTH, dtype=np.int64).reshape(ROWS, WIDTH)
PAGE = mmap.PAGESIZE


class Advised:
    """Stands for the mapping, and notes what it is advised of."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory, self.size = memory, len(memory)
        self.asked: list[tuple[int, int]] = []

    def madvise(self, advice: int, begin: int, size: int) -> None:
        assert advice == mmap.MADV_WILLNEED
        self.memory.madvise(advice, begin, size)
        self.asked.append((begin, begin + size))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", DATA)
    return tmp_path / "x.npy"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be less free memory than any file needs."""
    monkeypatch.setattr(mapped, "free_memory", lambda: 1000)


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch, small: None) -> list[Advised]:
    """Return the mappings that rows are asked of."""
    made: list[Advised] = []
    init = RowsAhead.__init__

    def noted(self: RowsAhead, array: Any, memory: mmap.mmap) -> None:
        init(self, array, memory)
        made.append(Advised(memory))
        self._memory = made[-1]  # type: ignore[assignment]

    monkeypatch.setattr(RowsAhead, "__init__", noted)
    return made


def batches(pipe: bk.Pipeline, executor: str = "inline") -> list[Any]:
    with bk.Loader(pipe, executor=executor) as loader:
        return list(loader)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_batches_are_what_they_are_in_memory(path: Path, executor: str) -> None:
    found = batches(bk.from_npy(path).shuffle(1).batch(64), executor)
    wanted = batches(bk.from_arrays(DATA).shuffle(1).batch(64))
    assert len(found) == len(wanted) == 47
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_every_row_is_asked_for_from_its_page_on(path: Path, advised: list[Advised]) -> None:
    (batch, *_) = batches(bk.from_npy(path).shuffle(1).batch(64).take(1))
    (mapping,) = advised
    head = path.stat().st_size - DATA.nbytes
    assert len(mapping.asked) == 64
    for row, (begin, end) in zip(batch, mapping.asked, strict=True):
        first = head + int(row[0]) * 8
        assert begin % PAGE == 0
        assert (begin <= first < begin + PAGE, end) == (True, first + WIDTH * 8)


def test_rows_that_were_in_memory_are_not_asked_for_again(
    path: Path, advised: list[Advised], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_A_ROW", 10.0)  # seconds: nothing is as slow
    batches(bk.from_npy(path).shuffle(1).batch(64))
    assert len(advised[0].asked) == 64  # of the first batch


def test_rows_that_took_long_are_asked_for(path: Path, advised: list[Advised], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_A_ROW", -10.0)
    batches(bk.from_npy(path).shuffle(1).batch(64))
    assert len(advised[0].asked) == ROWS


def test_rows_in_the_order_of_the_file_are_left_to_the_system(path: Path, advised: list[Advised]) -> None:
    assert np.array_equal(np.concatenate(batches(bk.from_npy(path).batch(64))), DATA)
    assert [mapping.asked for mapping in advised] == [[]]


def test_where_the_system_takes_no_advice_rows_are_read_all_the_same(
    path: Path, advised: list[Advised], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Advised, advice: int, begin: int, size: int) -> None:
        self.asked.append((begin, size))
        raise OSError(errno.EAGAIN, "no resources")

    monkeypatch.setattr(Advised, "madvise", busy)
    found = np.concatenate(batches(bk.from_npy(path).shuffle(1).batch(64)))
    assert np.array_equal(found[np.argsort(found[:, 0])], DATA)
    assert advised[0].asked


def test_a_file_that_memory_can_hold_is_left_to_the_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.load(path, mmap_mode="r")
    monkeypatch.setattr(mapped, "free_memory", lambda: 2 * array.nbytes)
    assert RowsAhead.of(array) is None
    monkeypatch.setattr(mapped, "free_memory", lambda: 2 * array.nbytes - 2)
    assert RowsAhead.of(array) is not None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("made", [lambda array: array[:, ::2], lambda array: np.array(array), lambda array: array.T])
def test_only_what_is_mapped_in_one_piece_is_asked_for(path: Path, made: Any) -> None:
    array = np.load(path, mmap_mode="r")
    assert RowsAhead.of(made(array)) is None
    assert RowsAhead.of(array[5:]) is not None


@pytest.mark.parametrize("verb", ["padded_batch", "batch", "pack"])
def test_values_of_ragged_rows_are_asked_for(tmp_path: Path, advised: list[Advised], verb: str) -> None:
    offsets = np.cumsum([0, *(np.arange(200) % 7)])
    np.save(tmp_path / "tokens.npy", np.arange(offsets[-1]))
    pipes = []
    for tokens in (np.load(tmp_path / "tokens.npy", mmap_mode="r"), np.arange(offsets[-1])):
        rows = bk.from_ragged({"x": tokens}, offsets).shuffle(3)
        made = {
            "padded_batch": lambda rows=rows: rows.padded_batch(16),
            "batch": lambda rows=rows: rows.filter(lambda row: len(row["x"]) > 2).padded_batch(16),
            "pack": lambda rows=rows: rows.pack(16).batch(4),
        }[verb]
        pipes.append(made())
    found, wanted = batches(pipes[0]), batches(pipes[1])
    assert len(found) == len(wanted) > 0
    assert all(np.array_equal(one["x"], other["x"]) for one, other in zip(found, wanted, strict=True))
    assert sum(len(mapping.asked) for mapping in advised) >= 200 - 200 // 7 - 1
    assert all(0 <= begin < end <= mapping.size for mapping in advised for begin, end in mapping.asked)


@pytest.mark.usefixtures("small")
def test_a_source_is_pickled_after_it_was_read(path: Path) -> None:
    source = bk.from_npy(path).source
    first = source.gather(np.array([7, 2]))
    assert np.array_equal(pickle.loads(pickle.dumps(source)).gather(np.array([7, 2])), first)
    arrays = bk.from_arrays(np.load(path, mmap_mode="r")).source
    assert np.array_equal(arrays.gather(np.array([7, 2])), first)
    assert np.array_equal(pickle.loads(pickle.dumps(arrays)).gather(np.array([7, 2])), first)
