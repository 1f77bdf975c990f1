"""Plugins: found without being imported, loaded by name, and harmless when they are broken."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import cloudpickle
import numpy as np
import pytest

import batchkit
from batchkit.backends import NumpyBackend
from batchkit.errors import BackendError, UnknownNameError
from batchkit.executors import InlineExecutor, ThreadExecutor
from batchkit.plugins import PluginInfo, Plugins, import_beside, importable, installed, wrong_package
from batchkit.sources import SOURCES
from batchkit.stages import STAGES

Install = Callable[..., Path]

BACKEND = """
    import batchkit
    from batchkit.backends import NumpyBackend

    class Mine(NumpyBackend):
        name = {name!r}

    @batchkit.hookimpl
    def batchkit_backends():
        return {{{name!r}: Mine}}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for distributions, on a path where no other distribution is installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    library = [
        entry
        for entry in sys.path
        if entry and "-packages" not in entry and not Path(entry, "pyproject.toml").is_file()
    ]
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(folder), *library])
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """Install a distribution with an entry point and a module of that source, as pip would leave it."""

    def installing(distribution: str, entry: str, source: str, version: str = "1.2") -> Path:
        module = f"module_of_{distribution.replace('-', '_')}"
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[batchkit]\n{entry} = {module}\n")
        return site / f"{module}.py"

    return installing


def write(path: Path, source: str) -> Path:
    path.write_text(textwrap.dedent(source))
    return path


def info_of(name: str, plugins: Plugins | None = None) -> PluginInfo:
    (info,) = [info for info in (plugins or installed()).found() if info.name == name]
    return info


# --- what batchkit brings along


def test_the_numpy_backend_is_built_in() -> None:
    assert isinstance(installed().backend("numpy"), NumpyBackend)


@pytest.mark.parametrize(("name", "factory"), [("inline", InlineExecutor), ("threads", ThreadExecutor)])
def test_executors_are_built_in(name: str, factory: type) -> None:
    assert installed().executor(name) is factory


@pytest.mark.parametrize("kind", list(SOURCES))
def test_sources_are_built_in(kind: str) -> None:
    assert installed().source(kind) is SOURCES[kind]


@pytest.mark.parametrize("verb", list(STAGES))
def test_stages_are_built_in(verb: str) -> None:
    assert installed().stage(verb) is STAGES[verb]


# --- loading on demand


def test_finding_plugins_imports_none_of_them(install: Install) -> None:
    install("batchkit-alpha", "alpha", "raise AssertionError('imported')")
    assert isinstance(installed().backend("numpy"), NumpyBackend)
    assert "module_of_batchkit_alpha" not in sys.modules


def test_only_the_entry_point_of_that_name_is_imported(install: Install) -> None:
    install("batchkit-alpha", "alpha", BACKEND.format(name="alpha"))
    install("batchkit-beta", "beta", BACKEND.format(name="beta"))
    assert installed().backend("beta").name == "beta"
    assert "module_of_batchkit_alpha" not in sys.modules


def test_a_thing_of_another_name_is_found_in_the_other_plugins(install: Install) -> None:
    install("batchkit-alpha", "alpha", BACKEND.format(name="beta"))
    assert installed().backend("beta").name == "beta"


def test_an_entry_point_of_that_name_may_offer_something_else(install: Install) -> None:
    install("batchkit-alpha", "alpha", BACKEND.format(name="gamma"))
    install("batchkit-beta", "beta", BACKEND.format(name="alpha"))
    assert installed().backend("alpha").name == "alpha"


def test_every_look_up_makes_a_new_backend(install: Install) -> None:
    install("batchkit-alpha", "alpha", BACKEND.format(name="alpha"))
    plugins = installed()
    assert plugins.backend("alpha") is not plugins.backend("alpha")


