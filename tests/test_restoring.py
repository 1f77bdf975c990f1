"""Going on behind pack and bucket_batch: what of the rows before is computed again, and that nothing else is.

Every token says which source row it is of, so that the batches tell which rows were given out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

import batchkit as bk
from batchkit.state import packed_walk
from tests.executors import EXECUTORS
from tests.told import as_lists

CHUNK = 256
"""How many source rows are computed together in front of a pack or a bucket_batch."""
SEEN: list[int] = []
"""The rows that were computed, in order."""

Verb = Callable[[bk.Pipeline], bk.Pipeline]


def rows_of(count: int, first: int = 0) -> bk.Pipeline:
    """Return rows of 20 tokens, among them short ones that are held back for long."""
    lengths = [1 + i // 150 % 3 if i % 150 == 2 else 20 for i in range(count)]
    return bk.from_sequence([{"x": np.full(n, first + i + 1)} for i, n in enumerate(lengths)])


def noted(row: Any) -> Any:
    SEEN.append(int(row["x"][0]) - 1)
    return row


def most(row: Any) -> bool:
    return bool(row["x"][0] % 4)


def most_columns(columns: Any) -> Any:
    return columns["x"][:, 0] % 4 != 0


def whole(row: Any) -> bool:
    return len(row["x"]) == 20


def many(row: Any) -> bool:
    return bool(row["x"][0] % 3 != 1)


def several(row: Any) -> list[Any]:
    return [row] * int(1 + row["x"][0] % 3)


def first_fit(rows: bk.Pipeline) -> bk.Pipeline:
    return rows.pack(60, bins=6).batch(2)


def best_fit(rows: bk.Pipeline) -> bk.Pipeline:
    return rows.pack(60, bins=6, method="best_fit").batch(2)


def split(rows: bk.Pipeline) -> bk.Pipeline:
    return rows.pack(16, bins=6, oversize="split").batch(3)


def buckets(rows: bk.Pipeline) -> bk.Pipeline:
    return rows.bucket_batch(11, boundaries=[1, 2, 3, 20])


BEHIND: dict[str, Verb] = {
    "map": lambda rows: rows.map(noted),
    "filter": lambda rows: rows.map(noted).filter(most),
    "two filters": lambda rows: rows.map(noted).filter(most).filter(many),
    "flat_map": lambda rows: rows.map(noted).flat_map(several),
    "filter and flat_map": lambda rows: rows.map(noted).filter(most).flat_map(several).filter(many),
    "window inside": lambda rows: rows.map(noted).window(3, inside=True, remainder="keep"),
    "shuffled filter": lambda rows: rows.shuffle(3).map(noted).filter(most),
    "window shuffle between": lambda rows: rows.map(noted).filter(most).shuffle(2, window=30),
    "skip and take between": lambda rows: rows.map(noted).filter(most).skip(5).take(10_000),
    "take, then filter": lambda rows: rows.map(noted).filter(most).take(10_000).filter(many),
}
"""Stages that give source rows once and in the order in which they compute them, up to a window."""
OTHERS: dict[str, Verb] = {
    "repeat behind take": lambda rows: rows.map(noted).filter(most).take(200).repeat(3),
    "repeated filter": lambda rows: rows.map(noted).filter(most).repeat(2),
    "concat": lambda rows: bk.concat([rows.map(noted).filter(most), rows_of(200, 10_000).map(noted)]),
    "interleave": lambda rows: bk.interleave([rows.map(noted).filter(most), rows_of(300, 10_000)], block=3),
    "mix": lambda rows: bk.mix(
        [rows.map(noted).filter(most), rows_of(70, 10_000).map(noted).flat_map(several)], [2, 1], stop="all"
    ),
    "nested mix": lambda rows: bk.concat(
        [bk.mix([rows.map(noted).filter(most), rows_of(90, 10_000)], [1, 1]).filter(many), rows_of(80, 20_000)]
    ).shuffle(1, window=9),
    "zip": lambda rows: (
        bk.zip({"a": rows.filter(most), "b": rows.filter(most)}).map(lambda row: row["a"]).map(noted).filter(many)
    ),
    "window of rows": lambda rows: (
        rows.map(noted).filter(whole).window(2).flat_map(lambda row: [{"x": one} for one in row["x"]][:1])
    ),
    "batches taken apart": lambda rows: rows.map(noted).filter(most).padded_batch(8).unbatch(),
    "filtered batches taken apart": lambda rows: rows.map(noted).padded_batch(8).filter(most_columns).unbatch(),
    "packed twice": lambda rows: (
        rows.map(noted).filter(most).pack(30, bins=3).map(lambda row: {"x": row["x"]}).filter(most)
    ),
    "generator": lambda rows: bk.from_generator(yielded).map(noted).filter(most),
}
"""Others, for which going on is shown to be right, if not how little it computes."""


def yielded() -> Iterator[Any]:
    return ({"x": np.full(1 if i % 90 == 0 else 20, i + 1)} for i in range(260))


def loaded(pipe: bk.Pipeline, state: Any = None, **options: Any) -> tuple[list[list[Any]], list[Any]]:
    """Return the tokens of an epoch's batches, and the state behind each."""
    with bk.Loader(pipe, **options) as loader:
        if state is not None:
            loader.load_state_dict(json.loads(json.dumps(state)))
        batches, states = [], []
        for batch in loader:
            batches.append(np.asarray(batch["x"]).tolist())
            states.append(loader.state_dict())
    return batches, states


