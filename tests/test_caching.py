"""cache(): what it gives, that it is shared and kept, and that nothing wrong is ever served."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from executors import EXECUTORS
from hypothesis import given
from hypothesis import strategies as some

import batchkit as bk
from batchkit.caching import DiskStore, MemoryStore, identity
from batchkit.caching import files as caching_files
from batchkit.caching import folder as caching_folder
from batchkit.caching import records as caching_records
from batchkit.caching.lock import locked
from batchkit.cli import main

ROWS = 23
X = np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)


class Counted:
    """A function that doubles, and counts its calls. It is told from others by its factor alone."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def __call__(self, row: Any) -> Any:
        CALLS.append(row["n"])
        return {**row, "y": row["x"] * self.factor}


CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@pytest.fixture(params=["memory", "disk"])
def where(request: Any, tmp_path: Path) -> Any:
    """Where rows are kept: the argument of cache()."""
    return None if request.param == "memory" else tmp_path / "kept"


def data() -> bk.Pipeline:
    return bk.from_arrays({"n": np.arange(ROWS), "x": X})


def epochs(pipe: bk.Pipeline, count: int = 1, **options: Any) -> list[list[Any]]:
    options = {"executor": "inline", **options}
    if options["executor"] in ("threads", "processes"):
        options.setdefault("workers", 2)
    with bk.Loader(pipe, **options) as loader:
        return [list(loader) for _ in range(count)]


def assert_same(got: Any, wanted: Any) -> None:
    """Compare epochs, batches or trees: structure, dtypes, shapes and bytes."""
    assert type(got) is type(wanted)
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    else:
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert got.tobytes() == wanted.tobytes()


def only(path: Path) -> Path:
    """Return the folder of the only cache."""
    (folder,) = (entry for entry in path.iterdir() if entry.is_dir())
    return folder


# -- what it gives


def jitter(row: Any, rng: Any) -> Any:
    return {**row, "r": rng.random()}


def noise(batch: Any, rng: Any) -> Any:
    return {**batch, "r": rng.normal(size=2)}


def words(row: Any) -> Any:
    return {
        "n": row["n"],
        "word": "ab" * int(row["n"] % 4),
        "raw": bytes([65 + int(row["n"])]),
        "many": np.array(["é"]),
    }


def ragged() -> bk.Pipeline:
    lengths = np.arange(ROWS) % 5
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return bk.from_ragged({"t": np.arange(offsets[-1], dtype=np.int32)}, offsets, {"n": np.arange(ROWS)})


def tall(row: Any) -> Any:
    return {"n": row["n"], "a": np.full((int(row["n"]) % 3, 1 + int(row["n"]) % 2), row["n"], np.int16)}


def nested(row: Any) -> Any:
    return {
        "b": (row["x"], {"c": row["n"] > 3}),
        "a": 1.5,
        "z": np.zeros((0, 2)),
        "t": np.datetime64("2020-01-01", "D"),
    }


def half(row: Any) -> Any:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return {"h": row["x"].astype(np.float16), "b": row["x"].astype(ml_dtypes.bfloat16)}


def tokens(batch: Any) -> Any:
    return {"n": batch["n"], "t": bk.Ragged(batch["t"].values * 2, batch["t"].offsets)}


class Case(NamedTuple):
    before: Callable[[], bk.Pipeline]
    behind: Callable[[bk.Pipeline], bk.Pipeline]


def batched(pipe: bk.Pipeline) -> bk.Pipeline:
    return pipe.batch(5)


twice = lambda row: {**row, "y": row["x"] * 2}  # noqa: E731  # by value, too
PAIRS = np.zeros(ROWS, [("u", "<i2"), ("v", "<f4", (2,))])
PAIRS["u"] = np.arange(ROWS)

