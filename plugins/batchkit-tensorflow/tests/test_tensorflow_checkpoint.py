"""docs/checkpointing.md with Keras: a run that is killed in an epoch and started again comes to the same weights."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import batchkit as bk

PAGE = Path(__file__).parents[3] / "docs" / "checkpointing.md"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((100, 4)).astype(np.float32)
Y = (X @ RNG.standard_normal((4, 1))).astype(np.float32)
ROWS = bk.from_arrays((X, Y))
EPOCHS = 3
PIPELINES = {
    "shuffled": ROWS.shuffle(seed=1).batch(16),
    "filtered": ROWS.filter(lambda row: row[0][0] > -1).shuffle(seed=1).batch(16),
}
OPTIMIZERS = {
    "shuffled": lambda: keras.optimizers.Adam(0.01),
    # Where the number of batches is not known, Keras counts a step at the end of an epoch that this does not go by.
    "filtered": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
}

# Keras 3 converts tensors by a way that NumPy 2 warns of, and warns at the end of an epoch of unknown length.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning"),
]


class Killed(Exception):
    """What ends a run."""


class Kill(keras.callbacks.Callback):
    """Ends a run behind a number of batches."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if not self.left:
            raise Killed
        self.left -= 1


def example() -> dict[str, Any]:
    """Return the functions of the page, as they are printed there."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(rf"<!-- run by \S*{Path(__file__).name} -->\n```python\n(.*?)^```", text, re.S | re.M)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    return names


def new_model(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile(optimizer=OPTIMIZERS[name](), loss="mse")
    return model


def weights(model: keras.Model) -> list[bytes]:
    return [np.asarray(weight).tobytes() for weight in model.get_weights()]


def run(folder: Path, name: str, killed_after: int | None = None, strategy: Any = None) -> list[bytes]:
    """Train with the page's functions, anew or from what was saved; return the bytes of the weights."""
    names = example()
    with nullcontext() if strategy is None else strategy.scope():
        model = new_model(name)
        if killed_after is not None:
            kill, fit = Kill(killed_after), model.fit
            model.fit = lambda *args, callbacks, **more: fit(*args, callbacks=[*callbacks, kill], **more)
        with bk.Loader(PIPELINES[name], backend="tensorflow") as loader:
            names["train"](folder, model, loader, EPOCHS, every=2)
    return weights(model)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Return the weights of a run of each pipeline that nobody disturbs."""
    return {name: run(tmp_path_factory.mktemp("undisturbed"), name) for name in PIPELINES}


@pytest.mark.parametrize("killed_after", [1, 5, 7, 17])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_killed_run_comes_to_the_weights_of_an_undisturbed_one(
    name: str, killed_after: int, undisturbed: dict[str, list[bytes]], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, name, killed_after)
    assert run(tmp_path, name) == undisturbed[name]


@pytest.mark.parametrize("killed_after", [None, 5])
def test_under_a_strategy_fit_looks_at_a_batch_ahead_and_no_row_is_lost(
    killed_after: int | None, undisturbed: dict[str, list[bytes]], tmp_path: Path
) -> None:
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    if killed_after is not None:
        with pytest.raises(Killed):
            run(tmp_path, "shuffled", killed_after, strategy)
    found = run(tmp_path, "shuffled", strategy=strategy)
    # A strategy sums gradients in another order: close to the weights of the same batches, far from those of others.
    for weight, wanted in zip(found, undisturbed["shuffled"], strict=True):
        np.testing.assert_allclose(np.frombuffer(weight, np.float32), np.frombuffer(wanted, np.float32), rtol=1e-4)


def test_a_loop_without_fit_comes_to_the_same_weights_with_the_loaders_own_state(tmp_path: Path) -> None:
    def steps(model: keras.Model, loader: bk.Loader, count: int) -> None:
        for _, batch in zip(range(count), loader, strict=False):
            model.train_on_batch(*batch)

    pipe = PIPELINES["filtered"]
    whole, first, second = (new_model("shuffled") for _ in range(3))
    with bk.Loader(pipe, backend="tensorflow") as loader:
        steps(whole, loader, 5)
    with bk.Loader(pipe, backend="tensorflow") as loader:
        steps(first, loader, 3)
        first.save_weights(tmp_path / "model.weights.h5")
        state = loader.state_dict()
    second.optimizer.build(second.trainable_variables)
    second.load_weights(tmp_path / "model.weights.h5")
    with bk.Loader(pipe, backend="tensorflow") as loader:
        loader.load_state_dict(state)
        steps(second, loader, 2)
    assert weights(second) == weights(whole)


def test_backup_and_restore_goes_back_to_the_beginning_of_the_epoch_and_the_loader_with_it(tmp_path: Path) -> None:
    follows, pipe = example()["LoaderFollows"], PIPELINES["shuffled"]

    def fit(folder: str, *callbacks: Any) -> list[bytes]:
        model = new_model("shuffled")
        with bk.Loader(pipe, backend="tensorflow") as loader:
            backup = keras.callbacks.BackupAndRestore(str(tmp_path / folder))
            model.fit(
                loader.as_dataset(),
                epochs=EPOCHS,
                callbacks=[backup, follows(loader), *callbacks],
                shuffle=False,
                verbose=0,
            )
        return weights(model)

    wanted = fit("undisturbed")
    with pytest.raises(Killed):
        fit("killed", Kill(10))
    assert fit("killed") == wanted
