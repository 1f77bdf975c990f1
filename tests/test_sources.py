"""Sources: what they read, and what they say of data that cannot be read."""

from __future__ import annotations

import collections
import pickle
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest

import batchkit as bk
from batchkit.sources import ArraySource, NpySource, NpzSource, SequenceSource


def one_batch(pipe: bk.Pipeline) -> Any:
    with bk.Loader(pipe.batch(1000), executor="inline") as loader:
        (batch,) = loader
    return batch


# -- arrays


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "tree",
    [
        np.arange(6),
        (np.arange(6), np.ones((6, 2))),
        {"a": np.arange(6), "b": {"c": (np.ones(6), np.zeros((6, 1)))}},
        Point(np.arange(6), {"z": np.ones(6)}),
        {"b": [1, 2, 3, 4, 5, 6], "a": [[1.5]] * 6},
    ],
    ids=["bare", "tuple", "nested", "named tuple", "lists"],
)
def test_leaves_keep_their_nesting(tree: Any) -> None:
    batch = one_batch(bk.from_arrays(tree))

    def same(one: Any, two: Any) -> None:
        if isinstance(two, dict):
            assert list(one) == list(two)
            for key in two:
                same(one[key], two[key])
        elif isinstance(two, tuple):
            assert type(one) is type(two)
            assert len(one) == len(two)
            for mine, theirs in zip(one, two, strict=True):
                same(mine, theirs)
        else:
            np.testing.assert_array_equal(one, np.asarray(two))
            assert one.dtype == np.asarray(two).dtype

    same(batch, tree)


DTYPES = [
    *"?bBhHiIlLqQefdFD",
    "datetime64[ns]",
    "timedelta64[s]",
    "S5",
    "U3",
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_gathered_bit_for_bit(dtype: Any) -> None:
    data = np.arange(24).reshape(8, 3).astype(dtype)
    batch = one_batch(bk.from_arrays({"x": data}).shuffle(0))
    order = one_batch(bk.from_arrays({"x": np.arange(8)}).shuffle(0))["x"]
    assert batch["x"].dtype == data.dtype
    assert batch["x"].tobytes() == data[order].tobytes()


def test_structured_rows_and_variable_width_strings_are_gathered() -> None:
    structured = np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", "f8")])
    texts = np.array(["a", "much longer than the others"], np.dtypes.StringDType())
    batch = one_batch(bk.from_arrays({"s": structured, "t": texts}))
    assert batch["s"].tolist() == structured.tolist()
    assert batch["t"].tolist() == texts.tolist()


def test_nothing_of_the_arrays_is_copied_when_the_source_is_made() -> None:
    data = np.zeros((1000, 1000))
    tracemalloc.start()
    pipe = bk.from_arrays({"x": data, "y": data.T})
    loader = bk.Loader(pipe.shuffle(0).batch(2), executor="inline")
    next(iter(loader))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_source_that_is_written_to_later_gives_the_new_values() -> None:
    data = np.zeros(4)
    pipe = bk.from_arrays({"x": data})
    data[:] = 7
    assert one_batch(pipe)["x"].tolist() == [7.0] * 4


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"x": np.zeros(3), "y": np.zeros(4)}, "arrays: leaf 'y' has 4 rows, but leaf 'x' has 3"),
        ({"x": np.float32(3)}, "arrays: leaf 'x' is zero-dimensional"),
        (5, "arrays: the only leaf is zero-dimensional"),
        ({}, "arrays: there is no array in {}"),
        ({"x": None}, "arrays: leaf 'x' is None"),
        ({"x": [[1], [1, 2]]}, "arrays: leaf 'x' is a list that NumPy cannot take"),
        ({"x": np.array([object()])}, "arrays: leaf 'x' is a ndarray of Python objects"),
        ({"x": np.ma.masked_array([1, 2], [True, False])}, "leaf 'x' is a masked array, whose mask would be lost"),
    ],
)
def test_arrays_that_are_no_rows_are_refused(tree: Any, message: str) -> None:
    with pytest.raises(bk.SchemaError, match=message):
        bk.from_arrays(tree)


def test_arrays_of_python_strings_become_text() -> None:
    batch = one_batch(bk.from_arrays({"x": np.array(["a", "bcd"], object)}))
    assert batch["x"].tolist() == ["a", "bcd"]
    assert batch["x"].dtype == "U3"


