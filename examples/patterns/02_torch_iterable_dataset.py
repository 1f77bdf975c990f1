"""A torch IterableDataset around a generator.

The classic wraps a generator, and lets the DataLoader batch its rows. With two workers each
of them runs the whole generator, and every row comes twice, unless one remembers to split the
work by ``get_worker_info()``. The data set that a loader turns into splits its batches itself.

Run: python examples/patterns/02_torch_iterable_dataset.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

import batchkit as bk


class Rows(IterableDataset[Any]):
    """The classic: one row after the other."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        yield from range(self.rows)


def summary(batches: Any) -> str:
    """Count the rows, and the different ones among them."""
    rows = [int(row) for batch in batches for row in batch]
    return f"{len(rows)} rows, {len(set(rows))} different ones"


def main() -> None:
    """Count what comes without workers and with two, both ways."""
    classic = Rows(100)
    print("generator, no workers: ", summary(DataLoader(classic, batch_size=8)))
    print("generator, two workers:", summary(DataLoader(classic, batch_size=8, num_workers=2)))

    loader = bk.Loader(bk.from_arrays(np.arange(100)).shuffle(seed=0).batch(8), backend="torch")
    dataset = loader.as_dataset()
    print("batchkit, bare:        ", summary(dataset))
    print("batchkit, two workers: ", summary(DataLoader(dataset, batch_size=None, num_workers=2)))


if __name__ == "__main__":
    main()
