"""Damaged states: refused by name, or a place where an epoch can stand; never another error, a hang or lost batches.

What is accepted is compared with the batches from the place on that the state then names. An epoch of its own
order is asked of a loader that was never given a state.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cases import generated
from hypothesis import given, settings
from hypothesis import strategies as hs
from trees import flat

import batchkit as bk

ROWS, SIZE, TAKEN = 23, 4, 7
"""Seven batches are taken before the state: one of the second epoch."""
ENOUGH = 14  # batches that are compared, where an epoch is endless
REPLACEMENTS = b'09-.e"{}[],: x\x00\xff'
HUGE = (2**62, 2**63, 2**64, 10**30)
GREATEST = max(HUGE)
WRONG: tuple[Any, ...] = tuple(
    value
    for value in (
        *(None, True, False, -1, 0, 1, 10**6, *HUGE, 1.5, float("nan"), float("inf")),
        *("", "0", "damaged", [], [0], [[]], {}, {"0": 0}),
    )
)


def noisy(row: Any, rng: Any) -> Any:
    """Add a draw."""
    return {**row, "noise": rng.random()}


def is_odd(row: Any) -> Any:
    """Keep every other row."""
    return row["x"] % 2 == 1


def is_long(row: Any) -> Any:
    """Keep most rows."""
    return len(row["seq"]) > 2


def twice(row: Any) -> Any:
    """Make two of one."""
    return [row, row]


def data(kind: str = "flat") -> Any:
    """Return rows in memory."""
    if kind == "ragged":
        found = list(generated(kind, ROWS, 0))
        return bk.from_ragged(
            {"seq": np.concatenate([row["seq"] for row in found])}, np.cumsum([0, *(len(row["seq"]) for row in found)])
        )
    return bk.from_arrays({"x": np.arange(ROWS)})


def stream() -> Any:
    """Return rows of a generator."""
    return bk.from_generator("cases:generated", kind="flat", rows=ROWS, first=0)


MADE: dict[str, Callable[[], bk.Pipeline]] = {
    "indexed": lambda: data().shuffle(1).batch(SIZE),
    "random": lambda: data().shuffle(1).repeat(2).random_map(noisy).batch(SIZE, remainder="drop"),
    "endless": lambda: data().shuffle(1).repeat().batch(SIZE),
    "generator": lambda: stream().repeat(2).batch(SIZE),
    "rebatched": lambda: data().batch(5).unbatch().shuffle(2).batch(SIZE),
    "filtered": lambda: data().shuffle(1).filter(is_odd).batch(2),
    "window shuffle": lambda: stream().shuffle(1, window=9).batch(SIZE),
    "buckets": lambda: data("ragged").shuffle(1).bucket_batch(3, boundaries=[4, 8, None]),
    "packed": lambda: data("ragged").shuffle(1).pack(16, bins=4).batch(1),
    "packed behind a filter": lambda: data("ragged").shuffle(1).filter(is_long).pack(16, bins=4).batch(1),
    "buckets behind a mix": lambda: bk.mix(
        [data("ragged").filter(is_long), data("ragged").flat_map(twice)], [1, 2]
    ).bucket_batch(6, boundaries=[4, 8, None]),
    "mixed": lambda: bk.mix([data(), data().take(9)], [2, 1], stop="all").batch(SIZE),
}
PIPELINES = tuple(MADE)
every = pytest.mark.parametrize("name", PIPELINES)


# -- a state, and what may become of it


def batches(iterator: Iterator[Any]) -> list[Any]:
    """Return what can be compared of the first batches."""
    return [
        {path: (leaf.dtype.str, leaf.shape, leaf.tobytes()) for path, leaf in flat(batch).items()}
        for batch in itertools.islice(iterator, ENOUGH)
    ]


class Fuzzed:
    """A pipeline, a state of it, and what it says to damaged ones."""

    def __init__(self, name: str) -> None:
        self.pipe, self.endless = MADE[name](), name == "endless"
        self._untouched = bk.Loader(self.pipe, executor="inline")
        with bk.Loader(self.pipe, executor="inline") as loader:
            passes = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
            for _ in zip(range(TAKEN), passes, strict=False):
                pass
            self.state = json.loads(json.dumps(loader.state_dict()))
            self.epochs: dict[int, list[Any]] = {}

    def epoch(self, number: int) -> list[Any]:
        """Return the batches of an epoch, as a loader has them that knows of no state."""
        if number not in self.epochs:
            self.epochs[number] = batches(self._untouched.iterate(number))
        return self.epochs[number]

    def refuses(self, state: Any) -> bool:
        """Load a state; say whether it is refused. If not, the batches must be the rest from where it says it is."""
        with bk.Loader(self.pipe, executor="inline") as loader:
            try:
                loader.load_state_dict(copy.deepcopy(state))
                now = loader.state_dict()
                got = batches(iter(loader))
            except bk.StateError:
                return True
        wanted = self.epoch(now["epoch"])[now["step"] :]
        if self.endless:
            wanted = batches(self._untouched.iterate(now["epoch"], start=now["step"]))
        if not wanted:
            # Only behind the last batch of an epoch whose length is not known: then the next one begins.
            behind = now["step"] > len(self.epoch(now["epoch"]))
            assert not behind, "the state is behind the end of its epoch"
            wanted = self.epoch(now["epoch"] + 1)
        assert got == wanted
        assert got != []
        return False


@functools.cache
def fuzzed_of(name: str) -> Fuzzed:
    """Return the one that all tests share."""
    return Fuzzed(name)


# -- damage


def damaged(text: bytes) -> Iterator[bytes]:
    """Yield a text with every byte removed, or replaced by others."""
    for place in range(len(text)):
        yield text[:place] + text[place + 1 :]
        for other in REPLACEMENTS:
            if other != text[place]:
                yield text[:place] + bytes([other]) + text[place + 1 :]
    for place in range(len(text)):
        yield text[:place]


def parsed(text: bytes) -> Any:
    """Return what the text says; nothing where it is no JSON any more."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a state, the state itself the first."""
    yield path
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in parts:
        yield from places(value, (*path, key))


