"""Several pipelines as one: contents, epochs, draws, executors, resuming, ranks, descriptions, errors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from executors import every, loaded
from hypothesis import given, settings
from hypothesis import strategies as hs
from oracle import rank_slice

import batchkit as bk
from batchkit.plan import compile
from batchkit.random import Permutation

ENDLESS = 2**32
Rows = list[int]
Epochs = Callable[[int], Rows]
"""The rows of an epoch."""


def numbers(start: int, rows: int) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(start, start + rows)})


def parts_of(lengths: list[int]) -> tuple[list[bk.Pipeline], list[Rows]]:
    """Return pipelines of so many rows, part ``i`` beginning at ``100 * i``, and their rows."""
    return (
        [numbers(100 * part, length) for part, length in enumerate(lengths)],
        [list(range(100 * part, 100 * part + length)) for part, length in enumerate(lengths)],
    )


def loaded_rows(pipe: bk.Pipeline, epoch: int = 0, size: int = 7) -> Rows:
    with bk.Loader(pipe.batch(size), executor="inline") as loader:
        return [value for batch in loader.iterate(epoch) for value in batch["x"].tolist()]


def interleaved(rows: list[Rows], block: int) -> Rows:
    left = [list(part) for part in rows]
    found: Rows = []
    while any(left):
        for part in left:
            found += part[:block]
            del part[:block]
    return found


def mixed(parts: list[Epochs], weights: list[Any], stop: str, epoch: int) -> Rows:
    """Walk through a mix: part ``i``'s rows of its pass ``p`` are ``parts[i](epoch * ENDLESS + p)``."""
    counts = [0] * len(parts)
    through = [not weight for weight in weights]
    found: Rows = []
    while not (stop == "all" and all(through)):
        dues = [
            (Fraction(2 * count + 1, 2) / Fraction(weight), part)
            for part, (count, weight) in enumerate(zip(counts, weights, strict=True))
            if weight
        ]
        part = min(dues)[1]
        rows = parts[part](epoch)
        if stop == "first":
            if counts[part] == len(rows):
                return found
            found.append(rows[counts[part]])
        else:
            turn, index = divmod(counts[part], len(rows))
            found.append(parts[part](epoch * ENDLESS + turn)[index])
            through[part] = through[part] or counts[part] + 1 == len(rows)
        counts[part] += 1
    return found


def orders(length: int, seed: int, ordinal: int) -> Callable[[int], Rows]:
    """Return the order of a shuffle by epoch: the part of the contract that is no combination's."""

    def order(epoch: int) -> Rows:
        found: Rows = Permutation(length, (1, seed, ordinal, epoch))(np.arange(length)).tolist()
        assert sorted(found) == list(range(length))
        return found

    return order


some_lengths = hs.lists(hs.integers(0, 12), min_size=1, max_size=4)


# -- contents


