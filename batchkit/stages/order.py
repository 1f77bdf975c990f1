"""Stages that change which rows come, and in what order, without touching a row."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, PipelineTypeError
from batchkit.random import Permutation
from batchkit.stages.stage import Stage, at_least

__all__ = ["ENDLESS", "Epochs", "OrderStage", "Positions", "Repeat", "Shuffle", "Skip", "Take", "pass_epochs"]

Positions: TypeAlias = "range | npt.NDArray[np.int64]"
Epochs: TypeAlias = "int | npt.NDArray[np.int64]"
Locator: TypeAlias = Callable[[Positions, Epochs], tuple[Positions, Epochs]]

ENDLESS = 1 << 32
"""How many passes an endless repeat() counts to one epoch, where a later take() ends the epoch."""

_LARGEST = 1 << 62  # an epoch is below this
_SHUFFLE = 1  # the first word of a shuffle's key; random maps have another


class OrderStage(Stage):
    """A stage that maps positions after it to positions before it."""

    def length(self, before: int | None) -> int | None:
        """Return the number of rows after the stage, given that before it (``None``: infinite)."""
        raise TypeError(f"{type(self).__name__} has no length()")

    def locator(self, before: int | None, ordinal: int) -> Locator:
        """Return the function from (positions, epochs) after the stage to those before it.

        ``ordinal`` counts the random stages before this one, so that no two draw alike; a shuffle that keeps
        one order for ever has that order at any place.
        """
        raise TypeError(f"{type(self).__name__} has no locator()")


@dataclass(frozen=True)
class Shuffle(OrderStage):
    """Permute all rows: another order every epoch, and another one than any other shuffle of the pipeline.

    With ``reshuffle`` false there is one order for ever, which follows from the seed and the number of rows alone.
    With a ``window`` only the rows of each run of so many are permuted among themselves.
    """

    verb: ClassVar[str] = "shuffle"
    seed: int = 0
    reshuffle: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.seed, "shuffle(seed)", 0)
        if not isinstance(self.reshuffle, bool):
            raise PipelineTypeError(f"shuffle(reshuffle) must be True or False, not {self.reshuffle!r}")
        if self.window is not None:
            at_least(self.window, "shuffle(window)", 1)

    def length(self, before: int | None) -> int | None:
        if before is None and self.window is None:
            raise PipelineError(
                "shuffle() cannot permute endless rows: put shuffle() before repeat(), or give it a window"
            )
        return before

    def locator(self, before: int | None, ordinal: int) -> Locator:
        if self.window is not None:
            return _WindowLocator(before, self, ordinal)
        assert before is not None
        return _ShuffleLocator(before, self, ordinal)

    def key(self, ordinal: int, epoch: int) -> tuple[int, ...]:
        """Return what the order of an epoch is keyed by.

        One that is kept for ever divides a data set, also in several pipelines or parts that are used together: it
        is the same wherever the stage stands.
        """
        return (_SHUFFLE, self.seed, ordinal, epoch) if self.reshuffle else (_SHUFFLE, self.seed, 0, 0)

    def block(self, rows: int, ordinal: int, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """Return the order of the ``rows`` rows of one window of an epoch."""
        return Permutation(rows, (*self.key(ordinal, epoch), number)).block(0, rows)


class _ShuffleLocator:
    """Looks positions up in the permutation of their epoch; keeps the last few permutations."""

    KEPT = 4

    def __init__(self, length: int, stage: Shuffle, ordinal: int) -> None:
        self._length, self._stage, self._ordinal = length, stage, ordinal
        self._kept: dict[int, Permutation] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_length": self._length, "_stage": self._stage, "_ordinal": self._ordinal}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _kept={}, _lock=threading.Lock())

    def _permutation(self, epoch: int) -> Permutation:
        found = self._kept.get(epoch)
        if found is None:
            with self._lock:
                found = self._kept.get(epoch)
                if found is None:
                    found = Permutation(self._length, self._stage.key(self._ordinal, epoch))
                    while len(self._kept) >= self.KEPT:
                        self._kept.pop(next(iter(self._kept)))
                    self._kept[epoch] = found
        return found

    def __call__(self, positions: Positions, epochs: Epochs) -> tuple[Positions, Epochs]:
        if isinstance(epochs, int) or not self._stage.reshuffle:
            permutation = self._permutation(epochs if isinstance(epochs, int) and self._stage.reshuffle else 0)
            if isinstance(positions, range):
                return permutation.block(positions.start, positions.stop), epochs
            return permutation(positions), epochs
        rows = np.empty(len(positions), np.int64)
        wanted = np.asarray(positions, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self._permutation(int(epoch))(wanted[chosen])
        return rows, epochs


class _WindowLocator:
    """Looks positions up in the orders of the windows that they lie in; keeps the last few orders."""

    KEPT = 64

    def __init__(self, length: int | None, stage: Shuffle, ordinal: int) -> None:
        self._length, self._stage, self._ordinal = length, stage, ordinal
        self._kept: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def _order(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        found = self._kept.get((epoch, number))
        if found is None:
            window = self._stage.window or 1
            rows = window if self._length is None else min(window, self._length - number * window)
            found = self._stage.block(rows, self._ordinal, epoch, number)
            if len(self._kept) >= self.KEPT:
                self._kept = {}  # another thread may be reading the old one
            self._kept[epoch, number] = found
        return found

    def __call__(self, positions: Positions, epochs: Epochs) -> tuple[Positions, Epochs]:
        wanted = np.asarray(positions, np.int64)
        numbers, offsets = np.divmod(wanted, self._stage.window or 1)
        per_row = np.broadcast_to(np.asarray(epochs, np.int64), wanted.shape)
        rows = np.empty(len(wanted), np.int64)
        for epoch, number in set(zip(per_row.tolist(), numbers.tolist(), strict=True)):
            chosen = (per_row == epoch) & (numbers == number)
            rows[chosen] = self._order(epoch, number)[offsets[chosen]] + number * (self._stage.window or 1)
        return rows, epochs


@dataclass(frozen=True)
class Repeat(OrderStage):
    """Go over the rows ``count`` times (for ever without it); each pass is an epoch of what comes before."""

    verb: ClassVar[str] = "repeat"
    count: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
                    return range(start, start + len(positions)), pass_epochs(epochs, which, passes)
            numbers = np.asarray(positions, np.int64)
            return numbers % max(before, 1), pass_epochs(epochs, numbers // max(before, 1), passes)

        return locate


@dataclass(frozen=True)
class Take(OrderStage):
    """Keep the first ``count`` rows."""

    verb: ClassVar[str] = "take"
    count: int

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.count, "take(count)", 0)

    def length(self, before: int | None) -> int | None:
        return self.count if before is None else min(before, self.count)

    def locator(self, before: int | None, ordinal: int) -> Locator:
        return _same


@dataclass(frozen=True)
class Skip(OrderStage):
    """Leave the first ``count`` rows out."""

    verb: ClassVar[str] = "skip"
    count: int

    def __post_init__(self) -> None:
        super().__post_init__()
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


def pass_epochs(epochs: Epochs, turns: Any, passes: int = ENDLESS) -> Any:
    """Return which epoch of what is before each pass of an epoch is: ``epoch * passes + turn``.

    Where that would be too large, because the epochs are themselves of such passes, they are hashed first.

    >>> pass_epochs(2, 1, 3), pass_epochs(np.array([0, 2]), np.array([2, 1]), 3).tolist()
    (7, [2, 7])
    """
    most = _LARGEST // passes
    if isinstance(epochs, int):
        return (epochs * passes if epochs < most else int(_hashed(np.array([epochs]))[0])) + turns
    return np.where(epochs < most, epochs * passes, _hashed(epochs)) + turns


def _hashed(epochs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return other numbers below 2**60 for large ones."""
    word = epochs.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((word ^ (word >> np.uint64(32))) >> np.uint64(4)).astype(np.int64)


def _same(positions: Positions, epochs: Epochs) -> tuple[Positions, Epochs]:
    return positions, epochs
