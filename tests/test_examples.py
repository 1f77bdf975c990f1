"""The examples run, and print what they promise; so does the README's."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import batchkit as bk

ROOT = Path(__file__).parents[1]
PATTERNS = ROOT / "examples" / "patterns"
DIGITS = ROOT / "examples" / "digits"


def run(file: Path, *arguments: str) -> str:
    """Run a file in a process of its own; return what it printed."""
    done = subprocess.run([sys.executable, str(file), *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(framework: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not find_spec(framework), reason=f"{framework} is not installed")


# ------------------------------------------------------------------ the patterns


def test_every_pattern_is_short_and_says_how_it_is_run() -> None:
    files = sorted(PATTERNS.glob("*.py"))
    assert [file.name[:3] for file in files] == [f"{number:02}_" for number in range(1, len(files) + 1)]
    for file in files:
        text = file.read_text()
        assert len(text.splitlines()) < 60, file.name
        assert f"Run: python examples/patterns/{file.name}" in text


def test_a_description_can_be_iterated_again_and_resumed_where_a_generator_is_used_up() -> None:
    assert run(PATTERNS / "01_batch_generator.py").splitlines() == [
        "generator, first pass:  [4, 4, 2]",
        "generator, second pass: []",
        "batchkit, first pass:   [4, 4, 2] the same batches: True",
        "batchkit, second pass:  [4, 4, 2] of 3",
        "resumed, the same rest: True",
    ]


@needs("torch")
def test_two_workers_double_a_generators_rows_but_not_a_loaders() -> None:
    assert run(PATTERNS / "02_torch_iterable_dataset.py").splitlines() == [
        "generator, no workers:  100 rows, 100 different ones",
        "generator, two workers: 200 rows, 100 different ones",
        "batchkit, bare:         100 rows, 100 different ones",
        "batchkit, two workers:  100 rows, 100 different ones",
    ]


@needs("tensorflow")
def test_a_loader_hands_tensorflow_the_batches_of_from_generator_with_their_shapes() -> None:
    printed = run(PATTERNS / "03_tensorflow_from_generator.py")
    assert "from_generator, spec of x: TensorSpec(shape=(None, 16)" in printed
    assert "batchkit, spec of x:       TensorSpec(shape=(256, 16)" in printed
    assert "the same batches: True" in printed


def test_a_row_is_augmented_alike_at_every_batch_size_and_worker_count() -> None:
    assert run(PATTERNS / "04_on_the_fly_transforms.py").splitlines() == [
        "generator, batches of 4 and of 6 alike: False",
        "batchkit, batches of 4 and of 6 alike:  True",
        "batchkit, one and three workers alike:  True",
    ]


def test_threads_share_a_loader_where_a_generator_refuses() -> None:
    lines = run(PATTERNS / "05_threads_sharing_a_generator.py").splitlines()
    assert lines[0] == "generator:        generator already executing"
    assert [line.partition(",")[0] for line in lines[1:]] == [
        "locked generator: every row once: True",
        "batchkit:         every row once: True",
    ]


# ------------------------------------------------------------------ the digits


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the configuration beside small files that it can read."""
    monkeypatch.syspath_prepend(str(DIGITS))
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    np.save(tmp_path / "data/images.npy", rng.integers(0, 17, (1797, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "data/labels.npy", np.arange(1797))  # a number of its own for every row
    config = tmp_path / "digits.yaml"
    config.write_text((DIGITS / "digits.yaml").read_text())
    return config


def labels(config: Path, pipeline: str) -> list[int]:
    with bk.load(config, pipeline=pipeline) as loader:
        return [int(label) for batch in loader for label in batch["label"]]


def test_the_digits_are_split_into_two_sets_without_a_common_row(digits: Path) -> None:
    train, test = labels(digits, "train"), labels(digits, "test")
    assert (len(train), len(test)) == (1437 // 64 * 64, 360)
    assert len({*train, *test}) == len(train) + len(test)


def test_the_digits_reach_the_model_as_float32_around_zero(digits: Path) -> None:
    with bk.load(digits, pipeline="train") as loader:
        batch = next(iter(loader))
    assert (batch["image"].dtype, batch["image"].shape) == (np.float32, (64, 8, 8))
    assert batch["image"].min() >= -1
    assert batch["image"].max() <= 1.4


def test_the_shift_of_the_digits_moves_every_image_by_at_most_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DIGITS))
    from digits_transforms import shift  # type: ignore[import-not-found]

    images = np.random.default_rng(0).integers(1, 17, (40, 8, 8), dtype=np.uint8)
    with bk.Loader(bk.from_arrays({"image": images}).batch(40).random_map(shift, seed=0)) as loader:
        (batch,) = loader
    moves = []
    for image, moved in zip(images, batch["image"], strict=True):
        paper = np.zeros((10, 10), np.uint8)
        paper[1:9, 1:9] = image
        fits = [(y, x) for y in range(3) for x in range(3) if np.array_equal(paper[y : y + 8, x : x + 8], moved)]
        assert len(fits) == 1
        moves += fits
    assert len(set(moves)) > 4


@pytest.mark.parametrize("backend", [pytest.param(name, marks=needs(name)) for name in ("torch", "tensorflow", "jax")])
def test_the_demo_trains_with(backend: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo's digits come with scikit-learn, which is not installed")
    picture = tmp_path / "digits.png"
    printed = run(DIGITS / "demo.py", "--backend", backend, "--out", str(tmp_path), "--picture", str(picture))
    row = re.search(rf"{backend} +│ ([0-9a-f]{{16}}) │ +([0-9.]+)%", printed)
    assert row, printed
    assert float(row[2]) >= 95
    assert picture.stat().st_size > 10_000


def test_the_demo_fails_where_a_framework_was_fed_other_batches_or_learned_too_little() -> None:
    pytest.importorskip("matplotlib", reason="the demo draws with matplotlib, which is not installed")
    code = f"""
import sys
sys.path.insert(0, {str(DIGITS)!r})
from demo import failures
def record(backend, digest, accuracy):
    return {{"backend": backend, "digest": digest, "accuracy": accuracy}}
print(failures([record("torch", "a", 0.97), record("jax", "a", 0.95)]))
print(*failures([record("torch", "a", 0.97), record("jax", "b", 0.94)]), sep=", ")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]",
        "jax got 94.0% of the test set right, less than 95%, "
        "the frameworks were fed different batches: the digests differ",
    ]


# ------------------------------------------------------------------ the README


@needs("torch")
def test_the_example_of_the_readme_runs_and_is_about_fifteen_lines(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert 12 <= len(example.splitlines()) <= 18
    file = tmp_path / "readme.py"
    file.write_text(example)
    assert run(file).splitlines() == ["torch (32, 28, 28) 1 of 31 steps", "steps that are left: 30"]
