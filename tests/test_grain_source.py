"""A Grain data source is a sequence to batchkit."""

from __future__ import annotations

from typing import Any

import pytest

import batchkit as bk

grain = pytest.importorskip("grain", reason="Grain is not installed here: make install")


class Squares(grain.sources.RandomAccessDataSource):  # type: ignore[name-defined,misc]
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return {"x": index, "square": index * index}


def test_a_grain_source_gives_its_rows() -> None:
    with bk.Loader(bk.from_sequence(Squares()).shuffle(0).batch(10)) as loader:
        (batch,) = loader
    assert sorted(batch["x"].tolist()) == list(range(10))
    assert (batch["square"] == batch["x"] ** 2).all()


def test_a_grain_map_dataset_gives_its_rows() -> None:
    dataset = grain.MapDataset.range(10).map(lambda value: {"x": value + 1})
    with bk.Loader(bk.from_sequence(dataset).batch(4)) as loader:
        assert [batch["x"].tolist() for batch in loader] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
