"""Open packed rows, and which of them a sequence goes to: first fit and best fit."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Protocol, TypeAlias

__all__ = ["BestFit", "Bins", "FirstFit", "Piece"]

Piece: TypeAlias = "tuple[int, ...]"
"""A segment: the row that it is of, where it starts in it, and where it stops (in each leaf with its own length)."""

_BITS = 40
_NUMBER = (1 << _BITS) - 1


class Bins(Protocol):
    """At most so many open packed rows. When none has room, the fullest is closed, of equally full ones the oldest.

    The fullest is the one with the least room, added up over the leaves with lengths of their own.
    """

    def put(self, sizes: Sequence[list[int]], pieces: Iterable[Piece], closed: list[list[Piece]]) -> None:
        """Put pieces where they go, and add to ``closed`` what was closed for them.

        ``sizes`` are those of the pieces, one list a leaf; none is more than a packed row has room for, and no piece
        is empty in all leaves.
        """

    def reopen(self, sizes: Sequence[int], segments: list[Piece]) -> None:
        """Open one more that has ``segments`` already, of these sizes in all."""

    def opened(self) -> list[list[Piece]]:
        """Return the segments of the open ones, in order of opening."""


class _Fields:
    """Sizes in several leaves as the fields of one integer, each with a guard bit above it.

    Rooms with their guards set, less sizes: guards that are still set say in which leaves there is room enough.
    """

    def __init__(self, limits: Sequence[int]) -> None:
        widths = [limit.bit_length() + 1 for limit in limits]
        *self._places, self.bits = accumulate(widths, initial=0)
        guards = [place + width - 1 for place, width in zip(self._places, widths, strict=True)]
        self.first = 1 << guards[0]
        self.guards = sum(1 << guard for guard in guards)
        self.shifts = [guard - guards[0] for guard in guards[1:]]
        """How far the other guards are above the first one."""

    def word(self, sizes: Sequence[int]) -> int:
        """Return the sizes as fields, with no guard set."""
        if len(sizes) == 1:
            return sizes[0]
        return sum(size << place for size, place in zip(sizes, self._places, strict=True))


class BestFit:
    """A sequence goes to the fullest one with room.

    Each open one has a key, its room and its number in order of opening. Keys are held sorted, so that the first one
    with room enough is found by bisection; with several leaves, that is where the search begins.
    """

    def __init__(self, limits: Sequence[int], most: int) -> None:
        self._limits, self._most, self._next = limits, most, 0
        self._keys: list[int] = []
        self._segments: dict[int, list[Piece]] = {}
        self._fields = _Fields(limits)
        self._rooms: dict[int, int] = {}
        """The room in each leaf, where there are several."""

    def put(self, sizes: Sequence[list[int]], pieces: Iterable[Piece], closed: list[list[Piece]]) -> None:
        if len(sizes) > 1:
            self._put_several(sizes, pieces, closed)
            return
        keys, segments, most, number = self._keys, self._segments, self._most, self._next
        whole = self._limits[0] << _BITS
        for size, piece in zip(sizes[0], pieces, strict=True):
            need = size << _BITS
            at = bisect_left(keys, need)
            if at < len(keys):
                key = keys.pop(at)
                segments[key & _NUMBER].append(piece)
                insort(keys, key - need, 0, at)
                continue
            if at == most:
                closed.append(segments.pop(keys.pop(0) & _NUMBER))
            segments[number] = [piece]
            insort(keys, (whole - need) | number)
            number += 1
        self._next = number

    def _put_several(self, sizes: Sequence[list[int]], pieces: Iterable[Piece], closed: list[list[Piece]]) -> None:
        keys, rooms, guards = self._keys, self._rooms, self._fields.guards
        for each, piece in zip(zip(*sizes, strict=True), pieces, strict=True):
            total, need = sum(each) << _BITS, self._fields.word(each)
            for at in range(bisect_left(keys, total), len(keys)):
                number = keys[at] & _NUMBER
                left = rooms[number] - need
                if left & guards == guards:
                    rooms[number] = left
                    insort(keys, keys.pop(at) - total, 0, at)
                    self._segments[number].append(piece)
                    break
            else:
                if len(keys) == self._most:
                    number = keys.pop(0) & _NUMBER
                    closed.append(self._segments.pop(number))
                    del rooms[number]
                self.reopen(each, [piece])

    def reopen(self, sizes: Sequence[int], segments: list[Piece]) -> None:
        left = [limit - size for limit, size in zip(self._limits, sizes, strict=True)]
        insort(self._keys, sum(left) << _BITS | self._next)
        self._segments[self._next] = segments
        if len(left) > 1:
            self._rooms[self._next] = self._fields.word(left) | self._fields.guards
        self._next += 1

    def opened(self) -> list[list[Piece]]:
        return list(self._segments.values())


class FirstFit:
    """A sequence goes to the oldest one with room.

    The rooms of all open ones are the fields of a single integer, the oldest highest, so that one subtraction compares
    them all, and the length of what is left says which is the oldest that fits. Fields not in use have no room.
    """

    def __init__(self, limits: Sequence[int], most: int) -> None:
        self._limits, self._most = limits, most
        self._fields = fields = _Fields(limits)
        self._ones = sum(1 << (fields.bits * number) for number in range(most))
        self._left = fields.guards * self._ones
        self._rooms: list[int] = []
        self._segments: list[list[Piece]] = []

    def put(self, sizes: Sequence[list[int]], pieces: Iterable[Piece], closed: list[list[Piece]]) -> None:
        if len(sizes) > 1:
            self._put_several(sizes, pieces, closed)
            return
        left, ones, bits, guards = self._left, self._ones, self._fields.bits, self._fields.guards * self._ones
        rooms, segments, last, limit = self._rooms, self._segments, self._most - 1, self._limits[0]
        for size, piece in zip(sizes[0], pieces, strict=True):
            fits = (left - size * ones) & guards
            if fits:
                field = (fits.bit_length() - 1) // bits
                left -= size << (field * bits)
                rooms[last - field] -= size
                segments[last - field].append(piece)
                continue
            if len(rooms) > last:
                left = self._closed(left, closed)
            left += (limit - size) << ((last - len(rooms)) * bits)
            rooms.append(limit - size)
            segments.append([piece])
        self._left = left

    def _put_several(self, sizes: Sequence[list[int]], pieces: Iterable[Piece], closed: list[list[Piece]]) -> None:
        ones, bits, firsts = self._ones, self._fields.bits, self._fields.first * self._ones
        for each, piece in zip(zip(*sizes, strict=True), pieces, strict=True):
            need = self._fields.word(each)
            compared = self._left - need * ones
            fits = compared & firsts
            for shift in self._fields.shifts:
                fits &= compared >> shift
            if not fits:
                if len(self._rooms) == self._most:
                    self._left = self._closed(self._left, closed)
                self.reopen(each, [piece])
                continue
            field = (fits.bit_length() - 1) // bits
            self._left -= need << (field * bits)
            self._rooms[self._most - 1 - field] -= sum(each)
            self._segments[self._most - 1 - field].append(piece)

    def _closed(self, left: int, closed: list[list[Piece]]) -> int:
        """Close the fullest one; return the rooms without it: younger ones move up, and the lowest field has none."""
        fullest = self._rooms.index(min(self._rooms))
        del self._rooms[fullest]
        closed.append(self._segments.pop(fullest))
        bits = self._fields.bits
        above = (self._most - fullest) * bits
        younger = (left & ((1 << (above - bits)) - 1)) << bits
        return left >> above << above | younger | self._fields.guards

    def reopen(self, sizes: Sequence[int], segments: list[Piece]) -> None:
        left = [limit - size for limit, size in zip(self._limits, sizes, strict=True)]
        self._left += self._fields.word(left) << ((self._most - 1 - len(self._rooms)) * self._fields.bits)
        self._rooms.append(sum(left))
        self._segments.append(segments)

    def opened(self) -> list[list[Piece]]:
        return list(self._segments)
