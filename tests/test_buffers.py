"""Host slots: recycled when nobody refers to them, never before."""

from __future__ import annotations

import threading
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
from holdings import LATE

import batchkit as bk
from batchkit.buffers import Slots


class Narrow(bk.NumpyBackend):
    """A framework without 64-bit types, as JAX is without x64."""

    name = "narrow"
    alignment = 64
    widening = "switch on 64 bits"
    NARROWER: ClassVar = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        return np.dtype(self.NARROWER.get(dtype.name, dtype))


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


FLOAT = np.dtype("float32")


def test_a_column_is_used_again_when_it_is_dropped() -> None:
    slots = Slots(bk.NumpyBackend())
    first = slots.column("x", 4, FLOAT, (3,))
    where = address(first)
    del first
    assert address(slots.column("x", 4, FLOAT, (3,))) == where


@pytest.mark.parametrize(
    "derived",
    [
        lambda a: a,
        lambda a: a[1:2],
        lambda a: a.reshape(-1)[3:],
        lambda a: a.T,
        lambda a: a.view(np.uint8),
        lambda a: memoryview(a),
        lambda a: np.frombuffer(a, np.uint8),
        lambda a: {"kept": [a[0]]},
    ],
)
def test_a_column_is_not_used_again_while_anything_of_it_is_held(derived: Any) -> None:
    slots = Slots(bk.NumpyBackend())
    column = slots.column("x", 4, FLOAT, (3,))
    where, kept = address(column), derived(column)
    del column
    assert where not in {address(slots.column("x", 4, FLOAT, (3,))) for _ in range(50)}
    del kept
    assert where in {address(slots.column("x", 4, FLOAT, (3,))) for _ in range(50)}


def test_the_pool_grows_when_all_are_held_and_shrinks_again() -> None:
    slots = Slots(bk.NumpyBackend())
    held = [slots.column("x", 1, FLOAT, ()) for _ in range(500)]
    assert len({address(column) for column in held}) == 500
    ring = slots.lessor("x", FLOAT, ()).__self__  # type: ignore[attr-defined]
    assert len(ring._columns) == 500
    held.clear()
    for _ in range(5000):
        slots.column("x", 1, FLOAT, ())
    assert len(ring._columns) < 40


def test_columns_are_aligned_to_64_bytes_at_every_size() -> None:
    slots = Slots(bk.NumpyBackend())
    for rows in (1, 3, 17, 4, 1000):
        for dtype in ("uint8", "float16", "float64", "complex128"):
            assert address(slots.column("x", rows, np.dtype(dtype), (3,))) % 64 == 0


def test_a_smaller_batch_uses_the_front_of_a_column() -> None:
    slots = Slots(bk.NumpyBackend())
    where = address(slots.column("x", 10, FLOAT, (3,)))
    small = slots.column("x", 4, FLOAT, (3,))
    assert small.shape == (4, 3)
    assert address(small) == where


def test_several_threads_never_lease_the_same_column() -> None:
    slots, clashes = Slots(bk.NumpyBackend()), []

    def work(number: int) -> None:
        for _ in range(2000):
            column = slots.column("x", 8, np.dtype("int64"), ())
            column[:] = number
            if (column != number).any():
                clashes.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []


def test_a_backend_whose_memory_loses_references_is_an_error_not_a_wrong_batch() -> None:
    slots = Slots(bk.NumpyBackend())
    slots.column("x", 4, FLOAT, ())
    slots.lessor("x", FLOAT, ()).__self__._baseline += 1  # type: ignore[attr-defined]
    with pytest.raises(bk.BackendError, match=r"a host slot has . references, fewer than"):
        slots.column("x", 4, FLOAT, ())


# -- through a loader


def sources() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 255, 1 + 200 * 12, dtype=np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(200, 3)
    aligned = unaligned.copy()
    wide = np.asfortranarray(aligned.astype(np.float64))
    return {
        "aligned": aligned,
        "unaligned": unaligned,
        "strided": np.repeat(aligned, 2, axis=1)[:, ::2],
        "fortran": wide,
        "reversed": aligned[::-1],
        "big-endian": aligned.astype(">f4"),
        "text": np.array([f"row {number}" for number in range(200)]),
    }


