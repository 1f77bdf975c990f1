"""Stages that call a user's function."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from batchkit.arguments import describe_value, plain, plain_scalar
from batchkit.errors import PipelineError, PipelineTypeError
from batchkit.functions import describe_function, exportable_name, resolve_function
from batchkit.stages.cut import Batch
from batchkit.stages.stage import Stage, at_least

__all__ = ["RANDOM_MAP", "Filter", "FlatMap", "FunctionStage", "Map", "RandomMap", "function_of"]

RANDOM_MAP = 2
"""The first word of a random map's key; shuffles have another."""


@dataclass(frozen=True)
class FunctionStage(Stage):
    """A stage with a user's function ``fn`` (or its name ``"module:name"``) and keyword arguments for it."""

    as_given: ClassVar[tuple[str, ...]] = ("fn", "kwargs")
    fn: Callable[..., Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    draws: ClassVar[bool] = False
    """Whether the function is passed an ``rng``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.fn, str):
            object.__setattr__(self, "fn", resolve_function(self.fn, f"{self.verb}(fn)"))
        if not callable(self.fn):
            raise PipelineTypeError(
                f"{self.verb}(fn) must be a function or its name 'module:name', not a {type(self.fn).__name__}"
            )
        if not isinstance(self.kwargs, Mapping) or not all(isinstance(key, str) for key in self.kwargs):
            raise PipelineTypeError(f"{self.verb}(kwargs) must map names to values, not {self.kwargs!r}")
        if not self.draws and _needs_rng(self.fn, self.kwargs):
            mend = "Use random_map()" if self.verb == "map" else "Draw in a random_map() in front of it"
            raise PipelineTypeError(
                f"{self.verb}({describe_function(self.fn)}): the function needs an rng, which {self.verb}() does not "
                f"pass. {mend}"
            )
        # A pipeline that is exported and read back gives the function these numbers, too.
        object.__setattr__(self, "kwargs", {name: plain_scalar(value) for name, value in self.kwargs.items()})

    @property
    def label(self) -> str:
        given = "".join(f", {name}={describe_value(value)}" for name, value in self._options().items())
        return f"{self.verb}({describe_function(self.fn)}{given})"

    def _options(self) -> dict[str, Any]:
        return dict(self.kwargs)

    def arguments(self) -> dict[str, Any]:
        given: dict[str, Any] = {"fn": exportable_name(self.fn, f"the function of {self.verb}()")}
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if option.name not in ("fn", "kwargs") and value != option.default:
                given[option.name] = value
        if self.kwargs:
            given["kwargs"] = plain(self.kwargs)
        return given


def _needs_rng(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether a function cannot be called without an ``rng`` besides the row or the columns."""
    try:
        parameters = [*inspect.signature(function).parameters.values()][1:]
    except (TypeError, ValueError):  # NumPy's ufuncs have none
        return False
    return any(
        parameter.name == "rng" and parameter.default is parameter.empty and "rng" not in kwargs
        for parameter in parameters
    )


@dataclass(frozen=True)
class Map(FunctionStage):
    """``fn(row) -> row`` before a batch stage, ``fn(columns) -> columns`` behind one."""

    verb: ClassVar[str] = "map"


@dataclass(frozen=True)
class RandomMap(FunctionStage):
    """``fn(row, rng) -> row`` before a batch stage, ``fn(columns, rng) -> columns`` behind one."""

    verb: ClassVar[str] = "random_map"
    draws: ClassVar[bool] = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.seed, "random_map(seed)", 0)
        if "rng" in self.kwargs:
            raise PipelineError("random_map() passes rng itself, as the second argument; give the keyword another name")

    def _options(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.kwargs} if self.seed else dict(self.kwargs)


@dataclass(frozen=True)
class Filter(FunctionStage):
    """Keep the rows for which ``fn(row)`` is true; behind a batch stage those where ``fn(columns)`` is."""

    verb: ClassVar[str] = "filter"


@dataclass(frozen=True)
class FlatMap(FunctionStage):
    """``fn(row) -> rows``: any number of rows, none too, in the place of each."""

    verb: ClassVar[str] = "flat_map"


def function_of(stage: Stage) -> Callable[..., Any] | None:
    """Return the user's function that a stage calls with rows or columns; ``None`` where it calls none."""
    if isinstance(stage, FunctionStage):
        return stage.fn
    return stage.collate if isinstance(stage, Batch) else None
