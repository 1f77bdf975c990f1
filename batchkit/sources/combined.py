"""Several pipelines as the source of one: their rows one after the other, side by side, in turns, or mixed.

Frozen descriptions. A *part* is a pipeline of rows: what has a ``source``, ``stages``, ``batched``, ``to_dict()``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from batchkit import tree as tree_
from batchkit.errors import ConfigError, PipelineError, PipelineTypeError, nearest
from batchkit.schedule import MixSchedule, Runs, Schedule, Turns, whole_weights
from batchkit.tree import Tree

__all__ = ["Combination", "Concat", "Interleave", "Mix", "Zip", "built_parts", "described_parts"]

Part = Any


@dataclass(frozen=True)
class Combination:
    """Pipelines of rows as one source; ``pipelines`` holds them as the verb was given them."""

    kind: ClassVar[str]
    nesting: ClassVar[str] = "list"
    """What ``pipelines`` may be: a list; named: a list or a mapping; tree: any nesting."""
    batched: ClassVar[bool] = False
    restarts: ClassVar[bool] = False
    """Whether a part starts again when it has ended: its next pass."""
    pipelines: Any

    def __post_init__(self) -> None:
        given = self.pipelines
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
            raise PipelineTypeError(
                f"{self.kind}() takes a list of pipelines, not a {type(given).__name__}: bk.{self.kind}([a, b])"
            )
        object.__setattr__(self, "pipelines", tuple(given))
        self._check_parts()

    def _check_parts(self) -> None:
        if not self.parts:
            raise PipelineError(f"{self.kind}() needs at least one pipeline")
        for name, part in zip(self.names, self.parts, strict=True):
            if not all(hasattr(part, attribute) for attribute in ("source", "stages", "batched")):
                raise PipelineTypeError(
                    f"{self.kind}(): part {name} is a {type(part).__name__}, not a Pipeline. Make one with "
                    "from_arrays(), say"
                )
            if part.batched:
                mend = "" if part.collated else ", or add .unbatch() to it"
                raise PipelineError(
                    f"{self.kind}(): part {name} ends in batches, and rows are combined: leave its batch() out and "
                    f"batch behind {self.kind}(){mend}"
                )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The pipelines, in the order in which stages and sources are counted."""
        return self.pipelines  # type: ignore[no-any-return]

    @property
    def names(self) -> tuple[str, ...]:
        """How messages name each part."""
        return tuple(map(str, range(len(self.parts))))

    def with_parts(self, parts: Sequence[Part]) -> Combination:
        """Return the same with other pipelines."""
        return dataclasses.replace(self, pipelines=tuple(parts))

    def order(self, lengths: Sequence[int | None]) -> Schedule:
        """Return which part, of so many rows, each row comes from.

        Raises:
            PipelineError: with parts of these lengths it cannot be what it says.
        """
        raise TypeError(f"{type(self).__name__} has no order()")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments besides the pipelines as JSON values; those left at their default are left out."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if field.name != "pipelines" and (value := getattr(self, field.name)) != field.default
        }

    @property
    def label(self) -> str:
        """How it is shown: ``interleave(block=2)``."""
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in self.arguments().items())})"

    def to_dict(self) -> dict[str, Any]:
        """Return the description that a config file would have.

        Raises:
            PipelineError: a part cannot be exported.
        """
        return {"kind": self.kind, "pipelines": self._exported(), **self.arguments()}

    def _exported(self) -> Any:
        return [part.to_dict() for part in self.parts]

    def fingerprint(self) -> str:
        """Return a short text that differs when a part's data or stages, or how they are combined, differ."""
        digest = hashlib.blake2b(json.dumps(self.arguments(), sort_keys=True).encode(), digest_size=8)
        for name, part in zip(self.names, self.parts, strict=True):
            stages = [stage.identity for stage in part.stages]
            digest.update(f"|{name}|{part.source.fingerprint()}|{stages}".encode())
        return f"{self.kind}({len(self.parts)}):{digest.hexdigest()}"


@dataclass(frozen=True)
class Concat(Combination):
    """All rows of the first pipeline, then all of the second one, and so on."""

    kind: ClassVar[str] = "concat"

    def order(self, lengths: Sequence[int | None]) -> Schedule:
        return Runs(lengths)


