"""Random cases: verbs stand in a table, which says where each may come and what it is given.

Those that batchkit has not yet are left out, and join in by themselves.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import oracle
from cases import KINDS, LONGEST, Case, Data, Several
from hypothesis import strategies as hs

import batchkit as bk

MOST_ROWS = 300
MADE = ("arrays", "sequence", "generator", "batches")


# -- where a pipeline is


@dataclass(frozen=True)
class Where:
    """What is known of the rows at a place of a pipeline."""

    kind: str
    even: bool
    """Whether all rows have one shape."""
    order: str
    """``"indexed"``, ``"filtered"`` or ``"stream"``: whether a shuffle of everything is allowed."""
    rows: int
    batched: bool = False
    masked: bool = False
    noisy: bool = False
    drawn: bool = False
    """Whether something was drawn at random on the way."""
    cached: int = 0
    reshuffled: bool = False
    """Whether the order is another one in every epoch."""
    moved: bool = False
    """Whether batches were reordered since they were cut, so that their rows have no numbers."""

    @property
    def numbered(self) -> bool:
        """Whether a row has a number of its own."""
        return self.kind in KINDS

    def but(self, **changes: Any) -> Where:
        """Return it changed."""
        return dataclasses.replace(self, **changes)

    def streamed(self, **changes: Any) -> Where:
        """Return it where rows have lost their places."""
        return self.but(order="stream", **changes)


def _counts(most: int) -> Any:
    """Few rows, and none, are drawn less often than a number between would be."""
    return hs.one_of(hs.integers(min(10, most), most), hs.integers(0, most))


# -- the verbs


@dataclass(frozen=True)
class Verb:
    """When a verb may come, what it is given, and what is behind it."""

    may: Callable[[Where], bool]
    given: Callable[[Any, Where], dict[str, Any]]
    then: Callable[[Where, dict[str, Any]], Where]


def _count(name: str, least: int, most: int) -> Callable[[Any, Where], dict[str, Any]]:
    return lambda draw, here: {name: draw(hs.integers(least, most))}


def _fewer(here: Where, options: dict[str, Any]) -> Where:
    return here.but(order=_kept_order(here), moved=here.batched)


def _again(here: Where, options: dict[str, Any]) -> Where:
    return here.but(rows=here.rows * options["count"], moved=here.batched)


def _reordered(here: Where, options: dict[str, Any]) -> Where:
    windowed = "window" in options and here.order != "indexed"
    reshuffled = here.reshuffled or options.get("reshuffle", True)
    return here.but(order="stream" if windowed else here.order, moved=here.batched, reshuffled=reshuffled)


def _chosen(**choices: Any) -> Callable[[Any, Where], dict[str, Any]]:
    return lambda draw, here: {name: draw(hs.sampled_from(values)) for name, values in choices.items()}


def _shuffled(draw: Any, here: Where) -> dict[str, Any]:
    seed, windowed = draw(hs.integers(0, 3)), has("shuffle(window)") and draw(hs.booleans())
    if windowed or here.order == "stream":
        return {"seed": seed, "window": draw(hs.integers(1, 20))}
    return {"seed": seed, "reshuffle": draw(hs.booleans())}


def _shuffles(here: Where) -> bool:
    if here.order == "indexed":
        return True
    return not here.batched and (here.order != "stream" or has("shuffle(window)"))


def _windowed(draw: Any, here: Where) -> dict[str, Any]:
    length = draw(hs.integers(1, 6))
    given = {"length": length, "stride": draw(hs.one_of(hs.none(), hs.integers(1, length + 2)))}
    inside = not here.even
    return {**given, "inside": inside, "remainder": draw(hs.sampled_from(["drop", "keep", "pad"]))}


def _behind_window(here: Where, options: dict[str, Any]) -> Where:
    inside, even = options["inside"], options["remainder"] != "keep"
    rows = here.rows * (LONGEST if inside else 1)
    return here.streamed(kind="windows", even=even, rows=rows, masked=here.masked or options["remainder"] == "pad")


def _cut(draw: Any, here: Where) -> dict[str, Any]:
    remainders = ["keep", "drop"] if here.masked else ["keep", "drop", "pad"]
    return {"size": draw(hs.integers(1, 9)), "remainder": draw(hs.sampled_from(remainders))}


def _padded(draw: Any, here: Where) -> dict[str, Any]:
    fills = [0, 7] if here.kind == "ragged" and not here.masked else [0]  # a mask takes no 7
    given: dict[str, Any] = {**_cut(draw, here), "pad_value": draw(hs.sampled_from(fills))}
    if here.kind != "ragged" or draw(hs.booleans()):
        return {**given, "multiple_of": draw(hs.sampled_from([1, 4])) if here.kind == "ragged" else 1}
    return {**given, "length": LONGEST, "lengths": draw(hs.booleans())}


def _buckets(draw: Any, here: Where) -> dict[str, Any]:
    inner = sorted(draw(hs.sets(hs.integers(1, LONGEST - 1), max_size=3)))
    last = draw(hs.sampled_from([None, LONGEST]))
    given = {**_cut(draw, here), "boundaries": [*inner, last], "length": "seq", "lengths": draw(hs.booleans())}
    given["pad_to"] = draw(hs.sampled_from(["bucket", "longest"]))
    if draw(hs.booleans()):
        del given["size"]
        given["max_tokens"] = draw(hs.integers(LONGEST, 4 * LONGEST))
    if last is None and given["remainder"] == "pad":
        given["remainder"] = "keep"  # without a bound there is no shape to fill up to
    return given


def _behind_cut(here: Where, options: dict[str, Any]) -> Where:
    masked = here.masked or options["remainder"] == "pad"
    even = here.even or ("length" in options and "boundaries" not in options)
    kind = here.kind if here.kind in ("flat", "nested", "tuple") else "batched"
    return here.but(batched=True, even=even, masked=masked, kind=kind, order=_kept_order(here), moved=False)


def _packed(draw: Any, here: Where) -> dict[str, Any]:
    given = {"bins": draw(hs.integers(1, 6)), "method": draw(hs.sampled_from(["first_fit", "best_fit"]))}
    if draw(hs.booleans()):
        return {**given, "length": draw(hs.integers(LONGEST, 30))}
    return {**given, "length": draw(hs.integers(2, 8)), "oversize": draw(hs.sampled_from(["truncate", "split"]))}


def _kept_order(here: Where) -> str:
    """What comes in order is kept in that order: a shuffle cannot be planned before any more."""
    return here.order if here.order == "indexed" else "stream"


def _rows(here: Where) -> bool:
    return not here.batched


VERBS: dict[str, Verb] = {
    "take": Verb(lambda here: True, lambda draw, here: {"count": draw(_counts(80))}, _fewer),
    "skip": Verb(lambda here: True, _count("count", 0, 15), _fewer),
    "repeat": Verb(
        lambda here: here.rows <= 100,
        _count("count", 1, 3),
        _again,
    ),
    "shuffle": Verb(
        lambda here: _shuffles(here),
        _shuffled,
        _reordered,
    ),
    "map": Verb(lambda here: here.numbered, _chosen(fn=["cases:add_ten"]), lambda here, options: here),
    "random_map": Verb(
        lambda here: here.kind in ("flat", "nested", "ragged") and not here.noisy,
        lambda draw, here: {"fn": "cases:noisy", "seed": draw(hs.integers(0, 2))},
        lambda here, options: here.but(noisy=True, drawn=True),
    ),
    "filter": Verb(
        lambda here: here.numbered and not (here.batched and here.masked),
        _chosen(fn=["cases:two_of_three", "cases:small", "cases:small", "cases:none"]),
        lambda here, options: here.but(order="stream" if here.batched or here.order == "stream" else "filtered"),
    ),
    "flat_map": Verb(
        lambda here: _rows(here) and here.kind in ("flat", "nested", "ragged") and here.rows <= MOST_ROWS,
        _chosen(fn=["cases:copies"]),
        lambda here, options: here.streamed(rows=2 * here.rows),
    ),
    "window": Verb(
        lambda here: _rows(here) and ((here.numbered and here.even) or here.kind == "ragged") and not here.masked,
        _windowed,
        _behind_window,
    ),
    "pack": Verb(
        lambda here: _rows(here) and here.kind == "ragged",
        _packed,
        lambda here, options: here.streamed(kind="packed", even=True, rows=LONGEST * here.rows, noisy=False),
    ),
    "batch": Verb(lambda here: _rows(here) and here.even, _cut, _behind_cut),
    "padded_batch": Verb(_rows, _padded, _behind_cut),
    "bucket_batch": Verb(
        lambda here: _rows(here) and here.kind == "ragged",
        _buckets,
        lambda here, options: _behind_cut(here, options).streamed(),
    ),
    "unbatch": Verb(
        lambda here: here.batched and here.even and not here.moved,
        lambda draw, here: {},
        lambda here, options: here.but(batched=False),
    ),
    "rebatch": Verb(lambda here: here.batched and here.even and not here.moved, _cut, _behind_cut),
    "cache": Verb(
        # What changes with every epoch would be frozen.
        lambda here: not (here.drawn or here.reshuffled) and here.cached < 2,
        lambda draw, here: {},
        lambda here, options: here.but(cached=here.cached + 1, order=_kept_order(here)),
    ),
}
"""Every verb that changes rows, their number or their order."""
OFTEN = {"filter": 2, "flat_map": 3, "window": 3, "bucket_batch": 4, "pack": 6, "cache": 3}
"""How many times as often as others a verb is drawn: those that few rows allow, and that hold rows back."""
CUTS = tuple(verb for verb in oracle.CUTS if verb != "rebatch")


# -- which exist


def has(name: str) -> bool:
    """Say whether batchkit has a verb: a Pipeline's, or ``"bk.zip"``, or ``"shuffle(window)"`` by its argument."""
    verb, _, argument = name.partition("(")
    place: Any = bk if verb.startswith("bk.") else bk.Loader if verb == "Loader" else bk.Pipeline
    found = place if verb == "Loader" else getattr(place, verb.removeprefix("bk."), None)
    return found is not None and (not argument or argument.rstrip(")") in inspect.signature(found).parameters)


