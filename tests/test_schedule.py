"""The closed forms of schedules against a loop that walks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

import batchkit as bk
from batchkit.schedule import MixSchedule, Runs, Turns, whole_weights

Row = tuple[int, int]


def walked(weights: list[Any]) -> Iterator[Row]:
    """Yield part and index of every row: always the part whose next row is due first, the first one of equals."""
    counts = [0] * len(weights)
    while True:
        dues = [
            (Fraction(2 * count + 1, 2) / Fraction(weight), part)
            for part, (weight, count) in enumerate(zip(weights, counts, strict=True))
            if weight
        ]
        part = min(dues)[1]
        yield part, counts[part]
        counts[part] += 1


def rows(weights: list[Any], count: int) -> list[Row]:
    return [row for row, _ in zip(walked(weights), range(count), strict=False)]


def mixed(weights: list[Any], lengths: list[int | None] | None = None, stop: str = "forever") -> MixSchedule:
    whole = whole_weights(weights, len(weights), "weights")
    return MixSchedule([(0, whole)], lengths or [None] * len(weights), stop)


def located(schedule: Any, positions: Any) -> list[Row]:
    part, index = schedule.locate(np.asarray(positions, np.int64))
    return list(zip(part.tolist(), index.tolist(), strict=True))


whole_numbers = hs.lists(hs.integers(0, 12), min_size=1, max_size=6).filter(any)
doubles = hs.lists(hs.floats(2.0**-30, 2.0**30), min_size=1, max_size=5)


@given(whole_numbers)
@settings(deadline=None, max_examples=60)
def test_whole_weights_give_the_order_of_the_dues(weights: list[int]) -> None:
    assert located(mixed(weights), range(150)) == rows(weights, 150)


@given(doubles)
@settings(deadline=None, max_examples=60)
def test_any_floats_give_the_order_of_the_dues(weights: list[float]) -> None:
    whole = whole_weights(weights, len(weights), "weights")
    assert located(mixed(weights), range(80)) == rows(whole, 80)


@given(hs.floats(0.01, 1), hs.lists(hs.integers(1, 5), min_size=2, max_size=4), hs.floats(0.01, 1))
@settings(deadline=None, max_examples=60)
def test_dues_that_floats_cannot_tell_apart_are_compared_exactly(base: float, times: list[int], last: float) -> None:
    exact = [Fraction(base) * factor for factor in times]
    common = math.lcm(*(weight.denominator for weight in [*exact, Fraction(last)]))
    weights = [int(weight * common) for weight in [*exact, Fraction(last)]]
    assert located(mixed(weights), range(120)) == rows(weights, 120)


@pytest.mark.parametrize("weights", [[7, 3], [1, 1, 1], [0.1, 0.2, 0.7], [math.pi, math.e, 1.0], [1e-9, 1.0]])
@pytest.mark.parametrize("start", [0, 10**6 + 7, 10**12 + 3, 10**15 + 1, 2**60 - 1])
def test_a_position_far_off_is_where_its_row_is_due(weights: list[float], start: int) -> None:
    schedule = mixed(weights)
    whole = [Fraction(weight) for weight in whole_weights(weights, len(weights), "weights")]
    for position, (part, index) in enumerate(located(schedule, range(start, start + 40)), start):
        due = (index + Fraction(1, 2)) / whole[part]
        before = 0
        for other, weight in enumerate(whole):
            # Rows k with (k + 1/2) / weight < due, or <= for the parts that come first.
            least = due * weight - Fraction(1, 2)
            before += max(math.floor(least) + 1 if other < part else math.ceil(least), 0)
        assert before == position


def test_scattered_positions_are_those_of_the_whole_run() -> None:
    schedule = mixed([math.sqrt(2), 1.0, math.sqrt(3)])
    whole = located(schedule, range(500))
    places = np.random.default_rng(0).permutation(500)
    assert located(schedule, places) == [whole[place] for place in places]


def test_decimals_and_thirds_are_taken_as_the_fractions_that_they_stand_for() -> None:
    assert whole_weights([0.7, 0.3], 2, "w") == [7, 3]
    assert whole_weights([1 / 3, 2 / 3], 2, "w") == [1, 2]
    assert whole_weights([4, 0, 6], 3, "w") == [2, 0, 3]
    assert whole_weights(np.array([0.5, 0.25]), 2, "w") == [2, 1]


def test_other_floats_are_taken_at_their_own_value() -> None:
    one, two = whole_weights([math.pi, 1.0], 2, "w")
    assert Fraction(one, two) == Fraction(math.pi)


@given(whole_numbers)
@settings(deadline=None, max_examples=30)
def test_every_part_has_its_share_after_any_number_of_rows(weights: list[int]) -> None:
    counts, total = [0] * len(weights), sum(weights)
    for done, (part, _) in enumerate(located(mixed(weights), range(3 * total)), 1):
        counts[part] += 1
        assert all(
            abs(count - done * Fraction(weight, total)) < max(len(weights) / 2, 1) + 1
            for count, weight in zip(counts, weights, strict=True)
        )
    assert counts == [3 * weight for weight in weights]


def test_a_part_of_weight_0_is_never_drawn() -> None:
    assert {part for part, _ in located(mixed([0, 2, 0, 1]), range(100))} == {1, 3}


# -- lengths


def length_walked(weights: list[int], lengths: list[int | None], stop: str) -> int:
    left = {part for part, weight in enumerate(weights) if weight}
    for position, (part, index) in enumerate(walked(weights)):
        rows = lengths[part]
        if stop == "first" and index == rows:
            return position
        if stop == "all" and rows is not None and index == rows - 1:
            left.discard(part)
            if not left:
                return position + 1
    raise AssertionError("unreachable")


@given(hs.lists(hs.tuples(hs.integers(0, 9), hs.integers(0, 30)), min_size=1, max_size=5), hs.data())
@settings(deadline=None, max_examples=80)
def test_first_ends_where_a_part_is_due_that_has_no_row_left(parts: list[tuple[int, int]], data: Any) -> None:
    weights = [weight for weight, _ in parts]
    if not any(weights):
        weights[0] = 1
    lengths: list[int | None] = [length for _, length in parts]
    assert mixed(weights, lengths, "first").length == length_walked(weights, lengths, "first")


@given(hs.lists(hs.tuples(hs.integers(1, 9), hs.integers(1, 30)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=80)
def test_all_ends_when_every_part_was_through_once(parts: list[tuple[int, int]]) -> None:
    weights = [weight for weight, _ in parts]
    lengths: list[int | None] = [length for _, length in parts]
    assert mixed(weights, lengths, "all").length == length_walked(weights, lengths, "all")


def test_forever_has_no_end_and_neither_have_endless_parts() -> None:
    assert mixed([1, 1], [3, 4], "forever").length is None
    assert mixed([1, 1], [None, None], "first").length is None
    assert mixed([1, 1], [None, 4], "all").length is None
    assert mixed([1, 1], [None, 4], "first").length == 9


def test_a_part_without_rows_ends_the_mix_or_cannot_be_waited_for() -> None:
    assert mixed([3, 1], [5, 0], "first").length == 2
    assert mixed([1, 0], [5, 0], "all").length == 5
    with pytest.raises(bk.PipelineError, match=r"stop='all'.*part 1 has no rows.*weight 0"):
        mixed([1, 1], [5, 0], "all")
    with pytest.raises(bk.PipelineError, match=r"stop='forever'.*part 0 has no rows"):
        mixed([1, 1], [0, 5], "forever")


# -- pieces


def pieces_walked(pieces: list[tuple[int, list[int]]], count: int) -> list[Row]:
    """Each piece begins its dues anew; the parts go on where they were."""
    drawn = [0] * len(pieces[0][1])
    found: list[Row] = []
    for number, (begin, weights) in enumerate(pieces):
        end = pieces[number + 1][0] if number + 1 < len(pieces) else count
        for part, _ in rows(weights, max(end - begin, 0)):
            found.append((part, drawn[part]))
            drawn[part] += 1
    return found[:count]


@given(hs.lists(hs.tuples(hs.integers(1, 40), hs.tuples(*[hs.integers(0, 9)] * 3)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_each_piece_of_a_schedule_counts_anew(drawn: list[tuple[int, tuple[int, ...]]]) -> None:
    pieces, begin = [], 0
    for rows_of, weights in drawn:
        pieces.append((begin, list(weights) if any(weights) else [1, 0, 0]))
        begin += rows_of
    schedule = MixSchedule(pieces, [None] * 3, "forever")
    wanted = pieces_walked(pieces, 200)
    assert located(schedule, range(200)) == wanted
    assert [schedule.position(*row) for row in wanted] == list(range(200))


def test_the_length_of_a_schedule_counts_all_its_pieces() -> None:
    pieces = [(0, [1, 0]), (4, [1, 3])]
    assert MixSchedule(pieces, [5, 6], "first").length == pieces_walked(pieces, 30).index((0, 5)) == 9
    assert MixSchedule(pieces, [3, 6], "first").length == pieces_walked(pieces, 30).index((0, 3)) == 3


def test_a_part_that_is_never_through_is_refused() -> None:
    with pytest.raises(bk.PipelineError, match=r"only 4 of the 9 rows of part 0 come before.*stop='first'"):
        MixSchedule([(0, [1, 0]), (4, [0, 1])], [9, 3], "all")


# -- weights that cannot be right


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1], "there are 1 weights for 2 parts"),
        ([1, 2, 3], "there are 3 weights for 2 parts"),
        ([0, 0], "all weights are 0"),
        ([1, -1], "the weight of part 1 must be at least 0 and finite, not -1"),
        ([math.nan, 1], "the weight of part 0 must be at least 0 and finite, not nan"),
        ([1, math.inf], "the weight of part 1 must be at least 0 and finite, not inf"),
        ([True, 1], "the weight of part 0 must be a number, not True"),
        (["1", 1], "the weight of part 0 must be a number, not '1'"),
        ("11", "must be one number a part, not '11'"),
        (3, "must be one number a part, not 3"),
    ],
)
def test_weights_that_cannot_be_right_are_refused(weights: Any, said: str) -> None:
    with pytest.raises(bk.PipelineError) as caught:
        whole_weights(weights, 2, "mix(weights)")
    assert str(caught.value).startswith("mix(weights)")
    assert said in str(caught.value)


# -- runs and turns


def turns_walked(lengths: list[int], block: int) -> list[Row]:
    left = [list(range(length)) for length in lengths]
    found: list[Row] = []
    while any(left):
        for part, rest in enumerate(left):
            found += [(part, index) for index in rest[:block]]
            del rest[:block]
    return found


@given(hs.lists(hs.integers(0, 12), min_size=1, max_size=5), hs.integers(1, 5))
@settings(deadline=None, max_examples=100)
def test_turns_pass_over_what_has_ended(lengths: list[int], block: int) -> None:
    schedule = Turns(lengths, block)
    wanted = turns_walked(lengths, block)
    assert schedule.length == len(wanted)
    assert located(schedule, range(len(wanted))) == wanted


def test_turns_with_an_endless_part_go_on_with_it() -> None:
    schedule = Turns([3, None, 1], 2)
    assert schedule.length is None
    first = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (1, 2), (1, 3), (1, 4), (1, 5)]
    assert located(schedule, range(10)) == first
    assert located(schedule, [10**12]) == [(1, 10**12 - 4)]


@given(hs.lists(hs.integers(0, 6), min_size=1, max_size=5))
def test_runs_are_one_after_the_other(lengths: list[int]) -> None:
    schedule = Runs(lengths)
    wanted = [(part, index) for part, length in enumerate(lengths) for index in range(length)]
    assert schedule.length == len(wanted)
    assert located(schedule, range(len(wanted))) == wanted


def test_only_the_last_run_may_be_endless() -> None:
    schedule = Runs([2, None])
    assert schedule.length is None
    assert located(schedule, [1, 2, 10**12]) == [(0, 1), (1, 0), (1, 10**12 - 2)]
    with pytest.raises(bk.PipelineError, match=r"part 0 is endless.*last, or give its repeat\(\) a count"):
        Runs([None, 2])