@dataclass(frozen=True)
class Interleave(Combination):
    """``block`` rows of each pipeline in turn; one that has ended is passed over."""

    kind: ClassVar[str] = "interleave"
    block: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.block, bool) or not isinstance(self.block, (int, np.integer)):
            raise PipelineTypeError(f"interleave(block) must be a whole number, not {self.block!r}")
        if self.block < 1:
            raise PipelineError(f"interleave(block) must be at least 1, not {self.block}")
        object.__setattr__(self, "block", int(self.block))

    def order(self, lengths: Sequence[int | None]) -> Schedule:
        return Turns(lengths, self.block)


@dataclass(frozen=True)
class Zip(Combination):
    """Row ``i`` is the tree of rows ``i``; ``stop`` says what becomes of unequal lengths: error, or shortest."""

    kind: ClassVar[str] = "zip"
    nesting: ClassVar[str] = "tree"
    stop: str = "error"

    def __post_init__(self) -> None:
        _check_stop(self.stop, ("error", "shortest"), "zip")
        object.__setattr__(self, "pipelines", _tuples(self.pipelines))
        self._check_parts()

    @property
    def treedef(self) -> tree_.TreeDef:
        """The nesting that the rows of the parts are put into."""
        return tree_.flatten(self.pipelines)[1]

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(tree_.flatten(self.pipelines)[0])

    @property
    def names(self) -> tuple[str, ...]:
        return tree_.paths(self.treedef)

    def with_parts(self, parts: Sequence[Part]) -> Combination:
        return dataclasses.replace(self, pipelines=tree_.unflatten(self.treedef, list(parts)))

    def _exported(self) -> Any:
        return _exported_tree(self.pipelines)


@dataclass(frozen=True)
class Mix(Combination):
    """Rows of pipelines in the proportions of ``weights``, by a rule and not by chance.

    ``stop`` says where it ends: ``first``: when a part is due that has no row left; ``all``: when each part was
    through once, those that end earlier starting again; ``forever``. ``schedule`` is a list of
    ``[from which row on, weights]`` instead of ``weights``.
    """

    kind: ClassVar[str] = "mix"
    nesting: ClassVar[str] = "named"
    weights: Sequence[float] | Mapping[str, float] | None = None
    stop: str = "first"
    schedule: Sequence[tuple[int, Sequence[float] | Mapping[str, float]]] | None = None

    def __post_init__(self) -> None:
        _check_stop(self.stop, ("first", "all", "forever"), "mix")
        if isinstance(self.pipelines, Mapping):
            object.__setattr__(self, "pipelines", {str(name): part for name, part in self.pipelines.items()})
            self._check_parts()
        else:
            super().__post_init__()
        if (self.weights is None) == (self.schedule is None):
            raise PipelineError("mix() needs either weights, one a pipeline, or a schedule of them")
        if self.schedule is None:
            object.__setattr__(self, "weights", self._plain(self.weights, "mix(weights)"))
        else:
            object.__setattr__(self, "schedule", self._pieces_given(self.schedule))
        self.pieces()

    def _plain(self, weights: Any, what: str) -> Any:
        """Return weights as JSON has them: a list, or by the names of the parts."""
        named = isinstance(self.pipelines, dict)
        if isinstance(weights, Mapping):
            wrong = set(map(str, weights)) ^ set(self.names) if named else set()
            if not named or wrong:
                raise PipelineError(
                    f"{what} names {', '.join(map(repr, weights)) or 'no part'}, and the parts are "
                    f"{', '.join(map(repr, self.names)) if named else 'a list'}. Give each part its weight once"
                )
            weights = [weights[name] for name in self.names]
        if isinstance(weights, np.ndarray):
            weights = list(weights) if weights.ndim == 1 else weights.tolist()
        if isinstance(weights, Sequence) and not isinstance(weights, (str, bytes)):
            weights = [_python_number(weight) for weight in weights]
        whole_weights(weights, len(self.parts), what)
        return dict(zip(self.names, weights, strict=True)) if named else list(weights)

    def _pieces_given(self, schedule: Any) -> list[Any]:
        if not isinstance(schedule, Sequence) or isinstance(schedule, (str, bytes)) or not schedule:
            raise PipelineTypeError(f"mix(schedule) must be a list of (from which row on, weights), not {schedule!r}")
        pieces, before = [], -1
        for number, piece in enumerate(schedule):
            if not isinstance(piece, Sequence) or isinstance(piece, (str, bytes)) or len(piece) != 2:
                raise PipelineTypeError(f"mix(schedule): piece {number} must be (row, weights), not {piece!r}")
            begin, weights = piece
            if isinstance(begin, bool) or not isinstance(begin, (int, np.integer)):
                raise PipelineTypeError(f"mix(schedule): piece {number} begins at {begin!r}, which is no row's number")
            if (number == 0 and begin != 0) or begin <= before:
                wanted = "at row 0" if number == 0 else f"behind row {before}"
                raise PipelineError(f"mix(schedule): piece {number} begins at row {begin}. It must begin {wanted}")
            before = int(begin)
            pieces.append([before, self._plain(weights, f"mix(schedule): the weights from row {before} on")])
        return pieces

    def pieces(self) -> list[tuple[int, list[int]]]:
        """Return from which row on the parts have which weights, as whole numbers."""
        given: Any = [[0, self.weights]] if self.schedule is None else self.schedule
        return [
            (begin, whole_weights(list(each.values()) if isinstance(each, dict) else each, len(self.parts), "mix()"))
            for begin, each in given
        ]

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        """Whether a part starts again when it has ended: its next pass."""
        return self.stop != "first"

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(self.pipelines.values()) if isinstance(self.pipelines, dict) else self.pipelines

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.pipelines) if isinstance(self.pipelines, dict) else tuple(map(str, range(len(self.parts))))

    def with_parts(self, parts: Sequence[Part]) -> Combination:
        named = isinstance(self.pipelines, dict)
        return dataclasses.replace(self, pipelines=dict(zip(self.names, parts, strict=True)) if named else tuple(parts))

    def order(self, lengths: Sequence[int | None]) -> Schedule:
        return MixSchedule(self.pieces(), lengths, self.stop)

    def _exported(self) -> Any:
        if isinstance(self.pipelines, dict):
            return {name: part.to_dict() for name, part in self.pipelines.items()}
        return super()._exported()


