"""Keyed permutation: the row at a position is a pure function of (length, key).

Sources:

- J. Black, P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: the generalised
  Feistel network on Z_a x Z_b, and cycle walking.
- D. Stafford, "Better Bit Mixing", 2011 (variant 13), the finaliser of SplitMix64 (G. Steele,
  D. Lea, C. Flood, OOPSLA 2014), and for words of 32 bits C. Wellons, "Prospecting for Hash
  Functions", 2018 (its later constants, by T. I. Born): a round's function is a shortened form.
- D. Lemire, "Fast Random Integer Generation in an Interval", TOMACS 2019: multiply-shift, by which a
  round's word becomes a number in Z_b.
- NEP 19: ``RandomState`` and the bit generators of NumPy are frozen, ``Generator`` is not.
"""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, PipelineTypeError
from batchkit.random.words import I64, MULTIPLIERS, PERMUTATION_DOMAIN, TILE, U64, entropy

MATERIALISED = 1 << 20
"""Up to this many rows a permutation is kept as an array (8 bytes a row)."""

_Block: TypeAlias = "tuple[int, int, I64]"
"""(low, high, the rows at those positions)"""

_BLOCK_BITS = 16  # 65,536 positions a block: 512 KiB, 1 to 2 ms of work, 256 steps of 256 rows
_FIRST_BITS = 11  # 2,048 positions: some 100 us
_BLOCKS_KEPT = 4
_NARROW = 1 << 31  # up to so many rows words of 32 bits do, which are computed twice as fast
_ROUNDS = 10  # pair and quartet counts show structure up to 5 rounds, and none from 6 on


class _Feistel:
    """A keyed bijection of range(length) that is computed, not stored.

    Position = (right << bits) | left, with left in Z_a and right in Z_b, where a = 2**bits is the
    power of two next to sqrt(length), so that cutting a position takes no division, and
    b = ceil(length / a). Fewer than a of the a * b values lie outside range(length); such a value
    is sent through again until it lies inside.
    """

    __slots__ = ("_bits", "_keys", "_length", "_low", "_modulus", "_multipliers", "_tile", "_top", "_word", "_xor")

    def __init__(self, length: int, seeds: np.random.SeedSequence) -> None:
        narrow = length <= _NARROW
        self._word: Any = np.uint32 if narrow else np.uint64
        self._multipliers = self._constants(*((0x21F0AAAD, 0xD35A2D97) if narrow else MULTIPLIERS))
        bits = max(1, (length - 1).bit_length() // 2)
        size = 32 if narrow else 64
        self._bits, self._low, self._top = self._constants(bits, (1 << bits) - 1, size - bits)
        self._length, self._modulus = self._constants(length, -(-length // (1 << bits)))
        # Half a word makes a word's high half a number below the modulus, which has half as many bits at most.
        self._xor = self._constants(15 if narrow else 32, size // 2)
        self._keys = self._constants(*seeds.generate_state(_ROUNDS, self._word))
        self._tile = TILE * 64 // size

    def _constants(self, *numbers: Any) -> list[Any]:
        return [np.array(number, self._word) for number in numbers]

    def rows(self, positions: U64) -> I64:
        """Return the rows at a vector of positions."""
        found = np.empty(positions.size, self._word)
        for low in range(0, positions.size, self._tile):
            found[low : low + self._tile] = self._network(positions[low : low + self._tile].astype(self._word))
        outside = np.flatnonzero(found >= self._length)
        while outside.size:
            walked = self._network(found[outside])
            found[outside] = walked
            outside = outside[walked >= self._length]
        return found.astype(np.int64) if self._word is np.uint32 else found.view(np.int64)

    def _network(self, values: Any) -> Any:
        left, right = values & self._low, values >> self._bits
        mixed, scratch = np.empty_like(values), np.empty_like(values)
        (first, second), (xor, half) = self._multipliers, self._xor
        for turn, key in enumerate(self._keys):
            # A half has few bits, so that the first xor-shift of the finaliser is idle.
            np.add(right if turn % 2 else left, key, out=mixed)
            np.multiply(mixed, first, out=mixed)
            np.right_shift(mixed, xor, out=scratch)
            np.bitwise_xor(mixed, scratch, out=mixed)
            np.multiply(mixed, second, out=mixed)
            if turn % 2:
                np.right_shift(mixed, self._top, out=mixed)
                np.bitwise_xor(left, mixed, out=left)
            else:
                np.right_shift(mixed, half, out=mixed)
                np.multiply(mixed, self._modulus, out=mixed)
                np.right_shift(mixed, half, out=mixed)
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
            done = high
            low, high, rows = self._block_at(done)
            pieces.append(rows[done - low : stop - low])
        return _read_only(np.concatenate(pieces))

    def __call__(self, positions: npt.NDArray[np.integer[Any]]) -> I64:
        """Return the rows at ``positions``, an integer array of any shape: a new int64 array of that shape.

        Raises :class:`IndexError` unless all lie in range(length).
        """
        wanted = np.asarray(positions)
        if wanted.size and wanted.dtype.kind not in "iu":
            raise IndexError(f"positions must be integers, not {wanted.dtype}")
        flat = wanted.astype(np.int64, order="C", copy=False).reshape(-1).view(np.uint64)
        if flat.size and flat.max() >= self.length:  # a negative one is a huge one here
            raise IndexError(f"positions {wanted.min()}..{wanted.max()} of a permutation of {self.length} rows")
        if self._network is None:
            return self._block_at(0)[2].take(flat.view(np.int64)).reshape(wanted.shape)
        return self._network.rows(flat).reshape(wanted.shape)

    def _seeds(self) -> np.random.SeedSequence:
        return np.random.SeedSequence(entropy(PERMUTATION_DOMAIN, (self.length, *self.key)))

    def _block_at(self, position: int) -> _Block:
        """Return the block around a position; while one thread makes a new block, others still get the kept ones."""
        index = 0
        if self._network is not None:  # whoever asks first waits for a small block only
            index = position >> _BLOCK_BITS if self._blocks else ~(position >> _FIRST_BITS)
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
        number, bits = (index, _BLOCK_BITS) if index >= 0 else (~index, _FIRST_BITS)
        low = number << bits
        high = min(low + (1 << bits), self.length)
        return low, high, _read_only(self._network.rows(np.arange(low, high, dtype=np.uint64)))


def _read_only(array: I64) -> I64:
    array.flags.writeable = False
    return array
