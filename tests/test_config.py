"""Config files: what they say, what beats them, and what is said of a wrong one."""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batchkit as bk
from batchkit.config import ConfigNotFoundError, json_schema, load, parse_assignment
from batchkit.config.keys import LOADER
from batchkit.config.schema import LIMITS
from batchkit.stages import STAGES

ROWS = 20
X = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3)
Y = np.arange(ROWS, dtype=np.int64)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOADER:
        monkeypatch.delenv(f"BATCHKIT_{name.upper()}", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with two .npy files; what is imported from it is forgotten afterwards."""
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def pipeline(*stages: Any, **source: Any) -> dict[str, Any]:
    return {
        "source": source or {"kind": "npy", "path": {"x": "x.npy", "y": "y.npy"}},
        "stages": list(stages) or [{"batch": {"size": 8}}],
    }


def save(folder: Path, content: Any, name: str = "config.json") -> Path:
    """Write a config: text as it is, anything else as JSON."""
    path = folder / name
    path.write_text(textwrap.dedent(content) if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def problem(path: Path | dict[str, Any], **options: Any) -> str:
    """Return what is said of a config that is not valid."""
    with pytest.raises(bk.ConfigError) as caught:
        load(path, **options)
    return str(caught.value)


def rows_of(loader: bk.Loader, leaf: str = "y") -> list[list[int]]:
    with loader:
        return [batch[leaf].tolist() for batch in loader]


# --- the three formats

YAML = """
    pipeline:
      source: {kind: npy, path: {x: x.npy, y: y.npy}}
      stages:
        - shuffle: {seed: 3}
        - batch: {size: 8, remainder: drop}
    loader: {backend: numpy, executor: inline, prefetch: 1}
"""
TOML = """
    [pipeline]
    stages = [{shuffle = {seed = 3}}, {batch = {size = 8, remainder = "drop"}}]
    [pipeline.source]
    kind = "npy"
    path = {x = "x.npy", y = "y.npy"}
    [loader]
    backend = "numpy"
    executor = "inline"
    prefetch = 1
"""
JSON = """
    {"pipeline": {"source": {"kind": "npy", "path": {"x": "x.npy", "y": "y.npy"}},
                  "stages": [{"shuffle": {"seed": 3}}, {"batch": {"size": 8, "remainder": "drop"}}]},
     "loader": {"backend": "numpy", "executor": "inline", "prefetch": 1}}
"""


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML), ("a.yml", YAML), ("a.toml", TOML), ("a.JSON", JSON)])
def test_every_format_gives_the_same_loader(folder: Path, name: str, text: str) -> None:
    pipe = bk.from_npy({"x": folder / "x.npy", "y": folder / "y.npy"}).shuffle(3).batch(8, remainder="drop")
    with bk.Loader(pipe, executor="inline") as expected, bk.load(save(folder, text, name)) as loader:
        assert loader.pipeline.to_dict()["stages"] == pipe.to_dict()["stages"]
        assert loader.executor.name == "inline"
        assert loader.prefetch == 1
        for ours, theirs in zip(loader, expected, strict=True):
            np.testing.assert_array_equal(ours["x"], theirs["x"])
            np.testing.assert_array_equal(ours["y"], theirs["y"])


def test_a_dict_is_taken_as_a_file_in_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert rows_of(load({"pipeline": pipeline()})) == [Y[:8].tolist(), Y[8:16].tolist(), Y[16:].tolist()]


def test_an_exported_pipeline_is_a_valid_config(folder: Path) -> None:
    pipe = bk.from_npy({"x": folder / "x.npy", "y": folder / "y.npy"}).shuffle(1, reshuffle=False).skip(1).take(8)
    pipe = pipe.cast(x="float64").rename(x="z").select("z", "y").drop("y").batch(4).repeat(2).unbatch()
    pipe = pipe.map("copy:copy").batch(3, remainder="drop")
    again = load({"pipeline": json.loads(json.dumps(pipe.to_dict()))}).pipeline
    assert again.to_dict() == pipe.to_dict()


def test_a_byte_order_mark_is_no_trouble(folder: Path) -> None:
    path = folder / "a.json"
    path.write_text(json.dumps({"pipeline": pipeline()}), encoding="utf-8-sig")
    assert len(load(path)) == 3


def test_importing_batchkit_imports_neither_pydantic_nor_yaml() -> None:
    code = "import batchkit, sys; print({'pydantic', 'yaml', 'batchkit.config'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- paths


def test_relative_paths_start_at_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "conf").mkdir()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    path = save(folder / "conf", {"pipeline": pipeline(kind="npy", path={"y": "../y.npy"})})
    with load(path) as loader:
        monkeypatch.chdir(folder)  # a loader must not depend on it any more
        assert np.concatenate([batch["y"] for batch in loader]).tolist() == Y.tolist()


def test_one_path_and_a_list_of_paths_are_taken(folder: Path) -> None:
    single = save(folder, {"pipeline": pipeline(kind="npy", path="y.npy")}, "one.json")
    several = save(folder, {"pipeline": pipeline(kind="npy", path=["x.npy", "y.npy"])}, "two.json")
    assert next(iter(load(single))).tolist() == Y[:8].tolist()
    assert [leaf.shape for leaf in next(iter(load(several)))] == [(8, 3), (8,)]


def test_an_absolute_path_stays(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = save(tmp_path_factory.mktemp("other"), {"pipeline": pipeline(kind="npy", path=str(folder / "y.npy"))})
    assert len(load(path)) == 3


def test_missing_data_are_no_error_of_the_config(folder: Path) -> None:
    path = save(folder, {"pipeline": pipeline(kind="npy", path="z.npy")})
    with pytest.raises(bk.SourceNotFoundError, match=re.escape(str(folder / "z.npy"))):
        load(path)


# --- stages in short forms


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("shuffle", {"shuffle": {}}),
        ({"shuffle": None}, {"shuffle": {}}),
        ({"shuffle": 3}, {"shuffle": {"seed": 3}}),
        ({"take": 5}, {"take": {"count": 5}}),
        ({"select": "x"}, {"select": {"names": ["x"]}}),
        ({"select": ["x", "y"]}, {"select": {"names": ["x", "y"]}}),
        ({"drop": {"names": "x"}}, {"drop": {"names": ["x"]}}),
        ({"rename": {"y": "label"}}, {"rename": {"names": {"y": "label"}}}),
        ({"cast": {"y": "int32"}}, {"cast": {"dtypes": {"y": "int32"}}}),
        ({"map": "functions_here:same"}, {"map": {"fn": "functions_here:same"}}),
    ],
)
def test_a_stage_may_be_written_short(folder: Path, short: Any, whole: Any) -> None:
    save(folder, "def same(row):\n    return row\n", "functions_here.py")
    made = [load(save(folder, {"pipeline": pipeline(stage, {"batch": 4})})).pipeline for stage in (short, whole)]
    assert made[0].stages == made[1].stages


# --- several pipelines

SPLIT = """
    pipelines:
      train:
        source: &digits {kind: npy, path: {y: y.npy}}
        stages: [{skip: 4}, {batch: 8}]
      test:
        source: *digits
        stages: [{take: 4}, {batch: 4}]
"""


@pytest.mark.parametrize(("name", "rows"), [("train", [Y[4:12].tolist(), Y[12:].tolist()]), ("test", [Y[:4].tolist()])])
def test_a_pipeline_is_chosen_by_name(folder: Path, name: str, rows: list[list[int]]) -> None:
    assert rows_of(load(save(folder, SPLIT, "a.yaml"), pipeline=name)) == rows


def test_the_only_pipeline_needs_no_name(folder: Path) -> None:
    assert len(load(save(folder, {"pipelines": {"train": pipeline()}}))) == 3


def test_what_yaml_aliases_share_is_overridden_in_one_place_only(folder: Path) -> None:
    path = save(folder, SPLIT, "a.yaml")
    changed = {"pipeline.source.path": {"y": str(folder / "x.npy")}}
    assert next(iter(load(path, pipeline="train", overrides=changed)))["y"].shape == (8, 3)
    test = {"pipelines.test.source.path": {"y": "nowhere.npy"}}
    assert rows_of(load(path, pipeline="train", overrides=test)) == [Y[4:12].tolist(), Y[12:].tolist()]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            {"pipelines": {"train": pipeline(), "test": pipeline()}},
            None,
            "pipelines: choose one by name with pipeline=",
        ),
        (
            {"pipelines": {"train": pipeline(), "test": pipeline()}},
            "trian",
            "pipelines: there is no pipeline 'trian'; did you mean 'train'? (there are: train, test)",
        ),
        (
            {"pipeline": pipeline()},
            "train",
            "pipeline 'train' was asked for, but the file has only one, without a name",
        ),
        (
            {"pipeline": pipeline(), "pipelines": {"a": pipeline()}},
            None,
            "give either 'pipeline' or 'pipelines', not both",
        ),
        ({"loader": {}}, None, "give either 'pipeline' or 'pipelines', one of them is needed"),
    ],
)
def test_a_pipeline_that_is_not_clear_is_an_error(folder: Path, content: Any, name: str | None, message: str) -> None:
    assert message in problem(save(folder, content), pipeline=name)


# --- precedence


@pytest.mark.parametrize(
    ("file", "environment", "override", "expected"),
    [
        (None, None, None, 2),
        (3, None, None, 3),
        (3, "4", None, 4),
        (None, "4", None, 4),
        (3, "4", 5, 5),
        (3, None, 5, 5),
        (3, "", None, 3),
    ],
)
def test_override_beats_environment_beats_file_beats_default(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: int | None,
    environment: str | None,
    override: int | None,
    expected: int,
) -> None:
    content = {"pipeline": pipeline(), "loader": {} if file is None else {"prefetch": file}}
    if environment is not None:
        monkeypatch.setenv("BATCHKIT_PREFETCH", environment)
    with load(save(folder, content), prefetch=override) as loader:
        assert loader.prefetch == expected


def test_another_executor_is_one_word_whatever_the_workers(folder: Path) -> None:
    content = {"pipeline": pipeline(), "loader": {"executor": "threads", "workers": 3}}
    with load(save(folder, content), executor="inline") as loader:
        assert (loader.executor.name, loader.workers) == ("inline", 0)
    with load(save(folder, content), executor="processes") as loader:
        assert (loader.executor.name, loader.workers) == ("processes", 3)


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("BACKEND", "numpy", lambda loader: loader.backend.name == "numpy"),
        ("EXECUTOR", "inline", lambda loader: loader.executor.name == "inline"),
        ("WORKERS", "3", lambda loader: loader.workers == 3),
        ("PREFETCH", "0", lambda loader: loader.prefetch == 0),
        ("SHARD", "1/2", lambda loader: loader.shard == (1, 2)),
        ("SHARD", "[1, 2]", lambda loader: loader.shard == (1, 2)),
        ("DEVICE", "cpu", lambda loader: loader.device is None),
        ("NARROW", "error", lambda loader: True),
    ],
)
def test_every_option_can_be_given_in_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, read: Any
) -> None:
    monkeypatch.setenv(f"BATCHKIT_{name}", text)
    with load(save(folder, {"pipeline": pipeline()})) as loader:
        assert read(loader)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("WORKERS", "many", "BATCHKIT_WORKERS: should be a valid integer or 'auto', not 'many'"),
        ("WORKERS", "0", "BATCHKIT_WORKERS: should be greater than or equal to 1 or 'auto', not '0'"),
        ("PREFETCH", "-1", "BATCHKIT_PREFETCH: should be greater than or equal to 0 or 'auto', not '-1'"),
        ("SHARD", "2/2", "BATCHKIT_SHARD: should be [rank, world] or 'rank/world' with 0 <= rank < world, not '2/2'"),
        ("NARROW", "maybe", "BATCHKIT_NARROW: should be 'checked' or 'error', not 'maybe'"),
        ("BACKEND", "nunpy", "BATCHKIT_BACKEND: no backend 'nunpy'; did you mean 'numpy'?"),
        ("EXECUTOR", "thread", "BATCHKIT_EXECUTOR: no executor 'thread'; did you mean 'threads'?"),
    ],
)
def test_a_wrong_environment_variable_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    monkeypatch.setenv(f"BATCHKIT_{name}", text)
    assert message in problem(save(folder, {"pipeline": pipeline()}))


@pytest.mark.parametrize("shard", [[1, 2], "1/2"])
def test_a_shard_is_written_in_two_ways(folder: Path, shard: Any) -> None:
    path = save(folder, {"pipeline": pipeline({"batch": 20}), "loader": {"shard": shard}})
    assert rows_of(load(path)) == [Y[10:].tolist()]
    assert rows_of(load(path, shard=tuple(shard) if isinstance(shard, list) else shard)) == [Y[10:].tolist()]


def test_an_override_may_be_a_path_or_a_number_of_numpy(folder: Path) -> None:
    changes = {"pipeline.source.path": folder / "y.npy", "pipeline.stages[0].batch.size": np.int64(20)}
    with load(save(folder, {"pipeline": pipeline()}), overrides=changes, shard=(np.int64(0), np.int64(2))) as loader:
        assert [batch.tolist() for batch in loader] == [Y[:10].tolist()]


def test_an_override_that_is_no_plain_value_is_named(folder: Path) -> None:
    told = problem(save(folder, {"pipeline": pipeline()}), overrides={"pipeline.source.path": {"y": object}})
    assert "override pipeline.source.path.y: <class 'object'> is a type" in told


def test_an_override_of_none_leaves_what_is_there(folder: Path) -> None:
    with load(save(folder, {"pipeline": pipeline(), "loader": {"prefetch": 7}}), prefetch=None, device=None) as loader:
        assert loader.prefetch == 7


def test_an_override_may_be_an_object(folder: Path) -> None:
    backend = bk.NumpyBackend()
    with load(save(folder, {"pipeline": pipeline(), "loader": {"backend": "jxa"}}), backend=backend) as loader:
        assert loader.backend is backend


def test_an_unknown_backend_in_an_override_is_an_unknown_name(folder: Path) -> None:
    with pytest.raises(bk.UnknownNameError, match="no backend 'nunpy'; did you mean 'numpy'"):
        load(save(folder, {"pipeline": pipeline()}), backend="nunpy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrokers": 2}, "override loader.wrokers: there is no such key; did you mean 'workers'?"),
        ({"workers": "many"}, "override loader.workers: should be a valid integer or 'auto', not 'many'"),
        ({"shard": (2, 2)}, "override loader.shard: should be [rank, world]"),
        (
            {"overrides": {"loader.prefetch": -1}},
            "override loader.prefetch: should be greater than or equal to 0 or 'auto', not -1",
        ),
        ({"overrides": {"prefetch": 1}}, "override 'prefetch': only loader.* and pipeline.* can be overridden"),
        ({"overrides": {"loader": {}}}, "override 'loader': only loader.* and pipeline.* can be overridden"),
        (
            {"overrides": {"pipeline.stages[4].take": 1}},
            "override 'pipeline.stages[4].take': there is no pipeline.stages[4]",
        ),
        (
            {"overrides": {"pipeline.stages[0].batch.sise": 1}},
            "pipeline.stages[0].batch.sise (override): there is no such key",
        ),
        (
            {"overrides": {"pipeline.stages.1": 1}},
            "override 'pipeline.stages.1': there is no such place in pipeline.stages",
        ),
        ({"overrides": {"pipeline..a": 1}}, "override 'pipeline..a': only loader.* and pipeline.*"),
    ],
)
def test_a_wrong_override_is_named(folder: Path, options: dict[str, Any], message: str) -> None:
    assert message in problem(save(folder, {"pipeline": pipeline()}), **options)


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        ({"pipeline.stages[0].batch.size": 10}, [10, 10]),
        ({"pipeline.stages[0].batch.remainder": "drop"}, [8, 8]),
        ({"pipeline.stages[0].batch": 5}, [5, 5, 5, 5]),
        ({"pipeline.stages[0]": {"batch": 20}}, [20]),
        ({"pipeline.stages": [{"take": 3}, {"batch": 2}]}, [2, 1]),
        ({"pipeline.source.path": "y.npy"}, [8, 8, 4]),
    ],
)
def test_a_place_in_the_pipeline_can_be_overridden(folder: Path, overrides: dict[str, Any], sizes: list[int]) -> None:
    path = save(folder, {"pipeline": pipeline({"batch": 8}, kind="npy", path="x.npy")})
    with load(path, overrides=overrides) as loader:
        assert [len(batch) for batch in loader] == sizes


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("loader.workers=4", ("loader.workers", 4)),
        ("loader.workers=auto", ("loader.workers", "auto")),
        ("loader.shard=1/4", ("loader.shard", (1, 4))),
        ("loader.shard=[1, 4]", ("loader.shard", (1, 4))),
        ("loader.on_error={budget: 5}", ("loader.on_error", {"budget": 5})),
        ("pipeline.source.path=a=b.npy", ("pipeline.source.path", "a=b.npy")),
        ("pipeline.source={kind: npy, path: x.npy}", ("pipeline.source", {"kind": "npy", "path": "x.npy"})),
        ("pipeline.stages[0].shuffle.reshuffle=false", ("pipeline.stages[0].shuffle.reshuffle", False)),
    ],
)
def test_an_assignment_is_read_as_yaml(text: str, parsed: tuple[str, Any]) -> None:
    assert parse_assignment(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "loader.workers",
        "=4",
        "loader.workers=many",
        "loader.shard=[0, 2024-01-01]",
        "loader.on_error={",
        "pipeline.source={",
        "a=!!python/name:os.system",
    ],
)
def test_a_wrong_assignment_is_a_config_error(text: str) -> None:
    with pytest.raises(bk.ConfigError, match="override"):
        parse_assignment(text)


# --- wrong keys and values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pipeline": pipeline(), "loadr": {}}, "loadr: there is no such key; did you mean 'loader'?"),
        ({"pipeline": pipeline(), "backend": "jax"}, "backend: there is no such key; it belongs under 'loader'"),
        ({"pipeline": pipeline(), "stages": []}, "stages: there is no such key; it belongs under 'pipeline'"),
        ({"pipeline": {**pipeline(), "stage": []}}, "pipeline.stage: there is no such key; did you mean 'stages'?"),
        ({"pipeline": {"stages": []}}, "pipeline: the key 'source' is missing"),
        (
            {"pipeline": pipeline(path="x.npy")},
            "pipeline.source.kind: should name a kind of source (concat, generator,",
        ),
        ({"pipeline": pipeline(kind="npyy")}, "pipeline.source.kind: no source 'npyy'; did you mean 'npy'?"),
        (
            {"pipeline": pipeline(kind="npz", pth="x")},
            "pipeline.source.pth: there is no such key; did you mean 'path'?",
        ),
        ({"pipeline": pipeline(kind="npz")}, "pipeline.source: the key 'path' is missing"),
        (
            {"pipeline": pipeline(kind="npy", path={"x": 3})},
            "pipeline.source.path: should be a path, or a mapping of paths",
        ),
        ({"pipeline": pipeline(kind="npz", path="x", keys="a")}, "pipeline.source.keys: should be a valid array"),
        ({"pipeline": pipeline("shufle")}, "pipeline.stages[0].shufle: no stage 'shufle'; did you mean 'shuffle'?"),
        (
            {"pipeline": pipeline("shuffle", {"batch": {"size": 4, "remainderr": "drop"}})},
            "pipeline.stages[1].batch.remainderr: there is no such key; did you mean 'remainder'? "
            "(valid: size, remainder, collate)",
        ),
        ({"pipeline": pipeline({"batch": {}})}, "pipeline.stages[0].batch: the key 'size' is missing"),
        ({"pipeline": pipeline({"batch": "8"})}, "pipeline.stages[0].batch.size: should be a valid integer, not '8'"),
        ({"pipeline": pipeline({"batch": True})}, "pipeline.stages[0].batch.size: should be a valid integer, not True"),
        ({"pipeline": pipeline({"batch": 0})}, "pipeline.stages[0].batch: batch(size) must be at least 1, not 0"),
        (
            {"pipeline": pipeline({"batch": {"size": 8, "remainder": "dorp"}})},
            "pipeline.stages[0].batch: batch(remainder) must be one of 'keep', 'drop' and 'pad', not 'dorp'; "
            "did you mean 'drop'?",
        ),
        (
            {"pipeline": pipeline({"select": ["x", 3]})},
            "pipeline.stages[0].select.names[1]: should be a valid string, not 3",
        ),
        ({"pipeline": pipeline({"cast": {"x": "flaot32"}})}, "pipeline.stages[0].cast: "),
        ({"pipeline": pipeline({"take": 3, "skip": 4})}, "pipeline.stages[0]: should be one verb with its arguments"),
        ({"pipeline": pipeline({"unbatch": 3})}, "pipeline.stages[0].unbatch: takes no arguments, not 3"),
        ({"pipeline": pipeline(7)}, "pipeline.stages[0]: should be one verb with its arguments, not 7"),
        (
            {"pipeline": pipeline({"batch": 2}, {"batch": 2})},
            "pipeline.stages[1].batch: batch(size=2) cannot follow batches",
        ),
        ({"pipeline": []}, "pipeline: should be "),
        ({"pipeline": {"source": "x.npy"}}, "pipeline.source: should be "),
        ({"pipeline": {**pipeline(), "stages": "batch"}}, "pipeline.stages: should be "),
        ({"pipelines": {"a": pipeline(), "b": pipeline("sufle")}}, "pipelines.b.stages[0].sufle: no stage 'sufle'"),
        (
            {"pipeline": pipeline(), "loader": {"devise": "cpu"}},
            "loader.devise: there is no such key; did you mean 'device'?",
        ),
        (
            {"pipeline": pipeline(), "loader": {"backend": "nunpy"}},
            "loader.backend: no backend 'nunpy'; did you mean 'numpy'?",
        ),
        (
            {"pipeline": pipeline(), "loader": {"workers": "4"}},
            "loader.workers: should be a valid integer or 'auto', not '4'",
        ),
        ({"pipeline": pipeline(), "loader": {"shard": "2/2"}}, "loader.shard: should be [rank, world] or 'rank/world'"),
        ({"pipeline": pipeline(), "loader": None}, "loader: should be "),
        ({"pipeline": pipeline(), "plugins": "./a.py"}, "plugins: should be a valid "),
    ],
)
def test_a_wrong_key_or_value_is_told_with_its_place(folder: Path, content: Any, message: str) -> None:
    assert message in problem(save(folder, content))


def test_all_errors_are_reported_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHKIT_WORKERS", "some")
    text = """
        pipeline:
          source: {kind: npy, pth: x.npy}
          stages: [shufle, {batch: {size: 8, remainderr: drop}}, {map: "nowhere:to_be"}]
        loader: {backend: nunpy, prefech: 2}
    """
    path = save(folder, text, "bad.yaml")
    lines = problem(path, prefetch=-1).splitlines()
    assert lines[0] == f"{path} has 9 errors:"
    assert [line[:5] for line in lines[1:]] == [f"  {number}. " for number in range(1, 10)]
    places = [line[5:].partition(": ")[0] for line in lines[1:]]
    assert places == [
        "pipeline.source.pth",
        "pipeline.source",
        "pipeline.stages[0].shufle",
        "pipeline.stages[1].batch.remainderr",
        "pipeline.stages[2].map.fn",
        "loader.prefech",
        "BATCHKIT_WORKERS",
        "override loader.prefetch",
        "loader.backend",
    ]


def test_a_single_error_is_told_in_one_line(folder: Path) -> None:
    path = save(folder, {"pipeline": pipeline("shufle")})
    message = problem(path)
    assert message.startswith(f"{path}: pipeline.stages[0].shufle: no stage 'shufle'")
    assert "\n" not in message


def test_a_pipeline_that_cannot_be_compiled_is_told_with_its_file(folder: Path) -> None:
    path = save(folder, {"pipeline": pipeline({"batch": 8}, {"repeat": 2}, "unbatch", {"batch": 3})})
    assert problem(path).startswith(f"{path}: pipeline: unbatch() cannot number the rows")


# --- files that cannot be read


def test_a_missing_file_is_also_a_file_not_found_error(folder: Path) -> None:
    save(folder, {"pipeline": pipeline()}, "train.json")
    with pytest.raises(
        ConfigNotFoundError, match=r"there is no config file '.*trian.json'.*; did you mean 'train.json'\?"
    ) as caught:
        load(folder / "trian.json")
    assert isinstance(caught.value, (bk.ConfigError, FileNotFoundError))
    assert isinstance(caught.value, FileNotFoundError)


def test_a_home_folder_is_not_expanded_but_explained() -> None:
    assert "'~' is not expanded: use os.path.expanduser()" in problem(Path("~/no_such_config.yaml"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.yaml", b"", "is empty: it needs at least 'pipeline' with a 'source'"),
        ("a.yaml", b"# nothing\n", "is empty"),
        ("a.json", b"{}", "is empty"),
        ("a.toml", b"", "is empty"),
        ("a.json", b"", "is not valid JSON: "),
        ("a.yaml", b"- pipeline\n", "must be a mapping with the key 'pipeline', not a list"),
        ("a.json", b"3", "must be a mapping with the key 'pipeline', not a int"),
        ("a.yaml", b"pipeline: [1\n", "is not valid YAML: line 2, column 1: "),
        ("a.yaml", b"a: 1\n---\nb: 2\n", "is not valid YAML: line 2, column 1: but found another document"),
        ("a.json", b'{"pipeline": ', "is not valid JSON: Expecting value: line 1 column 14"),
        ("a.toml", b"pipeline = \n", "is not valid TOML: "),
        ("a.toml", b"a = 1\na = 2\n", "is not valid TOML: "),
        ("a.yaml", b"a: \xff\xfe\n", "is not text in UTF-8: byte 3 is 0xff"),
        ("a.ini", b"[pipeline]\n", "a config file is named .yaml, .yml, .toml, .json, not '.ini'"),
        ("train", b"x", "a config file is named .yaml, .yml, .toml, .json, not 'without a suffix'"),
        ("a.yaml", b"pipeline: {}\n3: x\n", "the key 3 is not text: put it in quotes"),
        ("a.yaml", b"on: {}\npipeline: {}\n", "the key True is not text: put it in quotes"),
        (
            "a.yaml",
            b"pipeline: 2024-01-01\n",
            "pipeline: 2024-01-01 is a date: if it is meant as text, put it in quotes",
        ),
        (
            "a.toml",
            b"pipeline = 2024-01-01\n",
            "pipeline: 2024-01-01 is a date: if it is meant as text, put it in quotes",
        ),
        (
            "a.yaml",
            b"pipeline:\n  a: 1\n  b: 2\n  a: 3\n",
            "line 4: the key 'a' is already in line 2: take one of them out",
        ),
        ("a.json", b'{"pipeline": {"a": 1, "a": 2}}', "the key 'a' is there 2 times in one object: keep one of them"),
        ("a.yaml", b"a: &a [*a]\n", "has more than 100000 values or 50 levels"),
        ("a.json", b'{"a": ' * 60 + b"1" + b"}" * 60, "has more than 100000 values or 50 levels"),
        ("a.json", b"[" * 100_000, "is not valid JSON: it is nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_why(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert problem(path).startswith(str(path))
    assert message in problem(path)


def test_aliases_that_stand_for_billions_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "has more than 100000 values" in problem(save(tmp_path, "\n".join(lines), "bomb.yaml"))


def test_keys_that_are_there_twice_are_all_reported(tmp_path: Path) -> None:
    message = problem(save(tmp_path, "pipeline: {}\npipeline: {}\nloader: {a: 1, a: 2}\n", "a.yaml"))
    assert "1. line 2: the key 'pipeline' is already in line 1" in message
    assert "2. line 3: the key 'a' is already in line 3" in message


def test_a_merged_key_may_be_replaced(folder: Path) -> None:
    text = """
        pipelines:
          train: &train
            source: {kind: npy, path: {y: y.npy}}
            stages: [{batch: 8}]
          test:
            <<: *train
            stages: [{batch: 4}]
    """
    assert len(load(save(folder, text, "a.yaml"), pipeline="test")) == 5


def test_a_folder_is_no_config_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    assert "cannot be read: " in problem(tmp_path / "a.yaml")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | st.text(alphabet="{}[]&*!<>|:,- \n'\"#%@a1.=~?", max_size=60).map(str.encode))
@pytest.mark.parametrize("suffix", ["yaml", "toml", "json"])
def test_no_content_gives_another_error(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    with pytest.raises(bk.ConfigError):
        load(path)


# --- functions and plugins


def test_a_function_beside_the_file_is_found(folder: Path) -> None:
    save(
        folder,
        "import helper_here\ndef double(batch):\n    return {'y': helper_here.two * batch['y']}\n",
        "functions_here.py",
    )
    save(folder, "two = 2\n", "helper_here.py")
    path = save(folder, {"pipeline": pipeline({"batch": 20}, {"map": "functions_here:double"})})
    assert rows_of(load(path)) == [(2 * Y).tolist()]
    assert str(folder) not in sys.path


def test_functions_take_arguments_from_the_file(folder: Path) -> None:
    save(folder, "def plus(batch, number):\n    return {'y': batch['y'] + number}\n", "functions_here.py")
    stage = {"map": {"fn": "functions_here:plus", "kwargs": {"number": 7}}}
    assert rows_of(load(save(folder, {"pipeline": pipeline({"batch": 20}, stage)}))) == [(Y + 7).tolist()]


@pytest.mark.parametrize("kind", ["generator", "sequence"])
def test_a_source_may_be_a_function(folder: Path, kind: str) -> None:
    save(folder, "def rows(count):\n    return [{'y': number} for number in range(count)]\n", "functions_here.py")
    source = {"kind": kind, "fn": "functions_here:rows", "kwargs": {"count": 5}}
    assert rows_of(load(save(folder, {"pipeline": pipeline({"batch": 3}, **source)}))) == [[0, 1, 2], [3, 4]]


def test_a_source_function_that_fails_is_named(folder: Path) -> None:
    save(folder, "def rows():\n    return 1 / 0\n", "functions_here.py")
    path = save(folder, {"pipeline": pipeline(kind="sequence", fn="functions_here:rows")})
    with pytest.raises(bk.SourceError, match=r"pipeline.source failed: ZeroDivisionError: division by zero") as caught:
        load(path)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "functions_here:dubble",
            "the function 'functions_here:dubble': module 'functions_here' has no 'dubble'; did you mean",
        ),
        ("functions_hree:double", "there is no module 'functions_hree', neither installed nor in "),
        ("functions_here:NUMBER", "is a int, not a function"),
        ("functions_here", "should be the name of a function as 'module:name', not 'functions_here'"),
        ("./functions_here.py:double", "should be the name of a function as 'module:name'"),
        ("failing_here:f", "module 'failing_here' cannot be imported: ZeroDivisionError: division by zero"),
        ("importing_here:f", "module 'importing_here' cannot be imported: No module named 'nowhere_to_be_found'"),
    ],
)
def test_a_function_that_is_not_there_is_named(folder: Path, name: str, message: str) -> None:
    save(folder, "NUMBER = 3\ndef double(batch):\n    return batch\n", "functions_here.py")
    save(folder, "1 / 0\n", "failing_here.py")
    save(folder, "import nowhere_to_be_found\n", "importing_here.py")
    told = problem(save(folder, {"pipeline": pipeline({"map": name})}))
    assert "pipeline.stages[0].map.fn: " in told
    assert message in told


def test_a_function_is_never_taken_from_another_file_of_that_name(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        save(folder / name, f"def f(row):\n    return '{name}'\n", "functions_here.py")
    content = {"pipeline": pipeline({"map": "functions_here:f"}, {"batch": 2}, kind="npy", path="../y.npy")}
    load(save(folder / "one", content))
    assert "'functions_here' was imported from" in problem(save(folder / "two", content))


SPY = "raise AssertionError('this ran')\n"


@pytest.mark.parametrize(
    "content",
    [
        {"pipeline": pipeline({"map": "spy_here:f"})},
        {"pipeline": pipeline({"random_map": {"fn": "spy_here:f"}})},
        {"pipeline": pipeline(kind="generator", fn="spy_here:f")},
        {"pipeline": pipeline(kind="sequence", fn="spy_here:f")},
        {"pipeline": pipeline(), "plugins": ["./spy_here.py"]},
        {"pipeline": pipeline(), "plugins": ["spy_here"]},
    ],
)
def test_without_imports_a_file_that_names_code_is_refused(folder: Path, content: Any) -> None:
    save(folder, SPY, "spy_here.py")
    told = problem(save(folder, content), allow_imports=False)
    assert re.search(r"names the (function|plugin) \S*spy_here", told)
    assert "would be imported and run. Leave allow_imports=False (--no-imports) out if you trust the file" in told
    assert "spy_here" not in sys.modules


def test_without_imports_any_other_file_is_taken(folder: Path) -> None:
    assert len(load(save(folder, {"pipeline": pipeline("shuffle", {"batch": 8})}), allow_imports=False)) == 3


@pytest.mark.parametrize(
    "text",
    [
        "pipeline: !!python/object/apply:os.mkdir [{folder}/ran]",
        "pipeline: !!python/object/new:os.mkdir [{folder}/ran]",
        "pipeline: !!python/name:os.mkdir ''",
    ],
)
def test_no_yaml_tag_runs_code(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, text.format(folder=tmp_path), "a.yaml")
    assert "is not valid YAML: line 1, column 11: could not determine a constructor for the tag" in problem(path)
    assert not (tmp_path / "ran").exists()


PLUGIN = """
    from collections.abc import Callable
    from dataclasses import dataclass
    from typing import ClassVar
    import numpy as np
    import batchkit as bk
    from batchkit.sources import ArraySource

    @dataclass(frozen=True)
    class Scale(bk.ColumnStage):
        '''Multiply every leaf.'''

        verb: ClassVar[str] = "scale"
        factor: float = 2.0
        through: Callable[..., object] | None = None

        def apply(self, columns):
            return {name: column * self.factor for name, column in columns.items()}

    def count(path: str, upto: int, step: int = 1):
        '''Count.'''
        assert path.endswith("seen.txt") and path != "seen.txt"
        return ArraySource({"y": np.arange(0, upto, step)})

    class Mine(bk.NumpyBackend):
        name = "mine"

    @bk.hookimpl
    def batchkit_stages(): return {"scale": Scale}
    @bk.hookimpl
    def batchkit_sources(): return {"count": count}
    @bk.hookimpl
    def batchkit_backends(): return {"mine": Mine}
"""


@pytest.fixture
def with_plugin(folder: Path) -> Path:
    save(folder, PLUGIN, "plugin_here.py")
    return folder


@pytest.mark.parametrize("plugin", ["./plugin_here.py", "plugin_here"])
def test_a_local_plugin_adds_sources_stages_and_backends(with_plugin: Path, plugin: str) -> None:
    content = {
        "plugins": [plugin],
        "pipeline": pipeline({"scale": {"factor": 3}}, {"batch": 4}, kind="count", path="seen.txt", upto=6, step=2),
        "loader": {"backend": "mine"},
    }
    with load(save(with_plugin, content)) as loader:
        assert loader.backend.name == "mine"
        assert [batch["y"].tolist() for batch in loader] == [[0, 6, 12]]


@pytest.mark.parametrize(
    ("stage", "source", "message"),
    [
        ({"scale": {"through": "nowhere:f"}}, {}, "pipeline.stages[0].scale.through: there is no module 'nowhere'"),
        ({"scale": {"facter": 3}}, {}, "pipeline.stages[0].scale.facter: there is no such key; did you mean 'factor'?"),
        ({"scale": "big"}, {}, "pipeline.stages[0].scale.factor: should be a valid number, not 'big'"),
        ("scael", {}, "pipeline.stages[0].scael: no stage 'scael'; did you mean 'scale'?"),
        ("scale", {"kind": "count", "path": "a"}, "pipeline.source: the key 'upto' is missing"),
        (
            "scale",
            {"kind": "count", "path": "a", "upto": "b"},
            "pipeline.source.upto: should be a valid integer, not 'b'",
        ),
    ],
)
def test_what_plugins_offer_is_checked_too(with_plugin: Path, stage: Any, source: dict[str, Any], message: str) -> None:
    content = {"plugins": ["./plugin_here.py"], "pipeline": pipeline(stage, {"batch": 4}, **source)}
    assert message in problem(save(with_plugin, content))


@pytest.mark.parametrize(("name", "function"), [("math:floor", math.floor), (None, None)])
def test_a_plugin_gets_the_function_that_a_callable_field_names(with_plugin: Path, name: Any, function: Any) -> None:
    content = {"plugins": ["./plugin_here.py"], "pipeline": pipeline({"scale": {"through": name}}, {"batch": 4})}
    assert load(save(with_plugin, content)).pipeline.stages[0].through is function


def test_every_error_of_a_stage_is_told(folder: Path) -> None:
    told = problem(save(folder, {"pipeline": pipeline({"map": {"fn": "nowhere:f", "kwarg": {}}})}))
    assert "1. pipeline.stages[0].map.kwarg: there is no such key; did you mean 'kwargs'?" in told
    assert "2. pipeline.stages[0].map.fn: there is no module 'nowhere'" in told


def test_a_broken_local_plugin_is_told_with_its_place(folder: Path) -> None:
    save(folder, "1 / 0\n", "plugin_here.py")
    told = problem(save(folder, {"plugins": ["./plugin_here.py", "./nowhere.py"], "pipeline": pipeline()}))
    assert "1. plugins[0]: plugin 'plugin_here' " in told
    assert "cannot be imported: ZeroDivisionError: division by zero" in told
    assert "2. plugins[1]: plugin 'nowhere' " in told


def test_what_a_broken_plugin_would_have_offered_is_no_error_of_its_own(folder: Path) -> None:
    save(folder, "1 / 0\n", "plugin_here.py")
    content = {
        "plugins": ["./plugin_here.py"],
        "pipeline": pipeline({"scale": {"factor": 3}}, {"batch": {"sizze": 4}}, kind="count", path="a"),
        "loader": {"backend": "mine", "executor": "mine"},
    }
    told = problem(save(folder, content))
    assert "1. plugins[0]: plugin 'plugin_here' " in told
    assert "pipeline.stages[1].batch.sizze: there is no such key; did you mean 'size'?" in told
    assert not any(name in told for name in ("'scale'", "'count'", "'mine'"))


# --- the JSON Schema


def conforms(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Say whether a value is valid, by the keywords of draft 2020-12 that the schema uses."""
    known = {
        "$ref",
        "$schema",
        "$defs",
        "title",
        "description",
        "default",
        "type",
        "const",
        "enum",
        "pattern",
        "minimum",
    }
    known |= {"properties", "required", "additionalProperties", "minProperties", "items", "minItems", "maxItems"}
    known |= {"anyOf", "oneOf", "prefixItems"}
    assert not set(schema) - known, set(schema) - known
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "number": (int, float)}
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        if not conforms(value, target, root):
            return False
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {kind: isinstance(value, cls) and (kind != "number" or is_number) for kind, cls in types.items()}
    fits["integer"] = is_number and float(value).is_integer()
    if kinds and not any(fits[kind] for kind in kinds):
        return False
    checks = [
        "const" not in schema or (value == schema["const"] and type(value) is type(schema["const"])),
        "enum" not in schema or value in schema["enum"],
        "anyOf" not in schema or any(conforms(value, each, root) for each in schema["anyOf"]),
        "oneOf" not in schema or sum(conforms(value, each, root) for each in schema["oneOf"]) == 1,
    ]
    if is_number:
        checks.append(value >= schema.get("minimum", value))
    if isinstance(value, str):
        checks.append(re.search(schema.get("pattern", ""), value) is not None)
    if isinstance(value, list):
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)))
        first = schema.get("prefixItems", [])
        checks += [conforms(item, each, root) for item, each in zip(value, first, strict=False)]
        checks += [conforms(item, schema.get("items", {}), root) for item in value[len(first) :]]
    if isinstance(value, dict):
        checks.append(len(value) >= schema.get("minProperties", 0))
        checks += [name in value for name in schema.get("required", ())]
        for name, inner in value.items():
            others = schema.get("additionalProperties", True)
            found = schema.get("properties", {}).get(name, others)
            checks.append(found if isinstance(found, bool) else conforms(inner, found, root))
    return all(checks)