@given(some_lengths, hs.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_concat_has_all_rows_of_each_part_in_turn(lengths: list[int], size: int) -> None:
    pipes, rows = parts_of(lengths)
    assert loaded_rows(bk.concat(pipes), size=size) == list(itertools.chain(*rows))


@given(some_lengths, hs.integers(1, 4), hs.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_interleave_takes_blocks_in_turn(lengths: list[int], block: int, size: int) -> None:
    pipes, rows = parts_of(lengths)
    assert loaded_rows(bk.interleave(pipes, block), size=size) == interleaved(rows, block)


@given(
    hs.lists(hs.tuples(hs.integers(1, 12), hs.integers(1, 9)), min_size=1, max_size=4),
    hs.sampled_from(["first", "all"]),
    hs.integers(1, 9),
)
@settings(deadline=None, max_examples=40)
def test_mix_draws_what_is_due_first(drawn: list[tuple[int, int]], stop: str, size: int) -> None:
    pipes, rows = parts_of([length for length, _ in drawn])
    weights = [weight for _, weight in drawn]
    wanted = mixed([lambda _, part=part: part for part in rows], weights, stop, 0)
    assert loaded_rows(bk.mix(pipes, weights, stop=stop), size=size) == wanted


def test_zip_gives_the_tree_of_rows() -> None:
    pipe = bk.zip({"a": numbers(0, 5), "b": (numbers(10, 5), numbers(20, 5).map(lambda row: row["x"] * 2))})
    (batch,) = bk.Loader(pipe.batch(5), executor="inline")
    assert batch["a"]["x"].tolist() == [0, 1, 2, 3, 4]
    assert batch["b"][0]["x"].tolist() == [10, 11, 12, 13, 14]
    assert batch["b"][1].tolist() == [40, 42, 44, 46, 48]


def test_zip_of_a_list_gives_tuples() -> None:
    batch = compile(bk.zip([numbers(0, 3), numbers(5, 3)]).batch(3)).batch(0)
    assert (batch[0]["x"].tolist(), batch[1]["x"].tolist()) == ([0, 1, 2], [5, 6, 7])


def test_zip_ends_with_the_shortest_if_it_may() -> None:
    pipe = bk.zip({"a": numbers(0, 5), "b": numbers(10, 3), "c": numbers(20, 9).repeat()}, stop="shortest")
    batch = compile(pipe.batch(9)).batch(0)
    assert [batch[name]["x"].tolist() for name in "abc"] == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


def test_one_part_is_that_part() -> None:
    for pipe in (bk.concat([numbers(0, 5)]), bk.interleave([numbers(0, 5)], 2), bk.mix([numbers(0, 5)], [0.3])):
        assert loaded_rows(pipe) == [0, 1, 2, 3, 4]


def test_combinations_nest() -> None:
    pipes, rows = parts_of([3, 4, 5, 6])
    pipe = bk.concat([bk.interleave(pipes[:2]), bk.mix([bk.concat(pipes[2:]), pipes[0]], [3, 1])])
    inner = rows[2] + rows[3]
    wanted = interleaved(rows[:2], 1) + mixed([lambda _: inner, lambda _: rows[0]], [3, 1], "first", 0)
    assert loaded_rows(pipe) == wanted


def test_parts_may_be_batched_and_unbatched_before() -> None:
    part = numbers(0, 10).batch(4).map(lambda batch: {"x": batch["x"] + 1}).unbatch()
    assert loaded_rows(bk.concat([numbers(50, 2), part.skip(1)])) == [50, 51, *range(2, 11)]


def test_stages_before_and_behind_a_combination_are_those_of_any_rows() -> None:
    one = numbers(0, 10).skip(4).map(lambda row: {"x": row["x"] * 10})
    two = numbers(0, 10).take(3).rename(x="y").rename(y="x")
    pipe = bk.concat([one, two]).skip(1).take(6).map(lambda row: {"x": row["x"] + 1}).repeat(2)
    once = [51, 61, 71, 81, 91, 1]
    assert loaded_rows(pipe) == once * 2


def test_endless_parts_make_endless_combinations() -> None:
    endless = numbers(0, 3).repeat()
    for pipe, wanted in (
        (bk.concat([numbers(10, 2), endless]), [10, 11, 0, 1, 2, 0]),
        (bk.interleave([endless, numbers(10, 2)]), [0, 10, 1, 11, 2, 0]),
        (bk.mix([endless, numbers(10, 2).repeat()], [1, 1]), [0, 10, 1, 11, 2, 10]),
        (bk.mix([numbers(0, 3), numbers(10, 2)], [1, 1], stop="forever"), [0, 10, 1, 11, 2, 10]),
    ):
        with bk.Loader(pipe.batch(3), executor="inline") as loader:
            with pytest.raises(TypeError, match="has no length"):
                len(loader)
            found = [batch["x"].tolist() for batch in itertools.islice(loader, 2)]
        assert list(itertools.chain(*found)) == wanted
    zipped = compile(bk.zip([endless, numbers(10, 2).repeat()]).batch(4))
    assert zipped.batch(1)[1]["x"].tolist() == [10, 11, 10, 11]


def test_parts_given_by_name_are_in_the_order_of_the_mapping() -> None:
    pipes, rows = parts_of([5, 5])
    pipe = bk.mix({"z": pipes[0], "a": pipes[1]}, {"a": 1, "z": 3})
    assert loaded_rows(pipe) == mixed([lambda _: rows[0], lambda _: rows[1]], [3, 1], "first", 0)


def test_a_schedule_of_weights_changes_them_at_its_rows() -> None:
    pipes, _ = parts_of([9, 9])
    pipe = bk.mix(pipes, schedule=[(0, [1, 0]), (3, [1, 1])], stop="first")
    assert loaded_rows(pipe)[:9] == [0, 1, 2, 3, 100, 4, 101, 5, 102]


# -- epochs


@pytest.mark.parametrize("stop", ["first", "all"])
def test_shuffles_of_parts_and_behind_them_are_each_their_own(stop: str) -> None:
    pipes, _ = parts_of([5, 8])
    pipe = bk.mix([pipes[0].shuffle(3), pipes[1].shuffle(3)], [1, 2], stop=stop)
    first, second = orders(5, 3, 0), orders(8, 3, 1)

    def rows(epoch: int) -> Rows:
        return mixed([first, lambda each: [100 + row for row in second(each)]], [1, 2], stop, epoch)

    for epoch in (0, 1, 5):
        found = rows(epoch)
        assert loaded_rows(pipe, epoch) == found
        last = orders(len(found), 3, 2)(epoch)
        assert loaded_rows(pipe.shuffle(3), epoch) == [found[place] for place in last]
    assert rows(0) != rows(1)


def test_each_pass_of_a_part_that_starts_again_is_another_epoch_of_it() -> None:
    pipe = bk.mix([numbers(0, 4).shuffle(1), numbers(100, 40)], [1, 1], stop="all")
    found = [value for value in loaded_rows(pipe) if value < 100]
    passes = [found[start : start + 4] for start in range(0, 40, 4)]
    assert all(sorted(each) == [0, 1, 2, 3] for each in passes)
    assert len({tuple(each) for each in passes}) > 4


def test_repeat_behind_a_combination_is_another_epoch_of_every_part() -> None:
    pipes, _ = parts_of([5, 8])
    once = bk.concat([pipes[0].shuffle(1), pipes[1].shuffle(2)])
    assert loaded_rows(once.repeat(2)) == loaded_rows(once, 0) + loaded_rows(once, 1)


def test_mixes_in_mixes_that_start_again_go_on_with_new_epochs() -> None:
    inner = bk.mix([numbers(0, 6).shuffle(1), numbers(100, 3)], [1, 1], stop="all")
    outer = bk.mix([bk.mix([inner, numbers(200, 2)], [1, 1], stop="all"), numbers(300, 90)], [1, 1], stop="all")
    orders_seen = set()
    for epoch in (0, 1, 2):
        found = [value for value in loaded_rows(outer, epoch) if value < 100]
        orders_seen |= {tuple(found[start : start + 6]) for start in range(0, len(found) - 5, 6)}
        assert all(sorted(found[start : start + 6]) == list(range(6)) for start in range(0, len(found) - 5, 6))
    assert len(orders_seen) > 6


def test_passes_within_passes_are_epochs_of_their_own_at_any_batch_size() -> None:
    inner = numbers(0, 6).shuffle(1).repeat().take(60)
    outer = bk.mix([bk.mix([inner, numbers(300, 9)], [1, 1], stop="all"), numbers(500, 200)], [1, 1], stop="all")
    found = {epoch: [value for value in loaded_rows(outer, epoch, 64) if value < 100] for epoch in (0, 1)}
    assert len({tuple(rows[at : at + 6]) for rows in found.values() for at in range(0, 96, 6)}) > 25
    for epoch, rows in found.items():
        assert [value for value in loaded_rows(outer, epoch, 5) if value < 100] == rows


# -- random stages and row ids


def drawing(row: Any, rng: Any) -> Any:
    return {**row, "draw": rng.random()}


def drawing_columns(batch: Any, rng: Any) -> Any:
    return {**batch, "late": rng.random()}


def draws(pipe: bk.Pipeline, size: int, shard: tuple[int, int] = (0, 1)) -> dict[int, tuple[float, float]]:
    with bk.Loader(pipe.batch(size).random_map(drawing_columns), shard=shard, executor="inline") as loader:
        return {
            int(value): (float(draw), float(late))
            for batch in loader
            for value, draw, late in zip(batch["x"], batch["draw"], batch["late"], strict=True)
        }


COMBINED = {
    "concat": lambda parts: bk.concat(parts),
    "interleave": lambda parts: bk.interleave(parts, 2),
    "mix": lambda parts: bk.mix(parts, [0.5, 0.5], stop="all"),
}
combined = pytest.mark.parametrize("combine", COMBINED.values(), ids=COMBINED)


@combined
def test_rows_of_different_parts_draw_differently_and_alike_at_any_batch_size(combine: Any) -> None:
    inside = combine([numbers(0, 6).random_map(drawing), numbers(100, 6).random_map(drawing)])
    behind = combine([numbers(0, 6), numbers(100, 6)]).random_map(drawing)
    for pipe in (inside, behind):
        found = draws(pipe, 4)
        assert len(found) == 12
        assert len(set(itertools.chain(*found.values()))) == 24
        assert found == draws(pipe, 5)
        assert {**draws(pipe, 4, (0, 2)), **draws(pipe, 4, (1, 2))} == found


def test_equal_parts_of_a_combination_draw_differently() -> None:
    part = numbers(0, 6)
    batch = compile(bk.concat([part, part]).random_map(drawing).batch(12)).batch(0)
    assert len(set(batch["draw"].tolist())) == 12


def ids_of(pipe: bk.Pipeline, rows: int) -> list[int]:
    plan = compile(pipe.batch(rows))
    assert plan.batches is not None
    from batchkit.plan.memory import FreshMemory

    return plan.batches.read(0, 0, (0, 1), FreshMemory()).ids.tolist()  # type: ignore[no-any-return]


def test_ids_of_parts_are_raised_by_the_source_rows_before_them() -> None:
    part = numbers(0, 10)
    assert ids_of(bk.concat([part.take(2), part.skip(8), part.repeat().take(12)]), 16) == [
        *(0, 1),
        *(18, 19),
        *range(20, 30),
        *(20, 21),
    ]


def test_ids_of_a_zip_are_positions() -> None:
    assert ids_of(bk.zip([numbers(0, 9).skip(3), numbers(0, 6).shuffle()]), 6) == [0, 1, 2, 3, 4, 5]


def test_ids_never_collide_with_those_of_an_endless_zip() -> None:
    zipped = bk.zip([numbers(0, 3).repeat()]).map(lambda row: row[0])
    ids = ids_of(bk.interleave([zipped, numbers(50, 40)]), 60)
    assert len(set(ids)) == 60


# -- what columns are put together


def test_columns_stay_columns_where_no_function_needs_rows() -> None:
    one = bk.from_arrays({"x": np.zeros((4, 3), np.float32), "s": np.array(["a", "b", "c", "d"])})
    two = bk.from_arrays({"s": np.array(["longer", "text"]), "x": np.ones((2, 3), np.float32)})
    batch = compile(bk.interleave([one, two]).batch(6)).batch(0)
    assert list(batch) == ["x", "s"]
    assert batch["s"].tolist() == ["a", "longer", "b", "text", "c", "d"]
    assert batch["x"][:, 0].tolist() == [0, 1, 0, 1, 0, 0]
    assert batch["x"].dtype == np.float32


def test_the_schema_is_known_without_a_batch() -> None:
    plan = compile(bk.concat([numbers(0, 3), numbers(5, 3).shuffle()]).batch(2))
    assert plan.schema() == {"x": bk.LeafSpec(np.dtype(np.int64), (2,))}
    assert not plan.by_row
    assert bk.zip([numbers(0, 3), numbers(5, 3)]).schema == (
        {"x": bk.LeafSpec(np.dtype(np.int64), ())},
        {"x": bk.LeafSpec(np.dtype(np.int64), ())},
    )


def test_ragged_columns_of_parts_are_joined() -> None:
    one = bk.from_ragged({"x": np.arange(6)}, [0, 1, 1, 6], {"n": np.arange(3)})
    two = bk.from_ragged({"x": np.arange(10, 15)}, [0, 2, 5], {"n": np.arange(10, 12)})
    batch = compile(bk.interleave([one, two]).padded_batch(5, pad_value=-1)).batch(0)
    assert batch["x"].tolist() == [
        [0, -1, -1, -1, -1],
        [10, 11, -1, -1, -1],
        [-1, -1, -1, -1, -1],
        [12, 13, 14, -1, -1],
        [1, 2, 3, 4, 5],
    ]
    assert batch["n"].tolist() == [0, 10, 1, 11, 2]


def test_rows_and_columns_are_put_together_as_rows() -> None:
    listed = bk.from_sequence([{"x": np.int64(7)}, {"x": np.int64(8)}])
    assert loaded_rows(bk.interleave([numbers(0, 3), listed])) == [0, 7, 1, 8, 2]
    with_function = numbers(0, 2).map(lambda row: {"x": row["x"] + 1})
    assert loaded_rows(bk.mix([with_function, numbers(5, 2), listed], [1, 1, 1])) == [1, 5, 7, 2, 6, 8]


def test_sequences_of_different_lengths_can_be_mixed_and_padded() -> None:
    parts = [bk.from_sequence([{"x": np.full(n, n)} for n in lengths]) for lengths in ([1, 3], [2])]
    batch = compile(bk.concat(parts).padded_batch(3)).batch(0)
    assert batch["x"].tolist() == [[1, 0, 0], [3, 3, 3], [2, 2, 0]]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"x": np.zeros((3, 2), np.float64)}, "leaf 'x' is float64[2], not float32[2]: give them one dtype by cast()"),
        ({"x": np.zeros((3, 5), np.float32)}, "leaf 'x' is float32[5], not float32[2]: bring them to one shape"),
        ({"y": np.zeros((3, 2), np.float32)}, "its rows are {y: float32[2]}, not {x: float32[2]}"),
    ],
)
@combined
def test_parts_that_are_not_alike_are_refused_when_that_is_known(combine: Any, other: Any, said: str) -> None:
    parts = [bk.from_arrays({"x": np.zeros((3, 2), np.float32)}), bk.from_arrays(other)]
    with pytest.raises(bk.SchemaError, match=r"part 1 is not like part 0") as caught:
        compile(combine(parts).batch(2))
    assert said in str(caught.value)


