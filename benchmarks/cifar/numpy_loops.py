"""The CIFAR-like epoch as one writes it by hand in NumPy: one permutation, then whole batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from cifar.workload import MEAN, PADDING, PLACES, SIDE, SIZE, STD, Peer, Pictures, affine

__all__ = ["Images", "augmented_with_care", "numpy_peers"]

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Augment = Callable[[Images, np.random.Generator], Floats]


def draw(random: np.random.Generator, rows: int) -> tuple[Numbers, Numbers, npt.NDArray[np.bool_]]:
    """Return where each crop begins, from the top and from the left, and whether it is flipped."""
    return random.integers(PLACES, size=rows), random.integers(PLACES, size=rows), random.random(rows) < 0.5


def padded(x: Images) -> Images:
    """Put the pictures into black frames."""
    return np.pad(x, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))


def normalised(x: Images) -> Floats:
    """Normalise as one writes it down."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    y: npt.NDArray[Any] = (x.astype(np.float32) / 255 - mean) / std
    return y


def augmented_by_index(x: Images, random: np.random.Generator) -> Floats:
    """Crop with index arrays, flip with ``np.where``."""
    tops, lefts, flipped = draw(random, len(x))
    rows, side = np.arange(len(x))[:, None, None], np.arange(SIDE)
    x = padded(x)[rows, (tops[:, None] + side)[:, :, None], (lefts[:, None] + side)[:, None, :]]
    return normalised(np.where(flipped[:, None, None, None], x[:, :, ::-1], x))


def augmented_by_window(x: Images, random: np.random.Generator) -> Floats:
    """Crop with ``sliding_window_view``, flip with ``np.where``."""
    tops, lefts, flipped = draw(random, len(x))
    windows = sliding_window_view(padded(x), (SIDE, SIDE), axis=(1, 2))
    x = windows[np.arange(len(x)), tops, lefts].transpose(0, 2, 3, 1)
    return np.ascontiguousarray(normalised(np.where(flipped[:, None, None, None], x[:, :, ::-1], x)))


def augmented_with_care(x: Images, random: np.random.Generator) -> Floats:
    """Crop with ``sliding_window_view``, flip only the rows that are to be, and compute in place."""
    tops, lefts, flipped = draw(random, len(x))
    windows = sliding_window_view(padded(x), (SIDE, SIDE), axis=(1, 2))
    x = np.ascontiguousarray(windows[np.arange(len(x)), tops, lefts].transpose(0, 2, 3, 1))
    x[flipped] = x[flipped, :, ::-1]
    a, b = affine()
    y = x.astype(np.float32)
    y *= a
    y -= b
    return y


def numpy_peers(work: Pictures) -> list[Peer]:
    """Return three ways to write it."""
    random = np.random.default_rng(0)

    def epoch(augment: Augment) -> Iterator[tuple[Floats, Numbers]]:
        order = random.permutation(len(work))
        for begin in range(0, len(order), SIZE):
            rows = order[begin : begin + SIZE]
            yield augment(work.images[rows], random), work.labels[rows]

    by_hand = "NumPy"
    return [
        Peer("NumPy, index arrays", lambda: epoch(augmented_by_index), by_hand),
        Peer("NumPy, windows", lambda: epoch(augmented_by_window), by_hand),
        Peer("NumPy, with care", lambda: epoch(augmented_with_care), by_hand),
    ]
