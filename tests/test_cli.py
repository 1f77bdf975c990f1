"""The command line: what it prints where, and its exit codes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

import batchkit as bk
from batchkit.cli import main
from batchkit.cli.digest import Digest
from batchkit.config import json_schema
from batchkit.config.keys import LOADER

ROWS = 20
X = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3)
Y = np.arange(ROWS, dtype=np.int64)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOADER:
        monkeypatch.delenv(f"BATCHKIT_{name.upper()}", raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with two .npy files and a config; what is imported from it is forgotten afterwards."""
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    save(tmp_path, {"batch": 8})
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def save(folder: Path, *stages: Any, name: str = "train.yaml", **source: Any) -> Path:
    source = source or {"kind": "npy", "path": {"x": "x.npy", "y": "y.npy"}}
    path = folder / name
    path.write_text(json.dumps({"pipeline": {"source": source, "stages": list(stages)}, "loader": {"workers": 2}}))
    return path


def functions(folder: Path, source: str) -> None:
    (folder / "functions_here.py").write_text(textwrap.dedent(source))


def batchkit(*arguments: str, code: int = 0) -> Result:
    """Run a command in this process."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    root = str(Path(bk.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*options.pop("path", []), root]), "COLUMNS": "120"}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "batchkit.cli", *arguments]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, **options)


def finished(*arguments: str, **options: Any) -> tuple[int, str, str]:
    with process(*arguments, **options) as started:
        out, err = started.communicate(timeout=60)
    return started.returncode, out, err


# --- run


def test_run_summarises_on_stdout(folder: Path) -> None:
    result = batchkit("run", "train.yaml")
    assert re.match(
        r"3 batches, 20 rows, 1 whole epoch in \d+\.\d\d s: [\d,]+ rows/s\nfirst batch after ", result.stdout
    )
    assert result.stderr == ""


def test_run_writes_json_for_machines(folder: Path) -> None:
    summary = json.loads(batchkit("run", "train.yaml", "--json").stdout)
    assert summary["backend"] == "numpy"
    assert (summary["epochs"], summary["batches"], summary["rows"]) == (1, 3, 20)
    assert summary["seconds"] > 0
    assert summary["rows_per_s"] == pytest.approx(20 / summary["seconds"])
    assert 0 < summary["time_to_first_batch_s"] <= summary["seconds"]
    assert 0 < summary["wait_share"] <= 1
    assert summary["interrupted"] is False
    assert "digest" not in summary


def test_the_digest_is_that_of_the_bytes_of_all_leaves(folder: Path) -> None:
    expected = hashlib.sha256()
    for start in range(0, ROWS, 8):
        expected.update(X[start : start + 8].tobytes())
        expected.update(Y[start : start + 8].tobytes())
    assert json.loads(batchkit("run", "train.yaml", "--digest", "--json").stdout)["digest"] == expected.hexdigest()
    assert f"\ndigest {expected.hexdigest()}\n" in batchkit("run", "train.yaml", "--digest").stdout


def test_the_digest_of_text_does_not_depend_on_the_batch(folder: Path) -> None:
    np.save(folder / "names.npy", np.array(["a", "bcd", "ef", "g"]))
    save(folder, {"batch": 2}, kind="npy", path="names.npy")
    digests = {
        json.loads(
            batchkit("run", "train.yaml", "--digest", "--json", "--set", f"pipeline.stages[0].batch={size}").stdout
        )["digest"]
        for size in (1, 2, 4)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("dtype", ["M8[s]", "?", "c8", "V3", ">i4"])
def test_every_dtype_has_a_digest(folder: Path, dtype: str) -> None:
    data = np.arange(12, dtype="u1").repeat(8).view("u1")[: 12 * np.dtype(dtype).itemsize].copy()
    data = (data % 2 if dtype == "?" else data).view(dtype)
    digest = Digest()
    for start in range(0, 12, 5):
        digest.add({"a": data[start : start + 5], "b": data[start].copy()})
    expected = hashlib.sha256()
    for start in range(0, 12, 5):
        expected.update(data[start : start + 5].tobytes() + data[start].tobytes())
    assert digest.hexdigest() == expected.hexdigest()


def test_what_has_no_bytes_has_no_digest() -> None:
    with pytest.raises(bk.BackendError, match="leaf 'a' holds a object, which has no bytes to digest"):
        Digest().add({"a": object()})


def test_what_numpy_cannot_read_has_no_digest() -> None:
    class Tensor:
        def __array__(self, *_: Any, **__: Any) -> None:
            raise TypeError("got unsupported ScalarType BFloat16")

    with pytest.raises(
        bk.BackendError, match="NumPy cannot read leaf 'a', a Tensor: got unsupported ScalarType BFloat16"
    ):
        Digest().add({"a": Tensor()})


def test_a_leaf_on_another_device_is_copied_to_be_digested() -> None:
    class OnDevice:
        is_cuda = True

        def __array__(self, *_: Any, **__: Any) -> None:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        def cpu(self) -> np.ndarray[Any, Any]:
            return Y

    there, here = Digest(), Digest()
    there.add({"a": OnDevice()})
    here.add({"a": Y})
    assert there.hexdigest() == here.hexdigest()


def test_rows_of_padding_are_not_counted(folder: Path) -> None:
    save(folder, {"batch": {"size": 8, "remainder": "pad"}})
    summary = json.loads(batchkit("run", "train.yaml", "--json").stdout)
    assert (summary["batches"], summary["rows"]) == (3, 20)


def test_epochs_and_steps_limit_the_run(folder: Path) -> None:
    two = json.loads(batchkit("run", "train.yaml", "--epochs", "2", "--json").stdout)
    some = json.loads(batchkit("run", "train.yaml", "--epochs", "9", "--steps", "4", "--json").stdout)
    assert (two["epochs"], two["batches"], two["rows"]) == (2, 6, 40)
    assert (some["epochs"], some["batches"], some["rows"]) == (1, 4, 28)


def test_steps_end_an_endless_pipeline(folder: Path) -> None:
    save(folder, "repeat", {"batch": 8})
    assert json.loads(batchkit("run", "train.yaml", "--steps", "5", "--json").stdout)["rows"] == 40


def test_report_says_where_the_time_went(folder: Path) -> None:
    assert "for backend 'numpy'" in batchkit("run", "train.yaml", "--report").stdout
    assert "for backend 'numpy'" in json.loads(batchkit("run", "train.yaml", "--report", "--json").stdout)["report"]


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["--shard", "1/2"], 10),
        (["--set", "pipeline.stages[0].batch.remainder=drop"], 16),
        (["--set", "pipeline.source.path=y.npy", "--set", "pipeline.stages=[{take: 3}, {batch: 2}]"], 3),
        (["--backend", "numpy", "--executor", "inline", "--workers", "auto", "--prefetch", "0", "--device", "cpu"], 20),
    ],
)
def test_options_override_the_file(folder: Path, arguments: list[str], rows: int) -> None:
    assert json.loads(batchkit("run", "train.yaml", "--json", *arguments).stdout)["rows"] == rows


def test_an_option_beats_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHKIT_SHARD", "0/4")
    assert json.loads(batchkit("run", "train.yaml", "--json").stdout)["rows"] == 5
    assert json.loads(batchkit("run", "train.yaml", "--json", "--shard", "0/2").stdout)["rows"] == 10


def test_a_pipeline_is_chosen_by_name(folder: Path) -> None:
    one = {"source": {"kind": "npy", "path": "y.npy"}, "stages": [{"batch": 4}]}
    other = {**one, "stages": [{"take": 3}, {"batch": 4}]}
    (folder / "two.json").write_text(json.dumps({"pipelines": {"train": one, "test": other}}))
    assert json.loads(batchkit("run", "two.json", "--pipeline", "test", "--json").stdout)["rows"] == 3
    assert "choose one by name" in batchkit("run", "two.json", code=2).stderr


# --- state


def test_a_state_file_goes_on_where_the_last_run_stopped(folder: Path) -> None:
    save(folder, {"shuffle": 5}, {"batch": 3})
    whole = json.loads(batchkit("run", "train.yaml", "--digest", "--json").stdout)
    first = json.loads(batchkit("run", "train.yaml", "--steps", "2", "--state", "state.json", "--json").stdout)
    with bk.load("train.yaml") as loader:
        loader.load_state_dict(json.loads(Path("state.json").read_text()))
        rest = hashlib.sha256()
        for batch in loader:
            rest.update(batch["x"].tobytes() + batch["y"].tobytes())
    second = json.loads(batchkit("run", "train.yaml", "--state", "state.json", "--digest", "--json").stdout)
    assert first["batches"] + second["batches"] == whole["batches"]
    assert second["digest"] == rest.hexdigest()
    assert json.loads(Path("state.json").read_text())["epoch"] == 1
    assert sorted(path.name for path in folder.glob("state*")) == ["state.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "StateError: state.json cannot be read as a state: "),
        ("[" * 100_000, "StateError: state.json cannot be read as a state: "),
        ("{}", "StateError: the state lacks version, epoch, step, pipeline"),
        ("3", "StateError: a state is a dict"),
    ],
)
def test_a_damaged_state_fails_the_run_and_stays(folder: Path, text: str, message: str) -> None:
    Path("state.json").write_text(text)
    assert batchkit("run", "train.yaml", "--state", "state.json", code=1).stderr.startswith(message)
    assert Path("state.json").read_text() == text


def test_a_state_of_another_pipeline_fails_the_run(folder: Path) -> None:
    batchkit("run", "train.yaml", "--state", "state.json")
    save(folder, {"batch": 5})
    assert "the state is of another pipeline" in batchkit("run", "train.yaml", "--state", "state.json", code=1).stderr


def test_a_state_in_a_folder_that_is_not_there_is_refused_at_once(folder: Path) -> None:
    assert "there is no folder" in batchkit("run", "train.yaml", "--state", "nowhere/state.json", code=2).stderr


# --- exit codes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument 'CONFIG'"),
        (["run", "train.yaml", "--epochs", "0"], "0 is not in the range x>=1"),
        (["run", "train.yaml", "--bakend", "numpy"], "No such option"),
        (["nothing"], "No such command 'nothing'"),
        (["run", "trian.yaml"], "ConfigNotFoundError: there is no config file 'trian.yaml' (from "),
        (["run", "train.yaml", "--set", "loader.wrokers=2"], "did you mean 'workers'?"),
        (["run", "train.yaml", "--set", "loader"], "ConfigError: override 'loader' is not of the form key=value"),
        (["run", "train.yaml", "--workers", "many"], "ConfigError: override loader.workers: should be "),
        (["run", "train.yaml", "--shard", "2/2"], "ConfigError: override loader.shard: should be [rank, world]"),
        (["run", "train.yaml", "--backend", "nunpy"], "UnknownNameError: no backend 'nunpy'; did you mean 'numpy'?"),
        (
            ["run", "train.yaml", "--executor", "thread"],
            "UnknownNameError: no executor 'thread'; did you mean 'threads'?",
        ),
        (["run", "train.yaml", "--pipeline", "test"], "ConfigError: train.yaml: pipeline 'test' was asked for"),
        (["inspect", "trian.yaml"], "ConfigNotFoundError: there is no config file"),
    ],
)
def test_bad_usage_and_bad_config_end_with_2(folder: Path, arguments: list[str], message: str) -> None:
    result = batchkit(*arguments, code=2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_all_errors_of_a_config_are_printed(folder: Path) -> None:
    save(folder, "shufle", {"batch": {"sise": 8}})
    lines = batchkit("run", "train.yaml", code=2).stderr.splitlines()
    assert lines[0] == "ConfigError: train.yaml has 3 errors:"
    assert [line[:5] for line in lines[1:]] == ["  1. ", "  2. ", "  3. "]


FAILING = """
    import batchkit as bk

    def fail(batch):
        raise KeyError("no such thing")

    def late(row):
        if row["y"] == 9:
            raise ValueError("nine")
        return row

    def refuse(batch):
        raise bk.PipelineError("not now")
