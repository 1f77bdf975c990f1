"""What is said of batch(collate=...): schemas, texts, files, reports, lineage, and what verify finds."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import batchkit as bk
from batchkit.bench.contestant import run_turn
from batchkit.bench.stages import stage_limits
from batchkit.cli import main
from batchkit.config.keys import LOADER

COUNT = 20
MODULE = """
import numpy as np

def joined(rows):
    return {"n": np.concatenate([np.repeat(row["n"], row["n"] % 3) for row in rows]), "rows": len(rows)}

def other(rows):
    return {"n": np.array([row["n"] for row in rows]), "rows": len(rows)}
"""


def joined(rows: list[Any]) -> Any:
    return {"n": np.concatenate([np.repeat(row["n"], row["n"] % 3) for row in rows]), "rows": len(rows)}


def wanted(size: int) -> list[dict[str, Any]]:
    runs = [list(range(start, min(start + size, COUNT))) for start in range(0, COUNT, size)]
    return [{"n": [n for n in run for _ in range(n % 3)], "rows": len(run)} for run in runs]


def lists(batches: Any) -> list[dict[str, Any]]:
    return [{name: leaf.tolist() for name, leaf in batch.items()} for batch in batches]


def numbers() -> bk.Pipeline:
    return bk.from_arrays({"n": np.arange(COUNT)})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with data, a config, and a module of functions, which is forgotten afterwards."""
    for name in LOADER:
        monkeypatch.delenv(f"BATCHKIT_{name.upper()}", raising=False)
    (tmp_path / "collating_here.py").write_text(MODULE)
    np.save(tmp_path / "n.npy", np.arange(COUNT))
    source = {"kind": "npy", "path": {"n": "n.npy"}}
    stages = [{"batch": {"size": 8, "collate": "collating_here:joined"}}]
    (tmp_path / "train.json").write_text(json.dumps({"pipeline": {"source": source, "stages": stages}}))
    yield tmp_path
    sys.modules.pop("collating_here", None)


@pytest.fixture
def named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bk.Pipeline:
    monkeypatch.syspath_prepend(folder)
    return bk.from_npy({"n": str(folder / "n.npy")})


# --- the description


def test_it_goes_through_json_by_the_name_of_the_function(named: bk.Pipeline) -> None:
    pipe = named.batch(8, remainder="drop", collate="collating_here:joined")
    described = json.loads(json.dumps(pipe.to_dict()))
    arguments = {"size": 8, "remainder": "drop", "collate": "collating_here:joined"}
    assert described["stages"] == [{"batch": arguments}]
    again = bk.Pipeline.from_dict(described)
    assert again.stages == pipe.stages
    with bk.Loader(again) as loader:
        assert lists(loader) == wanted(8)[:2]


def test_a_lambda_runs_and_only_exporting_it_is_refused_with_the_mend(named: bk.Pipeline) -> None:
    pipe = named.batch(8, collate=lambda rows: len(rows))
    said = r"the function of batch\(collate\) .*<lambda> cannot be exported.*Move it to the top level of a module"
    with pytest.raises(bk.PipelineError, match=said):
        pipe.to_dict()


def test_without_imports_a_description_that_names_it_is_refused(named: bk.Pipeline) -> None:
    described = named.batch(8, collate="collating_here:joined").to_dict()
    with pytest.raises(bk.ConfigError, match=r"names functions, .*: collating_here:joined"):
        bk.Pipeline.from_dict(described, allow_imports=False)


def test_a_batch_without_it_is_described_as_ever(named: bk.Pipeline) -> None:
    assert named.batch(8).to_dict()["stages"] == [{"batch": {"size": 8}}]
    assert named.batch(8).stages[0].label == "batch(size=8)"


