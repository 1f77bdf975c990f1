"""What a check of the law found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Check", "Finding", "Verdict"]

_MARKS = {"same": "same bytes", "differs": "DIFFERS", "not run": "not run"}


@dataclass(frozen=True)
class Check:
    """One way in which steps were computed once more."""

    name: str
    """``"again"``, ``"order"``, ``"process"``, ``"threads"``, ``"batch size"``, ``"ranks"`` or ``"resume"``; before
    them ``"source"``, where the rows are read one by one; after them ``"state"``."""
    outcome: str
    """``"same"``, ``"differs"`` or ``"not run"``."""
    detail: str
    """What was done, or why it was not."""


@dataclass(frozen=True)
class Finding:
    """Something that breaks the law."""

    check: str
    """The name of the check that found it."""
    stage: int | None
    """The number of the stage; ``None`` for the source, and where no stage could be found."""
    where: str
    """How messages name it: ``"stage 1 map(mine:jitter)"``, ``"the source"``."""
    epoch: int
    step: int
    rows: tuple[int, ...]
    """Source rows that come out differently, at most eight; of a generator, rows of the batch."""
    leaves: tuple[str, ...]
    """The leaves that differ; ``""`` is the only leaf."""
    what: str
    """What it does."""
    mend: str
    """What to do."""

    def __str__(self) -> str:
        leaves = ", ".join(repr(leaf) if leaf else "the only leaf" for leaf in self.leaves)
        rows = f", rows [{', '.join(map(str, self.rows))}{', ...' if len(self.rows) == 8 else ''}]" if self.rows else ""
        named = f", {'leaf' if len(self.leaves) == 1 else 'leaves'} {leaves}" if any(self.leaves) else ""
        return "\n".join(
            [
                f"{self.where} breaks the law: {self.what}",
                f"  seen at: epoch {self.epoch}, step {self.step}{rows}{named}",
                f"  mend: {self.mend}",
            ]
        )


@dataclass(frozen=True)
class Verdict:
    """What :func:`~batchkit.checking.verify` found: ``print(verdict)`` shows all of it."""

    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]
    steps: tuple[tuple[int, int], ...]
    """The steps that were looked at: (epoch, step)."""
    notes: tuple[str, ...] = ()
    """What broke nothing here, and might elsewhere."""

    @property
    def ok(self) -> bool:
        """Whether nothing breaks the law, as far as was looked."""
        return not self.findings

    def __str__(self) -> str:
        shown = ", ".join(f"{epoch}/{step}" for epoch, step in self.steps[:12])
        more = f", and {len(self.steps) - 12} more" if len(self.steps) > 12 else ""
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [
            "the law holds in every way that was tried" if self.ok else "the law is broken",
            f"steps looked at (epoch/step): {shown}{more}",
            *(f"  {check.name:<{width}}  {_MARKS[check.outcome]:<10}  {check.detail}" for check in self.checks),
            *(str(finding) for finding in self.findings),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "ok": self.ok,
            "findings": [{**asdict(finding), "text": str(finding)} for finding in self.findings],
            "checks": [asdict(check) for check in self.checks],
            "steps": [list(step) for step in self.steps],
            "notes": list(self.notes),
        }