"""


@pytest.mark.parametrize(
    ("stages", "source", "message"),
    [
        ([{"batch": 8}], {"kind": "npy", "path": "z.npy"}, "SourceNotFoundError: there is no file "),
        ([{"batch": 8}], {"kind": "npy", "path": "train.yaml"}, "CorruptSourceError: "),
        ([{"batch": 8}, {"map": "functions_here:fail"}], {}, "StageError: "),
        ([{"map": "functions_here:late"}, {"batch": 8}], {}, "StageError: "),
        ([{"batch": 8}, {"map": "functions_here:refuse"}], {}, "PipelineError: epoch 0, step 0: "),
        ([{"batch": 8}, {"select": "z"}], {}, "MissingLeafError: "),
    ],
)
def test_a_run_that_fails_ends_with_1(folder: Path, stages: list[Any], source: dict[str, Any], message: str) -> None:
    functions(folder, FAILING)
    save(folder, *stages, **source)
    result = batchkit("run", "train.yaml", code=1)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_inspection_that_reads_data_and_fails_ends_with_1(folder: Path) -> None:
    functions(folder, FAILING)
    save(folder, {"batch": 8}, {"map": "functions_here:refuse"})
    assert batchkit("inspect", "train.yaml", code=1).stderr.startswith("PipelineError: ")


def test_a_traceback_is_shown_on_demand(folder: Path) -> None:
    functions(folder, FAILING)
    save(folder, {"map": "functions_here:late"}, {"batch": 8})
    result = batchkit("run", "train.yaml", "--traceback", code=1)
    assert 'raise ValueError("nine")' in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("batchkit.errors.StageError: ")


def test_a_config_error_has_a_traceback_on_demand_too(folder: Path) -> None:
    assert "Traceback" in batchkit("inspect", "nowhere.yaml", "--traceback", code=2).stderr


def test_without_imports_a_config_that_names_functions_is_refused(folder: Path) -> None:
    functions(folder, "raise AssertionError('this ran')")
    save(folder, {"map": "functions_here:f"}, {"batch": 8})
    result = batchkit("run", "train.yaml", "--no-imports", code=2)
    assert "names the function functions_here:f, which would be imported and run" in result.stderr


def test_an_interrupted_run_writes_its_state_and_ends_with_130(folder: Path) -> None:
    functions(folder, "import time\ndef slow(batch):\n    time.sleep(0.05)\n    return batch\n")
    save(folder, "repeat", {"batch": 8}, {"map": "functions_here:slow"})
    with process("run", "train.yaml", "--state", "state.json", "--json", cwd=folder) as started:
        line = started.stderr.readline()  # the first one comes after two seconds
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=60)
    assert re.match(r"epoch 0: batch \d+, [\d,]+ rows, [\d,]+ rows/s\n", line)
    assert started.returncode == 130
    summary = json.loads(out)
    assert summary["interrupted"] is True
    assert json.loads((folder / "state.json").read_text())["step"] == summary["batches"]
    assert err.splitlines()[-1] == (
        f"Interrupted after {summary['batches']} batches. state.json is written: the same command goes on from here."
    )
    assert "Traceback" not in err


# --- processes of their own


def test_a_process_prints_no_more_than_the_summary(folder: Path) -> None:
    code, out, err = finished("run", "train.yaml", "--json", cwd=folder)
    assert (code, err) == (0, "")
    assert json.loads(out)["rows"] == 20


def test_a_process_ends_with_2_after_a_config_error(folder: Path) -> None:
    save(folder, "shufle")
    code, out, err = finished("run", "train.yaml", cwd=folder)
    assert (code, out) == (2, "")
    assert err.startswith("ConfigError: train.yaml: pipeline.stages[0].shufle: no stage 'shufle'")


def test_a_process_ends_with_1_after_a_failure(folder: Path) -> None:
    save(folder, {"batch": 8}, kind="npy", path="z.npy")
    code, out, err = finished("run", "train.yaml", cwd=folder)
    assert (code, out) == (1, "")
    assert err.startswith("SourceNotFoundError: there is no file ")


def test_a_terminal_gets_a_bar(folder: Path) -> None:
    pty = pytest.importorskip("pty", reason="only POSIX has pseudo-terminals")
    functions(folder, "import time\ndef slow(batch):\n    time.sleep(0.1)\n    return batch\n")
    save(folder, {"batch": 2}, {"map": "functions_here:slow"})
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(bk.__file__).parents[1]), "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "batchkit.cli", "run", "train.yaml"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment, cwd=folder
    ) as started:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal, where it is closed on the other side
            while chunk := os.read(ours, 4096):
                shown += chunk
        out = started.stdout.read()
    os.close(ours)
    assert started.returncode == 0
    assert out.startswith("10 batches, 20 rows, 1 whole epoch in ")
    assert "epoch 0" in shown.decode()
    assert "10/10" in shown.decode()
    assert "20 rows, " in shown.decode()


# --- inspect


def test_inspect_shows_stages_schemas_length_and_shard(folder: Path) -> None:
    save(folder, "shuffle", {"cast": {"y": "int32"}}, {"batch": 8})
    assert batchkit("inspect", "train.yaml", "--shard", "1/2").stdout.splitlines() == [
        "npy: 20 rows of {x: float32[3], y: int64}",
        "  0 shuffle()",
        "  1 cast(dtypes={'y': 'int32'}) -> {x: float32[3], y: int32}",
        "  2 batch(size=8)",
        "batch: {x: float32[?, 3], y: int32[?]}",
        "batches: 3 an epoch",
        "shard: 1 of 2",
        "backend: numpy",
        "executor: threads, workers 2, prefetch 2",
    ]


def test_inspect_writes_json_for_machines(folder: Path) -> None:
    save(folder, {"select": "y"}, {"batch": {"size": 8, "remainder": "drop"}})
    shown = json.loads(batchkit("inspect", "train.yaml", "--json", "--executor", "inline").stdout)
    row = {"y": {"dtype": "int64", "shape": []}}
    assert shown["source"] == "npy"
    assert shown["rows"] == 20
    assert shown["row_schema"] == {"x": {"dtype": "float32", "shape": [3]}, **row}
    assert [(stage["verb"], stage["row_schema"]) for stage in shown["stages"]] == [("select", row), ("batch", row)]
    assert shown["batch_schema"]["y"]["dtype"] == "int64"
    assert (shown["batches"], shown["shard"], shown["backend"], shown["executor"]) == (2, [0, 1], "numpy", "inline")
    assert shown["narrowing"] == []


def test_inspect_of_an_endless_pipeline_has_no_length(folder: Path) -> None:
    save(folder, "repeat", {"batch": 8})
    assert "batches: unknown or endless an epoch" in batchkit("inspect", "train.yaml").stdout
    assert json.loads(batchkit("inspect", "train.yaml", "--json").stdout)["batches"] is None


NARROW = """
    import numpy as np
    import batchkit as bk

    class Narrow(bk.NumpyBackend):
        name = "narrow"

        def host_dtype(self, dtype, leaf):
            return np.dtype("float32") if dtype == np.float64 else dtype

    @bk.hookimpl
    def batchkit_backends(): return {"narrow": Narrow}
