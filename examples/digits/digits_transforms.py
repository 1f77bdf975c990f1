"""What happens to a batch of digits on its way: pure NumPy, so every framework gets the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

Batch = dict[str, Any]


def shift(batch: Batch, rng: Any) -> Batch:
    """Move every image by up to one pixel along both axes; what comes in from outside is empty paper."""
    images = batch["image"]
    rows, height, width = images.shape
    top, left = rng.integers(0, 3), rng.integers(0, 3)  # one draw a row: where the window into the padded image begins
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    y = (top[:, None] + np.arange(height))[:, :, None]
    x = (left[:, None] + np.arange(width))[:, None, :]
    return {**batch, "image": padded[np.arange(rows)[:, None, None], y, x]}


def normalize(batch: Batch) -> Batch:
    """Turn the ink, 0 to 16, into float32 from -1 to 1."""
    return {**batch, "image": batch["image"].astype(np.float32) / 8 - 1}


def press(batch: Batch, rng: Any) -> Batch:
    """Write every digit with a lighter or heavier hand."""
    strength = (0.8 + 0.4 * rng.random()).astype(np.float32)
    return {**batch, "image": (batch["image"] + 1) * strength[:, None, None] - 1}
