"""Where each row of a combination of parts comes from, in closed form: no position needs those before it.

A *schedule* has a ``length`` (``None``: endless) and ``locate(positions) -> (part, index within the part)``. What
is before the parts is not known here: a part is a number of rows, or ``None`` for one that is endless.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, PipelineTypeError

__all__ = ["MixSchedule", "Runs", "Schedule", "Turns", "whole_weights"]

I64: TypeAlias = "npt.NDArray[np.int64]"
Lengths: TypeAlias = "Sequence[int | None]"

_TABLE = 1 << 18  # rows of a period up to which it is kept as a table: 2 MiB
_SIMPLE = 1 << 20  # a float stands for a fraction of such a denominator, if it is the float nearest to one
_FLOATS = 1 << 49  # beyond this position a float says too little of where a row is
_CANDIDATES = 1 << 18  # rows that are sorted at a time


class Schedule(Protocol):
    """Which part, and which of its rows, is at a position."""

    @property
    def length(self) -> int | None:
        """The number of rows; ``None`` if there is no end."""
        ...

    def locate(self, positions: I64) -> tuple[I64, I64]:
        """Return the part of every position, and the row's index within that part."""
        ...


class Runs:
    """All rows of the first part, then all of the second one, and so on.

    >>> [found.tolist() for found in Runs([2, 0, 3]).locate(np.arange(5))]
    [[0, 0, 2, 2, 2], [0, 1, 0, 1, 2]]
    """

    def __init__(self, lengths: Lengths) -> None:
        *before, last = lengths
        if None in before:
            raise PipelineError(
                f"concat(): part {before.index(None)} is endless, so that the parts behind it would never come. Put it "
                "last, or give its repeat() a count"
            )
        ends = list(itertools.accumulate((length or 0 for length in before), initial=0))
        self._starts = np.array(ends, np.int64)
        self.length = None if last is None else ends[-1] + last

    def locate(self, positions: I64) -> tuple[I64, I64]:
        """Return the part of every position, and the row's index within that part."""
        part = np.searchsorted(self._starts, positions, "right") - 1
        return part, positions - self._starts[part]


class Turns:
    """``block`` rows of each part in turn; a part that has ended is passed over.

    >>> [found.tolist() for found in Turns([1, 3], block=1).locate(np.arange(4))]
    [[0, 1, 1, 1], [0, 0, 1, 2]]
    """

    def __init__(self, lengths: Lengths, block: int) -> None:
        self._block = block
        turns = [None if length is None else divmod(length, block) for length in lengths]
        # Between two of these rounds every round is like the one before it.
        events = sorted({0, *itertools.chain.from_iterable((full, full + 1) for full, _ in filter(None, turns))})
        starts, self._rounds, self._sizes, self._ends = [], [], [], []
        start, self.length = 0, 0  # type: int, int | None
        for event, following in itertools.zip_longest(events, events[1:]):
            rows = [block if turn is None or event < turn[0] else turn[1] if event == turn[0] else 0 for turn in turns]
            if not sum(rows):
                continue
            starts.append(start)
            self._rounds.append(event)
            self._sizes.append(sum(rows))
            self._ends.append(np.cumsum(rows))
            if following is None:
                self.length = None
            else:
                start += sum(rows) * (following - event)
                self.length = start
        self._starts = np.array(starts, np.int64)

    def locate(self, positions: I64) -> tuple[I64, I64]:
        """Return the part of every position, and the row's index within that part."""
        part, index = np.empty_like(positions), np.empty_like(positions)
        which = np.searchsorted(self._starts, positions, "right") - 1
        for stretch in np.unique(which).tolist():
            here = which == stretch
            rounds, offset = np.divmod(positions[here] - self._starts[stretch], self._sizes[stretch])
            ends = self._ends[stretch]
            turn = np.searchsorted(ends, offset, "right")
            begins = np.concatenate([[0], ends[:-1]])
            part[here] = turn
            index[here] = (rounds + self._rounds[stretch]) * self._block + offset - begins[turn]
        return part, index


