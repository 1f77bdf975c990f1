"""Workers that die or hang, and what cannot be sent to them or back."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from executors import ahead, assert_batches, cases, every, killable, loaded, numbers, values
from holdings import alive

import batchkit as bk

# -- workers that are killed


def once(marker: Path) -> Callable[[], bool]:
    """Return what says yes the first time that any process asks."""
    path = str(marker)

    def first() -> bool:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    return first


@killable
@pytest.mark.parametrize("name", ["shuffled", "row function", "generator", "random"])
def test_a_killed_worker_is_replaced_and_the_sequence_is_unchanged(executor: str, name: str, tmp_path: Path) -> None:
    case = cases()[name]
    first = {row: once(tmp_path / str(row)) for row in (3, 30)}

    def dies_once(batch: Any) -> Any:
        for row in batch["n"].tolist():
            if row in first and first[row]():
                os.kill(os.getpid(), signal.SIGKILL)
        return batch

    with loaded(case.pipe.map(dies_once), executor) as loader:
        for epoch in range(2):
            assert_batches(loader, case.wanted(epoch))
    assert len(list(tmp_path.iterdir())) == 2


@killable
def test_a_step_at_which_workers_die_again_and_again_is_given_up_by_name(executor: str) -> None:
    def dies_at_seven(row: Any) -> Any:
        if row["x"] == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    with loaded(numbers(12).map(dies_at_seven).batch(3), executor) as loader:
        iterator = iter(loader)
        assert values(itertools.islice(iterator, 2)) == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(bk.WorkerError, match=r"epoch 0, step 2: .* died 3 times.*SIGKILL.*\[6, 7, 8\]"):
            next(iterator)
        assert values(iterator) == [[9, 10, 11]]


@killable
def test_rows_left_out_by_a_worker_that_died_are_counted_once(executor: str, tmp_path: Path) -> None:
    first = once(tmp_path / "died")

    def bad_then_dies(row: Any) -> Any:
        if row["x"] == 5:
            raise ValueError("bad")
        if row["x"] == 6 and first():
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    with loaded(numbers(12).map(bad_then_dies).batch(4), executor, on_error=bk.Skip(budget=1)) as loader:
        assert values(loader) == [[0, 1, 2, 3], [4, 6, 7], [8, 9, 10, 11]]
        assert loader.skipped == 1


# -- workers that hang, and what cannot be sent


@ahead
def test_a_step_that_hangs_meets_the_timeout_and_the_next_goes_on(executor: str, tmp_path: Path) -> None:
    release = str(tmp_path / "go on")

    def hangs_at_seven(row: Any) -> Any:
        while row["x"] == 7 and not os.path.exists(release):
            time.sleep(0.01)
        return row

    with loaded(numbers(12).map(hangs_at_seven).batch(3), executor, timeout=2.0) as loader:
        iterator = iter(loader)
        assert values(itertools.islice(iterator, 2)) == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(bk.WorkerError, match=r"within timeout=2.0 seconds"):
            next(iterator)
        Path(release).touch()
        assert values(iterator) == [[9, 10, 11]]


@killable
@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_a_hung_worker_is_named_with_step_and_rows_and_ended(executor: str, how: str) -> None:
    stops = how == "stopped"

    def hangs_at_seven(row: Any) -> Any:
        if row["x"] == 7:
            os.kill(os.getpid(), signal.SIGSTOP) if stops else time.sleep(1000)
        return {**row, "pid": os.getpid()}

    with loaded(numbers(12).map(hangs_at_seven).batch(3), executor, 1, timeout=2.0) as loader:
        iterator = iter(loader)
        pid = int(next(iterator)["pid"][0])
        next(iterator)
        with pytest.raises(bk.WorkerError, match=r"epoch 0, step 2: .*within timeout=2.0 seconds.*rows \[6, 7, 8\]"):
            next(iterator)
        assert values(iterator) == [[9, 10, 11]]
        assert not alive(pid)


@killable
def test_a_function_that_cannot_be_sent_is_named(executor: str) -> None:
    lock = threading.Lock()

    def locked(row: Any) -> Any:
        with lock:
            return row

    with (
        loaded(numbers().shuffle(0).map(locked).batch(2), executor) as loader,
        pytest.raises(
            bk.PipelineError, match=r"stage 1 map\(.*locked\) cannot be sent to a worker process.*executor='threads'"
        ),
    ):
        list(loader)


@killable
@pytest.mark.parametrize("source", ["sequence", "generator"])
def test_rows_that_cannot_be_sent_are_named_and_the_next_step_goes_on(executor: str, source: str) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        return ({"x": row, "note": threading.Lock() if row == 4 else ""} for row in range(9))

    given = bk.from_sequence(list(rows())) if source == "sequence" else bk.from_generator(rows)
    with loaded(given.map(lambda row: {"x": row["x"]}).batch(3), executor) as loader:
        iterator = iter(loader)
        assert values(itertools.islice(iterator, 1)) == [[0, 1, 2]]
        with pytest.raises(bk.WorkerError, match=r"epoch 0, step 1: its rows cannot be sent to a worker process.*lock"):
            next(iterator)
        assert values(iterator) == [[6, 7, 8]]


@killable
def test_a_result_that_cannot_be_sent_is_named_and_the_next_step_goes_on(executor: str) -> None:
    def odd(batch: Any) -> Any:
        return defaultdict(threading.Lock().locked if 4 in batch["x"] else None, batch)

    with loaded(numbers(9).batch(3).map(odd), executor) as loader:
        iterator = iter(loader)
        assert values(itertools.islice(iterator, 1)) == [[0, 1, 2]]
        with pytest.raises(bk.WorkerError, match=r"epoch 0, step 1: .*cannot be sent.*odd\).*lock"):
            next(iterator)
        assert values(iterator) == [[6, 7, 8]]


@every
def test_a_generator_may_hold_what_cannot_be_sent(executor: str) -> None:
    lock = threading.Lock()

    def rows() -> Iterator[dict[str, int]]:
        for row in range(9):
            with lock:
                yield {"x": row}

    with loaded(bk.from_generator(rows).map(lambda row: {"x": row["x"] + 1}).batch(3), executor) as loader:
        assert values(loader) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@killable
def test_a_file_that_is_damaged_meanwhile_is_named_with_the_mend(executor: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(40))
    pipe = bk.from_npy({"x": path}).map(lambda row: row).batch(10)
    path.write_bytes(path.read_bytes()[:-80])  # the caller does not touch its pages, a worker opens it anew
    with (
        loaded(pipe, executor) as loader,
        pytest.raises(bk.WorkerError, match=rf"take the pipeline over: {path} is truncated.*download the file again"),
    ):
        list(loader)


# -- the server that starts workers


fork_server = pytest.mark.skipif(sys.platform == "win32", reason="there is none: processes cannot be forked")


@fork_server
def test_a_server_that_was_stopped_is_not_stopped_again() -> None:
    from batchkit.executors.posix import Crew

    crew = Crew()
    crew.stop()
    others = [end for _ in range(8) for end in os.pipe()]  # have the numbers that the crew's own had
    crew.stop()
    assert [descriptor for descriptor in others if not os.path.exists(f"/dev/fd/{descriptor}")] == []
    for descriptor in others:
        os.close(descriptor)


@fork_server
def test_a_worker_that_takes_long_to_end_is_not_taken_for_the_next_one() -> None:
    from batchkit.executors.posix import Crew

    crew = Crew()
    try:
        channel, first = crew.start()
        assert crew.status(first) is None  # the kernel may need seconds for one that had a lot of memory
        channel.close()
        other, second = crew.start()
        assert second > 1  # it will be killed by this number, and 0 would be this process and all its kin
        assert second != first
        assert alive(second)
        other.close()
    finally:
        crew.stop()


# -- steps that cannot be pulled


class Stumbles:
    """Rows 0, 1, 2, ..., of which one cannot be read; those behind it can."""

    def __init__(self, rows: int, fails_at: int) -> None:
        self.at, self.rows, self.fails_at = -1, rows, fails_at

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.at += 1
        if self.at == self.fails_at:
            raise OSError("a bad record")
        if self.at >= self.rows:
            raise StopIteration
        return {"x": self.at}


def outcomes(batches: Iterator[Any], after: Callable[[], None] = lambda: None) -> list[Any]:
    """Return the batches of an epoch, and in their places the errors; ``after`` is called behind each."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(batches)["x"].tolist())
        except StopIteration:
            return found
        except (bk.SourceError, bk.StageError):
            found.append("error")
        after()


