"""The CIFAR-like epoch by Grain, in NumPy operations as its transformations are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from cifar.numpy_loops import augmented_with_care
from cifar.workload import PADDING, PLACES, SIDE, SIZE, Peer, Pictures, affine

__all__ = ["grain_peers"]

WIDE = SIDE + 2 * PADDING
INSIDE = slice(PADDING, PADDING + SIDE)
# In memory, as its documentation says, reading ahead costs more than it hides.
IN_MEMORY = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
TWO = grain.MultiprocessingOptions(num_workers=2)  # larger buffers were not quicker


class Source:
    """The rows, one by one."""

    def __init__(self, work: Pictures) -> None:
        self.work = work

    def __len__(self) -> int:
        return len(self.work)

    def __getitem__(self, row: Any) -> Any:
        return self.work.images[row], self.work.labels[row]


class Cropped(grain.transforms.RandomMap):  # type: ignore[misc]
    """Crops and flips a picture."""

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        image, label = element
        frame = np.zeros((WIDE, WIDE, 3), np.uint8)  # a fifth of what np.pad takes
        frame[INSIDE, INSIDE] = image
        top, left, flipped = rng.integers((PLACES, PLACES, 2)).tolist()
        image = frame[top : top + SIDE, left : left + SIDE]
        return (image[:, ::-1] if flipped else image), label


class Normalised(grain.transforms.Map):  # type: ignore[misc]
    """Normalises a whole batch."""

    def map(self, element: Any) -> Any:
        images, labels = element
        a, b = affine()
        y = images.astype(np.float32)
        y *= a
        y -= b
        return y, labels


class Taken(grain.transforms.RandomMap):  # type: ignore[misc]
    """Makes a batch of row numbers: the NumPy that is quickest when written by hand."""

    def __init__(self, work: Pictures) -> None:
        self.work = work

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        return augmented_with_care(self.work.images[element], rng), self.work.labels[element]


def grain_peers(work: Pictures) -> list[Peer]:
    """Return Grain's MapDataset and DataLoader per row, and MapDataset over whole batches of row numbers.

    With workers there is one iterator for all epochs: new ones would be started with a new iterator.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read them
    source, seeds = Source(work), itertools.count()

    def rows() -> Any:
        dataset = grain.MapDataset.source(source).seed(next(seeds)).shuffle()
        return dataset.random_map(Cropped()).batch(SIZE).map(Normalised())

    def numbers() -> Any:
        return grain.MapDataset.range(len(work)).seed(next(seeds)).shuffle().batch(SIZE).random_map(Taken(work))

    def loader(workers: int, epochs: int | None) -> Any:
        return grain.DataLoader(
            data_source=source,
            sampler=grain.samplers.IndexSampler(len(work), shuffle=True, seed=next(seeds), num_epochs=epochs),
            operations=[Cropped(), grain.transforms.Batch(SIZE), Normalised()],
            worker_count=workers,
            read_options=IN_MEMORY,
        )

    def in_workers(dataset: Any) -> Any:
        return dataset.repeat().to_iter_dataset(IN_MEMORY).mp_prefetch(TWO)

    def going_on(make: Callable[[], Iterable[Any]]) -> Callable[[], Iterator[Any]]:
        return _going_on(make, work.steps)

    by_row, whole = "Grain, per row", "Grain, whole batches in NumPy"
    return [
        Peer(by_row, lambda: rows().to_iter_dataset(IN_MEMORY), by_row),
        Peer(f"{by_row}, 2 workers", going_on(lambda: in_workers(rows())), by_row, endless=True),
        Peer(f"{by_row}, DataLoader", lambda: loader(0, epochs=1), by_row),
        Peer(f"{by_row}, DataLoader, 2 workers", going_on(lambda: loader(2, epochs=None)), by_row, endless=True),
        Peer(whole, lambda: numbers().to_iter_dataset(IN_MEMORY), whole),
        Peer(f"{whole}, 2 workers", going_on(lambda: in_workers(numbers())), whole, endless=True),
    ]


def _going_on(make: Callable[[], Iterable[Any]], steps: int) -> Callable[[], Iterator[Any]]:
    """Return epochs that are each the next so many batches of one iterator, which is started with the first."""
    started: list[Iterator[Any]] = []

    def epoch() -> Iterator[Any]:
        if not started:
            started.append(iter(make()))
        return itertools.islice(started[0], steps)

    return epoch
