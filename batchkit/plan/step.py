"""One batch, or one chunk, to be computed."""

from __future__ import annotations

from typing import NamedTuple

from batchkit.plan.rows.calls import Rows

__all__ = ["Step"]


class Step(NamedTuple):
    """Which epoch, which of its batches, and where rows are counted out in order, the rows for it.

    ``size``: how many rows it has on this rank when padded; ``None`` where it is not padded. ``group``: which of
    the shapes that the stage cuts it has.
    """

    epoch: int
    number: int
    rows: Rows | None = None
    size: int | None = None
    group: int = 0