@pytest.mark.parametrize("kind", list(sources()))
@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("backend", [bk.NumpyBackend(), Narrow()], ids=["numpy", "narrow"])
def test_kept_batches_never_change_while_the_loader_runs_ahead(kind: str, executor: str, backend: Any) -> None:
    data = sources()[kind]
    pipe = bk.from_arrays({"x": data, "row": np.arange(200)}).shuffle(1).batch(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.NarrowingWarning)
        with bk.Loader(pipe, backend, executor=executor, workers=3, prefetch=4) as loader:
            kept = [(batch, batch["row"].tolist()) for _ in range(3) for batch in loader]
    assert len(kept) == 87
    for batch, rows in kept:
        assert batch["row"].tolist() == rows
        wanted = data[rows]
        if backend.name == "narrow" and wanted.dtype == np.float64:
            wanted = wanted.astype(np.float32)
        np.testing.assert_array_equal(batch["x"], wanted)
        assert batch["x"].dtype.isnative
        assert batch["x"].flags.c_contiguous
        assert batch["x"].flags.writeable


def test_changing_a_batch_never_changes_the_source() -> None:
    data = np.arange(12.0).reshape(6, 2)
    with bk.Loader(bk.from_arrays({"x": data}).batch(3).map(lambda batch: batch)) as loader:
        for batch in loader:
            batch["x"][:] = -1
    np.testing.assert_array_equal(data, np.arange(12.0).reshape(6, 2))


def test_an_epoch_needs_only_the_slots_in_flight() -> None:
    pipe = bk.from_arrays({"x": np.zeros((4000, 8))}).batch(4)
    with bk.Loader(pipe, executor="threads", workers=2, prefetch=3) as loader:
        seen = {address(batch["x"]) for batch in loader}
    # in flight: prefetch + workers, one being written, one with the caller, one just let go
    assert len(seen) <= 3 + 2 + 3 + LATE


@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_a_generator_that_reuses_its_array_gives_batches_that_stay(executor: str) -> None:
    def same_array() -> Any:
        buffer = np.empty(4, np.int64)
        for number in range(20):
            buffer[:] = number
            yield {"x": buffer}

    with bk.Loader(bk.from_generator(same_array, batched=True), executor=executor, workers=3) as loader:
        kept = list(loader)
    assert [batch["x"].tolist() for batch in kept] == [[number] * 4 for number in range(20)]
    with bk.Loader(bk.from_generator(same_array).batch(5), executor=executor, workers=3) as loader:
        rows = np.concatenate([batch["x"] for batch in loader])
    assert rows[:, 0].tolist() == list(range(20))


TABLE = np.arange(100.0)
KEPT: list[Any] = []


def returns_a_view_of_a_table(batch: Any) -> Any:
    return {"x": TABLE[3 : 3 + len(batch["x"])]}


def returns_what_it_keeps(batch: Any) -> Any:
    KEPT.append(batch["x"] * 1.0)
    return {"x": KEPT[-1]}


def test_arrays_that_a_function_shares_are_copied() -> None:
    for function in (returns_a_view_of_a_table, returns_what_it_keeps):
        with bk.Loader(bk.from_arrays({"x": np.arange(8)}).batch(4).map(function)) as loader:
            for batch in loader:
                batch["x"][:] = -1
    np.testing.assert_array_equal(TABLE, np.arange(100.0))
    assert [kept.tolist() for kept in KEPT] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_function_that_fills_one_buffer_again_and_again_gives_batches_that_stay() -> None:
    buffer = np.empty(4)

    def fill(batch: Any) -> Any:
        np.multiply(batch["x"], 2.0, out=buffer)
        return {"x": buffer}

    with bk.Loader(bk.from_arrays({"x": np.arange(20)}).batch(4).map(fill), executor="inline") as loader:
        kept = [batch["x"] for batch in loader]
    np.testing.assert_array_equal(np.concatenate(kept), np.arange(20) * 2.0)


@pytest.mark.parametrize(
    "fresh",
    [
        lambda b: {"x": b["x"] * 2},
        lambda b: {"x": (b["x"] * 2).reshape(-1, 1)},
        lambda b: {"x": np.stack([b["x"], b["x"]], axis=1)[:, 0].copy()},
        lambda b: b,
        lambda b: {"x": b["x"], "y": b["x"][:, None]},
    ],
)
def test_what_belongs_to_the_batch_alone_is_not_copied(fresh: Any) -> None:
    made: list[int] = []

    def noted(batch: Any) -> Any:
        result = fresh(batch)
        made.extend(address(leaf) for leaf in result.values())
        return result

    (batch,) = bk.Loader(bk.from_arrays({"x": np.arange(4.0)}).batch(4).map(noted), executor="inline")
    assert [address(leaf) for leaf in batch.values()] == made


# -- narrowing