def test_a_config_names_the_function_of_a_module_beside_it(folder: Path) -> None:
    with bk.load(folder / "train.json") as loader:
        assert lists(loader) == wanted(8)
    with pytest.raises(bk.ConfigError, match=r"stages\[0\].batch.collate: names the function collating_here:joined"):
        bk.load(folder / "train.json", allow_imports=False)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"batch": {"size": 8, "collate": "no_colon"}}, "batch.collate: should be the name of a function"),
        ({"batch": {"size": 8, "collate": "collating_here:joind"}}, "has no 'joind'; did you mean 'joined'?"),
        ({"batch": {"size": 8, "collate": "collating_here:joined", "remainder": "pad"}}, "no rows to fill up"),
        (
            {"padded_batch": {"size": 8, "collate": "collating_here:joined"}},
            "padded_batch.collate: there is no such key",
        ),
    ],
)
def test_a_wrong_config_is_told_with_its_place(folder: Path, stage: Any, message: str) -> None:
    source = {"kind": "npy", "path": {"n": str(folder / "n.npy")}}
    path = folder / "wrong.json"
    path.write_text(json.dumps({"pipeline": {"source": source, "stages": [stage]}}))
    with pytest.raises(bk.ConfigError) as caught:
        bk.load(path)
    assert message in str(caught.value)


def test_a_state_of_another_function_is_refused_by_name(named: bk.Pipeline) -> None:
    with bk.Loader(named.batch(8, collate="collating_here:joined")) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with (
        bk.Loader(named.batch(8, collate="collating_here:other")) as loader,
        pytest.raises(bk.StateError, match=r"batch\(size=8, collate=collating_here:(joined|other)\)"),
    ):
        loader.load_state_dict(state)


# --- what is known of the batches


def test_the_text_of_a_pipeline_shows_the_batch_with_all_sides_open() -> None:
    pipe = numbers().batch(8, collate=joined).rename(n="m")
    shown = repr(pipe).splitlines()
    assert shown[1].endswith("joined) -> {n: int64[?], rows: int64}")
    assert shown[2].endswith("rename(names={'n': 'm'}) -> {m: int64[?], rows: int64}")
    assert repr(pipe.schema) == "{'m': int64[?], 'rows': int64}"


def test_a_function_that_fails_on_one_row_is_shown_to_do_so() -> None:
    def failing(rows: list[Any]) -> Any:
        return {"n": rows[1]["n"]}

    pipe = numbers().batch(8, collate=failing)
    assert "-> ? (StageError: batch(size=8, collate=" in repr(pipe)
    with bk.Loader(pipe) as loader:
        assert [int(batch["n"]) for batch in loader] == [1, 9, 17]


def test_the_schema_is_that_of_the_first_batch_with_all_sides_open() -> None:
    def pictures(rows: list[Any]) -> Any:
        return {"picture": np.zeros((len(rows), 32, 32), np.float32), "name": "a"}

    with bk.Loader(numbers().batch(8, remainder="drop", collate=pictures)) as loader:
        assert repr(loader.schema) == "{'picture': float32[?, ?, ?], 'name': str}"
    with bk.Loader(numbers().batch(8, remainder="drop", collate=pictures), lineage=True) as loader:
        assert repr(loader.schema["lineage"]["row"]) == "int64[?]"


def test_static_shapes_are_refused_with_the_stage_and_the_mend() -> None:
    said = r"stage 0 batch\(size=8, .*joined\) leaves the shapes .* not static. Use padded_batch\(length=...\)"
    with bk.Loader(numbers().batch(8, collate=joined)) as loader, pytest.raises(bk.SchemaError, match=said):
        _ = loader.shapes


@pytest.mark.parametrize("shard", [(0, 1), (0, 3), (2, 3)])
def test_lineage_tells_of_every_place_in_the_list(shard: tuple[int, int]) -> None:
    seen: list[list[int]] = []

    def noted(rows: list[Any]) -> Any:
        seen.append([int(row["n"]) for row in rows])
        return {"total": len(rows)}

    pipe = numbers().shuffle(seed=2).batch(6, collate=noted)
    with bk.Loader(pipe, lineage=True, shard=shard, executor="inline") as loader:
        found = [batch["lineage"] for batch in loader]
    assert len(found) == 4
    assert [lineage["row"].tolist() for lineage in found] == [run if len(run) > 0 else [] for run in _mine(seen, found)]
    assert [lineage["place"].tolist() for lineage in found] == [list(range(len(one["row"]))) for one in found]
    assert [bk.explain(pipe, step, shard).row.tolist() for step in range(4)] == [one["row"].tolist() for one in found]


def _mine(seen: list[list[int]], found: list[Any]) -> list[list[int]]:
    """Return the lists that the function was given; of a rank without rows it was shown one all the same."""
    return [run if len(one["row"]) else [] for run, one in zip(seen, found, strict=True)]


