"""The executors that the suite runs over, and what it gives them.

``test_executors.py`` and its sisters hold for every executor alike. Nothing in them knows how
one works inside; what is one executor's own is tested with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import batchkit as bk
from batchkit.executors import ProcessExecutor

EXECUTORS = ("inline", "threads", "processes", "auto")
"""Another executor joins by its word: whatever ``Loader(executor=)`` takes."""
KILLABLE = tuple(word for word in EXECUTORS if word.startswith("processes"))
AHEAD = tuple(word for word in EXECUTORS if word != "inline")

every = pytest.mark.parametrize("executor", EXECUTORS)
ahead = pytest.mark.parametrize("executor", AHEAD)
"""Those that compute elsewhere than in the caller's thread, and so can be given up."""
killable = pytest.mark.parametrize("executor", KILLABLE)
"""Those whose workers are processes."""


ROWS = 40
X = np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)


def loaded(pipe: bk.Pipeline, executor: str, workers: int = 2, **options: Any) -> bk.Loader:
    """Return a loader. ``"auto"`` chooses its workers; ``"processes-spawn"`` says how they are started, too."""
    name, _, start = executor.partition("-")
    if start:
        made = ProcessExecutor(workers, options.pop("timeout", None), start=start)
        return bk.Loader(pipe, executor=made, **options)
    return bk.Loader(pipe, executor=name, workers="auto" if name == "auto" else workers, **options)


def numbers(rows: int = ROWS) -> bk.Pipeline:
    """Return rows ``{"x": 0}``, ``{"x": 1}`` and so on."""
    return bk.from_arrays({"x": np.arange(rows)})


def values(batches: Any) -> list[list[int]]:
    """Return the ``x`` of every row, batch by batch."""
    return [batch["x"].tolist() for batch in batches]


def runs(rows: int = ROWS, size: int = 7) -> list[list[int]]:
    """Return the row numbers of batches in order."""
    return [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]


def assert_batches(got: Any, wanted: list[dict[str, Any]]) -> None:
    """Compare batches leaf by leaf, byte by byte."""
    got = list(got)
    assert len(got) == len(wanted)
    for number, (batch, want) in enumerate(zip(got, wanted, strict=True)):
        assert list(batch) == list(want)
        for leaf in want:
            assert (batch[leaf].dtype, batch[leaf].shape) == (want[leaf].dtype, want[leaf].shape), (number, leaf)
            assert batch[leaf].tobytes() == want[leaf].tobytes(), (number, leaf)


class Case(NamedTuple):
    """A pipeline and what its batches of an epoch must be."""

    pipe: bk.Pipeline
    wanted: Callable[[int], list[dict[str, Any]]]


def shuffled(seed: int, epoch: int) -> list[list[int]]:
    """Return the order that a shuffle has for a caller who computes everything himself."""
    with bk.Loader(numbers().shuffle(seed).batch(7), executor="inline") as loader:
        found = values(loader.iterate(epoch))
    assert sorted(itertools.chain(*found)) == list(range(ROWS))
    return found


def columns(ids: list[int]) -> dict[str, Any]:
    return {"n": np.array(ids), "x": X[ids]}


def padded(ids: list[int]) -> dict[str, Any]:
    lacking = 7 - len(ids)
    found = {"n": np.pad(ids, (0, lacking)), "x": np.pad(X[ids], ((0, lacking), (0, 0)))}
    return {**found, "mask": np.arange(7) < len(ids)}


def noisy(pipe: bk.Pipeline, size: int) -> bk.Pipeline:
    def row_noise(row: Any, rng: Any) -> Any:
        return {**row, "one": rng.random()}

    def column_noise(batch: Any, rng: Any) -> Any:
        return {**batch, "two": rng.normal(size=2)}

    return pipe.random_map(row_noise).batch(size).random_map(column_noise)


def drawn(pipe: bk.Pipeline, epoch: int) -> dict[int, tuple[Any, Any]]:
    """Return what every row draws when it is a batch of its own."""
    with bk.Loader(noisy(pipe, 1), executor="inline") as loader:
        return {int(batch["n"][0]): (batch["one"][0], batch["two"][0]) for batch in loader.iterate(epoch)}


def noise(ids: list[int], table: dict[int, tuple[Any, Any]]) -> dict[str, Any]:
    return {"one": np.array([table[row][0] for row in ids]), "two": np.array([table[row][1] for row in ids])}


def cases() -> dict[str, Case]:
    data = bk.from_arrays({"n": np.arange(ROWS), "x": X})
    rows = [{"n": row, "x": X[row]} for row in range(ROWS)]
    blocks = [columns(ids) for ids in runs()]
    plain = [columns(ids) for ids in runs()]

    def whole(seed: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[int], list[dict[str, Any]]]:
        return lambda epoch: [change(columns(ids)) for ids in shuffled(seed, epoch)]

    def with_noise(epoch: int) -> list[dict[str, Any]]:
        table = drawn(data.shuffle(2), epoch)
        return [{**columns(ids), **noise(ids, table)} for ids in shuffled(2, epoch)]

    return {
        "shuffled": Case(data.shuffle(1).batch(7), whole(1, lambda batch: batch)),
        "padded": Case(data.batch(7, remainder="pad"), lambda epoch: [padded(ids) for ids in runs()]),
        "row function": Case(
            data.shuffle(1).map(lambda row: {**row, "y": row["x"] * 2 + 1}).batch(7),
            whole(1, lambda batch: {**batch, "y": batch["x"] * 2 + 1}),
        ),
        "batch function": Case(
            data.shuffle(1).batch(7).map(lambda batch: {**batch, "sum": batch["x"].sum(axis=1)}),
            whole(1, lambda batch: {**batch, "sum": batch["x"].sum(axis=1)}),
        ),
        "rebatched": Case(
            data.batch(16).map(lambda batch: {"n": batch["n"] + 5}).unbatch().batch(7),
            lambda epoch: [{"n": np.array(ids) + 5} for ids in runs()],
        ),
        "sequence": Case(bk.from_sequence(rows).batch(7), lambda epoch: plain),
        "generator": Case(bk.from_generator(lambda: iter(rows)).map(lambda row: row).batch(7), lambda epoch: plain),
        "batched generator": Case(bk.from_generator(lambda: iter(blocks), batched=True), lambda epoch: plain),
        "random": Case(noisy(data.shuffle(2), 7), with_noise),
        "nothing": Case(data.take(0).map(lambda row: row).batch(7), lambda epoch: []),
    }
