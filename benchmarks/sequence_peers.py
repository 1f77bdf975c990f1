"""The workload of the sequences, and how each peer does it in its best idiomatic setting.

20,000 sequences of 1 to 1,024 int32 tokens, their lengths log-normal with a mean of about 250, in memory; the
values of all of them lie end to end, as a tokenised corpus has them. No token is 0, which is what padding is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.bench import Contender

__all__ = [
    *("BINS", "BOUNDARIES", "LONGEST", "PACKED", "SHORTEST", "SIZE"),
    *("Sequences", "bucketing", "filtering", "packing", "padding"),
]

LONGEST, SIZE, BINS, PACKED = 1024, 32, 64, 8
BOUNDARIES = (64, 128, 192, 256, 384, 512, 768, LONGEST)
SHORTEST = 100
"""Sequences that have less are filtered out."""
WIDTH = 16
"""How many features a sequence has besides, where it is filtered and batched as it is."""


@dataclass(frozen=True)
class Sequences:
    """The tokens of all sequences, and where each begins; features of each besides."""

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]

    @staticmethod
    def of(count: int) -> Sequences:
        """Make that many."""
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(5.2, 0.8, count), 1, LONGEST).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = rng.integers(1, 32_000, offsets[-1], dtype=np.int32)
        return Sequences(tokens, offsets, rng.standard_normal((count, WIDTH), dtype=np.float32))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """How long each is."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> npt.NDArray[np.int32]:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]


def _again(iterable: Iterable[Any]) -> Callable[[], Iterable[Any]]:
    return lambda: iterable


class _Rows:
    """A random access source for Grain."""

    def __init__(self, length: int, read: Callable[[int], Any]) -> None:
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: Any) -> Any:
        return self._read(int(row))


def _shuffled(rows: _Rows, seeds: Iterator[int]) -> Any:
    """Return Grain's rows in a new order. In memory, reading ahead costs more than it hides: no threads."""
    import grain

    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return grain.MapDataset.source(rows).seed(next(seeds)).shuffle().to_iter_dataset(options)


def packing(data: Sequences) -> list[Contender]:
    """Return Grain's first-fit and best-fit packing: 64 bins, in batches of 8 packed rows."""
    if not find_spec("grain"):
        return []
    import grain.experimental

    rows, seeds = _Rows(len(data), lambda row: {"tokens": data[row]}), iter(range(1 << 30))

    def packed(kind: Any) -> Callable[[], Iterable[Any]]:
        def epoch() -> Iterable[Any]:
            made: Iterable[Any] = kind(
                _shuffled(rows, seeds), length_struct={"tokens": LONGEST}, num_packing_bins=BINS, shuffle_bins=False
            ).batch(PACKED)
            return made

        return epoch

    return [
        Contender("Grain, first fit", packed(grain.experimental.FirstFitPackIterDataset)),
        Contender("Grain, best fit", packed(grain.experimental.BestFitPackIterDataset)),
    ]


def bucketing(data: Sequences, shuffled: bool = True) -> list[Contender]:
    """Return tf.data's bucket_by_sequence_length over slices of one tensor."""
    if not find_spec("tensorflow"):
        return []
    import tensorflow as tf

    tokens = tf.constant(data.tokens)
    places = tf.data.Dataset.from_tensor_slices((data.offsets[:-1], data.offsets[1:]))
    places = places.shuffle(len(data)) if shuffled else places
    rows = places.map(lambda begin, end: tokens[begin:end], num_parallel_calls=tf.data.AUTOTUNE)
    # Its upper bounds are exclusive.
    bounds = [bound + 1 for bound in BOUNDARIES]
    buckets = rows.bucket_by_sequence_length(lambda row: tf.shape(row)[0], bounds, [SIZE] * (len(bounds) + 1))
    return [Contender("tf.data, bucket_by_sequence_length", _again(buckets.prefetch(tf.data.AUTOTUNE)))]


def padding(data: Sequences) -> list[Contender]:
    """Return torch's DataLoader with ``pad_sequence``, without and with two workers."""
    if not find_spec("torch"):
        return []
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from torch.utils.data import DataLoader

    # Views of one tensor, cut once: workers inherit them.
    rows: Any = list(torch.from_numpy(data.tokens).split(data.lengths.tolist()))

    def padded(batch: list[Any]) -> Any:
        return pad_sequence(batch, batch_first=True)

    alone = DataLoader(rows, batch_size=SIZE, shuffle=True, collate_fn=padded)
    workers = DataLoader(rows, batch_size=SIZE, shuffle=True, collate_fn=padded, num_workers=2, persistent_workers=True)
    return [
        Contender("DataLoader, pad_sequence", _again(alone)),
        Contender("DataLoader, pad_sequence, 2 workers", _again(workers)),
    ]


def filtering(data: Sequences) -> list[Contender]:
    """Return Grain's filter and batch over rows of features."""
    if not find_spec("grain"):
        return []
    lengths = data.lengths
    rows = _Rows(len(data), lambda row: {"features": data.features[row], "length": lengths[row]})
    seeds = iter(range(1 << 30))

    def epoch() -> Iterable[Any]:
        made: Iterable[Any] = _shuffled(rows, seeds).filter(lambda row: row["length"] >= SHORTEST).batch(256)
        return made

    return [Contender("Grain, filter and batch", epoch)]
