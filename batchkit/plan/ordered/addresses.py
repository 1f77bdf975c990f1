"""Addresses: where rows that have no numbers are found again, so that each can be computed by itself.

An address is a few whole numbers, the same few for all rows of a flow. That of a position is the position; a chunk
puts the rows that it makes of one apart by counting them; a repetition says in which pass, a combination in which part.
A flow whose rows have addresses says how many numbers they are (``width``) and has ``fetch``. Its walks give rows their
addresses on the way, as ``Rows.at``, or where rows are no more than positions as ``Rows.places``.

Generators, windows of rows, batches taken apart, packed rows and zips have none: what a row of theirs is made of is
told by the way there, or takes more numbers than a state has room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from batchkit.errors import StateError
from batchkit.plan.ordered.chunks import Feeds
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.joining import joined

__all__ = [
    "GONE",
    "Addresses",
    "addresses_of",
    "as_columns",
    "fetched",
    "groups",
    "of_columns",
    "places_made",
    "put_in_place",
    "width_of",
]

Addresses: TypeAlias = npt.NDArray[np.int64]
"""A row of numbers for each row."""

GONE = "the state holds rows back that are not there any more: the data or a function changed since"


def width_of(flow: Any) -> int | None:
    """Return how many numbers the addresses of a flow's rows have; ``None`` where they have none."""
    return getattr(flow, "width", None)


def addresses_of(rows: Rows) -> Addresses:
    """Return the addresses of rows of a flow that has addresses."""
    if rows.at is not None:
        return rows.at
    assert rows.places is not None
    return rows.places[:, None]


def places_made(origins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return which of those made of the same row each row is; ``origins`` says of which row, and never falls."""
    return np.arange(len(origins)) - np.searchsorted(origins, origins)


def fetched(flow: Any, epoch: int, addresses: Addresses, feeds: Feeds) -> Rows:
    """Return the rows of an epoch of a flow that are at some addresses, at least one; computes no others in between.

    Raises:
        StateError: there are no such rows.
    """
    if addresses.shape[1] != flow.width or addresses.min() < 0:
        raise StateError(f"the state's addresses of rows do not have {flow.width} numbers of at least 0: it is damaged")
    rows: Rows = flow.fetch(epoch, addresses, feeds)
    return rows


def groups(keys: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Return every key with its places."""
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, starts[1:]), strict=True))


def put_in_place(found: list[tuple[npt.NDArray[np.int64], Rows]]) -> Rows:
    """Return rows in the order of their places, which come with them."""
    places = np.concatenate([places for places, _ in found])
    return joined([rows for _, rows in found]).chosen(np.argsort(places))


def as_columns(addresses: Addresses) -> list[npt.NDArray[np.int64]]:
    """Return the numbers of addresses, the first ones of all, then the second ones, and so on, for a state.

    Each column is in the order of those before it: the rows of one part or pass lie together, whose numbers mostly
    rise, so that they take little room.

    >>> [column.tolist() for column in as_columns(np.array([[1, 70], [0, 5], [1, 71], [0, 6]]))]
    [[1, 0, 1, 0], [5, 6, 70, 71]]
    """
    columns: list[npt.NDArray[np.int64]] = []
    for number in range(addresses.shape[1]):
        columns.append(addresses[_sorted_by(addresses[:, :number]), number])
    return columns


def of_columns(columns: Sequence[npt.NDArray[np.int64]]) -> Addresses:
    """Return the addresses again.

    >>> of_columns([np.array([1, 0, 1, 0]), np.array([5, 6, 70, 71])]).tolist()
    [[1, 70], [0, 5], [1, 71], [0, 6]]
    """
    addresses = np.zeros((len(columns[0]), len(columns)), np.int64)
    for number, column in enumerate(columns):
        addresses[_sorted_by(addresses[:, :number]), number] = column
    return addresses


def _sorted_by(keys: Addresses) -> npt.NDArray[np.intp]:
    """Return the order of rows by all keys, the first one first; equal ones stay as they are."""
    return np.lexsort(keys.T[::-1]) if keys.shape[1] else np.arange(len(keys))
