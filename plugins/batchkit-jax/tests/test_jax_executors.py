"""What a JAX user gets through every executor: NumPy's bytes, in batches that never change."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import batchkit as bk

EXECUTORS = ("inline", "threads", "processes")
"""Another executor joins by its word: whatever ``Loader(executor=)`` takes."""
every = pytest.mark.parametrize("executor", EXECUTORS)

ROWS = 500
DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "complex64"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz"),
    *(name for name in ("float8_e8m0fnu", "float8_e3m4", "float8_e4m3") if hasattr(jnp, name)),
]


def loaded(pipe: bk.Pipeline, executor: str, workers: int = 2, **options: Any) -> bk.Loader:
    return bk.Loader(
        pipe, backend="jax", executor=executor, workers="auto" if executor == "inline" else workers, **options
    )


# -- bytes


def columns() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(5)
    found = {}
    for name in DTYPES:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        raw = rng.integers(0, 2 if name == "bool" else 256, (ROWS, 3 * dtype.itemsize), dtype=np.uint8)
        found[name] = raw.view(dtype)
    return found


@every
@pytest.mark.parametrize("way", ["gathered", "through a function"])
def test_the_bytes_are_those_of_numpy(way: str, executor: str) -> None:
    data = columns()
    pipe = bk.from_arrays({**data, "row": np.arange(ROWS)}).shuffle(3).batch(64)
    seen: list[int] = []
    with loaded(pipe if way == "gathered" else pipe.map(lambda batch: {**batch}), executor) as loader:
        for batch in loader:
            assert batch["row"].dtype == np.int32
            rows = np.asarray(batch["row"])
            seen += rows.tolist()
            for name in DTYPES:
                assert batch[name].dtype == data[name].dtype
                assert batch[name].shape == (len(rows), 3)
                assert np.asarray(batch[name]).tobytes() == data[name][rows].tobytes()
    assert sorted(seen) == list(range(ROWS))


@every
def test_an_integer_that_does_not_fit_is_an_error_and_the_next_step_goes_on(executor: str) -> None:
    rows = np.array([0, 1, 2**40 + 5, 3, 4, 5])
    with loaded(bk.from_arrays({"x": rows}).batch(2).map(lambda batch: {"x": batch["x"] + 0}), executor) as loader:
        iterator = iter(loader)
        assert next(iterator)["x"].tolist() == [0, 1]
        with pytest.raises(bk.NarrowingError, match=r"epoch 0, step 1: leaf 'x': the value 1099511627781 does not fit"):
            next(iterator)
        assert next(iterator)["x"].tolist() == [4, 5]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="where memory is shared is read from /proc")
def test_nothing_is_copied_of_what_a_worker_process_wrote() -> None:
    # Batches of up to 64 KiB would be copied, which is quicker.
    data = {"x": np.zeros((ROWS, 400), np.float32), "y": np.arange(ROWS)}
    with loaded(bk.from_arrays(data).shuffle(0).batch(64).map(lambda batch: {**batch}), "processes") as loader:
        shared = [is_shared(array.unsafe_buffer_pointer()) for batch in loader for array in batch.values()]
    assert shared == [True] * 2 * 8


def is_shared(address: int) -> bool:
    """Say whether memory is that which processes share."""
    mapped = [line.split(maxsplit=1) for line in Path("/proc/self/maps").read_text().splitlines() if "batchkit" in line]
    spans = [tuple(int(side, 16) for side in span.split("-")) for span, _ in mapped]
    return any(start <= address < end for start, end in spans)


# -- batches that are kept


def at_an_odd_address(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    raw = np.empty(array.nbytes + 1, np.uint8)[1:]
    raw[:] = array.reshape(-1).view(np.uint8)
    return np.ndarray(array.shape, array.dtype, raw.data)


def check(batch: dict[str, Any], ids: list[int], x: np.ndarray[Any, Any]) -> None:
    """Compare with the rows ``ids``, written down at delivery: a batch that is another's now is one in itself."""
    assert batch["i"].tolist() == ids
    want = x[ids]
    for name in ("x", "odd", "same"):
        np.testing.assert_array_equal(np.asarray(batch[name]), want)
    np.testing.assert_array_equal(np.asarray(batch["reversed"]), want[:, ::-1])


@every
@pytest.mark.parametrize("odd", [False, True])
def test_a_batch_that_is_kept_never_changes(executor: str, odd: bool) -> None:
    def shifted(batch: dict[str, Any]) -> dict[str, Any]:
        raw = np.empty(batch["x"].nbytes + 1, np.uint8)[1:]
        raw[:] = batch["x"].reshape(-1).view(np.uint8)
        misaligned = np.ndarray(batch["x"].shape, batch["x"].dtype, raw.data)
        return {**batch, "odd": misaligned, "reversed": batch["x"][:, ::-1], "same": batch["x"]}

    x = np.random.default_rng(0).standard_normal((4000, 32)).astype(np.float32)
    source = {"x": at_an_odd_address(x) if odd else x, "i": np.arange(4000)}
    pipe = bk.from_arrays(source).shuffle(1).batch(50).map(shifted)
    kept: deque[tuple[Any, list[int]]] = deque(maxlen=30)
    seen: list[int] = []
    with loaded(pipe, executor, prefetch=4) as loader:
        for _ in range(3):
            for batch in loader:
                ids = batch["i"].tolist()
                seen += ids
                kept.append((batch, ids))
                check(*kept[0], x)
    assert len(kept) == 30
    for batch, ids in kept:
        check(batch, ids, x)
    assert sorted(seen) == sorted([*range(4000)] * 3)


@every
def test_a_computation_that_is_still_pending_keeps_the_memory(executor: str) -> None:
    @jax.jit
    def slow(x: jax.Array) -> jax.Array:
        for _ in range(10):
            x = jnp.sin(x) @ jnp.eye(x.shape[1])
        return x

    rows = np.random.default_rng(0).random((32 * 128, 64), np.float32)
    with loaded(bk.from_arrays(rows).batch(128).map(lambda batch: batch + 0), executor, prefetch=4) as loader:
        results = [slow(batch) for batch in loader]  # the batches themselves die at once
    for number, result in enumerate(results):
        want = slow(rows[number * 128 : (number + 1) * 128])
        assert np.array_equal(np.asarray(result), np.asarray(want)), number


# -- a caller who has used JAX


@every
def test_jax_may_have_been_used_and_be_used_on_both_sides(executor: str) -> None:
    def multiplied(batch: dict[str, Any]) -> dict[str, Any]:
        import jax.numpy as jnp

        square = jnp.ones((300, 300)) @ jnp.ones((300, 300))  # by several threads, which hang a forked child
        return {**batch, "product": batch["x"] * np.asarray(square[0, 0])}

    big = jnp.ones((600, 600))
    x = np.arange(80, dtype=np.float32)
    seen: list[float] = []
    with loaded(bk.from_arrays({"x": x}).shuffle(0).batch(16).map(multiplied), executor, 1) as loader:
        for _ in range(2):
            for batch in loader:
                big = jnp.minimum(big @ big, 1)
                seen += batch["x"].tolist()
                np.testing.assert_array_equal(np.asarray(batch["product"]), np.asarray(batch["x"]) * 300)
    assert sorted(seen) == sorted([*x.tolist()] * 2)