"""


def test_inspect_says_what_the_framework_narrows(folder: Path) -> None:
    np.save(folder / "x.npy", X.astype(np.float64))
    functions(folder, NARROW)
    content = json.loads(save(folder, {"batch": 8}).read_text())
    (folder / "narrow.json").write_text(json.dumps({**content, "plugins": ["./functions_here.py"]}))
    expected = "x: float64 -> float32 (narrow has no float64 here)"
    assert f"\nnarrowed: {expected}\n" in batchkit("inspect", "narrow.json", "--backend", "narrow").stdout
    shown = json.loads(batchkit("inspect", "narrow.json", "--backend", "narrow", "--json").stdout)
    assert shown["narrowing"] == [expected]


@pytest.mark.filterwarnings("always::batchkit.NarrowingWarning")
def test_run_warns_of_what_the_framework_narrows(folder: Path) -> None:
    np.save(folder / "x.npy", X.astype(np.float64))
    functions(folder, NARROW)
    content = json.loads(save(folder, {"batch": 8}).read_text())
    (folder / "narrow.json").write_text(json.dumps({**content, "plugins": ["./functions_here.py"]}))
    told = batchkit("run", "narrow.json", "--backend", "narrow").stderr
    assert re.fullmatch(r"Warning: backend 'narrow' has no float64: leaf 'x' becomes float32 .*\n", told)


PLAIN = """
    import batchkit as bk

    class Plain(bk.NumpyBackend):
        name = "plain"

        def put(self, batch, device):
            return PUT

    @bk.hookimpl
    def batchkit_backends(): return {"plain": Plain}