def test_a_plugin_that_was_installed_after_a_miss_is_found(install: Install) -> None:
    with pytest.raises(UnknownNameError):
        installed().backend("alpha")
    install("batchkit-alpha", "alpha", BACKEND.format(name="alpha"))
    assert installed().backend("alpha").name == "alpha"


def test_a_plugin_offers_sources_stages_and_executors(install: Install) -> None:
    install(
        "batchkit-alpha",
        "alpha",
        """
        from dataclasses import dataclass
        from typing import ClassVar
        import batchkit

        @dataclass(frozen=True)
        class Gray(batchkit.ColumnStage):
            verb: ClassVar[str] = "gray"

        def ones(): return 1
        def pool(workers): return workers

        @batchkit.hookimpl
        def batchkit_sources(): return {"ones": ones}
        @batchkit.hookimpl
        def batchkit_stages(): return {"gray": Gray}
        @batchkit.hookimpl
        def batchkit_executors(): return {"pool": pool}
        """,
    )
    plugins = installed()
    assert plugins.source("ones")() == 1
    assert plugins.stage("gray").verb == "gray"
    assert plugins.executor("pool")(workers=3) == 3
    assert plugins.names("executors") == ["auto", "inline", "pool", "processes", "threads"]


def test_the_real_plugins_are_listed_without_importing_a_framework() -> None:
    code = "import sys; from batchkit.plugins import installed; installed().found(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "tensorflow", "jax"} & set(done.stdout.split())


# --- a name that nobody offers


def test_a_missing_backend_is_answered_with_what_to_install(install: Install) -> None:
    install("batchkit-torch", "torch", BACKEND.format(name="torch"))
    with pytest.raises(UnknownNameError) as caught:
        installed().backend("jax")
    assert str(caught.value) == "no backend 'jax': pip install batchkit-jax (found: numpy, torch)"


