"""Every transform against a slow reference that takes one row at a time, in plain NumPy.

The reference draws with :class:`ScalarRandom`, which gives a row the values that the batch's
rng gives to it.
"""

from __future__ import annotations

import doctest
import json
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import batchkit as bk
from batchkit import transforms as T
from batchkit.errors import MissingLeafError, PipelineError, PipelineTypeError, SchemaError
from batchkit.random import RowRandom, ScalarRandom
from batchkit.transforms.mixing import beta_quantiles

KEY = (2, 0, 0)
DTYPES = ["uint8", "int16", "uint16", "int64", "float16", "float32", "float64", "bool"]
FORMATS = st.sampled_from(["channels_last", "channels_first"])
Pair = namedtuple("Pair", "image label")
quick = settings(max_examples=60, deadline=None)


def rng_of(rows: Any, epoch: int = 3) -> RowRandom:
    return RowRandom(KEY, epoch, np.asarray(rows, np.int64))


def row_rng(row: int, epoch: int = 3) -> ScalarRandom:
    return ScalarRandom(KEY, epoch, int(row))


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, 2 if dtype == "bool" else 250, shape).astype(dtype)


@st.composite
def pictures(draw: Any, dtypes: Any = DTYPES, least: int = 0) -> tuple[np.ndarray, str]:
    """A batch of pictures and its data format."""
    rows = draw(st.integers(least, 5))
    height, width, channels = (draw(st.integers(1, 7)) for _ in range(3))
    data_format = draw(FORMATS)
    shapes = {"channels_last": (rows, height, width, channels), "channels_first": (rows, channels, height, width)}
    shape = draw(st.sampled_from([shapes[data_format], (rows, height, width)]))
    array = numbers(shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 99)))
    if draw(st.booleans()):  # the same numbers, not contiguous
        array = np.asfortranarray(array)
    return array, data_format


def hwc(picture: np.ndarray, data_format: str) -> np.ndarray:
    """A row as (height, width, channels): a view."""
    if picture.ndim == 2:
        return picture[:, :, None]
    return picture if data_format == "channels_last" else np.moveaxis(picture, 0, -1)


def back(picture: np.ndarray, like: np.ndarray, data_format: str) -> np.ndarray:
    if like.ndim == 2:
        return picture[:, :, 0]
    return picture if data_format == "channels_last" else np.moveaxis(picture, -1, 0)


