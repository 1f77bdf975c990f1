"""Values: what a word becomes, be it one Python int or an element of an array; the bits are the same.

Sources:

- D. Lemire, "Fast Random Integer Generation in an Interval", TOMACS 2019: multiply-shift.
- M. Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied
  Statistics 37, 1988: normal numbers by inversion (PPND16).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.random.words import GAMMA, GOLDEN, I64, MASK64, U64, as_words, mix, mix_array

F64: TypeAlias = npt.NDArray[np.float64]

_S11, _S32 = as_words(11, 32)
_ONE, _LOW32, _MAGNITUDE, _TOP_BIT = as_words(1, (1 << 32) - 1, (1 << 63) - 1, 1 << 63)
# Of no dimension too, for the reason that as_words gives.
_HALF, _ULP = np.array(0.5), np.array(2.0**-53)


def same(words: U64) -> U64:
    """Return the words as they are."""
    return words


def unit(words: Any) -> Any:
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
    if span > MASK64:
        return word
    return (word << 64 | mix((word + GOLDEN) & MASK64)) * span >> 128


def below_array(words: U64, last: U64) -> U64:
    """Do to every word what :func:`_below` does to one; ``last`` is span - 1, an array that broadcasts."""
    span = last + _ONE
    narrow: U64 = ((words >> _S32) * span + ((words & _LOW32) * span >> _S32)) >> _S32
    wide = np.greater_equal(last, _LOW32)
    if not wide.any():
        return narrow
    # Each element by its own span: how one row is drawn must not depend on another row's bounds.
    more = mix_array(words + GAMMA)
    low_part = words * span
    product = _high_product(words, span) + (low_part + _high_product(more, span) < low_part)
    chosen: U64 = np.where(span == 0, words, np.where(wide, product, narrow))
    return chosen


def in_range(start: int, end: int, dtype: np.dtype[Any], words: Any) -> Any:
    """Return integers in [start, end]."""
    if isinstance(words, int):
        value = start + _below(words, end - start + 1)
        return value if dtype == np.int64 else dtype.type(value)
    # Unsigned to narrower or signed: NumPy keeps the low bits, which are the number's.
    return (below_array(words, modulo64(end - start)) + modulo64(start)).astype(dtype)


def modulo64(value: int | I64) -> U64:
    """Return numbers modulo 2**64; one number as a vector of one."""
    return np.array([value & MASK64], np.uint64) if isinstance(value, int) else value.view(np.uint64)


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


def normal(words: Any) -> Any:
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
