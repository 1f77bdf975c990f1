"""Rounds: contenders take turns, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["Contender", "Timing", "machine", "ratio", "take_turns"]


@dataclass(frozen=True)
class Contender:
    """Something that runs one epoch: ``epoch()`` returns an iterable of its batches."""

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


def ratio(timings: dict[str, Timing], contender: str, reference: str) -> float:
    """Return how many times as fast as ``reference`` the contender was: the median over the rounds."""
    pairs = zip(timings[reference].seconds, timings[contender].seconds, strict=True)
    return statistics.median(slow / fast for slow, fast in pairs)


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Describe where the numbers come from."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": versions,
    }
