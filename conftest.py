"""Settings of every test run: what is left out, and how hypothesis searches."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

FRAMEWORKS = ("torch", "tensorflow", "jax")
ROOT = Path(__file__).parent

# TensorFlow and JAX are asked to say less, and to look for no accelerator.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A deadline would measure how busy the machine is. Under CI the examples are the same every time.
settings.register_profile("batchkit", deadline=None, derandomize="CI" in os.environ)
# `make fuzz` asks for this one: ten times as many examples, and other ones every time.
settings.register_profile("fuzz", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("batchkit")


def missing() -> list[str]:
    """Return the frameworks that are not installed here."""
    return [name for name in FRAMEWORKS if find_spec(name) is None]


def pytest_report_header() -> list[str]:
    """Name what is left out, so that a green run does not say more than it shows."""
    return [f"left out with its plugin, because it is not installed: {name}" for name in missing()]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the plugin of a framework that is not installed."""
    if any(collection_path.is_relative_to(ROOT / "plugins" / f"batchkit-{name}") for name in missing()):
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run torch's tests first: they fork workers, before JAX and TensorFlow have started threads."""
    items.sort(key=lambda item: "batchkit-torch" not in item.nodeid)


@pytest.fixture(autouse=True)
def threads_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the thread executor hand over after the first step, however cheap: the tests' steps would never start it."""
    monkeypatch.setattr("batchkit.executors.threads.SURE_SECONDS", -1.0)
    monkeypatch.setattr("batchkit.executors.tuning._GAINS", float("inf"))  # and auto try threads, whatever they gain
