"""A `tf.function` step is traced once for every shape that `loader.shapes` lists beforehand, and for no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

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
    return sorted(f"{name}: {tf.as_dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in tree.items())


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_tf_function_step_is_traced_once_for_every_listed_shape(name: str, world: int, jit_compile: bool) -> None:
    pipe, count = PIPELINES[name]
    traced: list[list[str]] = []

    @tf.function(reduce_retracing=False, jit_compile=jit_compile)
    def step(batch: Any) -> Any:
        traced.append(shape_of(batch))  # runs only while TensorFlow traces
        return [tf.reduce_sum(tf.cast(leaf, tf.float32)) for leaf in tf.nest.flatten(batch)]

    with bk.Loader(pipe, backend="tensorflow", shard=(world - 1, world), executor="inline") as loader:
        listed = [shape_of(tree) for tree in loader.shapes]
        assert len(listed) == count
        for _ in range(3):
            for batch in loader:
                step(batch)
    assert sorted(traced) == sorted(listed)
    assert step.experimental_get_tracing_count() == count