@pytest.mark.parametrize("generated", [False, True])
def test_the_report_and_the_profile_have_a_line_for_it(generated: bool) -> None:
    source = bk.from_generator(lambda: ({"n": n} for n in range(COUNT))) if generated else numbers()
    pipe = source.map(dict).batch(8, collate=joined).map(dict)
    with bk.Loader(pipe, executor="inline") as loader:
        list(loader)
        assert "\nbatch(size=8, collate=joined) " in loader.report()
        limits = stage_limits(loader, steps=3, rounds=1)
    assert "batch(size=8, collate=joined)" in [limit.name for limit in limits]
    assert {limit.rows for limit in limits} == {COUNT / 3}


# --- the command line


def batchkit(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def test_a_run_counts_batches_and_says_that_it_knows_no_rows(folder: Path) -> None:
    summary = json.loads(batchkit("run", folder / "train.json", "--json", "--digest").stdout)
    assert (summary["batches"], summary["rows"], summary["rows_per_s"]) == (3, None, None)
    assert batchkit("run", folder / "train.json").stdout.startswith("3 batches, 1 whole epoch in ")


def test_inspect_shows_the_open_sides(folder: Path) -> None:
    assert "batch: {n: int64[?], rows: int64}" in batchkit("inspect", folder / "train.json").stdout
    described = json.loads(batchkit("inspect", folder / "train.json", "--json").stdout)
    assert described["batch_schema"]["n"] == {"dtype": "int64", "shape": [None]}
    assert described["stages"][0]["row_schema"] == described["batch_schema"]


def test_a_turn_of_the_bench_counts_a_batch_without_rows_as_one() -> None:
    with bk.Loader(numbers().batch(8, collate=lambda rows: 1.5), executor="inline") as loader:
        assert run_turn(loader, steps=3, seconds=60.0)["rows"] == 3


# --- verify


@pytest.fixture
def _clocks_tick_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchkit.checking.checks.TICK", 0.0)


def verified(pipe: bk.Pipeline, *left_out: str) -> bk.Verdict:
    return bk.verify(pipe, steps=4, without=left_out)


@pytest.mark.usefixtures("_clocks_tick_faster")
@pytest.mark.parametrize("generated", [False, True])
def test_what_obeys_the_law_passes_and_rows_are_not_compared(generated: bool) -> None:
    source = bk.from_generator(lambda: ({"n": n} for n in range(COUNT))) if generated else numbers()
    verdict = verified(source.map(dict).batch(8, collate=joined).map(dict))
    assert verdict.ok
    found = {check.name: (check.outcome, check.detail) for check in verdict.checks}
    for name in ("again", "order", "process", "threads", "resume", "state"):
        assert found[name][0] == "same", name
    for name in ("batch size", "ranks"):
        assert found[name] == ("not run", "a function makes the batches (collate), which have no rows to compare")


@pytest.mark.usefixtures("_clocks_tick_faster")
def test_a_function_that_draws_is_named_with_its_rows_and_the_mend() -> None:
    def drawing(rows: list[Any]) -> Any:
        return {"x": random.random(), "n": len(rows)}

    verdict = verified(numbers().map(dict).batch(8, collate=drawing).map(dict))
    (finding,) = [one for one in verdict.findings if one.check == "again"]
    assert (finding.stage, finding.leaves, finding.rows) == (1, ("x",), tuple(range(8)))
    assert "draws from" in finding.what
    assert finding.mend.startswith("Draw in random_map(fn(row, rng)) before batch()")


@pytest.mark.usefixtures("_clocks_tick_faster")
def test_a_map_in_front_is_named_and_not_the_function() -> None:
    verdict = verified(
        numbers().map(lambda row: {"n": row["n"], "x": random.random()}).batch(8, collate=lambda rows: rows[0])
    )
    assert {finding.stage for finding in verdict.findings} == {0}


@pytest.mark.usefixtures("_clocks_tick_faster")
def test_a_function_that_changes_the_data_in_place_is_named() -> None:
    def doubling(rows: list[Any]) -> Any:
        for row in rows:
            row["x"] *= 2
        return {"x": np.concatenate([row["x"] for row in rows])}

    data = [{"x": np.full(2, number)} for number in range(1, COUNT)]
    verdict = verified(bk.from_sequence(data).batch(8, collate=doubling))
    assert {finding.check for finding in verdict.findings} == {"source"}
    assert verdict.findings[0].stage == 0
