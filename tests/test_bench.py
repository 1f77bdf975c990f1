"""``batchkit bench``: what it measures, what it leaves out and why, and what it writes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import batchkit as bk
from batchkit import bench
from batchkit.backends import NumpyBackend
from batchkit.bench.contestant import run_turn
from batchkit.bench.figures import FIGURES, quantity
from batchkit.bench.match import digest
from batchkit.bench.plot import ticks
from batchkit.bench.record import read
from batchkit.cli import main
from batchkit.config.keys import LOADER

ROWS = 600
QUICK = ("--rounds", "2", "--warmup", "1", "--seconds", "0.02")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOADER:
        monkeypatch.delenv(f"BATCHKIT_{name.upper()}", raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two .npy files and a config."""
    np.save(tmp_path / "x.npy", np.zeros((ROWS, 3), np.float32))
    np.save(tmp_path / "y.npy", np.arange(ROWS))
    save(tmp_path, {"batch": 8})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(folder: Path, *stages: Any, **source: Any) -> None:
    source = source or {"kind": "npy", "path": {"x": "x.npy", "y": "y.npy"}}
    content = {"pipeline": {"source": source, "stages": list(stages)}, "loader": {"workers": 1}}
    (folder / "train.yaml").write_text(json.dumps(content))


def functions(folder: Path, source: str) -> None:
    (folder / "functions_here.py").write_text(textwrap.dedent(source))


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["bench", "train.yaml", *QUICK, *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def written(folder: Path) -> bench.Record:
    return read(folder / "bench-results/bench.json")


def turn(rows_per_s: float, first_s: float = 0.01) -> bench.Turn:
    return bench.Turn(1.0, 10, int(rows_per_s), 0.5, first_s, 1000, 2000)


def record(**rates: list[float]) -> bench.Record:
    """Return a record of contenders of one executor, by their rows per second in every round."""
    results = [bench.Result(name, "inline", turns=[turn(rate) for rate in of]) for name, of in rates.items()]
    config = {"path": "train.yaml", "pipeline": None, "overrides": {}, "digest": "d"}
    return bench.Record(1, "2024-05-06T07:08:09+00:00", config, bench.Terms(), bench.machine(["numpy"]), results)


# --- what is measured


def test_every_pair_of_backend_and_executor_is_measured(folder: Path) -> None:
    result = run("--executors", "inline,threads,processes", "--seconds", "30")
    found = written(folder)
    assert [one.name for one in found.measured] == ["numpy/inline", "numpy/threads", "numpy/processes"]
    for one in found.results:
        assert (len(one.warmup), len(one.turns)) == (1, 2)
        for each in one.turns:
            assert 0 < each.first_s <= each.seconds
            assert 0 < each.waited_s <= each.seconds
            assert each.bytes == each.rows * (3 * 4 + 8)
            assert each.rows > 0
            assert each.batches % (ROWS // 8) == 0  # whole epochs
        assert one.executor in result.stdout
    assert "rows/s" in result.stdout
    assert found.machine["packages"]["numpy"] == np.__version__


def test_every_framework_is_measured_or_a_line_that_says_what_to_install(folder: Path) -> None:
    result = run("--backends", "numpy,torch,jax,tensorflow", "--executors", "inline")
    found = {one.backend: one for one in written(folder).results}
    assert list(found) == ["numpy", "torch", "jax", "tensorflow"]
    for name, one in found.items():
        if all(find_spec(module) for module in (name, f"batchkit_{name}")) or name == "numpy":
            assert one.problem is None
            assert [each.rows > 0 for each in one.turns] == [True, True]
            assert f"{name}/inline is left out" not in result.stdout
        else:
            assert one.turns == []
            assert f"{name}/inline is left out: " in result.stdout
            assert "pip install" in (one.problem or "")


def test_rounds_are_interleaved() -> None:
    told: list[str] = []
    order = [name for _, name in bench.interleaved(["a", "b", "c"], 2, told.append)]
    assert order == ["a", "b", "c", "a", "b", "c"]
    assert told == ["round 1 of 2", "round 2 of 2"]


def test_contenders_of_one_process_take_turns_too() -> None:
    ran: list[str] = []

    def epoch(name: str) -> Iterator[int]:
        ran.append(name)
        yield 1

    both = [bench.Contender(name, lambda name=name: epoch(name)) for name in "ab"]  # type: ignore[misc]
    timings = bench.take_turns(both, 3, budget=0)
    assert ran == ["a", "b"] * 3
    assert [len(timings[name].seconds) for name in "ab"] == [3, 3]
    assert bench.ratio(timings, "a", "a") == 1


def test_a_turn_has_as_many_batches_as_were_asked_for_over_several_epochs() -> None:
    with bk.Loader(bk.from_arrays(np.arange(10)).batch(4), executor="inline") as loader:
        figures = run_turn(loader, steps=7, seconds=60)
    assert (figures["batches"], figures["rows"]) == (7, 4 + 4 + 2 + 4 + 4 + 2 + 4)


def test_a_quick_epoch_is_repeated_and_an_endless_one_is_cut_off() -> None:
    pipe = bk.from_arrays(np.arange(8)).batch(4)
    with bk.Loader(pipe, executor="inline") as loader:
        figures = run_turn(loader, steps=None, seconds=0.02)
    assert figures["batches"] > 2
    assert figures["batches"] * 4 == figures["rows"]
    with bk.Loader(bk.from_arrays(np.arange(8)).repeat().batch(4), executor="inline") as loader:
        assert 0.02 <= run_turn(loader, steps=None, seconds=0.02)["seconds"] < 2


def test_a_turn_ends_when_an_accelerator_has_the_last_batch() -> None:
    waited: list[str] = []

    class Leaf:
        shape = (4,)

        def __init__(self, kind: str) -> None:
            self.is_cuda = kind == "cuda"
            if kind == "jax":
                self.block_until_ready = lambda: waited.append("jax")

        def ravel(self) -> np.ndarray[Any, Any]:
            class Column(np.ndarray[Any, Any]):
                def cpu(self) -> None:
                    waited.append("cuda")

            return np.zeros(4).view(Column)

    class Slow(NumpyBackend):
        def put(self, batch: Any, device: Any) -> Any:
            return (Leaf("jax"), {"inner": Leaf("cuda"), "other": Leaf("cpu")})

    with bk.Loader(bk.from_arrays(np.arange(8)).batch(4), backend=Slow(), executor="inline") as loader:
        assert run_turn(loader, steps=1, seconds=60)["rows"] == 4
    assert waited == ["jax", "cuda"]


def test_work_is_not_counted_as_waiting() -> None:
    with bk.Loader(bk.from_arrays(np.arange(40)).batch(4), executor="inline") as loader:
        idle = run_turn(loader, steps=10, seconds=60)
        working = run_turn(loader, steps=10, seconds=60, work=lambda: time.sleep(0.01))
    assert working["seconds"] >= 0.1
    assert working["waited_s"] < 0.1
    assert working["waited_s"] / working["seconds"] < idle["waited_s"] / idle["seconds"]


@pytest.mark.parametrize("how", [[], ["--busy"]])
def test_work_lowers_the_wait_share_of_the_command(folder: Path, how: list[str]) -> None:
    run("--executors", "inline", "--work", "5", "--steps", "4", "--seconds", "5", *how)
    for each in written(folder).results[0].turns:
        assert each.batches == 4
        assert each.seconds >= 0.02
        assert each.wait_share < 0.5


def test_options_choose_the_pipeline_and_change_it(folder: Path) -> None:
    run("--executors", "inline", "--steps", "3", "--seconds", "5", "--set", "pipeline.stages[0].batch.size=5")
    found = written(folder)
    assert found.config["overrides"] == {"pipeline.stages[0].batch.size": 5}
    assert [each.rows for each in found.results[0].turns] == [15, 15]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can start the peak again")
def test_peak_memory_is_what_the_pipeline_needs(folder: Path) -> None:
    functions(folder, "import numpy as np\ndef grow(batch):\n    return {'x': np.ones((8, 1 << 20))}\n")
    save(folder, {"batch": 8}, {"map": "functions_here:grow"})
    run("--executors", "inline", "--steps", "2", "--seconds", "20")
    for each in written(folder).results[0].turns:
        assert each.peak_bytes is not None
        assert 64 << 20 <= each.peak_bytes < 400 << 20


# --- what is left out


def test_a_missing_backend_and_executor_are_lines_and_the_rest_goes_on(folder: Path) -> None:
    result = run("--backends", "nowhere,numpy", "--executors", "inline,thread")
    assert "nowhere/inline is left out: UnknownNameError: no backend 'nowhere'" in result.stdout
    assert "numpy/thread is left out: UnknownNameError: no executor 'thread'; did you mean 'threads'?" in result.stdout
    assert [one.name for one in written(folder).measured] == ["numpy/inline"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("raise ValueError('nine')", "nine"),
        ("os._exit(7)", "its process ended with exit code 7"),
        ("print('last words', file=sys.stderr, flush=True); os._exit(3)", "exit code 3; it said: last words"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its process was killed by SIGKILL"),
    ],
    ids=["raises", "exits", "says why it exits", "is killed"],
)
def test_a_contender_that_fails_is_a_line(folder: Path, body: str, problem: str) -> None:
    functions(folder, f"import os, signal, sys\ndef fail(batch):\n    {body}\n")
    save(folder, {"batch": 8}, {"map": "functions_here:fail"})
    result = run("--executors", "inline", code=1)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("numpy/inline is left out: ")]
    assert problem in line
    assert "no contender could be measured" in result.stdout
    assert problem in (written(folder).results[0].problem or "")


def test_a_contender_that_dies_while_others_do_not(folder: Path) -> None:
    functions(
        folder,
        """
        import os, threading
        def fail(batch):
            if threading.current_thread() is not threading.main_thread():
                os._exit(7)
            return batch
        """,
    )
    save(folder, {"batch": 8}, {"map": "functions_here:fail"})
    (folder / "off_thread.py").write_text(
        "import batchkit as bk\nfrom batchkit.executors import InlineExecutor\nfrom concurrent.futures import *\n"
        "class Elsewhere(InlineExecutor):\n    name = 'elsewhere'\n"
        "    def run(self, plan, steps, window):\n"
        "        ThreadPoolExecutor(1).submit(plan.compute, next(iter(steps))).result()\n"
        "@bk.hookimpl\ndef batchkit_executors():\n    return {'elsewhere': lambda workers: Elsewhere()}\n"
    )
    content = json.loads((folder / "train.yaml").read_text())
    (folder / "train.yaml").write_text(json.dumps({**content, "plugins": ["./off_thread.py"]}))
    result = run("--executors", "elsewhere,inline")
    assert "numpy/elsewhere is left out: its process ended with exit code 7" in result.stdout
    assert [one.name for one in written(folder).measured] == ["numpy/inline"]


def test_a_contender_that_hangs_is_ended(folder: Path) -> None:
    functions(
        folder,
        """
        import os, time
        def hang(batch):
            open(f"pid-{os.getpid()}", "w").close()
            time.sleep(1000)
        """,
    )
    save(folder, {"batch": 8}, {"map": "functions_here:hang"})
    result = run("--executors", "inline,processes", "--timeout", "1.5", code=1)
    assert "numpy/inline is left out: hung: there was no answer for 1.5 s" in result.stdout
    assert "numpy/processes is left out: hung: there was no answer for 1.5 s" in result.stdout
    assert_gone(folder)


def test_a_function_that_prints_does_not_disturb(folder: Path) -> None:
    functions(
        folder, "import sys\ndef chat(batch):\n    print('hello')\n    assert not sys.stdin.read()\n    return batch"
    )
    save(folder, {"batch": 8}, {"map": "functions_here:chat"})
    assert "hello" not in run("--executors", "inline").output
    assert len(written(folder).measured) == 1


def test_a_pipeline_without_batches_is_a_line(folder: Path) -> None:
    save(folder, {"take": 0}, {"batch": 8})
    assert "the pipeline has no batches" in run("--executors", "inline", code=1).stdout


def test_data_that_is_not_there_is_a_line_of_every_contender(folder: Path) -> None:
    (folder / "x.npy").unlink()
    result = run("--executors", "inline,threads", code=1)
    assert result.stdout.count("SourceNotFoundError: there is no file ") == 2


def assert_gone(folder: Path) -> None:
    """See that no process that has left its number is still there."""
    numbers = [int(path.name.partition("-")[2]) for path in folder.glob("pid-*")]
    assert numbers
    deadline = time.monotonic() + 10
    while numbers and time.monotonic() < deadline:
        numbers = [number for number in numbers if alive(number)]
        time.sleep(0.05)
    assert numbers == []


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{number}/stat")  # one that nobody has waited for yet has ended, too
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_contestant_stays_behind(folder: Path, how: signal.Signals, code: int) -> None:
    functions(
        folder,
        """
        import os, time
        def slow(batch):
            open(f"pid-{os.getpid()}", "w").close()
            time.sleep(0.05)
            return batch
        """,
    )
    save(folder, {"batch": 8}, {"map": "functions_here:slow"})
    root = str(Path(bk.__file__).parents[1])
    command = [sys.executable, "-m", "batchkit.cli", "bench", "train.yaml", "--seconds", "50"]
    with subprocess.Popen(
        [*command, "--executors", "inline,processes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        cwd=folder,
    ) as started:
        while not list(folder.glob("pid-*")):
            assert started.poll() is None
            time.sleep(0.02)
        started.send_signal(how)
        out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert_gone(folder)


# --- usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "numpy,"], "has an empty name"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
        (["--timeout", "1", "--seconds", "2"], "must be longer than --seconds"),
        (["--fail-on-slower"], "needs --against"),
        (["--against", "nowhere.json"], "nowhere.json cannot be read as a benchmark's record"),
        (["--against", "train.yaml"], "train.yaml has version None, not 1"),
        (["--set", "pipeline.stages=[{bach: 3}]"], "did you mean 'batch'?"),
        (["--set", "nothing"], "not of the form key=value"),
        (["--pipeline", "test"], "pipeline 'test' was asked for"),
        (["--output", "train.yaml/deeper"], "the folder cannot be made"),
    ],
)
def test_bad_usage_and_bad_config_end_with_2(folder: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (folder / "bench-results").exists()


def test_without_imports_a_config_that_names_functions_is_refused(folder: Path) -> None:
    functions(folder, "raise AssertionError('this ran')")
    save(folder, {"batch": 8}, {"map": "functions_here:f"})
    assert "which would be imported and run" in run("--no-imports", code=2).stderr


# --- JSON


def test_json_goes_to_stdout_and_comes_back(folder: Path) -> None:
    result = run("--executors", "inline", "--json", "--output", "deep/there")
    path = folder / "deep/there/bench.json"
    assert result.stdout == path.read_text()
    content = json.loads(result.stdout)
    assert content["version"] == 1
    assert datetime.fromisoformat(content["date"]).tzinfo is not None
    assert read(path).text() == path.read_text()


def test_the_date_is_the_clocks(folder: Path) -> None:
    contest, entries = bench.Contest("train.yaml"), [bench.Entry("numpy", "inline")]
    terms = bench.Terms(rounds=1, warmup=0, seconds=0.01)
    found = bench.measure(contest, entries, terms, lambda: datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc))
    assert found.date == "2024-05-06T07:08:09+00:00"


