"""Loader.shapes: what it lists is what comes, and what cannot be listed is refused with the mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import batchkit as bk

LENGTHS = np.random.default_rng(7).integers(1, 31, 300)
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
TOKENS = np.arange(1, OFFSETS[-1] + 1)


def known() -> bk.Pipeline:
    return bk.from_ragged({"x": TOKENS}, OFFSETS)


def read() -> bk.Pipeline:
    rows = [{"x": TOKENS[start : start + length], "id": i} for i, (start, length) in enumerate(zip(OFFSETS, LENGTHS))]  # noqa: B905
    return bk.from_sequence(rows)


def doubled(columns: Any) -> Any:
    return {**columns, "double": columns["x"] * 2.0}


STATIC: dict[str, Callable[[], bk.Pipeline]] = {
    "drop": lambda: bk.from_arrays({"x": np.zeros((50, 3), np.float32)}).batch(8, remainder="drop"),
    "pad": lambda: bk.from_arrays({"x": np.zeros((50, 3), np.float32)}).shuffle(1).batch(8, remainder="pad"),
    "function": lambda: bk.from_arrays({"x": np.zeros((50, 3))}).batch(8, remainder="pad").map(doubled),
    "filter": lambda: bk.from_arrays({"x": np.arange(50)}).filter(lambda row: row["x"] > 3).batch(8, remainder="pad"),
    "generator": lambda: bk.from_generator(lambda: ({"x": np.zeros(3)} for _ in range(20))).batch(6, remainder="drop"),
    "padded to a length": lambda: read().padded_batch(6, length={"x": 32}, remainder="pad"),
    "packed": lambda: known().shuffle(1).pack(32).batch(4, remainder="pad"),
    "packed by leaf": lambda: known().pack({"x": 40}).batch(4, remainder="drop"),
    "packed of rows that are read": lambda: read().select("x").pack(32, oversize="split").batch(4, remainder="pad"),
    "buckets": lambda: known().shuffle(1).bucket_batch(6, boundaries=[10, 20, 30], remainder="pad"),
    "buckets of rows that are read": lambda: (
        read().bucket_batch(6, boundaries=[10, 20, 30], remainder="drop", length="x").map(doubled)
    ),
    "buckets of tokens": lambda: known().bucket_batch(max_tokens=120, boundaries=[10, 20, 30], remainder="pad"),
    "rebatched": lambda: bk.from_arrays({"x": np.arange(50)}).batch(7).rebatch(4, remainder="pad"),
    "windows": lambda: bk.from_arrays({"x": np.arange(50)}).window(4, 2).batch(6, remainder="pad"),
}


def listed(schema: Any) -> Any:
    return {name: (spec.dtype, spec.shape) for name, spec in schema.items()}


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
@pytest.mark.parametrize("name", STATIC)
def test_the_shapes_that_are_listed_are_those_that_come(name: str, shard: tuple[int, int]) -> None:
    with bk.Loader(STATIC[name](), shard=shard) as loader:
        shapes = [listed(schema) for schema in loader.shapes]
        came = [{leaf: (array.dtype, array.shape) for leaf, array in batch.items()} for batch in loader]
    assert all(shape in shapes for shape in came)
    assert all(shape in came for shape in shapes)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: bk.from_arrays({"x": np.arange(50)}).batch(8), "may keep a smaller last batch.*remainder='pad'"),
        (lambda: read().padded_batch(6, remainder="pad"), "fills rows up to the longest.*Give it a length"),
        (lambda: known().bucket_batch(6, boundaries=[10, None], remainder="pad"), "with a last boundary"),
        (lambda: known().bucket_batch(6, boundaries=[10, 30]), "keeps smaller batches at the end"),
        (
            lambda: bk.from_arrays({"x": np.arange(50)}).batch(8, remainder="drop").filter(lambda c: c["x"] > 3),
            "leaves rows out of batches",
        ),
    ],
)
def test_shapes_that_depend_on_the_data_are_refused_with_the_mend(make: Any, said: str) -> None:
    with bk.Loader(make()) as loader, pytest.raises(bk.SchemaError, match=said):
        assert loader.shapes
