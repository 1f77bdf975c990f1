"""The CIFAR-like epoch by torch's DataLoader, in torch's own operations and layout (channels first)."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from cifar.workload import PADDING, PLACES, SIDE, SIZE, Peer, Pictures, affine, again

__all__ = ["torch_peers"]

WIDE = SIDE + 2 * PADDING
FRAME = (PADDING,) * 4

Batch = tuple[Tensor, Tensor]


def normalised(images: Tensor) -> Tensor:
    """Normalise bytes; of a picture or of a batch."""
    a, b = (torch.from_numpy(constant).view(3, 1, 1) for constant in affine())
    return images.float().mul_(a).sub_(b)


class Rows(Dataset[Any]):
    """A picture at a time: ``F.pad``, a slice, and a flip for every second one."""

    def __init__(self, work: Pictures) -> None:
        self.images = torch.from_numpy(work.images).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.from_numpy(work.labels)

    def __len__(self) -> int:
        return len(self.images)

    def cropped(self, row: int) -> Tensor:
        """Return a picture, cropped and flipped."""
        top, left = random.randrange(PLACES), random.randrange(PLACES)
        image = F.pad(self.images[row], FRAME)[:, top : top + SIDE, left : left + SIDE]
        return image.flip(-1) if random.random() < 0.5 else image

    def __getitem__(self, row: int) -> Any:
        return normalised(self.cropped(row)), self.labels[row]


class BytesOfRows(Rows):
    """The same, to be normalised when there is a batch."""

    def __getitem__(self, row: int) -> Any:
        return self.cropped(row), self.labels[row]


def normalised_batch(rows: Sequence[Batch]) -> Batch:
    """Collate, then normalise."""
    return normalised(torch.stack([image for image, _ in rows])), torch.stack([label for _, label in rows])


class BytesOfBatches(Rows):
    """Whole batches: one ``gather`` crops and flips all pictures."""

    def __getitem__(self, rows: Any) -> Any:
        images = F.pad(self.images[rows], FRAME)
        count, side = len(images), torch.arange(SIDE)
        down = torch.randint(PLACES, (count, 1)) + side
        across = torch.where(torch.rand(count, 1) < 0.5, side.flip(0), side) + torch.randint(PLACES, (count, 1))
        pixels = (down[:, :, None] * WIDE + across[:, None, :]).view(count, 1, SIDE * SIDE).expand(-1, 3, -1)
        cropped = images.view(count, 3, WIDE * WIDE).gather(2, pixels).view(count, 3, SIDE, SIDE)
        return cropped, self.labels[rows]

    def __getitems__(self, rows: list[int]) -> Any:
        return self[rows]


class Batches(BytesOfBatches):
    """The same, normalised."""

    def __getitem__(self, rows: Any) -> Any:
        images, labels = super().__getitem__(rows)
        return normalised(images), labels


def as_it_is(batch: Any) -> Any:
    """Collate nothing: it is a batch already."""
    return batch


def torch_peers(work: Pictures) -> list[Peer]:
    """Return DataLoader per row and over whole batches, with two workers that stay, and without.

    Workers have one thread each, as is torch's default; without workers torch has one a core.
    """
    rows, some_bytes, batches, batch_bytes = Rows(work), BytesOfRows(work), Batches(work), BytesOfBatches(work)
    two = functools.partial(DataLoader, num_workers=2, persistent_workers=True)
    many = functools.partial(two, batch_size=SIZE, shuffle=True)
    sampler = BatchSampler(RandomSampler(batches), SIZE, drop_last=False)
    late = many(batch_bytes, collate_fn=as_it_is)

    def in_caller() -> Iterator[Batch]:
        for images, labels in late:
            yield normalised(images), labels

    per_row, whole = "DataLoader, 2 workers, per row", "DataLoader, 2 workers, whole batches"
    return [
        Peer(per_row, again(many(rows)), per_row),
        Peer(f"{per_row}, normalised in collate_fn", again(many(some_bytes, collate_fn=normalised_batch)), per_row),
        Peer(f"{whole}, BatchSampler", again(two(batches, batch_size=None, sampler=sampler)), whole),
        Peer(f"{whole}, __getitems__", again(many(batches, collate_fn=as_it_is)), whole),
        Peer(f"{whole}, normalised by the caller", in_caller, whole),
        Peer("DataLoader, no workers, whole batches", again(DataLoader(batches, batch_size=None, sampler=sampler)), ""),
    ]
