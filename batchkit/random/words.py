"""Words: 64 random bits for every address, which is (key, epoch, row, draw, element).

The key is hashed to where its epochs, its draws and its generators begin. An epoch has a word, and
mixed with the row it is the row's state; a draw has an offset, and state + offset + place in the draw,
mixed, is the word at that address. Python integers and arrays give the same bits.

Sources:

- G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, and
  D. Stafford, "Better Bit Mixing", 2011 (variant 13): SplitMix64 and its finaliser.
- J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011: a random number as a
  keyed hash of its address.
- M. O'Neill, "Developing a seed_seq Alternative", 2015: what NumPy's ``SeedSequence``, which hashes
  the keys, is derived from.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, PipelineTypeError

I64: TypeAlias = npt.NDArray[np.int64]
U64: TypeAlias = npt.NDArray[np.uint64]

PERMUTATION_DOMAIN, _ROWS_DOMAIN = 0x7065726D, 0x726F7773  # one a purpose: equal keys, unrelated numbers
TILE = 8192  # numbers worked on at once: three such arrays stay in a core's own cache

MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def as_words(*numbers: int) -> list[U64]:
    """Return constants as arrays of no dimension."""
    # A call of NumPy takes 0.35 us with such an array, 0.55 us with a number (256 rows).
    return [np.array(number, np.uint64) for number in numbers]


M1, M2, GAMMA = as_words(*MULTIPLIERS, GOLDEN)
_S27, _S30, _S31 = as_words(27, 30, 31)


def entropy(domain: int, key: Sequence[int]) -> list[int]:
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


def mix(word: int) -> int:
    """Return the SplitMix64 finaliser (Stafford's variant 13) of a 64-bit word."""
    word = (word ^ (word >> 30)) * MULTIPLIERS[0] & MASK64
    word = (word ^ (word >> 27)) * MULTIPLIERS[1] & MASK64
    return word ^ (word >> 31)


def mix_array(words: U64) -> U64:
    """Do to every word in place what :func:`mix` does to one."""
    scratch = words >> _S30
    np.bitwise_xor(words, scratch, out=words)
    np.multiply(words, M1, out=words)
    np.right_shift(words, _S27, out=scratch)
    np.bitwise_xor(words, scratch, out=words)
    np.multiply(words, M2, out=words)
    np.right_shift(words, _S31, out=scratch)
    np.bitwise_xor(words, scratch, out=words)
    return words


@lru_cache(maxsize=256)  # a pure function, called once a row by ScalarRandom
def stream(key: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the key material of (epochs, draws, generators)."""
    epochs, draws, generators = np.random.SeedSequence(entropy(_ROWS_DOMAIN, key)).generate_state(3, np.uint64).tolist()
    return epochs, draws, generators


@lru_cache(maxsize=256)
def epoch_word(key: tuple[int, ...], epoch: int) -> int:
    """Return what a row's number is mixed with in this epoch."""
    return mix((stream(key)[0] + epoch) & MASK64)


def tiles(state: U64, offset: int, count: int, function: Callable[[U64], Any], dtype: npt.DTypeLike) -> Any:
    """Return ``function`` of ``count`` words for every row's state: shape (rows, count).

    ``function`` works element by element; it is fed tiles that fit into the cache.
    """
    if count == 1 and state.size <= TILE:
        return function(mix_array(state + np.uint64(offset)))
    offsets = np.arange(count, dtype=np.uint64) * GAMMA + np.uint64(offset)
    values = np.empty((state.size, count), dtype)
    height, width = max(1, TILE // max(1, count)), min(max(1, count), TILE)
    for row in range(0, state.size, height):
        for column in range(0, count, width):
            words = state[row : row + height, None] + offsets[column : column + width]
            values[row : row + height, column : column + width] = function(mix_array(words))
    return values
