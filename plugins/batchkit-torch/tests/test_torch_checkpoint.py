"""docs/checkpointing.md with torch: a run that is killed in an epoch and started again comes to the same weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import batchkit as bk

PAGE = Path(__file__).parents[3] / "docs" / "checkpointing.md"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((100, 4)).astype(np.float32)
Y = (X @ RNG.standard_normal((4, 1))).astype(np.float32)
ROWS = bk.from_arrays({"x": X, "y": Y})
EPOCHS = 3


def noisy(batch: Any, rng: Any) -> Any:
    return {**batch, "x": (batch["x"] + rng.normal(size=4)).astype(np.float32)}


class Killed(Exception):
    """What ends a run."""


def example() -> dict[str, Any]:
    """Return the functions of the page, as they are printed there."""
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- run by \S*{Path(__file__).name} -->\n```python\n(.*?)^```", text, re.S | re.M)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def run(path: Path, pipe: bk.Pipeline, killed_after: int | None = None, **options: Any) -> list[bytes]:
    """Train with the page's functions, anew or from what was saved; return the bytes of weights and biases."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen = 0

    def count(module: Any, inputs: Any) -> None:
        nonlocal seen
        if seen == killed_after:
            raise Killed
        seen += 1

    model.register_forward_pre_hook(count)
    with bk.Loader(pipe, backend="torch", **options) as loader:
        example()["train"](path, model, optimizer, loader, EPOCHS, every=2)
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]


PIPELINES = {
    "shuffled": ROWS.shuffle(seed=1).batch(16),
    "filtered": ROWS.filter(lambda row: row["x"][0] > -1).shuffle(seed=1).batch(16),
    "random": ROWS.shuffle(seed=1).batch(16).random_map(noisy),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Return the parameters of a run over each pipeline that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {name: run(folder / f"{name}.pt", pipe) for name, pipe in PIPELINES.items()}


@pytest.mark.parametrize("killed_after", [0, 1, 5, 7, 11, 17])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_killed_run_comes_to_the_weights_of_an_undisturbed_one(
    name: str, killed_after: int, undisturbed: dict[str, list[bytes]], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run.pt", PIPELINES[name], killed_after)
    assert run(tmp_path / "run.pt", PIPELINES[name]) == undisturbed[name]


def test_it_goes_on_with_another_executor_and_number_of_workers(
    undisturbed: dict[str, list[bytes]], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run.pt", PIPELINES["filtered"], 9, executor="threads", workers=3)
    assert run(tmp_path / "run.pt", PIPELINES["filtered"], executor="inline") == undisturbed["filtered"]


def test_from_another_place_in_the_data_the_weights_are_others(
    undisturbed: dict[str, list[bytes]], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run.pt", PIPELINES["shuffled"], 5)
    held = torch.load(tmp_path / "run.pt", weights_only=True)
    held["loader"] = {**held["loader"], "step": 0}
    torch.save(held, tmp_path / "run.pt")
    assert run(tmp_path / "run.pt", PIPELINES["shuffled"]) != undisturbed["shuffled"]