VERBS = (first_fit, best_fit, split, buckets)
PAIRS = [(name, VERBS[n % 2 + 2 * both]) for n, name in enumerate((*BEHIND, *OTHERS)) for both in (0, 1)]
"""Every pipeline with a way of packing that keeps rows whole or in order, and one that cuts or sorts them."""


def some_steps(count: int, shift: int) -> list[int]:
    """Return the first step, some in between, others for another ``shift``, and the last but one."""
    return sorted({0, *range(7 + shift % 11, count - 2, 11), count - 2})


@pytest.mark.parametrize(("name", "verb"), PAIRS)
def test_an_epoch_goes_on_from_its_steps_and_comes_to_the_same_states(name: str, verb: Verb) -> None:
    lengths = {"packed twice": 30, "batches taken apart": 20, "filtered batches taken apart": 20}
    pipe = {**BEHIND, **OTHERS}[name](rows_of(330))
    pipe = pipe.bucket_batch(11, boundaries=[3, lengths[name]]) if verb is buckets and name in lengths else verb(pipe)
    batches, states = loaded(pipe, executor="inline")
    assert len(batches) > 8
    for step in some_steps(len(states), len(name)):
        rest, behind = loaded(pipe, states[step], executor="inline")
        assert rest == batches[step + 1 :]
        if name not in NAMED_OTHERWISE:
            assert behind == states[step + 1 :]
    assert loaded(pipe, states[-1], executor="inline")[0] == loaded(pipe, {**states[-1], **NEXT}, executor="inline")[0]


NEXT = {"epoch": 1, "step": 0, "walk": None}
NAMED_OTHERWISE = ("interleave", "concat", "mix", "nested mix")
"""Where the parts stand is told from where a part's rows were last asked for, so that one place has several names."""


SPANS = {"window shuffle between": 2, "take, then filter": 3}
"""How many chunks the one in which the walk stands may need of those before it: a window, a chunk of what is left."""


def waiting(pipe: bk.Pipeline) -> tuple[dict[int, int], list[int], list[set[int]]]:
    """Run an epoch. Return the place of each row in the order of computing, and of every step up to which place rows
    were computed, and the places of the rows that come in later batches.
    """
    SEEN.clear()
    reached = []
    with bk.Loader(pipe, executor="inline") as loader:
        tokens = []
        for batch in loader:
            tokens.append(np.asarray(batch["x"]).ravel())
            reached.append(len(set(SEEN)) - 1)
    place = {row: number for number, row in enumerate(dict.fromkeys(SEEN))}
    rest, later = [], set[int]()
    for batch in reversed(tokens):
        rest.append(set(later))
        later |= {place[token - 1] for token in batch.tolist() if token}
    return place, reached, rest[::-1]


