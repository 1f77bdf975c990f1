"""The benchmark: one pipeline, every backend and executor, measured in interleaved rounds.

``batchkit bench`` prints what is found here (docs/bench.md). Each pair of backend and executor
is a contender with a process of its own, so that frameworks do not disturb each other.
"""

from __future__ import annotations

from batchkit.bench.compare import Change, compare, incomparable
from batchkit.bench.machine import machine
from batchkit.bench.match import Entry, check, measure
from batchkit.bench.page import page
from batchkit.bench.record import Contest, Record, Result, Terms, Turn
from batchkit.bench.rounds import Contender, Timing, interleaved, ratio, take_turns

__all__ = [
    "Change",
    "Contender",
    "Contest",
    "Entry",
    "Record",
    "Result",
    "Terms",
    "Timing",
    "Turn",
    "check",
    "compare",
    "incomparable",
    "interleaved",
    "machine",
    "measure",
    "page",
    "ratio",
    "take_turns",
]
