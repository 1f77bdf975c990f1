"""Stages that cut rows into batches, and batches into rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from batchkit.arguments import check_by_leaf
from batchkit.errors import PipelineError, PipelineTypeError, SchemaError, nearest
from batchkit.functions import describe_function, exportable_name, resolve_function
from batchkit.stages.stage import Stage, at_least
from batchkit.tree import Tree

__all__ = ["REMAINDERS", "Batch", "Chunk", "PaddedBatch", "Rebatch", "Unbatch", "Window", "with_mask"]

REMAINDERS = ("keep", "drop", "pad")


@dataclass(frozen=True)
class Batch(Stage):
    """Put ``size`` consecutive rows into one batch; over all ranks together, if there are several.

    ``remainder`` says what becomes of a last, smaller batch: kept as it is, dropped, or
    padded with zeros to ``size`` rows, with a boolean leaf ``"mask"`` that is false there.
    ``collate``, if given, is a function (or its name ``"module:name"``) that makes the batch of the list of its rows.
    """

    verb: ClassVar[str] = "batch"
    size: int
    remainder: str = "keep"
    collate: Callable[..., Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.size, f"{self.verb}(size)", 1)
        _check_remainder(self.verb, self.remainder)
        if isinstance(self.collate, str):
            object.__setattr__(self, "collate", resolve_function(self.collate, "batch(collate)"))
        if self.collate is None:
            return
        if not callable(self.collate):
            raise PipelineTypeError(
                f"batch(collate) must be a function or its name 'module:name', not a {type(self.collate).__name__}"
            )
        if self.remainder == "pad":
            raise PipelineError(
                "batch(collate) has a function that makes the whole batch, so that remainder='pad' has no rows to fill "
                "up. Fill up in the function, and use remainder='drop' where every batch needs as many rows"
            )

    @property
    def label(self) -> str:
        if self.collate is None:
            return super().label
        remainder = "" if self.remainder == "keep" else f", remainder={self.remainder!r}"
        return f"{self.verb}(size={self.size}{remainder}, collate={describe_function(self.collate)})"

    def arguments(self) -> dict[str, Any]:
        if self.collate is None:
            return super().arguments()
        name = exportable_name(self.collate, "the function of batch(collate)")
        return {**super().arguments(), "collate": name}

    @property
    def stacks(self) -> bool:
        """Whether all it does to rows is to stack them."""
        return type(self) is Batch and self.collate is None

    def batches(self, rows: int | None) -> int | None:
        """Return how many batches ``rows`` rows make (``None``: endless)."""
        if rows is None:
            return None
        return rows // self.size if self.remainder == "drop" else -(-rows // self.size)


@dataclass(frozen=True)
class PaddedBatch(Batch):
    """The same for rows whose leaves differ in shape: every leaf is filled up behind its values.

    ``length`` is what leaves are filled up to along their first axis (a list of sizes: along several), one for
    all or a mapping by leaf; without it, the longest row of the batch decides, rounded up to ``multiple_of``.
    ``pad_value`` is what they are filled with, one for all or a mapping by leaf. ``lengths`` adds to every leaf
    ``"x"`` that is padded an int64 leaf ``"x_length"``.
    """

    verb: ClassVar[str] = "padded_batch"
    collate: ClassVar[None] = None  # type: ignore[misc]  # it fills rows up itself: an option less
    length: Any = None
    multiple_of: int = 1
    pad_value: Any = 0
    lengths: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.multiple_of, "padded_batch(multiple_of)", 1)
        for value in self.length.values() if isinstance(self.length, Mapping) else (self.length,):
            for side in value if isinstance(value, (list, tuple)) else (value,):
                if side is not None:
                    at_least(side, "padded_batch(length)", 1)
        for value in self.pad_value.values() if isinstance(self.pad_value, Mapping) else (self.pad_value,):
            if isinstance(value, (list, tuple, dict, set)) or value is None:
                raise PipelineTypeError(
                    f"padded_batch(pad_value) must be a number or a text, or a mapping of them by leaf, not {value!r}"
                )
        if not isinstance(self.lengths, bool):
            raise PipelineTypeError(f"padded_batch(lengths) must be True or False, not {self.lengths!r}")

    def check_leaves(self, paths: Sequence[str]) -> None:
        """Make sure that rows have the leaves that are named.

        Raises:
            MissingLeafError: there is no such leaf; names the argument and the nearest leaf.
        """
        check_by_leaf(self.length, paths, f"{self.verb}(length)")
        check_by_leaf(self.pad_value, paths, f"{self.verb}(pad_value)")

    def sides(self, leaf: str) -> tuple[int | None, ...] | None:
        """Return the sizes that a leaf is filled up to along its axes; ``None`` if the rows decide."""
        length = self.length.get(leaf) if isinstance(self.length, Mapping) else self.length
        if length is None:
            return None
        return tuple(length) if isinstance(length, (list, tuple)) else (int(length),)

    def value(self, leaf: str) -> Any:
        """Return what a leaf is filled with."""
        return self.pad_value.get(leaf, 0) if isinstance(self.pad_value, Mapping) else self.pad_value

    @property
    def static(self) -> bool:
        """Whether every padded leaf has a length that does not depend on the rows, as far as the stage says."""
        return self.length is not None


@dataclass(frozen=True)
class Unbatch(Stage):
    """Take batches apart into rows again, so that they can be shuffled or batched anew."""

    verb: ClassVar[str] = "unbatch"


@dataclass(frozen=True)
class Rebatch(Stage):
    """Put the rows of batches into batches of another size."""

    verb: ClassVar[str] = "rebatch"
    size: int
    remainder: str = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.size, "rebatch(size)", 1)
        _check_remainder("rebatch", self.remainder)


@dataclass(frozen=True)
class Window(Stage):
    """Put ``length`` consecutive rows into one row, beginning at every ``stride``-th; ``inside``: of each row's leaves.

    ``remainder`` says what becomes of windows that the end cuts short: ``"drop"``, ``"keep"``, or ``"pad"``
    with zeros, with a boolean leaf ``"mask"`` of shape ``(length,)``.
    """

    verb: ClassVar[str] = "window"
    length: int
    stride: int | None = None
    inside: bool = False
    remainder: str = "drop"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.length, "window(length)", 1)
        if self.stride is not None:
            at_least(self.stride, "window(stride)", 1)
        if not isinstance(self.inside, bool):
            raise PipelineTypeError(f"window(inside) must be True or False, not {self.inside!r}")
        _check_remainder("window", self.remainder)

    @property
    def step(self) -> int:
        """By how many rows the beginnings of two windows differ."""
        return self.length if self.stride is None else self.stride

    def windows(self, rows: int) -> int:
        """Return how many windows ``rows`` rows have."""
        if self.remainder == "drop":
            return max((rows - self.length) // self.step + 1, 0)
        return -(-rows // self.step)


@dataclass(frozen=True)
class Chunk(Stage):
    """The end of the part of a pipeline whose rows are computed in runs of ``size``: the plan's own, not for users.

    ``numbers`` and ``ordinals`` say which stages of the whole pipeline the stages before it are, and how many
    random stages come before each of them there. ``carried``: the rows come with the step.
    """

    verb: ClassVar[str] = "chunk"
    size: int
    numbers: tuple[int, ...]
    ordinals: tuple[int, ...]
    carried: bool = False
    start: tuple[int, int] = (0, 0)
    """How many stages and random stages come before the pipeline in a combination that it is part of."""


def _check_remainder(verb: str, remainder: Any) -> None:
    if remainder not in REMAINDERS:
        hint = nearest(str(remainder), list(REMAINDERS))
        raise PipelineError(f"{verb}(remainder) must be one of 'keep', 'drop' and 'pad', not {remainder!r}{hint}")


def with_mask(columns: Tree, mask: Any) -> Tree:
    """Return ``columns`` with the leaf ``"mask"`` added: a dict's key, else a tuple's last part.

    Raises:
        SchemaError: there is a leaf of that name already.
    """
    if isinstance(columns, dict):
        if "mask" in columns:
            raise SchemaError("remainder='pad' adds a leaf 'mask', but there is one: rename it, .rename(mask='...')")
        return {**columns, "mask": mask}
    if isinstance(columns, tuple) and not hasattr(columns, "_fields"):
        return (*columns, mask)
    return (columns, mask)
