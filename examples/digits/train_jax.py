"""The digits with plain JAX: parameters in a tree, one jitted step, Adam written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import batchkit as bk
from journal import Journal

Params = dict[str, Any]
RATE, BETA1, BETA2, EPSILON = 3e-3, 0.9, 0.999, 1e-8


def initialize(key: jax.Array) -> Params:
    """Return the weights of two dense layers, 64 to 256 to 10 (He's initialisation)."""
    one, two = jax.random.split(key)
    return {
        "w1": jax.random.normal(one, (64, 256)) * (2 / 64) ** 0.5,
        "b1": jnp.zeros(256),
        "w2": jax.random.normal(two, (256, 10)) * (2 / 256) ** 0.5,
        "b2": jnp.zeros(10),
    }


def predict(params: Params, image: jax.Array) -> jax.Array:
    """Return the logits, (rows, 10)."""
    hidden = jax.nn.relu(image.reshape(len(image), 64) @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def cross_entropy(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
    """Return the mean loss of a batch."""
    logits = jax.nn.log_softmax(predict(params, batch["image"]))
    return -jnp.take_along_axis(logits, batch["label"][:, None], axis=1).mean()


@jax.jit
def step(state: tuple[Any, ...], batch: dict[str, jax.Array]) -> tuple[tuple[Any, ...], jax.Array]:
    """Take one step of Adam (Kingma and Ba, 2015)."""
    params, mean, square, count = state
    loss, gradient = jax.value_and_grad(cross_entropy)(params, batch)
    count = count + 1
    mean = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, mean, gradient)
    square = jax.tree.map(lambda s, g: BETA2 * s + (1 - BETA2) * g * g, square, gradient)

    def moved(p: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        return p - RATE * (m / (1 - BETA1**count)) / (jnp.sqrt(s / (1 - BETA2**count)) + EPSILON)

    return (jax.tree.map(moved, params, mean, square), mean, square, count), loss


def train(train: bk.Loader, test: bk.Loader, journal: Journal) -> float:
    """Train a small classifier; return its accuracy on the test set."""
    params = initialize(jax.random.key(0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    state: tuple[Any, ...] = (params, zeros, zeros, 0)
    for _ in journal.progress():
        losses = []
        for batch in journal.watch(train):
            state, loss = step(state, batch)
            losses.append(loss)
        journal.losses.append(float(jnp.stack(losses).mean()))
    hits = [predict(state[0], batch["image"]).argmax(axis=1) == batch["label"] for batch in test]
    return float(jnp.concatenate(hits).mean())
