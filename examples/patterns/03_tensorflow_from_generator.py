"""``tf.data.Dataset.from_generator``.

The classic hands every row from Python to TensorFlow by itself, repeats by hand the dtypes and
shapes that the data have anyway, and makes a float32 out of a float64 without a word.
batchkit takes the same generator, hands over whole batches, and knows their specs.

Run: python examples/patterns/03_tensorflow_from_generator.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

import batchkit as bk

ROWS = 4096


def rows() -> Iterator[dict[str, Any]]:
    """Yield one row after the other, as a reader of some format would."""
    for number in range(ROWS):
        yield {"x": np.full(16, number, np.float32), "label": np.int64(number % 10)}


def main() -> None:
    """Feed the same generator both ways, and compare."""
    signature = {"x": tf.TensorSpec((16,), tf.float32), "label": tf.TensorSpec((), tf.int64)}
    classic = tf.data.Dataset.from_generator(rows, output_signature=signature).batch(256)
    # The remainder is dropped, so the shapes are known: nothing is to be written down by hand.
    ours = bk.Loader(bk.from_generator(rows).batch(256, remainder="drop"), backend="tensorflow").as_dataset()
    print("from_generator, spec of x:", classic.element_spec["x"])
    print("batchkit, spec of x:      ", ours.element_spec["x"])

    taken, digests = {}, {}
    for name, dataset in (("from_generator", classic), ("batchkit", ours)):
        begin = time.perf_counter()
        digests[name] = [float(tf.reduce_sum(batch["x"])) for batch in dataset]
        taken[name] = time.perf_counter() - begin
    print("the same batches:", digests["from_generator"] == digests["batchkit"])
    print(f"batchkit took {taken['batchkit'] / taken['from_generator']:.0%} of from_generator's time")


if __name__ == "__main__":
    main()
