"""Keyed permutation; row-addressed random numbers.

Nothing here has a state that a run could lose: the row at a position is a pure function of
(length, key), and a random number of (key, epoch, row, draw, element). A key is a tuple such
as ``(seed, epoch, stage)``, never a sum, so (seed 0, epoch 1) is not (seed 1, epoch 0).

Only integer arithmetic and the operations that IEEE 754 rounds exactly (``+ - * /`` and the
square root) are used, so the numbers have the same bits on every machine, at every batch size,
and whether NumPy or Python computes them.

Sources:

- J. Black, P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: the generalised
  Feistel network on Z_a x Z_b, and cycle walking.
- G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, and
  D. Stafford, "Better Bit Mixing", 2011 (variant 13): SplitMix64 and its finaliser.
- J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011: a random number as a
  keyed hash of its address; Philox.
- D. Lemire, "Fast Random Integer Generation in an Interval", TOMACS 2019: multiply-shift.
- M. Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied
  Statistics 37, 1988: normal numbers by inversion (PPND16).
- NEP 19: ``RandomState`` and the bit generators of NumPy are frozen, ``Generator`` is not.
"""

from __future__ import annotations

import math
import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, PipelineTypeError

__all__ = ["MATERIALISED", "Permutation", "RowRandom", "ScalarRandom"]

F64: TypeAlias = npt.NDArray[np.float64]
I64: TypeAlias = npt.NDArray[np.int64]
U64: TypeAlias = npt.NDArray[np.uint64]
Size: TypeAlias = "int | Sequence[int]"
_Block: TypeAlias = "tuple[int, int, I64]"
"""(low, high, the rows at those positions)"""

MATERIALISED = 1 << 20
"""Up to this many rows a permutation is kept as an array (8 bytes a row)."""

_BLOCK_BITS = 16  # 65,536 positions a block: 512 KiB, some 2 ms of work, 256 steps of 256 rows
_BLOCKS_KEPT = 4
_TILE = 8192  # numbers worked on at once: three such arrays stay in a core's own cache
_ROUNDS = 10  # pair and quartet counts show structure up to 5 rounds, and none from 6 on

_PERMUTATION, _ROWS = 0x7065726D, 0x726F7773  # one domain a purpose: equal keys, unrelated numbers

_MASK64 = (1 << 64) - 1
_GOLDEN, _MULTIPLIER_1, _MULTIPLIER_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _words(*numbers: int) -> list[U64]:
    return [np.array(number, np.uint64) for number in numbers]


# Constants are arrays of no dimension: a call of NumPy takes 0.35 us with one, 0.55 us with a number (256 rows).
_M1, _M2 = _words(_MULTIPLIER_1, _MULTIPLIER_2)
_S11, _S27, _S30, _S31, _S32 = _words(11, 27, 30, 31, 32)
_ONE, _GAMMA, _LOW32, _MAGNITUDE, _TOP_BIT = _words(1, _GOLDEN, (1 << 32) - 1, (1 << 63) - 1, 1 << 63)
_HALF, _ULP = np.array(0.5), np.array(2.0**-53)


