"""Proof that a contender does the whole work: every row once, each cropped, flipped and normalised at random."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from cifar.workload import MEAN, PADDING, PLACES, SIDE, SIZE, STD, Peer, Pictures

__all__ = ["prove"]

LOOKED_AT = 4  # batches of which every picture is compared with its row of the data
ROUNDING = 0.01  # of a byte: what float32 may lose

Origins = npt.NDArray[np.int64]
"""For each row of a batch: from the top, from the left, and 1 if it is flipped."""


def prove(peer: Peer, work: Pictures) -> None:
    """Run an epoch and the first batch of the next one.

    Raises:
        SystemExit: a batch is not what was asked for; says of whom, and what is wrong.
    """
    labels: list[npt.NDArray[np.int64]] = []
    origins: list[Origins] = []
    for number, batch in enumerate(peer.epoch()):
        images, rows = _arrays(peer, batch)
        labels.append(rows)
        if number < LOOKED_AT:
            origins.append(_origins(peer, images, rows, work))
            if len(rows) == SIZE:
                _varied(peer, origins[-1])
    _complete(peer, np.concatenate(labels), work)
    for images, rows in (_arrays(peer, batch) for batch in peer.epoch()):
        if np.array_equal(rows, labels[0]):
            _wrong(peer, "has the rows of the second epoch in the order of the first")
        if np.array_equal(_origins(peer, images, rows, work), origins[0]):
            _wrong(peer, "crops the pictures of the second epoch as those of the first")
        break


def _wrong(peer: Peer, what: str) -> NoReturn:
    raise SystemExit(f"{peer.name} {what}: it does not do the work that is measured")


def _arrays(peer: Peer, batch: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the pictures, channels last, and the labels."""
    images, labels = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
    images, labels = np.asarray(images), np.asarray(labels)
    if images.shape[1:] == (3, SIDE, SIDE):
        images = images.transpose(0, 2, 3, 1)
    if images.shape != (len(labels), SIDE, SIDE, 3) or images.dtype != np.float32 or labels.dtype != np.int64:
        _wrong(peer, f"has pictures {images.dtype}{images.shape} and labels {labels.dtype}{labels.shape}")
    return images, labels


def _origins(peer: Peer, images: npt.NDArray[Any], rows: npt.NDArray[np.int64], work: Pictures) -> Origins:
    """Undo the normalising, and find each picture in its row of the data."""
    given = (images * np.array(STD, np.float32) + np.array(MEAN, np.float32)) * 255
    bytes_ = np.rint(given)
    if np.abs(given - bytes_).max() > ROUNDING or bytes_.min() < 0 or bytes_.max() > 255:
        _wrong(peer, "has pictures that are not normalised by the mean and the deviation of their channels")
    frame = ((PADDING, PADDING), (PADDING, PADDING), (0, 0))
    found = np.empty((len(rows), 3), np.int64)
    for number, (image, row) in enumerate(zip(bytes_.astype(np.uint8), rows, strict=True)):
        windows = sliding_window_view(np.pad(work.images[row], frame), (SIDE, SIDE), axis=(0, 1))
        both = np.stack([image, image[:, ::-1]]).transpose(0, 3, 1, 2)
        places = np.argwhere((windows[None] == both[:, None, None]).all(axis=(3, 4, 5)))
        if len(places) != 1:
            _wrong(peer, f"has a picture that is no crop of row {row}")
        found[number] = np.roll(places[0], -1)
    return found


def _varied(peer: Peer, origins: Origins) -> None:
    """See that a full batch has all places and both directions, drawn for each row and direction by itself."""
    tops, lefts, flipped = origins.T
    places = min(len(set(tops.tolist())), len(set(lefts.tolist())))
    if places < PLACES - 1 or (tops == lefts).mean() > 0.5:  # one place may be missing by chance
        _wrong(peer, f"does not crop at {PLACES} x {PLACES} places")
    if not 0.25 < flipped.mean() < 0.75:
        _wrong(peer, f"flips {flipped.mean():.0%} of a batch")


def _complete(peer: Peer, labels: npt.NDArray[np.int64], work: Pictures) -> None:
    """See that every row came once. An epoch of an endless one may be off by a batch of each of its two workers."""
    times = np.bincount(labels, minlength=len(work))
    once = int((times == 1).sum())
    slack = 2 * SIZE if peer.endless else 0
    if once < len(work) - slack or times.max() > 2 or not (slack or len(labels) == len(work)):
        _wrong(peer, f"has {once:,} of {len(work):,} rows once in an epoch")
    if (np.diff(labels[: 4 * SIZE]) > 0).mean() > 0.7:
        _wrong(peer, "does not shuffle")