"""


def with_put(folder: Path, put: str) -> None:
    functions(folder, PLAIN.replace("PUT", put))
    content = json.loads(save(folder, {"batch": 8}).read_text())
    (folder / "plain.json").write_text(json.dumps({**content, "plugins": ["./functions_here.py"]}))


def test_run_counts_the_rows_of_a_backend_that_puts_lists(folder: Path) -> None:
    with_put(folder, "{name: leaf.tolist() for name, leaf in batch.items()}")
    summary = json.loads(batchkit("run", "plain.json", "--backend", "plain", "--json").stdout)
    assert (summary["batches"], summary["rows"]) == (3, ROWS)


@pytest.mark.parametrize(("put", "told"), [("{}", "without a leaf"), ("3", "whose first leaf, a int, has no rows")])
def test_run_says_what_a_backend_must_put(folder: Path, put: str, told: str) -> None:
    with_put(folder, put)
    result = batchkit("run", "plain.json", "--backend", "plain", code=1)
    assert f"the backend gave a batch {told}. Its put() must return the nesting" in result.output


# --- plugins and the rest


def distribution(folder: Path, name: str, entry: str, source: str) -> None:
    """Install a distribution with an entry point into a folder, as pip would leave it."""
    module = f"module_of_{name.replace('-', '_')}"
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[batchkit]\n{entry} = {module}\n")


HELLO = """
    import batchkit, click

    @click.command("hello")
    def hello():
        'Say hello.'
        click.echo("hello there")

    @click.command("schema")
    def schema():
        click.echo("not this one")

    @batchkit.hookimpl
    def batchkit_commands(): return [hello, schema]
