"""loader.as_dataset(): a tf.data.Dataset with the loader's batches; the oracle is the NumPy backend and NumPy."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes  # TensorFlow brings it along
import numpy as np
import pytest
import tensorflow as tf

import batchkit as bk
from batchkit_tensorflow.hosting import HostBatches

ROWS = 200
X = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
Y = np.arange(ROWS)


def pipeline(size: int = 32, remainder: str = "drop") -> bk.Pipeline:
    return bk.from_arrays({"x": X, "y": Y}).shuffle(seed=3).batch(size, remainder=remainder)


def order(dataset: Any) -> list[list[int]]:
    return [batch["y"].numpy().tolist() for batch in dataset]


def wanted(pipe: bk.Pipeline, epoch: int) -> list[list[int]]:
    return [batch["y"].tolist() for batch in bk.Loader(pipe, executor="inline").iterate(epoch)]


class Pair(NamedTuple):
    x: Any
    y: Any


def test_is_a_dataset_with_exact_shapes_dtypes_and_cardinality() -> None:
    dataset = bk.Loader(pipeline(), backend="tensorflow").as_dataset()
    assert isinstance(dataset, tf.data.Dataset)
    assert dataset.element_spec == {"x": tf.TensorSpec((32, 4), tf.float32), "y": tf.TensorSpec((32,), tf.int64)}
    assert int(dataset.cardinality()) == len(dataset) == 6


def test_a_leading_dimension_that_varies_is_unknown() -> None:
    dataset = bk.Loader(pipeline(remainder="keep"), backend="tensorflow").as_dataset()
    assert dataset.element_spec["x"].shape.as_list() == [None, 4]
    assert [len(batch) for batch in order(dataset)] == [32] * 6 + [8]


@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
def test_each_iteration_is_the_next_epoch(executor: str, remainder: str) -> None:
    pipe = pipeline(remainder=remainder)
    dataset = bk.Loader(pipe, backend="tensorflow", executor=executor).as_dataset()
    found = [order(dataset) for _ in range(3)]
    assert found == [wanted(pipe, epoch) for epoch in range(3)]
    assert found[0] != found[1]


def test_the_bytes_are_those_of_numpy() -> None:
    rng = np.random.default_rng(5)
    names = ["bool", "int16", "uint32", "float16", "float64", "complex64", "bfloat16", "float8_e4m3fn", "int4"]
    data = {name: rng.integers(0, 2, (ROWS, 3)).astype(getattr(ml_dtypes, name, name)) for name in names}
    pipe = bk.from_arrays(data).shuffle(3).batch(32)
    dataset = bk.Loader(pipe, backend="tensorflow").as_dataset()
    for found, want in zip(dataset, bk.Loader(pipe), strict=True):
        for name in names:
            assert found[name].dtype.name == name
            assert found[name].numpy().tobytes() == want[name].tobytes()


def test_a_dtype_that_the_graph_optimiser_cannot_take_works_as_well() -> None:
    data = np.arange(ROWS, dtype=np.uint8).view(ml_dtypes.float8_e5m2)
    dataset = bk.Loader(bk.from_arrays(data).batch(50), backend="tensorflow").as_dataset()
    assert b"".join(batch.numpy().tobytes() for batch in dataset.prefetch(1)) == data.tobytes()


def test_nothing_is_copied_after_the_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    slots: set[int] = set()
    allocate = HostBatches.allocate

    def recording(self: HostBatches, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        column = allocate(self, shape, dtype)
        slots.add(column.ctypes.data)
        return column

    monkeypatch.setattr(HostBatches, "allocate", recording)
    for batch in bk.Loader(pipeline(), backend="tensorflow").as_dataset():
        for tensor in batch.values():
            assert np.asarray(memoryview(tensor)).__array_interface__["data"][0] in slots


def test_strings_and_bytes_arrive() -> None:
    data = {"s": np.array([f"é{row}" for row in range(10)]), "b": np.array([b"%d" % row for row in range(10)])}
    dataset = bk.Loader(bk.from_arrays(data).batch(4), backend="tensorflow").as_dataset()
    found = list(dataset)
    assert dataset.element_spec["s"].dtype == dataset.element_spec["b"].dtype == tf.string
    assert [s.decode() for batch in found for s in batch["s"].numpy()] == data["s"].tolist()
    assert [b for batch in found for b in batch["b"].numpy()] == data["b"].tolist()


def test_nesting_stays() -> None:
    data = {"b": Pair(X, (Y,)), "a": {"c": Y.astype(np.uint8)}}
    dataset = bk.Loader(bk.from_arrays(data).batch(50), backend="tensorflow").as_dataset()
    first = next(iter(dataset))
    assert type(first["b"]) is Pair
    np.testing.assert_array_equal(first["b"].x.numpy(), X[:50])
    np.testing.assert_array_equal(first["b"].y[0].numpy(), Y[:50])
    np.testing.assert_array_equal(first["a"]["c"].numpy(), Y[:50])


def test_composes_with_map_take_and_prefetch() -> None:
    dataset = bk.Loader(pipeline(), backend="tensorflow").as_dataset()
    composed = dataset.map(lambda batch: {**batch, "x": batch["x"] * 2.0}).take(4).prefetch(tf.data.AUTOTUNE)
    found = list(composed)
    assert [batch["y"].numpy().tolist() for batch in found] == wanted(pipeline(), 0)[:4]
    for batch in found:
        np.testing.assert_array_equal(batch["x"].numpy(), X[batch["y"].numpy()] * 2)


def test_goes_into_keras_fit_for_several_epochs() -> None:
    pipe = bk.from_arrays({"x": X, "y": Y}).shuffle(3).batch(32, remainder="drop").map(lambda b: (b["x"], b["y"]))
    seen: list[list[int]] = []

    class Model(tf.keras.Model):  # type: ignore[misc]
        def train_step(self, data: Any) -> dict[str, Any]:
            seen.append(data[1].numpy().tolist())
            return {"loss": tf.reduce_sum(data[0])}

    model = Model()
    model.compile(run_eagerly=True)
    model.fit(bk.Loader(pipe, backend="tensorflow").as_dataset(), epochs=3, shuffle=False, verbose=0)
    assert seen == [rows for epoch in range(3) for rows in wanted(pipeline(), epoch)]


def test_a_model_of_keras_learns_from_it() -> None:
    target = (X @ np.array([1.0, -2.0, 3.0, 0.5], np.float32))[:, None]
    pipe = bk.from_arrays((X, target)).shuffle(0).batch(20)
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.compile(optimizer=tf.keras.optimizers.SGD(0.1), loss="mse")
    history = model.fit(bk.Loader(pipe, backend="tensorflow").as_dataset(), epochs=5, shuffle=False, verbose=0)
    assert history.history["loss"][-1] < 0.01 * history.history["loss"][0]


def test_two_iterations_at_a_time_are_two_epochs() -> None:
    dataset = bk.Loader(pipeline(), backend="tensorflow").as_dataset()
    pairs = list(tf.data.Dataset.zip((dataset, dataset)))
    found = [[batch["y"].numpy().tolist() for batch in side] for side in zip(*pairs, strict=True)]
    assert sorted(found) == sorted([wanted(pipeline(), 0), wanted(pipeline(), 1)])


def test_a_source_of_unknown_length_has_unknown_cardinality() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for row in range(10):
            yield {"y": np.int64(row)}

    dataset = bk.Loader(bk.from_generator(rows).batch(4), backend="tensorflow").as_dataset()
    assert int(dataset.cardinality()) == tf.data.UNKNOWN_CARDINALITY
    for _ in range(2):
        assert order(dataset) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_an_endless_pipeline_is_cut_by_take() -> None:
    dataset = bk.Loader(bk.from_arrays({"y": Y}).repeat().batch(150), backend="tensorflow").as_dataset()
    assert [batch[0] for batch in order(dataset.take(4))] == [0, 150, 100, 50]


def test_begins_where_the_loader_stands() -> None:
    pipe = pipeline()
    loader = bk.Loader(pipe, backend="tensorflow")
    state = {**loader.state_dict(), "epoch": 4, "step": 2}
    loader.load_state_dict(state)
    dataset = loader.as_dataset()
    assert int(dataset.cardinality()) == tf.data.UNKNOWN_CARDINALITY
    assert order(dataset) == wanted(pipe, 4)[2:]
    assert order(dataset) == wanted(pipe, 5)
    assert loader.state_dict() == state


def test_follows_the_loader_to_another_epoch() -> None:
    pipe = pipeline()
    loader = bk.Loader(pipe, backend="tensorflow")
    dataset = loader.as_dataset()
    assert order(dataset) == wanted(pipe, 0)
    loader.load_state_dict({**loader.state_dict(), "epoch": 9})
    assert order(dataset) == wanted(pipe, 9)
    assert order(dataset) == wanted(pipe, 10)


@pytest.mark.parametrize("put", ["set_epoch", "load_state_dict"])
def test_begins_an_epoch_again_where_the_loader_is_put_to_where_it_stands(put: str) -> None:
    pipe = pipeline()
    loader = bk.Loader(pipe, backend="tensorflow")
    dataset = loader.as_dataset()
    for _ in range(2):
        assert order(dataset) == wanted(pipe, 0)
        assert order(dataset) == wanted(pipe, 1)
        if put == "set_epoch":
            loader.set_epoch(0)
        else:
            loader.load_state_dict(loader.state_dict())


def test_begins_the_rest_of_an_epoch_again_where_the_loader_is_put_to_where_it_stands() -> None:
    pipe = pipeline()
    loader = bk.Loader(pipe, backend="tensorflow")
    loader.load_state_dict({**loader.state_dict(), "step": 2})
    dataset = loader.as_dataset()
    assert order(dataset) == wanted(pipe, 0)[2:]
    loader.load_state_dict(loader.state_dict())
    assert order(dataset) == wanted(pipe, 0)[2:]
    assert order(dataset) == wanted(pipe, 1)


def test_follows_a_loader_that_was_moved_and_that_nobody_else_keeps() -> None:
    pipe = pipeline()
    loader = bk.Loader(pipe, backend="tensorflow")
    dataset = loader.as_dataset()
    loader.set_epoch(3)
    del loader
    gc.collect()
    assert order(dataset) == wanted(pipe, 3)
    assert order(dataset) == wanted(pipe, 4)


def test_the_loader_goes_with_its_datasets() -> None:
    loader = bk.Loader(pipeline(), backend="tensorflow")
    dataset = loader.as_dataset().prefetch(2)
    assert order(dataset) == wanted(pipeline(), 0)
    gone = weakref.ref(loader)
    del loader, dataset
    gc.collect()
    assert gone() is None


def test_workers_go_with_the_dataset_that_had_them() -> None:
    loader = bk.Loader(pipeline(), backend="tensorflow", executor="threads", workers=2)
    before = set(threading.enumerate())
    dataset = loader.as_dataset()
    iterator = iter(dataset)
    next(iterator)
    del dataset
    gc.collect()
    rest = [batch["y"].numpy().tolist() for batch in iterator]  # the iterator keeps them
    assert rest == wanted(pipeline(), 0)[1:]
    del iterator
    gc.collect()
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("batchkit")]
    for thread in left:
        thread.join(10)
    assert [thread.name for thread in left if thread.is_alive()] == []


@pytest.mark.parametrize("bad", [3, 13])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("remainder", ["keep", "drop", "pad"])
def test_rows_that_are_left_out_are_missing_and_nothing_else(remainder: str, filtered: bool, bad: int) -> None:
    def fails_at_one(row: Any) -> Any:
        if row["y"] == bad:
            raise ValueError("bad")
        return row

    pipe = bk.from_arrays({"y": Y}).map(fails_at_one)
    pipe = (pipe.filter(lambda row: True) if filtered else pipe).batch(10, remainder=remainder)
    with bk.Loader(pipe, backend="tensorflow", on_error="skip") as loader:
        batches = list(loader.as_dataset())
    real = [batch["y"][batch["mask"]] if remainder == "pad" else batch["y"] for batch in batches]
    found = [y for batch in real for y in batch.numpy().tolist()]
    rest = [y for y in range(ROWS) if y != bad]
    assert found == (rest[:190] if filtered and remainder == "drop" else rest)


def test_a_function_that_was_traced_goes_on_when_nobody_else_has_the_dataset() -> None:
    held = [bk.Loader(pipeline(remainder="keep"), backend="tensorflow").as_dataset()]

    @tf.function
    def total() -> tf.Tensor:
        found = tf.constant(0, tf.int64)
        for batch in held[0]:
            found += tf.reduce_sum(batch["y"])
        return found

    whole = int(Y.sum())
    assert int(total()) == whole
    held.clear()
    gc.collect()
    assert [int(total()), int(total())] == [whole, whole]


def test_a_loader_moved_into_an_epoch_later_is_named() -> None:
    loader = bk.Loader(pipeline(), backend="tensorflow")
    dataset = loader.as_dataset()
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "step": 3})
    with pytest.raises(tf.errors.OpError, match=r"epoch 1, step 3.*\n?.*call as_dataset\(\) again"):
        order(dataset)
    assert order(loader.as_dataset()) == wanted(pipeline(), 1)[3:]


def test_a_shard_is_this_ranks_slice() -> None:
    dataset = bk.Loader(pipeline(), backend="tensorflow", shard=(1, 2)).as_dataset()
    assert dataset.element_spec["x"].shape.as_list() == [16, 4]
    assert order(dataset) == [rows[16:] for rows in wanted(pipeline(), 0)]


def fails_on_multiples_of_three(batch: dict[str, Any]) -> dict[str, Any]:
    if batch["y"][0] % 3 == 2:
        raise ValueError("the user's own words")
    return batch


def test_an_error_in_a_users_function_arrives_with_its_text_and_the_rest_can_still_be_had() -> None:
    pipe = bk.from_arrays({"x": X, "y": Y}).batch(20).map(fails_on_multiples_of_three)
    dataset = bk.Loader(pipe, backend="tensorflow").as_dataset()
    found: list[Any] = []
    messages: list[str] = []
    batches = iter(dataset)
    for _ in range(30):
        try:
            found.append(int(next(batches)["y"][0]))
        except StopIteration:
            break
        except tf.errors.OpError as exc:
            found.append("error")
            messages.append(str(exc))
    for message in messages:
        assert "StageError" in message
        assert "fails_on_multiples_of_three" in message
        assert "ValueError: the user's own words" in message
    assert found == [0, "error", 40, 60, "error", 100, 120, "error", 160, 180]
    assert [rows[0] for rows in order(dataset.ignore_errors())] == [0, 40, 60, 100, 120, 160, 180]


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batchkit")]


def test_an_iteration_that_is_given_up_leaves_no_thread_behind() -> None:
    dataset = bk.Loader(pipeline(2), backend="tensorflow", workers=2).as_dataset().prefetch(2)
    batches = iter(dataset)
    next(batches)
    for _ in dataset.take(2):
        pass
    del batches
    deadline = time.monotonic() + 10
    while workers() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert workers() == []


def test_a_batch_that_is_kept_never_changes() -> None:
    x = np.random.default_rng(0).standard_normal((6000, 32)).astype(np.float32)
    odd = np.empty(x.nbytes + 1, np.uint8)[1:]
    odd[:] = x.reshape(-1).view(np.uint8)
    data = {"x": x, "odd": np.ndarray(x.shape, x.dtype, odd.data), "y": np.arange(6000)}
    pipe = bk.from_arrays(data).shuffle(1).batch(40)
    dataset = bk.Loader(pipe, backend="tensorflow", prefetch=4).as_dataset().prefetch(tf.data.AUTOTUNE)
    kept: deque[tuple[Any, list[int]]] = deque(maxlen=40)
    for _ in range(3):
        for batch in dataset:
            kept.append((batch, batch["y"].numpy().tolist()))  # written down: another's batch is one in itself, too
            oldest, rows = kept[0]
            assert oldest["y"].numpy().tolist() == rows
            np.testing.assert_array_equal(oldest["x"].numpy(), x[rows])
    assert len(kept) == 40
    for batch, rows in kept:
        assert batch["y"].numpy().tolist() == rows
        np.testing.assert_array_equal(batch["x"].numpy(), x[rows])
        np.testing.assert_array_equal(batch["odd"].numpy(), x[rows])


def test_operations_behind_it_do_not_write_to_what_others_read() -> None:
    # The function hands out the same memory with every batch.
    table = np.ones((50, 64), np.float32)
    pipe = bk.from_arrays({"y": Y}).batch(50).map(lambda batch: {**batch, "table": table})
    dataset = bk.Loader(pipe, backend="tensorflow").as_dataset()
    for batch in dataset.map(lambda batch: tf.nn.relu(-(batch["table"] + 1.0) * 2.0)):
        assert float(tf.reduce_sum(batch)) == 0
    assert (table == 1).all()


def test_a_batch_that_a_function_has_made_has_unknown_sides_and_scalars() -> None:
    def made(rows: list[Any]) -> Any:
        return {"x": np.zeros((len(rows), 1 + rows[0]["y"] % 5), np.float32), "sum": sum(int(row["y"]) for row in rows)}

    pipe = bk.from_arrays({"y": Y}).batch(32, collate=made)
    dataset = bk.Loader(pipe, backend="tensorflow").as_dataset()
    assert dataset.element_spec["x"].shape.as_list() == [None, None]
    assert dataset.element_spec["sum"] == tf.TensorSpec((), tf.int64)
    runs = [Y[start : start + 32] for start in range(0, ROWS, 32)]
    found = [(tuple(batch["x"].shape), int(batch["sum"])) for batch in dataset]
    assert found == [((len(run), 1 + int(run[0]) % 5), int(run.sum())) for run in runs]
