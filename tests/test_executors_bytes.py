"""What a caller gets through every executor: each byte of every dtype, in batches that never change."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from executors import every, loaded

import batchkit as bk
from batchkit.backends import aligned_empty

# -- every dtype

ROWS = 24
X = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
PAGE = Path(__file__).parents[1] / "docs" / "dtypes.md"
NAMES = {
    "str (`U`, `StringDType`)": ["U6", "StringDType"],
    "bytes (`S`)": ["S6"],
    "datetime64, timedelta64": ["datetime64[ns]", "datetime64[D]", "timedelta64[ms]"],
    "structured": ["i4,f8", "U3,(2,)f4"],
    "Python objects": [],
}
FEW_BITS = {"float4_e2m1fn": 4, "float6_e2m3fn": 6, "float6_e3m2fn": 6, "uint2": 2, "uint4": 4}


def published() -> list[str]:
    """Return every dtype of the page that NumPy has, and some in the other byte order."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    return [name for cell in cells for name in NAMES.get(cell, cell.split(", "))] + [">f4", ">i8", ">U6", ">c16"]


def dtype_of(name: str) -> np.dtype[Any] | None:
    """Return the dtype; ``None`` where these versions of NumPy and ml_dtypes have none of that name."""
    if name == "StringDType":
        made = getattr(np.dtypes, name, None)
        return None if made is None else made()
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:
        return None


