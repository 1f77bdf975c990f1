"""The workload of the Foundation, and how each peer does it in its best idiomatic setting.

200,000 rows of 64 float32 and an int64 label, in memory; an epoch is a fresh shuffle of all
rows, cut into batches of 256, the last one shorter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.bench import Contender

__all__ = ["Workload", "grain_peers", "numpy_loops", "tensorflow_peers", "torch_peers"]


@dataclass(frozen=True)
class Workload:
    """The data, and the size of a batch."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    size: int = 256

    @staticmethod
    def of(rows: int) -> Workload:
        """Make data of that many rows."""
        rng = np.random.default_rng(0)
        return Workload(rng.standard_normal((rows, 64), dtype=np.float32), rng.integers(0, 10, rows))

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self.x) // self.size)


def numpy_loops(work: Workload) -> list[Contender]:
    """Return the plain loop that everybody writes, and a bare ``take`` into one warm buffer.

    The second is the floor: what is left when batches are not kept, nothing is checked, and
    nothing runs ahead. It says how much of a loader's time is its own.
    """
    rng = np.random.default_rng(1)
    x, y, size = work.x, work.y, work.size

    def plain() -> Iterator[Any]:
        p = rng.permutation(len(x))
        for i in range(0, len(x), size):
            rows = p[i : i + size]
            yield x[rows], y[rows]

    slot_x, slot_y = np.empty((size, 64), np.float32), np.empty(size, np.int64)

    def bare() -> Iterator[Any]:
        p = rng.permutation(len(x))
        for i in range(0, len(x), size):
            rows = p[i : i + size]
            n = len(rows)
            yield x.take(rows, 0, slot_x[:n], "clip"), y.take(rows, 0, slot_y[:n], "clip")

    return [Contender("plain loop", plain), Contender("bare take", bare)]


def torch_peers(work: Workload) -> list[Contender]:
    """Return DataLoader per row, with a BatchSampler, and with ``__getitems__``.

    Torch's own threads help to index whole batches on an idle machine, and are very slow on
    a busy one, so there is a contender with one thread as well.
    """
    if not find_spec("torch"):
        return []
    import torch
    from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

    class Columns(Dataset[Any]):
        """Takes many rows at once, where it is asked for a list of them."""

        def __init__(self) -> None:
            self.x, self.y = torch.from_numpy(work.x), torch.from_numpy(work.y)

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, rows: Any) -> Any:
            return self.x[rows], self.y[rows]

        __getitems__ = __getitem__

    rows = TensorDataset(torch.from_numpy(work.x), torch.from_numpy(work.y))
    columns = Columns()
    sampler = BatchSampler(RandomSampler(columns), work.size, drop_last=False)
    per_row = functools.partial(DataLoader, rows, batch_size=work.size, shuffle=True)
    batched = functools.partial(DataLoader, columns, batch_size=None, sampler=sampler)
    many = functools.partial(DataLoader, columns, batch_size=work.size, shuffle=True, collate_fn=_as_it_is)
    threads = torch.get_num_threads()

    def again(loader: Iterable[Any], threads: int = threads) -> Callable[[], Iterable[Any]]:
        def epoch() -> Iterable[Any]:
            torch.set_num_threads(threads)
            return loader

        return epoch

    return [
        Contender("DataLoader, per row", again(per_row())),
        Contender("DataLoader, per row, 2 workers", again(per_row(num_workers=2, persistent_workers=True))),
        Contender("DataLoader, BatchSampler", again(batched())),
        Contender("DataLoader, BatchSampler, 1 thread", again(batched(), 1)),
        Contender("DataLoader, BatchSampler, 2 workers", again(batched(num_workers=2, persistent_workers=True))),
        Contender("DataLoader, __getitems__", again(many())),
        Contender("DataLoader, __getitems__, 1 thread", again(many(), 1)),
    ]


def _as_it_is(batch: Any) -> Any:
    return batch


def _again(iterable: Iterable[Any]) -> Callable[[], Iterable[Any]]:
    return lambda: iterable


def tensorflow_peers(work: Workload) -> list[Contender]:
    """Return tf.data over rows, and over row numbers with a gather of whole batches."""
    if not find_spec("tensorflow"):
        return []
    import tensorflow as tf

    auto, count = tf.data.AUTOTUNE, len(work.x)
    x, y = tf.constant(work.x), tf.constant(work.y)
    rows = (
        tf.data.Dataset.from_tensor_slices((x, y))
        .shuffle(count)
        .batch(work.size, num_parallel_calls=auto)
        .prefetch(auto)
    )
    numbers = (
        tf.data.Dataset.range(count)
        .shuffle(count)
        .batch(work.size)
        .map(lambda i: (tf.gather(x, i), tf.gather(y, i)), num_parallel_calls=auto)
        .prefetch(auto)
    )
    return [Contender("tf.data, per row", _again(rows)), Contender("tf.data, row numbers, gather", _again(numbers))]


def grain_peers(work: Workload) -> list[Contender]:
    """Return Grain's DataLoader, its MapDataset over rows, and over row numbers with a gather of whole batches."""
    if not find_spec("grain"):
        return []
    import grain

    x, y, size, count = work.x, work.y, work.size, len(work.x)

    class Rows:
        """A random access source of rows."""

        def __len__(self) -> int:
            return count

        def __getitem__(self, row: Any) -> Any:
            return x[row], y[row]

    # In memory, reading ahead costs more than it hides: no threads was the best of 0, 1, 2 and 16.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    seeds = iter(range(1 << 30))

    def per_row() -> Iterable[Any]:
        return grain.MapDataset.source(Rows()).seed(next(seeds)).shuffle().batch(size).to_iter_dataset(options)

    def numbers() -> Iterable[Any]:
        numbered = grain.MapDataset.range(count).seed(next(seeds)).shuffle().batch(size)
        return numbered.map(lambda rows: (x[rows], y[rows])).to_iter_dataset(options)

    def loader() -> Iterable[Any]:
        sampler = grain.samplers.IndexSampler(count, shuffle=True, seed=next(seeds), num_epochs=1)
        batch = grain.transforms.Batch(size)
        return grain.DataLoader(data_source=Rows(), sampler=sampler, operations=[batch], read_options=options)

    return [
        Contender("Grain DataLoader", loader),
        Contender("Grain, per row", per_row),
        Contender("Grain, row numbers, gather", numbers),
    ]
