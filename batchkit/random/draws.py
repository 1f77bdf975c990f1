"""Draws: what a user's function sees as ``rng``.

Sources:

- J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011: Philox, the generator
  that a row may ask for.
- NEP 19: the bit generators of NumPy are frozen, ``Generator`` is not.
- The words and the distributions have theirs in ``words.py`` and ``values.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineTypeError, nearest
from batchkit.random.values import F64, below_array, in_range, modulo64, normal, same, unit
from batchkit.random.words import GOLDEN, I64, MASK64, epoch_word, mix, mix_array, stream, tiles

Size: TypeAlias = "int | Sequence[int]"

_INT64 = np.dtype(np.int64), -(1 << 63), (1 << 63) - 1


DRAWS = ("random", "uniform", "normal", "standard_normal", "integers", "bernoulli", "choice")
"""The distributions that there are."""

_OTHER_NAMES = MappingProxyType({"rand": "random", "randn": "standard_normal", "randint": "integers"})
"""What NumPy's older functions call them."""


def _integer_dtype(dtype: npt.DTypeLike) -> tuple[np.dtype[Any], int, int]:
    """Return the dtype and its least and greatest number."""
    if dtype is np.int64:
        return _INT64
    known = np.dtype(dtype)
    if known.kind == "b":
        return known, 0, 1
    if known.kind not in "iu":
        raise TypeError(f"integers(dtype={known}): use an integer dtype or bool")
    limits = np.iinfo(known)
    return known, int(limits.min), int(limits.max)


def _shape(lead: tuple[int, ...], size: Size) -> tuple[int, ...]:
    if isinstance(size, tuple) and not size:
        return lead
    sides = (size,) if isinstance(size, (int, np.integer)) else tuple(size)
    if any(side < 0 for side in sides):
        raise ValueError(f"size={size!r}: a side is negative. size is what each row gets, () for one value")
    return lead + sides


def _fitting(array: npt.NDArray[Any], shape: tuple[int, ...], name: str) -> npt.NDArray[Any]:
    sides = zip(reversed(array.shape), reversed(shape), strict=False)
    if array.ndim > len(shape) or any(side not in (1, wanted) for side, wanted in sides):
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast to the result's {shape}. "
            f"Give a number, or an array that broadcasts to {shape}"
        )
    return array


def _all(condition: Any) -> bool:
    # np.all takes 3 us for a plain bool, more than the rest of a scalar draw.
    return condition if isinstance(condition, bool) else bool(np.all(condition))


def _real(value: npt.ArrayLike, shape: tuple[int, ...], name: str) -> Any:
    if isinstance(value, (int, float)):
        return float(value)
    return _fitting(np.asarray(value, dtype=np.float64), shape, name)