def test_parts_that_are_not_alike_are_refused_when_their_rows_meet() -> None:
    one = numbers(0, 3).map(lambda row: {"x": np.float32(row["x"])})
    plan = compile(bk.concat([one, numbers(5, 3)]).batch(4))
    with pytest.raises(bk.SchemaError, match=r"epoch 0, step 0: concat\(\): part 1 .* part 0: leaf 'x' is int64, not"):
        plan.batch(0)


# -- executors


def everything(folder: Path) -> tuple[bk.Pipeline, list[int]]:
    """Return a pipeline with parts of all kinds of sources, one of them in another combination, and its rows."""
    np.save(folder / "x.npy", np.arange(300, 310))
    ragged = bk.from_ragged({"v": np.arange(400, 405)}, [0, 2, 3, 5]).map(lambda row: {"x": row["v"][0]})
    parts = [
        numbers(0, 9).shuffle(2),
        bk.from_sequence([{"x": np.int64(value)} for value in range(100, 107)]),
        bk.interleave([numbers(200, 5).map(lambda row: {"x": row["x"] + 50}), bk.from_npy({"x": folder / "x.npy"})]),
        ragged,
    ]
    rows = [
        orders(9, 2, 0)(0),
        list(range(100, 107)),
        interleaved([list(range(250, 255)), list(range(300, 310))], 1),
        [400, 402, 403],
    ]
    return bk.concat([bk.mix(parts[:3], [2, 1, 3]), parts[3]]), [
        *mixed([lambda _, part=part: part for part in rows[:3]], [2, 1, 3], "first", 0),
        *rows[3],
    ]