def narrowed(data: Any, **options: Any) -> Any:
    return bk.Loader(bk.from_arrays(data).batch(4), Narrow(), executor="inline", **options)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_that_fit_are_narrowed(dtype: str) -> None:
    limits = np.iinfo(Narrow.NARROWER[dtype])
    values = np.array([0, 1, int(limits.max), int(limits.min)], dtype)
    (batch,) = narrowed({"label": values})
    assert batch["label"].dtype == Narrow.NARROWER[dtype]
    assert batch["label"].tolist() == values.tolist()


@pytest.mark.parametrize(
    ("dtype", "value"), [("int64", 2**40 + 5), ("int64", -(2**31) - 1), ("int64", 2**31), ("uint64", 2**32)]
)
def test_an_integer_that_does_not_fit_names_leaf_value_and_mends(dtype: str, value: int) -> None:
    with pytest.warns(bk.NarrowingWarning):
        loader = narrowed({"x": np.zeros(8), "label": np.array([1, 2, 3, 4, 5, value, 7, 8], dtype)})
    iterator = iter(loader)
    assert next(iterator)["label"].tolist() == [1, 2, 3, 4]
    with pytest.raises(bk.NarrowingError) as caught:
        next(iterator)
    small = Narrow.NARROWER[dtype]
    assert str(caught.value) == (
        f"epoch 0, step 1: leaf 'label': the value {value} does not fit {small}, and backend 'narrow' has no {dtype}. "
        f"Make the values fit and add .cast(label='{small}'), or switch on 64 bits"
    )


def test_floats_are_narrowed_with_one_warning_and_listed() -> None:
    with pytest.warns(bk.NarrowingWarning, match="leaf 'x' becomes float32 and loses precision") as caught:
        loader = narrowed({"x": np.arange(12.0) / 3, "label": np.arange(12)})
    assert len(caught) == 1
    batches = list(loader)  # warnings are errors: a second one would be noticed
    np.testing.assert_array_equal(batches[0]["x"], (np.arange(4.0) / 3).astype(np.float32))
    assert {path: (str(one), str(two)) for path, (one, two) in loader.narrowing.items()} == {
        "x": ("float64", "float32"),
        "label": ("int64", "int32"),
    }
    assert loader.schema["x"].dtype == np.float32


def test_a_float_that_would_become_infinite_is_refused() -> None:
    with pytest.warns(bk.NarrowingWarning):
        loader = narrowed({"x": np.array([1.0, 1e300, np.inf, np.nan])})
    with pytest.raises(bk.NarrowingError, match=r"the value 1e\+300 does not fit float32"):
        list(loader)


def test_infinities_and_nans_are_narrowed_as_they_are() -> None:
    with pytest.warns(bk.NarrowingWarning):
        (batch,) = narrowed({"x": np.array([1.0, -np.inf, np.inf, np.nan])})
    np.testing.assert_array_equal(batch["x"], np.array([1.0, -np.inf, np.inf, np.nan], np.float32))


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
def test_narrow_error_refuses_any_narrowing(dtype: str) -> None:
    with pytest.raises(bk.NarrowingError, match=rf"has no {dtype}: leaf 'x' would become.*\.cast\(x="):
        narrowed({"x": np.zeros(4, dtype)}, narrow="error")


def test_a_cast_before_takes_the_narrowing_away() -> None:
    pipe = bk.from_arrays({"x": np.zeros(4), "y": np.arange(4)}).cast(x="float32", y="int32").batch(4)
    loader = bk.Loader(pipe, Narrow(), narrow="error")
    assert loader.narrowing == {}
    assert next(iter(loader))["y"].dtype == np.int32


def test_what_functions_return_is_narrowed_and_aligned_too() -> None:
    def offset(batch: Any) -> Any:
        raw = np.zeros(4 * 8 + 8, np.uint8)
        unaligned = raw[8:].view(np.int64)
        unaligned[:] = batch["x"]
        return {"x": unaligned, "f": np.arange(5, dtype=np.float32)[1:][::-1]}

    (batch,) = bk.Loader(bk.from_arrays({"x": np.arange(4)}).batch(4).map(offset), Narrow())
    assert batch["x"].dtype == np.int32
    assert batch["x"].tolist() == [0, 1, 2, 3]
    assert batch["f"].tolist() == [4, 3, 2, 1]
    assert address(batch["x"]) % 64 == address(batch["f"]) % 64 == 0


def test_wide_leaves_are_narrowed_in_blocks() -> None:
    data = np.random.default_rng(0).integers(0, 1000, (300, 5000))
    (batch,) = bk.Loader(bk.from_arrays({"x": data}).shuffle(0).batch(300), Narrow(), executor="inline")
    order = bk.Loader(bk.from_arrays({"x": np.arange(300)}).shuffle(0).batch(300))
    np.testing.assert_array_equal(batch["x"], data[next(iter(order))["x"]])