class _Draws:
    """The distributions, on top of :meth:`_draw`; one call is one draw, whatever its size."""

    __slots__ = ("_draw_word", "_drawn", "_generator_word", "_lead")

    def __init__(self, key: tuple[int, ...], lead: tuple[int, ...]) -> None:
        _, self._draw_word, self._generator_word = stream(key)
        self._drawn = 0
        self._lead = lead

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or hasattr(type(self), name):
                return object.__getattribute__(self, name)
            hint = nearest(_OTHER_NAMES.get(name, name), list(DRAWS))
            generator = f"rng.generator({'i' if isinstance(self, RowRandom) else ''})"
            whose = "is NumPy's own for row i of the batch" if isinstance(self, RowRandom) else "is NumPy's own"
            raise AttributeError(
                f"rng has no {name!r}{hint} (draws: {', '.join(DRAWS)}); {generator} {whose}, with all that it has"
            )

    def _draw(self, shape: tuple[int, ...], function: Callable[[Any], Any], dtype: npt.DTypeLike) -> Any:
        """Return ``function`` of the words of the next draw, in ``shape``."""
        raise NotImplementedError

    def _next_offset(self) -> int:
        offset = mix((self._draw_word + self._drawn) & MASK64)
        self._drawn += 1
        return offset

    def _generator(self, state: int, index: int) -> np.random.Generator:
        low = mix(mix(state ^ self._generator_word) + index * GOLDEN & MASK64)
        return np.random.Generator(np.random.Philox(key=mix(low ^ state) << 64 | low))

    def random(self, size: Size = ()) -> Any:
        """Return float64 in [0, 1), multiples of 2**-53."""
        return self._draw(_shape(self._lead, size), unit, np.float64)

    def uniform(self, low: npt.ArrayLike = 0.0, high: npt.ArrayLike = 1.0, size: Size = ()) -> Any:
        """Return float64 in [low, high); rounding may reach ``high``, as in NumPy.

        Raises :class:`ValueError` where high < low or where high - low is not finite.
        """
        shape = _shape(self._lead, size)
        start = _real(low, shape, "low")
        span = _real(high, shape, "high") - start
        if not _all((span >= 0) & (span < math.inf)):
            raise ValueError(f"uniform(low={low!r}, high={high!r}): the range must be finite, with low <= high")
        return start + span * self._draw(shape, unit, np.float64)

    def bernoulli(self, p: npt.ArrayLike = 0.5, size: Size = ()) -> Any:
        """Return True with probability ``p``; raises :class:`ValueError` for a ``p`` outside [0, 1]."""
        shape = _shape(self._lead, size)
        chance = _real(p, shape, "p")
        if not _all((chance >= 0) & (chance <= 1)):
            raise ValueError(f"bernoulli(p={p!r}): a probability lies in [0, 1]")
        return self._draw(shape, unit, np.float64) < chance

    def standard_normal(self, size: Size = ()) -> Any:
        """Return float64 of mean 0 and variance 1, by inversion: |z| < 8.3, never 0."""
        return self._draw(_shape(self._lead, size), normal, np.float64)

    def normal(self, loc: npt.ArrayLike = 0.0, scale: npt.ArrayLike = 1.0, size: Size = ()) -> Any:
        """Return float64 of mean ``loc`` and standard deviation ``scale``.

        Raises :class:`ValueError` for a negative ``scale``.
        """
        shape = _shape(self._lead, size)
        mean, spread = _real(loc, shape, "loc"), _real(scale, shape, "scale")
        if not _all(spread >= 0):
            raise ValueError(f"normal(scale={scale!r}): a standard deviation is >= 0")
        return mean + spread * self._draw(shape, normal, np.float64)

    def integers(
        self,
        low: npt.ArrayLike,
        high: npt.ArrayLike | None = None,
        size: Size = (),
        dtype: npt.DTypeLike = np.int64,
        endpoint: bool = False,
    ) -> Any:
        """Return integers in [low, high), in [low, high] with ``endpoint``, or in [0, low) without ``high``.

        Scalar bounds may be anything that ``dtype`` holds; bounds that are arrays are int64.
        Raises :class:`ValueError` for an empty range and for one that ``dtype`` cannot hold,
        :class:`TypeError` for bounds or a dtype that are not integers.
        """
        if high is None:
            low, high = 0, low
        shape = _shape(self._lead, size)
        kind, least, greatest = _integer_dtype(dtype)
        start, stop = _bound(low, shape, "low"), _bound(high, shape, "high")
        if not _all(start <= stop if endpoint else start < stop):
            raise ValueError(
                f"integers(low={low!r}, high={high!r}, endpoint={endpoint}): the range is empty. "
                f"low must be {'<=' if endpoint else '<'} high"
            )
        end = stop if endpoint else stop - 1
        if not (_all(start >= least) and _all(end <= greatest)):
            raise ValueError(f"integers(low={low!r}, high={high!r}, dtype={kind}): {kind} holds {least}..{greatest}")
        if isinstance(start, int) and isinstance(end, int):
            return self._draw(shape, partial(in_range, start, end, kind), kind)
        first = modulo64(start)
        numbers = below_array(self._draw(shape, same, np.uint64), modulo64(end) - first)
        return (numbers + first).astype(kind)

    def choice(self, a: int | npt.ArrayLike, size: Size = (), p: npt.ArrayLike | None = None) -> Any:
        """Return entries of ``a`` along its first axis (or of range(a)), with replacement.

        Entries that are arrays lengthen the shape: a row gets size + a.shape[1:]. ``p`` are the
        entries' probabilities. Raises :class:`ValueError` where there is nothing to choose from
        and where ``p`` does not fit.
        """
        if isinstance(a, (int, np.integer)):
            entries, count = None, int(a)
        else:
            entries = np.asarray(a)
            if entries.ndim == 0:
                raise TypeError(f"choice({a!r}): give a number of entries, or a sequence of entries")
            count = len(entries)
        if count <= 0:
            raise ValueError(f"choice({a!r}): there is nothing to choose from")
        if p is None:
            picked = self.integers(count, size=size)
        else:
            picked = np.searchsorted(_cumulative(p, count), self.random(size), side="right")
            picked = picked if isinstance(picked, np.ndarray) else int(picked)
        return picked if entries is None else entries.take(picked, axis=0)


