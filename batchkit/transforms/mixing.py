"""Transforms that make one row of two.

The other row is one of the same batch. So what a row becomes depends on the batch that it is in:
it is still a pure function of the pipeline, the seed and the step, but another one at another
batch size, and under sharding (a rank mixes the rows of its own part).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, SchemaError
from batchkit.transforms.blocks import in_blocks
from batchkit.transforms.leaves import Array, Leaf, check_rng, number
from batchkit.transforms.pictures import Pictures

if TYPE_CHECKING:
    from batchkit.random import RowRandom

__all__ = ["beta_quantiles", "cutmix", "mixup"]

_GRID = 8192
_ALPHA = 1000.0


def mixup(
    batch: Any, rng: RowRandom, *, leaf: str | None = None, labels: str | None = "label", alpha: float = 0.2
) -> Any:
    """Return the batch with each row mixed with another one: ``t * row + (1 - t) * other``, labels alike.

    ``t`` is drawn from Beta(alpha, alpha) for each row, and the other row from those of the batch that are
    no padding; it may be the row itself. The leaf is any shape (rows, ...) of numbers; floats keep their
    dtype, all else becomes float32. ``labels`` names a leaf of floats, such as :func:`one_hot` makes;
    None leaves labels alone. Two draws.

    Not independent of the batch: another batch size or another shard gives other partners.

    Raises :class:`SchemaError` for labels that are no floats.

    Method: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    found = Leaf.of(batch, leaf, "mixup")
    check_rng(rng, found, "mixup")
    targets = _labels(batch, labels, found, "mixup")
    share, partners = _shares(rng, alpha, "mixup(alpha)"), _partners(rng)
    batch = found.replaced(batch, _mixed(found.array, partners, share))
    return batch if targets is None else targets.replaced(batch, _mixed(targets.array, partners, share))


def cutmix(
    batch: Any,
    rng: RowRandom,
    *,
    leaf: str | None = None,
    labels: str | None = "label",
    alpha: float = 1.0,
    data_format: str = "channels_last",
) -> Any:
    """Return the batch with a rectangle of each picture replaced by that of another one.

    With ``t`` from Beta(alpha, alpha) the rectangle's sides are sqrt(1 - t) of the picture's, around a
    uniform centre, cut off at the edges. The labels are mixed by the areas. The other row is drawn from
    those of the batch that are no padding; it may be the row itself. Pictures and labels keep their
    dtypes; ``labels`` names a leaf of floats, such as :func:`one_hot` makes; None leaves labels alone.
    Four draws.

    Not independent of the batch: another batch size or another shard gives other partners.

    Raises :class:`SchemaError` for labels that are no floats.

    Method: S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features", ICCV 2019.
    """
    found = Leaf.of(batch, leaf, "cutmix")
    check_rng(rng, found, "cutmix")
    pictures = Pictures.of(found, data_format, "cutmix")
    targets = _labels(batch, labels, found, "cutmix")
    share, partners = _shares(rng, alpha, "cutmix(alpha)"), _partners(rng)
    side = np.sqrt(1.0 - share)
    top, bottom = _cut(rng.random(), side, pictures.height)
    left, right = _cut(rng.random(), side, pictures.width)
    out = pictures.array.copy()
    into, cells = pictures.like(out).cells(), pictures.cells()
    boxes = np.stack([partners, top, bottom, left, right], axis=1)
    for row, (other, y0, y1, x0, x1) in enumerate(boxes.tolist()):
        into[row, :, y0:y1, x0:x1] = cells[other, :, y0:y1, x0:x1]
    batch = found.replaced(batch, out)
    if targets is None:
        return batch
    kept = 1.0 - (bottom - top) * (right - left) / (pictures.height * pictures.width)
    return targets.replaced(batch, _mixed(targets.array, partners, kept))


def _labels(batch: Any, labels: str | None, images: Leaf, who: str) -> Leaf | None:
    if labels is None:
        return None
    found = Leaf.of(batch, labels, who)
    if found.way == images.way:
        raise PipelineError(f"{who}: leaf and labels are both {labels!r}: name two leaves, or labels=None")
    if found.array.dtype.kind != "f":
        raise SchemaError(
            f"{found.where} is {found.array.dtype}, but mixed labels are between two classes: "
            "make them floats before, with map(one_hot)"
        )
    if len(found.array) != len(images.array):
        raise SchemaError(f"{found.where} has {len(found.array)} rows, but {images.where} has {len(images.array)}")
    return found


def _partners(rng: RowRandom) -> npt.NDArray[np.int64]:
    """Return the other row for each row of the batch; padding rows, which have negative numbers, are not drawn."""
    real = np.flatnonzero(rng.rows >= 0)
    partners: npt.NDArray[np.int64] = rng.integers(len(real) or 1)
    return real[partners] if len(real) else np.arange(len(rng))


def _shares(rng: RowRandom, alpha: float, name: str) -> npt.NDArray[np.float64]:
    """Draw from Beta(alpha, alpha) in multiples of 2**-16, so that no machine's last bit of a power shows."""
    shape = number(alpha, name, above=0.0)
    if shape > _ALPHA:
        raise PipelineError(f"{name} must be at most {_ALPHA:g}, not {alpha!r}")
    steps, values = beta_quantiles(shape)
    unit = rng.random()
    lower = np.interp(np.minimum(unit, 1.0 - unit), steps, values) ** (1.0 / min(shape, 1.0)) / 2.0
    shares: npt.NDArray[np.float64] = np.rint(np.where(unit < 0.5, lower, 1.0 - lower) * 65536.0) / 65536.0
    return shares


@functools.lru_cache(maxsize=16)
def beta_quantiles(alpha: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the lower half of the quantiles of Beta(alpha, alpha): probabilities, and v with x = v**(1/b) / 2.

    b is min(alpha, 1). In v the density has no pole at 0, so the trapezoids are accurate for every alpha.
    """
    v = np.linspace(0.0, 1.0, _GRID + 1)
    power = min(alpha, 1.0)
    x = v ** (1.0 / power) / 2.0
    # Scaled so that it is 1 in the middle: nothing underflows for a large alpha.
    density = v ** (max(alpha, 1.0) - 1.0) * (2.0 * (1.0 - x)) ** (alpha - 1.0)
    area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    steps = area / area[-1] / 2.0
    steps.flags.writeable = v.flags.writeable = False
    return steps, v


def _cut(centre: npt.NDArray[np.float64], side: npt.NDArray[np.float64], length: int) -> tuple[Array, Array]:
    """Return where the rectangles begin and end along an axis."""
    extent = np.floor(side * length)
    begin = np.floor(centre * length) - np.floor(extent / 2.0)
    return np.clip(begin, 0, length).astype(np.int64), np.clip(begin + extent, 0, length).astype(np.int64)


def _mixed(array: Array, partners: npt.NDArray[np.int64], share: npt.NDArray[np.float64]) -> Array:
    dtype = array.dtype if array.dtype.kind == "f" else np.dtype(np.float32)
    out = np.empty(array.shape, dtype)
    flat = (len(array), math.prod(array.shape[1:]))
    source = np.ascontiguousarray(array).reshape(flat)
    work = np.float64 if dtype == np.float64 else np.float32
    weight: Array = (1.0 - share).astype(work)[:, None]

    def change(piece: Array, lines: slice) -> None:
        # The partner is added as a difference: a row that is mixed with its like stays as it is.
        other = source[partners[lines]].astype(work)
        np.subtract(other, piece, out=other)
        np.multiply(other, weight[lines], out=other)
        np.add(piece, other, out=piece)

    in_blocks(source, out.reshape(flat), change)
    return out