CASES = {
    "columns": Case(data, batched),
    "a function on rows": Case(lambda: data().map(Counted()), batched),
    "shuffled behind": Case(data, lambda pipe: pipe.shuffle(3).batch(5)),
    "random behind": Case(lambda: data().map(twice), lambda pipe: pipe.shuffle(3).random_map(jitter).batch(5)),
    "random behind batch": Case(data, lambda pipe: pipe.batch(5, remainder="pad").random_map(noise)),
    "repeated before": Case(lambda: data().repeat(2), lambda pipe: pipe.random_map(jitter).batch(5)),
    "repeated behind": Case(lambda: data().take(3), lambda pipe: pipe.repeat(4).random_map(jitter).batch(7)),
    "one order for ever": Case(lambda: data().shuffle(2, reshuffle=False).skip(2).take(9), batched),
    "text": Case(lambda: data().map(words), batched),
    "text in columns": Case(lambda: bk.from_arrays({"s": np.array(["a", "bcd", ""] * 5)}), batched),
    "ragged": Case(ragged, lambda pipe: pipe.shuffle(1).padded_batch(4, lengths=True)),
    "ragged functions": Case(lambda: ragged().map(lambda row: {"t": row["t"] + 1}), lambda pipe: pipe.padded_batch(4)),
    "several axes": Case(lambda: data().map(tall), lambda pipe: pipe.shuffle(1).padded_batch(4, length={"a": [4, 4]})),
    "rows alike, padded": Case(lambda: data().map(Counted()), lambda pipe: pipe.padded_batch(4, multiple_of=8)),
    "nested": Case(lambda: data().map(nested), batched),
    "small floats": Case(lambda: data().map(half), batched),
    "structured": Case(lambda: bk.from_arrays({"p": PAIRS}), batched),
    "a sequence": Case(lambda: bk.from_sequence([{"i": i, "f": i / 2, "w": "x" * i} for i in range(9)]), batched),
    "unbatched": Case(lambda: data().batch(4).map(lambda b: {"n": b["n"] * 2}).unbatch(), batched),
    "twice": Case(lambda: data().map(Counted()).cache(), lambda pipe: pipe.map(Counted()).cache().batch(5)),
    "no rows": Case(lambda: data().take(0), batched),
    "batches": Case(lambda: data().batch(5).map(lambda b: {"s": b["x"].sum(axis=1)}), lambda pipe: pipe),
    "padded batches": Case(
        lambda: data().batch(5, remainder="pad"), lambda pipe: pipe.shuffle(2).random_map(noise).repeat(2)
    ),
    "repeated batches": Case(lambda: data().batch(5).repeat(2), lambda pipe: pipe.random_map(noise)),
    "ragged batches": Case(
        lambda: ragged().batch(5).map(tokens), lambda pipe: pipe.map(lambda b: {"s": b["t"].padded(9)})
    ),
    "text batches": Case(lambda: data().map(words).batch(5), lambda pipe: pipe),
    "batches taken apart": Case(lambda: data().batch(5), lambda pipe: pipe.unbatch().shuffle(4).batch(3)),
    "narrow": Case(lambda: data().map(Counted()).select("n"), lambda pipe: pipe.batch(4).cast(n="int32")),
}


@pytest.mark.parametrize("name", list(CASES))
def test_batches_are_what_they_are_without_a_cache(name: str, where: Any) -> None:
    before, behind = CASES[name]
    wanted = epochs(behind(before()), 3)
    pipe = behind(before().cache(where))
    assert_same(epochs(pipe, 3), wanted)
    assert_same(epochs(pipe, 3), wanted)  # with a path, all is there now


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", ["random behind", "ragged", "text", "a sequence", "batches taken apart"])
def test_every_executor_gives_the_same_batches(name: str, executor: str, where: Any) -> None:
    before, behind = CASES[name]
    wanted = epochs(behind(before()), 2)
    pipe = behind(before().cache(where))
    assert_same(epochs(pipe, 2, executor=executor), wanted)
    assert_same(epochs(pipe, 2, executor=executor), wanted)


@pytest.mark.parametrize("behind_batch", [False, True])
def test_every_rank_gets_its_rows(where: Any, behind_batch: bool) -> None:
    plain = data().shuffle(1, reshuffle=False)
    cached = plain.batch(5).cache(where) if behind_batch else plain.cache(where).batch(5)
    for rank in range(3):
        wanted = epochs(plain.batch(5), 2, shard=(rank, 3))
        assert_same(epochs(cached, 2, shard=(rank, 3)), wanted)


def test_a_function_before_it_is_called_once_a_row(where: Any) -> None:
    epochs(data().map(Counted()).cache(where).shuffle(0).batch(5), 3)
    assert sorted(CALLS) == list(range(ROWS))


def test_on_disk_rows_outlive_the_loader(tmp_path: Path) -> None:
    pipe = data().map(Counted()).cache(tmp_path).shuffle(0).batch(5)
    epochs(pipe)
    CALLS.clear()
    epochs(pipe)
    assert CALLS == []


def test_rows_that_were_not_asked_for_are_not_computed(where: Any) -> None:
    with bk.Loader(data().map(Counted()).cache(where).batch(5), executor="inline") as loader:
        next(iter(loader))
    assert CALLS == [0, 1, 2, 3, 4]


def test_batches_behind_batch_are_computed_once(where: Any) -> None:
    calls = []

    def total(batch: Any) -> Any:
        calls.append(len(batch["n"]))
        return {"s": batch["x"].sum(axis=1)}

    epochs(data().batch(5).map(total).cache(where), 3)
    assert calls == [5, 5, 5, 5, 3]


def test_what_a_caller_does_to_a_batch_does_not_reach_the_cache(where: Any) -> None:
    def spoil(row: Any) -> Any:
        row["x"] *= 0
        return row

    for pipe in (data().cache(where).batch(5), data().cache(where).map(spoil).batch(5), data().batch(5).cache(where)):
        with bk.Loader(pipe, executor="inline") as loader:
            for batch in itertools.chain(loader, loader):
                batch["x"][...] = -1
        plain = data().cache(where).batch(5)
        assert_same(epochs(plain, 2), epochs(data().batch(5), 2))


def test_a_state_goes_on_with_and_without_files_and_elsewhere(tmp_path: Path) -> None:
    def pipe(path: Path) -> bk.Pipeline:
        return data().map(Counted()).cache(path).shuffle(0).random_map(jitter).batch(5)

    whole = epochs(pipe(tmp_path / "a"), 2)
    with bk.Loader(pipe(tmp_path / "a"), executor="inline") as loader:
        list(loader)
        rest = iter(loader)
        next(rest)
        state = json.loads(json.dumps(loader.state_dict()))
    with bk.Loader(pipe(tmp_path / "b"), executor="inline") as other:
        other.load_state_dict(state)
        assert_same(list(other), whole[1][1:])


# -- randomness before it


