"""Dividing a data set by an order for ever: what is held back is never seen elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk


def numbers(rows: int = 20) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows)})


def values(batches: Any) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


def divided(pipe: bk.Pipeline, window: int | None = None) -> bk.Pipeline:
    return pipe.shuffle(9, reshuffle=False, window=window)


def doubled(row: Any) -> Any:
    return {"x": row["x"] * 2}


def changed_at_random(row: Any, rng: Any) -> Any:
    return {**row, "noise": rng.random()}


def test_a_split_by_a_fixed_shuffle_never_mixes() -> None:
    whole = numbers().shuffle(7, reshuffle=False)
    test, train = whole.take(5).batch(5), whole.skip(5).shuffle(1).batch(15)
    with bk.Loader(test) as held_out, bk.Loader(train) as seen:
        for _ in range(3):
            assert sorted(values(held_out)[0] + values(seen)[0]) == list(range(20))


STANDS_BEHIND: dict[str, Callable[[bk.Pipeline], bk.Pipeline]] = {
    "random_map": lambda pipe: divided(pipe.random_map(changed_at_random)),
    "two random maps": lambda pipe: divided(pipe.random_map(changed_at_random).random_map(changed_at_random)),
    "random_map, by windows": lambda pipe: divided(pipe.random_map(changed_at_random), window=6),
    "a filter and a random_map, by windows": lambda pipe: divided(
        pipe.filter(lambda row: True).random_map(changed_at_random).take(100), window=6
    ),
}


@pytest.mark.parametrize("case", STANDS_BEHIND)
def test_random_stages_in_front_do_not_change_an_order_for_ever(case: str) -> None:
    """A row that a split holds back must not turn up in training because that also changes rows at random."""
    held_out = divided(numbers(), window=6 if "windows" in case else None).take(7).batch(7)
    seen = STANDS_BEHIND[case](numbers()).skip(7).batch(13)
    with bk.Loader(held_out) as one, bk.Loader(seen) as other:
        for _ in range(2):
            kept = values(one)[0]
            assert sorted(kept + values(other)[0]) == list(range(20))


def test_a_shuffle_in_front_does_not_change_which_positions_an_order_for_ever_takes() -> None:
    straight = values(bk.Loader(divided(numbers()).batch(20), executor="inline"))[0]
    with (
        bk.Loader(numbers().shuffle(2).batch(20)) as before,
        bk.Loader(divided(numbers().shuffle(2)).batch(20)) as both,
    ):
        for _ in range(2):
            shuffled = values(before)[0]
            assert values(both)[0] == [shuffled[place] for place in straight]


def test_a_mix_never_draws_the_rows_that_another_pipeline_holds_back() -> None:
    """The part's order for ever stands behind another part's shuffle, and is the one that divided the rows."""
    held_out = set(values(bk.Loader(divided(numbers()).take(6).batch(6), executor="inline"))[0])
    other = bk.from_arrays({"x": np.arange(100, 130)})
    mixed = bk.mix([other.shuffle(2), divided(numbers()).skip(6).shuffle(1)], [1, 1], stop="all").batch(10)
    with bk.Loader(mixed) as loader:
        for _ in range(3):
            drawn = {row for batch in values(loader) for row in batch if row < 100}
            assert drawn == set(range(20)) - held_out


def test_folds_put_together_hold_every_row_once() -> None:
    folds = [divided(numbers()).skip(4 * fold).take(4) for fold in range(5)]
    for left_out in range(5):
        rest = [fold for number, fold in enumerate(folds) if number != left_out]
        with bk.Loader(bk.concat(rest).batch(16)) as seen, bk.Loader(folds[left_out].batch(4)) as held_out:
            assert sorted(values(seen)[0] + values(held_out)[0]) == list(range(20))


def test_a_cache_knows_a_divided_data_set_again_behind_another_random_part(tmp_path: Path) -> None:
    """What is in a cache is told by what was done to the rows, and the order is the same there."""
    held = divided(numbers()).skip(6).map(doubled).cache(tmp_path)
    with bk.Loader(bk.concat([numbers(4).shuffle(2), held]).batch(18)) as loader:
        behind = values(loader)[0][4:]
    with bk.Loader(held.batch(14)) as loader:
        assert values(loader) == [behind]
    assert len(list(tmp_path.glob("*.lock"))) == 1
