"""Rows of like length put into one batch: which rows make which batch, from their lengths alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.errors import BatchkitError, MissingLeafError, PipelineError, SchemaError, StageError, StateError, nearest
from batchkit.functions import describe_function
from batchkit.lengths import Lengths, agreed, column_lengths, item_lengths
from batchkit.ragged import Ragged
from batchkit.sources.stacking import split_rows
from batchkit.tree import Tree

__all__ = [
    "Bucketed",
    "Bucketer",
    "bounds_of",
    "bucket_lengths",
    "filled_leaves",
    "quantile_bounds",
]

Bounds = Sequence["int | None"]


class Bucketed(NamedTuple):
    """A batch that came out: the number of its bucket, and its rows as they arrived, int64."""

    bucket: int
    rows: npt.NDArray[np.int64]


class Bucketer:
    """Says which rows make a batch, from their lengths alone; rows are numbered as they arrive, from 0.

    ``bounds`` are the greatest lengths of the buckets, and ``world`` is the number of ranks. What comes out depends on
    the lengths and their order, not on how they are cut into calls of :meth:`add`.

    Raises:
        PipelineError: a bucket has no room for a row, or its rows do not divide by the ranks where they must.
    """

    def __init__(self, stage: st.BucketBatch, bounds: Bounds, world: int = 1) -> None:
        self.stage, self.bounds, self.world = stage, tuple(bounds), world
        self.rows = tuple(stage.rows_of(bound, world) for bound in self.bounds)
        """How many rows fill every bucket, over all ranks; ``None`` if that depends on how long they are."""
        self.arrived = 0
        self._edges = np.array([bound for bound in self.bounds if bound is not None], np.int64)
        self._held = [np.zeros(0, np.int64) for _ in self.bounds]
        self._longest = 0

    def add(self, lengths: npt.NDArray[np.int64], ids: Any = None) -> list[Bucketed]:
        """Take rows in, and return the batches that come out, in order.

        ``lengths`` has shape ``(rows,)``. ``ids`` are the row numbers for messages; without them, those of arrival.

        Raises:
            StageError: a row is longer than the last boundary or ``max_tokens``; names it. Then none was taken in.
        """
        sizes = np.asarray(lengths, np.int64)
        buckets = np.searchsorted(self._edges, sizes)
        self._check(sizes, buckets, range(self.arrived, self.arrived + len(sizes)) if ids is None else ids)
        # Sorting words of two bytes is a radix sort.
        order = np.argsort(buckets.astype(np.uint16) if len(self.bounds) < 2**16 else buckets, kind="stable")
        ends = np.cumsum(np.bincount(buckets, minlength=len(self.bounds)))
        out: list[tuple[int, Bucketed]] = []
        start = 0
        for bucket, end in enumerate(ends.tolist()):
            if end > start:
                places = order[start:end]
                if self.rows[bucket] is None:
                    self._add_unbounded(bucket, places + self.arrived, sizes[places], out)
                else:
                    self._add_counted(bucket, places + self.arrived, out)
            start = end
        self.arrived += len(sizes)
        out.sort(key=lambda batch: batch[0])
        return [batch for _, batch in out]

    def finish(self) -> list[Bucketed]:
        """Return what is left, in the order of buckets, nothing where it is dropped; nothing is held back then."""
        left = [] if self.stage.remainder == "drop" else enumerate(self._held)
        rest = [Bucketed(bucket, rows) for bucket, rows in left if len(rows)]
        self._held = [np.zeros(0, np.int64) for _ in self.bounds]
        return rest

    @property
    def held(self) -> npt.NDArray[np.int64]:
        """The rows that are held back, rising."""
        return np.sort(np.concatenate(self._held))

    @property
    def shares(self) -> tuple[npt.NDArray[np.int64], ...]:
        """The rows that are held back in every bucket, as they arrived; no later call changes them."""
        return tuple(self._held)

    @property
    def longest(self) -> int:
        """How long the longest row is that is held back in a bucket which ``max_tokens`` alone bounds."""
        return self._longest

    def state(self) -> dict[str, Any]:
        """Return what is held back: how many rows ``"arrived"``, the rows ``"held"`` in every bucket, and the
        ``"longest"`` of those in a bucket that ``max_tokens`` alone bounds. Fit for JSON.
        """
        return {"arrived": self.arrived, "held": [rows.tolist() for rows in self._held], "longest": self._longest}

    @classmethod
    def restored(cls, stage: st.BucketBatch, bounds: Bounds, state: Mapping[str, Any], world: int = 1) -> Bucketer:
        """Return the bucketer that :meth:`state` was asked of, also after JSON.

        Raises:
            StateError: the state is damaged, or of another stage.
        """
        bucketer = cls(stage, bounds, world)
        bucketer.arrived, held, bucketer._longest = _checked_state(bucketer, state)
        bucketer._held = [np.array(rows, np.int64) for rows in held]
        return bucketer

    def _check(self, sizes: npt.NDArray[np.int64], buckets: npt.NDArray[np.intp], ids: Any) -> None:
        if sizes.min(initial=0) < 0:
            row = int(np.argmin(sizes))
            raise StageError(f"{self.stage.label}: row {ids[row]} has the length {sizes[row]}: it cannot be negative")
        if self.bounds[-1] is not None:
            over = np.flatnonzero(buckets == len(self.bounds))
            if len(over):
                row = int(over[0])
                raise StageError(
                    f"{self.stage.label}: row {ids[row]} is {sizes[row]} long, and the last boundary is "
                    f"{self.bounds[-1]}. Give a greater boundary, or None as the last one, or cut such rows in a map()"
                )
        elif self.rows[-1] is None:
            assert self.stage.max_tokens is not None
            over = np.flatnonzero(self._widths(sizes) > self.stage.max_tokens)
            if len(over):
                row = int(over[0])
                raise StageError(
                    f"{self.stage.label}: row {ids[row]} is {sizes[row]} long, which is more than max_tokens alone. "
                    f"Give at least max_tokens={self._widths(sizes)[row]}, or cut such rows in a map()"
                )

    def _widths(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the lengths as rows of an unbounded bucket are padded."""
        many = self.stage.multiple_of
        return -(-sizes // many) * many

    def _add_counted(self, bucket: int, arrivals: npt.NDArray[np.int64], out: list[tuple[int, Bucketed]]) -> None:
        size = self.rows[bucket]
        assert size is not None
        rows = np.concatenate([self._held[bucket], arrivals])
        full = len(rows) // size * size
        for start in range(0, full, size):
            batch = rows[start : start + size]
            out.append((int(batch[-1]), Bucketed(bucket, batch)))
        self._held[bucket] = rows[full:]

    def _add_unbounded(
        self,
        bucket: int,
        arrivals: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        out: list[tuple[int, Bucketed]],
    ) -> None:
        most = self.stage.max_tokens
        assert most is not None
        held, rows = self._held[bucket], np.concatenate([self._held[bucket], arrivals])
        start, longest = 0, self._longest if len(held) else 0
        for place, width in enumerate(self._widths(sizes).tolist(), len(held)):
            longest = max(longest, width)
            if (place - start + 1) * longest > most:
                out.append((int(rows[place]), Bucketed(bucket, rows[start:place])))
                start, longest = place, width
        self._held[bucket], self._longest = rows[start:], longest


def _checked_state(bucketer: Bucketer, state: Mapping[str, Any]) -> tuple[int, list[list[int]], int]:
    damaged = f"{bucketer.stage.label}: the state is damaged, or of another stage: "
    mend = ". Use a state as it was saved, with the pipeline that it was saved of"
    try:
        arrived, held, longest = state["arrived"], [list(rows) for rows in state["held"]], state["longest"]
    except (KeyError, TypeError) as exc:
        raise StateError(f"{damaged}it has no rows held back{mend}") from exc
    if len(held) != len(bucketer.bounds):
        raise StateError(f"{damaged}it has {len(held)} buckets, and there are {len(bucketer.bounds)}{mend}")
    numbers = [arrived, longest, *(row for rows in held for row in rows)]
    if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
        raise StateError(f"{damaged}it is not made of whole numbers{mend}")
    every = sorted(row for rows in held for row in rows)
    if any(rows != sorted(rows) for rows in held) or len(set(every)) < len(every) or (every and every[-1] >= arrived):
        raise StateError(f"{damaged}its rows are not in the order of arrival, before row {arrived}{mend}")
    for rows, most in zip(held, bucketer.rows, strict=True):
        tokens = bucketer.stage.max_tokens or 0
        if len(rows) >= most if most is not None else len(rows) * longest > tokens:
            raise StateError(f"{damaged}a bucket holds more rows than fill it{mend}")
    return arrived, held, longest


def quantile_bounds(lengths: npt.NDArray[np.int64], n: int, multiple_of: int = 1) -> tuple[int, ...]:
    """Return the boundaries of at most ``n`` buckets of about equally many rows, multiples of ``multiple_of``.

    There are fewer where many rows are equally long; no row is longer than the last.

    >>> quantile_bounds(np.array([5, 1, 9, 3, 7, 7]), 3)
    (3, 7, 9)
    """
    sizes = np.sort(np.asarray(lengths, np.int64))
    if not len(sizes):
        return (multiple_of,)
    places = [-(-len(sizes) * part // n) - 1 for part in range(1, n + 1)]
    bounds = -(-np.maximum(sizes[places], 1) // multiple_of) * multiple_of
    return tuple(np.unique(bounds).tolist())


def bounds_of(stage: st.BucketBatch, lengths: npt.NDArray[np.int64] | None) -> tuple[int | None, ...]:
    """Return the greatest length of every bucket; ``lengths`` are those of all rows, where they are known.

    Raises:
        PipelineError: the stage wants quantiles of lengths that are not known.
    """
    if stage.bounds is not None:
        return stage.bounds
    if lengths is None:
        raise PipelineError(
            f"{stage.label}: a number of buckets needs the lengths of all rows, which are not known without reading "
            "them. Give the boundaries themselves, boundaries=[...], or the lengths, length=array"
        )
    return quantile_bounds(lengths, stage.boundaries, stage.multiple_of)


def filled_leaves(stage: st.BucketBatch, schema: Tree) -> tuple[str, ...] | None:
    """Return which leaves of rows are filled up to the boundary, for :meth:`~batchkit.stages.BucketBatch.padding`.

    Those whose length varies according to the row schema; without such, the one that ``length`` names; else all
    that have an axis.
    """
    leaves, treedef = tree_.flatten(schema)
    specs = dict(zip(tree_.paths(treedef), leaves, strict=True))
    varying = tuple(path for path, spec in specs.items() if spec.shape and spec.shape[0] is None)
    if varying:
        return varying
    if isinstance(stage.length, str):
        return (stage.length,)
    return tuple(path for path, spec in specs.items() if spec.shape)


def bucket_lengths(
    stage: st.BucketBatch, columns: Tree, items: Sequence[Tree] | None, ids: npt.NDArray[np.int64], after: str = ""
) -> npt.NDArray[np.int64]:
    """Return what :meth:`Bucketer.add` wants of columns (or of ``items``, single rows), at least one row.

    ``ids`` are the row numbers in the source, and ``after`` names the function that the rows come from.

    Raises:
        SchemaError: leaves do not say one length; names the row, the leaves and the mend.
        StageError: the length function failed, or returned no length; names the row.
    """
    if stage.known_lengths is not None:
        return _looked_up(stage, stage.known_lengths, ids)
    if callable(stage.length):
        return _called(stage, stage.length, split_rows(columns) if items is None else items, ids)
    found = column_lengths(columns) if items is None else item_lengths(items, ids, after)
    stage.check_leaves(list(found))
    if stage.length is not None:
        return _named(stage, stage.length, found)
    varying = {path: lengths for path, lengths in found.items() if lengths is not None}
    if items is None:
        leaves, treedef = tree_.flatten(columns)
        ragged = [path for path, leaf in zip(tree_.paths(treedef), leaves, strict=True) if isinstance(leaf, Ragged)]
        varying = {path: varying[path] for path in ragged} or varying
    if not varying:
        raise SchemaError(
            f"{stage.label}: every leaf is one value a row, so that rows have no length{after}. Use batch()"
        )
    mend = "Say which one counts: length='leaf', or a function of the row"
    return agreed(varying, ids, f"{stage.label}{after}", mend)


def _looked_up(
    stage: st.BucketBatch, known: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    if len(ids) and int(ids.max()) >= len(known):
        raise StageError(
            f"{stage.label}: there is no length for row {int(ids.max())}, as length has {len(known)} entries. "
            "Give one for every row of the source"
        )
    return known[ids]


def _named(stage: st.BucketBatch, name: str, found: Lengths) -> npt.NDArray[np.int64]:
    if name not in found:
        raise MissingLeafError(
            f"{stage.label}: there is no leaf {name!r}{nearest(name, list(found))} (there are: {', '.join(found)})"
        )
    lengths = found[name]
    if lengths is None:
        raise SchemaError(
            f"{stage.label}: {tree_.leaf_label(name)} is one value a row, and has no length. Name a leaf with an axis, "
            f"or take the value itself: length=lambda row: row[{name!r}]"
        )
    return lengths


def _called(
    stage: st.BucketBatch, function: Callable[[Tree], Any], items: Sequence[Tree], ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    lengths = np.empty(len(items), np.int64)
    name = describe_function(function)
    for place, item in enumerate(items):
        try:
            found = function(item)
        except BatchkitError:
            raise
        except Exception as exc:
            raise StageError(f"{stage.label}: {name} failed on row {ids[place]}: {type(exc).__name__}: {exc}") from exc
        array = np.asarray(found)
        if array.ndim or array.dtype.kind not in "iu" or array < 0 or array > np.iinfo(np.int64).max:
            raise StageError(
                f"{stage.label}: {name} returned {found!r} for row {ids[place]}, and a length is a whole number of at "
                "least 0. Return len(...), say"
            )
        lengths[place] = array
    return lengths
