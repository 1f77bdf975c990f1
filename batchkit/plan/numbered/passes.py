"""Which passes over the sources later epochs make, told from those that the first epoch makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.stages.order import ENDLESS, Epochs, pass_epochs

__all__ = ["Passes"]

I64: TypeAlias = "npt.NDArray[np.int64]"


@dataclass(frozen=True)
class Passes:
    """How the rows at one place of a pipeline are counted by epochs: what repeats them between there and the source.

    Where passes are nested so deeply that :func:`~batchkit.stages.order.pass_epochs` hashes them already in epoch 0,
    later passes are told apart as well as ever, but are others than those of the rows computed anew.

    >>> Passes().repeated(3).later(np.array([0, 2]), np.array([7, 8]), 2).tolist()
    [6, 8]
    """

    counts: tuple[int, ...] = ()
    """How many passes an epoch has, for each stage that repeats: the last one first."""
    parts: tuple[Passes, ...] = ()
    """The same for each part of a combination before these stages."""
    part_of: Callable[[I64], tuple[I64, I64]] | None = None
    """Returns for the ids of rows which part each is of, and its id there."""

    def repeated(self, count: int | None) -> Passes:
        """Return the same behind ``repeat(count)``."""
        return dataclasses.replace(self, counts=(count or ENDLESS, *self.counts))

    @property
    def one(self) -> bool:
        """Whether an epoch is one pass over every source."""
        return not self.counts and all(part.one for part in self.parts)

    def later(self, first: Epochs, ids: I64, epochs: Epochs) -> Epochs:
        """Return the passes that rows have in ``epochs`` which have the passes ``first`` in epoch 0.

        Rows that only fill a batch up keep theirs.
        """
        found = self._later(first, ids, epochs)
        return found if (ids >= 0).all() else np.where(ids < 0, first, found)

    def _later(self, first: Epochs, ids: I64, epochs: Epochs) -> Epochs:
        if self.parts and not all(part.one for part in self.parts):
            return self._of_parts(first, ids, epochs)
        turns = []
        for count in reversed(self.counts):
            turn, first = first % count, first // count
            turns.append(turn)
        for count, turn in zip(self.counts, reversed(turns), strict=True):
            epochs = pass_epochs(epochs, turn, count)
        return epochs

    def _of_parts(self, first: Epochs, ids: I64, epochs: Epochs) -> I64:
        assert self.part_of is not None
        first = np.broadcast_to(np.asarray(first, np.int64), ids.shape)
        epochs = np.broadcast_to(np.asarray(epochs, np.int64), ids.shape)
        which, inner = self.part_of(np.maximum(ids, 0))
        found = np.empty(ids.shape, np.int64)
        for number, part in enumerate(self.parts):
            whole = dataclasses.replace(part, counts=(*self.counts, *part.counts))
            mine = which == number
            found[mine] = whole.later(first[mine], inner[mine], epochs[mine])
        return found
