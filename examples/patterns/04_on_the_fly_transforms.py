"""Transforms on the fly.

The classic augments inside the generator, with one random generator for everything. What a
row gets then depends on how many rows came before it: another batch size, a worker more, or a
resumed run, and every row is augmented differently. With batchkit the draws belong to the row.

Run: python examples/patterns/04_on_the_fly_transforms.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import batchkit as bk

IMAGES = np.arange(12 * 4, dtype=np.float32).reshape(12, 2, 2)


def classic(size: int) -> Iterator[Any]:
    """Yield batches of images, each flipped and brightened at random: the classic way."""
    rng = np.random.default_rng(0)
    for start in range(0, len(IMAGES), size):
        images = IMAGES[start : start + size].copy()
        flipped = rng.random(len(images)) < 0.5
        images[flipped] = images[flipped, :, ::-1]
        yield images + rng.normal(size=(len(images), 1, 1)).astype(np.float32)


def jitter(images: Any, rng: Any) -> Any:
    """Do the same to whole columns: ``rng`` draws one number a row, and knows which row that is."""
    mirrored = np.where((rng.random() < 0.5)[:, None, None], images[:, :, ::-1], images)
    return mirrored + rng.normal()[:, None, None].astype(np.float32)


def ours(size: int, **options: Any) -> Iterator[Any]:
    """Yield the same kind of batches with batchkit."""
    pipe = bk.from_arrays(IMAGES).batch(size).random_map(jitter, seed=0)
    return iter(bk.Loader(pipe, **options))


def main() -> None:
    """Compare what the rows get at two batch sizes, and with more workers."""
    four = np.concatenate(list(classic(4)))
    print("generator, batches of 4 and of 6 alike:", np.array_equal(four, np.concatenate(list(classic(6)))))

    four = np.concatenate(list(ours(4)))
    print("batchkit, batches of 4 and of 6 alike: ", np.array_equal(four, np.concatenate(list(ours(6)))))
    print("batchkit, one and three workers alike: ", np.array_equal(four, np.concatenate(list(ours(4, workers=3)))))


if __name__ == "__main__":
    main()
