"""The description: immutable, readable, checked when it is written, and exportable."""

from __future__ import annotations

import functools
import json
import operator
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.stages import STAGES, ColumnStage


def double(row: Any, factor: int = 2) -> Any:
    return {**row, "x": row["x"] * factor}


def jitter(row: Any, rng: Any, scale: float = 1.0) -> Any:
    return {**row, "x": row["x"] + scale * rng.random()}


def data() -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(6.0), "meta": {"id": np.arange(6), "tag": np.array(list("abcdef"))}})


def one_batch(pipe: bk.Pipeline) -> Any:
    with bk.Loader(pipe, executor="inline") as loader:
        return next(iter(loader))


def test_a_verb_returns_a_new_pipeline_and_leaves_the_old_one() -> None:
    pipe = data()
    longer = pipe.shuffle(0).batch(2)
    assert pipe.stages == ()
    assert len(longer.stages) == 2
    with pytest.raises(FrozenInstanceError):
        pipe.source = None  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        longer.stages[0].seed = 3  # type: ignore[attr-defined]


def test_equal_descriptions_are_equal() -> None:
    source = data()
    assert source.shuffle(1).batch(2) == source.shuffle(1).batch(2)
    assert source.shuffle(1).batch(2) != source.shuffle(2).batch(2)


def test_print_shows_every_stage_and_the_row_schema_where_it_changes() -> None:
    pipe = data().shuffle(3).map(double, factor=3).batch(2, remainder="pad").drop("meta/tag")
    name = f"{double.__module__}:double"
    assert str(pipe).splitlines() == [
        "arrays: 6 rows of {x: float64, meta: {id: int64, tag: str}}",
        "  0 shuffle(seed=3)",
        f"  1 map({name}, factor=3)",
        "  2 batch(size=2, remainder='pad') -> {x: float64, meta: {id: int64, tag: str}, mask: bool}",
        "  3 drop(names=('meta/tag',)) -> {x: float64, meta: {id: int64}, mask: bool}",
    ]


def test_print_of_a_failing_function_says_so_instead_of_failing() -> None:
    shown = str(data().map(lambda row: row["y"]).batch(2))
    assert "? (StageError: map(" in shown
    assert "failed on the first row: KeyError: 'y'" in shown


