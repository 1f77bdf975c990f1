"""Write the handwritten digits that ship inside scikit-learn to ``data/images.npy`` and ``data/labels.npy``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

DATA = Path(__file__).parent / "data"


def prepare() -> None:
    """Write 1,797 images, uint8 (8, 8) with values 0 to 16, and their labels, int64; do nothing where they are."""
    images, labels = DATA / "images.npy", DATA / "labels.npy"
    if images.exists() and labels.exists():
        return
    digits = load_digits()
    DATA.mkdir(exist_ok=True)
    np.save(images, digits.images.astype(np.uint8))
    np.save(labels, digits.target.astype(np.int64))
    print(f"wrote {len(digits.target):,} handwritten digits to {DATA}")


if __name__ == "__main__":
    prepare()
