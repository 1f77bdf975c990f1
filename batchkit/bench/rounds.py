"""Rounds: contenders take turns, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = ["Contender", "Timing", "interleaved", "paired", "ratio", "take_turns"]

T = TypeVar("T")


@dataclass(frozen=True)
class Contender:
    """Something that runs one epoch in this process: ``epoch()`` returns an iterable of its batches."""

    name: str
    epoch: Callable[[], Iterable[Any]]


@dataclass
class Timing:
    """How long one epoch took, in seconds, once a round."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle one of all rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest round."""
        return min(self.seconds), max(self.seconds)


def interleaved(
    contenders: Sequence[T], rounds: int, told: Callable[[str], None] = lambda line: None, kind: str = "round"
) -> Iterator[tuple[int, T]]:
    """Yield every contender once a round, with the number of the round from 0.

    ``told`` is called with a line when a round begins.

    >>> list(interleaved("ab", 2))
    [(0, 'a'), (0, 'b'), (1, 'a'), (1, 'b')]
    """
    for number in range(rounds):
        told(f"{kind} {number + 1} of {rounds}")
        for contender in contenders:
            yield number, contender


def take_turns(
    contenders: Sequence[Contender], rounds: int, budget: float = 0.5, told: Callable[[str], None] = lambda line: None
) -> dict[str, Timing]:
    """Run every contender in every round; return the timings by name.

    A quick contender runs several epochs in a round, until ``budget`` seconds are used up: one
    each time it is its turn, so that those who are compared run next to each other. What counts
    is the median of the round. ``told`` is called with a line when a round begins.
    """
    timings = {contender.name: Timing(contender.name) for contender in contenders}
    for number in range(rounds):
        told(f"round {number + 1} of {rounds}")
        taken: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        waiting = list(contenders)
        while waiting:
            for contender in waiting:
                taken[contender.name].append(_seconds(contender))
            waiting = [contender for contender in waiting if _has_time(taken[contender.name], budget)]
        for name, seconds in taken.items():
            timings[name].seconds.append(statistics.median(seconds))
    return timings


def _seconds(contender: Contender) -> float:
    begin = time.perf_counter()
    for _ in contender.epoch():
        pass
    return time.perf_counter() - begin


def _has_time(taken: list[float], budget: float) -> bool:
    return sum(taken) + taken[-1] < budget and len(taken) < 25


def paired(values: Sequence[float], references: Sequence[float]) -> float:
    """Return how many times the reference a value is: the median over the rounds, each taken by itself.

    >>> paired([2.0, 30.0, 8.0], [1.0, 10.0, 2.0])
    3.0
    """
    return statistics.median(value / reference for value, reference in zip(values, references, strict=True))


def ratio(timings: Mapping[str, Timing], contender: str, reference: str) -> float:
    """Return how many times as fast as ``reference`` the contender was: the median over the rounds."""
    return paired(timings[reference].seconds, timings[contender].seconds)
