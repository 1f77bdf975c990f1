"""Which source rows a batch holds: the oracle is a leaf of the data that holds the row's number."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as some

import batchkit as bk
from batchkit.cli import main
from batchkit.plan import compile
from batchkit.plan.rows.lineage import Lineage, Origin

ROWS = 23


def rows(count: int = ROWS) -> bk.Pipeline:
    return bk.from_arrays({"row": np.arange(count)})


PIPELINES: dict[str, Callable[[], bk.Pipeline]] = {
    "plain": lambda: rows().batch(5),
    "shuffled": lambda: rows().shuffle(seed=3).batch(5),
    "split": lambda: rows().shuffle(seed=3, reshuffle=False).skip(4).take(15).shuffle(seed=1).batch(4),
    "repeated": lambda: rows().shuffle(seed=1).repeat(3).batch(7),
    "repeated twice": lambda: rows(5).repeat(2).shuffle(seed=1).repeat(2).batch(3),
    "endless": lambda: rows().shuffle(seed=1).repeat().batch(7),
    "dropped": lambda: rows().shuffle(seed=2).batch(6, remainder="drop"),
    "padded": lambda: rows().shuffle(seed=2).batch(12, remainder="pad"),
    "batches shuffled": lambda: rows().shuffle(seed=2).batch(4).shuffle(seed=5).repeat(2).skip(1),
    "taken apart": lambda: rows().shuffle(seed=2).batch(4).unbatch().batch(6),
    "taken apart and mixed": lambda: rows(24).batch(4).shuffle(seed=1).unbatch().shuffle(seed=2).repeat(2).batch(5),
    "padded and taken apart": lambda: rows(10).batch(6, remainder="pad").drop("mask").unbatch().batch(3),
    "functions": lambda: rows().map(dict).batch(5).map(dict).random_map(lambda batch, rng: batch),
}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("name", PIPELINES)
def test_the_lineage_is_that_of_the_rows_in_the_batch(name: str, world: int) -> None:
    pipe = PIPELINES[name]()
    for epoch in (0, 2):
        for rank in range(world):
            plan = compile(pipe, (rank, world))
            for number in range(min(plan.steps_per_epoch or 9, 9)):
                with bk.Loader(pipe, shard=(rank, world), executor="inline") as loader:
                    batch = next(loader.iterate(epoch, start=number))
                found = bk.explain(pipe, number, (rank, world), epoch=epoch)
                real = batch["mask"] if name == "padded" else np.ones(len(batch["row"]), bool)
                if name == "padded and taken apart":  # 10 rows and two of padding, in batches of three
                    real = np.arange(12)[number * 3 : number * 3 + 3] < 10
                    real = real[3 * rank // world : 3 * (rank + 1) // world]
                assert found.rows == len(batch["row"])
                assert found.place.tolist() == np.flatnonzero(real).tolist()
                assert found.row.tolist() == batch["row"][real].tolist()
                assert found.source.tolist() == [0] * int(real.sum())
                assert {found.place.dtype, found.source.dtype, found.row.dtype, found.epoch.dtype} == {np.dtype("i8")}


def test_the_epoch_is_the_one_that_random_numbers_go_by() -> None:
    def keep(row: dict[str, Any], rng: Any) -> dict[str, Any]:
        return {**row, "draw": rng.random()}

    once = rows(6).random_map(keep, seed=4).batch(6)
    draws = {}
    with bk.Loader(once, executor="inline") as loader:
        for epoch in range(6):
            batch = next(loader.iterate(epoch))
            draws |= {(epoch, int(row)): draw for row, draw in zip(batch["row"], batch["draw"], strict=True)}
    pipe = rows(6).random_map(keep, seed=4).repeat(3).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        for step in range(4):
            batch = next(loader.iterate(1, start=step))
            found = bk.explain(pipe, step, epoch=1)
            expected = [draws[origin.epoch, origin.row] for place in range(4) for origin in found.at(place)]
            assert batch["draw"].tolist() == expected


def test_passes_of_repeat_are_counted_through_the_epochs() -> None:
    found = bk.explain(rows(4).repeat(3).batch(6), 1, epoch=2)
    assert found.row.tolist() == [2, 3, 0, 1, 2, 3]
    assert found.epoch.tolist() == [7, 7, 8, 8, 8, 8]


def test_explaining_reads_nothing_and_calls_nothing() -> None:
    class Untouched:
        def __len__(self) -> int:
            return 10**12

        def __getitem__(self, row: int) -> Any:
            raise AssertionError("a row was read")

    def function(row: Any) -> Any:
        raise AssertionError("a function was called")

    pipe = bk.from_sequence(Untouched()).shuffle(seed=0).map(function).batch(4).map(function)
    assert len(bk.explain(pipe, 10**11).row) == 4


def test_ranks_have_the_global_batch_between_them() -> None:
    pipe = rows().shuffle(seed=1).repeat(2).batch(7)
    whole = bk.explain(pipe, 3)
    parts = [bk.explain(pipe, 3, (rank, 3)) for rank in range(3)]
    assert np.concatenate([part.row for part in parts]).tolist() == whole.row.tolist()
    assert np.concatenate([part.epoch for part in parts]).tolist() == whole.epoch.tolist()


def test_a_step_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        bk.PipelineError, match=r"no step 5: an epoch has 5 steps, counted from 0 \(the last one is step"
    ):
        bk.explain(rows().batch(5), 5)
    with pytest.raises(bk.PipelineError, match="there are no batches"):
        bk.explain(rows(0).batch(5), 0)
    with pytest.raises(bk.PipelineError, match="at least 0"):
        bk.explain(rows().batch(5), -1)
    with pytest.raises(bk.PipelineError, match=r"the rank must be in 0\.\.1"):
        bk.explain(rows().batch(5), 0, (2, 2))


# --- putting lineages together


def lineages() -> some.SearchStrategy[Lineage]:
    """Rows made of 0 to 3 source rows each."""
    row = some.lists(some.tuples(some.integers(0, 3), some.integers(0, 99), some.integers(0, 9)), max_size=3)
    return some.lists(row, max_size=6).map(made)


def made(content: list[list[tuple[int, int, int]]]) -> Lineage:
    flat = [(place, *origin) for place, origins in enumerate(content) for origin in origins]
    columns = np.array(flat, np.int64).reshape(-1, 4).T
    return Lineage(len(content), *columns)


def content(lineage: Lineage) -> list[list[Origin]]:
    return [lineage.at(place) for place in range(lineage.rows)]


@given(lineages(), some.lists(some.integers(0, 5), max_size=8))
def test_taken_rows_bring_their_origins(lineage: Lineage, places: list[int]) -> None:
    places = [place for place in places if place < lineage.rows]
    expected = [content(lineage)[place] for place in places]
    assert content(lineage.taken(np.array(places, np.int64))) == expected


@given(some.lists(lineages(), max_size=4))
def test_joined_parts_stand_one_behind_the_other(parts: list[Lineage]) -> None:
    assert content(Lineage.joined(parts)) == [row for part in parts for row in content(part)]


@given(lineages(), some.integers(0, 4))
def test_merged_rows_have_the_origins_of_all_parts(lineage: Lineage, first: int) -> None:
    other = lineage.numbered(first)
    expected = [[*row, *(Origin(one.source + first, one.row, one.epoch) for one in row)] for row in content(lineage)]
    assert content(Lineage.merged([lineage, other])) == expected


@given(lineages(), some.integers(0, 7), some.integers(0, 7))
def test_a_part_has_the_origins_of_its_rows(lineage: Lineage, start: int, stop: int) -> None:
    part = lineage.part(start, max(start, stop))
    assert content(part) == content(lineage)[start : max(start, stop)]


@given(lineages(), some.data())
def test_rows_made_of_several_have_the_origins_of_all(lineage: Lineage, data: some.DataObject) -> None:
    ends = sorted(data.draw(some.lists(some.integers(0, lineage.rows), max_size=4)))
    bounds = list(itertools.pairwise([0, *ends, lineage.rows]))
    rows = content(lineage)
    found = lineage.grouped(np.array([high - low for low, high in bounds]))
    assert content(found) == [[one for row in rows[low:high] for one in row] for low, high in bounds]


# --- the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    np.save(tmp_path / "x.npy", np.arange(10.0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def odd(batch: Any) -> Any:
    """Say of a row, or of each of a batch, whether it is odd."""
    return batch["x"] % 2 == 1


def save(folder: Path, *stages: Any, loader: Any = None) -> None:
    pipeline = {"source": {"kind": "npy", "path": {"x": "x.npy"}}, "stages": list(stages)}
    (folder / "train.json").write_text(json.dumps({"pipeline": pipeline, "loader": loader or {}}))


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["explain", "train.json", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def command(*arguments: str, code: int = 0) -> str:
    return run(*arguments, code=code).output


def test_the_command_prints_a_table(folder: Path) -> None:
    save(folder, {"batch": {"size": 4, "remainder": "pad"}})
    lines = [line.split() for line in command("--step", "2", "--epoch", "3").splitlines()]
    assert lines[0] == [
        "epoch",
        "3,",
        "step",
        "2,",
        "rank",
        "0",
        "of",
        "1:",
        "4",
        "rows,",
        "2",
        "of",
        "them",
        "padding",
    ]
    assert ["0", "8", "3"] in lines
    assert ["1", "9", "3"] in lines


def test_the_command_prints_json(folder: Path) -> None:
    save(folder, {"shuffle": 1}, {"repeat": 2}, {"batch": 4})
    found = json.loads(command("--step", "3", "--rank", "1", "--world", "2", "--json"))
    pipe = bk.from_npy({"x": "x.npy"}).shuffle(1).repeat(2).batch(4)
    with bk.Loader(pipe, shard=(1, 2), executor="inline") as loader:
        values = next(loader.iterate(0, start=3))["x"]
    assert (found["epoch"], found["step"], found["shard"]) == (0, 3, [1, 2])
    assert found["lineage"]["row"] == [int(value) for value in values]
    assert found["lineage"]["epoch"] == [1, 1]


def test_a_pass_of_an_endless_repeat_is_shown_with_its_epoch(folder: Path) -> None:
    save(folder, {"repeat": None}, {"take": 40}, {"batch": 4})
    assert "2 of epoch 1" in command("--step", "5", "--epoch", "1")


def test_what_the_file_says_of_the_loader_is_not_needed(folder: Path) -> None:
    save(folder, {"batch": 4}, loader={"backend": "no_such_framework", "device": "cuda"})
    assert "step 0" in command("--step", "0")


def test_a_step_that_is_not_there_is_a_wrong_usage(folder: Path) -> None:
    save(folder, {"batch": 4})
    assert "there is no step 3" in command("--step", "3", code=2)
    assert "rank must be in 0..0" in command("--step", "0", "--rank", "1", code=2)


def test_no_imports_refuses_functions_here_too(folder: Path) -> None:
    save(folder, {"map": "json:dumps"}, {"batch": 4})
    assert "--no-imports" in command("--step", "0", "--no-imports", code=2)


def test_nothing_is_said_where_no_row_is_read(folder: Path) -> None:
    save(folder, {"map": "math:sqrt"}, {"batch": 4})
    assert run("--step", "1").stderr == ""


def test_the_command_says_in_a_line_why_rows_are_computed(folder: Path) -> None:
    save(folder, {"shuffle": 1}, {"filter": f"{__name__}:odd"}, {"batch": 2})
    result = run("--step", "1", "--json")
    assert result.stderr == (
        f"Rows are computed to explain this step: stage 1 filter({__name__}:odd) keeps no count of them.\n"
    )
    order = [value for batch in bk.Loader(bk.from_npy({"x": "x.npy"}).shuffle(1).batch(5)) for value in batch["x"]]
    assert json.loads(result.stdout)["lineage"]["row"] == [int(value) for value in order if value % 2][2:4]


def test_the_command_begins_at_a_state(folder: Path) -> None:
    save(folder, {"batch": 2}, {"filter": f"{__name__}:odd"}, {"rebatch": 3})
    pipe = bk.from_npy({"x": "x.npy"}).batch(2).filter(odd).rebatch(3)
    with bk.Loader(pipe, executor="inline") as loader:
        list(loader)
        next(iter(loader))
        (folder / "state.json").write_text(json.dumps(loader.state_dict()))
    found = json.loads(run("--step", "1", "--state", "state.json", "--json").stdout)
    assert (found["epoch"], found["lineage"]["row"], found["lineage"]["epoch"]) == (1, [7, 9], [1, 1])


def test_a_state_that_does_not_fit_is_an_error_of_the_command(folder: Path) -> None:
    save(folder, {"filter": "builtins:bool"}, {"batch": 3})
    (folder / "state.json").write_text("{")
    assert "state.json is no JSON" in command("--step", "1", "--state", "state.json", code=2)
    assert "does not exist" in command("--step", "1", "--state", "nowhere.json", code=2)
    (folder / "state.json").write_text("{}")
    assert "the state lacks version" in command("--step", "1", "--state", "state.json", code=1)


@pytest.mark.parametrize("shape", ["concat", "interleave", "mix", "zip"])
def test_the_rows_of_combined_pipelines_are_told_apart_by_source(shape: str) -> None:
    def part(source: int, count: int) -> bk.Pipeline:
        leaves = {"source": np.full(count, source), "row": np.arange(count)}
        return bk.from_arrays(leaves).shuffle(source)

    parts = [part(0, 20), part(1, 20), part(2, 20)]
    made = {
        "concat": lambda: bk.concat(parts),
        "interleave": lambda: bk.interleave(parts, block=2),
        "mix": lambda: bk.mix(parts, [1, 2, 3], stop="all"),
        "zip": lambda: bk.zip({"a": parts[0], "b": bk.concat(parts[1:2])}),
    }[shape]()
    pipe = made.shuffle(5).batch(7)
    for step, batch in enumerate(bk.Loader(pipe)):
        found = bk.explain(pipe, step)
        sides = [batch["a"], batch["b"]] if shape == "zip" else [batch]
        for place in range(len(sides[0]["row"])):
            expected = [(int(side["source"][place]), int(side["row"][place])) for side in sides]
            assert [(origin.source, origin.row) for origin in found.at(place)] == expected