@pytest.mark.parametrize("stage", ["shuffle", "random_map"])
def test_what_is_random_before_it_is_frozen_as_of_the_first_epoch_with_a_warning(stage: str, where: Any) -> None:
    before = data().shuffle(1) if stage == "shuffle" else data().random_map(jitter)
    with pytest.warns(bk.CacheWarning, match=rf"stage 0 {stage}.*of the first epoch.*Put cache\(\) before"):
        cached = before.cache(where)
    first, second = epochs(before.batch(5), 2)
    with pytest.raises(AssertionError):
        assert_same(first, second)
    assert_same(epochs(cached.batch(5), 2), [first, first])


def test_the_warning_points_at_the_line_that_called_cache() -> None:
    with pytest.warns(bk.CacheWarning) as caught:
        data().shuffle(1).cache()
    assert caught[0].filename == __file__


def test_nothing_is_said_of_an_order_that_never_changes(where: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = epochs(data().shuffle(1, reshuffle=False).cache(where).batch(5), 2)
    assert_same(second, first)
    assert_same([first], epochs(data().shuffle(1, reshuffle=False).batch(5)))


# -- refused


@pytest.mark.parametrize("pipe", [data().repeat().cache().batch(2), data().batch(2).repeat().cache()])
def test_endless_rows_are_refused_with_the_mend(pipe: bk.Pipeline) -> None:
    with pytest.raises(bk.PipelineError, match=r"cannot keep endless rows: put repeat\(\) behind cache\(\)"):
        bk.Loader(pipe)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"memory": 0}, "must be at least 1 byte"),
        ({"memory": "much"}, "must be a number of bytes, or text such as"),
        ({"memory": 1.5}, "must be a number of bytes"),
        ({"path": 3}, "must be text or a Path"),
        ({"path": "x", "memory": "1GB"}, "give path or memory, not both"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: Any, error: str) -> None:
    with pytest.raises(bk.PipelineError, match=error):
        data().cache(**arguments)


def odd_object(row: Any) -> Any:
    return {"o": object() if row["n"] == 7 else row["n"]}


def odd_dtype(row: Any) -> Any:
    return {"o": np.float32(1) if row["n"] == 7 else np.float64(1)}


def odd_axes(row: Any) -> Any:
    return {"o": np.zeros((2,) * (2 if row["n"] == 7 else 1))}


def odd_keys(row: Any) -> Any:
    return {"o": 1} if row["n"] != 7 else {"p": 1}


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (odd_object, r"row 7: leaf 'o', before stage 1 cache\(.*\) is a object"),
        (odd_dtype, r"row 7: leaf 'o' is float32.*row 5 has float64.*before stage 1 cache.*Return one dtype"),
        (odd_axes, r"row 7: leaf 'o' is float64\[2, 2\], but row 5 has float64\[2\]"),
        (odd_keys, r"row 7 has the structure \{p\}, but row 5 has \{o\}, before stage 1 cache"),
    ],
)
def test_rows_that_cannot_be_columns_are_refused_by_name(function: Any, error: str, where: Any) -> None:
    with pytest.raises(bk.SchemaError, match=error):
        epochs(data().map(function).cache(where).batch(5))


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (odd_dtype, r"stage 1 cache\(.*\): leaf 'o' is float32, but float64 in the rows so far"),
        (odd_keys, r"stage 1 cache\(.*\): the rows so far have the leaves \(row, o\)|have the leaves \(o\)"),
    ],
)
def test_so_are_rows_that_are_unlike_those_of_other_batches(function: Any, error: str, where: Any) -> None:
    with pytest.raises(bk.SchemaError, match=error):
        epochs(data().map(function).cache(where).batch(1))


def test_a_named_tuple_is_kept_in_memory_and_refused_on_disk_by_name(tmp_path: Path) -> None:
    class Pair(NamedTuple):
        a: Any
        b: Any

    pipe = data().map(lambda row: Pair(row["n"], row["x"]))
    assert_same(epochs(pipe.cache().batch(5), 2), epochs(pipe.batch(5), 2))
    with pytest.raises(bk.SchemaError, match=r"stage 1 cache\(path=.*rows hold a Pair.*or keep .* in memory"):
        epochs(pipe.cache(tmp_path).batch(5))


# -- in memory


def test_rows_beyond_the_budget_are_computed_each_time_and_a_warning_says_so() -> None:
    row = 8 + 8 + 12 + 12  # address, n, x, y
    pipe = data().map(Counted()).cache(memory=10 * row).batch(5)
    with pytest.warns(bk.CacheWarning, match=r"stage 1 cache\(memory=400\) is full: it holds 10 of 23 rows") as told:
        got = epochs(pipe, 3)
    assert len(told) == 1
    assert sorted(CALLS) == sorted([*range(ROWS), *range(10, ROWS), *range(10, ROWS)])
    assert_same(got, epochs(data().map(Counted()).batch(5), 3))


def test_a_budget_smaller_than_a_row_holds_none() -> None:
    with pytest.warns(bk.CacheWarning, match="holds 0 of 23 rows"):
        got = epochs(data().map(words).cache(memory=1).batch(5), 2)
    assert_same(got, epochs(data().map(words).batch(5), 2))


