"""Shared memory of worker processes: a batch a piece, and no more pieces than batches in flight."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holdings import LATE, in_proc

import batchkit as bk
from batchkit.executors import ProcessExecutor, pieces
from batchkit.executors.arena import Arena
from batchkit.executors.pieces import Holder, Pieces
from batchkit.executors.transport import has_posix

needs_fork = pytest.mark.skipif(not has_posix(), reason="there is no fork server without fork")
ROWS, SIZE, WIDTH = 160, 16, 2048
X = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
Y = np.arange(ROWS)


@pytest.fixture(params=[pytest.param("forkserver", marks=needs_fork), "spawn"])
def start(request: pytest.FixtureRequest) -> Any:
    """How workers are started: by the POSIX transport, and by the portable one."""
    return request.param


def batch_of(rows: slice) -> dict[str, Any]:
    return {"x": X[rows], "y": Y[rows]}


def in_place(batch: Any) -> Any:
    batch["x"] += 1
    return batch


PIPELINES: dict[str, tuple[Callable[[bk.Pipeline], bk.Pipeline], Callable[[Any], Any]]] = {
    "as they are": (lambda pipe: pipe.batch(SIZE), lambda batch: batch),
    "new arrays": (
        lambda pipe: pipe.batch(SIZE).map(lambda batch: {"x": batch["x"] + 1, "y": batch["y"] * 2}),
        lambda batch: {"x": batch["x"] + 1, "y": batch["y"] * 2},
    ),
    "one new array": (
        lambda pipe: pipe.batch(SIZE).map(lambda batch: {**batch, "x": batch["x"] * 2}),
        lambda batch: {**batch, "x": batch["x"] * 2},
    ),
    "in place": (lambda pipe: pipe.batch(SIZE).map(in_place), lambda batch: {**batch, "x": batch["x"] + 1}),
    "row by row": (
        lambda pipe: pipe.map(lambda row: {"x": row["x"] - 1, "y": row["y"] + 1}).batch(SIZE),
        lambda batch: {"x": batch["x"] - 1, "y": batch["y"] + 1},
    ),
    "wider": (
        lambda pipe: pipe.batch(SIZE).map(lambda batch: {**batch, "x": batch["x"].astype(np.float64)}),
        lambda batch: {**batch, "x": batch["x"].astype(np.float64)},
    ),
}


def shared_bytes() -> int:
    """Return how much memory this process shares with its workers."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:batchkit" in line or "/dev/shm/batchkit-" in line:
            low, high = line.split()[0].split("-")
            total += int(high, 16) - int(low, 16)
    return total


