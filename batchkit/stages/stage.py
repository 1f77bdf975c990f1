"""What every stage is: a frozen dataclass with a verb."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, ClassVar

from batchkit.arguments import describe_value, plain
from batchkit.errors import PipelineError, PipelineTypeError, nearest
from batchkit.tree import Tree

__all__ = ["ColumnStage", "Stage", "at_least", "whole"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a pipeline's description; a frozen dataclass without behaviour of its own.

    Numbers, booleans and text of NumPy's among the arguments become Python's, so that equal pipelines have equal
    labels, states and JSON. A ``__post_init__`` of a subclass calls that of this class first.
    """

    verb: ClassVar[str]
    as_given: ClassVar[tuple[str, ...]] = ()
    """The arguments that are left as they are."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if field.name not in self.as_given and (own := plain(given)) is not given:
                object.__setattr__(self, field.name, own)

    @property
    def label(self) -> str:
        """How messages name the stage, with its arguments: ``batch(size=256, remainder='drop')``."""
        given = ", ".join(
            f"{field.name}={describe_value(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"{self.verb}({given})"

    @property
    def identity(self) -> str:
        """What a state must match: the label, without what changes no batch."""
        return self.label

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as JSON values; those left at their default are left out."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Stage:
        """Build the stage from what :meth:`arguments` returned.

        Raises:
            PipelineError: an argument that the stage does not have, or one that is missing.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in arguments:
            if name not in fields:
                raise PipelineError(
                    f"{cls.verb}() has no argument {name!r}{nearest(name, list(fields))} (it has: {', '.join(fields)})"
                )
        for name, field in fields.items():
            needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if needed and name not in arguments:
                raise PipelineError(f"{cls.verb}() needs the argument {name!r}")
        return cls(**arguments)


class ColumnStage(Stage):
    """A stage that turns a tree of columns into another with the same number of rows.

    Plugins subclass it as a frozen dataclass. ``apply`` is given either one row (a tree of
    scalars and arrays) or a batch (a tree of arrays with one leading axis), whichever the
    stage stands behind in the pipeline.
    """

    def apply(self, columns: Tree) -> Tree:
        """Return the changed tree; never changes its argument's arrays."""
        raise TypeError(f"{type(self).__name__} is a ColumnStage without apply()")


def whole(value: Any, what: str) -> int:
    """Return ``value`` as an int.

    Raises:
        PipelineTypeError: it is not a whole number (booleans are not).
    """
    if isinstance(value, bool):
        raise PipelineTypeError(f"{what} must be a whole number, not {value!r}")
    try:
        return operator.index(value)
    except TypeError as exc:
        raise PipelineTypeError(f"{what} must be a whole number, not {value!r}") from exc


def at_least(value: Any, what: str, least: int) -> int:
    """Return ``value`` as an int of at least ``least``.

    Raises:
        PipelineTypeError: it is not a whole number.
        PipelineError: it is too small.
    """
    number = whole(value, what)
    if number < least:
        raise PipelineError(f"{what} must be at least {least}, not {number}")
    return number