VALID = [
    {"pipeline": pipeline()},
    {"pipeline": {"source": {"kind": "npz", "path": "a.npz", "keys": ["x"]}}},
    {
        "pipeline": pipeline(
            "shuffle", {"shuffle": 3}, {"shuffle": None}, {"batch": 8}, {"select": "x"}, {"drop": ["y"]}
        )
    },
    {"pipeline": pipeline({"rename": {"x": "z"}}, {"rename": {"names": {"x": "z"}}}, {"repeat": None}, "repeat")},
    {
        "pipeline": pipeline(
            {"map": "a.b:c"}, {"map": {"fn": "a:b", "kwargs": {"n": 1}}}, "unbatch", {"cast": {"x": "int8"}}
        )
    },
    {"pipeline": pipeline(kind="concat", pipelines=[pipeline(), pipeline("shuffle")])},
    {"pipeline": pipeline(kind="interleave", pipelines=[pipeline()], block=3)},
    {"pipeline": pipeline(kind="zip", pipelines={"a": pipeline(), "b": [pipeline(), pipeline()]}, stop="shortest")},
    {"pipeline": pipeline(kind="mix", pipelines={"a": pipeline()}, weights={"a": 1}, stop="all")},
    {"pipeline": pipeline(kind="mix", pipelines=[pipeline()] * 2, schedule=[[0, [1, 0]], [9, [0.5, 0.5]]])},
    {"pipelines": {"train": pipeline(), "test": pipeline()}, "plugins": ["./a.py"]},
    {"pipeline": pipeline(), "loader": {"workers": "auto", "shard": [0, 2], "device": None, "narrow": "error"}},
    {"pipeline": pipeline(), "loader": {"workers": 3, "shard": "0/2", "device": "cpu", "prefetch": 0}},
]
INVALID = [
    {},
    {"loader": {}},
    {"pipeline": pipeline(), "pipelines": {"a": pipeline()}},
    {"pipelines": {}},
    {"pipeline": {"stages": []}},
    {"pipeline": pipeline(), "loadr": {}},
    {"pipeline": pipeline(kind="npyy", path="x")},
    {"pipeline": pipeline(kind="npz")},
    {"pipeline": pipeline(kind="npz", path="x", pth="y")},
    {"pipeline": pipeline(kind="concat", pipelines=[])},
    {"pipeline": pipeline(kind="concat", pipelines={"a": pipeline()})},
    {"pipeline": pipeline(kind="concat", pipelines=[pipeline("shufle")])},
    {"pipeline": pipeline(kind="interleave", pipelines=[pipeline()], block=0)},
    {"pipeline": pipeline(kind="zip", pipelines=[pipeline()], stop="first")},
    {"pipeline": pipeline(kind="mix", pipelines=[pipeline()], weights=["1"])},
    {"pipeline": pipeline(kind="mix", pipelines=[pipeline()], weights=[1], stop="shortest")},
    {"pipeline": pipeline("shufle")},
    {"pipeline": pipeline("batch")},
    {"pipeline": pipeline({"batch": 0})},
    {"pipeline": pipeline({"batch": {"size": 8, "remainder": "dorp"}})},
    {"pipeline": pipeline({"batch": {"size": 8, "remainderr": "drop"}})},
    {"pipeline": pipeline({"take": -1})},
    {"pipeline": pipeline({"take": 1, "skip": 1})},
    {"pipeline": pipeline({"map": "no_colon"})},
    {"pipeline": pipeline(), "loader": {"workers": 0}},
    {"pipeline": pipeline(), "loader": {"workers": "many"}},
    {"pipeline": pipeline(), "loader": {"shard": [0, 1, 2]}},
    {"pipeline": pipeline(), "loader": {"devise": "cpu"}},
]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