@every
def test_every_executor_gives_the_same_rows(executor: str, tmp_path: Path) -> None:
    pipe, wanted = everything(tmp_path)
    with loaded(pipe.batch(4), executor) as loader:
        for _ in range(2):
            found = [value for batch in loader.iterate(0) for value in batch["x"].tolist()]
            assert found == wanted


@every
def test_every_executor_gathers_columns_of_several_sources(executor: str) -> None:
    big = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32)
    parts = [bk.from_arrays({"x": big}), bk.from_arrays({"x": -big}), bk.from_arrays({"x": big * 2})]
    pipe = bk.zip({"mixed": bk.mix(parts, [3, 2, 1], stop="all").take(60).shuffle(1), "n": numbers(0, 60)})
    order = mixed([lambda _, at=at: [at + row for row in range(64)] for at in (0, 64, 128)], [3, 2, 1], "all", 0)[:60]
    every_row = np.concatenate([big, -big, big * 2])[np.array(order)[orders(60, 1, 0)(0)]]
    with loaded(pipe.batch(16), executor) as loader:
        batches = list(loader.iterate(0))
    assert np.array_equal(np.concatenate([batch["mixed"]["x"] for batch in batches]), every_row)
    assert np.concatenate([batch["n"]["x"] for batch in batches]).tolist() == list(range(60))