def stacked(rows: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    return np.stack(rows) if rows else empty


# ---------------------------------------------------------------- places


@quick
@given(
    pictures(),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.booleans(),
    st.sampled_from([0, 1]),
)
def test_random_crop_is_a_slice_of_the_padded_row(
    given: Any, padding: tuple[int, int], size: tuple[int, int], own_size: bool, fill: int
) -> None:
    array, data_format = given
    high, wide = hwc(array[0], data_format).shape[:2] if len(array) else (1, 1)
    if not own_size:
        size = min(size[0], high + 2 * padding[0]), min(size[1], wide + 2 * padding[1])
    kept = array.copy()
    made = T.random_crop(
        array,
        rng_of(range(len(array))),
        size=None if own_size else size,
        padding=padding,
        fill=fill,
        data_format=data_format,
    )
    expected = []
    for row, picture in enumerate(array):
        rng, image = row_rng(row), hwc(picture, data_format)
        h, w = image.shape[:2] if own_size else size
        (py, px), around = padding, np.full_like(image, fill, shape=(high + 2 * padding[0], wide + 2 * padding[1], 9))
        around = around[:, :, : image.shape[2]]
        around[py : py + high, px : px + wide] = image
        top, left = rng.integers(high + 2 * py - h + 1), rng.integers(wide + 2 * px - w + 1)
        expected.append(back(around[top : top + h, left : left + w], picture, data_format))
    if expected:
        np.testing.assert_array_equal(made, np.stack(expected), strict=True)
    assert made.dtype == array.dtype
    assert len(made) == len(array)
    assert made.flags.c_contiguous
    assert made.flags.writeable
    np.testing.assert_array_equal(array, kept)


@quick
@given(pictures(), st.sampled_from(["horizontal", "vertical"]), st.sampled_from([0.0, 0.3, 1.0]))
def test_random_flip_mirrors_the_rows_it_drew(given: Any, direction: str, p: float) -> None:
    array, data_format = given
    kept = array.copy()
    made = T.random_flip(array, rng_of(range(len(array))), p=p, direction=direction, data_format=data_format)
    expected = []
    for row, picture in enumerate(array):
        image = hwc(picture, data_format)
        if row_rng(row).bernoulli(p):
            image = image[:, ::-1] if direction == "horizontal" else image[::-1]
        expected.append(back(image, picture, data_format))
    np.testing.assert_array_equal(made, stacked(expected, array), strict=True)
    np.testing.assert_array_equal(array, kept)
    assert not np.shares_memory(made, array)


@pytest.mark.parametrize("fill", [0, 7])
def test_random_crop_of_many_rows_goes_in_chunks_without_a_seam(fill: int) -> None:
    array = numbers((300, 40, 30, 3), "uint8", 0)
    made = T.random_crop(array, rng_of(range(300)), padding=(2, 3), fill=fill)
    padded = np.pad(array, ((0, 0), (2, 2), (3, 3), (0, 0)), constant_values=fill)
    for row in range(300):
        rng = row_rng(row)
        top, left = rng.integers(5), rng.integers(7)
        np.testing.assert_array_equal(made[row], padded[row, top : top + 40, left : left + 30], strict=True)


def test_random_flip_of_many_rows_goes_in_chunks_without_a_seam() -> None:
    array = numbers((300, 40, 30, 3), "uint8", 0)
    made = T.random_flip(array, rng_of(range(300)), p=1.0)
    np.testing.assert_array_equal(made, array[:, :, ::-1], strict=True)


@quick
@given(pictures(), st.sampled_from([0.0, 0.7, 1.0]))
def test_random_erasing_fills_one_rectangle(given: Any, p: float) -> None:
    array, data_format = given
    kept = array.copy()
    made = T.random_erasing(
        array, rng_of(range(len(array))), p=p, area=(0.1, 0.5), ratio=(0.5, 2.0), fill=1, data_format=data_format
    )
    expected = []
    for row, picture in enumerate(array):
        rng, image = row_rng(row), hwc(picture, data_format).copy()
        high, wide = image.shape[:2]
        hit, pixels, unit = rng.bernoulli(p), rng.uniform(0.1, 0.5) * (high * wide), rng.random()
        tall = 1 + abs(2 * unit - 1) * (2 - 1)
        tall = 1 / tall if unit < 0.5 else tall
        h = int(min(max(np.rint(np.sqrt(pixels * tall)), 1), high))
        w = int(min(max(np.rint(np.sqrt(pixels / tall)), 1), wide))
        top, left = int(rng.random() * (high - h + 1)), int(rng.random() * (wide - w + 1))
        if hit:
            image[top : top + h, left : left + w] = 1
        expected.append(back(image, picture, data_format))
    np.testing.assert_array_equal(made, stacked(expected, array), strict=True)
    np.testing.assert_array_equal(array, kept)


def test_random_erasing_keeps_to_its_area_and_ratio() -> None:
    made = T.random_erasing(np.zeros((500, 100, 100), np.uint8), rng_of(range(500)), p=1.0, fill=1, area=(0.1, 0.2))
    heights, widths = made.any(axis=2).sum(axis=1), made.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(made.sum(axis=(1, 2)), heights * widths)
    assert 0.09 < (heights * widths / 10_000).min() < 0.12
    assert 0.18 < (heights * widths / 10_000).max() < 0.21
    assert 0.28 < (heights / widths).min() < 0.4
    assert 2.5 < (heights / widths).max() < 3.5
    assert 0.4 < (heights > widths).mean() < 0.6


@quick
@given(st.data())
def test_pad_to_is_numpy_pad(data: Any) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    array = numbers((3, *shape), data.draw(st.sampled_from(DTYPES)), 1)
    more = [data.draw(st.integers(0, 3)) for _ in shape]
    align = data.draw(st.sampled_from(["start", "centre"]))
    wanted: list[int | None] = [side + extra for side, extra in zip(shape, more, strict=True)]
    if not more[0]:
        wanted[0] = None
    before = [extra // 2 if align == "centre" else 0 for extra in more]
    widths = [(0, 0)] + [(front, extra - front) for front, extra in zip(before, more, strict=True)]
    made = T.pad_to(array, shape=wanted, fill=1, align=align)
    np.testing.assert_array_equal(made, np.pad(array, widths, constant_values=1), strict=True)
    assert not np.shares_memory(made, array)


# ---------------------------------------------------------------- values


@quick
@given(pictures(), st.booleans(), st.sampled_from(["float16", "float32", "float64"]), st.sampled_from([None, 7.0]))
def test_normalize_is_divide_subtract_divide(given: Any, by_channel: bool, dtype: str, divisor: float | None) -> None:
    array, data_format = given
    axis = (array.ndim - 1) if data_format == "channels_last" else 1
    channels = array.shape[axis]
    mean: Any = np.linspace(0.1, 0.9, channels).tolist() if by_channel else 0.4
    std: Any = np.linspace(0.2, 0.5, channels).tolist() if by_channel else 0.3
    kept = array.copy()
    made = T.normalize(array, mean=mean, std=std, divisor=divisor, dtype=dtype, data_format=data_format)
    by = divisor or {"uint8": 255, "uint16": 65535}.get(array.dtype.name, 1)
    shape = [1] * array.ndim
    if by_channel:
        shape[axis] = channels
    expected = array.astype(np.float64) / by
    expected = (expected - np.reshape(mean, shape)) / np.reshape(std, shape)
    largest = max(float(np.abs(expected).max(initial=0.0)), 5.0)
    precision = {"float16": 2.0**-10, "float32": 2.0**-22, "float64": 2.0**-50}[dtype]
    assert made.dtype == dtype
    np.testing.assert_allclose(made, expected, rtol=0, atol=precision * largest)
    np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("side", [5, 130])
def test_normalize_of_many_blocks_has_no_seam(side: int, data_format: str) -> None:
    array = numbers((40, side, side, 3) if data_format == "channels_last" else (40, 3, side, side), "uint8", 2)
    mean, std = np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.3, 0.4])
    shape = (3,) if data_format == "channels_last" else (3, 1, 1)
    expected = (array / 255 - mean.reshape(shape)) / std.reshape(shape)
    made = T.normalize(array, mean=mean.tolist(), std=std.tolist(), data_format=data_format)
    np.testing.assert_allclose(made, expected, rtol=0, atol=2e-6)