"""


def test_plugins_lists_what_is_found_and_what_is_broken(folder: Path) -> None:
    distribution(folder, "batchkit-hello", "hello", HELLO)
    distribution(folder, "batchkit-broken", "broken", "import nowhere_to_be_found")
    code, out, err = finished("plugins", path=[str(folder)])
    assert (code, err) == (0, "")
    assert out.startswith("batchkit (batchkit-core ") or out.startswith("batchkit (batchkit-core)")
    assert "  backends: numpy\n" in out
    assert "  executors: auto, inline, processes, threads" in out
    assert "hello (batchkit-hello 1.2)\n  commands: hello, schema\n" in out
    assert (
        "broken (batchkit-broken 1.2)\n  problem: plugin 'broken' (batchkit-broken 1.2) cannot be imported: "
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'. Repair or remove "
    ) in out


def test_plugins_writes_json_for_machines(folder: Path) -> None:
    functions(folder, NARROW)
    listed = json.loads(batchkit("plugins", "--json", "./functions_here.py").stdout)
    assert listed[0]["name"] == "batchkit"
    assert listed[0]["problem"] is None
    (local,) = [info for info in listed if info["name"] == "functions_here"]
    assert local == {
        "name": "functions_here",
        "origin": str(folder / "functions_here.py"),
        "offers": {"backends": ["narrow"]},
        "problem": None,
        "version": None,
    }


def test_plugins_warns_of_the_other_project(folder: Path) -> None:
    info = folder / "batchkit-0.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: batchkit\nVersion: 0.4\n")
    code, out, _ = finished("plugins", path=[str(folder)])
    assert code == 0
    assert "  problem: the distribution 'batchkit' 0.4 in " in out
    assert "is another project that is imported by the same name: pip uninstall batchkit, then " in out


def test_commands_of_plugins_are_added_and_replace_none(folder: Path) -> None:
    distribution(folder, "batchkit-hello", "hello", HELLO)
    distribution(folder, "batchkit-broken", "broken", "import nowhere_to_be_found")
    assert finished("hello", path=[str(folder)]) == (0, "hello there\n", "")
    assert json.loads(finished("schema", path=[str(folder)])[1])["title"] == "batchkit config"
    code, out, _ = finished("--help", path=[str(folder)])
    assert code == 0
    assert re.findall(r"^  (\w+) ", out.partition("Commands:")[2], re.MULTILINE) == [
        "bench",
        "cache",
        "explain",
        "hello",
        "inspect",
        "plugins",
        "profile",
        "run",
        "schema",
        "verify",
    ]


def test_schema_prints_the_json_schema() -> None:
    assert json.loads(batchkit("schema").stdout) == json_schema()


def test_version_prints_the_installed_version() -> None:
    try:
        expected = metadata.version("batchkit-core")
    except metadata.PackageNotFoundError:
        expected = "(not installed: run from its source tree)"
    assert batchkit("--version").stdout == f"batchkit {expected}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["inspect", "-h"], ["plugins", "--help"]])
def test_help_is_there(arguments: list[str]) -> None:
    assert batchkit(*arguments).stdout.startswith("Usage: ")


# --- profile

SLOW = """
import time

