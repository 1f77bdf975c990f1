"""How DataLoader workers agree on epochs, without any DataLoader."""

from __future__ import annotations

import gc
import pickle
import threading
from pathlib import Path

import pytest

from batchkit_torch.epochs import Claim, EpochLog, Position

START = Position(0, 0)


@pytest.fixture
def log() -> EpochLog:
    return EpochLog()


def claim(
    log: EpochLog,
    run: int,
    worker: int,
    *,
    turn: int = 0,
    workers: int = 2,
    start: Position = START,
    placings: int = 0,
) -> Position:
    return log.claim(Claim(run, turn, worker, workers, start, placings))


def test_all_workers_of_an_iteration_get_the_same_epoch(log: EpochLog) -> None:
    assert [claim(log, 11, 0), claim(log, 11, 1)] == [START, START]


def test_the_next_iteration_is_the_next_epoch(log: EpochLog) -> None:
    assert [claim(log, run, worker).epoch for run in (11, 12, 13) for worker in (1, 0)] == [0, 0, 1, 1, 2, 2]


def test_a_worker_that_never_asked_puts_nobody_out_of_step(log: EpochLog) -> None:
    assert claim(log, 11, 0).epoch == 0  # worker 1 was ended before it asked
    assert [claim(log, 12, 1).epoch, claim(log, 12, 0).epoch] == [1, 1]


def test_two_iterations_at_a_time_keep_apart(log: EpochLog) -> None:
    assert claim(log, 11, 0).epoch == 0
    assert claim(log, 12, 1).epoch == 1
    assert claim(log, 12, 0).epoch == 1
    assert claim(log, 11, 1).epoch == 0


def test_reseeding_torch_before_each_epoch_is_no_obstacle(log: EpochLog) -> None:
    assert [claim(log, 11, worker).epoch for _ in range(3) for worker in (0, 1)] == [0, 0, 1, 1, 2, 2]


def test_workers_that_live_on_advance_by_turns(log: EpochLog) -> None:
    assert [claim(log, 11, worker, turn=turn).epoch for turn in range(3) for worker in (1, 0)] == [0, 0, 1, 1, 2, 2]


def test_the_first_iteration_begins_where_the_loader_stands(log: EpochLog) -> None:
    there = Position(4, 7)
    assert [claim(log, 11, 0, start=there), claim(log, 11, 1, start=there)] == [there, there]
    assert claim(log, 12, 0, start=there) == Position(5, 0)


def test_moving_the_loader_moves_the_workers(log: EpochLog) -> None:
    assert claim(log, 11, 0).epoch == 0
    assert claim(log, 12, 0, start=Position(9, 2)) == Position(9, 2)
    assert claim(log, 13, 0, start=Position(9, 2)) == Position(10, 0)


def test_a_loader_put_to_where_it_stood_moves_the_workers_too(log: EpochLog) -> None:
    assert [claim(log, run, 0).epoch for run in (11, 12)] == [0, 1]
    assert [claim(log, run, 0, placings=1).epoch for run in (13, 14)] == [0, 1]


def test_a_chosen_epoch_comes_next_and_is_counted_on_from(log: EpochLog) -> None:
    log.move(5, START, 0)
    assert [claim(log, run, 0).epoch for run in (11, 12)] == [5, 6]
    log.move(2, START, 0)
    assert [claim(log, run, 0).epoch for run in (13, 14)] == [2, 3]


def test_a_chosen_epoch_reaches_workers_that_live_on(log: EpochLog) -> None:
    assert claim(log, 11, 0).epoch == 0
    log.move(7, Position(1, 0), 0)
    assert [claim(log, 11, 0, turn=turn).epoch for turn in (1, 2)] == [7, 8]


def test_an_iteration_that_began_keeps_its_epoch(log: EpochLog) -> None:
    assert claim(log, 11, 0).epoch == 0
    log.move(7, START, 0)
    assert claim(log, 11, 1).epoch == 0


def test_claims_from_many_threads_agree(log: EpochLog) -> None:
    got: dict[tuple[int, int], int] = {}

    def work(worker: int) -> None:
        for run in range(20):
            got[run, worker] = claim(log, run, worker, workers=4).epoch

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in range(20):
        assert len({got[run, worker] for worker in range(4)}) == 1
    assert sorted({got[run, 0] for run in range(20)}) == list(range(20))


def test_there_is_no_file_before_it_is_needed_and_none_after() -> None:
    log = EpochLog()
    path = Path(log.path)
    assert not path.exists()
    claim(log, 11, 0)
    assert path.exists()
    copy = pickle.loads(pickle.dumps(log))
    del copy
    gc.collect()
    assert path.exists()
    del log
    gc.collect()
    assert not path.exists()


def test_a_claim_that_somebody_removed_is_an_error(log: EpochLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_records", lambda: iter([]))
    with pytest.raises(RuntimeError, match="changed by somebody else"):
        claim(log, 11, 0)