def test_normalize_without_arguments_maps_uint8_to_0_to_1() -> None:
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(T.normalize(levels), levels / 255, rtol=2e-7)
    assert T.normalize(levels)[-1] == 1.0


def test_normalize_of_floats_without_arguments_is_the_identity() -> None:
    array = numbers((4, 6), "float32", 0)
    np.testing.assert_array_equal(T.normalize(array), array, strict=True)


@quick
@given(
    st.sampled_from(DTYPES),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.floats(-50, 50),
    st.floats(1, 200),
    st.sampled_from(["float16", "float32", "float64"]),
)
def test_clip_and_scale_is_clip_then_a_line(
    dtype: str, shape: tuple[int, int], low: float, span: float, out: str
) -> None:
    array = numbers(shape, dtype, 3)
    made = T.clip_and_scale(array, low=low, high=low + span, to=(-1.0, 3.0), dtype=out)
    expected = (np.clip(array.astype(np.float64), low, low + span) - low) / span * 4 - 1
    assert made.dtype == out
    np.testing.assert_allclose(made, expected, rtol=0, atol={"float16": 2e-3, "float32": 1e-4, "float64": 1e-11}[out])
    assert not made.size or (made.min() >= -1 and made.max() <= 3)


@quick
@given(
    st.sampled_from(["uint8", "int8", "int64", "uint64"]),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.integers(1, 6),
    st.sampled_from(["float32", "float64", "uint8", "bool"]),
)
def test_one_hot_is_a_row_of_the_identity(kind: str, shape: list[int], classes: int, dtype: str) -> None:
    labels = np.random.default_rng(0).integers(0, classes, shape).astype(kind)
    made = T.one_hot(labels, classes=classes, dtype=dtype)
    np.testing.assert_array_equal(made, np.eye(classes, dtype=dtype)[labels.astype(np.int64)], strict=True)


@quick
@given(
    pictures(["uint8", "uint16", "float16", "float32", "float64"]),
    st.sampled_from([0.0, 0.4, 1.5]),
    st.sampled_from([0.0, 0.4, 1.5]),
    st.booleans(),
)
def test_color_jitter_scales_around_zero_and_around_the_mean(
    given: Any, brightness: float, contrast: float, bounded: bool
) -> None:
    array, _ = given
    kept = array.copy()
    whole = array.dtype.kind == "u"
    bounds = (0.0, 200.0) if bounded else None
    made = T.color_jitter(array, rng_of(range(len(array))), brightness=brightness, contrast=contrast, bounds=bounds)
    for row, picture in enumerate(array):
        rng, x = row_rng(row), picture.astype(np.float64)
        light = rng.uniform(max(0.0, 1 - brightness), 1 + brightness)
        strong = rng.uniform(max(0.0, 1 - contrast), 1 + contrast)
        expected = (x * light - x.mean() * light) * strong + x.mean() * light
        if bounded or whole:
            expected = np.clip(expected, *(bounds or (0, np.iinfo(array.dtype).max)))
        # An integer may fall to the other side of a half.
        slack = 0.501 if whole else 2e-2 if array.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(made[row], expected, rtol=0, atol=slack)
    assert made.dtype == array.dtype
    np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_color_jitter_of_strength_0_is_the_identity(dtype: str) -> None:
    array = numbers((5, 8, 8, 3), dtype, 0)
    np.testing.assert_array_equal(T.color_jitter(array, rng_of(range(5))), array, strict=True)