def test_without_a_budget_half_of_the_free_memory_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [1000]
    monkeypatch.setattr("batchkit.caching.memory.free_memory", lambda: free[0])
    monkeypatch.setattr("batchkit.caching.memory._LOOK_EVERY", 1)
    store = MemoryStore(100, None, "here")
    keep(store, 0)
    free[0] = 507  # somebody else has used it up
    with pytest.warns(bk.CacheWarning, match="here is full"):
        keep(store, 1)
    assert there(store, range(3)) == [True, False, False]


def test_threads_share_what_is_in_memory() -> None:
    pipe = data().map(Counted()).cache().shuffle(0).batch(2)
    assert_same(
        epochs(pipe, 4, executor="threads", workers=4), epochs(data().map(Counted()).cache().shuffle(0).batch(2), 4)
    )


def keep(store: Any, *positions: int, width: int | None = None) -> None:
    rows = [np.full(width or 1, float(position)) for position in positions]
    outline, leaves = caching_records.of_items(rows, positions, "")
    store.write(np.array(positions), outline, leaves)


def there(store: Any, positions: Any) -> list[bool]:
    found = store.take(np.array(list(positions)), lambda column, rows, dtype, shape: np.empty((rows, *shape), dtype))
    for position, row in zip(
        np.array(list(positions))[found.there], found.leaves[0] if found.leaves else (), strict=True
    ):
        assert set(np.asarray(row).tolist()) == {float(position)}
    return found.there.tolist()  # type: ignore[no-any-return]


# -- what tells one cache from another


def test_a_changed_pipeline_is_another_cache(tmp_path: Path) -> None:
    other = X.copy()
    other[11, 1] += 1
    pipes = [
        data().map(Counted()),
        data().map(Counted(3.0)),
        data().take(20).map(Counted()),
        data().map(Counted()).select("n", "x"),
        data().map(Counted()).cast(x="float64"),
        bk.from_arrays({"n": np.arange(ROWS), "x": other}).map(Counted()),
        bk.from_sequence([{"n": row, "x": X[row]} for row in range(ROWS)]).map(Counted()),
        bk.from_sequence([{"n": row, "x": other[row]} for row in range(ROWS)]).map(Counted()),
    ]
    for pipe in pipes:
        CALLS.clear()
        got = epochs(pipe.cache(tmp_path).batch(5))
        assert_same(got, epochs(pipe.batch(5)))
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == len(pipes)
    CALLS.clear()
    epochs(pipes[0].shuffle(1, reshuffle=False).take(3).cache(tmp_path).batch(5))
    assert len(CALLS) == 3
    CALLS.clear()  # it is a value that the function uses
    epochs(pipes[0].cache(tmp_path).shuffle(1).take(3).batch(2))
    assert CALLS == []


def test_a_changed_file_is_another_cache(tmp_path: Path) -> None:
    for value in (0.0, 1.0):
        x = np.arange(5000.0)
        x[4321] += value  # not among the rows that a fingerprint samples
        np.save(tmp_path / "x.npy", x)
        pipe = bk.from_npy({"x": tmp_path / "x.npy"})
        assert_same(epochs(pipe.cache(tmp_path / "kept").batch(500)), epochs(pipe.batch(500)))


MEAN = 1


def helper(x: Any) -> Any:
    return x + MEAN


def uses(x: Any) -> Any:
    return helper(x)


def test_a_function_is_told_by_what_it_does_and_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    def closing(value: Any) -> Any:
        return lambda x, y=1: x + value

    one = closing(np.zeros(3))
    assert identity(one) == identity(closing(np.zeros(3)))
    assert identity(one) != identity(closing(np.ones(3)))
    assert identity(lambda x: x in {"a", "b", "c"}) == identity(lambda x: x in {"a", "b", "c"})
    assert identity(lambda x: [y + 1 for y in x]) != identity(lambda x: [y + 2 for y in x])
    assert identity(lambda x=1: x) != identity(lambda x=2: x)
    before = identity(uses)
    monkeypatch.setattr(sys.modules[__name__], "MEAN", 2)
    assert identity(uses) != before
    monkeypatch.setattr(sys.modules[__name__], "MEAN", 1)
    assert identity(uses) == before
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda x: x)
    assert identity(uses) != before