CONTRACT = (
    *VERBS,
    *("shuffle(window)", "Loader(lineage)", "bk.concat", "bk.zip", "bk.interleave", "bk.mix"),
)
"""What must exist in the end."""


# -- drawing


@hs.composite
def sources(draw: Any, made: tuple[str, ...] = MADE, most: int = MOST_ROWS) -> Any:
    """Draw a source, or several joined."""
    verbs = [verb for verb in oracle.COMBINED if has(f"bk.{verb}")]
    if verbs and draw(hs.integers(0, 3)) == 0:
        return _several(draw, draw(hs.sampled_from(verbs)), [each for each in made if each != "batches"], most // 4)
    how = draw(hs.sampled_from(made))
    kinds = [*KINDS, "ragged"] if how != "batches" else [kind for kind in KINDS if kind != "ragged"]
    kind = draw(hs.sampled_from(kinds))
    return Data(kind, how, draw(_counts(most)), size=draw(hs.integers(1, 9)))


def _several(draw: Any, verb: str, made: list[str], most: int) -> Several:
    kind, options = draw(hs.sampled_from(KINDS)), {}
    counts = [draw(_counts(most)) for _ in range(2 if verb == "zip" else draw(hs.integers(1, 3)))]
    if verb == "zip":
        options["stop"] = draw(hs.sampled_from(["error", "shortest"]))
        counts = counts[:1] * 2 if options["stop"] == "error" else counts
    if verb == "interleave":
        options["block"] = draw(hs.integers(1, 5))
    if verb == "mix":
        weights = hs.lists(hs.sampled_from([0.5, 1, 2, 3, 7]), min_size=len(counts), max_size=len(counts))
        options["stop"] = draw(hs.sampled_from(["first", "all", "forever"]))
        if draw(hs.booleans()):
            options["weights"] = draw(weights)
        else:
            options["schedule"] = [(0, draw(weights)), (draw(hs.integers(1, 40)), draw(weights))]
        counts = counts if options["stop"] == "first" else [max(count, 1) for count in counts]
    parts = [Data(kind, draw(hs.sampled_from(made)), count, 1000 * place) for place, count in enumerate(counts)]
    return Several(verb, tuple(parts), options)


@hs.composite
def cases(draw: Any, made: tuple[str, ...] = MADE, most: int = MOST_ROWS) -> Case:
    """Draw a source and verbs; the last of them make batches."""
    source = draw(sources(made, most))
    here = Where(source.kind, "ragged" not in _kinds(source), "indexed" if source.indexed else "stream", source.rows)
    verbs: list[tuple[str, dict[str, Any]]] = []

    def add(names: Any, here: Where) -> Where:
        possible = [name for name in names if has(name) and VERBS[name].may(here) for _ in range(OFTEN.get(name, 1))]
        if not possible:
            return here
        verb = draw(hs.sampled_from(possible))
        options = VERBS[verb].given(draw, here)
        if verb == "pack":  # takes sequences, and nothing else
            verbs.append(("select", {"names": ("seq",)}))
        verbs.append((verb, options))
        return VERBS[verb].then(here, options)

    if getattr(source, "options", {}).get("stop") == "forever":
        verbs.append(("take", {"count": draw(hs.integers(0, 100))}))
    if source.made == "batches" and isinstance(source, Data):
        here = here.but(batched=True)
    between = [verb for verb in VERBS if verb not in (*CUTS, "unbatch")]
    for _ in range(draw(hs.integers(1, 2))):
        for _ in range(draw(hs.integers(0, 3))):
            here = add(between, here)
        here = add(["unbatch"] if here.batched else CUTS, here)
    if not here.batched:
        here = add(CUTS, here)
    for _ in range(draw(hs.integers(0, 2))):
        here = add(between, here)
    return Case(source, tuple(verbs))


def _kinds(source: Data | Several) -> set[str]:
    return {part.kind for part in source.parts} if isinstance(source, Several) else {source.kind}