@pytest.mark.parametrize("content", VALID)
def test_a_valid_config_conforms_to_the_schema(schema: dict[str, Any], content: Any) -> None:
    assert conforms(content, schema, schema)


@pytest.mark.parametrize("content", INVALID)
def test_a_config_that_is_not_valid_does_not_conform(schema: dict[str, Any], content: Any, tmp_path: Path) -> None:
    assert not conforms(content, schema, schema)
    assert problem(save(tmp_path, content))


def test_the_schema_names_every_source_stage_and_option(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["$defs"]["loader"]["properties"]) == set(LOADER)
    text = json.dumps(schema)
    for verb in STAGES:
        assert f'"{verb}"' in text
    for described in (*schema["$defs"]["source"]["oneOf"], *schema["$defs"]["stage"]["anyOf"]):
        assert described["description"]


def test_the_schema_has_what_plugins_offer(with_plugin: Path) -> None:
    from batchkit.plugins import installed

    whole = json_schema(installed().with_local(["./plugin_here.py"], with_plugin))
    content = {"pipeline": pipeline({"scale": 3.5}, kind="count", path="seen.txt", upto=3)}
    assert conforms(content, whole, whole)
    assert not conforms({"pipeline": pipeline({"scale": "big"})}, whole, whole)


@pytest.mark.parametrize(("verb", "name"), list(LIMITS))
def test_the_limits_in_the_schema_are_those_of_the_stages(verb: str, name: str) -> None:
    limits = LIMITS[verb, name]
    others = {"batch": {"size": 1}, "random_map": {"fn": len}}.get(verb, {})
    if "minimum" in limits:
        STAGES[verb](**{**others, name: limits["minimum"]})
        with pytest.raises(bk.PipelineError):
            STAGES[verb](**{**others, name: limits["minimum"] - 1})
    for value in limits.get("enum", ()):
        STAGES[verb](**{**others, name: value})


