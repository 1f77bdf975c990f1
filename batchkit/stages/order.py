"""Stages that change which rows come, and in what order, without touching a row."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, PipelineTypeError
from batchkit.random import Permutation
from batchkit.stages.stage import Stage, at_least

__all__ = ["Epochs", "OrderStage", "Positions", "Repeat", "Shuffle", "Skip", "Take"]

T = TypeVar("T")
Positions: TypeAlias = "range | npt.NDArray[np.int64]"
Epochs: TypeAlias = "int | npt.NDArray[np.int64]"
Locator: TypeAlias = Callable[[Positions, Epochs], tuple[Positions, Epochs]]

ENDLESS = 1 << 32
"""How many passes an endless repeat() counts to one epoch, where a later take() ends the epoch."""

_SHUFFLE = 1  # the first word of a shuffle's key; random maps have another


class OrderStage(Stage):
    """A stage that maps positions after it to positions before it."""

    def length(self, before: int | None) -> int | None:
        """Return the number of rows after the stage, given that before it (``None``: infinite)."""
        raise TypeError(f"{type(self).__name__} has no length()")

    def locator(self, before: int | None, ordinal: int) -> Locator:
        """Return the function from (positions, epochs) after the stage to those before it.

        ``ordinal`` counts the random stages before this one, so that no two draw alike.
        """
        raise TypeError(f"{type(self).__name__} has no locator()")

    def iterate(self, epochs: Callable[[int], Iterator[T]], epoch: int) -> Iterator[T]:
        """Do the same to a stream: ``epochs(e)`` starts epoch ``e`` of what comes before."""
        raise PipelineError(
            f"{self.label} cannot follow a generator: its rows have no numbers to permute. "
            "Shuffle inside the generator, or put the rows in a list and use from_sequence()"
        )


@dataclass(frozen=True)
class Shuffle(OrderStage):
    """Permute all rows; another order every epoch unless ``reshuffle`` is false."""

    verb: ClassVar[str] = "shuffle"
    seed: int = 0
    reshuffle: bool = True

    def __post_init__(self) -> None:
        at_least(self.seed, "shuffle(seed)", 0)
        if not isinstance(self.reshuffle, bool):
            raise PipelineTypeError(f"shuffle(reshuffle) must be True or False, not {self.reshuffle!r}")

    def length(self, before: int | None) -> int | None:
        if before is None:
            raise PipelineError("shuffle() cannot permute endless rows: put shuffle() before repeat()")
        return before

    def locator(self, before: int | None, ordinal: int) -> Locator:
        assert before is not None
        return _ShuffleLocator(before, (_SHUFFLE, self.seed, ordinal), self.reshuffle)


class _ShuffleLocator:
    """Looks positions up in the permutation of their epoch; keeps the last few permutations."""

    KEPT = 4

    def __init__(self, length: int, key: tuple[int, ...], reshuffle: bool) -> None:
        self._length, self._key, self._reshuffle = length, key, reshuffle
        self._kept: dict[int, Permutation] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_length": self._length, "_key": self._key, "_reshuffle": self._reshuffle}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _kept={}, _lock=threading.Lock())

    def _permutation(self, epoch: int) -> Permutation:
        found = self._kept.get(epoch)
        if found is None:
            with self._lock:
                found = self._kept.get(epoch)
                if found is None:
                    found = Permutation(self._length, (*self._key, epoch))
                    while len(self._kept) >= self.KEPT:
                        self._kept.pop(next(iter(self._kept)))
                    self._kept[epoch] = found
        return found

    def __call__(self, positions: Positions, epochs: Epochs) -> tuple[Positions, Epochs]:
        if isinstance(epochs, int):
            permutation = self._permutation(epochs if self._reshuffle else 0)
            if isinstance(positions, range):
                return permutation.block(positions.start, positions.stop), epochs
            return permutation(positions), epochs
        rows = np.empty(len(positions), np.int64)
        wanted = np.asarray(positions, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self._permutation(int(epoch) if self._reshuffle else 0)(wanted[chosen])
        return rows, epochs


@dataclass(frozen=True)
class Repeat(OrderStage):
    """Go over the rows ``count`` times (for ever without it); each pass is an epoch of what comes before."""

    verb: ClassVar[str] = "repeat"
    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None:
            at_least(self.count, "repeat(count)", 1)

    def length(self, before: int | None) -> int | None:
        if before == 0 and self.count is None:
            raise PipelineError("repeat() for ever over no rows would never yield anything: give it rows, or a count")
        return None if before is None or self.count is None else before * self.count

    def locator(self, before: int | None, ordinal: int) -> Locator:
        passes = self.count or ENDLESS

        def locate(positions: Positions, epochs: Epochs) -> tuple[Positions, Epochs]:
            if before is None:
                return positions, epochs
            if isinstance(positions, range) and len(positions) and isinstance(epochs, int):
                which = positions.start // before
                if (positions.stop - 1) // before == which:
                    start = positions.start - which * before
                    return range(start, start + len(positions)), epochs * passes + which
            numbers = np.asarray(positions, np.int64)
            return numbers % max(before, 1), np.asarray(epochs) * passes + numbers // max(before, 1)

        return locate

    def iterate(self, epochs: Callable[[int], Iterator[T]], epoch: int) -> Iterator[T]:
        for which in itertools.count() if self.count is None else range(self.count):
            empty = True
            for item in epochs(epoch * (self.count or ENDLESS) + which):
                empty = False
                yield item
            if empty and self.count is None:
                raise PipelineError("repeat() for ever over a generator that yields nothing would never end")


@dataclass(frozen=True)
class Take(OrderStage):
    """Keep the first ``count`` rows."""

    verb: ClassVar[str] = "take"
    count: int

    def __post_init__(self) -> None:
        at_least(self.count, "take(count)", 0)

    def length(self, before: int | None) -> int | None:
        return self.count if before is None else min(before, self.count)

    def locator(self, before: int | None, ordinal: int) -> Locator:
        return _same

    def iterate(self, epochs: Callable[[int], Iterator[T]], epoch: int) -> Iterator[T]:
        return itertools.islice(epochs(epoch), self.count)


@dataclass(frozen=True)
class Skip(OrderStage):
    """Leave the first ``count`` rows out."""

    verb: ClassVar[str] = "skip"
    count: int

    def __post_init__(self) -> None:
        at_least(self.count, "skip(count)", 0)

    def length(self, before: int | None) -> int | None:
        return None if before is None else max(before - self.count, 0)

    def locator(self, before: int | None, ordinal: int) -> Locator:
        shift = self.count

        def locate(positions: Positions, epochs: Epochs) -> tuple[Positions, Epochs]:
            if isinstance(positions, range):
                return range(positions.start + shift, positions.stop + shift), epochs
            return positions + shift, epochs

        return locate

    def iterate(self, epochs: Callable[[int], Iterator[T]], epoch: int) -> Iterator[T]:
        return itertools.islice(epochs(epoch), self.count, None)


def _same(positions: Positions, epochs: Epochs) -> tuple[Positions, Epochs]:
    return positions, epochs
