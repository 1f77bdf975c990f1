"""The tf.data.Dataset over a loader."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batchkit import tree as tree_
from batchkit.errors import BackendError
from batchkit.schema import LeafSpec
from batchkit.tree import Tree
from batchkit_tensorflow import dtypes
from batchkit_tensorflow.replicas import Replicas

__all__ = ["dataset_of"]


def dataset_of(loader: Any) -> tf.data.Dataset:
    """Return a dataset of the batches of ``loader``: one iteration is one epoch, the next one is the next epoch.

    It begins where the loader stands, and leaves the loader where it is. Shapes and dtypes are
    those of ``loader.schema``; the cardinality is known where the loader's length is, unless
    the first iteration is only the rest of an epoch.
    """
    schema = loader.schema
    signature = tree_.map_leaves(_tensor_spec, schema)
    blank = tree_.map_leaves(_blank, schema)
    epochs = _Epochs(loader)
    # Arrays of NumPy, not tensors: tf.data would turn those back into arrays first.
    replicas = Replicas(loader)
    failures = _Failures()

    def iteration() -> _Reported:
        epoch, step = epochs.begin()
        return _Reported(replicas.iterate(epoch, step), blank, failures)

    dataset = tf.data.Dataset.from_generator(iteration, output_signature=(tf.TensorSpec((), tf.int64), signature))
    if epochs.whole and (length := _length(loader)) is not None:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(length))
    dataset = dataset.map(tf.autograph.experimental.do_not_convert(failures.raised))
    if any(spec.dtype.name == "float8_e5m2" for spec in tree_.flatten(schema)[0]):
        # The graph optimiser of TensorFlow 2.21 stops at this dtype.
        options = tf.data.Options()
        options.experimental_optimization.apply_default_optimizations = False
        dataset = dataset.with_options(options)
    # What is made of a dataset, iterators too, refers to it; and it keeps the loader, which may be moved yet.
    weakref.finalize(dataset, _let_go, replicas, loader).atexit = False
    return dataset


def _let_go(replicas: Replicas, loader: Any) -> None:
    """End what a dataset kept; ``loader`` is here to be kept until then."""
    replicas.release()


class _Failures:
    """The errors that are on their way through a dataset, by number; 0 is none."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._errors: dict[int, Exception] = {}

    def add(self, error: Exception) -> int:
        """Return a number for an error."""
        number = next(self._numbers)
        self._errors[number] = error
        return number

    def raised(self, number: tf.Tensor, batch: Tree) -> Tree:
        """Return the batch, or raise the error that came instead of it."""

        def fails() -> tf.Tensor:
            return tf.numpy_function(self._raise, [number], tf.bool)

        tf.cond(tf.equal(number, 0), lambda: True, fails)
        return batch

    def _raise(self, number: Any) -> None:
        raise self._errors.pop(int(number))


class _Reported(Iterator[tuple[int, Tree]]):
    """Host batches, each with the number of the error that there is instead.

    A step that fails is an element all the same: so the dataset keeps its cardinality, and
    the steps behind it can still be had, with ``ignore_errors()`` for one.
    """

    def __init__(self, batches: Iterator[Tree], blank: Tree, failures: _Failures) -> None:
        self._batches = batches
        self._blank = blank
        self._failures = failures

    def __next__(self) -> tuple[int, Tree]:
        try:
            return 0, next(self._batches)
        except StopIteration:
            raise
        except Exception as exc:
            return self._failures.add(exc), self._blank


class _Epochs:
    """Which epoch the next iteration of a dataset is; several threads may ask."""

    def __init__(self, loader: Any) -> None:
        self._loader = weakref.ref(loader)  # TensorFlow holds this for ever
        self._lock = threading.Lock()
        self._placings, self._seen = _place(loader)
        self._upcoming = self._seen
        self.whole = self._upcoming[1] == 0
        """Whether every iteration is a whole epoch."""

    def begin(self) -> tuple[int, int]:
        """Return the epoch and the step at which an iteration begins."""
        with self._lock:
            loader = self._loader()
            placings, position = (self._placings, self._seen) if loader is None else _place(loader)
            if (placings, position) != (self._placings, self._seen):
                if self.whole and position[1]:
                    raise BackendError(
                        f"the loader was moved into an epoch (epoch {position[0]}, step {position[1]}) after "
                        "as_dataset(), which had promised whole ones: call as_dataset() again after load_state_dict()"
                    )
                self._placings, self._seen = placings, position
                self._upcoming = position
            now = self._upcoming
            self._upcoming = (now[0] + 1, 0)
            return now


def _place(loader: Any) -> tuple[int, tuple[int, int]]:
    """Return how often the loader was put somewhere, and the epoch and the step where it stands."""
    state = loader.state_dict()
    return loader.placings, (state["epoch"], state["step"])


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def _tensor_spec(spec: LeafSpec) -> tf.TensorSpec:
    return tf.TensorSpec(spec.shape, dtypes.tensor_dtype(spec.dtype))


def _blank(spec: LeafSpec) -> npt.NDArray[Any]:
    """Return what stands for a leaf of a batch that could not be computed."""
    shape = tuple(side or 0 for side in spec.shape)
    return np.zeros(shape, "S1" if spec.dtype.kind in "UST" else spec.dtype)
