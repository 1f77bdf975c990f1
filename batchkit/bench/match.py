"""The match: every backend with every executor, one after the other, round after round."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batchkit.bench.machine import machine
from batchkit.bench.record import RECORD_VERSION, Contest, Record, Result, Terms, Turn
from batchkit.bench.rounds import interleaved
from batchkit.bench.runner import Runner
from batchkit.config.files import read
from batchkit.errors import ConfigError, WorkerError

__all__ = ["Entry", "check", "digest", "measure"]

TIME_TO_START = 60.0
"""Seconds: importing a framework and opening the data may take so long, even with a shorter timeout."""


@dataclass(frozen=True)
class Entry:
    """One contender before the match."""

    backend: str
    executor: str


def check(contest: Contest, terms: Terms) -> None:
    """See that the config is valid, in a process of its own, because a config may run code.

    What else goes wrong is left to the contenders to say: it may be different for each of them.

    Raises:
        ConfigError: it is not.
    """
    runner = Runner()
    try:
        runner.ask("open", **_opening(contest, Entry("numpy", "inline")), timeout=max(terms.timeout, TIME_TO_START))
    except WorkerError:
        return
    except ConfigError as exc:
        raise ConfigError(str(exc).partition(": ")[2]) from None
    finally:
        runner.kill()


def measure(
    contest: Contest,
    entries: Sequence[Entry],
    terms: Terms,
    clock: Callable[[], datetime],
    told: Callable[[str], None] = lambda line: None,
) -> Record:
    """Let the contenders take turns, and return what was measured.

    One that is missing or fails has a ``problem`` in its result, and the rest goes on. ``told`` is
    called with a line when something begins or fails. No process stays behind, whatever happens.

    Raises:
        ConfigError: the config cannot be read.
    """
    config = {
        "path": contest.config,
        "pipeline": contest.pipeline,
        "overrides": contest.overrides,
        "digest": digest(contest),
    }
    date = clock().isoformat(timespec="seconds")
    seats: list[_Seat] = []
    try:
        for entry in entries:
            seats.append(seat := _Seat(entry, told))
            seat.open(contest, terms)
        for kind, rounds in (("warm-up", terms.warmup), ("round", terms.rounds)):
            for _, seat in interleaved(seats, rounds, told, kind):
                seat.turn(terms, counts=kind == "round")
    except BaseException:
        for seat in seats:
            seat.runner.kill()
        raise
    for seat in seats:
        seat.runner.end()
    results = [seat.result for seat in seats]
    return Record(RECORD_VERSION, date, config, terms, _described(results), results)


class _Seat:
    """A contender in the match: its process, and its result so far."""

    def __init__(self, entry: Entry, told: Callable[[str], None]) -> None:
        self.entry, self._told = entry, told
        self.result = Result(entry.backend, entry.executor)
        self.runner = Runner()

    def open(self, contest: Contest, terms: Terms) -> None:
        """Start the contender."""
        self._told(f"starting {self.result.name}")
        limit = max(terms.timeout, TIME_TO_START)
        try:
            reply = self.runner.ask("open", **_opening(contest, self.entry), timeout=limit)
        except (ConfigError, WorkerError) as exc:
            self._failed(str(exc))
        else:
            self.result.start_s, self.result.facts = reply["start_s"], reply["facts"]

    def turn(self, terms: Terms, counts: bool) -> None:
        """Run a turn, unless the contender has failed already."""
        if self.result.problem is not None:
            return
        asked = {name: getattr(terms, name) for name in ("steps", "seconds", "work_ms", "busy", "timeout")}
        try:
            turn = Turn(**self.runner.ask("turn", **asked))
        except (ConfigError, WorkerError) as exc:
            self._failed(str(exc))
        else:
            (self.result.turns if counts else self.result.warmup).append(turn)

    def _failed(self, problem: str) -> None:
        self.result.problem = problem
        self._told(f"{self.result.name} is left out: {' '.join(problem.split())}")


def _opening(contest: Contest, entry: Entry) -> dict[str, Any]:
    chosen = {"loader.backend": entry.backend, "loader.executor": entry.executor}
    given = dataclasses.asdict(contest)
    return {**given, "overrides": {**contest.overrides, **chosen}, "backend": entry.backend}


def digest(contest: Contest) -> str:
    """Return the SHA-256 of what the config says; comments and the order of keys do not matter.

    Raises:
        ConfigError: the file cannot be read.
    """
    said = [read(contest.config).content, contest.pipeline, contest.overrides]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _described(results: Sequence[Result]) -> dict[str, Any]:
    """Describe the machine, with the versions of the frameworks that were imported and of their plugins."""
    plugins = dict.fromkeys(f"batchkit-{result.backend}" for result in results)
    found = machine(["batchkit-core", "numpy", *plugins])
    for name in plugins:  # a backend may be another package's, or a file's
        if found["packages"][name] == "not installed":
            del found["packages"][name]
    versions = {result.backend: result.facts.get("version") for result in results}
    found["packages"].update({name: version for name, version in versions.items() if version})
    return found