# -- npy and npz


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 255, (50, 4, 4), dtype=np.uint8),
        "label": rng.integers(0, 9, 50),
        "fortran": np.asfortranarray(rng.random((50, 3))),
        "big": rng.random(50).astype(">f4"),
        "text": np.array([f"t{number}" for number in range(50)]),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    return tmp_path


NAMES = ["image", "label", "fortran", "big", "text"]


def check_files(batch: Any, files: Path, names: list[str]) -> None:
    order = batch["label"]
    for name in names:
        saved = np.load(files / f"{name}.npy")
        np.testing.assert_array_equal(batch[name], saved)
    assert len(order) == 50


def test_npy_files_give_their_rows(files: Path) -> None:
    batch = one_batch(bk.from_npy({name: files / f"{name}.npy" for name in NAMES}))
    check_files(batch, files, NAMES)
    assert one_batch(bk.from_npy(str(files / "label.npy"))).tolist() == np.load(files / "label.npy").tolist()


@pytest.mark.parametrize("name", ["plain.npz", "packed.npz"])
def test_npz_files_give_their_rows(files: Path, name: str) -> None:
    check_files(one_batch(bk.from_npz(files / name)), files, NAMES)
    assert list(one_batch(bk.from_npz(files / name, keys=["label", "image"]))) == ["image", "label"]


def test_files_are_mapped_where_they_can_be(files: Path) -> None:
    def is_mapped(source: ArraySource, name: str) -> bool:
        base: Any = source.leaves[source.paths.index(name)]
        while base is not None and not isinstance(base, np.memmap):
            base = getattr(base, "base", None)
        return base is not None

    npy = NpySource({name: files / f"{name}.npy" for name in NAMES})
    assert all(is_mapped(npy, name) for name in NAMES)
    assert all(is_mapped(NpzSource(files / "plain.npz"), name) for name in NAMES)
    assert not any(is_mapped(NpzSource(files / "packed.npz"), name) for name in NAMES)


def test_a_mapped_source_is_sent_as_its_path(files: Path) -> None:
    np.save(files / "large.npy", np.zeros((1000, 1000)))
    for source in (NpySource(files / "large.npy"), NpzSource(files / "plain.npz", ["label"])):
        sent = pickle.dumps(source)
        assert len(sent) < 1000
        assert pickle.loads(sent).fingerprint() == source.fingerprint()


def test_zero_rows_in_a_file_are_no_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.empty((0, 3)))
    with bk.Loader(bk.from_npy(tmp_path / "none.npy").batch(2)) as loader:
        assert list(loader) == []


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) - 40])
    elif how == "truncated in the header":
        path.write_bytes(data[:30])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another format":
        path.write_bytes(b"PNG" + data)
    elif how == "objects":
        np.save(path, np.array([{"a": 1}, None], object), allow_pickle=True)
    elif how == "header not a dict":
        path.write_bytes(data[:10] + b"[" + data[11:])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"is truncated: its header promises int64\[50\], which is 400 bytes, but only 360 follow"),
        ("truncated in the header", "is not a .npy file, or its header is damaged"),
        ("empty", "is not a .npy file, or its header is damaged"),
        ("another format", "is not a .npy file, or its header is damaged"),
        ("header not a dict", "is not a .npy file, or its header is damaged"),
        ("objects", "holds Python objects .*only unpickling could read, and that can run code"),
    ],
)
def test_a_damaged_npy_names_the_file_and_the_mend(files: Path, how: str, message: str) -> None:
    damage(files / "label.npy", how)
    with pytest.raises(bk.CorruptSourceError, match=message) as caught:
        bk.from_npy({"image": files / "image.npy", "label": files / "label.npy"})
    assert str(files / "label.npy") in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["plain.npz", "packed.npz"])
@pytest.mark.parametrize("how", ["truncated", "empty", "another format"])
def test_a_damaged_npz_names_the_file(files: Path, name: str, how: str) -> None:
    data = (files / name).read_bytes()
    (files / name).write_bytes({"truncated": data[:-200], "empty": b"", "another format": b"\x93NUMPY" * 9}[how])
    with pytest.raises(bk.CorruptSourceError, match=r"not a .npz file, or it is damaged or truncated"):
        bk.from_npz(files / name)


@pytest.mark.parametrize("compress", [False, True])
def test_pickled_members_of_an_npz_are_refused(tmp_path: Path, compress: bool) -> None:
    save = np.savez_compressed if compress else np.savez
    save(tmp_path / "o.npz", good=np.arange(2), bad=np.array([{}, None], object))
    with pytest.raises(bk.CorruptSourceError, match=r"o.npz\[bad\] holds Python objects"):
        bk.from_npz(tmp_path / "o.npz")
    assert one_batch(bk.from_npz(tmp_path / "o.npz", keys=["good"]))["good"].tolist() == [0, 1]


