"""What a TensorFlow user gets through every executor: NumPy's bytes, in batches that never change."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import ml_dtypes  # TensorFlow brings it along
import numpy as np
import pytest
import tensorflow as tf

import batchkit as bk

EXECUTORS = ("inline", "threads", "processes")
"""Another executor joins by its word: whatever ``Loader(executor=)`` takes."""
every = pytest.mark.parametrize("executor", EXECUTORS)

ROWS = 500
DTYPES = [
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *(
        name
        for name in ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz")
        if hasattr(tf.dtypes.experimental, name)
    ),
]


def loaded(pipe: bk.Pipeline, executor: str, workers: int = 2, **options: Any) -> bk.Loader:
    return bk.Loader(
        pipe, backend="tensorflow", executor=executor, workers="auto" if executor == "inline" else workers, **options
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
    text = np.array([f"row {row} \u00e9" for row in range(ROWS)])
    pipe = bk.from_arrays({**data, "row": np.arange(ROWS), "name": text}).shuffle(3).batch(64)
    seen: list[int] = []
    with loaded(pipe if way == "gathered" else pipe.map(lambda batch: {**batch}), executor) as loader:
        for batch in loader:
            rows = batch["row"].numpy()
            seen += rows.tolist()
            assert [name.decode() for name in batch["name"].numpy()] == text[rows].tolist()
            for name in DTYPES:
                assert batch[name].dtype.name == name
                assert tuple(batch[name].shape) == (len(rows), 3)
                assert batch[name].numpy().tobytes() == data[name][rows].tobytes()
    assert sorted(seen) == list(range(ROWS))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="where memory is shared is read from /proc")
def test_nothing_is_copied_of_what_a_worker_process_wrote() -> None:
    # Batches of up to 64 KiB would be copied, which is quicker.
    data = {"x": np.zeros((ROWS, 400), np.float32), "y": np.arange(ROWS)}
    with loaded(bk.from_arrays(data).shuffle(0).batch(64).map(lambda batch: {**batch}), "processes") as loader:
        tensors = [tensor for batch in loader for tensor in batch.values()]
    places = [int(np.asarray(memoryview(tensor)).__array_interface__["data"][0]) for tensor in tensors]
    assert [is_shared(place) for place in places] == [True] * 2 * 8


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
    assert batch["i"].numpy().tolist() == ids
    want = x[ids]
    for name in ("x", "odd", "same"):
        np.testing.assert_array_equal(batch[name].numpy(), want)
    np.testing.assert_array_equal(batch["reversed"].numpy(), want[:, ::-1])


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
                ids = batch["i"].numpy().tolist()
                seen += ids
                kept.append((batch, ids))
                check(*kept[0], x)
    assert len(kept) == 30
    for batch, ids in kept:
        check(batch, ids, x)
    assert sorted(seen) == sorted([*range(4000)] * 3)


# -- a caller who has used TensorFlow


@every
def test_tensorflow_may_have_been_used_and_be_used_on_both_sides(executor: str) -> None:
    def multiplied(batch: dict[str, Any]) -> dict[str, Any]:
        import tensorflow as tf

        square = tf.matmul(tf.ones((300, 300)), tf.ones((300, 300)))  # by several threads, which hang a forked child
        return {**batch, "product": batch["x"] * square[0, 0].numpy()}

    big = tf.ones((600, 600))
    x = np.arange(80, dtype=np.float32)
    seen: list[float] = []
    with loaded(bk.from_arrays({"x": x}).shuffle(0).batch(16).map(multiplied), executor, 1) as loader:
        for _ in range(2):
            for batch in loader:
                big = tf.minimum(tf.matmul(big, big), 1)
                seen += batch["x"].numpy().tolist()
                np.testing.assert_array_equal(batch["product"].numpy(), batch["x"].numpy() * 300)
    assert sorted(seen) == sorted([*x.tolist()] * 2)
