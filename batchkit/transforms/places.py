"""Transforms of where a pixel is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, PipelineTypeError, SchemaError
from batchkit.transforms.leaves import Array, Leaf, check_rng, choice, fitting, number, pair, probability
from batchkit.transforms.pictures import Pictures

if TYPE_CHECKING:
    from batchkit.random import RowRandom

__all__ = ["pad_to", "random_crop", "random_erasing", "random_flip"]

_CHUNK = 1 << 20
"""Bytes that are padded or mirrored at a time: they stay in the cache, however large the batch is."""


def random_crop(
    batch: Any,
    rng: RowRandom,
    *,
    leaf: str | None = None,
    size: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    fill: float = 0,
    data_format: str = "channels_last",
) -> Any:
    """Return the batch with a window of each picture, all places being equally likely.

    ``size`` is the window's (height, width), the picture's own where it is None; ``padding``
    (vertical, horizontal) pixels of ``fill`` are put around the picture before. Both may be one
    integer. The leaf keeps its dtype. Two draws.

    Raises :class:`SchemaError` for a window larger than the padded picture.

    >>> import numpy as np
    >>> from batchkit.random import RowRandom
    >>> rng = RowRandom((0,), epochs=0, rows=np.arange(2))
    >>> random_crop({"image": np.ones((2, 8, 8, 3), np.uint8)}, rng, leaf="image", size=6)["image"].shape
    (2, 6, 6, 3)
    """
    found = Leaf.of(batch, leaf, "random_crop")
    check_rng(rng, found, "random_crop")
    pictures = Pictures.of(found, data_format, "random_crop")
    vertical, horizontal = pair(padding, "random_crop(padding)", least=0)
    height, width = (pictures.height, pictures.width) if size is None else pair(size, "random_crop(size)", least=1)
    down = pictures.height + 2 * vertical - height
    across = pictures.width + 2 * horizontal - width
    if down < 0 or across < 0:
        raise SchemaError(
            f"{found.where}: a window of {height} x {width} (height x width) is larger than the picture, which is "
            f"{height + down} x {width + across} with its padding. Give a smaller size, or more padding"
        )
    value = fitting(fill, pictures.array.dtype, "random_crop(fill)")
    places = np.stack([rng.integers(down + 1), rng.integers(across + 1)])
    shape, dtype = pictures.shape(len(pictures), height, width), pictures.array.dtype
    if not len(pictures):
        return found.replaced(batch, np.empty(shape, dtype))
    step = _step(pictures, down + height, across + width)
    padded = pictures.frame(vertical, horizontal, value, rows=step)
    whole = padded.windows(pictures.height, pictures.width)[:, vertical, horizontal]
    lines, windows = pictures.lines(), padded.windows(height, width)
    if step == len(pictures):
        whole[...] = lines
        out = windows[(np.arange(step), *places)].reshape(-1).view(dtype).reshape(shape)
        return found.replaced(batch, out)
    out = np.empty(shape, dtype)
    into = pictures.like(out).lines()
    for begin in range(0, len(pictures), step):
        # The frame is filled anew each time, its border stays.
        rows = slice(begin, begin + step)
        count = len(lines[rows])
        whole[:count] = lines[rows]
        into[rows] = windows[(np.arange(count), *places[:, rows])]
    return found.replaced(batch, out)


def _step(pictures: Pictures, height: int, width: int) -> int:
    """Return how many pictures of that size are worked on at a time."""
    row = pictures.planes * pictures.depth * pictures.array.itemsize * height * width
    return min(len(pictures), max(1, _CHUNK // row))


def random_flip(
    batch: Any,
    rng: RowRandom,
    *,
    leaf: str | None = None,
    p: float = 0.5,
    direction: str = "horizontal",
    data_format: str = "channels_last",
) -> Any:
    """Return the batch with each picture mirrored with probability ``p``.

    ``direction="horizontal"`` swaps left and right, ``"vertical"`` top and bottom. The leaf keeps
    its dtype and shape. One draw.

    Raises :class:`PipelineError` for a ``p`` outside of 0..1.
    """
    found = Leaf.of(batch, leaf, "random_flip")
    check_rng(rng, found, "random_flip")
    chance = probability(p, "random_flip(p)")
    way = choice(direction, "random_flip(direction)", ("horizontal", "vertical"))
    pictures = Pictures.of(found, data_format, "random_flip")
    turned = np.flatnonzero(rng.bernoulli(chance))
    out = pictures.array.copy()
    if way == "vertical":
        into, cells = pictures.like(out).cells(), pictures.cells()
        for row in turned.tolist():
            into[row] = cells[row, :, ::-1]
    else:
        word, words = _words(pictures)
        for rows in _chunks(turned, pictures):
            picked = pictures.array[rows]
            pixels = picked.reshape(-1).view(word).reshape(-1, pictures.width, words)
            mirrored = np.empty_like(pixels)
            if words > 4:
                mirrored[...] = pixels[:, ::-1]
            else:  # a strided copy each: a third faster than a take() by the pixels' order
                for place in range(words):
                    mirrored[:, :, place] = pixels[:, ::-1, place]
            out[rows] = mirrored.reshape(-1).view(picked.dtype).reshape(picked.shape)
    return found.replaced(batch, out)


def _words(pictures: Pictures) -> tuple[np.dtype[Any], int]:
    """Return the widest word that a pixel is made of, and how many of them."""
    pixel = pictures.depth * pictures.array.itemsize
    size = next(size for size in (8, 4, 2, 1) if pixel % size == 0)
    return np.dtype(f"u{size}"), pixel // size


def _chunks(rows: npt.NDArray[np.int64], pictures: Pictures) -> Iterator[npt.NDArray[np.int64]]:
    step = _step(pictures, pictures.height, pictures.width) or 1
    for begin in range(0, len(rows), step):
        yield rows[begin : begin + step]


def random_erasing(
    batch: Any,
    rng: RowRandom,
    *,
    leaf: str | None = None,
    p: float = 0.5,
    area: Sequence[float] = (0.02, 0.33),
    ratio: Sequence[float] = (0.3, 3.3),
    fill: float = 0,
    data_format: str = "channels_last",
) -> Any:
    """Return the batch with a rectangle of each picture filled with ``fill``, with probability ``p``.

    The rectangle's share of the picture is uniform in ``area``, its height to width lies in
    ``ratio`` (as often above as below the geometric mean of its ends), and its place is uniform. A side that
    would be longer than the picture's is cut to that. The leaf keeps its dtype. Five draws.

    Raises :class:`PipelineError` for a ``p`` or an area outside of 0..1, and for a ratio that is not above 0.

    Method: Z. Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.
    """
    found = Leaf.of(batch, leaf, "random_erasing")
    check_rng(rng, found, "random_erasing")
    chance = probability(p, "random_erasing(p)")
    least, most = _range(area, "random_erasing(area)")
    probability(least, "random_erasing(area)"), probability(most, "random_erasing(area)")
    flat, tall = _range(ratio, "random_erasing(ratio)")
    number(flat, "random_erasing(ratio)", above=0.0)
    pictures = Pictures.of(found, data_format, "random_erasing")
    value = fitting(fill, pictures.array.dtype, "random_erasing(fill)")
    height, width = pictures.height, pictures.width
    hit = rng.bernoulli(chance)
    pixels = rng.uniform(least, most) * (height * width)
    shape = _ratios(rng.random(), flat, tall)
    heights = np.clip(np.rint(np.sqrt(pixels * shape)), 1, height)
    widths = np.clip(np.rint(np.sqrt(pixels / shape)), 1, width)
    tops = np.floor(rng.random() * (height - heights + 1))
    lefts = np.floor(rng.random() * (width - widths + 1))
    boxes = np.stack([tops, tops + heights, lefts, lefts + widths], axis=1).astype(np.int64)
    out = pictures.array.copy()
    cells = pictures.like(out).cells()
    rows = np.flatnonzero(hit)
    for row, (top, bottom, left, right) in zip(rows.tolist(), boxes[rows].tolist(), strict=True):
        cells[row, :, top:bottom, left:right] = value
    return found.replaced(batch, out)


def _range(value: Any, name: str) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise PipelineTypeError(f"{name} must be a pair of numbers, not {value!r}")
    low, high = number(value[0], name), number(value[1], name)
    if low > high:
        raise PipelineError(f"{name}={value!r}: the first must be the lower")
    return low, high


def _ratios(unit: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Return ratios in low..high, r as likely as low * high / r; IEEE arithmetic alone, so the same everywhere."""
    middle = np.sqrt(low * high)
    above = middle + np.abs(2.0 * unit - 1.0) * (high - middle)
    ratios: npt.NDArray[np.float64] = np.where(unit < 0.5, low * high / above, above)
    return ratios