def test_flipped_bytes_of_a_packed_npz_are_noticed(files: Path) -> None:
    path = files / "packed.npz"
    data = bytearray(path.read_bytes())
    data[120] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(bk.CorruptSourceError, match=r"packed.npz"):
        bk.from_npz(path)


def test_a_missing_file_is_named_with_what_is_near(files: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lable.npy.*did you mean 'label.npy'"):
        bk.from_npy(files / "lable.npy")
    with pytest.raises(bk.SourceNotFoundError, match="there is no folder"):
        bk.from_npz(files / "nowhere" / "x.npz")


def test_a_missing_member_is_named(files: Path) -> None:
    with pytest.raises(KeyError, match=r"has no array 'lable'; did you mean 'label'\? \(it has: image"):
        bk.from_npz(files / "plain.npz", keys=["lable"])


def test_files_of_different_lengths_are_refused(files: Path) -> None:
    np.save(files / "short.npy", np.arange(3))
    with pytest.raises(bk.SchemaError, match="npy: leaf 'short' has 3 rows, but leaf 'label' has 50"):
        bk.from_npy({"label": files / "label.npy", "short": files / "short.npy"})


# -- sequences


class Squares:
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < 10:
            raise IndexError(index)
        return {"x": index, "square": np.float32(index**2), "name": f"n{index}"}


class Many(Squares):
    asked: ClassVar[list[list[int]]] = []

    def __getitems__(self, indices: list[int]) -> Any:
        self.asked.append(indices)
        return [self[index] for index in indices]


def test_a_sequence_gives_its_rows_in_columns() -> None:
    batch = one_batch(bk.from_sequence(Squares()))
    assert batch["x"].tolist() == list(range(10))
    assert batch["x"].dtype == np.int64
    assert batch["square"].tolist() == [float(x**2) for x in range(10)]
    assert batch["square"].dtype == np.float32
    assert batch["name"].tolist() == [f"n{x}" for x in range(10)]


def fingerprint(rows: Any) -> str:
    return SequenceSource(rows).fingerprint()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2, 3], [1, 2, 4]),
        ([1, 2], [1.0, 2.0]),
        (["a", "b"], ["a", "c"]),
        ([{"a": 1}], [{"b": 1}]),
        ([(1, [2])], [(1, [3])]),
        ([b"a"], [b"b"]),
        ([np.arange(3)], [np.arange(3.0)]),
        ([np.arange(5000)], [np.arange(5000) + 1]),
        ([np.zeros(1 << 22)] * 3 + [np.zeros(3)], [np.zeros(1 << 22)] * 3 + [np.ones(3)]),
    ],
)
def test_the_fingerprint_of_a_list_tells_its_rows_apart(one: list[Any], other: list[Any]) -> None:
    assert fingerprint(one) == fingerprint(list(one))
    assert fingerprint(one) != fingerprint(other)


def test_the_fingerprint_of_a_list_is_of_its_rows_before_any_function_changed_them() -> None:
    rows = [np.zeros(3), np.zeros(3)]
    source, before = SequenceSource(rows), fingerprint(rows)
    rows[0] += 1
    assert source.fingerprint() == before