def _python_number(weight: Any) -> Any:
    """Return a NumPy number as Python's; a float of fewer bits as the decimal that it is written as: 0.3, not
    0.30000001192092896."""
    if isinstance(weight, np.floating):
        return float(str(weight))
    return weight.item() if isinstance(weight, np.generic) else weight


def _check_stop(stop: Any, known: Sequence[str], verb: str) -> None:
    if stop not in known:
        hint = nearest(stop, list(known)) if isinstance(stop, str) else ""
        *others, last = map(repr, known)
        raise PipelineError(f"{verb}(stop) must be {', '.join(others)} or {last}, not {stop!r}{hint}")


def _tuples(tree: Any) -> Any:
    """Return a nesting with tuples for lists, which would be leaves."""
    if isinstance(tree, dict):
        return {key: _tuples(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        parts = [_tuples(value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def _exported_tree(tree: Tree) -> Any:
    if isinstance(tree, dict):
        return {key: _exported_tree(value) for key, value in tree.items()}
    if hasattr(tree, "_fields"):
        raise PipelineError(
            f"zip() into a {type(tree).__name__} cannot be exported: JSON has no named tuples. Use a dict or a tuple"
        )
    if isinstance(tree, tuple):
        return [_exported_tree(value) for value in tree]
    return tree.to_dict()


def _describes(value: Any) -> bool:
    """Say whether a mapping describes a pipeline, rather than being a nesting of such mappings by name."""
    source = value.get("source") if isinstance(value, Mapping) else None
    if not isinstance(source, Mapping):
        return isinstance(value, Mapping) and "source" in value
    if "kind" in source:
        return not isinstance(source["kind"], Mapping)
    return not any(isinstance(inner, Mapping) for inner in source.values())


def built_parts(described: Any, build: Callable[[Mapping[str, Any], str], Any], place: str = "") -> Any:
    """Return ``pipelines:`` of a description with ``build(description, place)`` in the place of every pipeline.

    Raises:
        ConfigError: it is neither a pipeline's description nor a list or a mapping of such.
    """
    if _describes(described):
        return build(described, place)
    if isinstance(described, Mapping):
        return {name: built_parts(value, build, f"{place}.{name}") for name, value in described.items()}
    if isinstance(described, (list, tuple)):
        return tuple(built_parts(value, build, f"{place}[{index}]") for index, value in enumerate(described))
    raise ConfigError(
        f"pipelines{place} should be a pipeline, with 'source' and 'stages', or a list or a mapping of them, not "
        f"{described!r}"
    )


def described_parts(described: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place and the description of every pipeline in ``pipelines:``; raises as :func:`built_parts`."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    built_parts(described, lambda inner, place: found.append((place, inner)))
    yield from found