@every
def test_a_combination_resumes_from_every_step(executor: str, tmp_path: Path) -> None:
    pipe = everything(tmp_path)[0].shuffle(5).batch(7)
    with loaded(pipe, executor) as loader:
        whole = [[batch["x"].tolist() for batch in loader] for _ in range(2)]
        steps = len(loader)
    assert whole[0] != whole[1]
    with loaded(pipe, "inline") as before, loaded(pipe, executor) as after:
        delivered = iter(before)
        for step in range(steps):
            state = json.loads(json.dumps(before.state_dict()))
            assert len(json.dumps(state)) <= 4096
            after.load_state_dict(state)
            assert [batch["x"].tolist() for batch in after] == whole[0][step:]
            next(delivered)
        assert [batch["x"].tolist() for batch in after] == whole[1]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_every_batch(world: int, tmp_path: Path) -> None:
    pipe, wanted = everything(tmp_path)
    batches = [wanted[start : start + 7] for start in range(0, len(wanted), 7)]
    for rank in range(world):
        with bk.Loader(pipe.batch(7), shard=(rank, world), executor="inline") as loader:
            found = [batch["x"].tolist() for batch in loader]
        assert found == [rank_slice(batch, rank, world) for batch in batches]


def test_a_padded_batch_of_a_combination_has_its_mask() -> None:
    batch = compile(bk.concat([numbers(0, 2), numbers(5, 1)]).batch(5, remainder="pad")).batch(0)
    assert batch["x"].tolist() == [0, 1, 5, 0, 0]
    assert batch["mask"].tolist() == [True, True, True, False, False]


# -- rows left out


def picky(row: Any) -> Any:
    if row["x"] % 5 == 3:
        raise ValueError("a bad row")
    return row


@every
def test_bad_rows_of_parts_are_left_out(executor: str) -> None:
    listed = bk.from_sequence([{"x": value} for value in range(100, 110)]).map(picky)
    mixture = bk.mix([numbers(0, 10).map(picky), listed], [1, 1])
    wanted = [value for pair in zip(range(10), range(100, 110), strict=True) for value in pair if value % 5 != 3]
    with loaded(mixture.batch(4), executor, on_error=bk.Skip(budget=9)) as loader:
        found = [value for batch in loader for value in batch["x"].tolist()]
        assert loader.skipped == 4
    assert found == wanted


@every
def test_a_row_of_a_zip_is_left_out_where_a_part_of_it_fails(executor: str) -> None:
    pipe = bk.zip({"a": numbers(0, 10).map(picky), "b": numbers(100, 10), "c": numbers(11, 10).map(picky)})
    with loaded(pipe.batch(5), executor, on_error=bk.Skip(budget=9)) as loader:
        batches = list(loader)
    for name, start in (("a", 0), ("b", 100), ("c", 11)):
        found = [value for batch in batches for value in batch[name]["x"].tolist()]
        assert found == [start + row for row in range(10) if row % 5 != 3 and (row + 11) % 5 != 3]


# -- descriptions


def ten_times(row: Any) -> Any:
    return {"x": row["x"] * 10}


