"""Transforms of what a pixel or a label is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, PipelineTypeError, SchemaError
from batchkit.transforms.blocks import float_dtype, in_blocks
from batchkit.transforms.leaves import Array, Leaf, check_rng, choice, number
from batchkit.transforms.pictures import FORMATS

if TYPE_CHECKING:
    from batchkit.random import RowRandom

__all__ = ["clip_and_scale", "color_jitter", "normalize", "one_hot"]

_LINE = 1 << 15
"""Numbers in a line at most, where lines can be shorter: the constants of a line stay in the cache."""


def normalize(
    batch: Any,
    *,
    leaf: str | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    divisor: float | None = None,
    dtype: npt.DTypeLike = "float32",
    data_format: str = "channels_last",
) -> Any:
    """Return the batch with ``(leaf / divisor - mean) / std`` as ``dtype``, one number or one a channel.

    The leaf has any shape (rows, ...); its channels are the last axis, or the second one with
    ``data_format="channels_first"``. ``divisor=None`` is 255 for uint8 and 65535 for uint16, so that
    mean and std are those of pictures in 0..1, and 1 for every other dtype.

    It is computed as ``leaf * scale + bias`` in float32 (float64 with that dtype): the result is within
    2**-22 of the largest of ``|leaf| * scale`` and ``|bias|``.

    Raises :class:`SchemaError` where mean or std do not fit the channels, :class:`PipelineError` for a
    std or a divisor that is not above 0.

    >>> import numpy as np
    >>> grey = np.array([[0, 51, 255]], np.uint8)
    >>> normalize(grey, mean=0.5, std=0.5).round(3)
    array([[-1. , -0.6,  1. ]], dtype=float32)
    """
    found = Leaf.of(batch, leaf, "normalize", "biuf")
    source, wanted = np.ascontiguousarray(found.array), float_dtype(dtype, "normalize(dtype)")
    first = choice(data_format, "normalize(data_format)", FORMATS) == "channels_first"
    axis = 1 if first else max(1, source.ndim - 1)
    centre, spread = _constants(mean, "normalize(mean)"), _constants(std, "normalize(std)")
    if not (spread > 0).all():
        raise PipelineError(f"normalize(std) must be above 0, not {std!r}")
    if divisor is None:
        divisor = {"uint8": 255.0, "uint16": 65535.0}.get(source.dtype.name, 1.0)
    scale = 1.0 / (spread * number(divisor, "normalize(divisor)", above=0.0))
    bias = -centre / spread
    channels = source.shape[axis] if source.ndim > 1 else 1
    for name, constant in (("mean", centre), ("std", spread)):
        if constant.size not in (1, channels):
            raise SchemaError(
                f"{found.where} has shape {source.shape}, {channels} channels in axis {axis}, but {name} has "
                f"{constant.size} numbers: give one, or one a channel (data_format={data_format!r})"
            )
    out = np.empty(source.shape, wanted)
    _scaled(source, out, scale, bias, axis)
    return found.replaced(batch, out)


def _constants(value: Any, name: str) -> npt.NDArray[np.float64]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise PipelineTypeError(f"{name} must be a number or a list of numbers, not {value!r}") from None
    if array.ndim > 1 or not np.isfinite(array).all():
        raise PipelineError(f"{name} must be a finite number or a list of them, not {value!r}")
    return array.reshape(-1)


_LOOP = 8192
"""Numbers that an inner loop of NumPy should have at least: below, starting it counts."""


def _scaled(source: Array, out: Array, scale: Array, bias: Array, axis: int) -> None:
    """Fill ``out`` with source * scale + bias; the constants are one number or lie along ``axis``."""
    whole = scale.size == bias.size == 1
    by_line = not whole and axis < source.ndim - 1
    length = math.prod(source.shape[axis + 1 :]) if by_line else _line(source.shape)
    if not source.size:
        return
    count = source.size // length
    work = np.float64 if out.dtype == np.float64 else np.float32
    if not (whole or by_line):
        # Short lines are taken several at a time, so that NumPy's inner loops are long.
        together = math.gcd(count, 1 << (_LOOP // length).bit_length() >> 1) if length < _LOOP else 1
        count, length = count // together, length * together
    # One number a line, or one line of numbers.
    constants = np.empty((2, 1 if whole else count if by_line else length), work)
    for row, values in zip(constants, (scale, bias), strict=True):
        row.reshape(-1, max(scale.size, bias.size))[...] = values
    factor, offset = constants

    def change(piece: Array, lines: slice) -> None:
        np.multiply(piece, factor[lines, None] if by_line else factor, out=piece)
        np.add(piece, offset[lines, None] if by_line else offset, out=piece)

    in_blocks(source.reshape(count, length), out.reshape(count, length), change)


def _line(shape: tuple[int, ...]) -> int:
    """Return the length of lines: the last axis, with those before it for as long as it is short."""
    length = 1
    for side in reversed(shape[1:]):
        if length > 1 and length * side > _LINE:
            break
        length *= side
    return length


def clip_and_scale(
    batch: Any,
    *,
    leaf: str | None = None,
    low: float,
    high: float,
    to: Sequence[float] = (0.0, 1.0),
    dtype: npt.DTypeLike = "float32",
) -> Any:
    """Return the batch with low..high of the leaf mapped to the range ``to``; what lies outside goes to its ends.

    The leaf is any shape (rows, ...) of numbers; the result is never outside of ``to``. Computed in
    float32, or in float64 with that dtype.

    Raises :class:`PipelineError` unless low < high and to[0] < to[1].

    >>> import numpy as np
    >>> clip_and_scale(np.array([[-5, 0, 50, 200]]), low=0, high=100)
    array([[0. , 0. , 0.5, 1. ]], dtype=float32)
    """
    found = Leaf.of(batch, leaf, "clip_and_scale", "biuf")
    source, wanted = np.ascontiguousarray(found.array), float_dtype(dtype, "clip_and_scale(dtype)")
    start, stop = number(low, "clip_and_scale(low)"), number(high, "clip_and_scale(high)")
    if not isinstance(to, (list, tuple)) or len(to) != 2:
        raise PipelineTypeError(f"clip_and_scale(to) must be a pair of numbers, not {to!r}")
    least, most = number(to[0], "clip_and_scale(to)"), number(to[1], "clip_and_scale(to)")
    if not (start < stop and least < most):
        raise PipelineError(f"clip_and_scale(low={low!r}, high={high!r}, to={to!r}): the first end must be the lower")
    factor = (most - least) / (stop - start)

    def change(piece: Array, lines: slice) -> None:
        if start:
            np.subtract(piece, start, out=piece)
        np.multiply(piece, factor, out=piece)
        if least:
            np.add(piece, least, out=piece)
        np.clip(piece, least, most, out=piece)

    out = np.empty(source.shape, wanted)
    if source.size:
        in_blocks(source.reshape(-1, _line(source.shape)), out.reshape(-1, _line(source.shape)), change)
    return found.replaced(batch, out)


def one_hot(batch: Any, *, leaf: str | None = None, classes: int, dtype: npt.DTypeLike = "float32") -> Any:
    """Return the batch with integer labels (rows, ...) as (rows, ..., classes): 1 at the label, 0 elsewhere.

    ``dtype`` is any number or bool. Raises :class:`SchemaError` for a label outside of 0..classes - 1,
    and for labels that are not integers.

    >>> import numpy as np
    >>> one_hot({"label": np.array([2, 0])}, leaf="label", classes=3)["label"]
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    found = Leaf.of(batch, leaf, "one_hot", "iu")
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1:
        raise PipelineError(f"one_hot(classes) must be an integer >= 1, not {classes!r}")
    wanted = np.dtype(dtype)
    if wanted.kind not in "biuf":
        raise PipelineError(f"one_hot(dtype) must be a number or bool, not {dtype!r}")
    labels = found.array
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        place = np.unravel_index(int(outside.argmax()), labels.shape)
        raise SchemaError(
            f"{found.where} is {labels[place]} in row {place[0]} of the batch, but classes={classes} are "
            f"0..{classes - 1}: give more classes, or change the label in a map()"
        )
    out = np.zeros((labels.size, classes), wanted)
    out[np.arange(labels.size), labels.reshape(-1)] = 1
    return found.replaced(batch, out.reshape(*labels.shape, classes))