@in_proc
@pytest.mark.parametrize("pause", [0, 0.005], ids=["quick caller", "slow caller"])
@pytest.mark.parametrize("name", PIPELINES)
def test_shared_memory_is_that_of_the_batches_in_flight(name: str, pause: float, start: str) -> None:
    made, wanted = PIPELINES[name]
    before, most = shared_bytes(), 0
    pipe = made(bk.from_arrays({"x": X, "y": Y})).take(ROWS // SIZE)
    with bk.Loader(pipe, executor=ProcessExecutor(2, start=start), prefetch=2) as loader:
        for _ in range(4):
            for number, batch in enumerate(loader):
                most = max(most, shared_bytes() - before)
                expected = wanted(batch_of(slice(number * SIZE, (number + 1) * SIZE)))
                for leaf in expected:
                    np.testing.assert_array_equal(batch[leaf], expected[leaf])
                time.sleep(pause)
            size = sum(leaf.nbytes for leaf in batch.values())
    # prefetch, workers, the one that the caller has and the one that he is given; each a page at most too large.
    # A worker of "spawn" maps memory of its own alone, of which one piece each may lie idle.
    allowed = 2 + 2 + 2 + (2 if start == "spawn" else 0) + LATE
    assert size <= most <= allowed * (size + 4096)


def test_rows_that_a_function_hands_on_are_not_written_over(start: str) -> None:
    def change(batch: Any) -> Any:
        return {"a": batch["x"] + 1, "b": batch["x"][:, ::-1], "c": batch["x"], "d": batch["x"][:, :5], "y": batch["y"]}

    def change_row(row: Any) -> Any:
        return {"a": row["x"] + 1, "c": row["x"], "y": row["y"]}

    data = bk.from_arrays({"x": X, "y": Y})
    for pipe, leaves in ((data.batch(SIZE).map(change), "abcdy"), (data.map(change_row).batch(SIZE), "acy")):
        with bk.Loader(pipe, executor=ProcessExecutor(2, start=start)) as loader:
            for number, batch in enumerate(loader):
                rows = slice(number * SIZE, (number + 1) * SIZE)
                x = X[rows]
                wanted = {"a": x + 1, "b": x[:, ::-1], "c": x, "d": x[:, :5], "y": Y[rows]}
                assert sorted(batch) == list(leaves)
                for leaf in leaves:
                    np.testing.assert_array_equal(batch[leaf], wanted[leaf])
            assert number == ROWS // SIZE - 1


def test_a_column_without_bytes_beside_one_that_fills_a_piece(start: str) -> None:
    def change(batch: Any) -> Any:
        return {"x": batch["x"] + 1, "y": np.empty((len(batch["x"]), 0), np.float32)}

    x, nothing = np.arange(1024.0).reshape(2, 512), np.empty((2, 0), np.float32)
    data = bk.from_arrays({"x": x, "z": nothing}).batch(1)
    for pipe, added, leaf in ((data, 0, "z"), (data.map(change), 1, "y")):
        with bk.Loader(pipe, executor=ProcessExecutor(1, start=start)) as loader:
            batches = list(loader)
        assert [batch[leaf].shape for batch in batches] == [(1, 0), (1, 0)]
        np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), x + added)


def test_what_a_file_was_read_to_is_written_over(tmp_path: Path, start: str) -> None:
    np.save(tmp_path / "x.npy", X)
    pipe = bk.from_npy({"x": tmp_path / "x.npy"}).batch(SIZE).map(lambda batch: {"x": batch["x"] + 1})
    with bk.Loader(pipe, executor=ProcessExecutor(1, start=start), prefetch=1) as loader:
        for epoch in range(2):
            for number, batch in enumerate(loader):
                np.testing.assert_array_equal(batch["x"], X[number * SIZE : (number + 1) * SIZE] + 1)
                if epoch:
                    root = batch["x"].base
                    assert root.nbytes == batch["x"].nbytes
            assert number == ROWS // SIZE - 1


# -- room in a piece


def test_room_is_free_again_when_nobody_refers_to_a_column() -> None:
    arena = Arena(np.zeros(4096, np.uint8))
    first, second = arena.place((512,), np.dtype("f4")), arena.place((512,), np.dtype("f4"))
    assert first is not None
    assert second is not None
    assert arena.place((1,), np.dtype("f4")) is None
    part = first[3:5]
    first = None
    assert arena.place((1,), np.dtype("f4")) is None  # a view keeps it
    del part
    third = arena.place((512,), np.dtype("f4"))
    assert third is not None
    assert (arena.offset(third), arena.offset(second)) == (0, 2048)


def test_columns_without_bytes_and_of_odd_sizes_lie_apart_and_aligned() -> None:
    arena = Arena(np.zeros(4096, np.uint8))
    shapes = [(0,), (3,), (0, 7), (65,), (1,)]
    columns: list[Any] = [arena.place(shape, np.dtype("u1")) for shape in shapes]
    for number, column in enumerate(columns):
        column[...] = number
    assert [column.shape for column in columns] == shapes
    assert [arena.offset(column) for column in columns[1::2]] == [64, 192]
    assert [column.tolist() for column in columns[1::2]] == [[1] * 3, [3] * 65]


def test_what_was_laid_out_is_not_written_over() -> None:
    arena = Arena(np.zeros(4096, np.uint8))
    one = arena.layout({"x": np.full(100, 7)})
    two = arena.layout({"x": np.full(100, 8)})
    assert one is not None
    assert two is not None
    assert one.columns[0][2] != two.columns[0][2]