def test_print_of_a_generator_asks_for_no_row() -> None:
    def rows() -> Any:
        raise AssertionError("was started")

    assert str(bk.from_generator(rows).batch(2)).splitlines()[0] == "generator: rows as they come"


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda p: p.batch(0), ValueError, r"batch\(size\) must be at least 1, not 0"),
        (lambda p: p.batch(-3), bk.PipelineError, "at least 1, not -3"),
        (lambda p: p.batch(2.5), TypeError, r"batch\(size\) must be a whole number, not 2.5"),
        (lambda p: p.batch(True), TypeError, "must be a whole number, not True"),
        (lambda p: p.batch("8"), TypeError, "must be a whole number, not '8'"),
        (lambda p: p.batch(2, remainder="dorp"), ValueError, "not 'dorp'; did you mean 'drop'"),
        (lambda p: p.batch(2).batch(2), bk.PipelineError, r"cannot follow batches: add .unbatch\(\)"),
        (lambda p: p.unbatch(), bk.PipelineError, r"unbatch\(\) needs batches"),
        (lambda p: p.take(-1), ValueError, r"take\(count\) must be at least 0, not -1"),
        (lambda p: p.skip(-1), ValueError, r"skip\(count\) must be at least 0, not -1"),
        (lambda p: p.repeat(0), ValueError, r"repeat\(count\) must be at least 1, not 0"),
        (lambda p: p.shuffle(-1), ValueError, r"shuffle\(seed\) must be at least 0, not -1"),
        (lambda p: p.shuffle("a"), TypeError, r"shuffle\(seed\) must be a whole number"),
        (lambda p: p.shuffle(0, reshuffle=1), TypeError, "must be True or False, not 1"),
        (lambda p: p.map(3), TypeError, r"map\(fn\) must be a function or its name 'module:name', not a int"),
        (lambda p: p.map("nowhere:fn"), bk.PipelineError, "cannot import module 'nowhere'"),
        (lambda p: p.map("json:lods"), bk.PipelineError, "module 'json' has no 'lods'; did you mean 'loads'"),
        (lambda p: p.map("json"), bk.PipelineError, "'json' is not of the form 'module:name'"),
        (lambda p: p.random_map(jitter, rng=3), bk.PipelineError, r"random_map\(\) passes rng itself"),
        (lambda p: p.select(), TypeError, r"select\(\) takes one or more leaf names"),
        (lambda p: p.rename(), TypeError, "rename.. maps old names to new ones"),
        (lambda p: p.cast(x="floaty"), ValueError, "no dtype 'floaty'"),
        (lambda p: p.cast(x="object"), ValueError, "holds Python objects"),
        (lambda p: p.apply(double), TypeError, r"apply\(\) needs a Stage, not a function"),
    ],
)
def test_what_cannot_be_right_is_refused_where_it_is_written(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        build(data())
    assert isinstance(caught.value, bk.BatchkitError)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda p: p.select("imgae"), KeyError, "there is no leaf 'imgae'"),
        (lambda p: p.drop("metta"), bk.MissingLeafError, r"no leaf 'metta'"),
        (lambda p: p.rename(xx="y"), bk.MissingLeafError, r"there is no leaf 'xx'.*\(there are: meta/id, meta/tag, x"),
        (lambda p: p.drop("x", "meta"), bk.SchemaError, "leaves no leaf over"),
        (lambda p: p.rename(x="meta"), bk.SchemaError, "would give two leaves the name 'meta'"),
    ],
)
def test_a_leaf_that_is_not_there_is_refused_before_the_first_batch(build: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        bk.Loader(build(data()).batch(2))


def test_select_keeps_these_leaves_in_this_order() -> None:
    batch = one_batch(data().select("meta/id", "x").batch(2))
    assert list(batch) == ["meta", "x"]
    assert list(batch["meta"]) == ["id"]


def test_drop_rename_and_cast_do_as_they_say_before_and_behind_batch() -> None:
    def changed(pipe: bk.Pipeline) -> bk.Pipeline:
        return pipe.drop("meta/tag").rename({"meta/id": "uid"}, x="value").cast({"meta/uid": "int16"}, value="float32")

    for batch in (one_batch(changed(data()).batch(3)), one_batch(changed(data().batch(3)))):
        assert list(batch) == ["value", "meta"]
        assert batch["value"].tolist() == [0.0, 1.0, 2.0]
        assert batch["value"].dtype == np.float32
        assert batch["meta"]["uid"].tolist() == [0, 1, 2]
        assert batch["meta"]["uid"].dtype == np.int16


def test_tuples_are_picked_by_place() -> None:
    pipe = bk.from_arrays((np.arange(4), np.ones(4), np.zeros(4))).batch(4)
    kept = one_batch(pipe.drop("1"))
    assert len(kept) == 2
    assert kept[0].tolist() == [0, 1, 2, 3]
    assert kept[1].tolist() == [0.0] * 4
    with pytest.raises(bk.SchemaError, match="is a place in a tuple and has no name"):
        bk.Loader(pipe.rename({"1": "y"}))


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([1, 300], "uint8", "300 does not fit uint8"),
        ([-1, 3], "uint64", "-1 does not fit uint64"),
        ([1.0, np.nan], "int32", "nan does not fit int32"),
        ([1.0, 1e10], "int32", "10000000000.0 does not fit int32"),
        ([1.0, 1e300], "float32", r"1e\+300 does not fit float32"),
        (["1", "b"], "int32", "invalid literal"),
    ],
)
def test_a_cast_never_changes_a_value_in_silence(values: Any, dtype: str, message: str) -> None:
    pipe = bk.from_arrays({"x": np.array(values)}).cast(x=dtype).batch(2)
    with bk.Loader(pipe) as loader, pytest.raises(bk.SchemaError, match=message):
        list(loader)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "bool", "complex64", "str"])
def test_a_cast_gives_what_numpy_gives(dtype: str) -> None:
    import ml_dtypes

    values = np.array([0.0, 1.0, 2.0, 3.0])
    wanted = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    got = one_batch(bk.from_arrays({"x": values}).cast(x=dtype).batch(4))["x"]
    assert got.dtype == wanted.dtype
    assert got.tolist() == wanted.tolist()


def test_the_mask_of_padding_may_not_clash_with_a_leaf() -> None:
    with pytest.raises(bk.SchemaError, match="adds a leaf 'mask', but there is one"):
        bk.Loader(bk.from_arrays({"mask": np.zeros(3)}).batch(2, remainder="pad"))


