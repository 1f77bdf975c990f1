"""A short soak: workers are killed every third of a second. ``make soak`` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
import soak

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="worker processes are found in /proc")


@pytest.fixture(scope="module")
def found() -> soak.Soak:
    """Return what came of eight seconds."""
    return soak.soak(seconds=8, every=0.3, seed=1)


def test_workers_were_killed_in_the_middle_of_steps_and_replaced(found: soak.Soak) -> None:
    assert found.kills > 5
    assert found.again > 0
    assert found.processes > soak.WORKERS


def test_nothing_is_lost_or_doubled(found: soak.Soak) -> None:
    assert found.epochs > 0
    assert found.rows == found.epochs * soak.ROWS
    assert (found.lost, found.doubled) == (0, 0)


def test_every_batch_is_what_it_must_be(found: soak.Soak) -> None:
    assert found.batches == found.epochs * soak.ROWS // soak.SIZE
    assert found.wrong == []


def test_nothing_is_left_behind_and_memory_does_not_grow(found: soak.Soak) -> None:
    assert dict(found.left) == {}
    assert found.growth < soak.MOST_GROWTH


def test_the_soak_says_so(found: soak.Soak) -> None:
    assert found.problems() == []
    assert "lost 0, doubled 0, wrong 0" in str(found)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (soak.Soak(kills=1, again=1, epochs=1, lost=2), "2 rows were lost"),
        (soak.Soak(kills=1, again=1, epochs=1, doubled=3), "3 rows were doubled"),
        (soak.Soak(kills=1, again=1, epochs=1, wrong=["epoch 0, step 4: x"]), "1 batches were wrong, the first: epoch"),
        (soak.Soak(kills=1, again=1, epochs=1, growth=99.0), "memory grew by 99.0 MB"),
        (soak.Soak(kills=1, again=1, epochs=1, left=soak.Counter(thread=1)), "left behind: {'thread': 1}"),
        (soak.Soak(again=1, epochs=1), "no worker was killed"),
        (soak.Soak(kills=1, epochs=1), "in the middle of a step"),
        (soak.Soak(kills=1, again=1), "no whole epoch"),
    ],
)
def test_a_soak_that_went_wrong_is_one_that_failed(bad: soak.Soak, says: str) -> None:
    (problem,) = bad.problems()
    assert says in problem