def test_the_options_are_those_of_the_loader() -> None:
    parameters = dict(inspect.signature(bk.Loader).parameters)
    del parameters["pipeline"], parameters["plugins"]
    assert set(LOADER) == set(parameters)
    for name, parameter in parameters.items():
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        assert LOADER[name].default == default


# --- the documentation


def blocks(page: str, language: str) -> list[str]:
    text = (Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.checkout
def test_every_config_in_the_docs_is_valid(schema: dict[str, Any]) -> None:
    configs = [yaml.safe_load(block) for block in blocks("config.md", "yaml")]
    assert len(configs) == 4
    for config in configs:
        assert conforms(config, schema, schema)


@pytest.mark.checkout
def test_the_docs_name_every_option_with_its_variable_and_every_stage() -> None:
    text = (Path(__file__).parents[1] / "docs" / "config.md").read_text(encoding="utf-8")
    for name in LOADER:
        assert re.search(rf"^\| `{name}` \|.*\| `BATCHKIT_{name.upper()}` \|$", text, re.MULTILINE)
    for verb in STAGES:
        assert re.search(rf"^\|.*`{verb}`.*\|", text, re.MULTILINE)


@pytest.mark.checkout
def test_the_errors_in_the_docs_are_the_real_ones(folder: Path) -> None:
    (expected,) = blocks("config.md", "text")
    stages = ["shufle", {"batch": {"size": 8, "remainderr": "drop"}}]
    path = save(folder, {"pipeline": pipeline(*stages), "loader": {"prefetch": -2}}, "train.yaml")
    assert problem(path).replace(str(path), "train.yaml") == expected.rstrip()


@pytest.mark.checkout
def test_the_plugin_in_the_docs_works(folder: Path) -> None:
    save(folder, blocks("plugins.md", "python")[0], "my_plugin.py")
    (config,) = blocks("plugins.md", "yaml")
    with load(save(folder, config, "ramp.yaml")) as loader:
        assert [batch["x"].tolist() for batch in loader] == [[0, 10, 20], [30, 40, 50]]
