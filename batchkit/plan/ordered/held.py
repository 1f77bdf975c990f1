"""Rows that wait in memory until what they belong to is full."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.plan.ordered.addresses import Addresses, addresses_of
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.joining import joined
from batchkit.sources.stacking import detached

__all__ = ["HeldRows"]

I64 = npt.NDArray[np.int64]


class HeldRows:
    """Rows by the number of their arrival, until they are let go of."""

    def __init__(self) -> None:
        self._arrivals: I64 = np.zeros(0, np.int64)
        self._rows: Rows | None = None
        self._own = 0
        """How many of the first rows are known to be no views of others, which would keep these in memory."""

    def __len__(self) -> int:
        """Return how many there are, of which some may be let go of."""
        return len(self._arrivals)

    def add(self, arrivals: I64, rows: Rows) -> None:
        """Take in rows that arrived behind all others."""
        if self._rows is None:
            self._arrivals, self._rows = arrivals, rows
            return
        if (self._rows.items is None) != (rows.items is None):
            self._own = 0  # what were columns become views of them
        self._arrivals, self._rows = np.concatenate([self._arrivals, arrivals]), joined([self._rows, rows])

    def of(self, arrivals: I64) -> Rows:
        """Return rows that are there, at least one; the numbers rise."""
        assert self._rows is not None
        return self._rows.chosen(np.searchsorted(self._arrivals, arrivals))

    def addresses(self, arrivals: I64) -> Addresses:
        """Return the addresses of rows that are there, at least one, in any order."""
        assert self._rows is not None
        return addresses_of(self._rows)[np.searchsorted(self._arrivals, arrivals)]

    def keep(self, arrivals: I64) -> None:
        """Let go of all rows but some; the numbers rise."""
        if not len(arrivals):
            self._arrivals, self._rows, self._own = arrivals, None, 0
            return
        rows = self.of(arrivals)
        if rows.items is not None:
            own = int(np.searchsorted(arrivals, self._arrivals[self._own])) if self._own < len(self) else len(arrivals)
            rows.items[own:] = [detached(item, copy=_is_view(item)) for item in rows.items[own:]]
        self._arrivals, self._rows, self._own = arrivals, rows, len(arrivals)


def _is_view(item: Any) -> bool:
    return any(isinstance(leaf, np.ndarray) and leaf.base is not None for leaf in tree_.flatten(item)[0])