def test_a_typo_is_answered_with_the_nearest_name(site: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        installed().backend("nunpy")
    assert str(caught.value) == "no backend 'nunpy'; did you mean 'numpy'? (found: numpy)"


def test_a_typo_of_a_backend_that_is_not_installed_says_what_to_install(site: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        installed().backend("Tensorflow")
    assert str(caught.value) == (
        "no backend 'Tensorflow'; did you mean 'tensorflow'? pip install batchkit-tensorflow (found: numpy)"
    )


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda p: p.executor("thread"),
            "no executor 'thread'; did you mean 'threads'? (found: auto, inline, processes, threads)",
        ),
        (
            lambda p: p.source("nnpy"),
            "no source 'nnpy'; did you mean 'npy'? "
            "(found: concat, generator, interleave, mix, npy, npz, sequence, zip)",
        ),
        (lambda p: p.stage("zzz"), f"no stage 'zzz' (found: {', '.join(sorted(STAGES))})"),
    ],
)
def test_other_unknown_names_are_answered_alike(site: Path, ask: Callable[[Plugins], object], message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        ask(installed())
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["jax", "torch", "tensorflow", "batchkit", "batch", "core"])
def test_nobody_is_told_to_install_the_other_project(site: Path, name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        installed().backend(name)
    assert not re.search(r"install (--\S+ )*batchkit(?!-)", str(caught.value))


# --- broken plugins

BROKEN = {
    "import": ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    "syntax": ("def :", "SyntaxError"),
    "exit": ("raise SystemExit('no licence')", "SystemExit: no licence"),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_broken_plugin_that_is_asked_for_is_named_with_its_cause(install: Install, kind: str) -> None:
    source, reason = BROKEN[kind]
    install("batchkit-broken", "alpha", source)
    with pytest.raises(BackendError) as caught:
        installed().backend("alpha")
    assert str(caught.value).startswith(f"plugin 'alpha' (batchkit-broken 1.2) cannot be imported: {reason}")
    assert "Repair or remove the distribution 'batchkit-broken'" in str(caught.value)
    assert type(caught.value.__cause__).__name__ == reason.partition(":")[0]


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_broken_plugin_breaks_no_other(install: Install, kind: str) -> None:
    install("batchkit-broken", "broken", BROKEN[kind][0])
    install("batchkit-alpha", "alpha", BACKEND.format(name="beta"))
    assert installed().backend("beta").name == "beta"


def test_a_broken_plugin_is_named_where_a_name_is_not_found(install: Install) -> None:
    install("batchkit-broken", "broken", "import nowhere_to_be_found")
    with pytest.raises(UnknownNameError, match=r"\(found: numpy\)\. Left out: plugin 'broken' \(batchkit-broken 1.2\)"):
        installed().backend("beta")


def test_a_damaged_list_of_entry_points_hides_no_other_plugin(install: Install, site: Path) -> None:
    install("batchkit-alpha", "alpha", BACKEND.format(name="alpha"))
    install("batchkit-damaged", "damaged", "")
    (site / "batchkit_damaged-1.2.dist-info" / "entry_points.txt").write_text("[batchkit]\nno equals sign\n")
    assert installed().backend("alpha").name == "alpha"


def test_a_plugin_that_cannot_work_here_says_why(install: Install) -> None:
    problem = "\n    @batchkit.hookimpl\n    def batchkit_problem():\n        return 'needs alpha >= 3, found 2'\n"
    install("batchkit-alpha", "alpha", BACKEND.format(name="alpha") + problem)
    with pytest.raises(BackendError) as caught:
        installed().backend("alpha")
    assert str(caught.value) == (
        "backend 'alpha' of plugin 'alpha' (batchkit-alpha 1.2) cannot work here: needs alpha >= 3, found 2"
    )
    assert info_of("alpha").problem == "needs alpha >= 3, found 2"


def test_a_backend_that_does_not_start_is_named_with_its_cause(install: Install) -> None:
    source = """
        import batchkit

        def start():
            import nowhere_to_be_found

        @batchkit.hookimpl
        def batchkit_backends(): return {"alpha": start}
    """
    install("batchkit-alpha", "alpha", source)
    with pytest.raises(
        BackendError, match=r"backend 'alpha' of plugin 'alpha' .* did not start: ModuleNotFound"
    ) as caught:
        installed().backend("alpha")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_an_incomplete_backend_is_told_what_it_lacks(install: Install) -> None:
    source = """
        import batchkit
        class Half:
            name, alignment = "alpha", 1
            def host_dtype(self): pass
            def put(self): pass

        @batchkit.hookimpl
        def batchkit_backends(): return {"alpha": Half}
    """
    install("batchkit-alpha", "alpha", source)
    with pytest.raises(BackendError, match="is a Half without allocate, as_dataset, device"):
        installed().backend("alpha")


HOOKS = {
    "misspelt": (
        "@batchkit.hookimpl\ndef batchkit_backend(): return {}",
        "there is no hook 'batchkit_backend'; did you mean 'batchkit_backends'? "
        "Write: def batchkit_backends() -> Mapping[str, Callable[[], Any]]",
    ),
    "unknown": ("@batchkit.hookimpl\ndef zzz(): return {}", "there is no hook 'zzz' (valid: batchkit_backends, "),
    "unmarked": (
        "def batchkit_stages(): return {}",
        "batchkit_stages() is not marked. Put @batchkit.hookimpl above it",
    ),
    "arguments": (
        "@batchkit.hookimpl\ndef batchkit_sources(config): return {}",
        "batchkit_sources() has the wrong arguments. Write: def batchkit_sources() -> Mapping[str, Callable[..., Any]]",
    ),
    "nothing": ("x = 1", "offers nothing. Mark one of batchkit_backends, "),
    "raises": (
        "@batchkit.hookimpl\ndef batchkit_backends(): return 1 / 0",
        "batchkit_backends() failed: ZeroDivisionError: division by zero",
    ),
    "result": (
        "@batchkit.hookimpl\ndef batchkit_backends(): return ['alpha']",
        "batchkit_backends() gave a list. Write: def batchkit_backends() -> ",
    ),
    "value": (
        "@batchkit.hookimpl\ndef batchkit_stages(): return {'alpha': int}",
        "gave 'alpha': <class 'int'>. Write: ",
    ),
    "name": ("@batchkit.hookimpl\ndef batchkit_sources(): return {3: int}", "batchkit_sources() gave 3: <class 'int'>"),
}


@pytest.mark.parametrize("case", list(HOOKS))
def test_a_wrong_hook_is_told_the_right_one(install: Install, case: str) -> None:
    source, message = HOOKS[case]
    install("batchkit-alpha", "alpha", f"import batchkit\n{source}\n")
    with pytest.raises(BackendError) as caught:
        installed().backend("alpha")
    assert f"plugin 'alpha' (batchkit-alpha 1.2){'' if case == 'nothing' else ':'} " in str(caught.value)
    assert message in str(caught.value)


# --- which of two wins


def test_the_plugin_named_after_the_thing_wins(install: Install) -> None:
    install("aaa", "other", BACKEND.format(name="alpha"))
    install("batchkit-alpha", "alpha", BACKEND.format(name="alpha"))
    assert type(installed().backend("alpha")).__module__ == "module_of_batchkit_alpha"
    assert info_of("other").problem == ("backend 'alpha' is taken from plugin 'alpha' (batchkit-alpha 1.2) instead")
    assert info_of("alpha").problem is None


def test_of_two_alike_the_first_by_distribution_wins(install: Install) -> None:
    install("bbb", "alpha", BACKEND.format(name="alpha"))
    install("aaa", "alpha", BACKEND.format(name="alpha"))
    assert type(installed().backend("alpha")).__module__ == "module_of_aaa"
    problems = {info.origin: info.problem for info in installed().found()}
    assert problems["aaa"] is None
    assert problems["bbb"] == "backend 'alpha' is taken from plugin 'alpha' (aaa 1.2) instead"


def test_an_installed_plugin_replaces_nothing_built_in(install: Install) -> None:
    install("aaa", "numpy", BACKEND.format(name="numpy"))
    assert type(installed().backend("numpy")) is NumpyBackend
    assert info_of("numpy").problem == "backend 'numpy' is taken from batchkit itself instead"


def test_a_distribution_that_is_found_twice_counts_once(
    install: Install, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("batchkit-alpha", "alpha", BACKEND.format(name="alpha"))
    elsewhere = site.parent / "elsewhere"
    info = elsewhere / "batchkit_alpha-0.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Batchkit_Alpha\nVersion: 0.9\n")
    (info / "entry_points.txt").write_text("[batchkit]\nalpha = nowhere_to_be_found\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(elsewhere)])
    assert info_of("alpha").version == "1.2"


# --- local plugins


@pytest.mark.parametrize("path", ["./mine.py", "mine.py", "mine"])
def test_a_local_plugin_is_found_from_the_base_folder(tmp_path: Path, site: Path, path: str) -> None:
    write(tmp_path / "mine.py", BACKEND.format(name="mine"))
    assert installed().with_local([path], tmp_path).backend("mine").name == "mine"


def test_a_local_plugin_wins_over_all_others(tmp_path: Path, install: Install) -> None:
    install("batchkit-alpha", "alpha", BACKEND.format(name="alpha"))
    write(tmp_path / "mine.py", BACKEND.format(name="alpha"))
    write(tmp_path / "numpy2.py", BACKEND.format(name="numpy"))
    plugins = installed().with_local(["./mine.py", "./numpy2.py"], tmp_path)
    assert type(plugins.backend("alpha")).__module__.startswith("batchkit_plugin_mine")
    assert type(plugins.backend("numpy")) is not NumpyBackend
    assert info_of("alpha", plugins).problem == (
        f"backend 'alpha' is taken from plugin 'mine' ({tmp_path / 'mine.py'}) instead"
    )


def test_a_local_plugin_imports_what_lies_beside_it(tmp_path: Path, site: Path) -> None:
    write(tmp_path / "names_beside.py", "NAME = 'mine'\n")
    write(tmp_path / "mine.py", "from names_beside import NAME\n" + textwrap.dedent(BACKEND.format(name="mine")))
    assert installed().with_local(["./mine.py"], tmp_path).backend("mine").name == "mine"
    assert str(tmp_path) not in sys.path


def test_a_local_plugin_runs_once_until_it_changes(tmp_path: Path, site: Path) -> None:
    path = write(tmp_path / "mine.py", BACKEND.format(name="mine"))
    first = type(installed().with_local(["./mine.py"], tmp_path).backend("mine"))
    again = type(installed().with_local([str(path)]).backend("mine"))
    write(path, BACKEND.format(name="mine") + "\n    changed = True\n")
    changed = type(installed().with_local(["./mine.py"], tmp_path).backend("mine"))
    assert first is again
    assert first is not changed


def test_what_a_local_plugin_defines_can_be_pickled(tmp_path: Path, site: Path) -> None:
    source = """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import ClassVar
        import batchkit

        @dataclass(frozen=True)
        class Scale(batchkit.ColumnStage):
            verb: ClassVar[str] = "scale"
            factor: float = 2.0

            def apply(self, columns):
                return {name: column * self.factor for name, column in columns.items()}

        @batchkit.hookimpl
        def batchkit_stages(): return {"scale": Scale}
    """
    write(tmp_path / "mine.py", source)
    stage = installed().with_local(["./mine.py"], tmp_path).stage("scale")(3.0)
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert [field.name for field in dataclasses.fields(stage)] == ["factor"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "./mien.py",
            "cannot be imported: FileNotFoundError: there is no file '{folder}/mien.py'; did you mean 'mine.py'?",
        ),
        ("no_such_module", "plugin 'no_such_module' (module no_such_module) cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_local_plugin_that_is_not_there_is_named(tmp_path: Path, site: Path, path: str, message: str) -> None:
    write(tmp_path / "mine.py", BACKEND.format(name="mine"))
    with pytest.raises(BackendError) as caught:
        installed().with_local([path], tmp_path).load_local()
    assert message.format(folder=tmp_path) in str(caught.value)


def test_a_broken_local_plugin_is_told_at_any_look_up(tmp_path: Path, site: Path) -> None:
    write(tmp_path / "mine.py", "1 / 0")
    with pytest.raises(
        BackendError, match=r"plugin 'mine' .* ZeroDivisionError: division by zero. Correct it"
    ) as caught:
        installed().with_local(["./mine.py"], tmp_path).backend("numpy")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_loader_takes_a_local_plugin(tmp_path: Path, site: Path) -> None:
    path = write(tmp_path / "mine.py", BACKEND.format(name="mine"))
    pipe = batchkit.from_arrays({"x": np.arange(4)}).batch(2)
    with batchkit.Loader(pipe, backend="mine", executor="inline", plugins=[str(path)]) as loader:
        assert [batch["x"].tolist() for batch in loader] == [[0, 1], [2, 3]]


def test_a_folder_is_importable_only_inside_the_block(tmp_path: Path, site: Path) -> None:
    write(tmp_path / "only_inside.py", "x = 1\n")
    with importable(tmp_path):
        assert sys.path[0] == str(tmp_path)
    assert str(tmp_path) not in sys.path


def test_a_module_beside_is_not_mistaken_for_one_imported_before(tmp_path: Path, site: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "same_name.py", f"WHO = {name!r}\n")
    assert import_beside("same_name", tmp_path / "one").WHO == "one"
    with pytest.raises(ImportError, match=r"'same_name' was imported from .*one.* before: rename it"):
        import_beside("same_name", tmp_path / "two")


def test_what_was_imported_from_beside_reaches_another_process(tmp_path: Path, site: Path) -> None:
    write(tmp_path / "names_beside.py", "def name():\n    return 'mine'\n")
    write(tmp_path / "functions_beside.py", "import names_beside\ndef who():\n    return names_beside.name()\n")
    who = import_beside("functions_beside", tmp_path).who
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())())"
    done = subprocess.run([sys.executable, "-c", code], input=cloudpickle.dumps(who), capture_output=True, check=True)
    assert done.stdout.decode().split() == ["mine"]


def test_a_stage_of_a_local_plugin_reaches_another_process(tmp_path: Path, site: Path) -> None:
    source = """
        from dataclasses import dataclass
        from typing import ClassVar
        import batchkit

        @dataclass(frozen=True)
        class Plus(batchkit.ColumnStage):
            verb: ClassVar[str] = "plus"
            number: int = 1

            def apply(self, columns):
                return columns + self.number

        @batchkit.hookimpl
        def batchkit_stages(): return {"plus": Plus}
    """
    write(tmp_path / "mine.py", source)
    stage = installed().with_local(["./mine.py"], tmp_path).stage("plus")(41)
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).apply(1))"
    environment = {**os.environ, "PYTHONPATH": str(Path(batchkit.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], input=cloudpickle.dumps(stage), capture_output=True, check=True, env=environment
    )
    assert done.stdout.decode().split() == ["42"]


# --- listing


def test_found_lists_batchkit_itself_first(install: Install) -> None:
    install("batchkit-alpha", "alpha", BACKEND.format(name="alpha"))
    first, second = installed().found()
    assert first.name == "batchkit"
    assert first.origin == "batchkit-core"
    assert first.offers["backends"] == ("numpy",)
    assert first.offers["executors"] == ("auto", "inline", "processes", "threads")
    assert first.offers["sources"] == tuple(SOURCES)
    assert first.offers["stages"] == tuple(STAGES)
    assert second == PluginInfo("alpha", "batchkit-alpha", {"backends": ("alpha",)}, None, "1.2")


def test_found_says_what_is_broken_and_why(install: Install) -> None:
    install("batchkit-broken", "alpha", "import nowhere_to_be_found")
    info = info_of("alpha")
    assert info.offers == {}
    assert info.problem is not None
    assert "cannot be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'" in info.problem


def test_commands_of_plugins_are_found_and_broken_ones_left_out(install: Install) -> None:
    source = """
        import batchkit, click

        @click.command("hello")
        def hello(): pass

        @batchkit.hookimpl
        def batchkit_commands(): return [hello]
    """
    install("batchkit-alpha", "alpha", source)
    install("batchkit-broken", "broken", "1 / 0")
    commands = installed().commands()
    assert list(commands) == ["hello"]
    assert isinstance(commands["hello"], click.Command)


# --- the other project of the same import name


def test_this_is_the_right_package() -> None:
    assert wrong_package() is None


def test_the_other_project_is_noticed(site: Path) -> None:
    info = site / "batchkit-0.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: batchkit\nVersion: 0.4\n")
    message = info_of("batchkit").problem
    assert message is not None
    assert message.startswith("the distribution 'batchkit' 0.4 in ")
    assert message.endswith("pip uninstall batchkit, then pip install --force-reinstall batchkit-core")


@pytest.mark.parametrize("record", ["RECORD", "direct_url.json"])
def test_files_that_are_not_where_they_were_installed_are_noticed(site: Path, record: str) -> None:
    info = site / "batchkit_core-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: batchkit-core\nVersion: 9.9\n")
    (site / "batchkit").mkdir()
    text = "batchkit/__init__.py,,\n" if record == "RECORD" else f'{{"url": "{site.as_uri()}", "dir_info": {{}}}}'
    (info / record).write_text(text)
    assert wrong_package() == (
        f"'import batchkit' finds {Path(batchkit.__file__).parent}, but batchkit-core 9.9 is in {site / 'batchkit'}: "
        "start Python from another folder, or pip install --force-reinstall batchkit-core"
    )