def test_padding_of_tuples_and_bare_arrays_adds_the_mask_last() -> None:
    x, y, mask = one_batch(bk.from_arrays((np.arange(1), np.ones(1))).batch(2, remainder="pad"))
    assert (x.tolist(), y.tolist(), mask.tolist()) == ([0, 0], [1.0, 0.0], [True, False])
    values, mask = one_batch(bk.from_arrays(np.arange(1)).batch(2, remainder="pad"))
    assert (values.tolist(), mask.tolist()) == ([0, 0], [True, False])


def test_padding_that_does_not_divide_among_ranks_is_refused() -> None:
    with pytest.raises(bk.PipelineError, match=r"6 does not divide by 4 ranks. Use a size that does, such as 8"):
        bk.Loader(data().batch(6, remainder="pad"), shard=(0, 4))


def test_unbatching_kept_remainders_in_another_order_is_refused() -> None:
    with pytest.raises(bk.PipelineError, match=r"unbatch\(\) cannot number the rows"):
        bk.Loader(data().batch(4).shuffle(0).unbatch().batch(2))


def test_shuffling_endless_rows_is_refused() -> None:
    with pytest.raises(bk.PipelineError, match=r"put shuffle\(\) before repeat\(\)"):
        bk.Loader(data().repeat().shuffle(0).batch(2))


# -- export


def from_disk(tmp_path: Any) -> bk.Pipeline:
    np.save(tmp_path / "x.npy", np.arange(10.0))
    return bk.from_npy({"x": str(tmp_path / "x.npy")})


