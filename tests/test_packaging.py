"""What is shipped: names, dependencies, wheels, and what an import costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

import batchkit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PLUGINS = ("torch", "tensorflow", "jax")
PROJECTS = (".", *(f"plugins/batchkit-{name}" for name in PLUGINS))
FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "jaxlib")
HEAVY = ("pandas", "pyarrow", "matplotlib", "scipy", "sklearn", "pydantic", "yaml", "rich", "click", "cloudpickle")

PUBLIC = {
    # sources
    *("from_arrays", "from_npy", "from_npz", "from_ragged", "from_sequence", "from_generator", "from_source"),
    # several pipelines as one
    *("concat", "zip", "interleave", "mix"),
    # the description, the loader, a file
    *("Pipeline", "Loader", "load", "hookimpl", "Ragged", "Skip"),
    # what is asked of a pipeline
    *("verify", "explain"),
    # errors
    *("BatchkitError", "PipelineError", "SourceError", "SchemaError", "StageError"),
    *("WorkerError", "BackendError", "ConfigError", "StateError"),
}
VERBS = (
    *("shuffle", "repeat", "take", "skip", "map", "random_map", "filter", "flat_map", "cache", "apply"),
    *("batch", "padded_batch", "bucket_batch", "pack", "window", "unbatch", "rebatch"),
    *("select", "drop", "rename", "cast"),
)


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter, outside the source tree; return what it printed."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(sys.executable).parent,
        env={**os.environ, **environment},
    )
    return done.stdout


def project(folder: str) -> dict[str, Any]:
    """Return a pyproject's ``[project]`` table."""
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


# ------------------------------------------------------------------ the import


def seconds_to_import(module: str, cache: Path) -> float:
    """Return the seconds that an import takes when the modules are compiled, as those of an installed package are."""
    code = f"import time; begin = time.perf_counter(); import {module}; print(time.perf_counter() - begin)"
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(cache)}
    return min(float(python(code, **compiled)) for _ in range(6))


def test_importing_batchkit_takes_less_than_three_times_as_long_as_importing_numpy(tmp_path: Path) -> None:
    ours, numpys = seconds_to_import("batchkit", tmp_path), seconds_to_import("numpy", tmp_path)
    assert ours < 3 * numpys, f"import batchkit took {ours * 1e3:.0f} ms, import numpy {numpys * 1e3:.0f} ms"


@pytest.mark.parametrize("unwanted", [FRAMEWORKS, HEAVY], ids=["frameworks", "heavy libraries"])
def test_importing_batchkit_imports_none_of_the(unwanted: tuple[str, ...]) -> None:
    loaded = python(f"import batchkit, sys; print(sorted(set(sys.modules) & set({unwanted!r})))")
    assert loaded.strip() == "[]"


def test_the_numpy_backend_runs_without_importing_a_framework() -> None:
    code = f"""
import batchkit as bk, sys
loader = bk.Loader(bk.from_arrays(list(range(10))).shuffle(seed=0).batch(4))
assert sum(len(batch) for batch in loader) == 10
print(sorted(set(sys.modules) & set({FRAMEWORKS!r})))
"""
    assert python(code).strip() == "[]"