@pytest.fixture
def described(tmp_path: Path) -> list[bk.Pipeline]:
    np.save(tmp_path / "x.npy", np.arange(10))
    one = bk.from_npy({"x": str(tmp_path / "x.npy")})
    two = one.shuffle(1).take(6)
    return [
        bk.concat([one, two]).batch(4),
        bk.interleave([one, two], 3).batch(4),
        bk.mix([one, two], [0.25, 1]).batch(4),
        bk.mix({"one": one, "two": bk.concat([one, two])}, {"one": 2, "two": 1}, stop="all").batch(4),
        bk.mix({"one": one, "two": two}, schedule=[(0, [1, 0]), (3, {"one": 1, "two": 2})]).batch(4),
        bk.zip({"source": one, "b": {"c": two, "stages": (one, two)}}, stop="shortest").batch(4),
        bk.zip((one, one)).batch(4),
    ]


def test_combinations_survive_json(described: list[bk.Pipeline]) -> None:
    for pipe in described:
        text = json.dumps(pipe.to_dict())
        again = bk.Pipeline.from_dict(json.loads(text), allow_imports=False)
        assert json.dumps(again.to_dict()) == text
        assert repr(again) == repr(pipe)
        one, two = compile(pipe), compile(again)
        assert one.fingerprint() == two.fingerprint()
        assert json.dumps(one.batch(0), default=np.ndarray.tolist) == json.dumps(
            two.batch(0), default=np.ndarray.tolist
        )


def test_functions_of_parts_are_refused_without_imports() -> None:
    part = {"source": {"kind": "npy", "path": "x.npy"}, "stages": [{"map": {"fn": "json:loads"}}]}
    generator = {"source": {"kind": "generator", "fn": "json:dumps"}}
    inner = {"source": {"kind": "zip", "pipelines": {"a": [part], "b": generator}}}
    with pytest.raises(bk.ConfigError, match="json:loads, json:dumps"):
        bk.Pipeline.from_dict({"source": {"kind": "concat", "pipelines": [inner]}}, allow_imports=False)


def test_a_description_that_holds_no_pipeline_is_refused() -> None:
    with pytest.raises(bk.ConfigError, match=r"pipelines\[0\] should be a pipeline.*not 3"):
        bk.Pipeline.from_dict({"source": {"kind": "concat", "pipelines": [3]}})


def test_a_part_in_memory_cannot_be_exported() -> None:
    with pytest.raises(bk.PipelineError, match=r"'arrays' cannot be exported"):
        bk.concat([numbers(0, 3)]).to_dict()


def test_a_pipeline_is_shown_with_its_parts_and_all_stages_counted() -> None:
    part = numbers(0, 4).shuffle(3).map(ten_times)
    pipe = bk.mix({"a": part, "b": bk.concat([numbers(0, 2), numbers(0, 1).take(1)])}, [1, 3]).batch(2)
    assert repr(pipe) == "\n".join(
        [
            "mix(weights={'a': 1, 'b': 3}): rows of {x: int64}",
            "  a: arrays: 4 rows of {x: int64}",
            "    0 shuffle(seed=3)",
            f"    1 map({ten_times.__module__}:ten_times)",
            "  b: concat(): rows of {x: int64}",
            "    0: arrays: 2 rows of {x: int64}",
            "    1: arrays: 1 rows of {x: int64}",
            "      2 take(count=1)",
            "  3 batch(size=2)",
        ]
    )


def test_what_cannot_be_told_of_parts_is_shown_with_the_reason() -> None:
    other = bk.from_arrays({"x": np.zeros(3)})
    assert "concat(): rows of ? (SchemaError: concat(): part 1 is not like part 0" in repr(
        bk.concat([numbers(0, 3), other])
    )
    with pytest.raises(bk.SchemaError, match="part 1 is not like part 0"):
        _ = bk.concat([numbers(0, 3), other]).schema
    assert bk.concat([bk.from_sequence([]), numbers(0, 0)]).batch(2)


def failing(row: Any) -> Any:
    raise ValueError("no")


@every
def test_messages_count_stages_over_all_parts(executor: str) -> None:
    pipe = bk.concat([numbers(0, 3).shuffle(), numbers(0, 3).take(2).map(failing)]).skip(1).batch(9)
    with (
        loaded(pipe, executor) as loader,
        pytest.raises(bk.StageError, match=r"stage 2 map\(.*failing\) failed on row 0"),
    ):
        list(loader)


def test_the_report_names_stages_with_their_part() -> None:
    pipe = bk.interleave([numbers(0, 30).map(ten_times), numbers(0, 30).map(ten_times)]).map(ten_times).batch(10)
    with bk.Loader(pipe, executor="inline") as loader:
        list(loader)
        names = [stage.name for stage in loader.statistics.stages]
    assert names[:5] == [
        "source interleave",
        "part 0: map(ten_times)",
        "part 1: map(ten_times)",
        "map(ten_times)",
        "batch(size=10)",
    ]


