"""Lines: what was measured, next to what was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

__all__ = ["Line", "records", "table"]


@dataclass(frozen=True)
class Line:
    """One line of a table: ``work`` was measured against ``reference``, and ``target`` was asked for."""

    work: str
    reference: str
    measured: float
    target: float
    unit: str = "x"
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.measured <= self.target if self.at_most else self.measured >= self.target

    @property
    def wanted(self) -> str:
        """The target in words."""
        return f"{'at most' if self.at_most else 'at least'} {self._with_unit(f'{self.target:g}')}"

    @property
    def found(self) -> str:
        """What was measured, in words."""
        return self._with_unit(f"{self.measured:.1f}" if self.measured >= 100 else f"{self.measured:.2f}")

    @property
    def verdict(self) -> str:
        """``met`` or ``MISSED``."""
        return "met" if self.met else "MISSED"

    def _with_unit(self, number: str) -> str:
        return f"{number}{self.unit}" if self.unit == "x" else f"{number} {self.unit}"


def table(title: str, lines: Iterable[Line]) -> Table:
    """Return the lines as a table to print."""
    found = Table(title=title)
    for heading in ("work", "against"):
        found.add_column(heading)
    for heading in ("target", "measured", ""):
        found.add_column(heading, justify="right")
    for line in lines:
        style = None if line.met else "bold red"
        found.add_row(line.work, line.reference, line.wanted, line.found, line.verdict, style=style)
    return found


def records(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Return the lines as JSON values."""
    return [{**asdict(line), "measured": round(line.measured, 4), "met": line.met} for line in lines]
