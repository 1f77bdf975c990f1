"""Functions for batch(collate=...), the rows they are given, and what they are to make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import batchkit as bk

LENGTHS = [3, 0, 5, 1, 1, 4, 2, 0, 7, 2, 6]
STARTS = np.cumsum([1, *LENGTHS]).tolist()
ROWS = [list(range(start, start + length)) for start, length in zip(STARTS, LENGTHS, strict=False)]
ALL = list(range(len(ROWS)))
WIDEST = 4


def trimmed(rows: list[Any]) -> Any:
    """Fill up to the longest row, cut off at ``WIDEST``; the rows end to end; how many values they have."""
    width = min(max(len(row["x"]) for row in rows), WIDEST)
    x = np.full((len(rows), width), -1)
    for place, row in enumerate(rows):
        kept = row["x"][:width]
        x[place, : len(kept)] = kept
    return {"x": x, "flat": np.concatenate([row["x"] for row in rows]), "total": sum(len(row["x"]) for row in rows)}


def made_of(numbers: list[int]) -> dict[str, Any]:
    """Return what ``trimmed`` is to make of these rows, as lists: the oracle."""
    rows = [ROWS[number] for number in numbers]
    width = min(max(map(len, rows)), WIDEST)
    x = [(row + [-1] * width)[:width] for row in rows]
    return {"x": x, "flat": [value for row in rows for value in row], "total": sum(map(len, rows))}


def cut(rows: list[Any], size: int, remainder: str = "keep") -> list[list[Any]]:
    runs = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [run for run in runs if remainder == "keep" or len(run) == size]


def part(run: list[Any], rank: int, world: int) -> list[Any]:
    return run[len(run) * rank // world : len(run) * (rank + 1) // world]


def lists(batches: Any) -> list[dict[str, Any]]:
    return [{name: leaf.tolist() for name, leaf in batch.items()} for batch in batches]


def ragged() -> bk.Pipeline:
    return bk.from_ragged({"x": np.array([value for row in ROWS for value in row])}, np.cumsum([0, *LENGTHS]))


def as_sequence() -> bk.Pipeline:
    return bk.from_sequence([{"x": np.array(row, np.int64)} for row in ROWS])


def as_generator() -> bk.Pipeline:
    return bk.from_generator(lambda: ({"x": np.array(row, np.int64)} for row in ROWS))


def mapped() -> bk.Pipeline:
    return ragged().map(lambda row: {"x": row["x"] + 1}).map(lambda row: {"x": row["x"] - 1})


def filtered() -> bk.Pipeline:
    return ragged().filter(lambda row: len(row["x"]) != 2)


def expanded() -> bk.Pipeline:
    return ragged().flat_map(lambda row: [row, row])


def combined() -> bk.Pipeline:
    return bk.zip({"a": ragged(), "b": as_sequence()}).map(lambda row: row["a"])


def mixed() -> bk.Pipeline:
    return bk.concat([as_generator(), as_sequence()])


def cached() -> bk.Pipeline:
    return mapped().cache()


def cached_in_order() -> bk.Pipeline:
    return expanded().map(dict).cache()


SOURCES: list[tuple[Callable[[], bk.Pipeline], list[int]]] = [
    (ragged, ALL),
    (as_sequence, ALL),
    (as_generator, ALL),
    (mapped, ALL),
    (filtered, [number for number in ALL if LENGTHS[number] != 2]),
    (expanded, [number for number in ALL for _ in range(2)]),
    (combined, ALL),
    (mixed, ALL * 2),
    (cached, ALL),
    (cached_in_order, [number for number in ALL for _ in range(2)]),
]


def numbers(count: int = 10) -> bk.Pipeline:
    return bk.from_arrays({"n": np.arange(count)})


def summed(rows: list[Any]) -> Any:
    return {"sum": sum(int(row["n"]) for row in rows)}


def first(pipe: bk.Pipeline, **options: Any) -> Any:
    with bk.Loader(pipe, executor="inline", **options) as loader:
        return next(iter(loader))
