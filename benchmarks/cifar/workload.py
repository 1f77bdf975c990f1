"""The data of the CIFAR-like epoch, and batchkit's pipeline for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import batchkit as bk
from batchkit import transforms
from batchkit.bench import Contender

__all__ = ["MEAN", "PADDING", "PLACES", "SIDE", "SIZE", "STD", "Peer", "Pictures", "affine", "again", "pipeline"]

SIZE, SIDE, PADDING = 128, 32, 4
PLACES = 2 * PADDING + 1  # where a crop may begin, in each direction
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


@dataclass(frozen=True)
class Pictures:
    """Pictures of noise. The label of a picture is its row number, so that a batch shows where it comes from."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    @staticmethod
    def of(rows: int) -> Pictures:
        """Make that many rows."""
        images = np.random.default_rng(0).integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8)
        return Pictures(images, np.arange(rows))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self) // SIZE)


@dataclass(frozen=True)
class Peer(Contender):
    """A contender of the ``family`` whose best one is held against a target; ``""``: shown only.

    One that is ``endless`` goes on from epoch to epoch, as its workers cannot be kept otherwise.
    """

    family: str
    endless: bool = False


def again(batches: Iterable[Any]) -> Callable[[], Iterable[Any]]:
    """Return the epochs of what can be iterated over again."""
    return lambda: batches


def affine() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return ``a, b`` for which ``x * a - b`` normalises bytes: the division and both constants in one."""
    mean, std = np.array(MEAN), np.array(STD)
    return (1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32)


def pipeline(work: Pictures, endless: bool = False) -> Any:
    """Return the whole work as a pipeline of batchkit's own transforms."""
    pipe = bk.from_arrays({"image": work.images, "label": work.labels}).shuffle(seed=0)
    pipe = (pipe.repeat() if endless else pipe).batch(SIZE)
    pipe = pipe.random_map(transforms.random_crop, leaf="image", padding=PADDING)
    pipe = pipe.random_map(transforms.random_flip, leaf="image")
    return pipe.map(transforms.normalize, leaf="image", mean=MEAN, std=STD)