# ---------------------------------------------------------------- mixing


def labelled(rows: int, dtype: str = "float32", side: int = 6) -> dict[str, np.ndarray]:
    return {
        "image": numbers((rows, side, side + 1, 3), dtype, 4),
        "label": np.eye(10, dtype=np.float32)[np.arange(rows) % 10],
    }


def shares_of(row: int, alpha: float) -> tuple[float, ScalarRandom]:
    """The first draw of a row as a quantile of Beta(alpha, alpha), by integration on a fine grid."""
    rng = row_rng(row)
    unit = rng.random()
    v = np.linspace(0, 1, 200_001)[1:] ** (1 / min(alpha, 1.0)) / 2
    middles = (v[1:] + v[:-1]) / 2
    mass = np.concatenate([[v[0] ** alpha / alpha], (middles * (1 - middles)) ** (alpha - 1) * np.diff(v)])
    below = np.cumsum(mass) / mass.sum() / 2
    lower = float(np.interp(min(unit, 1 - unit), below, v))
    return (lower if unit < 0.5 else 1 - lower), rng


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_mixes_rows_and_labels_alike(alpha: float, dtype: str) -> None:
    batch = labelled(12, dtype)
    kept = {name: array.copy() for name, array in batch.items()}
    made = T.mixup(batch, rng_of(range(12)), leaf="image", alpha=alpha)
    for row in range(12):
        share, rng = shares_of(row, alpha)
        other = int(rng.integers(12))
        for name in batch:
            first, second = batch[name][row].astype(np.float64), batch[name][other].astype(np.float64)
            largest = max(1.0, float(np.abs(first).max()), float(np.abs(second).max()))
            slack = 2e-3 if dtype == "float16" else 3e-4
            np.testing.assert_allclose(
                made[name][row], share * first + (1 - share) * second, rtol=0, atol=slack * largest
            )
    assert made["image"].dtype == (dtype if dtype != "uint8" else "float32")
    assert made["label"].dtype == np.float32
    np.testing.assert_allclose(made["label"].sum(axis=1), 1, rtol=1e-6)
    for name in batch:
        np.testing.assert_array_equal(batch[name], kept[name])


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_cutmix_takes_a_rectangle_and_its_share_of_the_label(data_format: str) -> None:
    batch = labelled(40)
    given = dict(batch)
    if data_format == "channels_first":
        given["image"] = np.moveaxis(batch["image"], -1, 1)
    made = T.cutmix(given, rng_of(range(40)), leaf="image", data_format=data_format)
    images = made["image"] if data_format == "channels_last" else np.moveaxis(made["image"], 1, -1)
    for row in range(40):
        share, rng = shares_of(row, 1.0)
        share = np.rint(share * 65536) / 65536
        other, image = int(rng.integers(40)), batch["image"][row].copy()
        covered = np.zeros(image.shape[:2], bool)
        places = []
        for length in covered.shape:
            extent = int(np.sqrt(1 - share) * length)
            begin = int(rng.random() * length) - extent // 2
            places.append(slice(max(begin, 0), max(begin + extent, 0)))
        covered[tuple(places)] = True
        image[covered] = batch["image"][other][covered]
        np.testing.assert_array_equal(images[row], image)
        weight = 1 - covered.mean()
        np.testing.assert_allclose(
            made["label"][row], weight * batch["label"][row] + (1 - weight) * batch["label"][other], atol=1e-6
        )


@pytest.mark.parametrize("mix", [T.mixup, T.cutmix])
def test_mixing_leaves_padding_rows_out(mix: Callable[..., Any]) -> None:
    batch = {"image": np.full((9, 4, 4, 1), np.nan, np.float32), "label": np.ones((9, 2), np.float32)}
    batch["image"][:5] = 1.0
    made = mix(batch, rng_of([0, 1, 2, 3, 4, -1, -2, -3, -4]), leaf="image")
    np.testing.assert_array_equal(made["image"][:5], 1.0)


@pytest.mark.parametrize("mix", [T.mixup, T.cutmix])
def test_mixing_without_labels_leaves_them_alone(mix: Callable[..., Any]) -> None:
    batch = {"image": numbers((4, 3, 3, 1), "float32", 0), "label": np.arange(4)}
    assert mix(batch, rng_of(range(4)), leaf="image", labels=None)["label"] is batch["label"]


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 2.0, 30.0, 1000.0])
def test_the_quantiles_are_those_of_the_beta_distribution(alpha: float) -> None:
    steps, values = beta_quantiles(alpha)
    drawn = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    lower = np.sort(drawn[drawn <= 0.5])
    x = values ** (1 / min(alpha, 1.0)) / 2
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) lies beyond p = 0.001.
    found = np.searchsorted(lower, x, side="right") / len(lower)
    assert np.abs(found - 2 * steps).max() < 1.95 / np.sqrt(len(lower))


