"""A batch generator over an array.

The classic is a function with ``yield``. It holds one batch at a time, which is its charm;
but it is used up after one pass, has no length, and once it was interrupted nobody knows how
to go on. The same slices with batchkit are a description: it can be iterated again, shuffled,
measured, and resumed in the middle.

Run: python examples/patterns/01_batch_generator.py
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

import batchkit as bk


def batches(x: npt.NDArray[np.float32], size: int) -> Iterator[npt.NDArray[np.float32]]:
    """Cut an array into batches: the classic way."""
    for start in range(0, len(x), size):
        yield x[start : start + size]


def main() -> None:
    """Do the same both ways, then what only a description can do."""
    x = np.arange(20, dtype=np.float32).reshape(10, 2)

    classic = batches(x, 4)
    print("generator, first pass: ", [len(batch) for batch in classic])
    print("generator, second pass:", [len(batch) for batch in classic])

    loader = bk.Loader(bk.from_arrays(x).batch(4))
    same = all(np.array_equal(ours, theirs) for ours, theirs in zip(loader, batches(x, 4), strict=True))
    print("batchkit, first pass:  ", [len(batch) for batch in loader], "the same batches:", same)
    print("batchkit, second pass: ", [len(batch) for batch in loader], "of", len(loader))

    shuffled = bk.from_arrays(x).shuffle(seed=0).batch(4)
    loader = bk.Loader(shuffled)
    epoch = iter(loader)
    next(epoch)
    state = loader.state_dict()  # had the run been interrupted here ...
    rest = [batch[:, 0].tolist() for batch in epoch]

    resumed = bk.Loader(shuffled)
    resumed.load_state_dict(state)
    print("resumed, the same rest:", [batch[:, 0].tolist() for batch in resumed] == rest)


if __name__ == "__main__":
    main()