def pad_to(
    batch: Any, *, leaf: str | None = None, shape: int | Sequence[int | None], fill: float = 0, align: str = "start"
) -> Any:
    """Return the batch with every row of the leaf padded with ``fill`` to ``shape``.

    ``shape`` is the shape of a row, such as ``[40, 40, None]``: None leaves an axis as it is, and
    one integer stands for a row of one axis. ``align="start"`` puts the padding behind the values,
    ``"centre"`` around them, the odd one behind. The leaf keeps its dtype.

    Raises :class:`SchemaError` where a row has another number of axes, or is larger.

    >>> import numpy as np
    >>> pad_to(np.array([[1, 2], [3, 4]]), shape=4)
    array([[1, 2, 0, 0],
           [3, 4, 0, 0]])
    """
    found = Leaf.of(batch, leaf, "pad_to")
    place = choice(align, "pad_to(align)", ("start", "centre"))
    sides = tuple(shape) if isinstance(shape, (list, tuple)) else (shape,)
    if not all(
        side is None or (isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side >= 0)
        for side in sides
    ):
        raise PipelineTypeError(f"pad_to(shape) must be integers >= 0, or None for an axis as it is, not {shape!r}")
    has = found.array.shape[1:]
    if len(sides) != len(has):
        raise SchemaError(
            f"{found.where} has rows of shape {has}, {len(has)} axes, but shape={shape!r} has {len(sides)}: "
            "give a number, or None, for every axis of a row"
        )
    wanted = tuple(own if side is None else int(side) for own, side in zip(has, sides, strict=True))
    if any(own > side for own, side in zip(has, wanted, strict=True)):
        raise SchemaError(
            f"{found.where} has rows of shape {has}, larger than {wanted}: crop them before, or pad to more"
        )
    out: Array = np.full(
        (len(found.array), *wanted), fitting(fill, found.array.dtype, "pad_to(fill)"), found.array.dtype
    )
    begins = [(side - own) // 2 if place == "centre" else 0 for own, side in zip(has, wanted, strict=True)]
    out[(slice(None), *(slice(at, at + own) for at, own in zip(begins, has, strict=True)))] = found.array
    return found.replaced(batch, out)