def wait(row):
    time.sleep(0.002)
    return row

def wait_long(batch):
    time.sleep(0.03)
    return batch

def rows():
    for number in range(20):
        yield {"x": number}

def same(x):
    return x
"""


def test_profile_measures_every_stage_by_itself(folder: Path) -> None:
    functions(folder, SLOW)
    save(
        folder,
        "shuffle",
        {"map": {"fn": "functions_here:wait"}},
        {"batch": 8},
        {"map": {"fn": "functions_here:wait_long"}},
    )
    shown = json.loads(batchkit("profile", "train.yaml", "--steps", "2", "--rounds", "2", "--json").stdout)
    found = {stage["stage"]: stage for stage in shown["stages"]}
    names = ["source npy", "shuffle()", "map(wait)", "batch(size=8)", "map(wait_long)"]
    assert list(found) == [*names, "copy for the backend", "hand-over"]
    assert 0.016 <= found["map(wait)"]["median_s"] < 0.06
    assert 0.03 <= found["map(wait_long)"]["median_s"] < 0.09  # of this stage alone: not the rows' waiting
    assert found["source npy"]["median_s"] < 0.01
    assert shown["slowest"] == "map(wait_long)"
    assert sum(stage["share"] for stage in shown["stages"]) == pytest.approx(1.0)
    assert found["map(wait)"]["rows_per_s"] == pytest.approx(8 / found["map(wait)"]["median_s"])


def test_profile_prints_bars_and_names_the_slowest_stage(folder: Path) -> None:
    functions(folder, SLOW)
    save(folder, {"map": {"fn": "functions_here:wait"}}, {"batch": 8})
    lines = batchkit("profile", "train.yaml", "--steps", "2", "--rounds", "2", "--output", "p.svg").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["source npy", "map(wait)", "batch(size=8)"]
    assert "█" * 30 in lines[1]
    assert lines[-1].startswith("map(wait) is the slowest: ")
    drawn = (folder / "p.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(drawn)
    assert drawn.count('<rect class="bar"') == 5


def test_profile_of_a_generator_and_of_nothing(folder: Path) -> None:
    functions(folder, SLOW)
    config = {
        "pipeline": {
            "source": {"kind": "generator", "fn": "functions_here:rows"},
            "stages": [{"map": {"fn": "functions_here:same"}}, {"batch": 8}, {"map": {"fn": "functions_here:same"}}],
        }
    }
    (folder / "gen.json").write_text(json.dumps(config))
    shown = json.loads(batchkit("profile", "gen.json", "--json").stdout)
    names = [stage["stage"] for stage in shown["stages"]]
    assert names == ["source generator", "map(same)", "batch(size=8)", "map(same)", "copy for the backend", "hand-over"]
    save(folder, {"take": 0}, {"batch": 8})
    result = batchkit("profile", "train.yaml", code=1)
    assert "the pipeline has no batches, so that there is nothing to measure" in result.stderr
