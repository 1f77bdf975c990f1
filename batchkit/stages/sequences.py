"""Stages for rows of different lengths: batches of rows of like length, and sequences put end to end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from batchkit.arguments import check_by_leaf, describe_value
from batchkit.errors import PipelineError, PipelineTypeError, nearest
from batchkit.functions import describe_function, exportable_name, resolve_function
from batchkit.stages.cut import REMAINDERS, Batch, PaddedBatch
from batchkit.stages.stage import Stage, at_least

__all__ = ["BucketBatch", "Pack", "RowLengths"]

METHODS = ("first_fit", "best_fit")
OVERSIZE = ("error", "truncate", "split")
PAD_TO = ("bucket", "longest")
_LONGEST = 2**31 - 1  # positions are int32


class RowLengths:
    """How long every row of a source is, by row number; equal where the numbers are equal.

    Raises:
        PipelineError: the array is no vector of whole numbers, or one is negative.
    """

    __slots__ = ("values",)

    def __init__(self, values: Any) -> None:
        array = np.asarray(values)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise PipelineTypeError(
                "bucket_batch(length) must be a leaf's name, a function, or a vector of whole numbers, one a row of "
                f"the source, not {array.dtype.name}{list(array.shape)}"
            )
        self.values: npt.NDArray[np.int64] = array.astype(np.int64, copy=False)
        if self.values.min(initial=0) < 0:
            row = int(np.argmin(self.values))
            raise PipelineError(
                f"bucket_batch(length): row {row} has the length {self.values[row]}: it cannot be negative"
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowLengths) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"int64[{len(self)}]#{hashlib.blake2b(self.values.tobytes(), digest_size=5).hexdigest()}"


@dataclass(frozen=True)
class Pack(Stage):
    """Put rows of sequences end to end into rows of ``length`` places.

    ``length`` is one for all leaves, which are as long as each other within a row, or a mapping by leaf. A row goes
    to the first (``method="first_fit"``) or the fullest (``"best_fit"``) of at most ``bins`` open packed rows that
    have room for it. ``oversize`` says what becomes of a row that is longer: ``"error"``, ``"truncate"`` or
    ``"split"``. ``pad_value`` fills what stays free, one for all or a mapping by leaf.
    """

    verb: ClassVar[str] = "pack"
    length: Any
    method: str = "first_fit"
    bins: int = 64
    oversize: str = "error"
    pad_value: Any = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "length", _pack_length(self.length))
        _one_of(self.method, "pack(method)", METHODS)
        object.__setattr__(self, "bins", at_least(self.bins, "pack(bins)", 1))
        _one_of(self.oversize, "pack(oversize)", OVERSIZE)
        if self.oversize == "split" and isinstance(self.length, dict):
            raise PipelineError(
                "pack(oversize='split') would cut the leaves of a row at different places, as each has a length of its "
                "own. Use oversize='truncate', or one length for all leaves"
            )
        object.__setattr__(self, "pad_value", _pad_value(self.pad_value, self.verb))

    @property
    def leaves(self) -> tuple[str, ...] | None:
        """The leaves that have a length of their own, in order; ``None`` with one length for all."""
        return tuple(self.length) if isinstance(self.length, dict) else None

    @property
    def limits(self) -> tuple[int, ...]:
        """The length of every leaf of :attr:`leaves`, or the one for all."""
        return tuple(self.length.values()) if isinstance(self.length, dict) else (self.length,)

    def check_leaves(self, paths: Sequence[str]) -> None:
        """Make sure that rows have the leaves that are named.

        Raises:
            MissingLeafError: there is no such leaf; names the argument and the nearest leaf.
        """
        if isinstance(self.length, Mapping):
            check_by_leaf(self.length, paths, self.label)
        check_by_leaf(self.pad_value, paths, f"{self.verb}(pad_value)")

    def value(self, leaf: str) -> Any:
        """Return what a leaf is filled with."""
        return self.pad_value.get(leaf, 0) if isinstance(self.pad_value, Mapping) else self.pad_value

    def arguments(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, dict) else value for name, value in super().arguments().items()}


@dataclass(frozen=True)
class BucketBatch(Batch):
    """Put rows of like length into one batch, filled up behind their values.

    ``boundaries`` are the greatest lengths of the buckets, rising; ``None`` at the end: any length. A number ``n``
    stands for ``n`` buckets of equally many rows. A bucket takes ``size`` rows, or as many as make at most
    ``max_tokens`` places. ``length`` says how long a row is: its leaves themselves (``None``), a leaf's name, a
    function ``row -> int`` (or its name ``"module:name"``), or a vector of whole numbers by source row.
    ``pad_to`` is ``"bucket"`` (to its boundary) or ``"longest"`` (row of the batch, rounded up to ``multiple_of``).
    """

    verb: ClassVar[str] = "bucket_batch"
    collate: ClassVar[None] = None  # type: ignore[misc]  # it fills rows up itself: an option less
    # Rows over all ranks; there is none where max_tokens decides.
    size: int | None = None  # type: ignore[assignment]
    boundaries: Any = field(kw_only=True)
    max_tokens: int | None = field(default=None, kw_only=True)
    length: Any = field(default=None, kw_only=True)
    pad_to: str = field(default="bucket", kw_only=True)
    multiple_of: int = field(default=1, kw_only=True)
    pad_value: Any = field(default=0, kw_only=True)
    lengths: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        Stage.__post_init__(self)  # not that of Batch, which needs a size
        if (self.size is None) == (self.max_tokens is None):
            raise PipelineError(
                "bucket_batch() needs either size, the rows of a batch, or max_tokens, the places of a padded batch"
                + ("" if self.size is None else ", not both")
            )
        for name in ("size", "max_tokens", "multiple_of"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, at_least(getattr(self, name), f"bucket_batch({name})", 1))
        _one_of(self.remainder, "bucket_batch(remainder)", REMAINDERS)
        _one_of(self.pad_to, "bucket_batch(pad_to)", PAD_TO)
        object.__setattr__(self, "boundaries", _boundaries(self.boundaries))
        object.__setattr__(self, "length", _row_length(self.length))
        object.__setattr__(self, "pad_value", _pad_value(self.pad_value, self.verb))
        if not isinstance(self.lengths, bool):
            raise PipelineTypeError(f"bucket_batch(lengths) must be True or False, not {self.lengths!r}")
        for bound in self.bounds or ():
            self.rows_of(bound)

    @property
    def bounds(self) -> tuple[int | None, ...] | None:
        """The greatest length of every bucket (``None``: any); ``None`` instead where quantiles are to say them."""
        return None if isinstance(self.boundaries, int) else self.boundaries

    @property
    def known_lengths(self) -> npt.NDArray[np.int64] | None:
        """The lengths of the source's rows by row number, if they were given."""
        return self.length.values if isinstance(self.length, RowLengths) else None

    def widest(self, bound: int) -> int:
        """Return the number of places that a row of a bucket may get: its boundary, rounded up where rows decide."""
        return bound if self.pad_to == "bucket" else -(-bound // self.multiple_of) * self.multiple_of

    def rows_of(self, bound: int | None, world: int = 1) -> int | None:
        """Return how many rows, over all ranks, fill a bucket; ``None`` if that depends on how long they are.

        Raises:
            PipelineError: not one row is within ``max_tokens``, or shapes are to be static and the rows do not
                divide by the ranks.
        """
        static = self.remainder == "pad"
        if self.size is not None:
            if static and self.size % world:
                raise PipelineError(
                    f"{self.label} has static shapes, so every rank needs as many rows: {self.size} does not divide by "
                    f"{world} ranks. Use a size that does, such as {-(-self.size // world) * world}"
                )
            return self.size
        assert self.max_tokens is not None
        if bound is None:
            if static:
                raise PipelineError(
                    "bucket_batch(remainder='pad') fills every batch up to the rows of its bucket, and with max_tokens "
                    "an unbounded bucket has no such number. End boundaries with the longest row instead of None"
                )
            return None
        rows = self.max_tokens // self.widest(bound)
        if not rows:
            raise PipelineError(
                f"bucket_batch(max_tokens): {self.max_tokens} is less than one row of the bucket with the boundary "
                f"{bound}, padded to {self.widest(bound)}. Give at least that, or cut such rows in a map()"
            )
        if static and rows < world:
            raise PipelineError(
                f"bucket_batch(max_tokens): {self.max_tokens} makes {rows} rows of the bucket with the boundary "
                f"{bound}, and remainder='pad' needs at least one for each of {world} ranks. Give at least "
                f"{self.widest(bound) * world}"
            )
        return rows - rows % world if static else rows

    def padding(self, bound: int | None, leaves: Iterable[str] | None = None) -> PaddedBatch:
        """Return the stage that fills the rows of a bucket up.

        ``leaves`` are those that are filled up to the boundary, the others to their longest; ``None``: all that vary.
        """
        length: Any = None
        if self.pad_to == "bucket" and bound is not None:
            length = bound if leaves is None else dict.fromkeys(leaves, bound)
        rows = self.rows_of(bound) or 1
        return _Filled(rows, self.remainder, length, self.multiple_of, self.pad_value, self.lengths)

    def check_leaves(self, paths: Sequence[str]) -> None:
        """Make sure that rows have the leaves that are named.

        Raises:
            MissingLeafError: there is no such leaf; names the argument and the nearest leaf.
        """
        check_by_leaf(self.pad_value, paths, f"{self.verb}(pad_value)")

    def batches(self, rows: int | None) -> int | None:
        """Refuse: how many batches there are depends on how long the rows are."""
        raise PipelineError(f"{self.label}: the number of batches depends on how long the rows are")

    @property
    def label(self) -> str:
        shown = {name: describe_value(value) for name, value in self._given().items()}
        if callable(self.length):
            shown["length"] = describe_function(self.length)
        return f"{self.verb}({', '.join(f'{name}={value}' for name, value in shown.items())})"

    def arguments(self) -> dict[str, Any]:
        given = self._given()
        if isinstance(self.length, RowLengths):
            raise PipelineError(
                "bucket_batch(length) is an array, which cannot be exported: name a leaf, or a function that can be "
                "imported as 'module:name' (it runs without that, too)"
            )
        if callable(self.length):
            given["length"] = exportable_name(self.length, "the function of bucket_batch(length)")
        if isinstance(self.boundaries, tuple):
            given["boundaries"] = list(self.boundaries)
        return given

    def _given(self) -> dict[str, Any]:
        return super().arguments()


@dataclass(frozen=True)
class _Filled(PaddedBatch):
    """How the rows of a bucket are filled up; messages name the stage that the user wrote."""

    verb: ClassVar[str] = BucketBatch.verb


def _one_of(value: Any, what: str, words: Sequence[str]) -> None:
    if value not in words:
        shown = " and ".join([", ".join(map(repr, words[:-1])), repr(words[-1])])
        raise PipelineError(f"{what} must be one of {shown}, not {value!r}{nearest(str(value), list(words))}")


def _pack_length(length: Any) -> int | dict[str, int]:
    given = dict(length) if isinstance(length, Mapping) else {"": length}
    if not given or not all(isinstance(leaf, str) for leaf in given):
        raise PipelineError(f"pack(length) must be a number, or a mapping of numbers by leaf, not {length!r}")
    for leaf, most in given.items():
        where = f"pack(length[{leaf!r}])" if isinstance(length, Mapping) else "pack(length)"
        given[leaf] = at_least(most, where, 1)
        if given[leaf] > _LONGEST:
            raise PipelineError(f"{where} must be at most {_LONGEST}, as positions are int32, not {most}")
    return given if isinstance(length, Mapping) else given[""]


def _pad_value(value: Any, verb: str) -> Any:
    if isinstance(value, Mapping):
        return {leaf: _pad_value(one, verb) for leaf, one in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)) or value is None:
        raise PipelineTypeError(
            f"{verb}(pad_value) must be a number or a text, or a mapping of them by leaf, not {value!r}"
        )
    return value.item() if isinstance(value, np.generic) else value