# -- state


def test_a_state_of_other_parts_is_refused() -> None:
    one, two = numbers(0, 6), numbers(100, 6)
    with bk.Loader(bk.mix([one.take(5), two], [1, 2]).batch(2)) as loader:
        next(iter(loader))
        state = loader.state_dict()
    for pipe, said in (
        (bk.mix([one.take(4), two], [1, 2]), r"its stage 0 is take\(count=5\), and here it is take\(count=4\)"),
        (bk.mix([one, two.take(5)], [1, 2]), "another data set"),
        (bk.mix([one.take(5), two], [1, 3]), "another data set"),
        (bk.mix([one.take(5), numbers(99, 6)], [1, 2]), "another data set"),
        (bk.mix([one.take(5), two], [1, 2], stop="all"), "another data set"),
    ):
        with bk.Loader(pipe.batch(2)) as loader, pytest.raises(bk.StateError, match=said):
            loader.load_state_dict(state)


def test_a_state_stays_small_with_many_parts() -> None:
    parts = [numbers(100 * part, 9).shuffle(part).skip(1).take(7) for part in range(60)]
    with bk.Loader(bk.interleave(parts).batch(4)) as loader:
        next(iter(loader))
        state = loader.state_dict()
        assert len(json.dumps(state)) <= 4096
        parts[7] = parts[7].skip(1)
        with bk.Loader(bk.interleave(parts).batch(4)) as other, pytest.raises(bk.StateError):
            other.load_state_dict(state)


# -- what cannot be right


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda p: bk.concat([]), bk.PipelineError, "concat() needs at least one pipeline"),
        (lambda p: bk.concat(p), TypeError, "concat() takes a list of pipelines, not a Pipeline"),
        (lambda p: bk.concat([p, np.zeros(3)]), TypeError, "concat(): part 1 is a ndarray, not a Pipeline"),
        (lambda p: bk.zip({"a": p, "b": None}), TypeError, "zip(): part b is a NoneType, not a Pipeline"),
        (lambda p: bk.mix([p, p.batch(2)], [1, 1]), bk.PipelineError, "mix(): part 1 ends in batches"),
        (lambda p: bk.interleave([p], 0), bk.PipelineError, "interleave(block) must be at least 1, not 0"),
        (lambda p: bk.interleave([p], 1.5), TypeError, "interleave(block) must be a whole number, not 1.5"),
        (lambda p: bk.zip([p], stop="shortes"), bk.PipelineError, "did you mean 'shortest'?"),
        (lambda p: bk.mix([p], [1], stop="last"), bk.PipelineError, "must be 'first', 'all' or 'forever', not 'last'"),
        (lambda p: bk.mix([p]), bk.PipelineError, "either weights, one a pipeline, or a schedule"),
        (lambda p: bk.mix([p], [1], schedule=[(0, [1])]), bk.PipelineError, "either weights, one a pipeline, or a sch"),
        (lambda p: bk.mix([p, p], [1]), bk.PipelineError, "mix(weights): there are 1 weights for 2 parts"),
        (lambda p: bk.mix([p, p], [1, float("nan")]), bk.PipelineError, "part 1 must be at least 0 and finite"),
        (lambda p: bk.mix([p, p], [1, "2"]), TypeError, "the weight of part 1 must be a number, not '2'"),
        (lambda p: bk.mix([p, p], {"a": 1}), bk.PipelineError, "names 'a', and the parts are a list"),
        (lambda p: bk.mix({"a": p}, {"b": 1}), bk.PipelineError, "names 'b', and the parts are 'a'"),
        (lambda p: bk.mix([p], schedule=[]), TypeError, "must be a list of (from which row on, weights)"),
        (lambda p: bk.mix([p], schedule=[(1, [1])]), bk.PipelineError, "piece 0 begins at row 1. It must begin at row"),
        (lambda p: bk.mix([p], schedule=[(0, [1]), (0, [2])]), bk.PipelineError, "It must begin behind row 0"),
        (lambda p: bk.mix([p], schedule=[(0, [1]), ("9", [2])]), TypeError, "begins at '9', which is no row's number"),
        (lambda p: bk.mix([p], schedule=[(0, [0])]), bk.PipelineError, "from row 0 on: all weights are 0"),
    ],
)
def test_what_cannot_be_right_is_refused_when_it_is_made(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        make(numbers(0, 3))
    assert isinstance(caught.value, bk.PipelineError)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: bk.zip({"a": p, "b": p.take(2)}), "unequal numbers of rows (a: 3, b: 2). Use stop='shortest'"),
        (lambda p: bk.zip([p, p.repeat()]), "unequal numbers of rows (0: 3, 1: endless)"),
        (lambda p: bk.concat([p.repeat(), p]), "part 0 is endless"),
        (lambda p: bk.mix([p, p.take(0)], [1, 1], stop="all"), "part 1 has no rows"),
    ],
)
def test_what_cannot_be_right_is_refused_when_it_is_compiled(make: Any, said: str) -> None:
    with pytest.raises(bk.PipelineError) as caught:
        compile(make(numbers(0, 3)).batch(2))
    assert said in str(caught.value)