def test_the_digest_is_that_of_what_the_config_says(folder: Path) -> None:
    before = digest(bench.Contest("train.yaml"))
    path = folder / "train.yaml"
    path.write_text(f"# a comment\n{path.read_text()}\n")
    assert digest(bench.Contest("train.yaml")) == before
    assert digest(bench.Contest("train.yaml", overrides={"loader.workers": 2})) != before
    save(folder, {"batch": 9})
    assert digest(bench.Contest("train.yaml")) != before


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("results", 0, "turns", 0, "seconds"), "long", "results.0.turns.0.seconds"),
        (("results", 0, "turns", 0, "seconds"), 0, "a turn without time or rows"),
        (("results", 0, "turns"), [], "no contender"),
        (("results", 1, "turns"), "one", "results.1.turns"),
        (("version",), 2, "has version 2, not 1"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, place: tuple[Any, ...], value: Any, message: str) -> None:
    content = dataclasses.asdict(record(a=[1, 2], b=[3, 4]))
    inner: Any = content
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(content))
    if value == []:
        assert [one.name for one in read(path).measured] == ["b/inline"]
        return
    with pytest.raises(bk.ConfigError, match=message):
        read(path)


def test_a_record_of_unequal_rounds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(record(a=[1, 2], b=[3]).text())
    with pytest.raises(bk.ConfigError, match="have not run the same number of rounds"):
        read(tmp_path / "bench.json")


