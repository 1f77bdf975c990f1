"""Rows as data sets elsewhere return them: mappings of any class (which are dicts here), lists, None."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from executors import EXECUTORS

import batchkit as bk


class Encoding(dict[str, Any]):
    """A dict of another class."""


def encoded(row: Any, kind: Any = collections.UserDict) -> Any:
    number = int(row["x"])
    return kind({"ids": np.arange(number, number + 3), "label": number % 2})


def encodings() -> list[Any]:
    return [encoded({"x": number}) for number in range(10)]


def several() -> Iterator[Any]:
    yield from encodings()


def whole(start: int) -> Any:
    numbers = np.arange(start, start + 5)
    return collections.UserDict({"ids": numbers[:, None] + np.arange(3), "label": numbers % 2})


ROWS = {
    "of a sequence": lambda: bk.from_sequence(encodings()),
    "of a generator": lambda: bk.from_generator(several),
    "of a map": lambda: bk.from_arrays({"x": np.arange(10)}).map(encoded),
    "of a map to another dict": lambda: bk.from_arrays({"x": np.arange(10)}).map(encoded, kind=Encoding),
    "of a random_map": lambda: bk.from_arrays({"x": np.arange(10)}).random_map(lambda row, rng: encoded(row)),
    "of a flat_map": lambda: bk.from_arrays({"x": np.arange(10)}).flat_map(lambda row: [encoded(row)]),
    "of a map in front of a filter": lambda: (
        bk.from_arrays({"x": np.arange(12)}).map(encoded).filter(lambda row: row["ids"][0] < 10)
    ),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_that_are_mappings_are_rows_of_their_values(rows: Any, executor: str) -> None:
    with bk.Loader(rows().batch(5), executor=executor) as loader:
        batches = list(loader)
    assert [batch["ids"].tolist() for batch in batches] == [whole(start)["ids"].tolist() for start in (0, 5)]
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1]]


def test_batches_that_are_mappings_are_batches_of_their_values() -> None:
    behind = bk.from_arrays({"x": np.arange(10)}).batch(5).map(lambda batch: whole(int(batch["x"][0])))
    pulled = bk.from_generator(lambda: map(whole, (0, 5)), batched=True)
    for pipe in (behind, pulled):
        with bk.Loader(pipe, executor="inline") as loader:
            assert [batch["ids"].tolist() for batch in loader] == [whole(start)["ids"].tolist() for start in (0, 5)]
            assert loader.schema["label"].shape in ((None,), (5,))


class Pairs:
    """Rows by index, as torch's TensorDataset has them: two numbers each."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> tuple[float, int]:
        if number >= 4:
            raise IndexError(number)
        return float(number), number


def test_a_data_set_is_no_array() -> None:
    with pytest.raises(bk.SchemaError, match=r"arrays: the only leaf is a Pairs, .* belongs in from_sequence\(\)"):
        bk.from_arrays(Pairs())


def test_a_mapping_inside_of_a_row_is_not_taken_for_its_keys() -> None:
    pipe = bk.from_arrays({"x": np.arange(4)}).map(lambda row: {"inner": collections.UserDict(a=1)}).batch(2)
    with bk.Loader(pipe) as loader, pytest.raises(bk.SchemaError, match=r"leaf 'inner'.* is a UserDict, .*in a dict"):
        next(iter(loader))


def test_a_list_of_several_leaves_is_refused_with_the_mend() -> None:
    pipe = bk.from_sequence([[np.zeros((2, 2)), 1]] * 4).batch(2)
    with bk.Loader(pipe) as loader, pytest.raises(bk.SchemaError, match="several go into a tuple or a dict"):
        next(iter(loader))


def test_a_row_that_is_none_is_named_with_the_mend() -> None:
    rows = [{"x": 1}, {"x": 2}, None, {"x": 3}]
    message = r"row 2 is None\. Leave such rows out with \.filter"
    with bk.Loader(bk.from_sequence(rows).batch(4)) as loader, pytest.raises(bk.SchemaError, match=message):
        next(iter(loader))
    kept = bk.from_sequence(rows).filter(lambda row: row is not None).batch(4)
    with bk.Loader(kept, executor="inline") as loader:
        assert [batch["x"].tolist() for batch in loader] == [[1, 2, 3]]