@pytest.mark.parametrize("verb", [first_fit, buckets])
@pytest.mark.parametrize("name", BEHIND)
def test_only_rows_that_are_held_back_are_computed_again_and_one_chunk(name: str, verb: Verb) -> None:
    pipe = verb(BEHIND[name](rows_of(2500)))
    place, reached, rest = waiting(pipe)
    _, states = loaded(pipe, executor="inline")
    far = 0
    for step in range(0, len(states) - 1, 43):
        SEEN.clear()
        with bk.Loader(pipe, executor="inline") as loader:
            loader.load_state_dict(json.loads(json.dumps(states[step])))
            iter(loader)
        computed = {place[row] for row in SEEN}
        began = (max(computed) // CHUNK + 1 - SPANS.get(name, 1)) * CHUNK
        before = {number for number in computed if number < began}
        front = max((number for number, most in enumerate(reached) if most < began), default=None)
        assert before <= (set() if front is None else rest[front])
        far += sum(number < began - 2 * CHUNK for number in before)
    assert far > 0  # else nothing was shown


@pytest.mark.parametrize("name", ["concat", "mix", "interleave", "repeat behind take"])
def test_behind_combinations_and_repeat_the_rows_in_between_are_not_computed(name: str) -> None:
    pipe = first_fit(OTHERS[name](rows_of(3000)))
    for step in (20, 50, 80):
        SEEN.clear()
        with bk.Loader(pipe, executor="inline") as loader:
            batches = iter(loader)
            for _ in range(step):
                next(batches)
            state, held = loader.state_dict(), len(loader._cursor.walk[1][0])
            following = next(batches)["x"].tolist()
        SEEN.clear()
        with bk.Loader(pipe, executor="inline") as loader:
            loader.load_state_dict(state)
            batches = iter(loader)
            assert len(SEEN) <= held + 3 * CHUNK
            assert next(batches)["x"].tolist() == following


@pytest.mark.parametrize(
    ("name", "executor"),
    [
        *(("filter and flat_map", executor) for executor in EXECUTORS),
        ("mix", "processes"),
        ("take, then filter", "threads"),
    ],
)
def test_every_executor_comes_to_the_same_states_and_goes_on_from_them(name: str, executor: str) -> None:
    pipe = first_fit({**BEHIND, **OTHERS}[name](rows_of(700)))
    batches, states = loaded(pipe, executor="inline")
    workers: dict[str, Any] = {} if executor in ("inline", "auto") else {"workers": 2}
    assert loaded(pipe, executor=executor, **workers) == (batches, states)
    middle = len(states) // 2
    assert loaded(pipe, states[middle], executor=executor, **workers) == (batches[middle + 1 :], states[middle + 1 :])


@pytest.mark.parametrize("name", ["filter", "flat_map", "mix", "window shuffle between"])
def test_every_rank_comes_to_the_same_states(name: str) -> None:
    pipe = first_fit({**BEHIND, **OTHERS}[name](rows_of(400)))
    _, states = loaded(pipe, executor="inline")
    for rank in range(3):
        assert loaded(pipe, shard=(rank, 3), executor="inline")[1] == states


def test_parts_whose_addresses_differ_in_length_or_are_missing_go_together() -> None:
    kept = [[i + 1 for i in range(600) if (i + 1) % 4], [i + 1 for i in range(1000, 1300) if (i + 1) % 4] * 2]
    kept.append(list(range(1, 261)))
    expected, places, turns = list[int](), [0, 0, 0], itertools.cycle(range(3))
    while len(expected) < sum(map(len, kept)):
        part = next(turns)
        expected += kept[part][places[part] : places[part] + 2]
        places[part] += 2
    parts = [rows_of(600).filter(most), rows_of(300, 1000).filter(most).take(999).repeat(2), bk.from_generator(yielded)]
    pipe = bk.interleave(parts, block=2)
    found = loaded(pipe.map(lambda row: {"x": row["x"][:1]}).batch(7), executor="inline")[0]
    assert [token for batch in found for (token,) in batch] == expected
    batches, states = loaded(first_fit(pipe), executor="inline")
    for step in some_steps(len(states), 5):
        assert loaded(first_fit(pipe), states[step], executor="inline")[0] == batches[step + 1 :]


def lineages(pipe: bk.Pipeline, state: Any = None) -> tuple[list[list[list[int]]], list[Any]]:
    """Return what an epoch's batches say where their rows are from, and the state behind each."""
    told, states = [], []
    with bk.Loader(pipe, executor="inline", lineage=True) as loader:
        if state is not None:
            loader.load_state_dict(state)
        for batch in loader:
            told.append(as_lists(batch["lineage"]))
            states.append(loader.state_dict())
    return told, states


@pytest.mark.parametrize("name", ["map", "filter", "flat_map", "repeated filter", "mix", "nested mix", "generator"])
def test_rows_that_are_computed_again_are_still_said_to_be_of_their_source_rows(name: str) -> None:
    pipe = first_fit({**BEHIND, **OTHERS}[name](rows_of(400)))
    told, states = lineages(pipe)
    for step in some_steps(len(states), len(name)):
        assert lineages(pipe, states[step])[0] == told[step + 1 :]


@pytest.mark.parametrize("verb", [first_fit, buckets])
def test_positions_that_were_held_back_are_still_said_to_be_of_their_source_rows(verb: Verb) -> None:
    lengths = [1 + i % 3 if i % 50 == 2 else 20 for i in range(700)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    pipe = verb(bk.from_ragged({"x": np.repeat(np.arange(700), lengths)}, offsets).shuffle(4))
    told, states = lineages(pipe)
    for step in some_steps(len(states), 3):
        assert lineages(pipe, states[step])[0] == told[step + 1 :]


def keeps_half(row: Any) -> bool:
    return bool(row["x"][0] % 2)


@pytest.mark.parametrize(
    "before",
    [
        lambda rows: rows.filter(keeps_half),
        lambda rows: rows.shuffle(1).filter(keeps_half).filter(many),
        lambda rows: rows.flat_map(several),
        lambda rows: bk.mix([rows.filter(keeps_half), rows.filter(many)], [1, 2]),
        lambda rows: bk.mix([rows.filter(most) for _ in range(5)], [1, 2, 3, 4, 5], stop="all"),
        lambda rows: bk.mix([rows.skip(400 * part).filter(most) for part in range(10)], list(range(1, 11)), stop="all"),
        lambda rows: rows.filter(keeps_half).shuffle(3, window=300),
    ],
)
def test_a_state_with_a_thousand_rows_held_back_fits_in_4_kilobytes(before: Verb) -> None:
    lengths = np.random.default_rng(1).integers(1, 200, 5000)
    pipe = before(bk.from_sequence([{"x": np.full(n, i)} for i, n in enumerate(lengths)]))
    found: list[tuple[int, int]] = []
    for each in (
        pipe.pack(1000, bins=90).batch(1),
        pipe.pack(1000, bins=95).batch(1),
        pipe.pack(1000, bins=100, method="best_fit").batch(1),
        pipe.bucket_batch(100, boundaries=list(range(10, 201, 10))),
    ):
        with bk.Loader(each, executor="inline") as loader:
            for _ in itertools.islice(loader, 250):
                held = len(loader._cursor.walk[1][0])
                if held <= 1000:
                    found.append((held, len(json.dumps(loader.state_dict()))))
    assert max(held for held, _ in found) >= 800
    assert max(size for _, size in found) <= 4096


def picky(row: Any) -> Any:
    if row["x"][0] % 10 == 7:
        raise ValueError("not this one")
    return noted(row)


def fails(row: Any) -> Any:
    if row["x"][0] > 1003:
        raise ValueError("not this one")
    return row


@pytest.mark.parametrize(
    "before",
    [
        lambda rows: rows.map(picky),
        lambda rows: rows.map(picky).filter(most),
        lambda rows: rows.flat_map(several).map(picky),
        lambda rows: bk.concat([rows_of(256, 1000).map(fails), rows.map(picky)]).map(dict).filter(most),
        lambda rows: bk.mix([rows_of(300, 1000).map(picky), rows.map(picky)], [1, 2]).map(dict).filter(most),
        lambda rows: bk.zip({"a": rows.map(picky), "b": rows.map(picky)}).map(lambda row: row["a"]).filter(most),
        lambda rows: rows.map(picky).cache().map(dict).filter(most),
        lambda rows: bk.mix([rows.map(picky).filter(most), rows_of(80, 10_000)], [2, 1], stop="all"),
    ],
)
def test_rows_that_were_left_out_move_no_other_rows(before: Verb) -> None:
    pipe = first_fit(before(rows_of(900)))
    skip = bk.Skip(budget=10_000)
    batches, states = loaded(pipe, executor="inline", on_error=skip)
    for step in range(0, len(states) - 1, 31):
        assert loaded(pipe, states[step], executor="inline", on_error=skip)[0] == batches[step + 1 :]


def test_rows_that_cannot_be_read_move_no_other_rows() -> None:
    class Broken(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index % 9 == 4:
                raise OSError("not this one")
            return super().__getitem__(index)

    rows = bk.from_sequence(Broken({"x": np.full(1 if i % 80 == 0 else 20, i + 1)} for i in range(600)))
    for pipe in (first_fit(rows.filter(most)), first_fit(rows.shuffle(1).map(noted).filter(most))):
        skip = bk.Skip(budget=10_000)
        batches, states = loaded(pipe, executor="inline", on_error=skip)
        for step in range(0, len(states) - 1, 31):
            assert loaded(pipe, states[step], executor="inline", on_error=skip)[0] == batches[step + 1 :]


def test_a_filter_that_changed_is_refused_where_a_row_held_back_is_not_there_any_more() -> None:
    keeps = {"all": True}

    def changing(row: Any) -> bool:
        return keeps["all"] or bool(row["x"][0] % 2)

    pipe = first_fit(rows_of(900).filter(changing))
    _, states = loaded(pipe, executor="inline")
    keeps["all"] = False
    with pytest.raises(bk.StateError, match="not there any more: the data or a function changed since"):
        loaded(pipe, states[70], executor="inline")


def edited(value: Any, drawn: Any) -> Any:
    """Return a state's walk with something changed in it."""
    if isinstance(value, (list, tuple)) and value and drawn.draw(some.integers(0, 5)):
        place = drawn.draw(some.integers(0, len(value) - 1))
        return [edited(each, drawn) if here == place else each for here, each in enumerate(value)]
    if isinstance(value, np.ndarray) and len(value) and drawn.draw(some.booleans()):
        changed = value.copy()
        changed[drawn.draw(some.integers(0, len(value) - 1))] = drawn.draw(some.integers(-3, 2**62))
        return changed
    if isinstance(value, np.ndarray):
        return drawn.draw(some.sampled_from([value[1:], np.append(value, 0), np.zeros(0, np.int64), [], None]))
    return drawn.draw(some.one_of(some.integers(-3, 2**62), some.sampled_from([None, [], [0], [1, None], "x", 1.5])))


@settings(deadline=None)
@given(
    name=some.sampled_from(["filter", "flat_map", "mix", "repeat behind take", "generator", "window shuffle between"]),
    verb=some.sampled_from([first_fit, split, buckets]),
    drawn=some.data(),
)
def test_a_walk_of_the_wrong_form_is_refused_or_a_place_where_it_can_stand(name: str, verb: Verb, drawn: Any) -> None:
    pipe = verb({**BEHIND, **OTHERS}[name](rows_of(300)))
    with bk.Loader(pipe, executor="inline") as loader:
        for _ in itertools.islice(loader, 6):
            pass
        state, walk = loader.state_dict(), loader._cursor.walk
    state["walk"] = packed_walk(0, state["step"], edited(walk, drawn))  # the checksum is right
    with contextlib.suppress(bk.BatchkitError):
        loaded(pipe, state, executor="inline")
