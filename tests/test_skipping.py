"""Rows that fail are left out: counted, logged, bounded, and without moving any other row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import batchkit as bk

BAD = {3, 10, 11}
executors = pytest.mark.parametrize("executor", ["inline", "threads", "processes"])


def checked(row: Any) -> Any:
    if int(row["x"]) in {3, 10, 11}:
        raise ValueError(f"{row['x']} is bad")
    return row


def numbers(rows: int = 20) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows)})


class Damaged:
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        if index in BAD:
            raise OSError("bad sector")
        return {"x": index}


def values(batches: Any) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


WITHOUT_BAD = [[0, 1, 2], [4, 5, 6, 7], [8, 9], [12, 13, 14, 15], [16, 17, 18, 19]]


@executors
def test_a_padded_batch_keeps_its_shape_and_masks_what_is_missing(executor: str) -> None:
    pipe = numbers().map(checked).batch(8, remainder="pad")
    with bk.Loader(
        pipe, executor=executor, workers="auto" if executor == "inline" else 2, on_error=bk.Skip(budget=3)
    ) as loader:
        batches = list(loader)
    assert [batch["x"].shape for batch in batches] == [(8,)] * 3
    assert [batch["x"][batch["mask"]].tolist() for batch in batches] == [
        [0, 1, 2, 4, 5, 6, 7],
        [8, 9, 12, 13, 14, 15],
        [16, 17, 18, 19],
    ]


def test_a_fraction_is_of_the_rows_of_an_epoch_and_at_least_one_row() -> None:
    with bk.Loader(numbers().map(checked).batch(4), on_error=bk.Skip(budget=0.15)) as loader:
        assert values(loader) == WITHOUT_BAD
    with (
        bk.Loader(numbers().map(checked).batch(4), on_error="skip") as loader,
        pytest.raises(bk.StageError, match=r"on_error allows 1 an epoch \(budget=0.01\)"),
    ):
        list(loader)
    with bk.Loader(numbers(9).map(checked).batch(4), on_error="skip") as loader:
        assert values(loader) == [[0, 1, 2], [4, 5, 6, 7], [8]]


@executors
def test_order_resuming_and_random_numbers_are_those_without_the_bad_rows(executor: str) -> None:
    def noise(row: Any, rng: Any) -> Any:
        return {**row, "r": rng.random()}

    clean = numbers().shuffle(2).random_map(noise).batch(4)
    dirty = numbers().shuffle(2).map(checked).random_map(noise).batch(4)
    with bk.Loader(clean) as loader:
        whole = [list(zip(batch["x"].tolist(), batch["r"].tolist(), strict=True)) for batch in loader]
    wanted = [[pair for pair in batch if pair[0] not in BAD] for batch in whole]
    for step in range(5):
        with bk.Loader(
            dirty, executor=executor, workers="auto" if executor == "inline" else 2, on_error=bk.Skip(budget=3)
        ) as loader:
            loader.load_state_dict({**loader.state_dict(), "step": step})
            got = [list(zip(batch["x"].tolist(), batch["r"].tolist(), strict=True)) for batch in loader]
        assert got == wanted[step:]


def test_a_batch_of_which_nothing_is_left_is_an_error() -> None:
    def never(row: Any) -> Any:
        raise ValueError("no")

    with (
        bk.Loader(numbers().map(never).batch(4), on_error=bk.Skip(budget=100)) as loader,
        pytest.raises(bk.StageError, match="step 0: every row of the batch failed"),
    ):
        list(loader)


def test_unbatch_and_skipping_are_refused_together() -> None:
    with pytest.raises(bk.PipelineError, match=r"on_error='skip' cannot be used with unbatch\(\)"):
        bk.Loader(numbers().batch(4).unbatch().batch(2), on_error="skip")


@pytest.mark.parametrize(
    ("on_error", "message"),
    [
        ("skp", "not 'skp'; did you mean 'skip'"),
        (3, "on_error must be 'raise', 'skip' or Skip"),
        ({"buget": 3}, "on_error must be"),
        ({"budget": 0}, "must be a count of at least 1 or a fraction below 1, not 0"),
        ({"budget": 1.5}, "not 1.5"),
        ({"budget": "1%"}, r"Skip\(budget\) must be a count or a fraction, not '1%'"),
        ({"log": 3}, r"Skip\(log\) must be a path, not 3"),
    ],
)
def test_what_on_error_cannot_be_is_refused(on_error: Any, message: str) -> None:
    with pytest.raises(bk.PipelineError, match=message):
        bk.Loader(numbers().batch(4), on_error=on_error)


# -- timeout


@pytest.mark.parametrize("timeout", [0, -1, "5", True])
def test_what_timeout_cannot_be_is_refused(timeout: Any) -> None:
    with pytest.raises(bk.PipelineError, match=r"timeout must be a number of seconds above 0"):
        bk.Loader(numbers().batch(4), timeout=timeout)


def test_the_callers_own_thread_cannot_be_timed_out() -> None:
    with pytest.raises(bk.PipelineError, match=r"executor 'inline' computes in the caller's thread"):
        bk.Loader(numbers().batch(4), executor="inline", timeout=3)


@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
@pytest.mark.parametrize("filtered", [False, True])
def test_the_schema_is_told_although_a_row_of_the_first_batch_fails(filtered: bool, remainder: str) -> None:
    pipe = numbers().map(checked)
    pipe = (pipe.filter(lambda row: True) if filtered else pipe).batch(4, remainder=remainder)
    with bk.Loader(pipe, on_error=bk.Skip(budget=3)) as loader:
        lengths = {len(batch["x"]) for batch in loader}
        rows = loader.schema["x"].shape[0]
    assert rows == (lengths.pop() if len(lengths) == 1 else None)
