"""What each verb means, in plain Python on lists of rows: the oracle of the property tests.

A pipeline is a list of ``(verb, argument)``. Nothing of batchkit is used here. The order of
a shuffle is not for an oracle to know: it is given as ``orders(ordinal, length, epoch)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

Orders = Callable[[int, int, int], list[int]]


def epoch_of(rows: list[Any], verbs: list[tuple[str, Any]], epoch: int, orders: Orders) -> list[Any]:
    """Return the items of one epoch: rows, or behind ``batch`` lists of rows."""
    if not verbs:
        return list(rows)
    *before, (verb, argument) = verbs
    ordinal = sum(name == "shuffle" for name, _ in before)

    def items(which: int) -> list[Any]:
        return epoch_of(rows, before, which, orders)

    if verb == "shuffle":
        found = items(epoch)
        return [found[place] for place in orders(ordinal, len(found), epoch)]
    if verb == "repeat":
        return list(itertools.chain.from_iterable(items(epoch * argument + turn) for turn in range(argument)))
    if verb == "take":
        return items(epoch)[:argument]
    if verb == "skip":
        return items(epoch)[argument:]
    if verb == "map":
        return [argument(item) for item in items(epoch)]
    if verb == "batch":
        size, remainder = argument
        found = items(epoch)
        batches = [found[start : start + size] for start in range(0, len(found), size)]
        if remainder == "drop":
            return [batch for batch in batches if len(batch) == size]
        return batches
    if verb == "unbatch":
        return list(itertools.chain.from_iterable(items(epoch)))
    raise AssertionError(verb)


def rank_slice(batch: list[Any], rank: int, world: int) -> list[Any]:
    """Return a rank's contiguous share of a batch: shares differ by at most one row."""
    shares = [len(batch) * (turn + 1) // world - len(batch) * turn // world for turn in range(world)]
    start = sum(shares[:rank])
    return batch[start : start + shares[rank]]