def whole_weights(weights: Any, parts: int, what: str) -> list[int]:
    """Return weights as whole numbers of the same proportions, without a common divisor.

    A float stands for the simplest fraction (of a denominator up to 2**20) that it is the nearest float of, so that
    ``[0.7, 0.3]`` is ``[7, 3]`` and ``[1 / 3, 2 / 3]`` is ``[1, 2]``; where there is none, for exactly its own value.
    ``what`` begins the messages.

    Raises:
        PipelineTypeError: they are no numbers.
        PipelineError: there are not as many as parts, one is negative or not finite, or all are 0.
    """
    if isinstance(weights, (str, bytes)) or not isinstance(weights, (Sequence, np.ndarray)):
        raise PipelineTypeError(f"{what} must be one number a part, not {weights!r}")
    if len(weights) != parts:
        raise PipelineError(f"{what}: there are {len(weights)} weights for {parts} parts. Give one a part")
    fractions = [_fraction(weight, what, part) for part, weight in enumerate(weights)]
    if not any(fractions):
        raise PipelineError(f"{what}: all weights are 0, so that no row would be drawn. Give one part a weight above 0")
    common = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * common) for fraction in fractions]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def _fraction(weight: Any, what: str, part: int) -> Fraction:
    plain = weight.item() if isinstance(weight, np.generic) else weight
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise PipelineTypeError(f"{what}: the weight of part {part} must be a number, not {weight!r}")
    if not 0 <= plain < math.inf:
        raise PipelineError(f"{what}: the weight of part {part} must be at least 0 and finite, not {weight!r}")
    exact = Fraction(plain)
    if isinstance(plain, int):
        return exact
    simple = exact.limit_denominator(_SIMPLE)
    return simple if float(simple) == plain else exact