def test_every_module_can_be_imported_with_what_the_wheel_asks_for() -> None:
    code = """
import batchkit, importlib, pkgutil
names = [each.name for each in pkgutil.walk_packages(batchkit.__path__, "batchkit.") if "__main__" not in each.name]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    assert int(python(code)) > 100


# ------------------------------------------------------------------ the names


def test_every_name_of_all_exists() -> None:
    missing = [name for name in batchkit.__all__ if not hasattr(batchkit, name)]
    assert missing == []


def test_all_names_nothing_twice() -> None:
    assert len(set(batchkit.__all__)) == len(batchkit.__all__)


def test_all_has_the_public_names_of_the_design() -> None:
    assert set(batchkit.__all__) >= PUBLIC


def test_all_names_no_module_and_nothing_private() -> None:
    odd = [
        name
        for name in batchkit.__all__
        if (name.startswith("_") and name != "__version__") or type(getattr(batchkit, name)) is type(sys)
    ]
    assert odd == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_pipeline_has_the_verb(verb: str) -> None:
    assert callable(getattr(batchkit.Pipeline, verb))


# ------------------------------------------------------------------ the distributions


def distribution_name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;(@]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


@pytest.mark.checkout
@pytest.mark.parametrize("folder", PROJECTS)
def test_no_distribution_depends_on_the_one_that_is_named_batchkit(folder: str) -> None:
    table = project(folder)
    optional = [one for several in table.get("optional-dependencies", {}).values() for one in several]
    names = [distribution_name(one) for one in [*table["dependencies"], *optional]]
    assert table["name"] != "batchkit"
    assert "batchkit" not in names


@pytest.mark.checkout
def test_no_document_tells_anybody_to_install_the_distribution_that_is_named_batchkit() -> None:
    wrong = re.compile(r"pip install[^\n`]*?[\s\"']batchkit(?![\w-])")
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*.md")]
    sources = [
        *ROOT.glob("batchkit/**/*.py"),
        *ROOT.glob("plugins/*/batchkit_*/**/*.py"),
        *ROOT.glob("examples/**/*.py"),
    ]
    told = {str(path.relative_to(ROOT)): wrong.findall(path.read_text()) for path in [*documents, *sources]}
    assert documents
    assert {name: lines for name, lines in told.items() if lines} == {}


@pytest.mark.parametrize("name", PLUGINS)
def test_the_core_has_an_extra_for_the_plugin(name: str) -> None:
    wanted = [one for one in requires("batchkit-core") or [] if f'extra == "{name}"' in one.replace("'", '"')]
    assert [distribution_name(one) for one in wanted] == [f"batchkit-{name}"]


@pytest.mark.checkout
@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_asks_for_the_core_and_forces_no_framework(name: str) -> None:
    names = [distribution_name(one) for one in project(f"plugins/batchkit-{name}")["dependencies"]]
    assert "batchkit-core" in names
    assert set(names) & {*FRAMEWORKS, "tensorflow-cpu"} == set()


@pytest.mark.checkout
@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_has_an_entry_point_of_its_name_and_a_readme(name: str) -> None:
    table = project(f"plugins/batchkit-{name}")
    assert list(table["entry-points"]["batchkit"]) == [name]
    assert (ROOT / f"plugins/batchkit-{name}" / table["readme"]).stat().st_size > 0


# ------------------------------------------------------------------ the wheels


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.Path]:
    """Build every distribution; return what is in its wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    found = {}
    for name in PROJECTS:
        command = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(folder / name),
            str(ROOT / name),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = (folder / name).glob("*.whl")
        found[name] = zipfile.Path(wheel)
    return found


def package(folder: str) -> Path:
    """Return the one package of a distribution."""
    return ROOT / "batchkit" if folder == "." else ROOT / folder / Path(folder).name.replace("-", "_")


@pytest.mark.checkout
@pytest.mark.parametrize("folder", PROJECTS)
def test_a_wheel_has_every_module_and_the_mark_of_its_types(folder: str, wheels: dict[str, zipfile.Path]) -> None:
    home = package(folder)
    wanted = {path.relative_to(home.parent).as_posix() for path in [*home.rglob("*.py"), home / "py.typed"]}
    shipped = set(wheels[folder].root.namelist())
    assert wanted - shipped == set()


@pytest.mark.checkout
@pytest.mark.parametrize("folder", PROJECTS)
def test_a_wheel_is_pure_and_has_nothing_but_its_package(folder: str, wheels: dict[str, zipfile.Path]) -> None:
    tops = {name.split("/")[0] for name in wheels[folder].root.namelist()}
    assert wheels[folder].root.filename is not None
    assert wheels[folder].root.filename.endswith("-py3-none-any.whl")
    assert {top for top in tops if not top.endswith(".dist-info")} == {package(folder).name}
