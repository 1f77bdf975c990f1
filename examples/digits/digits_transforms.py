"""What happens to a batch of digits on its way: pure NumPy, so every framework gets the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Batch = dict[str, Any]


def shift(batch: Batch, rng: Any) -> Batch:
    """Move every image by up to one pixel along both axes; what comes in from outside is empty paper."""
    images = batch["image"]
    rows, height, width = images.shape
    paper = np.zeros((rows, height + 2, width + 2), images.dtype)
    paper[:, 1:-1, 1:-1] = images
    windows = sliding_window_view(paper, (height, width), axis=(1, 2))
    # One draw a row: where the window begins.
    return {**batch, "image": windows[np.arange(rows), rng.integers(0, 3), rng.integers(0, 3)]}


def normalize(batch: Batch) -> Batch:
    """Turn the ink, 0 to 16, into float32 from -1 to 1."""
    return {**batch, "image": batch["image"].astype(np.float32) / 8 - 1}


def press(batch: Batch, rng: Any) -> Batch:
    """Write every digit with a lighter or heavier hand."""
    strength = (0.8 + 0.4 * rng.random()).astype(np.float32)
    return {**batch, "image": (batch["image"] + 1) * strength[:, None, None] - 1}