def test_a_pipeline_survives_json_and_gives_the_same_batches(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_functions.py").write_text(
        "def triple(row, by=3):\n    return {**row, 'x': row['x'] * by}\n"
        "def kept(row):\n    return bool(row['x'] < 40)\n"
        "def twice(row):\n    return [row, row]\n"
        "def long(row):\n    return len(row['x'])\n"
        "def first(row):\n    return [{name: leaf[0] for name, leaf in row.items()}]\n"
        "def jitter(row, rng):\n    return {**row, 'x': row['x'] + rng.random()}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_functions  # type: ignore[import-not-found]

    pipe = (
        from_disk(tmp_path)
        .shuffle(4, reshuffle=False)
        .take(9)
        .skip(1)
        .repeat(2)
        .map(my_functions.triple, by=5)
        .cache(memory="1MB")
        .random_map("my_functions:jitter", seed=3)
        .filter("my_functions:kept")
        .flat_map(my_functions.twice)
        .window(2, stride=1, remainder="keep")
        .pack(8, method="best_fit")
        .drop("segment_ids", "positions")
        .bucket_batch(3, boundaries=[4, 8], length="my_functions:long")
        .unbatch()
        .flat_map("my_functions:first")
        .batch(3, remainder="pad")
        .rename(x="y")
        .cast(y="float32")
        .select("y", "mask")
        .drop("mask")
        .unbatch()
        .padded_batch(3, multiple_of=2)
        .rebatch(2)
    )
    described = json.loads(json.dumps(pipe.to_dict()))
    again = bk.Pipeline.from_dict(described)
    assert again.to_dict() == pipe.to_dict()
    assert [stage.verb for stage in again.stages] == [stage.verb for stage in pipe.stages]
    assert {stage.verb for stage in pipe.stages} == set(STAGES)
    with bk.Loader(pipe) as one, bk.Loader(again) as two:
        for first, second in zip(one, two, strict=True):
            np.testing.assert_array_equal(first["y"], second["y"])
        two.load_state_dict(one.state_dict())


def test_a_lambda_runs_and_only_exporting_it_is_refused_with_the_mend(tmp_path: Any) -> None:
    pipe = from_disk(tmp_path).map(lambda row: {"x": row["x"] + 1}).batch(2)
    assert one_batch(pipe)["x"].tolist() == [1.0, 2.0]
    with pytest.raises(bk.PipelineError, match=r"<lambda> cannot be exported.*Move it to the top level of a module"):
        pipe.to_dict()


def test_data_in_memory_cannot_be_exported() -> None:
    with pytest.raises(bk.PipelineError, match=r"over 'arrays' cannot be exported.*np.save.*from_npy"):
        data().batch(2).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"kind": "npyy"}}, "no source kind 'npyy'; did you mean 'npy'"),
        ({"stages": [{"shufle": {}}]}, "no stage 'shufle'; did you mean 'shuffle'"),
        ({"stages": [{"batch": {"sise": 3}}]}, r"batch\(\) has no argument 'sise'; did you mean 'size'"),
        ({"stages": [{"batch": {}}]}, r"batch\(\) needs the argument 'size'"),
        ({"stages": ["batch"]}, r"stages\[0\] must be one verb with its arguments"),
        ({"source": 3}, "a pipeline needs 'source'"),
    ],
)
def test_a_wrong_description_is_refused_by_place(tmp_path: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(bk.BatchkitError, match=message):
        bk.Pipeline.from_dict({**from_disk(tmp_path).to_dict(), **change})


@pytest.mark.parametrize(
    "stage",
    [
        {"map": {"fn": "json:loads"}},
        {"batch": {"size": 2, "collate": "json:loads"}},
        {"bucket_batch": {"size": 2, "boundaries": [4], "length": "json:loads"}},
    ],
)
def test_functions_by_name_are_refused_where_imports_are_not_allowed(tmp_path: Any, stage: Any) -> None:
    described = from_disk(tmp_path).to_dict()
    described["stages"] = [stage]
    with pytest.raises(bk.ConfigError, match="names functions, which would be imported and run: json:loads"):
        bk.Pipeline.from_dict(described, allow_imports=False)
    generator = {"source": {"kind": "generator", "fn": "json:loads"}, "stages": []}
    with pytest.raises(bk.ConfigError, match="json:loads"):
        bk.Pipeline.from_dict(generator, allow_imports=False)


class Brighter(ColumnStage):
    verb = "brighter"

    def apply(self, columns: Any) -> Any:
        return {**columns, "x": columns["x"] + 100}


def test_a_stage_of_ones_own_works_before_and_behind_batch() -> None:
    for pipe in (data().apply(Brighter()).batch(2), data().batch(2).apply(Brighter())):
        assert one_batch(pipe)["x"].tolist() == [100.0, 101.0]
        assert bk.Loader(pipe).schema["x"].dtype == np.float64


# -- randomness


def test_two_random_stages_draw_different_numbers() -> None:
    pipe = (
        data()
        .batch(6)
        .random_map(lambda b, rng: {"a": rng.random()})
        .random_map(lambda b, rng: {**b, "b": rng.random()})
    )
    batch = one_batch(pipe)
    assert not np.isin(batch["a"], batch["b"]).any()


def test_another_seed_or_epoch_draws_other_numbers_and_the_same_draws_the_same() -> None:
    def drawn(seed: int, epochs: int = 2) -> list[list[float]]:
        with bk.Loader(data().batch(6).random_map(lambda b, rng: {"a": rng.random()}, seed=seed)) as loader:
            return [next(iter(loader))["a"].tolist() for _ in range(epochs)]

    assert drawn(0) == drawn(0)
    numbers = drawn(0) + drawn(1)
    assert len({tuple(one) for one in numbers}) == 4
    assert len(set(functools.reduce(operator.iadd, numbers, []))) == 24


def test_the_passes_of_repeat_draw_different_numbers() -> None:
    pipe = data().repeat(2).random_map(jitter).batch(12)
    values = one_batch(pipe)["x"] - np.tile(np.arange(6.0), 2)
    assert len(set(values.tolist())) == 12


def test_the_global_generators_change_nothing_and_are_not_changed() -> None:
    import random

    def drawn() -> list[float]:
        pipe = data().shuffle(0).random_map(jitter).batch(6)
        return one_batch(pipe)["x"].tolist()  # type: ignore[no-any-return]

    np.random.seed(1)
    random.seed(1)
    before = drawn()
    after_numpy, after_python = np.random.random(), random.random()
    np.random.seed(1)
    random.seed(1)
    assert (np.random.random(), random.random()) == (after_numpy, after_python)
    np.random.seed(2)
    random.seed(2)
    assert drawn() == before


def test_the_order_and_the_numbers_are_pinned() -> None:
    pipe = (
        bk.from_arrays({"x": np.arange(10)})
        .shuffle(42)
        .batch(10)
        .random_map(lambda b, rng: {**b, "r": rng.integers(0, 1000)})
    )
    with bk.Loader(pipe) as loader:
        first, second = [(batch["x"].tolist(), batch["r"].tolist()) for _ in range(2) for batch in loader]
    assert first == GOLDEN[0]
    assert second == GOLDEN[1]


GOLDEN: list[tuple[list[int], list[int]]] = [
    ([5, 3, 9, 8, 7, 2, 0, 1, 6, 4], [222, 983, 668, 480, 567, 687, 592, 841, 327, 250]),
    ([3, 9, 4, 1, 7, 5, 6, 0, 8, 2], [271, 951, 197, 718, 410, 132, 464, 506, 923, 452]),
]
