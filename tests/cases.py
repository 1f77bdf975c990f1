"""Pipelines as descriptions: a :class:`Case` builds batchkit's, and has the rows and verbs that the oracle is given.

The functions of its stages are found by name, so that a case can be written to a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
from trees import joined, leaves, stacked

import batchkit as bk

KINDS = ("flat", "nested", "tuple", "ragged")
LONGEST = 12  # entries of a ragged row


# -- rows, and functions on them: found by name, so that a pipeline can be written to a file


def row(kind: str, number: int) -> Any:
    """Return a row: a function of its number."""
    x = np.int64(number)
    if kind == "flat":
        return {"x": x}
    if kind == "nested":
        inner = (np.int8(number % 100), np.bool_(number % 3 == 0))
        return {"x": x, "deep": {"a": np.arange(3, dtype=np.float32) + np.float32(number), "b": inner}}
    if kind == "tuple":
        return (x, np.full(2, number, np.float32))
    return {"seq": np.arange(long(number), dtype=np.int32) + np.int32(number), "x": x}


def long(number: int) -> int:
    """Return how long the sequence of a row is: 0 to LONGEST, mixed up."""
    return (number * 7919 + 5) % (LONGEST + 1)


def generated(kind: str, rows: int, first: int) -> Iterator[Any]:
    """Yield rows."""
    for number in range(first, first + rows):
        yield row(kind, number)


def generated_batches(kind: str, rows: int, first: int, size: int) -> Iterator[Any]:
    """Yield whole batches."""
    found = list(generated(kind, rows, first))
    for start in range(0, rows, size):
        yield stacked(found[start : start + size])


def number_of(tree: Any) -> Any:
    """Return the numbers of a row, or of columns."""
    return tree["x"] if isinstance(tree, dict) else tree[0]


def add_ten(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {**tree, "x": tree["x"] + 10}
    return (tree[0] + 10, *tree[1:])


def noisy(tree: Any, rng: Any) -> Any:
    return joined(tree, "noise", rng.random())


def two_of_three(tree: Any) -> Any:
    return number_of(tree) % 3 != 0


def small(tree: Any) -> Any:
    return number_of(tree) < 20


def none(tree: Any) -> Any:
    return number_of(tree) < 0


def copies(tree: Any) -> Iterator[Any]:
    """Yield a row 0, 1 or 2 times, numbered."""
    for turn in range(int(number_of(tree)) % 3):
        yield joined(tree, "turn", np.int64(turn))


FUNCTIONS = {f"cases:{each.__name__}": each for each in (add_ten, noisy, two_of_three, small, none, copies)}


# -- sources


@dataclass(frozen=True)
class Data:
    """A source: rows of a kind, numbered from ``first``."""

    kind: str
    made: str
    rows: int
    first: int = 0
    size: int = 4

    def items(self) -> list[Any]:
        """Return the rows, for the oracle."""
        found = list(generated(self.kind, self.rows, self.first))
        if self.made != "batches":
            return found
        return [oracle.Batch(found[start : start + self.size]) for start in range(0, self.rows, self.size)]

    def pipe(self) -> bk.Pipeline:
        """Return the pipeline of it."""
        if self.made == "arrays":
            return self._arrays()
        if self.made == "sequence":
            return bk.from_sequence(list(generated(self.kind, self.rows, self.first)))
        given: dict[str, Any] = {"kind": self.kind, "rows": self.rows, "first": self.first}
        if self.made == "generator":
            return bk.from_generator("cases:generated", **given)
        return bk.from_generator("cases:generated_batches", batched=True, **given, size=self.size)

    def _arrays(self) -> bk.Pipeline:
        found = list(generated(self.kind, max(self.rows, 1), self.first))
        if self.kind == "ragged":
            found = found[: self.rows]
            offsets = np.cumsum([0, *(len(each["seq"]) for each in found)])
            values = np.concatenate([np.zeros(0, np.int32), *(each["seq"] for each in found)])
            x = np.array([each["x"] for each in found], np.int64)
            return bk.from_ragged({"seq": values}, offsets, columns={"x": x})
        return bk.from_arrays(leaves(lambda column: column[: self.rows], stacked(found)))

    @property
    def indexed(self) -> bool:
        """Whether any row can be read without those before it."""
        return self.made in ("arrays", "sequence")


@dataclass(frozen=True)
class Several:
    """Several sources joined by a verb."""

    verb: str
    parts: tuple[Data, ...]
    options: dict[str, Any]

    @property
    def kind(self) -> str:
        """What rows look like."""
        return "pairs" if self.verb == "zip" else self.parts[0].kind

    @property
    def made(self) -> str:
        """How the parts are made."""
        return self.parts[0].made

    @property
    def rows(self) -> int:
        """How many rows there are at most."""
        return len(self.items())

    @property
    def indexed(self) -> bool:
        """Whether any row can be read without those before it."""
        return all(part.indexed for part in self.parts)

    def items(self) -> list[Any]:
        """Return the rows, for the oracle."""
        return oracle.COMBINED[self.verb](self._tree([part.items() for part in self.parts]), **self.options)

    def pipe(self) -> bk.Pipeline:
        """Return the pipeline of it."""
        made: bk.Pipeline = getattr(bk, self.verb)(self._tree([part.pipe() for part in self.parts]), **self.options)
        return made

    def _tree(self, parts: list[Any]) -> Any:
        return {"one": parts[0], "two": parts[1]} if self.verb == "zip" else parts


@dataclass(frozen=True)
class Case:
    """A source and verbs with their arguments."""

    source: Data | Several
    verbs: tuple[tuple[str, dict[str, Any]], ...]

    def pipe(self, verbs: int | None = None) -> bk.Pipeline:
        """Return batchkit's pipeline of the first ``verbs`` verbs, of all without a number."""
        pipe = self.source.pipe()
        for verb, options in self.verbs[:verbs]:
            names = options.get("names", ())
            pipe = getattr(pipe, verb)(*names, **{key: value for key, value in options.items() if key != "names"})
        return pipe

    def spoken(self) -> list[tuple[str, Any]]:
        """Return the verbs as the oracle takes them."""
        return [(verb, options.get("names", _called(options))) for verb, options in self.verbs]

    def shuffles(self) -> list[int]:
        """Return the places of the shuffles."""
        return [place for place, (verb, _) in enumerate(self.verbs) if verb == "shuffle"]

    @property
    def random(self) -> bool:
        """Whether anything is drawn."""
        return any(verb == "random_map" for verb, _ in self.verbs)


def _called(options: dict[str, Any]) -> dict[str, Any]:
    """Return options with the function in place of its name."""
    return {key: FUNCTIONS[value] if key == "fn" else value for key, value in options.items()}