def test_no_row_of_an_object_is_read_for_its_fingerprint() -> None:
    class Unread(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("read")

    assert fingerprint(Unread([1, 2])).endswith("Unread:2")


def test_objects_in_a_list_count_by_their_type() -> None:
    assert fingerprint([object()]) == fingerprint([object()])
    assert fingerprint([object()]) != fingerprint([None])
    assert fingerprint([]) == fingerprint([])


def test_a_state_of_another_list_is_refused() -> None:
    with bk.Loader(bk.from_sequence([1, 2, 3]).batch(1)) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with bk.Loader(bk.from_sequence([1, 2, 4]).batch(1)) as other, pytest.raises(bk.StateError, match="data"):
        other.load_state_dict(state)


def test_a_sequence_that_can_is_asked_for_many_rows_at_once() -> None:
    Many.asked.clear()
    with bk.Loader(bk.from_sequence(Many()).batch(4), executor="inline") as loader:
        list(loader)
    assert Many.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_rows_may_be_bare_values_tuples_and_lists() -> None:
    assert one_batch(bk.from_sequence([3, 1, 2])).tolist() == [3, 1, 2]
    first, second = one_batch(bk.from_sequence([(1, [1.0, 2.0]), (2, [3.0, 4.0])]))
    assert first.tolist() == [1, 2]
    assert second.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert one_batch(bk.from_sequence([b"ab", b"c"])).tolist() == [b"ab", b"c"]
    assert one_batch(bk.from_sequence([True, False])).dtype == bool


def test_a_function_may_change_the_row_it_is_given() -> None:
    rows = [{"x": number} for number in range(4)]

    def add(row: Any) -> Any:
        row["y"] = row["x"] * 2
        return row

    for _ in range(2):
        assert one_batch(bk.from_sequence(rows).map(add))["y"].tolist() == [0, 2, 4, 6]
    assert rows == [{"x": number} for number in range(4)]


def test_rows_of_varying_shape_may_be_brought_to_one_in_a_map() -> None:
    rows = [np.arange(length) for length in (1, 4, 2)]
    batch = one_batch(bk.from_sequence(rows).map(lambda row: row * 2).map(lambda row: np.resize(row, 4)))
    assert batch.tolist() == [[0, 0, 0, 0], [0, 2, 4, 6], [0, 2, 0, 2]]


class Broken(Squares):
    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise ValueError("bad jpeg")
        return super().__getitem__(index)


def test_a_row_that_cannot_be_read_is_named_and_the_next_step_goes_on() -> None:
    with bk.Loader(bk.from_sequence(Broken()).batch(2)) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(bk.SourceError, match=r"epoch 0, step 1: reading row 3 .*ValueError: bad jpeg") as caught:
            next(iterator)
        assert isinstance(caught.value.__cause__, ValueError)
        assert next(iterator)["x"].tolist() == [4, 5]


@pytest.mark.parametrize(
    ("value", "message"),
    [(iter([1]), "needs an object with __len__"), ({"x": [1]}, "use from_arrays"), ("text", "one row an index")],
)
def test_what_is_no_sequence_is_refused(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        bk.from_sequence(value)


def test_the_schema_of_no_rows_is_an_error() -> None:
    with pytest.raises(bk.SchemaError, match="the sequence is empty"):
        _ = SequenceSource([]).schema


# -- generators


def test_a_generator_is_called_anew_each_epoch_and_never_loaded_whole() -> None:
    pulled: list[int] = []
    started: list[int] = []

    def rows() -> Any:
        started.append(1)
        for number in range(10_000):
            pulled.append(number)
            yield {"x": number}

    with bk.Loader(bk.from_generator(rows).batch(2), prefetch=2, workers=2) as loader:
        for _ in range(2):
            pulled.clear()
            for batch in loader:
                assert batch["x"].tolist() == [0, 1]
                break
            assert len(pulled) <= 2 * (1 + 2 + 2 + 1)
    assert len(started) == 2


def test_whole_batches_keep_their_sizes_and_can_be_cut_anew() -> None:
    def batches() -> Any:
        yield {"x": np.arange(3)}
        yield {"x": np.arange(3, 5)}
        yield {"x": np.arange(5, 9)}

    pipe = bk.from_generator(batches, batched=True)
    with bk.Loader(pipe) as loader:
        assert [batch["x"].tolist() for batch in loader] == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    with bk.Loader(pipe.map(lambda b: {"x": b["x"] * 2}).unbatch().batch(4)) as loader:
        assert [batch["x"].tolist() for batch in loader] == [[0, 2, 4, 6], [8, 10, 12, 14], [16]]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"x": 3}, "batch 0: leaf 'x' is zero-dimensional. With batched=True each item is a whole batch"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, "batch 0: leaf 'y' has 3 rows, another has 2"),
        ({}, "batch 0 is {}, which has no leaf"),
        ({"x": None}, "batch 0: leaf 'x' is None"),
    ],
)
def test_what_is_no_batch_is_refused(item: Any, message: str) -> None:
    with (
        bk.Loader(bk.from_generator(lambda: iter([item]), batched=True)) as loader,
        pytest.raises(bk.SchemaError, match=message),
    ):
        list(loader)


def test_an_iterator_instead_of_a_function_is_refused_with_the_mend() -> None:
    with pytest.raises(TypeError, match=r"from_generator\(rows\), not from_generator\(rows\(\)\)"):
        bk.from_generator(x for x in range(3))
    with pytest.raises(TypeError, match="not a int: it can be neither called nor iterated over"):
        bk.from_generator(3)  # type: ignore[arg-type]


