"""docs/checkpointing.md with JAX: a run that is killed in an epoch and started again comes to the same parameters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import batchkit as bk

PAGE = Path(__file__).parents[3] / "docs" / "checkpointing.md"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((100, 4)).astype(np.float32)
Y = (X @ RNG.standard_normal((4, 1))).astype(np.float32)
ROWS = bk.from_arrays({"x": X, "y": Y})
EPOCHS = 3
PIPELINES = {
    "shuffled": ROWS.shuffle(seed=1).batch(16),
    "filtered": ROWS.filter(lambda row: row["x"][0] > -1).shuffle(seed=1).batch(16),
    "mixed": bk.mix([ROWS.shuffle(1), ROWS.take(30).shuffle(2)], [2, 1]).shuffle(3, window=20).batch(16),
}


class Killed(Exception):
    """What ends a run."""


def example() -> dict[str, Any]:
    """Return the functions of the page, as they are printed there."""
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- run by \S*{Path(__file__).name} -->\n```python\n(.*?)^```", text, re.S | re.M)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def run(folder: Path, pipe: bk.Pipeline, killed_after: int | None = None, **options: Any) -> list[bytes]:
    """Train with the page's functions, anew or from what was saved; return the bytes of the parameters."""
    names = example()
    step, seen = names["step"], 0

    def counted(params: Any, batch: Any) -> Any:
        nonlocal seen
        if seen == killed_after:
            raise Killed
        seen += 1
        return step(params, batch)

    names["step"] = counted
    start = {"w": jax.numpy.zeros((4, 1)), "b": jax.numpy.zeros(())}
    with bk.Loader(pipe, backend="jax", **options) as loader:
        params = names["train"](folder, start, loader, EPOCHS, every=2)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Return the parameters of a run over each pipeline that nobody disturbs."""
    return {name: run(tmp_path_factory.mktemp("undisturbed"), pipe) for name, pipe in PIPELINES.items()}


@pytest.mark.parametrize("killed_after", [0, 1, 5, 7, 11, 17])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_killed_run_comes_to_the_parameters_of_an_undisturbed_one(
    name: str, killed_after: int, undisturbed: dict[str, list[bytes]], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, PIPELINES[name], killed_after)
    assert run(tmp_path, PIPELINES[name]) == undisturbed[name]


def test_it_goes_on_with_another_executor_and_number_of_workers(
    undisturbed: dict[str, list[bytes]], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, PIPELINES["filtered"], 9, executor="threads", workers=3)
    assert run(tmp_path, PIPELINES["filtered"], executor="inline") == undisturbed["filtered"]


def test_a_checkpoint_that_was_cut_short_is_left_aside(undisturbed: dict[str, list[bytes]], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, PIPELINES["shuffled"], 5)
    cut_short = tmp_path / "0000-00000099.new"
    cut_short.mkdir()
    (cut_short / "params.npz").write_bytes(b"PK")
    assert run(tmp_path, PIPELINES["shuffled"]) == undisturbed["shuffled"]
