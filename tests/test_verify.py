"""verify: pipelines that obey the law pass, and of those that do not the stage is named."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import random
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

import batchkit as bk
from batchkit.checking import NAMES
from batchkit.cli import main

ROWS = 60
X = np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2)


@pytest.fixture(autouse=True)
def _clocks_tick_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchkit.checking.checks.TICK", 0.0)


def source() -> bk.Pipeline:
    return bk.from_arrays({"x": X, "i": np.arange(ROWS)}).shuffle(seed=0)


def outcome(verdict: bk.Verdict, name: str) -> str:
    (check,) = [check for check in verdict.checks if check.name == name]
    return check.outcome


def only(verdict: bk.Verdict) -> Any:
    (finding,) = verdict.findings
    assert not verdict.ok
    return finding


def judged(pipe: bk.Pipeline, *checks: str, **options: Any) -> bk.Verdict:
    """Verify with these checks only."""
    return bk.verify(pipe, steps=4, without=[name for name in NAMES if name not in checks], **options)


# --- what obeys the law


def plus_noise(row: dict[str, Any], rng: Any) -> dict[str, Any]:
    return {**row, "x": row["x"] + rng.normal()}


def doubled(row: Any) -> Any:
    return {**row, "x": row["x"] * 2}


def numbers() -> Iterator[dict[str, Any]]:
    for number in range(20):
        yield {"x": np.full(2, number)}


LAWFUL = {
    "functions on rows": lambda: source().map(doubled).random_map(plus_noise).batch(8),
    "functions on batches": lambda: source().batch(8).map(doubled).cast(x="float64"),
    "static shapes": lambda: source().map(doubled).batch(8, remainder="pad").map(doubled),
    "dropped rows": lambda: source().batch(7, remainder="drop").map(doubled).take(5),
    "an endless pipeline": lambda: source().repeat().map(doubled).batch(8),
    "several passes": lambda: source().random_map(plus_noise).repeat(3).batch(7),
    "batches reordered": lambda: source().batch(8).shuffle(seed=4).map(doubled),
    "batches taken apart": lambda: source().batch(8).map(doubled).unbatch().shuffle(seed=1).batch(12),
    "rows of different lengths": lambda: (
        bk.from_ragged({"t": np.arange(40)}, np.arange(0, 41, 4)).padded_batch(3).map(dict)
    ),
    "a generator": lambda: bk.from_generator(numbers).map(doubled).batch(6),
    "a sequence of text and lists": lambda: bk.from_sequence([{"s": "a" * n, "l": [n, 2]} for n in range(9)]).batch(2),
    "one row": lambda: bk.from_arrays(np.arange(1)).batch(1),
}


@pytest.mark.parametrize("name", LAWFUL)
def test_a_lawful_pipeline_passes(name: str) -> None:
    verdict = bk.verify(LAWFUL[name](), steps=4, without=["process"])
    assert verdict.findings == ()
    assert verdict.ok
    assert {outcome(verdict, check.name) for check in verdict.checks} <= {"same", "not run"}
    assert outcome(verdict, "again") == outcome(verdict, "resume") == "same"


@pytest.mark.parametrize("name", ["static shapes", "rows of different lengths", "a generator"])
def test_a_lawful_pipeline_is_the_same_in_another_process(name: str) -> None:
    verdict = judged(LAWFUL[name](), "process")
    assert verdict.ok
    assert outcome(verdict, "process") == "same"


def test_a_big_data_set_is_sampled() -> None:
    read: set[int] = set()

    class Big:
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, row: int) -> Any:
            read.add(row)
            return {"x": row}

    verdict = bk.verify(bk.from_sequence(Big()).shuffle(seed=0).batch(4), steps=6, without=["process"])
    assert verdict.ok
    assert {(0, 0), (0, 10**9 // 4 - 1), (1, 0)} <= set(verdict.steps)
    assert len(read) < 200


def test_the_steps_depend_on_the_seed_alone() -> None:
    pipe = bk.from_arrays(np.arange(10_000)).batch(2)
    assert judged(pipe, seed=1).steps == judged(pipe, seed=1).steps
    assert judged(pipe, seed=1).steps != judged(pipe, seed=2).steps


# --- what breaks it

total = 0
generator = np.random.default_rng(0)
counter = itertools.count()
seen: list[float] = [0.0]
scratch = np.empty(2, np.float32)


def draws_globally(row: Any) -> Any:
    return {**row, "x": row["x"] + np.random.rand()}


def draws_from_python(row: Any) -> Any:
    return {**row, "x": row["x"] + random.random()}


def draws_from_a_generator_outside(row: Any) -> Any:
    return {**row, "x": row["x"] + generator.random()}


def draws_without_a_seed(row: Any) -> Any:
    return {**row, "x": row["x"] + np.random.default_rng().random()}


def reads_the_clock(row: Any) -> Any:
    return {**row, "x": row["x"] * 0 + time.perf_counter_ns()}


def counts(row: Any) -> Any:
    global total
    total += 1
    return {**row, "x": total}


def counts_in_an_iterator(row: Any) -> Any:
    return {**row, "x": next(counter)}


def remembers_the_last_row(row: Any) -> Any:
    before = seen[0]
    seen[0] = float(row["x"][0])
    return {**row, "x": before}


class CountsCalls:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, row: Any) -> Any:
        self.calls += 1
        return {**row, "x": self.calls}


def helped(row: Any) -> Any:
    return draws_from_a_generator_outside(row)


@pytest.mark.parametrize(
    ("function", "what", "mend"),
    [
        (draws_globally, "draws from NumPy's global random numbers", "Use random_map(fn(row, rng))"),
        (draws_from_python, "draws from Python's global random numbers", "Use random_map(fn(row, rng))"),
        (draws_from_a_generator_outside, "draws from generator, a random generator", "Use random_map(fn(row, rng))"),
        (helped, "draws from generator, a random generator", "Use random_map(fn(row, rng))"),
        (draws_without_a_seed, "calls numpy.random.default_rng()", "Use random_map(fn(row, rng))"),
        (reads_the_clock, "reads the clock: time.perf_counter_ns()", "Compute the row from its argument alone"),
        (counts, "changes total, which lives outside", "Compute the row from its argument alone"),
        (counts_in_an_iterator, "changes counter, which lives outside", "Compute the row from its argument alone"),
        (remembers_the_last_row, "changes seen, which lives outside", "Compute the row from its argument alone"),
        (CountsCalls(), "changes self.calls, which lives outside", "Compute the row from its argument alone"),
        (functools.partial(draws_globally), "draws from NumPy's global", "Use random_map(fn(row, rng))"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__) if callable(value) else "",
)
def test_the_stage_is_named_with_what_it_does_and_the_mend(function: Any, what: str, mend: str) -> None:
    pipe = source().map(doubled).map(function).map(doubled).batch(8).map(doubled)
    finding = only(judged(pipe, "again", "order"))
    assert finding.stage == 2
    assert finding.where == f"stage 2 {pipe.stages[2].label}"
    assert what in finding.what
    assert finding.mend.startswith(mend)
    assert finding.leaves == ("x",)
    assert (finding.epoch, finding.step) == (0, 0)
    assert set(finding.rows) <= set(bk.explain(pipe, 0).row.tolist())


def test_behind_batch_the_mend_speaks_of_batches() -> None:
    finding = only(judged(source().batch(8).map(draws_globally), "again"))
    assert finding.stage == 2
    assert finding.mend.startswith("Use random_map(fn(batch, rng))")


def test_a_random_map_is_told_to_draw_from_its_rng() -> None:
    finding = only(judged(source().random_map(lambda row, rng: draws_globally(row)).batch(8), "again"))
    assert finding.stage == 1
    assert finding.mend == "Draw from rng, the second argument of the function, alone"


def test_behind_batches_taken_apart_the_same_rows_are_looked_at() -> None:
    pipe = source().batch(8).map(doubled).unbatch().shuffle(seed=3).map(draws_globally).batch(6)
    assert only(judged(pipe, "again")).stage == 5


def test_behind_a_filter_on_batches_the_rows_are_named_that_it_left() -> None:
    def noisy(batch: Any) -> Any:
        return {**batch, "noise": np.random.default_rng().random(len(batch["x"]))}

    pipe = bk.from_arrays({"x": np.arange(64)}).batch(8).filter(lambda batch: batch["x"] % 2 == 1).map(noisy)
    found = bk.verify(pipe, steps=3, without=("process", "threads")).findings[0]
    assert (found.stage, found.step, found.rows) == (2, 0, (1, 3, 5, 7))


def test_the_first_of_several_is_named() -> None:
    verdict = judged(source().map(counts).map(draws_globally).batch(8), "again", "process")
    assert only(verdict).stage == 1
    assert outcome(verdict, "process") == "not run"
    assert "verify again" in verdict.notes[0]


def test_what_another_second_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchkit.checking.checks.TICK", 1.1)
    finding = only(judged(source().map(lambda row: {**row, "x": int(time.time())}).batch(8), "again", "order"))
    assert finding.stage == 1
    assert finding.check in ("again", "order")  # "again", if a second passed just then
    assert "reads the clock: time.time()" in finding.what


def test_what_another_process_changes_is_found() -> None:
    finding = only(judged(source().map(lambda row: {**row, "h": os.getpid()}).batch(8), "process"))
    assert (finding.stage, finding.leaves) == (1, ("h",))
    assert "in another process; it uses os.getpid" in finding.what


def test_what_threads_disturb_is_found() -> None:
    both = threading.Barrier(2)

    def shares_a_buffer(batch: Any) -> Any:
        scratch[:] = batch["x"][0]
        if threading.current_thread() is not threading.main_thread():
            try:
                both.wait(0.2)
            except threading.BrokenBarrierError:
                both.reset()
        return {**batch, "x": batch["x"] + scratch}

    finding = only(judged(source().batch(8).map(shares_a_buffer), "again", "threads"))
    assert (finding.check, finding.stage, finding.leaves) == ("threads", 2, ("x",))
    assert "make buffers inside the function" in finding.mend


def centred(batch: Any) -> Any:
    return {**batch, "x": batch["x"] - batch["x"].mean()}


@pytest.mark.parametrize("check", ["batch size", "ranks"])
@pytest.mark.parametrize("endless", [False, True])
def test_rows_that_depend_on_their_batch_are_found(check: str, endless: bool) -> None:
    pipe = (source().repeat() if endless else source()).map(doubled).batch(8).map(centred)
    finding = only(judged(pipe, "again", check))
    assert (finding.check, finding.stage, finding.leaves) == (check, len(pipe.stages) - 1, ("x",))
    assert "depends on the other rows of its batch" in finding.what


def test_rows_that_depend_on_their_batch_may_be_meant() -> None:
    assert bk.verify(source().batch(8).map(centred), steps=4, without=["batch size", "ranks", "process"]).ok


def test_one_buffer_for_some_of_the_rows_is_found() -> None:
    """One for all rows shows in the first of a run, and is copied."""

    def filled(row: Any) -> Any:
        if row["i"] % 2:
            return {"x": row["x"] * 1}
        scratch[:] = row["x"]
        return {"x": scratch}

    finding = only(judged(source().map(filled).batch(8), "again", "batch size"))
    assert finding.stage == 1
    assert "one and the same, filled anew" in finding.what


def test_a_row_changed_in_place_is_found_though_it_gives_the_same_twice() -> None:
    def first_is_zero(row: Any) -> Any:
        row["x"][0] = 0
        return row

    pipe = bk.from_sequence([{"x": np.ones(2)} for _ in range(20)]).map(doubled).map(dict).batch(4)
    assert judged(pipe, "source", "again").ok
    pipe = bk.from_sequence([{"x": np.ones(2)} for _ in range(20)]).map(dict).map(first_is_zero).batch(4)
    finding = only(judged(pipe, "source", "again"))
    assert (finding.check, finding.stage, finding.leaves) == ("source", 1, ("x",))
    assert "changes its argument in place" in finding.what


def test_a_failure_that_comes_the_second_time_is_found() -> None:
    calls: list[int] = []

    def fails_later(row: Any) -> Any:
        calls.append(1)
        if len(calls) > 40:
            raise ValueError("used up")
        return row

    finding = only(judged(source().map(fails_later).batch(8), "again"))
    assert finding.stage == 1
    assert "ValueError: used up" in finding.what


def test_a_stage_that_fails_at_once_is_its_own_error() -> None:
    def fails(row: Any) -> Any:
        raise ValueError("never")

    with pytest.raises(bk.StageError, match=r"stage 1 map\(.*fails\) failed on row"):
        bk.verify(source().map(fails).batch(8))


# --- sources


def test_a_generator_with_other_rows_each_time_is_found() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for _ in range(20):
            yield {"x": np.random.rand()}

    finding = only(judged(bk.from_generator(rows).map(doubled).batch(4), "again", "order"))
    assert (finding.stage, finding.where) == (None, "the source (generator)")
    assert "fixed seed" in finding.mend


def test_a_generator_that_ends_sooner_the_next_time_is_found() -> None:
    lengths = iter([20, 20, 6, 6] + [20, 6] * 40)

    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"x": number} for number in range(next(lengths)))

    finding = only(judged(bk.from_generator(rows).batch(4), "again"))
    assert finding.stage is None
    assert "no such step the other time" in finding.what or "rows one time" in finding.what


def test_a_generator_with_other_rows_in_another_process_is_found() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"x": os.getpid()} for _ in range(20))

    finding = only(judged(bk.from_generator(rows).batch(4), "again", "process"))
    assert (finding.check, finding.stage) == ("process", None)


def test_a_map_behind_a_generator_is_found() -> None:
    assert only(judged(bk.from_generator(numbers).map(doubled).map(draws_globally).batch(4), "again")).stage == 1


def test_a_map_behind_a_generator_that_remembers_is_found() -> None:
    finding = only(judged(bk.from_generator(numbers).map(remembers_the_last_row).batch(4), "again", "order"))
    assert finding.stage == 0


def test_a_sequence_with_other_rows_each_time_is_found() -> None:
    class Noisy:
        def __len__(self) -> int:
            return 12

        def __getitem__(self, row: int) -> Any:
            return {"x": np.random.rand()}

    finding = only(judged(bk.from_sequence(Noisy()).map(doubled).batch(4), "source", "again"))
    assert (finding.stage, finding.where) == (None, "the source (sequence)")


# --- states


@dataclasses.dataclass(frozen=True)
class Looked(bk.ColumnStage):
    verb: ClassVar[str] = "looked"
    table: Any

    @property
    def label(self) -> str:
        return f"looked({self.table!r})"

    def apply(self, columns: Any) -> Any:
        return columns


def test_a_label_with_an_address_is_found() -> None:
    class Table:
        pass

    finding = only(judged(source().apply(Looked(Table())).batch(8), "state"))
    assert (finding.check, finding.stage) == ("state", 1)
    assert "address in memory" in finding.what


def test_a_source_that_names_itself_anew_is_found() -> None:
    class Named:
        def __init__(self) -> None:
            self.schema = {"x": bk.LeafSpec(np.dtype("f4"), ())}
            self.names = itertools.count()

        def __len__(self) -> int:
            return 8

        def fingerprint(self) -> str:
            return f"made at {next(self.names)}"

        def gather(self, rows: Any, out: Any = None) -> Any:
            return {"x": rows.astype("f4")}

    finding = only(judged(bk.from_source(Named()).batch(2), "state"))
    assert (finding.stage, finding.where) == (None, "the source")
    assert "fingerprint()" in finding.what


# --- what it says, and what it refuses


def test_what_cannot_be_sent_to_a_process_is_said_and_no_finding() -> None:
    lock = threading.Lock()
    verdict = judged(source().map(lambda row: (lock, row)[1]).batch(8), "again", "process")
    assert verdict.ok
    assert outcome(verdict, "process") == "not run"
    assert "stage 1" in next(check.detail for check in verdict.checks if check.name == "process")


def test_what_may_differ_on_another_day_is_noted() -> None:
    def dated(row: Any) -> Any:
        return {**row, "year": time.gmtime().tm_year}

    verdict = judged(source().map(dated).batch(8), "again")
    assert verdict.ok
    assert "stage 1" in verdict.notes[0]
    assert "time.gmtime()" in verdict.notes[0]


def test_global_random_numbers_are_left_as_they_are_by_a_lawful_pipeline() -> None:
    state = np.random.get_state(legacy=False)
    python = random.getstate()
    judged(source().random_map(plus_noise).batch(8), "again", "order", "ranks")
    assert str(np.random.get_state(legacy=False)) == str(state)
    assert random.getstate() == python


def test_a_verdict_is_printed_and_written_as_json() -> None:
    verdict = judged(source().map(draws_globally).batch(8), "again")
    assert str(verdict).startswith("the law is broken\nsteps looked at (epoch/step): 0/0")
    assert str(verdict.findings[0]) in str(verdict)
    written = json.loads(json.dumps(verdict.to_dict()))
    assert written["ok"] is False
    assert written["findings"][0]["stage"] == 1
    assert {check["name"] for check in written["checks"]} == {*NAMES} - {"source", "state"}


def test_wrong_arguments_are_refused() -> None:
    pipe = source().batch(8)
    with pytest.raises(bk.PipelineError, match="no check 'rank'; did you mean 'ranks'"):
        bk.verify(pipe, without=["rank"])
    with pytest.raises(bk.PipelineError, match=r"several names, such as \('ranks',\)"):
        bk.verify(pipe, without="ranks")
    with pytest.raises(bk.PipelineError, match="at least 1"):
        bk.verify(pipe, steps=0)
    with pytest.raises(bk.PipelineError, match=r"ends in rows.*add \.batch"):
        bk.verify(source())
    with pytest.raises(bk.PipelineError, match="no batches"):
        bk.verify(bk.from_arrays(np.zeros(0)).batch(2))
    with pytest.raises(bk.PipelineError, match="no batches"):
        bk.verify(bk.from_generator(lambda: iter([])).batch(2))


# --- the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "verified_functions.py").write_text(
        textwrap.dedent("""
            import numpy as np

            def noisy(row):
                return {**row, "x": row["x"] + np.random.normal()}

            def double(row):
                return {**row, "x": row["x"] * 2}
        """)
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("verified_functions", None)


def save(folder: Path, *stages: Any, **loader: Any) -> None:
    pipeline = {"source": {"kind": "npy", "path": {"x": "x.npy"}}, "stages": list(stages)}
    (folder / "train.json").write_text(json.dumps({"pipeline": pipeline, "loader": loader}))


def command(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["verify", "train.json", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_succeeds_where_the_law_holds(folder: Path) -> None:
    save(folder, {"shuffle": 0}, {"map": "verified_functions:double"}, {"batch": 8}, backend="no_such_framework")
    assert command("--steps", "4").startswith("the law holds in every way that was tried\n")


def test_the_command_fails_and_names_the_stage(folder: Path) -> None:
    save(folder, {"map": "verified_functions:double"}, {"map": "verified_functions:noisy"}, {"batch": 8})
    output = command("--steps", "4", code=1)
    assert "stage 1 map(verified_functions:noisy) breaks the law" in output
    assert "it draws from NumPy's global random numbers" in output


def test_the_command_prints_json(folder: Path) -> None:
    save(folder, {"map": "verified_functions:noisy"}, {"batch": 8})
    found = json.loads(command("--json", "--steps", "4", "--without", "process", "--sample-seed", "3", code=1))
    assert (found["ok"], found["findings"][0]["stage"]) == (False, 0)


def test_the_command_refuses_a_check_that_there_is_not(folder: Path) -> None:
    save(folder, {"batch": 8})
    assert "rank" in command("--without", "rank", code=2)


def test_a_pipeline_that_cannot_be_computed_is_a_failure(folder: Path) -> None:
    save(folder, {"map": "verified_functions:double"}, {"map": "operator:index"}, {"batch": 8})
    assert "stage 1 map(_operator:index) failed on row 0" in command(code=1)