# ---------------------------------------------------------------- all of them

RANDOM: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "random_crop": (T.random_crop, {"leaf": "image", "padding": 4}),
    "random_flip": (T.random_flip, {"leaf": "image"}),
    "random_erasing": (T.random_erasing, {"leaf": "image"}),
    "brightness": (T.color_jitter, {"leaf": "image", "brightness": 0.4}),
    "color_jitter": (T.color_jitter, {"leaf": "image", "brightness": 0.4, "contrast": 0.4}),
}
MIXING: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mixup": (T.mixup, {"leaf": "image"}),
    "cutmix": (T.cutmix, {"leaf": "image"}),
}
PLAIN: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "normalize": (T.normalize, {"leaf": "image", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.2]}),
    "clip_and_scale": (T.clip_and_scale, {"leaf": "image", "low": 10, "high": 100}),
    "pad_to": (T.pad_to, {"leaf": "image", "shape": [14, 14, 3]}),
    "one_hot": (T.one_hot, {"leaf": "label", "classes": 10}),
}


def called(name: str, batch: Any, rows: Any) -> Any:
    if name in PLAIN:
        function, options = PLAIN[name]
        return function(batch, **options)
    function, options = (RANDOM | MIXING)[name]
    return function(batch, rng_of(rows), **options)


def sample(name: str, rows: int, dtype: str = "uint8") -> dict[str, np.ndarray]:
    batch = {"image": numbers((rows, 12, 12, 3), dtype, 8), "label": np.arange(rows) % 10}
    return batch if name not in MIXING else {**batch, "label": np.eye(10)[batch["label"]]}


@pytest.mark.parametrize("name", [*RANDOM, *MIXING, *PLAIN])
def test_the_same_address_gives_the_same_bytes(name: str) -> None:
    batch = sample(name, 20)
    first, second = called(name, batch, range(20)), called(name, batch, range(20))
    for leaf in first:
        assert first[leaf].tobytes() == second[leaf].tobytes()


@pytest.mark.parametrize("name", [*RANDOM, *MIXING])
def test_another_row_number_gives_other_values(name: str) -> None:
    batch = sample(name, 20)
    assert called(name, batch, range(20))["image"].tobytes() != called(name, batch, range(20, 40))["image"].tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("name", [*RANDOM, *PLAIN])
def test_a_row_becomes_the_same_alone_as_among_others(name: str, dtype: str) -> None:
    whole = sample(name, 30, dtype)
    together = called(name, whole, range(30))
    for row in range(30):
        alone = called(name, {leaf: array[row : row + 1] for leaf, array in whole.items()}, [row])
        for leaf in together:
            np.testing.assert_array_equal(alone[leaf][0], together[leaf][row], strict=True)


@pytest.mark.parametrize("name", [*RANDOM, *MIXING, *PLAIN])
def test_a_batch_without_rows_stays_without(name: str) -> None:
    made = called(name, sample(name, 0), [])
    assert {leaf: len(array) for leaf, array in made.items()} == {"image": 0, "label": 0}
    for leaf, array in called(name, sample(name, 3), range(3)).items():
        assert made[leaf].shape[1:] == array.shape[1:]
        assert made[leaf].dtype == array.dtype


@pytest.mark.parametrize("name", [*RANDOM, *MIXING, *PLAIN])
def test_a_read_only_input_is_not_touched_and_not_shared(name: str) -> None:
    batch = sample(name, 6)
    for array in batch.values():
        array.flags.writeable = False
    made = called(name, batch, range(6))
    changed = {"label"} if name == "one_hot" else {"image", "label"} if name in MIXING else {"image"}
    for leaf, array in made.items():
        assert (array is batch[leaf]) == (leaf not in changed)
        if leaf in changed:
            assert not np.shares_memory(array, batch[leaf])
            assert array.flags.writeable
            assert array.flags.c_contiguous


def test_a_leaf_is_found_by_its_path_in_any_nesting() -> None:
    image = numbers((2, 3, 3, 1), "uint8", 0)
    Two = OrderedDict([("b", (np.zeros(2), Pair(image, np.arange(2)))), ("a", np.ones(2))])
    made = T.normalize(Two, leaf="b/1/image")
    assert list(made) == ["b", "a"]
    assert isinstance(made, OrderedDict)
    assert isinstance(made["b"][1], Pair)
    assert made["b"][1].image.dtype == np.float32
    assert made["b"][1].label is Two["b"][1].label
    assert Two["b"][1].image is image


# ---------------------------------------------------------------- in a pipeline

