"""Which source rows the rows of a batch are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batchkit.errors import SchemaError

__all__ = ["Lineage", "Origin", "with_lineage"]

Vector = npt.NDArray[np.int64]


class Origin(NamedTuple):
    """A source row."""

    source: int
    row: int
    epoch: int


@dataclass(frozen=True, eq=False)
class Lineage:
    """The source rows of every row of a batch: four int64 vectors of one length, in the order of ``place``.

    A row of the batch may be made of one source row, of several (where pipelines are zipped, say), or of none
    (where it only pads the batch).

    >>> found = Lineage.of(np.array([7, 3, -1]), epochs=2)
    >>> found.rows, found.place.tolist(), found.row.tolist(), found.epoch.tolist()
    (3, [0, 1], [7, 3], [2, 2])
    >>> found.at(1), found.at(2)
    ([Origin(source=0, row=3, epoch=2)], [])
    """

    rows: int
    """How many rows the batch has, padding included."""
    place: Vector
    """The row of the batch, counted from 0; never falls."""
    source: Vector
    """The number of the source: 0, unless several are combined."""
    row: Vector
    """The row of that source, counted from 0."""
    epoch: Vector
    """Which pass over the source it is of: what shuffles and random maps go by. ``repeat(n)`` makes n passes an epoch
    (pass ``w`` of epoch ``e`` is ``e * n + w``), and ``repeat()`` counts 2**32 of them to one."""

    @classmethod
    def of(cls, ids: Vector, epochs: int | Vector) -> Lineage:
        """Return the lineage of rows of one source; a negative number is of a row that pads."""
        place = np.flatnonzero(ids >= 0)
        passes = np.broadcast_to(np.asarray(epochs, np.int64), ids.shape)
        return cls(len(ids), place, np.zeros(len(place), np.int64), ids[place], passes[place])

    @classmethod
    def none(cls, rows: int = 0) -> Lineage:
        """Return the lineage of rows that only pad a batch."""
        return cls.of(np.full(rows, -1, np.int64), 0)

    @classmethod
    def joined(cls, parts: Sequence[Lineage]) -> Lineage:
        """Return the lineage of the rows of all parts, one part behind the other."""
        if not parts:
            return cls.none()
        starts = np.cumsum([0, *(part.rows for part in parts)])
        places = [part.place + start for part, start in zip(parts, starts[:-1].tolist(), strict=True)]
        return cls(int(starts[-1]), np.concatenate(places), *_columns(parts))

    @classmethod
    def merged(cls, parts: Sequence[Lineage]) -> Lineage:
        """Return the lineage of rows each of which is made of the same row of every part."""
        place = np.concatenate([part.place for part in parts])
        order = np.argsort(place, kind="stable")
        return cls(parts[0].rows, place[order], *(column[order] for column in _columns(parts)))

    def taken(self, places: Vector) -> Lineage:
        """Return the lineage of some of the rows, in any order, the same one several times if wanted."""
        starts = np.searchsorted(self.place, places)
        counts = np.searchsorted(self.place, places, side="right") - starts
        begins = np.cumsum(counts) - counts
        found = np.arange(int(counts.sum())) + np.repeat(starts - begins, counts)
        place = np.repeat(np.arange(len(places)), counts)
        return Lineage(len(places), place, self.source[found], self.row[found], self.epoch[found])

    def part(self, start: int, stop: int) -> Lineage:
        """Return the lineage of the rows from ``start`` to ``stop``."""
        low, high = np.searchsorted(self.place, [start, stop]).tolist()
        found = slice(low, high)
        rows = max(min(stop, self.rows) - start, 0)
        return Lineage(rows, self.place[found] - start, self.source[found], self.row[found], self.epoch[found])

    def grouped(self, counts: Vector) -> Lineage:
        """Return the lineage of rows each of which is made of the next of these: ``counts`` says of how many."""
        owners = np.repeat(np.arange(len(counts)), counts)
        return Lineage(len(counts), owners[self.place], self.source, self.row, self.epoch)

    def padded(self, rows: int) -> Lineage:
        """Return the same for a batch that is filled up to ``rows`` rows."""
        return Lineage(rows, self.place, self.source, self.row, self.epoch)

    def numbered(self, first: int) -> Lineage:
        """Return the same with the sources counted from ``first``."""
        return Lineage(self.rows, self.place, self.source + first, self.row, self.epoch)

    @property
    def columns(self) -> tuple[Vector, Vector, Vector, Vector]:
        """Its four vectors."""
        return self.place, self.source, self.row, self.epoch

    def at(self, place: int) -> list[Origin]:
        """Return the source rows of one row of the batch."""
        low, high = np.searchsorted(self.place, [place, place + 1]).tolist()
        return [
            Origin(*numbers)
            for numbers in zip(
                self.source[low:high].tolist(), self.row[low:high].tolist(), self.epoch[low:high].tolist(), strict=True
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "rows": self.rows,
            "place": self.place.tolist(),
            "source": self.source.tolist(),
            "row": self.row.tolist(),
            "epoch": self.epoch.tolist(),
        }


def _columns(parts: Sequence[Lineage]) -> tuple[Vector, Vector, Vector]:
    return (
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.epoch for part in parts]),
    )


def with_lineage(columns: Any, lineage: Lineage) -> Any:
    """Return the columns of a batch with the lineage added: a dict's key ``"lineage"``, else a tuple's last part.

    Raises:
        SchemaError: there is a leaf of that name already.
    """
    added = {name: getattr(lineage, name) for name in ("place", "source", "row", "epoch")}
    if isinstance(columns, dict):
        if "lineage" in columns:
            raise SchemaError("lineage=True adds a leaf 'lineage', but there is one: rename it, .rename(lineage='...')")
        return {**columns, "lineage": added}
    if isinstance(columns, tuple) and not hasattr(columns, "_fields"):
        return (*columns, added)
    return (columns, added)
