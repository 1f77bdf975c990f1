"""What batchkit sees of the plugin before TensorFlow is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from batchkit import BackendError
from batchkit_tensorflow import plugin


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], importable: bool = False) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(plugin.metadata, "version", version)
    monkeypatch.setattr(plugin.importlib.util, "find_spec", lambda name: object() if importable else None)


@pytest.mark.parametrize(
    ("distribution", "version"),
    [
        ("tensorflow", "2.16.1"),
        ("tensorflow-cpu", "2.21.0"),
        ("tensorflow-intel", "2.18.0"),
        ("tensorflow-macos", "2.16.2"),
        ("tf-nightly", "2.22.0.dev20260101"),
        ("tf-nightly-cpu", "3.0.0.dev1"),
        ("tensorflow", "?"),
    ],
)
def test_builds_of_any_origin_are_accepted(monkeypatch: pytest.MonkeyPatch, distribution: str, version: str) -> None:
    install(monkeypatch, {distribution: version})
    assert plugin.batchkit_problem() is None


def test_an_old_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"tensorflow-cpu": "2.15.1"})
    problem = plugin.batchkit_problem()
    assert problem is not None
    assert "tensorflow-cpu 2.15.1 is installed, but 2.16 is the oldest that works" in problem


def test_one_good_build_beside_an_old_one_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"tensorflow": "2.15.1", "tf-nightly": "2.22.0.dev1"})
    assert plugin.batchkit_problem() is None


def test_a_missing_framework_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {})
    assert "pip install 'tensorflow>=2.16' (or tensorflow-cpu)" in (plugin.batchkit_problem() or "")
    with pytest.raises(BackendError, match=r"TensorFlow is not installed: pip install 'tensorflow>=2\.16'"):
        plugin.batchkit_backends()["tensorflow"]()


def test_a_package_without_metadata_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {}, importable=True)
    assert plugin.batchkit_problem() is None


def test_a_broken_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "batchkit_tensorflow.backend", None)
    with pytest.raises(BackendError, match="importing TensorFlow failed") as caught:
        plugin.batchkit_backends()["tensorflow"]()
    assert isinstance(caught.value.__cause__, ImportError)


def test_importing_the_plugin_imports_no_framework() -> None:
    code = (
        "import sys, batchkit_tensorflow.plugin as plugin; assert plugin.batchkit_problem() is None; "
        "plugin.batchkit_backends(); assert 'tensorflow' not in sys.modules, 'tensorflow was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_entry_point_is_found_by_name() -> None:
    points = metadata.entry_points(group="batchkit", name="tensorflow")
    assert [point.load() for point in points] == [plugin]