def test_what_does_not_fit_says_how_much_it_takes() -> None:
    memory = np.zeros(4096, np.uint8)
    arena = Arena(memory)
    kept = arena.place((512,), np.dtype("f4"))
    tree = {"kept": kept, "new": np.zeros(1024, "f4")}
    assert arena.layout(tree) is None
    assert arena.wanted(tree) == 2048 + 4096


# -- pieces and those who have them


class Handle:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Memory:
    """A transport as far as pieces need one."""

    def __init__(self, lasting: bool) -> None:
        self.LASTING_HANDLES = lasting
        self.handles: list[Handle] = []

    def new_memory(self, size: int) -> Any:
        self.handles.append(Handle())
        return np.zeros(size, np.uint8), self.handles[-1]


@pytest.fixture
def memory() -> Any:
    return Memory(lasting=True)


def used(some: Pieces, holder: Holder, size: int = 4096) -> Any:
    """Take a piece as a worker does, and return the caller's view of it."""
    piece = some.take(size, holder)
    some.mapped(piece, holder)
    view = piece.memory[:]
    some.give(piece)
    return view


def test_a_worker_takes_what_another_has_left_where_a_handle_serves_both(memory: Any) -> None:
    some, one, two = Pieces(memory), Holder(), Holder()
    some.expect(2, 4)
    for holder in (one, two, one):
        used(some, holder)
    assert len(memory.handles) == 1
    memory = Memory(lasting=False)
    some = Pieces(memory)
    some.expect(2, 4)
    for holder in (one, two, one, two):
        used(some, holder)
    assert [handle.closed for handle in memory.handles] == [True, True]


def test_a_piece_is_one_workers_until_it_is_given_back(memory: Any) -> None:
    some, one, two = Pieces(memory), Holder(), Holder()
    first = some.take(10, one)
    second = some.take(10, two)
    assert first is not second
    some.give(first)
    assert some.take(10, two) is first


def test_a_piece_that_the_caller_has_is_not_taken(memory: Any) -> None:
    some, one = Pieces(memory), Holder()
    some.expect(1, 2)
    kept = used(some, one)
    assert used(some, one).base is not kept.base


def test_what_the_caller_kept_for_a_while_is_let_go_of_and_the_workers_are_told(memory: Any) -> None:
    some, one, two = Pieces(memory), Holder(), Holder()
    some.expect(2, 4)
    kept = [used(some, (one, two)[number % 2]) for number in range(20)]
    assert (some.dropped(one), some.dropped(two)) == ([], [])
    kept.clear()
    used(some, one)
    gone = some.dropped(one), some.dropped(two)
    assert len(gone[0]) + len(gone[1]) == sum(handle.closed for handle in memory.handles) == 20 - 6
    assert some.dropped(one) == []


def test_pieces_that_have_become_too_small_are_let_go_of(memory: Any) -> None:
    some, one = Pieces(memory), Holder()
    some.expect(2, 4)
    used(some, one, 4096)
    assert used(some, one, 8192).base.size == 8192
    assert some.dropped(one) == [1]


def test_what_only_a_worker_had_that_is_gone_is_let_go_of() -> None:
    for lasting, made in ((True, 1), (False, 2)):
        memory: Any = Memory(lasting)
        some, one, two = Pieces(memory), Holder(), Holder()
        some.expect(2, 4)
        used(some, one)
        some.forget(one)
        used(some, two)
        assert len(memory.handles) == made
        some.close()
        assert two.dropped == [made]


def test_few_handles_stay_open_however_many_batches_are_kept(memory: Any) -> None:
    some, one = Pieces(memory), Holder()
    some.expect(2, 4)
    kept = [used(some, one) for _ in range(pieces.OPEN + 100)]
    assert len(kept) - sum(handle.closed for handle in memory.handles) == pieces.OPEN
    some.close()
    assert all(handle.closed for handle in memory.handles)
