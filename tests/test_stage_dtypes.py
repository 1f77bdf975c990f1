"""Every stage hands on every dtype, and rows nested in any way, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import batchkit as bk

LENGTHS = [3, 1, 4, 2, 5, 3, 2, 4]
OFFSETS = np.cumsum([0, *LENGTHS])
COUNT = int(OFFSETS[-1])
VALUES: dict[str, Any] = {
    "bool": np.arange(COUNT) % 3 == 0,
    "int8": np.arange(COUNT, dtype=np.int8) - 9,
    "uint64": np.arange(COUNT, dtype=np.uint64) + 2**63,
    "float16": np.linspace(-2, 2, COUNT, dtype=np.float16),
    "bfloat16": np.linspace(-2, 2, COUNT).astype(ml_dtypes.bfloat16),
    "float64": np.where(np.arange(COUNT) == 2, np.nan, np.linspace(-1, 1, COUNT)),
    "complex64": np.linspace(-1, 1, COUNT).astype(np.complex64) * 1j,
    "str": np.array([f"w{n}\u00e9" for n in range(COUNT)]),
    "bytes": np.array([f"b{n}".encode() for n in range(COUNT)]),
    "datetime64": np.arange(COUNT).astype("datetime64[s]"),
    "structured": np.array([(n, n / 2) for n in range(COUNT)], "i4,f8"),
    "items with axes": np.arange(2.0 * COUNT).reshape(COUNT, 2),
    "items without bytes": np.zeros((COUNT, 0), np.float32),
}
MAKES: dict[str, Callable[[Any], bk.Pipeline]] = {
    "ragged": lambda values: bk.from_ragged({"deep": ({"x": values},)}, OFFSETS),
    "rows": lambda values: bk.from_sequence([{"deep": ({"x": row},)} for row in cut(values)]),
}


def cut(values: Any) -> list[Any]:
    return [values[low:high] for low, high in itertools.pairwise(OFFSETS)]


def leaf(batch: Any) -> Any:
    return batch["deep"][0]["x"]


def keeps(row: Any) -> bool:
    return len(leaf(row)) > 0


def filled(rows: list[Any], length: int) -> Any:
    """Return rows as one array, with zeros behind them: the oracle."""
    found = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found


STAGES: dict[str, Callable[[bk.Pipeline], bk.Pipeline]] = {
    "padded_batch": lambda rows: rows.padded_batch(8, length=5),
    "filter": lambda rows: rows.filter(keeps).padded_batch(8, length=5),
    "flat_map": lambda rows: rows.flat_map(lambda row: [row]).padded_batch(8, length=5),
    "bucket_batch": lambda rows: rows.bucket_batch(8, boundaries=[5]),
    "window shuffle": lambda rows: rows.filter(keeps).shuffle(1, window=1).padded_batch(8, length=5),
    "concat": lambda rows: bk.concat([rows.take(3), rows.filter(keeps).skip(3)]).padded_batch(8, length=5),
    "mix": lambda rows: bk.mix([rows, rows.filter(keeps)], [1, 0]).padded_batch(8, length=5),
    "rebatch": lambda rows: rows.padded_batch(3, length=5).rebatch(8),
    "unbatch": lambda rows: rows.filter(keeps).padded_batch(3, length=5).unbatch().batch(8),
    "cache": lambda rows: rows.filter(keeps).cache().padded_batch(8, length=5),
    "zip": lambda rows: bk.zip([rows, rows.filter(keeps)]).map(lambda both: both[1]).padded_batch(8, length=5),
}


def assert_same(got: Any, wanted: Any) -> None:
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("made", MAKES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", VALUES)
def test_rows_of_any_dtype_come_through_every_stage(dtype: str, stage: str, made: str) -> None:
    values = VALUES[dtype]
    with bk.Loader(STAGES[stage](MAKES[made](values)), executor="inline") as loader:
        (batch,) = loader
    assert_same(leaf(batch), filled(cut(values), 5))


@pytest.mark.parametrize("made", MAKES)
@pytest.mark.parametrize("dtype", VALUES)
def test_values_of_any_dtype_are_packed(dtype: str, made: str) -> None:
    values = VALUES[dtype]
    with bk.Loader(MAKES[made](values).pack(6, bins=1).batch(8), executor="inline") as loader:
        (batch,) = loader
    packed, held = [], values[:0]
    for row in cut(values):
        if len(held) + len(row) > 6:
            packed, held = [*packed, held], values[:0]
        held = np.concatenate([held, row])
    assert_same(leaf(batch), filled([*packed, held], 6))


@pytest.mark.parametrize("made", MAKES)
@pytest.mark.parametrize("dtype", VALUES)
def test_windows_of_any_dtype_are_cut(dtype: str, made: str) -> None:
    values = VALUES[dtype]
    rows = MAKES[made](values)
    inside = rows.window(2, inside=True).batch(99)
    over = rows.map(lambda row: {"deep": ({"x": leaf(row)[:1]},)}).window(3, 2).batch(99)
    with bk.Loader(inside, executor="inline") as loader:
        (batch,) = loader
    pairs = [row[at : at + 2] for row in cut(values) for at in range(0, len(row) - 1, 2)]
    assert_same(leaf(batch), np.stack(pairs))
    with bk.Loader(over, executor="inline") as loader:
        (batch,) = loader
    firsts = [row[:1] for row in cut(values)]
    assert_same(leaf(batch), np.stack([np.stack(firsts[at : at + 3]) for at in range(0, 6, 2)]))
