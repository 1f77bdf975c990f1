"""A jitted step is compiled once for every shape that `loader.shapes` lists beforehand, and for no other."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import batchkit as bk

LENGTHS = np.array([3, 1, 8, 5, 2, 7, 4, 6, 1, 3, 8, 2, 5, 4, 7, 6, 2, 3])
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
SEQUENCES = bk.from_ragged({"tokens": np.arange(OFFSETS[-1], dtype=np.int32)}, OFFSETS).shuffle(seed=1)
ROWS = bk.from_arrays({"x": np.arange(44, dtype=np.float32).reshape(22, 2)}).shuffle(seed=1)
KEPT = [2, 5, 8]

PIPELINES = {
    "pad": (ROWS.batch(8, remainder="pad"), 1),
    "drop": (ROWS.batch(8, remainder="drop"), 1),
    "filtered, pad": (ROWS.filter(lambda row: row["x"][0] % 3 != 0).batch(8, remainder="pad"), 1),
    "padded_batch": (SEQUENCES.padded_batch(4, length=8, remainder="pad"), 1),
    "bucket_batch": (SEQUENCES.bucket_batch(4, boundaries=KEPT, remainder="pad"), 3),
    "bucket_batch, drop": (SEQUENCES.bucket_batch(2, boundaries=KEPT, remainder="drop", lengths=True), 3),
    "bucket_batch, max_tokens": (SEQUENCES.bucket_batch(max_tokens=16, boundaries=KEPT, remainder="pad"), 3),
    "pack": (SEQUENCES.pack(8).batch(4, remainder="pad"), 1),
    "pack, split": (SEQUENCES.pack(4, oversize="split", method="best_fit").batch(4, remainder="drop"), 1),
}


def shape_of(tree: Any) -> list[str]:
    return sorted(f"{name}: {np.dtype(leaf.dtype)}{list(leaf.shape)}" for name, leaf in tree.items())


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_jitted_step_is_compiled_once_for_every_listed_shape(name: str, world: int) -> None:
    pipe, count = PIPELINES[name]
    traced: list[list[str]] = []

    @jax.jit
    def step(batch: Any) -> Any:
        traced.append(shape_of(batch))  # runs only while JAX compiles
        return sum(leaf.sum() for leaf in jax.tree.leaves(batch))

    with bk.Loader(pipe, backend="jax", shard=(world - 1, world), executor="inline") as loader:
        listed = [shape_of(tree) for tree in loader.shapes]
        assert len(listed) == count
        for _ in range(3):
            for batch in loader:
                step(batch)
    assert sorted(traced) == sorted(listed)


def test_every_step_can_be_compiled_before_the_first_batch() -> None:
    traced = 0

    @jax.jit
    def step(batch: Any) -> Any:
        nonlocal traced
        traced += 1
        return jax.numpy.sum(batch["tokens"] * batch["mask"][:, None])

    with bk.Loader(PIPELINES["bucket_batch"][0], backend="jax", executor="inline") as loader:
        compiled = {}
        for tree in loader.shapes:
            blank = {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in tree.items()}
            compiled[tree["tokens"].shape] = step.lower(blank).compile()
        assert traced == 3
        sums = [int(compiled[batch["tokens"].shape](batch)) for batch in loader]
    assert sum(sums) == int(np.arange(OFFSETS[-1]).sum())
    assert traced == 3
