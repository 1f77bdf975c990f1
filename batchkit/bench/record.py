"""What was measured, and how it is kept as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchkit.bench.rounds import paired
from batchkit.errors import ConfigError

__all__ = ["RECORD_VERSION", "Contest", "Record", "Result", "Terms", "Turn", "read"]

RECORD_VERSION = 1


@dataclass(frozen=True)
class Terms:
    """The same for every contender.

    Args:
        rounds: how many turns each has.
        warmup: how many more it has before, which do not count.
        steps: batches a turn; ``None``: an epoch, or several where that is quick.
        seconds: a turn is cut off after so many.
        work_ms: how long the consumer is busy with a batch.
        busy: whether it computes for that time; otherwise it sleeps, as one does that waits for an accelerator.
        timeout: a contender that is silent for so many seconds has failed.
    """

    rounds: int = 5
    warmup: int = 1
    steps: int | None = None
    seconds: float = 2.0
    work_ms: float = 0.0
    busy: bool = False
    timeout: float = 60.0


@dataclass(frozen=True)
class Contest:
    """What is measured: a config file, and what is changed in it."""

    config: str
    pipeline: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    allow_imports: bool = True


@dataclass(frozen=True)
class Turn:
    """The raw figures of one turn.

    ``first_s`` is the time from ``iter()`` to the first batch, ``waited_s`` the time that was spent
    in ``next()``. ``peak_bytes`` is what was needed beyond the imports. ``None``: it cannot be known.
    """

    seconds: float
    batches: int
    rows: int
    waited_s: float
    first_s: float
    bytes: int | None
    peak_bytes: int | None

    @property
    def rows_per_s(self) -> float:
        """The throughput."""
        return self.rows / self.seconds

    @property
    def bytes_per_s(self) -> float | None:
        """The throughput in bytes of the batches."""
        return None if self.bytes is None else self.bytes / self.seconds

    @property
    def wait_share(self) -> float:
        """Which part of the time the consumer waited: 1 for one that does nothing."""
        return self.waited_s / self.seconds


@dataclass
class Result:
    """How one contender did; ``problem`` says why there is no result, or why it stopped."""

    backend: str
    executor: str
    start_s: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    warmup: list[Turn] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    problem: str | None = None

    @property
    def name(self) -> str:
        """Backend and executor."""
        return f"{self.backend}/{self.executor}"

    @property
    def measured(self) -> bool:
        """Whether all rounds were run."""
        return self.problem is None and bool(self.turns)

    @property
    def cold_first_s(self) -> float | None:
        """The time to the first batch of all, for which workers had to be started."""
        return next((turn.first_s for turn in [*self.warmup, *self.turns]), None)

    def values(self, figure: Callable[[Turn], float | None]) -> list[float]:
        """Return a figure of every round; empty where it cannot be known."""
        found = [figure(turn) for turn in self.turns]
        return [value for value in found if value is not None]

    def median(self, figure: Callable[[Turn], float | None]) -> float | None:
        """Return the median of a figure over the rounds."""
        values = self.values(figure)
        return statistics.median(values) if values else None


@dataclass
class Record:
    """One run of the benchmark: all that its JSON file has."""

    version: int
    date: str
    config: dict[str, Any]
    terms: Terms
    machine: dict[str, Any]
    results: list[Result]

    @property
    def measured(self) -> list[Result]:
        """The contenders that ran all rounds."""
        return [result for result in self.results if result.measured]

    def relative(self, result: Result, reference: Result | None = None) -> float:
        """Return how many times the rows per second of the reference (else: of the first contender) it has."""
        rates = [[turn.rows_per_s for turn in one.turns] for one in (result, reference or self.measured[0])]
        return paired(*rates)

    def text(self) -> str:
        """Return the record as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def read(path: Path) -> Record:
    """Return what :meth:`Record.text` gave.

    Raises:
        ConfigError: the file cannot be read, or is not such a record, or of a later version.
    """
    from pydantic import TypeAdapter, ValidationError  # slow to import, and seldom needed

    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path} cannot be read as a benchmark's record: {exc}") from exc
    version = content.get("version") if isinstance(content, dict) else None
    if version != RECORD_VERSION:
        raise ConfigError(
            f"{path} has version {version!r}, not {RECORD_VERSION}: it is no record of this benchmark. "
            "Make one with: batchkit bench CONFIG --output DIR"
        )
    try:
        record = TypeAdapter(Record).validate_python(content)
    except ValidationError as exc:
        raise ConfigError(f"{path} is damaged: {_places(exc.errors())}") from exc
    figures = [turn for result in record.measured for turn in result.turns]
    if any(not (turn.seconds > 0 and turn.rows > 0) for turn in figures):
        raise ConfigError(f"{path} is damaged: it has a turn without time or rows")
    if len({len(result.turns) for result in record.measured}) > 1:
        raise ConfigError(f"{path} is damaged: its contenders have not run the same number of rounds")
    return record


def _places(errors: Sequence[Any]) -> str:
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors[:3])