# --- two runs


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ([201, 210, 220], "faster"),
        ([99, 98, 97], "slower"),
        ([200, 300, 400], "within the spread"),
        ([90, 95, 100], "within the spread"),
        ([1000], "too few rounds"),
    ],
)
def test_beyond_the_spread_is_where_the_rounds_do_not_overlap(now: list[float], verdict: str) -> None:
    (change,) = bench.compare(record(a=now), record(a=[100, 150, 200]))
    assert change.rows_verdict == verdict
    assert change.rows == pytest.approx(np.median(now) / 150)


def test_each_run_is_also_compared_with_its_own_first_contender() -> None:
    changes = bench.compare(record(a=[100, 100], b=[300, 300]), record(b=[100, 100], a=[50, 50]))
    assert [(change.name, change.place_then, change.place_now) for change in changes] == [
        ("a/inline", 1, 1),
        ("b/inline", 2, 3),
    ]


def test_what_else_differs_between_two_runs_is_said() -> None:
    now, then = record(a=[1, 2], b=[1, 2]), record(a=[1, 2], c=[1, 2])
    then.config["digest"] = "other"
    then.terms = bench.Terms(work_ms=3)
    then.machine = {**then.machine, "cpu": "another", "packages": {"numpy": "1.0"}}
    lines = "\n".join(bench.incomparable(now, then))
    for part in ("the configs are not the same", "work_ms was 3", "cpu was another", "numpy was 1.0 then"):
        assert part in lines
    assert "c/inline was measured only then" in lines
    assert "b/inline is measured only now" in lines
    assert bench.incomparable(now, now) == []