def test_a_function_that_returns_a_used_iterator_is_noticed() -> None:
    rows = ({"x": number} for number in range(4))
    with bk.Loader(bk.from_generator(lambda: rows).batch(2)) as loader:
        assert len(list(loader)) == 2
        with pytest.raises(bk.SourceError, match="returned the same iterator as for the last epoch"):
            list(loader)


def test_a_function_that_returns_no_iterator_is_named() -> None:
    with (
        bk.Loader(bk.from_generator(lambda: 3).batch(2)) as loader,
        pytest.raises(bk.SourceError, match="starting it failed: TypeError: 'int' object is not iterable"),
    ):
        list(loader)


def test_a_generator_cannot_be_shuffled_and_the_message_says_what_to_do() -> None:
    with pytest.raises(bk.PipelineError, match=r"shuffle\(\) cannot follow a generator.*from_sequence"):
        bk.Loader(bk.from_generator(lambda: iter([1])).shuffle().batch(2))


def test_resuming_replays_the_generator_without_calling_functions() -> None:
    called: list[int] = []

    def note(row: Any) -> Any:
        called.append(int(row["x"]))
        return row

    pipe = bk.from_generator(lambda: ({"x": value} for value in range(10))).map(note).batch(2)
    with bk.Loader(pipe, executor="inline") as loader:
        loader.load_state_dict({**loader.state_dict(), "step": 3})
        assert [batch["x"].tolist() for batch in loader] == [[6, 7], [8, 9]]
    assert called == [6, 7, 8, 9]


# -- a source of one's own


class Virtual:
    """A thousand million rows that exist only when they are asked for."""

    schema: ClassVar = {"x": bk.LeafSpec(np.dtype("int64"), (2,))}

    def __len__(self) -> int:
        return 10**9

    def fingerprint(self) -> str:
        return "virtual"

    def gather(self, rows: Any, out: Any = None) -> Any:
        columns = {"x": np.stack([rows, rows * 2], axis=1)}
        if out is None:
            return columns
        out["x"][:] = columns["x"]
        return out


def test_a_source_of_ones_own_is_read_by_row_number() -> None:
    with bk.Loader(bk.from_source(Virtual()).shuffle(0).batch(1000)) as loader:
        batch = next(iter(loader))["x"]
    assert len(set(batch[:, 0].tolist())) == 1000
    assert batch[:, 0].max() > 10**8
    np.testing.assert_array_equal(batch[:, 1], batch[:, 0] * 2)


def test_a_source_that_ignores_out_is_taken_all_the_same() -> None:
    class Ignores(Virtual):
        def gather(self, rows: Any, out: Any = None) -> Any:
            return super().gather(rows)

    with bk.Loader(bk.from_source(Ignores()).batch(3)) as loader:
        assert next(iter(loader))["x"].tolist() == [[0, 0], [1, 2], [2, 4]]


def test_a_source_that_breaks_its_schema_is_named() -> None:
    class Lies(Virtual):
        def gather(self, rows: Any, out: Any = None) -> Any:
            return {"x": np.zeros((len(rows), 3))}

    with (
        bk.Loader(bk.from_source(Lies()).batch(3)) as loader,
        pytest.raises(
            bk.SchemaError, match=r"gather\(\) returned float64\[3, 3\] for leaf 'x', but the schema says int64\[3, 2\]"
        ),
    ):
        list(loader)


def test_a_source_that_raises_is_named_with_its_rows() -> None:
    class Fails(Virtual):
        def gather(self, rows: Any, out: Any = None) -> Any:
            raise OSError("network down")

    with (
        bk.Loader(bk.from_source(Fails()).batch(3)) as loader,
        pytest.raises(bk.SourceError, match=r"step 0: Fails: reading rows \[0, 1, 2\] failed: OSError: network down"),
    ):
        list(loader)


def test_an_object_that_is_no_source_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(TypeError, match=r"from_source\(\): list lacks schema, fingerprint, gather"):
        bk.from_source([1, 2])


def test_a_schema_of_anything_but_leaf_specs_is_refused_by_source_and_leaf() -> None:
    class Bare(Virtual):
        @property
        def schema(self) -> Any:
            return {"x": np.dtype("int64")}

    with pytest.raises(TypeError, match=r"Bare\.schema: leaf 'x' is dtype\('int64'\), not a LeafSpec. Say dtype"):
        bk.Loader(bk.from_source(Bare()).batch(3))