def _entropy(domain: int, key: Sequence[int]) -> list[int]:
    """Return 32-bit words that no other (domain, key) has: each number after its count of words."""
    words = [domain, len(key)]
    for number in key:
        try:
            value = operator.index(number)
        except TypeError as exc:
            raise PipelineTypeError(f"key {key!r}: {number!r} is not an integer. Use integers >= 0") from exc
        if value < 0:
            raise PipelineError(f"key {key!r}: {value} is negative. Use integers >= 0 of any size")
        count = max(1, -(-value.bit_length() // 32))
        words += [count, *(value >> (32 * place) & 0xFFFFFFFF for place in range(count))]
    return words


# --- the permutation ----------------------------------------------------------------------------


class _Feistel:
    """A keyed bijection of range(length) that is computed, not stored.

    Position = (right << bits) | left, with left in Z_a and right in Z_b, where a = 2**bits is the
    power of two next to sqrt(length), so that cutting a position takes no division, and
    b = ceil(length / a). Fewer than a of the a * b values lie outside range(length); such a value
    is sent through again until it lies inside.
    """

    __slots__ = ("_bits", "_keys", "_length", "_modulus")

    def __init__(self, length: int, seeds: np.random.SeedSequence) -> None:
        self._length = np.uint64(length)
        bits = max(1, (length - 1).bit_length() // 2)
        self._bits = np.uint64(bits)
        self._modulus = np.uint64(-(-length // (1 << bits)))
        self._keys = list(seeds.generate_state(_ROUNDS, np.uint64))

    def rows(self, positions: U64) -> I64:
        """Return the rows at a vector of positions."""
        found = np.empty(positions.size, np.uint64)
        for low in range(0, positions.size, _TILE):
            found[low : low + _TILE] = self._network(positions[low : low + _TILE])
        outside = np.flatnonzero(found >= self._length)
        while outside.size:
            walked = self._network(found[outside])
            found[outside] = walked
            outside = outside[walked >= self._length]
        return found.view(np.int64)

    def _network(self, values: U64) -> U64:
        left = values & ((np.uint64(1) << self._bits) - np.uint64(1))
        right = values >> self._bits
        top = np.uint64(64) - self._bits
        mixed, scratch = np.empty_like(values), np.empty_like(values)
        for turn, key in enumerate(self._keys):
            # A half has at most 31 bits, so the first xor-shift of the SplitMix64 finaliser is idle.
            np.add(right if turn % 2 else left, key, out=mixed)
            np.multiply(mixed, _M1, out=mixed)
            np.right_shift(mixed, _S32, out=scratch)
            np.bitwise_xor(mixed, scratch, out=mixed)
            np.multiply(mixed, _M2, out=mixed)
            if turn % 2:
                np.right_shift(mixed, top, out=mixed)
                np.bitwise_xor(left, mixed, out=left)
            else:
                np.right_shift(mixed, _S32, out=mixed)
                np.multiply(mixed, self._modulus, out=mixed)
                np.right_shift(mixed, _S32, out=mixed)
                np.add(right, mixed, out=right)
                # Where right < b, right - b wraps to a huge number: the minimum is right mod b.
                np.subtract(right, self._modulus, out=mixed)
                np.minimum(right, mixed, out=right)
        right <<= self._bits
        right |= left
        return right


class Permutation:
    """A bijection of range(length) that depends on nothing but ``length`` and ``key``.

    ``key`` is a tuple of integers >= 0 of any size, such as ``(seed, epoch, stage)``. Up to
    ``materialised`` rows the order is a frozen NumPy shuffle (``RandomState`` on PCG64), made on
    first use and kept; above, a Feistel network, of which the last few blocks of 65,536 positions
    are kept, so that memory does not grow with ``length`` (up to 2**62). The threshold is part of
    the order: another one is another permutation. Safe to share between threads; a pickle holds
    the arguments alone.

    Raises :class:`PipelineError` for a negative number, :class:`PipelineTypeError` for another type.

    >>> order = Permutation(5, key=(0, 1))
    >>> sorted(order.block(0, 5).tolist())
    [0, 1, 2, 3, 4]
    >>> bool((order.block(1, 3) == order(np.array([1, 2]))).all())
    True
    """

    __slots__ = ("_blocks", "_current", "_filling", "_lock", "_network", "key", "length", "materialised")

    def __init__(self, length: int, key: tuple[int, ...], materialised: int = MATERIALISED) -> None:
        try:
            self.length = operator.index(length)
        except TypeError as exc:
            raise PipelineTypeError(f"permutation of {length!r} rows: the length must be an integer") from exc
        if not 0 <= self.length <= 1 << 62:
            raise PipelineError(f"permutation of {length} rows: the length must be in 0..2**62")
        self.key = tuple(key)
        self.materialised = materialised
        seeds = self._seeds()  # also where length is small: a wrong key is refused here, not at the first batch
        self._network = _Feistel(self.length, seeds) if self.length > materialised else None
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._current: _Block = (0, 0, _read_only(np.empty(0, np.int64)))  # replaced whole: read without a lock
        self._lock, self._filling = threading.Lock(), threading.Lock()

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"Permutation({self.length}, key={self.key})"

    def __reduce__(self) -> tuple[type[Permutation], tuple[int, tuple[int, ...], int]]:
        return type(self), (self.length, self.key, self.materialised)

    def block(self, start: int, stop: int) -> I64:
        """Return the rows at positions ``start`` to ``stop``: int64, read-only, often a view of what is kept.

        Raises :class:`IndexError` unless ``0 <= start <= stop <= length``.
        """
        low, high, rows = self._current
        if low <= start <= stop <= high:
            return rows[start - low : stop - low]
        if not 0 <= start <= stop <= self.length:
            raise IndexError(f"positions {start}..{stop} of a permutation of {self.length} rows")
        low, high, rows = self._block_at(start)
        if stop <= high:
            return rows[start - low : stop - low]
        pieces = [rows[start - low :]]
        while high < stop:
            low, high, rows = self._block_at(high)
            pieces.append(rows[: stop - low])
        return _read_only(np.concatenate(pieces))

    def __call__(self, positions: npt.NDArray[np.integer[Any]]) -> I64:
        """Return the rows at ``positions``, an integer array of any shape: a new int64 array of that shape.

        Raises :class:`IndexError` unless all lie in range(length).
        """
        wanted = np.asarray(positions)
        if wanted.size and wanted.dtype.kind not in "iu":
            raise IndexError(f"positions must be integers, not {wanted.dtype}")
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.length):
            raise IndexError(f"positions {wanted.min()}..{wanted.max()} of a permutation of {self.length} rows")
        wanted = wanted.astype(np.int64, order="C", copy=False)
        if self._network is None:
            return self._block_at(0)[2].take(wanted)
        return self._network.rows(wanted.reshape(-1).view(np.uint64)).reshape(wanted.shape)

    def _seeds(self) -> np.random.SeedSequence:
        return np.random.SeedSequence(_entropy(_PERMUTATION, (self.length, *self.key)))

    def _block_at(self, position: int) -> _Block:
        """Return the block around a position; while one thread makes a new block, others still get the kept ones."""
        index = 0 if self._network is None else position >> _BLOCK_BITS
        with self._lock:
            block = self._blocks.get(index)
            if block is not None:
                self._blocks.move_to_end(index)
        if block is None:
            with self._filling:
                block = self._blocks.get(index)  # another thread may have made it meanwhile
                if block is None:
                    block = self._made(index)
                    with self._lock:
                        self._blocks[index] = block
                        if len(self._blocks) > _BLOCKS_KEPT:
                            self._blocks.popitem(last=False)
        self._current = block
        return block

    def _made(self, index: int) -> _Block:
        if self._network is None:
            shuffled = np.random.RandomState(np.random.PCG64(self._seeds())).permutation(self.length)
            return 0, self.length, _read_only(shuffled.astype(np.int64, copy=False))
        low = index << _BLOCK_BITS
        high = min(low + (1 << _BLOCK_BITS), self.length)
        return low, high, _read_only(self._network.rows(np.arange(low, high, dtype=np.uint64)))


def _read_only(array: I64) -> I64:
    array.flags.writeable = False
    return array


# --- words: 64 random bits for every address ----------------------------------------------------


def _mix(word: int) -> int:
    """Return the SplitMix64 finaliser (Stafford's variant 13) of a 64-bit word."""
    word = (word ^ (word >> 30)) * _MULTIPLIER_1 & _MASK64
    word = (word ^ (word >> 27)) * _MULTIPLIER_2 & _MASK64
    return word ^ (word >> 31)


def _mix_array(words: U64) -> U64:
    """Do to every word in place what :func:`_mix` does to one."""
    scratch = words >> _S30
    np.bitwise_xor(words, scratch, out=words)
    np.multiply(words, _M1, out=words)
    np.right_shift(words, _S27, out=scratch)
    np.bitwise_xor(words, scratch, out=words)
    np.multiply(words, _M2, out=words)
    np.right_shift(words, _S31, out=scratch)
    np.bitwise_xor(words, scratch, out=words)
    return words


@lru_cache(maxsize=256)  # a pure function, called once a row by ScalarRandom
def _stream(key: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the key material of (epochs, draws, generators)."""
    epochs, draws, generators = np.random.SeedSequence(_entropy(_ROWS, key)).generate_state(3, np.uint64).tolist()
    return epochs, draws, generators


@lru_cache(maxsize=256)
def _epoch_word(key: tuple[int, ...], epoch: int) -> int:
    return _mix((_stream(key)[0] + epoch) & _MASK64)


def _tiles(state: U64, offset: int, count: int, function: Callable[[U64], Any], dtype: npt.DTypeLike) -> Any:
    """Return ``function`` of ``count`` words for every row's state: shape (rows, count).

    ``function`` works element by element; it is fed tiles that fit into the cache.
    """
    if count == 1 and state.size <= _TILE:
        return function(_mix_array(state + np.uint64(offset)))
    offsets = np.arange(count, dtype=np.uint64) * _GAMMA + np.uint64(offset)
    values = np.empty((state.size, count), dtype)
    height, width = max(1, _TILE // max(1, count)), min(max(1, count), _TILE)
    for row in range(0, state.size, height):
        for column in range(0, count, width):
            words = state[row : row + height, None] + offsets[column : column + width]
            values[row : row + height, column : column + width] = function(_mix_array(words))
    return values


# --- values: what a word becomes; each function takes one Python int or an array of words --------


def _same(words: U64) -> U64:
    return words


def _unit(words: Any) -> Any:
    """Return the 53 top bits as a float64 in [0, 1)."""
    return (words >> 11) * 2.0**-53 if isinstance(words, int) else (words >> _S11) * _ULP


def _high_product(left: U64, right: U64) -> U64:
    """Return the upper 64 bits of the 128-bit products."""
    left_low, left_high = left & _LOW32, left >> _S32
    right_low, right_high = right & _LOW32, right >> _S32
    middle = left_high * right_low + (left_low * right_low >> _S32)
    carry = (middle & _LOW32) + left_low * right_high
    product: U64 = left_high * right_high + (middle >> _S32) + (carry >> _S32)
    return product


def _below(word: int, span: int) -> int:
    """Return a number in range(span), span <= 2**64: the word, read as a fraction, times the span.

    From 2**32 on the fraction has 128 bits, so the bias stays under 2**-32 (span < 2**32) or 2**-64.
    """
    if span < 1 << 32:
        return word * span >> 64
    if span > _MASK64:
        return word
    return (word << 64 | _mix((word + _GOLDEN) & _MASK64)) * span >> 128


def _below_array(words: U64, last: U64) -> U64:
    """Do to every word what :func:`_below` does to one; ``last`` is span - 1, an array that broadcasts."""
    span = last + _ONE
    narrow: U64 = ((words >> _S32) * span + ((words & _LOW32) * span >> _S32)) >> _S32
    wide = np.greater_equal(last, _LOW32)
    if not wide.any():
        return narrow
    # Each element by its own span: how one row is drawn must not depend on another row's bounds.
    more = _mix_array(words + _GAMMA)
    low_part = words * span
    product = _high_product(words, span) + (low_part + _high_product(more, span) < low_part)
    chosen: U64 = np.where(span == 0, words, np.where(wide, product, narrow))
    return chosen


_Rational: TypeAlias = "tuple[tuple[float, ...], tuple[float, ...]]"

# AS 241, PPND16: (numerator, denominator) in 0.425**2 - q**2, in sqrt(-ln p) - 1.6 and in sqrt(-ln p) - 5,
# highest power first.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.3871328727963666080),
    (5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867,
     5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0),
)  # fmt: skip
_TAIL = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 0.241780725177450611770, 1.27045825245236838258,
     3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 0.148103976427480074590,
     0.689767334985100004550, 1.67638483018380384940, 2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     0.296560571828504891230, 1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 0.136929880922735805310, 0.599832206555887937690, 1.0),
)  # fmt: skip
_SQRT_HALF, _LN_2 = 0.7071067811865476, 0.6931471805599453
_ARTANH = tuple(2.0 / odd for odd in range(19, 0, -2))  # 2 artanh(x) = 2 x + 2/3 x**3 + ...


@lru_cache(maxsize=16)  # the same constants, for arrays
def _constants(coefficients: tuple[float, ...]) -> tuple[F64, ...]:
    return tuple(np.array(coefficient) for coefficient in coefficients)


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """Return the polynomial of one float or of an array, by the same roundings."""
    first, *middle, last = coefficients if isinstance(x, float) else _constants(coefficients)
    total = x * first
    for coefficient in middle:
        total += coefficient
        total *= x
    total += last
    return total


def _ratio(coefficients: _Rational, x: Any) -> Any:
    return _polynomial(coefficients[0], x) / _polynomial(coefficients[1], x)


def _log(mantissa: Any, exponent: Any) -> Any:
    """Return ln(mantissa * 2**exponent), mantissa in [1/2, 1); libraries' own logarithms differ in the last bit."""
    x = (mantissa - _SQRT_HALF) / (mantissa + _SQRT_HALF)
    return (exponent - 0.5) * _LN_2 + x * _polynomial(_ARTANH, x * x)


def _normal(words: Any) -> Any:
    """Return standard normal numbers: the top bit is the sign, the next 52 pick a p in (0, 1/2)."""
    if isinstance(words, int):
        return _normal_scalar(words)
    flat = words.reshape(-1)
    p = ((flat & _MAGNITUDE) >> _S11) + _HALF
    p *= _ULP
    q = _HALF - p
    values = _ratio(_CENTRE, 0.180625 - q * q)
    values *= q
    tail = np.flatnonzero(q > 0.425)
    r = np.sqrt(-_log(*np.frexp(p[tail])))
    values[tail] = _ratio(_TAIL, r - 1.6)
    far = np.flatnonzero(r > 5.0)
    if far.size:
        values[tail[far]] = _ratio(_FAR_TAIL, r[far] - 5.0)
    signed = values.view(np.uint64)
    signed |= flat & _TOP_BIT
    return values.reshape(words.shape)


def _normal_scalar(word: int) -> float:
    p = ((word >> 11 & (1 << 52) - 1) + 0.5) * 2.0**-53
    q = 0.5 - p
    if q <= 0.425:
        size = q * _ratio(_CENTRE, 0.180625 - q * q)
    else:
        r = math.sqrt(-_log(*math.frexp(p)))
        size = _ratio(_TAIL, r - 1.6) if r <= 5.0 else _ratio(_FAR_TAIL, r - 5.0)
    return float(-size if word >> 63 else size)


# --- draws: what a user's function sees -----------------------------------------------------------


_INT64 = np.dtype(np.int64), -(1 << 63), (1 << 63) - 1


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
        _, self._draw_word, self._generator_word = _stream(key)
        self._drawn = 0
        self._lead = lead

    def _draw(self, shape: tuple[int, ...], function: Callable[[Any], Any], dtype: npt.DTypeLike) -> Any:
        """Return ``function`` of the words of the next draw, in ``shape``."""
        raise NotImplementedError

    def _next_offset(self) -> int:
        offset = _mix((self._draw_word + self._drawn) & _MASK64)
        self._drawn += 1
        return offset

    def _generator(self, state: int, index: int) -> np.random.Generator:
        low = _mix(_mix(state ^ self._generator_word) + index * _GOLDEN & _MASK64)
        return np.random.Generator(np.random.Philox(key=_mix(low ^ state) << 64 | low))

    def random(self, size: Size = ()) -> Any:
        """Return float64 in [0, 1), multiples of 2**-53."""
        return self._draw(_shape(self._lead, size), _unit, np.float64)

    def uniform(self, low: npt.ArrayLike = 0.0, high: npt.ArrayLike = 1.0, size: Size = ()) -> Any:
        """Return float64 in [low, high); rounding may reach ``high``, as in NumPy.

        Raises :class:`ValueError` where high < low or where high - low is not finite.
        """
        shape = _shape(self._lead, size)
        start = _real(low, shape, "low")
        span = _real(high, shape, "high") - start
        if not _all((span >= 0) & (span < math.inf)):
            raise ValueError(f"uniform(low={low!r}, high={high!r}): the range must be finite, with low <= high")
        return start + span * self._draw(shape, _unit, np.float64)

    def bernoulli(self, p: npt.ArrayLike = 0.5, size: Size = ()) -> Any:
        """Return True with probability ``p``; raises :class:`ValueError` for a ``p`` outside [0, 1]."""
        shape = _shape(self._lead, size)
        chance = _real(p, shape, "p")
        if not _all((chance >= 0) & (chance <= 1)):
            raise ValueError(f"bernoulli(p={p!r}): a probability lies in [0, 1]")
        return self._draw(shape, _unit, np.float64) < chance

    def standard_normal(self, size: Size = ()) -> Any:
        """Return float64 of mean 0 and variance 1, by inversion: |z| < 8.3, never 0."""
        return self._draw(_shape(self._lead, size), _normal, np.float64)

    def normal(self, loc: npt.ArrayLike = 0.0, scale: npt.ArrayLike = 1.0, size: Size = ()) -> Any:
        """Return float64 of mean ``loc`` and standard deviation ``scale``.

        Raises :class:`ValueError` for a negative ``scale``.
        """
        shape = _shape(self._lead, size)
        mean, spread = _real(loc, shape, "loc"), _real(scale, shape, "scale")
        if not _all(spread >= 0):
            raise ValueError(f"normal(scale={scale!r}): a standard deviation is >= 0")
        return mean + spread * self._draw(shape, _normal, np.float64)

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
            return self._draw(shape, partial(_in_range, start, end, kind), kind)
        first = _modulo64(start)
        numbers = _below_array(self._draw(shape, _same, np.uint64), _modulo64(end) - first)
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


def _in_range(start: int, end: int, dtype: np.dtype[Any], words: Any) -> Any:
    """Return integers in [start, end]."""
    if isinstance(words, int):
        value = start + _below(words, end - start + 1)
        return value if dtype == np.int64 else dtype.type(value)
    # Unsigned to narrower or signed: NumPy keeps the low bits, which are the number's.
    return (_below_array(words, _modulo64(end - start)) + _modulo64(start)).astype(dtype)


def _modulo64(value: int | I64) -> U64:
    return np.array([value & _MASK64], np.uint64) if isinstance(value, int) else value.view(np.uint64)


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
            state = state ^ np.uint64(_epoch_word(key, int(epochs)))
        else:
            words = np.asarray(epochs, dtype=np.int64).view(np.uint64) + np.uint64(_stream(key)[0])
            state = state ^ _mix_array(words)
        self._state = _mix_array(state)
        self._generators: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"RowRandom({len(self._rows)} rows, {self._drawn} draws made)"

    @property
    def rows(self) -> I64:
        """The row numbers in the source, int64, read-only."""
        return _read_only(self._rows.view())

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
        return _tiles(self._state, self._next_offset(), math.prod(shape[1:]), function, dtype).reshape(shape)


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
        self._state = _mix(_epoch_word(key, int(epoch)) ^ (self.row & _MASK64))
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
            return function(_mix((self._state + offset) & _MASK64))
        return _tiles(np.array([self._state], np.uint64), offset, math.prod(shape), function, dtype).reshape(shape)