def changed(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a state with another value at a place; without one it is taken out."""
    if not path:
        return value
    found = copy.deepcopy(state)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    if value is REMOVED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return found


REMOVED = object()
NEEDED = ((), ("version",), ("epoch",), ("step",), ("pipeline",))
"""What no state can do without. What else there is may be left out, if the batches are the same without it."""


@every
def test_the_state_itself_is_taken(name: str) -> None:
    fuzzed = fuzzed_of(name)
    assert not fuzzed.refuses(fuzzed.state)


@every
def test_a_state_damaged_in_any_byte_is_refused_or_names_another_place(name: str) -> None:
    fuzzed, tried, said = fuzzed_of(name), set[str](), []
    for text in damaged(json.dumps(fuzzed.state).encode()):
        state = parsed(text)
        key = json.dumps(state)
        if state is not None and state != fuzzed.state and key not in tried:
            tried.add(key)
            said.append(fuzzed.refuses(state))
    assert sum(said) > len(said) / 2 > 50


@every
def test_a_value_of_another_kind_anywhere_is_refused_or_names_another_place(name: str) -> None:
    fuzzed = fuzzed_of(name)
    for path in places(fuzzed.state):
        for value in (*WRONG, REMOVED) if path else WRONG:
            wrong = changed(fuzzed.state, path, value)
            refused = fuzzed.refuses(wrong)
            if path[:1] in NEEDED and not isinstance(value, int) and wrong != fuzzed.state:
                assert refused, (path, value)


@every
def test_a_list_that_became_longer_or_shorter_is_refused_or_names_another_place(name: str) -> None:
    fuzzed = fuzzed_of(name)
    for path in places(fuzzed.state):
        inner = fuzzed.state
        for key in path:
            inner = inner[key]
        if isinstance(inner, list):
            for other in ([*inner, 0], [*inner, *inner], inner[:-1]):
                refused = fuzzed.refuses(changed(fuzzed.state, path, other))
                assert refused or other == inner or path[:1] not in NEEDED, (path, other)


def test_an_epoch_or_a_step_that_is_too_great_is_refused() -> None:
    accepted = []
    for name, key, value in itertools.product(PIPELINES, ("epoch", "step"), HUGE):
        with bk.Loader(MADE[name](), executor="inline") as loader:
            state = {**loader.state_dict(), key: value}
            try:
                loader.load_state_dict(state)
                accepted.append((name, key, value))
            except bk.StateError:
                continue
    assert accepted == []


def test_a_step_behind_the_end_of_a_generator_is_refused() -> None:
    with bk.Loader(stream().batch(SIZE), executor="inline") as loader:
        loader.load_state_dict({**loader.state_dict(), "step": ROWS})
        with pytest.raises(bk.StateError):
            next(iter(loader))


@settings(max_examples=settings().max_examples * 3)
@given(hs.sampled_from(PIPELINES), hs.data())
def test_several_edits_at_random_are_refused_or_name_another_place(name: str, drawn: Any) -> None:
    fuzzed = fuzzed_of(name)
    state = fuzzed.state
    numbers = hs.one_of(hs.integers(max_value=GREATEST), hs.integers(-3, 40))
    for _ in range(drawn.draw(hs.integers(1, 3))):
        path = drawn.draw(hs.sampled_from(list(places(state))[1:] or [()]))
        state = changed(state, path, drawn.draw(hs.one_of(numbers, hs.sampled_from(WRONG), hs.text(max_size=3))))
        if not isinstance(state, dict):
            break
    fuzzed.refuses(state)