# -- config files


def config(**source: Any) -> dict[str, Any]:
    return {"pipeline": {"source": source, "stages": [{"batch": {"size": 4}}]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.arange(6))
    np.save(tmp_path / "b.npy", np.arange(100, 106))
    return tmp_path


def test_a_config_file_may_combine_pipelines(folder: Path) -> None:
    (folder / "mix.yaml").write_text(
        """
pipeline:
  source:
    kind: mix
    pipelines:
      one: {source: {kind: npy, path: {x: a.npy}}, stages: [shuffle, take: 5]}
      two:
        source:
          kind: concat
          pipelines:
            - {source: {kind: npy, path: {x: b.npy}}}
            - {source: {kind: npy, path: {x: a.npy}}, stages: [{skip: 2}]}
    weights: {one: 1, two: 2}
    stop: all
  stages: [{batch: 4}]
loader: {executor: inline}
""",
        encoding="utf-8",
    )
    two = [*range(100, 106), 2, 3, 4, 5]

    def first(epoch: int) -> Rows:
        return orders(6, 0, 0)(epoch)[:5]

    wanted = mixed([first, lambda _: two], [1, 2], "all", 0)
    assert first(0) != first(1)
    with bk.load(folder / "mix.yaml") as loader:
        assert [value for batch in loader for value in batch["x"].tolist()] == wanted
    change = {"pipeline.source.pipelines.two.source.pipelines[1].stages[0].skip.count": 4}
    with bk.load(folder / "mix.yaml", overrides=change) as loader:
        last = [value for batch in loader for value in batch["x"].tolist()]
    assert last == mixed([first, lambda _: [*range(100, 106), 4, 5]], [1, 2], "all", 0)


def test_all_that_is_wrong_with_parts_is_told_with_its_place(folder: Path) -> None:
    content = config(
        kind="mix",
        pipelines=[
            {"source": {"kind": "npyy", "path": "a.npy"}},
            {"source": {"kind": "npy", "path": "a.npy"}, "stages": [{"take": {"cont": 3}}]},
        ],
        weights=[1, "x"],
    )
    with pytest.raises(bk.ConfigError) as caught:
        bk.load(content)
    text = str(caught.value)
    assert "pipeline.source.pipelines[0].source.kind: no source 'npyy'; did you mean 'npy'?" in text
    assert "pipeline.source.pipelines[1].stages[0].take.cont: there is no such key; did you mean 'count'?" in text
    assert "pipeline.source.weights" in text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "concat"}, "pipeline.source: the key 'pipelines' is missing"),
        ({"kind": "concat", "pipelines": []}, "pipeline.source.pipelines: should be a list or a mapping of pipelines"),
        ({"kind": "concat", "pipelines": [3]}, "pipelines[0] should be a pipeline, with 'source' and 'stages'"),
        ({"kind": "interleave", "pipelines": ["A"], "blok": 2}, "no such key; did you mean 'block'?"),
        ({"kind": "interleave", "pipelines": ["A"], "block": 0}, "interleave(block) must be at least 1, not 0"),
        ({"kind": "mix", "pipelines": ["A"], "weights": [0]}, "pipeline.source: mix(weights): all weights are 0"),
        ({"kind": "zip", "pipelines": {"a": "A"}, "stop": "x"}, "zip(stop) must be 'error' or 'shortest', not 'x'"),
    ],
)
def test_a_wrong_combination_is_told(folder: Path, source: Any, said: str) -> None:
    part = {"source": {"kind": "npy", "path": str(folder / "a.npy")}}
    filled = json.loads(json.dumps(source).replace('"A"', json.dumps(part)))
    with pytest.raises(bk.ConfigError) as caught:
        bk.load(config(**filled))
    assert said in str(caught.value)


def test_functions_of_parts_in_a_config_are_refused_without_imports(folder: Path) -> None:
    part = {"source": {"kind": "npy", "path": str(folder / "a.npy")}, "stages": [{"map": {"fn": "json:loads"}}]}
    with pytest.raises(bk.ConfigError, match=r"pipelines\[0\]\.stages\[0\]\.map\.fn: names the function json:loads"):
        bk.load(config(kind="concat", pipelines=[part]), allow_imports=False)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_of_any_numpy_float_are_the_decimals_that_they_are_written_as(dtype: Any) -> None:
    parts = [bk.from_arrays({"x": np.zeros(70, np.int64)}), bk.from_arrays({"x": np.ones(30, np.int64)})]
    for weights in (np.array([0.7, 0.3], dtype), [dtype(0.7), dtype(0.3)]):
        with bk.Loader(bk.mix(parts, weights).batch(10)) as loader:
            shares = [int(batch["x"].sum()) for batch in loader]
        assert shares == [3] * 10