def color_jitter(
    batch: Any,
    rng: RowRandom,
    *,
    leaf: str | None = None,
    brightness: float = 0.0,
    contrast: float = 0.0,
    bounds: Sequence[float] | None = None,
) -> Any:
    """Return the batch with the brightness and the contrast of each row changed at random.

    A row x becomes ``(x - m) * b * c + m * b`` with m the mean of all its numbers, ``b`` uniform in
    1 - brightness..1 + brightness (never below 0) and ``c`` likewise of contrast. The leaf is any shape
    (rows, ...) of uint8, uint16 or floats and keeps its dtype: integers are rounded, and clipped to
    what they hold; floats are clipped to ``bounds``, if they are given. Two draws.

    Raises :class:`PipelineError` for a negative brightness or contrast, :class:`SchemaError` for
    another dtype.
    """
    found = Leaf.of(batch, leaf, "color_jitter", "iuf")
    check_rng(rng, found, "color_jitter")
    source = np.ascontiguousarray(found.array)
    if source.dtype.kind != "f" and source.dtype not in (np.uint8, np.uint16):
        raise SchemaError(f"{found.where} is {source.dtype}: use uint8, uint16 or floats, for instance behind a cast()")
    limits = _bounds(bounds, source.dtype)
    light = _factors(rng, brightness, "color_jitter(brightness)")
    gain = light * _factors(rng, contrast, "color_jitter(contrast)")
    work = np.float64 if source.dtype == np.float64 else np.float32
    factor: Array = gain.astype(work)[:, None]
    rest: Array = (light - gain).astype(work)[:, None]
    size = math.prod(source.shape[1:])

    def change(piece: Array, lines: slice) -> None:
        if contrast:
            # One row after the other, in float32 or wider: no row's mean depends on the others.
            mean = np.add.reduce(piece, axis=1, keepdims=True) / work(max(1, size))
            np.multiply(piece, factor[lines], out=piece)
            np.add(piece, mean * rest[lines], out=piece)
        else:
            np.multiply(piece, factor[lines], out=piece)
        if source.dtype.kind != "f":
            np.rint(piece, out=piece)
        if limits:
            np.clip(piece, limits[0], limits[1], out=piece)

    out = np.empty(source.shape, source.dtype)
    in_blocks(source.reshape(len(source), size), out.reshape(len(source), size), change)
    return found.replaced(batch, out)


def _factors(rng: RowRandom, strength: float, name: str) -> npt.NDArray[np.float64]:
    reach = number(strength, name, least=0.0)
    factors: npt.NDArray[np.float64] = rng.uniform(max(0.0, 1.0 - reach), 1.0 + reach)
    return factors


def _bounds(bounds: Sequence[float] | None, dtype: np.dtype[Any]) -> tuple[float, float] | None:
    if bounds is None:
        return None if dtype.kind == "f" else (0.0, float(np.iinfo(dtype).max))
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        raise PipelineTypeError(f"color_jitter(bounds) must be a pair of numbers, not {bounds!r}")
    low, high = number(bounds[0], "color_jitter(bounds)"), number(bounds[1], "color_jitter(bounds)")
    if not low < high:
        raise PipelineError(f"color_jitter(bounds={bounds!r}): the first must be the lower")
    if dtype.kind != "f" and not 0 <= low < high <= np.iinfo(dtype).max:
        raise PipelineError(f"color_jitter(bounds={bounds!r}) must lie in 0..{np.iinfo(dtype).max}, what {dtype} holds")
    return low, high