@pytest.mark.parametrize("changed", ["held", "deeper"])
@pytest.mark.parametrize("how", ["closed over", "default", "argument", "attribute"])
def test_a_module_that_is_held_as_a_value_counts_by_its_file(
    changed: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))

    def found() -> str:
        for name in ("held", "deeper"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        module = importlib.import_module("held")
        return {
            "closed over": lambda: identity(lambda row: row * getattr(module, "K")),  # noqa: B009
            "default": lambda: identity(lambda row, held=module: held.scaled(row)),
            "argument": lambda: identity({"fn": len, "kwargs": {"held": module}}),
            "attribute": lambda: identity(SimpleNamespace(held=module)),
        }[how]()

    (tmp_path / "deeper.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "held.py").write_text("from deeper import twice\nK = 2\ndef scaled(x):\n    return twice(x) * K\n")
    before = found()
    assert found() == before
    path = tmp_path / f"{changed}.py"
    path.write_text(path.read_text().replace("2", "39"))
    assert found() != before


def test_objects_are_told_by_class_and_attributes() -> None:
    assert identity(Counted()) == identity(Counted())
    assert identity(Counted()) != identity(Counted(5.0))
    assert identity([1, 2]) != identity((1, 2)) != identity([[1], 2])
    assert identity({"a": 1}) != identity({"a": 2})
    assert identity(True) != identity(1)
    assert identity(np.float32(1)) != identity(np.float64(1))
    around: list[Any] = [1]
    around.append(around)
    assert identity(around) == identity(around)
    assert identity(threading.Lock()) == identity(threading.Lock())


def test_an_identity_is_the_same_in_every_process() -> None:
    code = (
        "import functools, numpy as np\nfrom batchkit.caching import identity\n"
        "class A:\n    def __init__(self): self.names = {'x', 'y', 'zz'}\n"
        "    def go(self, x): return x in {'p', 'q', 'r'}\n"
        "part = functools.partial(np.sum, axis=0)\n"
        "print(identity(A(), A().go, part, np.add, np.dtype('f4'), lambda x: np.pad(x, 3)))\n"
    )
    found = set()
    for seed in ("1", "2"):
        surroundings = {**os.environ, "PYTHONHASHSEED": seed}
        found.add(subprocess.run([sys.executable, "-c", code], env=surroundings, stdout=-1, check=True).stdout)
    assert len(found) == 1
    assert len(found.pop()) == 33


# -- files


def test_the_files_are_plain_npy_columns(tmp_path: Path) -> None:
    pipe = data().map(lambda row: {"x": row["x"], "meta": {"id": row["n"]}}).cache(tmp_path).shuffle(1).batch(5)
    epochs(pipe)
    folder = only(tmp_path)
    np.testing.assert_array_equal(np.load(folder / "x.npy"), X)
    np.testing.assert_array_equal(np.load(folder / "meta.id.npy"), np.arange(ROWS))
    np.testing.assert_array_equal(np.load(folder / "row.npy"), np.arange(ROWS))
    again = bk.from_npy({"x": folder / "x.npy"}).batch(ROWS)
    np.testing.assert_array_equal(epochs(again)[0][0]["x"], X)


def test_the_values_of_ragged_rows_lie_end_to_end(tmp_path: Path) -> None:
    epochs(ragged().cache(tmp_path).padded_batch(4))
    folder = only(tmp_path)
    index = np.load(folder / "index.npy")
    values = np.load(folder / "t.npy")
    for row, (_, start, length) in enumerate(index.tolist()):
        assert length == row % 5
        first = sum(number % 5 for number in range(row))
        assert values[start : start + length].tolist() == list(range(first, first + length))


def test_leaves_whose_names_are_alike_have_files_of_their_own(tmp_path: Path) -> None:
    pipe = data().map(lambda row: {"a/b": 1, "a": {"b": 2}, "A": {"B": 3}, "index": 4, "row": 5, "é:*": 6, "": 7})
    assert_same(epochs(pipe.cache(tmp_path).batch(5), 2), epochs(pipe.batch(5), 2))


def test_no_lock_and_nothing_half_made_is_left_in_a_cache(tmp_path: Path) -> None:
    epochs(data().cache(tmp_path).batch(5))
    folder = only(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([folder.name, f"{folder.name}.lock"])
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "index.npy",
        "manifest.json",
        "n.npy",
        "row.npy",
        "x.npy",
    ]


# -- damage


def small(path: Path, ragged_rows: bool) -> bk.Pipeline:
    before = ragged().take(6) if ragged_rows else data().take(6)
    return before.cache(path).padded_batch(4) if ragged_rows else before.cache(path).batch(4)


def snapshot(path: Path) -> dict[Path, bytes]:
    return {entry: entry.read_bytes() for entry in sorted(path.rglob("*")) if entry.is_file()}


def restore(files: dict[Path, bytes]) -> None:
    for entry, content in files.items():
        entry.parent.mkdir(exist_ok=True)
        entry.write_bytes(content)


@pytest.mark.parametrize("ragged_rows", [False, True])
def test_a_bit_that_flips_anywhere_never_changes_a_row(tmp_path: Path, ragged_rows: bool) -> None:
    pipe = small(tmp_path, ragged_rows)
    wanted = epochs(pipe)
    files = snapshot(tmp_path)
    for entry, content in files.items():
        step = max(len(content) // 32, 1)  # a bit of some thirty bytes spread over the file
        for place in range(0, len(content), step):
            changed = bytearray(content)
            changed[place] ^= 1 << (place // step) % 8
            entry.write_bytes(changed)
            assert_same(epochs(pipe), wanted)
            assert_same(epochs(pipe), wanted)
        restore(files)


@given(some.data())
def test_damage_of_any_kind_never_changes_a_row(tmp_path_factory: Any, given_data: Any) -> None:
    path = SHARED.setdefault("path", tmp_path_factory.mktemp("damage"))
    pipe = small(path, True)
    wanted = SHARED.setdefault("wanted", epochs(ragged().take(6).padded_batch(4)))
    if "files" not in SHARED:
        epochs(pipe)
        SHARED["files"] = snapshot(path)
    restore(SHARED["files"])
    for _ in range(given_data.draw(some.integers(1, 3))):
        entry = given_data.draw(some.sampled_from(list(SHARED["files"])))
        content = bytearray(entry.read_bytes())
        start = given_data.draw(some.integers(0, len(content)))
        count = given_data.draw(some.integers(0, 40))
        content[start : start + count] = given_data.draw(some.binary(max_size=40))
        entry.write_bytes(content)
    assert_same(epochs(pipe), wanted)
    assert_same(epochs(pipe), wanted)


SHARED: dict[str, Any] = {}


@pytest.mark.parametrize("ragged_rows", [False, True])
def test_a_file_cut_off_at_any_length_never_changes_a_row(tmp_path: Path, ragged_rows: bool) -> None:
    pipe = small(tmp_path, ragged_rows)
    wanted = epochs(pipe)
    files = snapshot(tmp_path)
    for entry, content in files.items():
        for length in range(0, len(content), max(len(content) // 16, 1)):
            entry.write_bytes(content[:length])
            assert_same(epochs(pipe), wanted)
            assert_same(epochs(pipe), wanted)
            restore(files)
        entry.unlink()
        assert_same(epochs(pipe), wanted)
        restore(files)


def test_only_the_damaged_row_is_computed_again_and_it_is_mended(tmp_path: Path) -> None:
    pipe = data().map(Counted()).cache(tmp_path).batch(5)
    wanted = epochs(pipe)
    column = only(tmp_path) / "y.npy"
    content = bytearray(column.read_bytes())
    content[-5] ^= 4
    column.write_bytes(content)
    CALLS.clear()
    assert_same(epochs(pipe), wanted)
    assert CALLS == [ROWS - 1]
    CALLS.clear()
    assert_same(epochs(pipe), wanted)
    assert CALLS == []


def test_a_row_of_another_place_is_not_taken_for_this_one(tmp_path: Path) -> None:
    pipe = data().map(lambda row: {"x": row["x"]}).cache(tmp_path).batch(5)
    wanted = epochs(pipe)
    for entry in only(tmp_path).glob("*.npy"):
        content = entry.read_bytes()
        each = len(np.load(entry)[:1].tobytes())
        entry.write_bytes(content[: -2 * each] + content[-each:] + content[-2 * each : -each])  # two rows change places
    assert_same(epochs(pipe), wanted)


def test_a_cache_of_another_format_is_built_anew(tmp_path: Path) -> None:
    pipe = data().map(Counted()).cache(tmp_path).batch(5)
    wanted = epochs(pipe)
    manifest = only(tmp_path) / "manifest.json"
    content = {key: part for key, part in json.loads(manifest.read_text()).items() if key != "checksum"}
    content["format"] = 99
    content["checksum"] = caching_folder._checksum(content)
    manifest.write_text(json.dumps(content))
    CALLS.clear()
    assert_same(epochs(pipe), wanted)
    assert len(CALLS) == ROWS
    CALLS.clear()
    assert_same(epochs(pipe), wanted)
    assert CALLS == []


def test_a_manifest_cannot_run_code_or_reach_other_files(tmp_path: Path) -> None:
    pipe = data().cache(tmp_path).batch(5)
    epochs(pipe)
    assert all(not name.startswith((".", "/")) and "/" not in name for name in names_in(only(tmp_path)))
    for entry in only(tmp_path).glob("*.npy"):
        np.load(entry, allow_pickle=False)


def names_in(folder: Path) -> list[str]:
    _, outline = caching_folder.read_manifest(folder)
    return caching_files.file_names(outline)


# -- shapes that turn out to vary


def growing(row: Any) -> Any:
    CALLS.append(row["n"])
    return {"n": row["n"], "t": np.arange(4 + max(int(row["n"]) - 14, 0))}


def test_rows_are_taken_along_when_shapes_turn_out_to_vary(where: Any) -> None:
    pipe = data().map(growing).cache(where).padded_batch(5)
    wanted = epochs(data().map(growing).padded_batch(5), 3)
    CALLS.clear()
    assert_same(epochs(pipe, 3), wanted)
    assert sorted(CALLS) == list(range(ROWS))


def test_a_process_that_has_the_old_shapes_open_goes_on_rightly(tmp_path: Path) -> None:
    one, two = (DiskStore(str(tmp_path), "k" * 32, 10, [], "here") for _ in range(2))
    keep(one, 0, 1)
    assert there(two, range(4)) == [True, True, False, False]
    keep(one, 2, width=3)  # in other files now
    assert there(two, range(4)) == [True, True, False, False]
    keep(two, 3)
    assert there(two, range(4)) == [True] * 4
    assert there(one, range(4)) == [True] * 4


# -- several processes, and the end of one

WRITER = """
import sys, time
import numpy as np
import batchkit as bk

def slow(row):
    return {"n": row["n"], "t": np.full(int(row["n"]) % 7, row["n"]), "big": np.full(3000, row["n"])}

pipe = bk.from_arrays({"n": np.arange(300)}).map(slow).cache(sys.argv[1]).shuffle(int(sys.argv[2])).padded_batch(4)
if __name__ == "__main__":
    with bk.Loader(pipe, executor="inline") as loader:
        for batch in loader:
            for place, n in enumerate(batch["n"].tolist()):
                assert (batch["big"][place] == n).all()
                assert batch["t"][place][: n % 7].tolist() == [n] * (n % 7)
            print(batch["n"].tolist(), flush=True)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    (tmp_path / "writer.py").write_text(WRITER)

    def start(seed: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "writer.py"), str(tmp_path / "kept"), str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finished(process: subprocess.Popen[str]) -> list[int]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return sorted(n for line in out.splitlines() for n in json.loads(line))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_writer_that_is_killed_at_any_moment_leaves_nothing_wrong(writer: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    stored = []
    for seed in range(6):
        process = writer(seed)
        for _ in range(int(rng.integers(1, 12))):  # in the midst of writing, when so many batches have come
            process.stdout.readline()
        time.sleep(float(rng.random()) * 0.004)
        process.kill()
        process.communicate()
        (one,) = caching_folder.found(tmp_path / "kept")
        stored.append(caching_folder.described(one).stored)
    assert stored == sorted(stored)  # each goes on where the others were
    assert finished(writer(99)) == list(range(300))
    (one,) = caching_folder.found(tmp_path / "kept")
    assert caching_folder.verified(one) == caching_folder.Damage(one.name, 300, [])


def test_processes_fill_one_cache_together(writer: Any, tmp_path: Path) -> None:
    running = [writer(seed) for seed in range(3)]
    assert [finished(process) for process in running] == [list(range(300))] * 3
    (one,) = caching_folder.found(tmp_path / "kept")
    assert caching_folder.verified(one) == caching_folder.Damage(one.name, 300, [])
    assert [entry.suffix for entry in (tmp_path / "kept").iterdir() if entry.is_file()] == [".lock"]


def test_one_writes_at_a_time_and_who_waits_too_long_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchkit.caching.disk._PATIENCE", 0.01)
    store = DiskStore(str(tmp_path), "k" * 32, 10, [], "here")
    keep(store, 0)
    with locked(caching_folder.lock_of(tmp_path / ("k" * 32)), 1.0) as held:
        assert held
        keep(store, 1)
    assert there(store, range(3)) == [True, False, False]
    keep(store, 1)
    assert there(store, range(3)) == [True, True, False]


def test_worker_processes_fill_one_cache(tmp_path: Path) -> None:
    pipe = data().map(lambda row: {**row, "s": "w" * int(row["n"])}).cache(tmp_path).shuffle(0).batch(3)
    wanted = epochs(data().map(lambda row: {**row, "s": "w" * int(row["n"])}).shuffle(0).batch(3), 2)
    assert_same(epochs(pipe, 2, executor="processes"), wanted)
    (one,) = caching_folder.found(tmp_path)
    assert caching_folder.described(one).stored == ROWS


def test_a_cache_that_is_cleared_meanwhile_is_filled_again(tmp_path: Path) -> None:
    wanted = epochs(data().batch(5), 2)
    with bk.Loader(data().cache(tmp_path).batch(5), executor="inline") as loader:
        first = iter(loader)
        got = [next(first)]
        assert len(caching_folder.clear(tmp_path)) == 1
        got += list(first)
        assert_same([got, list(loader)], wanted)
    (one,) = caching_folder.found(tmp_path)
    assert caching_folder.verified(one).sound


# -- disks that are full or cannot be written to


def test_a_full_disk_is_told_once_and_rows_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = data().map(Counted()).cache(tmp_path).batch(5)
    wanted = epochs(data().map(Counted()).batch(5), 2)
    CALLS.clear()
    real = caching_files._write
    written = [0]

    def write(descriptor: int, offset: int, content: Any) -> None:
        written[0] += 1
        if written[0] > 20:
            raise OSError(28, "No space left on device")
        real(descriptor, offset, content)

    monkeypatch.setattr(caching_files, "_write", write)
    with pytest.warns(
        bk.CacheWarning, match="cannot be written to any more: .*No space left.*computed every time"
    ) as told:
        assert_same(epochs(pipe, 2), wanted)
    assert len(told) == 1
    monkeypatch.undo()
    CALLS.clear()  # it is a value that the function uses
    assert_same(epochs(pipe, 2), wanted)
    (one,) = caching_folder.found(tmp_path)
    assert caching_folder.verified(one) == caching_folder.Damage(one.name, ROWS, [])


def test_a_path_where_nothing_can_be_made_is_an_error_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file", tmp_path / "file" / "in"):
        with pytest.raises(bk.SourceError, match=r"stage 0 cache\(path=.*no cache can be made at .*Give a path"):
            epochs(data().cache(path).batch(5))


def test_a_full_disk_at_the_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, offset: int, content: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching_files, "_write", write)
    with pytest.raises(bk.SourceError, match=r"no cache can be made .*No space left on device"):
        epochs(data().cache(tmp_path).batch(5))


def test_a_complete_cache_on_a_read_only_disk_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = data().map(Counted()).cache(tmp_path).batch(5)
    wanted = epochs(pipe)
    CALLS.clear()
    read_only(monkeypatch)
    assert_same(epochs(pipe), wanted)
    assert CALLS == []


def test_a_part_of_one_is_served_and_the_rest_computed_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = data().map(Counted()).cache(tmp_path).batch(5)
    with bk.Loader(pipe, executor="inline") as loader:
        next(iter(loader))
    CALLS.clear()
    read_only(monkeypatch)
    with pytest.warns(bk.CacheWarning, match="Read-only"):
        got = epochs(pipe)
    assert list(range(5, ROWS)) == CALLS
    assert_same(got, epochs(data().map(Counted()).batch(5)))


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the system refuse to open any file for writing, as one does that is mounted so."""
    real = os.open

    def refusing(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refusing)


# -- rows that are left out


def broken(row: Any) -> Any:
    CALLS.append(row["n"])
    if row["n"] in (3, 4, 11):
        raise ValueError("broken")
    return {"n": row["n"], "x": row["x"]}


@pytest.mark.parametrize("size", [1, 5])
def test_rows_that_fail_are_left_out_and_tried_again_in_every_epoch(where: Any, size: int) -> None:
    plain = data().map(broken)
    options: dict[str, Any] = {"on_error": bk.Skip(budget=10), "executor": "inline"}
    if size == 1:  # a batch of which nothing is left is an error, with a cache and without
        with (
            bk.Loader(plain.cache(where).batch(1), **options) as loader,
            pytest.raises(bk.StageError, match="every row"),
        ):
            list(loader)
        return
    with bk.Loader(plain.batch(size), **options) as loader:
        wanted = [list(loader), list(loader)]
        skipped = loader.skipped
    with bk.Loader(plain.cache(where).batch(size), **options) as loader:
        assert_same([list(loader), list(loader)], wanted)
        assert loader.skipped == skipped == 6
    CALLS.clear()
    with bk.Loader(plain.cache(where).repeat(2).random_map(jitter).batch(size), **options) as cached:
        got = list(cached)
    with bk.Loader(plain.repeat(2).random_map(jitter).batch(size), **options) as loader:
        assert_same(got, list(loader))


def test_a_batch_with_rows_left_out_is_not_kept(where: Any) -> None:
    options: dict[str, Any] = {"on_error": bk.Skip(budget=10), "executor": "inline"}
    with bk.Loader(data().map(broken).batch(5).cache(where), **options) as loader:
        assert [len(batch["n"]) for batch in loader] == [3, 5, 4, 5, 3]
        assert [len(batch["n"]) for batch in loader] == [3, 5, 4, 5, 3]
        assert loader.skipped == 6


# -- the command line


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["cache", *arguments])


def test_the_command_line_lists_verifies_and_clears(tmp_path: Path) -> None:
    epochs(data().map(words).cache(tmp_path).batch(5))
    epochs(data().take(4).cache(tmp_path).batch(5))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    listed = run("list", str(tmp_path))
    assert listed.exit_code == 0
    assert "23 of 23 rows" in listed.output
    assert "4 of 4 rows" in listed.output
    assert "source arrays -> map(" in listed.output
    assert [one["stored"] for one in json.loads(run("list", str(tmp_path), "--json").output)] in ([23, 4], [4, 23])
    assert run("verify", str(tmp_path)).exit_code == 0
    cleared = run("clear", str(tmp_path))
    assert cleared.exit_code == 0
    assert cleared.output.count("removed ") == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "notes.txt"]
    assert "no cache under" in run("list", str(tmp_path)).output


def test_verify_names_damaged_rows_and_exits_with_1(tmp_path: Path) -> None:
    epochs(data().cache(tmp_path).batch(5))
    column = only(tmp_path) / "x.npy"
    whole = column.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    column.write_bytes(changed)
    report = run("verify", str(tmp_path))
    assert (report.exit_code, "damaged: 1 of 23 rows: 22" in report.output) == (1, True)
    column.write_bytes(whole[:-1])
    report = run("verify", str(tmp_path), "--json")
    assert (report.exit_code, "wrong size" in json.loads(report.output)[0]["problem"]) == (1, True)
    (only(tmp_path) / "manifest.json").write_text("{}")
    report = run("verify", str(tmp_path))
    assert (report.exit_code, "manifest.json cannot be used" in report.output) == (1, True)
    assert "damaged: " in run("list", str(tmp_path)).output
    assert run("clear", str(tmp_path)).exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_clear_takes_away_what_a_killed_process_left_half_made(tmp_path: Path) -> None:
    (tmp_path / f"{'a' * 32}.x1_y.part").mkdir()
    assert run("clear", str(tmp_path)).exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    for command in ("list", "verify", "clear"):
        report = run(command, str(tmp_path / "none"))
        assert (report.exit_code, "there is no folder" in report.output) == (1, True)


def test_rows_just_written_are_taken_along_where_another_leaf_comes_to_vary(tmp_path: Path) -> None:
    def made(row: Any) -> Any:
        CALLS.append(row["n"])
        return {"a": np.arange(row["n"] % 3), "b": np.arange(2 + row["n"] // 9)}

    pipe = data().map(made).cache(tmp_path).padded_batch(3)
    got = epochs(pipe)
    assert_same(got, epochs(data().map(made).padded_batch(3)))
    CALLS.clear()
    with bk.Loader(pipe, executor="inline") as loader:
        list(loader)
        CALLS.clear()
        assert_same([list(loader)], got)
    assert not CALLS


def test_in_a_config_the_path_starts_at_the_files_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    content = {"source": {"kind": "npy", "path": "x.npy"}, "stages": [{"cache": "kept"}, {"batch": 5}]}
    (tmp_path / "c.json").write_text(json.dumps({"pipeline": content, "loader": {"executor": "inline"}}))
    with bk.load(tmp_path / "c.json") as loader:
        np.testing.assert_array_equal(np.concatenate(list(loader)), X)
    assert only(tmp_path / "kept").is_dir()


def test_a_description_writes_nothing(tmp_path: Path) -> None:
    pipe = data().cache(tmp_path / "kept").batch(5)
    bk.Loader(pipe, executor="inline").close()
    assert "cache(path=" in repr(pipe)
    assert not (tmp_path / "kept").exists()