def sample(dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return any bits where any bits are valid: NaNs with payloads, infinities and NaTs among them."""
    rng, count = np.random.default_rng(7), int(np.prod(shape))
    if dtype.kind in "UST":
        words = ["", "a", "b!" if dtype.kind == "S" else "b\u00e9", "longer"]
        return np.array([words[place] for place in rng.integers(0, 4, count)]).astype(dtype).reshape(shape)
    if dtype.names:
        found = np.zeros(shape, dtype)
        for field in dtype.names:
            found[field] = rng.integers(0, 99, found[field].shape).astype(dtype[field].base)
        return found
    if dtype.char in "?gG" or dtype.name in ("int2", "int4"):  # not all bits of these are their value's
        return (rng.standard_normal(shape) * 2).astype(np.int8 if dtype.itemsize == 1 else dtype).astype(dtype)
    bits = rng.integers(0, 1 << FEW_BITS.get(dtype.name, 8), count * dtype.itemsize, np.uint8)
    return bits.view(dtype).reshape(shape)


@functools.cache
def columns() -> dict[str, Any]:
    """Return for each dtype columns of a value a row, of an array a row, strided, and of an empty array a row."""
    found: dict[str, Any] = {"n": np.arange(ROWS)}
    for name in published():
        dtype = dtype_of(name)
        if dtype is not None:
            vectors, empty = sample(dtype, (ROWS, 3)), np.empty((ROWS, 0, 2), dtype)
            found[name] = {"value": sample(dtype, (ROWS,)), "vector": vectors, "part": vectors[:, 1], "empty": empty}
    return found


WAYS: dict[str, Callable[[bk.Pipeline], bk.Pipeline]] = {
    "gathered": lambda pipe: pipe.shuffle(2).batch(7),
    "row by row": lambda pipe: pipe.shuffle(2).map(lambda row: row).batch(7),
    "through a function": lambda pipe: pipe.shuffle(2).batch(7).map(lambda batch: {**batch}),
    "padded": lambda pipe: pipe.batch(7, remainder="pad").map(lambda batch: {**batch}),
}


@functools.cache
def delivered(executor: str, way: str) -> list[Any]:
    """Return an epoch of all dtypes at once."""
    with loaded(WAYS[way](bk.from_arrays(columns())), executor) as loader:
        return list(loader)


def assert_same(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> None:
    assert type(got) is np.ndarray
    assert got.shape == want.shape
    if want.dtype.kind in "UST":  # of rows, the longest decides how wide the column is
        assert got.dtype.kind in "UST"
        assert got.tolist() == want.tolist()
        return
    assert got.dtype == want.dtype
    if want.dtype.char in "gG":  # their padding is no part of the value
        np.testing.assert_array_equal(got, want)
    else:
        assert got.tobytes() == want.tobytes()


@every
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", published())
def test_every_byte_of_every_dtype_arrives(name: str, way: str, executor: str) -> None:
    if name not in columns():
        pytest.skip(f"these versions of NumPy and ml_dtypes have no {name}")
    seen: list[int] = []
    for batch in delivered(executor, way):
        ids = batch["n"][batch["mask"]].tolist() if "mask" in batch else batch["n"].tolist()
        seen += ids
        for leaf, column in columns()[name].items():
            native = column if column.dtype.isnative else column.astype(column.dtype.newbyteorder("="))
            assert_same(batch[name][leaf][: len(ids)], native[ids])
            rest = len(batch["n"]) - len(ids)
            assert_same(batch[name][leaf][len(ids) :], np.zeros((rest, *native.shape[1:]), native.dtype))
    assert sorted(seen) == list(range(ROWS))


class Pair(NamedTuple):
    x: Any
    y: Any


@every
@pytest.mark.parametrize("way", ["gathered", "row by row"])
@pytest.mark.parametrize("kind", ["a lone leaf", "tuple", "nested"])
def test_every_nesting_arrives(kind: str, way: str, executor: str) -> None:
    numbers, halves = np.arange(20), np.arange(20) / 2
    tree = {"a lone leaf": numbers, "tuple": (numbers, halves), "nested": {"b": (numbers, {"c": halves}), "a": halves}}
    make: Callable[[Any], Any] = {
        "a lone leaf": lambda ids: numbers[ids],
        "tuple": lambda ids: (numbers[ids], halves[ids]),
        "nested": lambda ids: {"b": (numbers[ids], {"c": halves[ids]}), "a": halves[ids]},
    }[kind]
    pipe = bk.from_arrays(tree[kind])
    pipe = pipe.batch(8) if way == "gathered" else pipe.map(lambda row: row).batch(8)
    with loaded(pipe, executor) as loader:
        batches = list(loader)
    assert [shown(batch) for batch in batches] == [shown(make(slice(low, low + 8))) for low in (0, 8, 16)]


def shown(tree: Any) -> Any:
    """Return a tree with lists for arrays, and the order of its keys."""
    if isinstance(tree, dict):
        return [(key, shown(value)) for key, value in tree.items()]
    if isinstance(tree, tuple):
        return tuple(shown(value) for value in tree)
    return (tree.dtype, tree.tolist())


@every
def test_text_of_varying_length_arrives(executor: str) -> None:
    texts = ["ab" * (row % 5) + "\u00e9" for row in range(20)]
    pipe = bk.from_sequence([{"t": text, "b": text.encode()} for text in texts]).map(lambda row: row).batch(3)
    with loaded(pipe, executor) as loader:
        for _ in range(2):
            batches = list(loader)
            assert [text for batch in batches for text in batch["t"].tolist()] == texts
            assert [text for batch in batches for text in batch["b"].tolist()] == [text.encode() for text in texts]


@every
def test_batches_that_grow_arrive(executor: str) -> None:
    sizes = [1, 5, 100, 100_000, 3]
    pipe = bk.from_generator(lambda: ({"x": np.full((2, size), size)} for size in sizes), batched=True)
    with loaded(
        pipe.map(lambda batch: {"sum": batch["x"].sum(axis=1), "n": batch["x"][:, :1] + 0}), executor
    ) as loader:
        assert [(batch["sum"].tolist(), batch["n"].tolist()) for batch in loader] == [
            ([size * size] * 2, [[size]] * 2) for size in sizes
        ]


# -- what the backend wants


class Narrow(bk.NumpyBackend):
    """Has no 64 bits, and reads only what begins at a multiple of 64 bytes."""

    name = "narrow"
    alignment = 64

    def host_dtype(self, dtype: np.dtype[Any], leaf: str) -> np.dtype[Any]:
        return np.dtype({"int64": "int32", "float64": "float32"}.get(dtype.name, dtype))

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        return aligned_empty(shape, dtype, 64)


NARROWED = {way: WAYS[way] for way in ("gathered", "row by row", "through a function")}


@every
@pytest.mark.parametrize("way", NARROWED)
def test_leaves_are_narrowed_and_aligned_as_the_backend_wants(way: str, executor: str) -> None:
    small = np.arange(ROWS, dtype=np.int16)
    pipe = NARROWED[way](bk.from_arrays({"n": np.arange(ROWS), "x": X[:ROWS].astype(np.float64), "s": small}))
    with (
        pytest.warns(bk.NarrowingWarning, match="leaf 'x' becomes float32"),
        loaded(pipe, executor, backend=Narrow()) as loader,
    ):
        batches = list(loader)
    for batch in batches:
        ids = batch["n"]
        assert [batch[leaf].dtype for leaf in ("n", "x", "s")] == [np.int32, np.float32, np.int16]
        assert (batch["x"].tobytes(), batch["s"].tobytes()) == (X[ids].tobytes(), small[ids].tobytes())
        assert [leaf.ctypes.data % 64 for leaf in batch.values()] == [0, 0, 0]
    assert sorted(row for batch in batches for row in batch["n"].tolist()) == list(range(ROWS))


@every
@pytest.mark.parametrize("way", NARROWED)
def test_a_value_that_does_not_fit_is_an_error_and_the_next_step_goes_on(way: str, executor: str) -> None:
    rows = np.array([1, 2, 2**40, 4, 5, 6])
    pipe = bk.from_arrays({"x": rows})
    pipe = {"gathered": pipe, "row by row": pipe.map(lambda row: row)}.get(way, pipe).batch(2)
    if way == "through a function":
        pipe = pipe.map(lambda batch: {"x": batch["x"] + 0})
    with loaded(pipe, executor, backend=Narrow()) as loader:
        iterator = iter(loader)
        assert next(iterator)["x"].tolist() == [1, 2]
        with pytest.raises(bk.NarrowingError, match=r"step 1: leaf 'x': the value 1099511627776 does not fit int32"):
            next(iterator)
        assert next(iterator)["x"].tolist() == [5, 6]


# -- batches that are kept


def at_an_odd_address(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    raw = np.empty(array.nbytes + 1, np.uint8)[1:]
    raw[:] = array.reshape(-1).view(np.uint8)
    return np.ndarray(array.shape, array.dtype, raw.data)


def stream(way: str) -> bk.Pipeline:
    def shifted(batch: dict[str, Any]) -> dict[str, Any]:
        raw = np.empty(batch["x"].nbytes + 1, np.uint8)[1:]
        raw[:] = batch["x"].reshape(-1).view(np.uint8)
        odd = np.ndarray(batch["x"].shape, batch["x"].dtype, raw.data)
        return {"n": batch["n"], "x": batch["x"], "odd": odd, "back": batch["x"][:, ::-1], "same": batch["x"]}

    ids = np.arange(len(X))
    if way == "rows":
        return bk.from_arrays({"n": ids, "x": X}).shuffle(1).map(lambda row: row).batch(50)
    if way == "batched generator":
        chunks = [slice(low, low + 50) for low in range(0, len(X), 50)]
        return bk.from_generator(lambda: ({"n": ids[cut], "x": X[cut]} for cut in chunks), batched=True)
    data = bk.from_arrays({"n": ids, "x": at_an_odd_address(X) if "odd" in way else X}).shuffle(1).batch(50)
    return data.map(shifted) if "function" in way else data


def assert_its_own(batch: Any, ids: list[int]) -> None:
    """Compare with the rows ``ids``, written down at delivery: a batch that is another's now is one in itself."""
    assert batch["n"].tolist() == ids, "leaf 'n' of a kept batch has changed"
    want = X[ids]
    for leaf in batch.keys() - {"n"}:
        same = np.array_equal(batch[leaf], want[:, ::-1] if leaf == "back" else want)
        assert same, f"leaf {leaf!r} of a kept batch has changed"


@every
@pytest.mark.parametrize(
    "way", ["gathered", "gathered from an odd address", "function", "function on odd", "rows", "batched generator"]
)
def test_a_batch_that_is_kept_never_changes(way: str, executor: str) -> None:
    kept: deque[tuple[Any, list[int]]] = deque(maxlen=30)
    seen: list[int] = []
    with loaded(stream(way), executor, prefetch=8) as loader:
        for _ in range(3):
            for batch in loader:
                ids = batch["n"].tolist()
                seen += ids
                kept.append((batch, ids))
                assert_its_own(*kept[0])
    assert len(kept) == 30
    for batch, ids in kept:
        assert_its_own(batch, ids)
    assert sorted(seen) == sorted(list(range(len(X))) * 3)


@every
@pytest.mark.parametrize("way", ["gathered", "function", "rows"])
def test_a_part_of_a_batch_that_is_kept_never_changes(way: str, executor: str) -> None:
    kept: list[tuple[Any, list[int]]] = []
    with loaded(stream(way), executor, prefetch=8) as loader:
        for _ in range(2):
            for batch in loader:
                kept.append((batch["x"][10:20, ::2].T, batch["n"][10:20].tolist()))
    assert len(kept) == 80
    for part, ids in kept:
        assert np.array_equal(part, X[ids, ::2].T)


@every
def test_a_caller_who_keeps_the_labels_lets_the_images_go(executor: str) -> None:
    images = np.zeros((120, 512, 1024), np.uint8)
    pipe = bk.from_arrays({"image": images, "label": np.arange(120)}).batch(2).map(lambda batch: {**batch})
    labels, places = [], set()
    with loaded(pipe, executor) as loader:
        for batch in loader:
            labels.append(batch["label"])
            places.add(batch["image"].ctypes.data)
    assert [label.tolist() for label in labels] == [[row, row + 1] for row in range(0, 120, 2)]
    assert len(places) < 30


@every
@pytest.mark.parametrize("way", ["gathered", "function", "rows"])
def test_what_a_caller_writes_to_a_batch_stays_in_it(way: str, executor: str) -> None:
    before = X.tobytes()
    with loaded(stream(way), executor) as loader:
        seen: list[int] = []
        for _ in range(3):
            for batch in loader:
                ids = batch["n"].tolist()
                assert_its_own({leaf: batch[leaf] for leaf in ("n", "x")}, ids)
                seen += ids
                batch["x"][...] = 7
    assert sorted(seen) == sorted(list(range(len(X))) * 3)
    assert X.tobytes() == before