STAGES: list[dict[str, Any]] = [
    {"random_map": {"fn": "batchkit.transforms:random_crop", "kwargs": {"leaf": "image", "padding": 2}}},
    {"random_map": {"fn": "batchkit.transforms:random_flip", "kwargs": {"leaf": "image"}}},
    {"random_map": {"fn": "batchkit.transforms:random_erasing", "kwargs": {"leaf": "image", "area": [0.1, 0.2]}}},
    {
        "random_map": {
            "fn": "batchkit.transforms:color_jitter",
            "kwargs": {"leaf": "image", "brightness": 0.2, "contrast": 0.3},
        }
    },
    {
        "map": {
            "fn": "batchkit.transforms:normalize",
            "kwargs": {"leaf": "image", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.2]},
        }
    },
    {"map": {"fn": "batchkit.transforms:one_hot", "kwargs": {"leaf": "label", "classes": 10}}},
]
IMAGES = numbers((300, 8, 8, 3), "uint8", 5)
LABELS = np.arange(300) % 10


def pipeline(size: int, remainder: str = "keep") -> bk.Pipeline:
    pipe = bk.from_arrays({"image": IMAGES, "label": LABELS}).shuffle(seed=1).batch(size, remainder=remainder)
    pipe = pipe.random_map(T.random_crop, leaf="image", padding=2).random_map(T.random_flip, leaf="image")
    pipe = pipe.random_map(T.random_erasing, leaf="image", area=[0.1, 0.2])
    pipe = pipe.random_map(T.color_jitter, leaf="image", brightness=0.2, contrast=0.3)
    pipe = pipe.map(T.normalize, leaf="image", mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.2])
    return pipe.map(T.one_hot, leaf="label", classes=10)


def rows_of(loader: bk.Loader) -> dict[str, np.ndarray]:
    with loader:
        batches = list(loader)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return rows_of(bk.Loader(pipeline(256), executor="inline"))


@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("size", [7, 64, 256])
def test_a_loader_gives_the_same_rows_at_any_batch_size(
    reference: dict[str, np.ndarray], size: int, executor: str
) -> None:
    found = rows_of(bk.Loader(pipeline(size), executor=executor))
    for name, rows in reference.items():
        np.testing.assert_array_equal(found[name], rows, strict=True)


def test_the_shards_of_a_batch_are_the_batch(reference: dict[str, np.ndarray]) -> None:
    loaders = [bk.Loader(pipeline(50), executor="inline", shard=(rank, 3)) for rank in range(3)]
    for step, parts in enumerate(zip(*loaders, strict=True)):
        whole = np.concatenate([part["image"] for part in parts])
        np.testing.assert_array_equal(whole, reference["image"][step * 50 : step * 50 + 50], strict=True)
    assert step == len(loaders[0]) - 1 > 0


def test_a_padded_batch_goes_through_every_transform(reference: dict[str, np.ndarray]) -> None:
    pipe = pipeline(64, "pad").random_map(T.mixup, leaf="image").random_map(T.cutmix, leaf="image")
    with bk.Loader(pipe, executor="inline") as loader:
        last = list(loader)[-1]
    assert last["image"].shape == (64, 8, 8, 3)
    assert np.isfinite(last["image"]).all()


def test_batches_that_are_kept_do_not_change() -> None:
    with bk.Loader(pipeline(50), executor="threads") as loader:
        batches = [(batch["image"], batch["image"].copy()) for batch in loader]
        assert len(batches) == len(loader) > 1
    for batch, copy in batches:
        np.testing.assert_array_equal(batch, copy)


def test_a_config_file_names_the_transforms(tmp_path: Path, reference: dict[str, np.ndarray]) -> None:
    np.save(tmp_path / "image.npy", IMAGES)
    np.save(tmp_path / "label.npy", LABELS)
    source = {
        "kind": "npy",
        "path": {"image": str(tmp_path / "image.npy"), "label": str(tmp_path / "label.npy")},
    }
    stages = [{"shuffle": {"seed": 1}}, {"batch": {"size": 64}}, *STAGES]
    config = tmp_path / "train.json"
    config.write_text(json.dumps({"pipeline": {"source": source, "stages": stages}, "loader": {"executor": "inline"}}))
    found = rows_of(bk.load(config))
    for name, rows in reference.items():
        np.testing.assert_array_equal(found[name], rows, strict=True)


def test_a_pipeline_of_transforms_goes_through_json(tmp_path: Path, reference: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "data.npz", image=IMAGES, label=LABELS)
    pipe = bk.from_npz(tmp_path / "data.npz").shuffle(seed=1).batch(64)
    pipe = pipe.random_map(T.random_crop, leaf="image", padding=2).random_map(T.random_flip, leaf="image")
    again = bk.Pipeline.from_dict(json.loads(json.dumps(pipe.to_dict())))
    first, second = (rows_of(bk.Loader(each, executor="inline")) for each in (pipe, again))
    np.testing.assert_array_equal(first["image"], second["image"], strict=True)


