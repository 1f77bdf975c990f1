"""The digits with TensorFlow: a Keras model, a compiled step, and a test set that is a ``tf.data.Dataset``."""

from __future__ import annotations

import tensorflow as tf

import batchkit as bk
from journal import Journal


def train(train: bk.Loader, test: bk.Loader, journal: Journal) -> float:
    """Train a small classifier; return its accuracy on the test set."""
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Flatten(), layers.Dense(256, activation="relu"), layers.Dense(10)])
    model.build((None, 8, 8))
    optimizer = tf.keras.optimizers.Adam(3e-3)
    cross_entropy = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(image: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = cross_entropy(label, model(image, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    for _ in journal.progress():
        losses = [step(batch["image"], batch["label"]) for batch in journal.watch(train)]
        journal.losses.append(float(tf.reduce_mean(losses)))

    metric = tf.keras.metrics.SparseCategoricalAccuracy()
    for batch in test.as_dataset():
        metric.update_state(batch["label"], model(batch["image"]))
    return float(metric.result())
