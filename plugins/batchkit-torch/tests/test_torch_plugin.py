"""What batchkit sees of the plugin before PyTorch is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from batchkit import BackendError
from batchkit_torch import plugin
from batchkit_torch.backend import TorchBackend


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], importable: bool = False) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(plugin.metadata, "version", version)
    monkeypatch.setattr(plugin.importlib.util, "find_spec", lambda name: object() if importable else None)


@pytest.mark.parametrize(
    "version", ["2.4.0", "2.13.0+cpu", "2.10.1+cu128", "2.9.0.dev20250901+cu130", "3.0.0a0+git1234", "?"]
)
def test_builds_of_any_origin_are_accepted(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, {"torch": version})
    assert plugin.batchkit_problem() is None


@pytest.mark.parametrize("version", ["1.13.1", "2.3.1+cu118"])
def test_an_old_version_is_named(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, {"torch": version})
    problem = plugin.batchkit_problem()
    assert problem is not None
    assert f"PyTorch {version} is installed, but 2.4 is the oldest that works" in problem


def test_a_missing_framework_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {})
    assert "pip install 'torch>=2.4'" in (plugin.batchkit_problem() or "")
    with pytest.raises(BackendError, match=r"PyTorch is not installed: pip install 'torch>=2\.4'"):
        plugin.batchkit_backends()["torch"]()


def test_a_package_without_metadata_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {}, importable=True)
    assert plugin.batchkit_problem() is None


def test_a_broken_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "batchkit_torch.backend", None)
    with pytest.raises(BackendError, match="importing PyTorch failed") as caught:
        plugin.batchkit_backends()["torch"]()
    assert isinstance(caught.value.__cause__, ImportError)


def test_the_factory_makes_a_new_backend_each_time() -> None:
    factory = plugin.batchkit_backends()["torch"]
    first, second = factory(), factory()
    assert type(first) is TorchBackend
    assert first is not second


def test_importing_the_plugin_imports_no_framework() -> None:
    code = (
        "import sys, batchkit_torch.plugin as plugin; assert plugin.batchkit_problem() is None; "
        "plugin.batchkit_backends(); assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_entry_point_is_found_by_name() -> None:
    points = metadata.entry_points(group="batchkit", name="torch")
    assert [point.load() for point in points] == [plugin]
