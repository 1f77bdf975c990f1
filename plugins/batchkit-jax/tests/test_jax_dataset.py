"""The JAX user's data set."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

X = np.arange(20 * 3, dtype=np.float32).reshape(20, 3)
PIPE = bk.from_arrays({"x": X}).shuffle(seed=1).batch(8)


def _plain(epochs: int) -> list[list[Any]]:
    with bk.Loader(PIPE, backend="numpy") as loader:
        return [[batch["x"].tolist() for batch in loader] for _ in range(epochs)]


def test_every_iteration_is_the_next_epoch() -> None:
    with bk.Loader(PIPE, backend="jax") as loader:
        dataset = loader.as_dataset()
        assert [[batch["x"].tolist() for batch in dataset] for _ in range(3)] == _plain(3)


def test_it_yields_jax_arrays() -> None:
    with bk.Loader(PIPE, backend="jax") as loader:
        assert all(isinstance(batch["x"], jax.Array) for batch in loader.as_dataset())


def test_it_has_the_length_of_an_epoch() -> None:
    with bk.Loader(PIPE, backend="jax") as loader:
        assert len(loader.as_dataset()) == 3


def test_it_has_no_length_where_none_is_known() -> None:
    with (
        bk.Loader(bk.from_generator(lambda: iter(X)).batch(8), backend="jax") as loader,
        pytest.raises(TypeError, match="length"),
    ):
        len(loader.as_dataset())


def test_it_is_a_list_even_where_no_length_is_known() -> None:
    with bk.Loader(bk.from_generator(lambda: iter(X)).batch(8), backend="jax") as loader:
        assert [len(batch) for batch in list(loader.as_dataset())] == [8, 8, 4]


def test_it_goes_on_where_a_state_left_off() -> None:
    with bk.Loader(PIPE, backend="jax") as loader:
        next(iter(loader.as_dataset()))
        state = loader.state_dict()
    with bk.Loader(PIPE, backend="jax") as loader:
        loader.load_state_dict(state)
        assert [batch["x"].tolist() for batch in loader.as_dataset()] == _plain(1)[0][1:]


def test_batches_go_through_jit_and_grad() -> None:
    @jax.jit
    def loss(weights: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean((batch["x"] @ weights) ** 2)

    with bk.Loader(PIPE, backend="jax") as loader:
        first = next(iter(loader.as_dataset()))
        slope = jax.grad(loss)(jnp.ones(3), first)
    x = np.array(_plain(1)[0][0])
    assert np.allclose(slope, 2 * (x @ np.ones(3)) @ x / len(x), rtol=1e-5)


def test_many_batches_that_jit_is_still_working_on_are_right() -> None:
    @jax.jit
    def slow(x: jax.Array) -> jax.Array:
        for _ in range(20):
            x = jnp.sin(x) @ jnp.eye(x.shape[1])
        return x

    rows = np.random.default_rng(0).random((64 * 128, 64), np.float32)
    with bk.Loader(bk.from_arrays(rows).batch(128), backend="jax", workers=2, prefetch=4) as loader:
        results = [slow(batch) for batch in loader]  # the batches themselves die at once
    for number, result in enumerate(results):
        assert np.array_equal(np.asarray(result), np.asarray(slow(rows[number * 128 : (number + 1) * 128]))), number


def test_jit_compiles_a_padded_epoch_once() -> None:
    compiled = []

    @jax.jit
    def count(batch: dict[str, jax.Array]) -> jax.Array:
        compiled.append(batch["x"].shape)
        return batch["mask"].sum()

    pipe = bk.from_arrays({"x": X}).batch(8, remainder="pad")
    with bk.Loader(pipe, backend="jax") as loader:
        assert [int(count(batch)) for batch in loader] == [8, 8, 4]
    assert compiled == [(8, 3)]


def test_padded_batches_compile_a_jitted_step_once() -> None:
    @jax.jit
    def total(batch: Any) -> Any:
        return jnp.sum(batch["x"] * batch["mask"][:, None])

    with bk.Loader(bk.from_arrays({"x": X}).shuffle(seed=1).batch(8, remainder="pad"), backend="jax") as loader:
        sums = [float(total(batch)) for _ in range(2) for batch in loader]
    assert total._cache_size() == 1
    assert sum(sums) == 2 * X.sum()


def test_batches_that_a_function_has_made_may_have_any_shapes() -> None:
    def made(rows: list[Any]) -> Any:
        return {"x": np.stack([row["x"] for row in rows]).T[: len(rows) // 4], "rows": len(rows)}

    with bk.Loader(bk.from_arrays({"x": X}).batch(8, collate=made), backend="jax") as loader:
        found = list(loader.as_dataset())
    assert [batch["x"].tolist() for batch in found] == [
        X[:8].T[:2].tolist(),
        X[8:16].T[:2].tolist(),
        X[16:].T[:1].tolist(),
    ]
    assert [(batch["rows"].shape, int(batch["rows"])) for batch in found] == [((), 8), ((), 8), ((), 4)]