def _boundaries(boundaries: Any) -> int | tuple[int | None, ...]:
    if isinstance(boundaries, np.ndarray):
        boundaries = boundaries.tolist()
    if not isinstance(boundaries, Sequence) or isinstance(boundaries, (str, bytes)):
        return at_least(boundaries, "bucket_batch(boundaries), a number of buckets,", 1)
    if not boundaries:
        raise PipelineError(
            "bucket_batch(boundaries) is empty: give the greatest length of every bucket, or their number"
        )
    *first, last = boundaries
    bounds = [at_least(bound, f"bucket_batch(boundaries[{place}])", 1) for place, bound in enumerate(first)]
    if last is not None:
        bounds.append(at_least(last, f"bucket_batch(boundaries[{len(first)}])", 1))
    for place in range(1, len(bounds)):
        if bounds[place] <= bounds[place - 1]:
            raise PipelineError(
                f"bucket_batch(boundaries) must rise, but {bounds[place]} follows {bounds[place - 1]}. Sort them, and "
                "give none twice"
            )
    return (*bounds, None) if last is None else tuple(bounds)


def _row_length(length: Any) -> str | Callable[..., Any] | RowLengths | None:
    """Return a leaf's name, a function, known lengths or nothing."""
    if length is None or isinstance(length, RowLengths):
        return length
    if isinstance(length, str):
        return resolve_function(length, "bucket_batch(length)") if ":" in length else length
    if callable(length):
        return length  # type: ignore[no-any-return]
    return RowLengths(length)