@pytest.mark.parametrize("name", T.__all__)
def test_a_transform_is_exported_under_its_public_name(name: str) -> None:
    from batchkit.functions import exportable_name

    assert exportable_name(getattr(T, name), "map(fn)") == f"batchkit.transforms:{name}"


PAGE = Path(__file__).parent.parent / "docs" / "transforms.md"


@pytest.mark.checkout
def test_the_examples_of_the_page_run() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert (result.failed, result.attempted) == (0, 8)


@pytest.mark.checkout
def test_the_stages_of_the_page_are_valid(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=IMAGES, label=LABELS)
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    source = {"kind": "npz", "path": str(tmp_path / "data.npz")}
    pipe = bk.Pipeline.from_dict({"source": source, "stages": yaml.safe_load(block)})
    with bk.Loader(pipe, executor="inline") as loader:
        assert next(iter(loader))["image"].dtype == np.float32


@pytest.mark.checkout
def test_the_page_names_every_transform() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in T.__all__ if f"\n| `{name}` |" not in text] == []


# ---------------------------------------------------------------- what is refused

IMAGE = np.zeros((2, 4, 4, 3), np.uint8)
BATCH = {"image": IMAGE, "meta": {"id": np.arange(2)}, "label": np.arange(2), "text": np.array(["a", "b"])}
RNG = rng_of([0, 1])

REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: T.normalize(BATCH, leaf="imaeg"), MissingLeafError, r"no leaf 'imaeg'; did you mean 'image'\? .*meta/id"),
    (lambda: T.normalize(BATCH), MissingLeafError, r"say which leaf: leaf='...' \(there are: image, meta/id"),
    (lambda: T.normalize(IMAGE, leaf="image"), MissingLeafError, "the batch is one array without names"),
    (lambda: T.normalize(BATCH, leaf=3), PipelineTypeError, "name of a leaf"),  # type: ignore[arg-type]
    (lambda: T.normalize(BATCH, leaf="meta"), SchemaError, "leaf 'meta' is a dict.*Name a leaf"),
    (lambda: T.normalize(BATCH, leaf="text"), SchemaError, "leaf 'text' is <U1: use numbers"),
    (lambda: T.normalize(np.float32(3)), SchemaError, "the only leaf is a float32"),
    (lambda: T.normalize(np.array(3)), SchemaError, "without a row axis"),
    (lambda: T.normalize(IMAGE, mean=[0.5, 0.5]), SchemaError, r"3 channels in axis 3, but mean has 2 numbers"),
    (lambda: T.normalize(IMAGE, std=[1, 0, 1]), PipelineError, r"std\) must be above 0"),
    (lambda: T.normalize(IMAGE, mean="grey"), PipelineTypeError, "mean"),  # type: ignore[arg-type]
    (lambda: T.normalize(IMAGE, mean=np.nan), PipelineError, "finite"),
    (lambda: T.normalize(IMAGE, divisor=0), PipelineError, r"divisor\) must be a finite number > 0"),
    (lambda: T.normalize(IMAGE, dtype="uint8"), PipelineError, "'float16', 'float32' or 'float64'"),
    (lambda: T.normalize(IMAGE, dtype="flaot"), PipelineError, "'float16', 'float32' or 'float64'"),
    (lambda: T.normalize(IMAGE, data_format="nhwc"), PipelineError, "channels_last.*channels_first"),
    (lambda: T.clip_and_scale(IMAGE, low=3, high=3), PipelineError, "the first end must be the lower"),
    (lambda: T.clip_and_scale(IMAGE, low=0, high=1, to=[1]), PipelineTypeError, "pair"),
    (lambda: T.clip_and_scale(IMAGE, low=True, high=3), PipelineTypeError, "must be a number"),
    (lambda: T.one_hot(BATCH, leaf="label", classes=1), SchemaError, r"'label' is 1 in row 1 .* 0\.\.0"),
    (lambda: T.one_hot(np.array([0, -1]), classes=3), SchemaError, "is -1 in row 1"),
    (lambda: T.one_hot(np.zeros(3), classes=3), SchemaError, "is float64: use integers"),
    (lambda: T.one_hot(BATCH, leaf="label", classes=0), PipelineError, "classes"),
    (lambda: T.one_hot(BATCH, leaf="label", classes=2, dtype="U1"), PipelineError, "dtype"),
    (lambda: T.random_crop(IMAGE, RNG, size=7, padding=1), SchemaError, r"7 x 7 .*larger than the picture.*6 x 6"),
    (lambda: T.random_crop(IMAGE, RNG, padding=-1), PipelineError, "must be >= 0"),
    (lambda: T.random_crop(IMAGE, RNG, size=0), PipelineError, "must be >= 1"),
    (lambda: T.random_crop(IMAGE, RNG, size=[1, 2, 3]), PipelineTypeError, "pair"),
    (lambda: T.random_crop(IMAGE, RNG, padding=1, fill=256), PipelineError, r"fill\)=256 does not fit uint8"),
    (lambda: T.random_crop(IMAGE, RNG, padding=1, fill=0.5), PipelineError, "does not fit uint8"),
    (lambda: T.random_crop(IMAGE > 0, RNG, fill=3), PipelineError, "does not fit bool"),
    (lambda: T.random_crop(BATCH, RNG, leaf="label"), SchemaError, r"shape \(2,\): pictures are \(rows, height"),
    (lambda: T.random_crop(IMAGE[:, :0], RNG), SchemaError, "the pictures are empty"),
    (lambda: T.random_crop(IMAGE, rng_of([1])), SchemaError, "has 2 rows, but rng draws for 1"),
    (lambda: T.random_crop(IMAGE, row_rng(1)), PipelineTypeError, r"behind batch\(\)"),  # type: ignore[arg-type]
    (lambda: T.random_flip(IMAGE, RNG, p=1.5), PipelineError, r"p\) is a probability, in 0\.\.1, not 1\.5"),
    (lambda: T.random_flip(IMAGE, RNG, direction="vertikal"), PipelineError, "did you mean 'vertical'"),
    (lambda: T.random_erasing(IMAGE, RNG, p=-0.1), PipelineError, "probability"),
    (lambda: T.random_erasing(IMAGE, RNG, area=(0.5, 2)), PipelineError, "area"),
    (lambda: T.random_erasing(IMAGE, RNG, area=(0.5, 0.1)), PipelineError, "the first must be the lower"),
    (lambda: T.random_erasing(IMAGE, RNG, ratio=(0, 1)), PipelineError, "ratio"),
    (lambda: T.random_erasing(IMAGE, RNG, ratio=3), PipelineTypeError, "pair"),  # type: ignore[arg-type]
    (lambda: T.color_jitter(IMAGE, RNG, brightness=-1), PipelineError, r"brightness\) must be a finite number >= 0"),
    (lambda: T.color_jitter(np.arange(2), RNG), SchemaError, "use uint8, uint16 or floats"),
    (lambda: T.color_jitter(IMAGE, RNG, bounds=[0, 300]), PipelineError, r"0\.\.255"),
    (lambda: T.color_jitter(IMAGE, RNG, bounds=[1, 0]), PipelineError, "the first must be the lower"),
    (lambda: T.color_jitter(IMAGE, RNG, bounds=3), PipelineTypeError, "pair"),  # type: ignore[arg-type]
    (lambda: T.pad_to(IMAGE, shape=[4, 4]), SchemaError, r"3 axes, but shape=\[4, 4\] has 2"),
    (lambda: T.pad_to(IMAGE, shape=[3, 4, 3]), SchemaError, "crop them before"),
    (lambda: T.pad_to(IMAGE, shape=[4.5, 4, 3]), PipelineTypeError, "integers"),  # type: ignore[list-item]
    (lambda: T.pad_to(IMAGE, shape=[4, 4, 3], align="end"), PipelineError, "align"),
    (lambda: T.mixup(BATCH, RNG, leaf="image"), SchemaError, r"'label' is int64, but mixed labels.*one_hot"),
    (lambda: T.mixup(BATCH, RNG, leaf="image", labels="image"), PipelineError, "both 'image'"),
    (lambda: T.mixup(BATCH, RNG, leaf="image", labels="y"), MissingLeafError, "no leaf 'y'"),
    (lambda: T.mixup(IMAGE, RNG, labels=None, alpha=0), PipelineError, r"alpha\) must be a finite number > 0"),
    (lambda: T.mixup(IMAGE, RNG, labels=None, alpha=1e6), PipelineError, "at most 1000"),
    (lambda: T.cutmix({"image": IMAGE, "label": np.ones((3, 2))}, RNG, leaf="image"), SchemaError, "has 3 rows, but"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_cannot_be_is_refused_with_what_where_and_the_mend(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_stage_says_where_a_transform_failed() -> None:
    pipe = bk.from_arrays({"image": IMAGE}).batch(2).random_map(T.random_flip, leaf="imag")
    with (
        pytest.raises(MissingLeafError, match=r"stage 1 random_map\(.*random_flip: there is no leaf 'imag'"),
        bk.Loader(pipe, executor="inline") as loader,
    ):
        next(iter(loader))