@pytest.mark.parametrize(
    ("factor", "verdict", "code"), [(1e-6, "faster", 0), (1.0, "within the spread", 0), (1e6, "slower", 1)]
)
def test_against_marks_what_is_beyond_the_spread(folder: Path, factor: float, verdict: str, code: int) -> None:
    run("--executors", "inline")
    path = folder / "bench-results/bench.json"
    other = written(folder)
    rate = other.results[0].turns[0].rows_per_s * factor
    other.results[0].turns = [turn(max(rate * share, 1)) for share in (0.1, 10)]  # noise stays within
    path.write_text(other.text())
    result = run("--executors", "inline", "--against", str(path), "--fail-on-slower", code=code)
    assert f"x {verdict}" in result.stdout
    assert verdict in Page((folder / "bench-results/bench.html").read_text()).words


def test_slower_is_no_failure_unless_it_was_asked_for(folder: Path) -> None:
    (folder / "other.json").write_text(record(numpy=[1e15, 1e15]).text())
    result = run("--executors", "inline", "--against", "other.json")
    assert "x slower" in result.stdout
    assert "note: the configs are not the same" in result.stdout


# --- HTML


class Page(HTMLParser):
    """What a page has, and whether every element that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_has_every_contender_and_a_plot_of_every_figure() -> None:
    shown = record(a=[100, 110, 120], b=[2e6, 3e6, 4e6])
    shown.results.append(bench.Result("c", "threads", problem="ValueError: <nine> & more"))
    page = Page(bench.page(shown))
    assert page.open == []
    assert page.tags.count("svg") == len(FIGURES) == 4
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert [figure.title.split(" beyond")[0] for figure in FIGURES] == [
        *("Throughput", "Time to the first batch", "Wait share", "Peak memory")
    ]
    assert labels == [f"{figure.title} of every contender" for figure in FIGURES]
    for name in ("a/inline", "b/inline"):
        assert page.words.count(name) >= len(FIGURES)
    assert page.tags.count("rect") == 2 * len(FIGURES)
    assert page.tags.count("circle") == 2 * 3 * len(FIGURES)
    assert {"c/threads", "ValueError: <nine> & more", shown.date, shown.config["digest"]} <= set(page.words)
    assert shown.machine["cpu"] in page.words


def test_the_page_loads_nothing(folder: Path) -> None:
    run("--backends", "numpy,nowhere", "--executors", "inline")
    text = (folder / "bench-results/bench.html").read_text()
    page = Page(text)
    assert "://" not in text
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert "url(" not in text
    assert "@import" not in text


def test_a_page_without_results_says_so() -> None:
    shown = record()
    shown.results.append(bench.Result("c", "threads", problem="gone"))
    page = Page(bench.page(shown))
    assert "No contender could be measured." in page.words
    assert "gone" in page.words
    assert "svg" not in page.tags


def test_a_figure_that_cannot_be_known_is_unknown() -> None:
    shown = record(a=[100, 110])
    shown.results[0].turns = [dataclasses.replace(one, bytes=None, peak_bytes=None) for one in shown.results[0].turns]
    assert "unknown" in Page(bench.page(shown)).words


@pytest.mark.parametrize("highest", [3e-7, 0.5, 1, 9.99, 10, 101, 2.5e9])
def test_ticks_are_few_and_reach_the_highest_value(highest: float) -> None:
    marks = ticks(highest)
    assert 3 <= len(marks) <= 7
    assert marks[0] == 0
    assert marks[-1] >= highest * (1 - 1e-9)
    assert np.allclose(np.diff(marks), marks[1])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "rows/s", "0 rows/s"), (1234, "rows/s", "1.23 k rows/s"), (2.5, "s", "2.5 s"), (3e9, "B/s", "3 GB/s")],
)
def test_quantities_are_written_with_the_unit_that_fits(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text
