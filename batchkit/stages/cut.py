"""Stages that cut rows into batches, and batches into rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from batchkit.errors import PipelineError, SchemaError, nearest
from batchkit.stages.stage import Stage, at_least
from batchkit.tree import Tree

__all__ = ["REMAINDERS", "Batch", "Unbatch", "with_mask"]

REMAINDERS = ("keep", "drop", "pad")


@dataclass(frozen=True)
class Batch(Stage):
    """Put ``size`` consecutive rows into one batch; over all ranks together, if there are several.

    ``remainder`` says what becomes of a last, smaller batch: kept as it is, dropped, or
    padded with zeros to ``size`` rows, with a boolean leaf ``"mask"`` that is false there.
    """

    verb: ClassVar[str] = "batch"
    size: int
    remainder: str = "keep"

    def __post_init__(self) -> None:
        at_least(self.size, "batch(size)", 1)
        if self.remainder not in REMAINDERS:
            hint = nearest(str(self.remainder), list(REMAINDERS))
            raise PipelineError(
                f"batch(remainder) must be one of 'keep', 'drop' and 'pad', not {self.remainder!r}{hint}"
            )

    def batches(self, rows: int | None) -> int | None:
        """Return how many batches ``rows`` rows make (``None``: endless)."""
        if rows is None:
            return None
        return rows // self.size if self.remainder == "drop" else -(-rows // self.size)


@dataclass(frozen=True)
class Unbatch(Stage):
    """Take batches apart into rows again, so that they can be shuffled or batched anew."""

    verb: ClassVar[str] = "unbatch"


def with_mask(columns: Tree, mask: Any) -> Tree:
    """Return ``columns`` with the leaf ``"mask"`` added: a dict's key, else a tuple's last part.

    Raises:
        SchemaError: there is a leaf of that name already.
    """
    if isinstance(columns, dict):
        if "mask" in columns:
            raise SchemaError(
                "batch(remainder='pad') adds a leaf 'mask', but there is one: rename it, .rename(mask='...')"
            )
        return {**columns, "mask": mask}
    if isinstance(columns, tuple) and not hasattr(columns, "_fields"):
        return (*columns, mask)
    return (columns, mask)
