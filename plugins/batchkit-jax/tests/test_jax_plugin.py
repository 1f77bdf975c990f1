"""What batchkit finds of the plugin, without JAX being imported."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from batchkit.plugins import installed
from batchkit_jax import plugin
from batchkit_jax.backend import JaxBackend


def test_the_entry_point_offers_the_backend() -> None:
    assert isinstance(installed().backend("jax"), JaxBackend)


def test_the_plugin_does_not_import_jax() -> None:
    code = (
        "import sys, batchkit_jax.plugin as p; p.batchkit_problem(); p.batchkit_backends();"
        "sys.exit(sum(name in sys.modules for name in ('jax', 'jaxlib', 'ml_dtypes')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_installed_jax_is_no_problem() -> None:
    assert plugin.batchkit_problem() is None


@pytest.mark.parametrize("version", ["0.4.38", "1.0.0", "2.1"])
def test_another_version_is_named_with_the_range(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    problem = plugin.batchkit_problem()
    assert problem is not None
    assert f"jax {version} is installed" in problem
    assert "pip install 'jax>=" in problem


@pytest.mark.parametrize("version", ["0.5.0", "0.10.2", "0.11.0.dev20260101", "0.99"])
def test_a_version_in_the_range_is_no_problem(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert plugin.batchkit_problem() is None


def test_a_missing_jax_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    problem = plugin.batchkit_problem()
    assert problem is not None
    assert "jax is not installed: pip install 'jax>=" in problem