class _Weighted:
    """Parts drawn by weight from one position on: row ``k`` of a part of weight ``w`` is due at ``(k + 1/2) / w``.

    The order is that of the dues, which are compared exactly, and of the parts where dues are equal. It repeats
    every ``sum(weights)`` rows. A short period is looked up in a table; in a long one the few rows that can be at a
    position are sorted by their dues as floats, and where these are too close to tell, as whole numbers.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = list(weights)
        self.period = sum(weights)
        self._drawn = [part for part, weight in enumerate(weights) if weight]
        self._own = np.array([min(weight, 1 << 62) for weight in weights], np.int64)
        # Multiples of 1 / weight as whole numbers.
        common = math.lcm(*(weights[part] for part in self._drawn))
        self._steps = {part: common // weights[part] for part in self._drawn}
        self._table = self._tabulated() if self.period <= _TABLE else None
        if self._table is None:
            self._shares = np.array([float(Fraction(weights[part], self.period)) for part in self._drawn])

    def _tabulated(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        counts = np.array([self.weights[part] for part in self._drawn])
        part = np.repeat(np.array(self._drawn, np.int32), counts)
        index = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        # Fractions of denominators this small are equal as floats only if they are equal.
        order = np.argsort((2 * index + 1) / np.repeat(counts, counts), kind="stable")
        return part[order], index[order]

    def locate(self, positions: I64) -> tuple[I64, I64]:
        if self._table is not None:
            periods, offset = np.divmod(positions, self.period)
            part = self._table[0][offset].astype(np.int64)
            return part, periods * self._own[part] + self._table[1][offset]
        part, index = np.empty_like(positions), np.empty_like(positions)
        rows = max(_CANDIDATES // (8 * len(self._drawn)), 1)
        for start in range(0, len(positions), rows):
            block = slice(start, start + rows)
            part[block], index[block] = self._estimated(positions[block])
        return part, index

    def _estimated(self, positions: I64) -> tuple[I64, I64]:
        """Sort the rows that can be at each position; where floats cannot tell, go on exactly."""
        shares, parts = self._shares, len(self._drawn)
        # The row at position n is due within parts / 2 rows of n; one row more for what floats leave out.
        slack = parts / 2 + 2
        lows = np.maximum(np.floor((positions[:, None] - slack) * shares - 0.5), 0)
        counts = (np.ceil((parts + 4) * shares + 1) + 2).astype(np.int64)
        columns = np.repeat(np.arange(parts), counts)
        indexes = lows[:, columns] + np.concatenate([np.arange(count) for count in counts])
        with np.errstate(
            divide="ignore", over="ignore"
        ):  # a share may be too small for a float: such a row is never due
            dues = (indexes + 0.5) / shares[columns]
        order = np.argsort(dues, axis=1, kind="stable")
        rank = positions - lows.sum(axis=1).astype(np.int64)
        rows = np.arange(len(positions))
        chosen = order[rows, np.clip(rank, 0, order.shape[1] - 1)]
        mine = dues[rows, chosen][:, None]
        # Equal shares give equal dues, whose order is that of the parts.
        close = (np.abs(dues - mine) <= mine * 2.0**-49) & (shares[columns] != shares[columns[chosen]][:, None])
        part = np.array(self._drawn)[columns[chosen]]
        index = indexes[rows, chosen].astype(np.int64)
        for row in np.flatnonzero(close.any(axis=1) | (positions >= _FLOATS)).tolist():
            part[row], index[row] = self._exactly(int(positions[row]))[:2]
        return part, index

    def _exactly(self, position: int) -> tuple[int, int, list[int]]:
        """Return part and index at a position, and how many rows of each part come before it."""
        periods, rest = divmod(position, self.period)
        parts, period = len(self._drawn), self.period
        counts, found = [0] * len(self.weights), []
        for part in self._drawn:
            weight = self.weights[part]
            low = max(((2 * rest - parts - 2) * weight - period) // (2 * period), 0)
            high = ((2 * rest + parts + 2) * weight + period) // (2 * period) + 1
            counts[part] = low
            found += [((2 * index + 1) * self._steps[part], part, index) for index in range(low, high + 1)]
        found.sort()
        rank = rest - sum(counts)
        for _, part, _ in found[:rank]:
            counts[part] += 1
        _, part, index = found[rank]
        whole = [periods * weight + count for weight, count in zip(self.weights, counts, strict=True)]
        return part, periods * self.weights[part] + index, whole

    def counts(self, position: int) -> list[int]:
        """Return how many rows of each part come before a position."""
        return self._exactly(position)[2]

    def position(self, part: int, index: int) -> int:
        """Return where a row of a part comes: how many rows are due before it."""
        weight, due = self.weights[part], 2 * index + 1
        before = 0
        for other in self._drawn:
            times = due * self.weights[other]
            # Of rows m = 0, 1, ... those with (2 m + 1) * weight <= times, or < times for the parts behind.
            odd = times // weight if other < part else -(-times // weight) - 1
            before += index if other == part else (odd + 1) // 2
        return before


class MixSchedule:
    """Parts mixed by weight without sampling (Webster's, or Sainte-Lague's, method of apportionment).

    Of any two parts the one whose next row is due first comes first, row ``k`` of a part of weight ``w`` being due at
    ``(k + 1/2) / w``; ties go to the first part. So after ``n`` rows each part has had about ``n * w / sum(w)``.
    ``pieces`` are ``(from which row on, weights)``; each counts dues anew, and a part goes on where it was.

    Exact are the weights (:func:`whole_weights`), every comparison of dues, and so every position that fits int64.

    >>> mix = MixSchedule([(0, [2, 1])], [None, 3], "first")
    >>> [found.tolist() for found in mix.locate(np.arange(6))], mix.length
    ([[0, 1, 0, 0, 1, 0], [0, 0, 1, 2, 1, 3]], 10)
    """

    def __init__(self, pieces: Sequence[tuple[int, Sequence[int]]], lengths: Lengths, stop: str) -> None:
        self._pieces = [_Weighted(weights) for _, weights in pieces]
        self._begins = [begin for begin, _ in pieces]
        self._starts = np.array(self._begins, np.int64)
        drawn = [[0] * len(lengths)]
        for piece, (begin, end) in zip(self._pieces, itertools.pairwise(self._begins), strict=False):
            drawn.append([sum(pair) for pair in zip(drawn[-1], piece.counts(end - begin), strict=True)])
        self._drawn = drawn
        self._before = np.array(drawn, np.int64)
        self.length = self._length(lengths, stop)

    def locate(self, positions: I64) -> tuple[I64, I64]:
        """Return the part of every position, and how many rows of it come before: a part goes on behind its end."""
        if len(self._pieces) == 1:
            return self._pieces[0].locate(positions)
        part, index = np.empty_like(positions), np.empty_like(positions)
        which = np.searchsorted(self._starts, positions, "right") - 1
        for number in np.unique(which).tolist():
            here = which == number
            part[here], inner = self._pieces[number].locate(positions[here] - self._starts[number])
            index[here] = inner + self._before[number][part[here]]
        return part, index

    def position(self, part: int, index: int) -> int | None:
        """Return where a row of a part comes; ``None`` if it never does."""
        for number, piece in enumerate(self._pieces):
            last = number + 1 == len(self._pieces)
            if (last and piece.weights[part]) or (not last and index < self._drawn[number + 1][part]):
                return self._begins[number] + piece.position(part, index - self._drawn[number][part])
        return None

    def _length(self, lengths: Lengths, stop: str) -> int | None:
        used = [part for part in range(len(lengths)) if any(piece.weights[part] for piece in self._pieces)]
        if stop == "first":
            ends = [self.position(part, rows) for part in used if (rows := lengths[part]) is not None]
            return min((end for end in ends if end is not None), default=None)
        for part in used:
            if lengths[part] == 0:
                raise PipelineError(
                    f"mix(stop={stop!r}): part {part} has no rows, however often it starts again. Give it rows, or the "
                    "weight 0"
                )
        if stop == "forever" or any(lengths[part] is None for part in used):
            return None
        lasts = [self._last(part, lengths[part] or 0) for part in used]
        return max(lasts) + 1

    def _last(self, part: int, rows: int) -> int:
        position = self.position(part, rows - 1)
        if position is None:
            raise PipelineError(
                f"mix(stop='all'): only {self._drawn[-1][part]} of the {rows} rows of part {part} come before its "
                "weight is 0 for good, so that it never ends. Give it a weight in the last piece of the schedule, or "
                "use stop='first'"
            )
        return position