def _bound(value: npt.ArrayLike, shape: tuple[int, ...], name: str) -> Any:
    """Return a bound as an int or as an int64 array."""
    if isinstance(value, (int, np.integer)):
        return int(value)
    array = _fitting(np.asarray(value), shape, name)
    if array.dtype.kind not in "iub":
        raise TypeError(f"integers({name}={value!r}): bounds are integers, not {array.dtype}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"integers({name}=...): a bound that is an array must fit into int64")
    return array.astype(np.int64) if array.ndim else int(array)


def _cumulative(p: npt.ArrayLike, count: int) -> F64:
    chances = np.asarray(p, dtype=np.float64)
    if chances.shape != (count,):
        raise ValueError(f"choice: p has shape {chances.shape}, but there are {count} entries: one number an entry")
    total = np.cumsum(chances)
    if not (np.all(chances >= 0) and abs(total[-1] - 1.0) <= 1e-8):
        raise ValueError(f"choice: p must be >= 0 and sum to 1, and sums to {total[-1]}")
    cumulative: F64 = total / total[-1]
    return cumulative


class RowRandom(_Draws):
    """The ``rng`` of ``fn(batch, rng)``: every draw gives each row of the batch its own values.

    A draw has shape ``(len(rng), *size)``. What a row gets is a pure function of the key, the
    row's epoch, the row, how many draws came before, and the place in ``size``: not of the batch
    it is in. ``rows`` is int64, and a padding row may be negative; ``epochs`` is one number, or
    one a row. The methods take NumPy's arguments; ``low, high, loc, scale, p`` may be numbers or
    arrays that broadcast to the draw's shape. Not to be shared between threads.

    >>> rng = RowRandom((0, 2), epochs=0, rows=np.array([7, 8]))
    >>> rng.random(size=3).shape
    (2, 3)
    >>> alone = RowRandom((0, 2), epochs=0, rows=np.array([8]))
    >>> bool(alone.random(size=3)[0, 0] == RowRandom((0, 2), 0, np.array([7, 8])).random()[1])
    True
    """

    __slots__ = ("_generators", "_rows", "_state")

    def __init__(self, key: tuple[int, ...], epochs: int | I64, rows: I64) -> None:
        self._rows = np.ascontiguousarray(rows, dtype=np.int64)
        if self._rows.shape != np.shape(rows):
            raise PipelineTypeError(f"rows has shape {np.shape(rows)}: give a vector of row numbers")
        super().__init__(key, self._rows.shape)
        state = self._rows.view(np.uint64)
        if isinstance(epochs, (int, np.integer)):
            state = state ^ np.uint64(epoch_word(key, int(epochs)))
        else:
            words = np.asarray(epochs, dtype=np.int64).view(np.uint64) + np.uint64(stream(key)[0])
            state = state ^ mix_array(words)
        self._state = mix_array(state)
        self._generators: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"RowRandom({len(self._rows)} rows, {self._drawn} draws made)"

    @property
    def rows(self) -> I64:
        """The row numbers in the source, int64, read-only."""
        view = self._rows.view()
        view.flags.writeable = False
        return view

    def generator(self, i: int) -> np.random.Generator:
        """Return an ordinary NumPy generator for row ``i`` of the batch, for whatever has no method here.

        Each call for the same row gives another one; it is no draw. NumPy keeps the bits of Philox
        for ever, but may change between versions what ``Generator`` makes of them.
        Raises :class:`IndexError` where there is no row ``i``.
        """
        place = range(len(self._rows))[i]
        index = self._generators.get(place, 0)
        self._generators[place] = index + 1
        return self._generator(int(self._state[place]), index)

    def _draw(self, shape: tuple[int, ...], function: Callable[[Any], Any], dtype: npt.DTypeLike) -> Any:
        return tiles(self._state, self._next_offset(), math.prod(shape[1:]), function, dtype).reshape(shape)


class ScalarRandom(_Draws):
    """The ``rng`` of ``fn(row, rng)``: the values that :class:`RowRandom` gives to that row.

    A draw is a Python or NumPy scalar for ``size=()``, else an array of shape ``size``.

    >>> rng = ScalarRandom((0, 2), epoch=0, row=8)
    >>> bool(rng.random() == RowRandom((0, 2), 0, np.array([7, 8])).random()[1])
    True
    """

    __slots__ = ("_generators", "_state", "row")

    def __init__(self, key: tuple[int, ...], epoch: int, row: int) -> None:
        super().__init__(key, ())
        self.row = int(row)
        self._state = mix(epoch_word(key, int(epoch)) ^ (self.row & MASK64))
        self._generators = 0

    def __repr__(self) -> str:
        return f"ScalarRandom(row {self.row}, {self._drawn} draws made)"

    def generator(self) -> np.random.Generator:
        """Return an ordinary NumPy generator, another one at each call; see :meth:`RowRandom.generator`."""
        self._generators += 1
        return self._generator(self._state, self._generators - 1)

    def _draw(self, shape: tuple[int, ...], function: Callable[[Any], Any], dtype: npt.DTypeLike) -> Any:
        offset = self._next_offset()
        if not shape:
            return function(mix((self._state + offset) & MASK64))
        return tiles(np.array([self._state], np.uint64), offset, math.prod(shape), function, dtype).reshape(shape)
