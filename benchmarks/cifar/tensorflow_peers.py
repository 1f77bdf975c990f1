"""The CIFAR-like epoch by tf.data with AUTOTUNE, in TensorFlow's own operations."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from cifar.workload import PADDING, PLACES, SIDE, SIZE, Peer, Pictures, affine, again

__all__ = ["tensorflow_peers"]

WIDE = SIDE + 2 * PADDING
AUTO = tf.data.AUTOTUNE
FRAME = [[PADDING, PADDING], [PADDING, PADDING], [0, 0]]


def normalised(images: Any, labels: Any) -> Any:
    """Normalise bytes; of a picture or of a batch."""
    a, b = affine()
    return tf.cast(images, tf.float32) * a - b, labels


def cropped(image: Any, label: Any) -> Any:
    """Crop and flip a picture."""
    image = tf.image.random_crop(tf.pad(image, FRAME), [SIDE, SIDE, 3])
    return tf.image.random_flip_left_right(image), label


def cropped_batch(images: Any, labels: Any) -> Any:
    """Crop and flip a whole batch: one ``tf.gather`` over its pixels, then normalise.

    ``tf.raw_ops.ImageProjectiveTransformV3``, as in Keras's layers, took twice as long.
    """
    count, side = tf.shape(images)[0], tf.range(SIDE)
    down = tf.random.uniform([count, 1], maxval=PLACES, dtype=tf.int32) + side
    across = tf.where(tf.random.uniform([count, 1]) < 0.5, side[::-1], side)
    across += tf.random.uniform([count, 1], maxval=PLACES, dtype=tf.int32)
    pixels = down[:, :, None] * WIDE + across[:, None, :] + tf.range(count)[:, None, None] * WIDE**2
    images = tf.reshape(tf.pad(images, [[0, 0], *FRAME]), [-1, 3])
    return normalised(tf.gather(images, pixels), labels)


def tensorflow_peers(work: Pictures) -> list[Peer]:
    """Return tf.data per row, over whole batches of shuffled rows, and of shuffled row numbers."""
    images, labels, count = tf.constant(work.images), tf.constant(work.labels), len(work)
    free = tf.data.Options()
    free.deterministic = False  # rows come as they are ready, which makes a difference where they are mapped one by one

    def taken(rows: Any) -> Any:
        return cropped_batch(tf.gather(images, rows), tf.gather(labels, rows))

    rows = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(count)
    numbers = tf.data.Dataset.range(count).shuffle(count)
    per_row = rows.map(cropped, AUTO).batch(SIZE, num_parallel_calls=AUTO).map(normalised, AUTO).prefetch(AUTO)
    of_rows = rows.batch(SIZE, num_parallel_calls=AUTO).map(cropped_batch, AUTO).prefetch(AUTO)
    of_numbers = numbers.batch(SIZE).map(taken, AUTO).prefetch(AUTO)
    by_row, whole = "tf.data, per row", "tf.data, whole batches"
    return [
        Peer(by_row, again(per_row), by_row),
        Peer(f"{by_row}, any order", again(per_row.with_options(free)), by_row),
        Peer(f"{whole} of rows", again(of_rows), whole),
        Peer(f"{whole} of row numbers", again(of_numbers), whole),
    ]
