"""The backend of docs/writing-a-backend.md, exactly as it is printed there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.testing import BackendConformance

PAGE = Path(__file__).parent.parent / "docs" / "writing-a-backend.md"


def _block(language: str, first: str) -> str:
    """Return the page's code block of a language that begins so."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    found: list[str] = [block for block in blocks if block.startswith(first)]
    assert len(found) == 1, f"{len(found)} blocks begin with {first!r}"
    return found[0]


CODE = _block("python", '"""A batchkit backend')
X = np.arange(30, dtype=np.float32).reshape(10, 3)
Y = np.arange(10, dtype=np.int64)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """Return the file that the page says to save."""
    path = tmp_path / "my_backend.py"
    path.write_text(CODE, encoding="utf-8")
    return path


def test_it_has_at_most_40_lines() -> None:
    assert len(CODE.splitlines()) <= 40


def test_a_loader_finds_it_as_a_local_plugin(plugin: Path) -> None:
    pipe = bk.from_arrays({"x": X, "y": Y}).batch(4)
    with bk.Loader(pipe, backend="memoryview", plugins=[str(plugin)]) as loader:
        batches = list(loader)
    assert [type(batch["x"]) for batch in batches] == [memoryview] * 3
    assert [batch["x"].tolist() for batch in batches] == [X[:4].tolist(), X[4:8].tolist(), X[8:].tolist()]
    assert [batch["y"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_config_file_finds_it_beside_itself(plugin: Path) -> None:
    np.save(plugin.parent / "x.npy", X)
    np.save(plugin.parent / "y.npy", Y)
    config = plugin.parent / "train.yaml"
    config.write_text(_block("yaml", "plugins:"), encoding="utf-8")
    with bk.load(config) as loader:
        assert loader.backend.name == "memoryview"
        batch = next(iter(loader))
    assert isinstance(batch["x"], memoryview)
    assert sorted(batch["y"].tolist()) == Y.tolist()
    assert np.array_equal(np.asarray(batch["x"]), X[np.asarray(batch["y"])])


def test_its_views_are_of_the_memory_that_was_gathered_to(plugin: Path) -> None:
    backend = _load(plugin).MemoryviewBackend()
    column = backend.allocate((4, 3), np.dtype("float32"))
    assert np.shares_memory(np.asarray(backend.put({"x": column}, None)["x"]), column)


def test_its_views_are_read_only(plugin: Path) -> None:
    pipe = bk.from_arrays({"y": Y}).batch(4)
    with bk.Loader(pipe, backend="memoryview", plugins=[str(plugin)]) as loader:
        view = next(iter(loader))["y"]
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1


def test_it_refuses_dates_by_name(plugin: Path) -> None:
    pipe = bk.from_arrays({"day": Y.astype("M8[D]")}).batch(4)
    with pytest.raises(bk.BackendError, match=r"leaf 'day' is datetime64\[D\].*\.drop\('day'\)"):
        bk.Loader(pipe, backend="memoryview", plugins=[str(plugin)])


def test_it_refuses_another_device_by_name(plugin: Path) -> None:
    pipe = bk.from_arrays({"y": Y}).batch(4)
    with pytest.raises(bk.BackendError, match="no device 'gpu', only 'cpu'"):
        bk.Loader(pipe, backend="memoryview", device="gpu", plugins=[str(plugin)])


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("my_backend", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestMemoryviewBackend(BackendConformance):
    """The page's own test, with the backend read from the page."""

    def make_backend(self) -> Any:
        scope: dict[str, Any] = {}
        exec(compile(CODE, str(PAGE), "exec"), scope)
        return scope["MemoryviewBackend"]()


def test_the_page_shows_that_very_test() -> None:
    shown = _block("python", "from batchkit.testing import BackendConformance")
    assert "class TestMemoryviewBackend(BackendConformance):\n    def make_backend(self):" in shown