@every
def test_an_epoch_goes_on_behind_a_row_that_could_not_be_pulled(executor: str) -> None:
    with loaded(bk.from_generator(lambda: Stumbles(40, 17)).batch(4), executor) as loader:
        found = outcomes(iter(loader))
    # Rows 16 and 17 are gone with the step that failed.
    behind = [list(range(start, min(start + 4, 40))) for start in range(18, 40, 4)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], "error", *behind]


@every
@pytest.mark.parametrize("where", ["memory", "files"])
def test_a_generator_in_front_of_a_cache_is_tried_again_and_no_row_is_lost(
    executor: str, where: str, tmp_path: Path
) -> None:
    opened: list[int] = []

    def rows() -> Iterator[Any]:
        opened.append(1)
        for row in range(40):
            if row == 17 and len(opened) < 3:
                raise OSError("the network is down")
            yield {"x": row}

    rows_kept = bk.from_generator(rows).cache(tmp_path) if where == "files" else bk.from_generator(rows).cache()
    with loaded(rows_kept.batch(4), executor) as loader:
        first, second = outcomes(iter(loader)), outcomes(iter(loader))
    whole = [list(range(start, start + 4)) for start in range(0, 40, 4)]
    assert first == [*whole[:4], "error", "error", *whole[4:]]
    assert second == whole
    assert len(opened) == 3


@every
def test_a_window_that_could_not_be_filled_does_not_bring_back_the_one_before(executor: str) -> None:
    pipe = bk.from_generator(lambda: Stumbles(40, 17)).shuffle(seed=0, window=10).batch(5)
    with loaded(pipe, executor) as loader:
        found = outcomes(iter(loader))
    rows = [row for batch in found if batch != "error" for row in batch]
    assert found.count("error") == 1
    assert sorted(rows) == [*range(10), *range(18, 40)]
    assert sorted(rows[:10]) == list(range(10))


def test_a_state_behind_a_window_that_could_not_be_filled_tells_the_error_again_and_goes_on_there() -> None:
    def fails_on_row_700(row: Any) -> Any:
        if row["x"] == 700:
            raise ValueError("a bad record")
        return row

    rows = bk.from_arrays({"x": np.arange(1200)}).map(fails_on_row_700).filter(lambda row: True)
    pipe = rows.shuffle(seed=0, window=10).batch(5)
    with bk.Loader(pipe, executor="inline") as loader:
        states: list[Any] = []
        found = outcomes(iter(loader), lambda: states.append(loader.state_dict()))
    behind = found.index("error") + 1
    assert sorted(found[behind] + found[behind + 1]) == list(range(768, 778))  # the chunk of row 700 ends with 767
    with bk.Loader(pipe, executor="inline") as loader:
        loader.load_state_dict(states[behind])
        assert outcomes(iter(loader)) == ["error", *found[behind + 1 :]]
