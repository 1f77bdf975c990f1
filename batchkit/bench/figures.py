"""The figures that are shown, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchkit.bench.record import Result, Turn

__all__ = ["FIGURES", "Figure", "quantity", "scaled"]

_UNITS = {
    "rows/s": ((1e9, "G rows/s"), (1e6, "M rows/s"), (1e3, "k rows/s"), (1.0, "rows/s")),
    "B/s": ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "": ((0.01, "%"),),
}


@dataclass(frozen=True)
class Figure:
    """One thing that is measured in every turn; ``unit`` is one of those that :func:`scaled` knows."""

    title: str
    unit: str
    of: Callable[[Turn], float | None]
    more_is_better: bool

    def text(self, result: Result) -> str:
        """Return median and spread of a contender."""
        values = result.values(self.of)
        median = result.median(self.of)
        if median is None:
            return "unknown"
        factor, name = scaled(median, self.unit)
        low, high = (number(value / factor) for value in (min(values), max(values)))
        return f"{number(median / factor)} {name} ({low} to {high})"


FIGURES = (
    Figure("Throughput", "rows/s", lambda turn: turn.rows_per_s, more_is_better=True),
    Figure("Time to the first batch", "s", lambda turn: turn.first_s, more_is_better=False),
    Figure("Wait share", "", lambda turn: turn.wait_share, more_is_better=False),
    Figure("Peak memory beyond the imports", "B", lambda turn: turn.peak_bytes, more_is_better=False),
)


def scaled(value: float, unit: str) -> tuple[float, str]:
    """Return what to divide by, and the unit that then fits.

    >>> scaled(25_300, "rows/s")
    (1000.0, 'k rows/s')
    """
    units = _UNITS[unit]
    return next((pair for pair in units if abs(value) >= pair[0]), units[-1])


def quantity(value: float | None, unit: str) -> str:
    """Return a value with the unit that fits.

    >>> quantity(0.00042, "s"), quantity(0.5, ""), quantity(None, "B")
    ('420 µs', '50 %', 'unknown')
    """
    if value is None:
        return "unknown"
    factor, name = scaled(value, unit)
    return f"{number(value / factor)} {name}"


def number(value: float) -> str:
    """Return a number with three digits that count, and never an exponent.

    >>> number(1234.5), number(12.345), number(0.5), number(0)
    ('1,234', '12.3', '0.5', '0')
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return text.rstrip("0").rstrip(".")
