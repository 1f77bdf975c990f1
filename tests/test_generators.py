"""What a generator source may be made of: functions whose iterators are new, and what can be iterated over again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import batchkit as bk

USED_UP: dict[str, Callable[[], Iterator[Any]]] = {
    "a generator": lambda: (row for row in range(12)),
    "a range": lambda: iter(range(12)),
    "a list": lambda: iter([*range(12)]),
    "a map": lambda: map(abs, range(12)),
    "a filter": lambda: filter(None, range(1, 13)),
}


@pytest.mark.parametrize("case", USED_UP)
def test_an_iterator_that_is_used_up_is_no_shorter_epoch(case: str) -> None:
    iterator = USED_UP[case]()
    with bk.Loader(bk.from_generator(lambda: iterator).batch(4)) as loader:
        assert len(list(loader)) == 3
        with pytest.raises(bk.SourceError, match="returned the same iterator as for the last epoch"):
            list(loader)


@pytest.mark.parametrize("case", USED_UP)
def test_going_on_over_an_iterator_that_was_begun_is_refused(case: str) -> None:
    iterator = USED_UP[case]()
    pipe = bk.from_generator(lambda: iterator).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        next(iter(loader))
        state = loader.state_dict()
    with bk.Loader(pipe, executor="inline") as loader:
        loader.load_state_dict(state)
        with pytest.raises(bk.SourceError, match="returned the same iterator as for the last epoch"):
            next(iter(loader))


class Lines:
    """Can be iterated over again and again, and says nothing more."""

    def __iter__(self) -> Iterator[dict[str, int]]:
        return ({"x": line} for line in range(10))


def values(batches: Any) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("rows", [Lines(), [{"x": line} for line in range(10)]], ids=["an object", "a list"])
def test_an_object_is_iterated_over_anew_in_every_epoch(rows: Any, executor: str) -> None:
    with bk.Loader(bk.from_generator(rows).batch(4), executor=executor) as loader:
        for _ in range(3):
            assert values(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_an_object_of_whole_batches_is_iterated_over() -> None:
    blocks = [{"x": np.arange(3)}, {"x": np.arange(3, 5)}]
    with bk.Loader(bk.from_generator(blocks, batched=True)) as loader:
        assert values(loader) == [[0, 1, 2], [3, 4]]


def test_the_epoch_of_an_object_goes_on_in_another_process() -> None:
    """There the object lies elsewhere in memory."""
    with bk.Loader(bk.from_generator(Lines()).batch(4), executor="inline") as loader:
        next(iter(loader))
        state = json.dumps(loader.state_dict())
    assert "0x" not in state
    with bk.Loader(bk.from_generator(Lines()).batch(4), executor="inline") as loader:
        loader.load_state_dict(json.loads(state))
        assert values(loader) == [[4, 5, 6, 7], [8, 9]]


def test_a_state_of_the_object_itself_is_not_asked_for_since_its_iterators_share_it() -> None:
    class Shared(Lines):
        def state_dict(self) -> Any:
            raise AssertionError("the state of which iterator?")

        load_state_dict = state_dict

    pipe = bk.from_generator(Shared()).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        next(iter(loader))
        state = loader.state_dict()
    with bk.Loader(pipe, executor="inline") as loader:
        loader.load_state_dict(state)
        assert values(loader) == [[4, 5, 6, 7], [8, 9]]


def test_an_object_whose_iterator_has_a_state_of_its_own_is_not_replayed() -> None:
    pulled: list[int] = []

    class Tape:
        def __init__(self) -> None:
            self.at = 0

        def __iter__(self) -> Tape:
            return self

        def __next__(self) -> dict[str, int]:
            if self.at == 10:
                raise StopIteration
            self.at += 1
            pulled.append(self.at)
            return {"x": self.at}

        def state_dict(self) -> dict[str, int]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.at = state["at"]

    class Tapes:
        def __iter__(self) -> Tape:
            return Tape()

    with bk.Loader(bk.from_generator(Tapes()).batch(4), executor="inline") as loader:
        next(iter(loader))
        state = loader.state_dict()
    pulled.clear()
    with bk.Loader(bk.from_generator(Tapes()).batch(4), executor="inline") as loader:
        loader.load_state_dict(state)
        assert values(loader) == [[5, 6, 7, 8], [9, 10]]
    assert min(pulled) == 5


def test_an_object_that_gives_the_same_iterator_again_is_noticed() -> None:
    class Once:
        def __init__(self) -> None:
            self.lines = iter(range(8))

        def __iter__(self) -> Iterator[int]:
            return self.lines

    with bk.Loader(bk.from_generator(Once()).batch(4)) as loader:
        assert len(list(loader)) == 2
        with pytest.raises(bk.SourceError, match=r"its __iter__\(\) returned the same iterator"):
            list(loader)


def test_an_object_is_not_exported_and_the_message_says_what_is() -> None:
    with pytest.raises(bk.PipelineError, match=r"the Lines of from_generator.*cannot be exported.*function that makes"):
        bk.from_generator(Lines()).batch(4).to_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": np.arange(3)}, "a dict does not. For a dict of columns, use from_arrays"),
        (b"abc", "a bytes does not"),
        (zip([1], [2], strict=True), "not a zip: an iterator can be used once only"),
    ],
)
def test_what_gives_no_rows_every_epoch_is_refused(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        bk.from_generator(given)


def test_arguments_for_an_object_that_is_not_called_are_refused() -> None:
    with pytest.raises(TypeError, match=r"was given arguments \(rows\), and a Lines that is iterated over"):
        bk.from_generator(Lines(), rows=3)
