"""Two runs compared: what is faster or slower beyond the spread of the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from batchkit.bench.record import Record, Result

__all__ = ["Change", "compare", "incomparable"]

WITHIN = "within the spread"


@dataclass(frozen=True)
class Change:
    """What has become of one contender.

    ``then`` and ``now`` are the medians of the rows per second; ``rows`` how many times as fast
    it has become, and ``first`` how many times as soon the first batch comes. The verdicts say
    whether that is beyond the spread. ``place_then`` and ``place_now`` are the rows per second as
    multiples of those of the first contender that both runs have: they can be compared even
    where the machines cannot.
    """

    name: str
    then: float
    now: float
    rows: float
    rows_verdict: str
    first: float
    first_verdict: str
    place_then: float
    place_now: float


def compare(now: Record, then: Record) -> list[Change]:
    """Return what has changed for every contender that both runs have measured."""
    before = {result.name: result for result in then.measured}
    both = [(result, before[result.name]) for result in now.measured if result.name in before]
    return [_change(now, then, pair, both[0]) for pair in both]


def _change(now: Record, then: Record, pair: tuple[Result, Result], reference: tuple[Result, Result]) -> Change:
    new, old = pair
    rates = [[turn.rows_per_s for turn in result.turns] for result in pair]
    soon = [[1 / max(turn.first_s, 1e-9) for turn in result.turns] for result in pair]
    medians = [statistics.median(values) for values in rates]
    return Change(
        name=new.name,
        then=medians[1],
        now=medians[0],
        rows=medians[0] / medians[1],
        rows_verdict=verdict(*rates),
        first=statistics.median(soon[0]) / statistics.median(soon[1]),
        first_verdict=verdict(*soon),
        place_then=then.relative(old, reference[1]),
        place_now=now.relative(new, reference[0]),
    )


def verdict(now: Sequence[float], then: Sequence[float]) -> str:
    """Say whether all rounds of one run were faster than all of the other.

    >>> verdict([5, 6, 7], [1, 2, 3]), verdict([1, 2, 3], [3, 4, 5]), verdict([1], [5])
    ('faster', 'within the spread', 'too few rounds')
    """
    if min(len(now), len(then)) < 2:
        return "too few rounds"
    if min(now) > max(then):
        return "faster"
    return "slower" if max(now) < min(then) else WITHIN


def incomparable(now: Record, then: Record) -> list[str]:
    """Say in a line each what besides the speed was not the same in both runs."""
    lines = []
    if now.config.get("digest") != then.config.get("digest"):
        lines.append(f"the configs are not the same ({then.config.get('path')} then, {now.config.get('path')} now)")
    for name in ("steps", "seconds", "work_ms", "busy"):
        old, new = getattr(then.terms, name), getattr(now.terms, name)
        if old != new:
            lines.append(f"{name} was {old} then, and is {new} now")
    for name in ("cpu", "cores_usable", "memory_bytes", "system", "python"):
        old, new = then.machine.get(name), now.machine.get(name)
        if old != new:
            lines.append(f"{name} was {old} then, and is {new} now")
    older, newer = (record.machine.get("packages", {}) for record in (then, now))
    for name in sorted({*older, *newer}):
        if older.get(name, "not there") != newer.get(name, "not there"):
            lines.append(f"{name} was {older.get(name, 'not there')} then, and is {newer.get(name, 'not there')} now")
    names_now, names_then = ({result.name for result in record.measured} for record in (now, then))
    lines += [f"{name} was measured only then" for name in sorted(names_then - names_now)]
    return lines + [f"{name} is measured only now" for name in sorted(names_now - names_then)]
