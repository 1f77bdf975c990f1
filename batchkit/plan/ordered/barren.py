"""Rows that never end, and stages that may leave nothing of them: an error after two passes, and no spin for ever."""

from __future__ import annotations

from typing import Any

from batchkit.errors import PipelineError

__all__ = ["Barren", "PassRows", "pass_rows"]

SPARE = 256
"""How many rows without a result there may be besides: where passes are short, chunks are longer than they."""


def pass_rows(walk: Any) -> int | None:
    """Return how many rows, or batches, a pass of a walk that never ends has at the most.

    ``None`` where it ends, and where no pass was gone through yet that would tell.
    """
    own = getattr(walk, "pass_rows", None)
    if own is not None:
        found: int | None = own()
        return found
    before = getattr(walk, "_before", None)
    return None if before is None else pass_rows(before)


class PassRows:
    """Counts how many rows become of those of a pass."""

    def __init__(self) -> None:
        self.most: int | None = None
        """The most that there were; ``None`` in the first pass."""
        self._taken = 0
        self._gave = 0

    def count(self, before: int | None, taken: int, gave: int) -> None:
        """Take note that ``gave`` rows became of ``taken``, of which a pass has ``before``."""
        self._taken, self._gave = self._taken + taken, self._gave + gave
        if before is not None and self._taken >= before:
            self.begin_anew()

    def begin_anew(self, whole: bool = True) -> None:
        """Take note that a pass has ended; of one that was not gone through as a ``whole`` nothing is learnt."""
        if whole:
            self.most = max(self.most or 0, self._gave)
        self._taken = self._gave = 0


class Barren:
    """Counts the rows of which a stage has left nothing since it last left something."""

    def __init__(self, name: str) -> None:
        self._name, self._rows = name, 0

    def count(self, before: int | None, taken: int, gave: int, what: str = "left nothing of {} rows in a row") -> None:
        """Take note that ``gave`` rows became of ``taken``, of which a pass without end has ``before``.

        Raises:
            PipelineError: nothing has become of two passes and some rows.
        """
        self._rows = 0 if gave else self._rows + taken
        if before is not None and self._rows > 2 * before + SPARE:
            raise PipelineError(
                f"{self._name} {what.format(f'{self._rows:,}')}, and repeat() has no end: the epoch would never yield "
                "anything. Give repeat() a count, or look at what is filtered"
            )
