"""Sequences put end to end into rows of one length: which of them go where, and the columns that they make."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.bins import BestFit, Bins, FirstFit, Piece
from batchkit.errors import MissingLeafError, SchemaError, StageError, StateError, nearest
from batchkit.lengths import agreed, column_lengths, item_lengths
from batchkit.ragged import Ragged
from batchkit.schema import LeafSpec, native
from batchkit.sources.stacking import Lease
from batchkit.tree import Tree

__all__ = ["Packed", "Packer", "packed_columns", "packed_lengths", "packed_schema"]

_INT32 = np.dtype(np.int32)
_MEND = "All leaves of a row go together: drop one of them, or give a length by leaf, pack({...})"


@dataclass(frozen=True, slots=True)
class Packed:
    """Packed rows, as the segments that are in them, end to end.

    Packed row ``p`` has the segments from ``offsets[p]`` to ``offsets[p + 1]``, at least one. Segment ``s`` is of row
    ``rows[s]``, from ``starts[s]`` to ``stops[s, leaf]``: one column, or one for each leaf that has a length of its
    own. All are int64.
    """

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of packed rows."""
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> Packed:
        """Return the packed rows from ``start`` to ``stop``, as views."""
        bounds = self.offsets[start : stop + 1]
        cut = slice(bounds[0], bounds[-1])
        return Packed(bounds - bounds[0], self.rows[cut], self.starts[cut], self.stops[cut])

    def chosen(self, which: npt.NDArray[np.int64]) -> Packed:
        """Return other packed rows, in another order."""
        counts = np.diff(self.offsets)[which]
        offsets = np.zeros(len(which) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        found = np.arange(offsets[-1]) + np.repeat(self.offsets[which] - offsets[:-1], counts)
        return Packed(offsets, self.rows[found], self.starts[found], self.stops[found])

    def of_rows(self, rows: npt.NDArray[np.int64]) -> Packed:
        """Return the same of other rows, given for each segment."""
        return Packed(self.offsets, rows, self.starts, self.stops)

    def needed(self) -> tuple[npt.NDArray[np.int64], Packed]:
        """Return the rows that segments are of, rising, and the same packed rows with their places among those."""
        rows, places = np.unique(self.rows, return_inverse=True)
        return rows, Packed(self.offsets, places.astype(np.int64, copy=False), self.starts, self.stops)

    @staticmethod
    def joined(parts: Sequence[Packed]) -> Packed:
        """Return the packed rows of all parts, at least one of them."""
        ends = np.cumsum([0, *(len(part.rows) for part in parts)])
        offsets = [part.offsets[1:] + end for part, end in zip(parts, ends, strict=False)]
        return Packed(
            np.concatenate([np.zeros(1, np.int64), *offsets]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.stops for part in parts]),
        )


class Packer:
    """Says which sequences make a packed row, from their lengths alone; rows are numbered as they arrive, from 0.

    What comes out depends on the lengths and their order, not on how they are cut into calls of :meth:`add`.
    """

    def __init__(self, stage: st.Pack) -> None:
        self.stage = stage
        self.arrived = 0
        self._bins = _bins(stage)

    def add(self, lengths: npt.NDArray[np.int64], ids: Any = None) -> Packed:
        """Take rows in, and return the packed rows that come out.

        ``lengths`` has shape ``(rows,)``, or ``(rows, leaves)`` where leaves have lengths of their own. ``ids`` are the
        row numbers for messages; without them, those of arrival.

        Raises:
            StageError: a row is longer than the stage allows, or shorter than 0; names it. Then none was taken in.
        """
        sizes = np.asarray(lengths, np.int64).reshape(len(lengths), len(self.stage.limits))
        _check_lengths(self.stage, sizes, range(self.arrived, self.arrived + len(sizes)) if ids is None else ids)
        rows, starts, stops = self._pieces(sizes)
        closed: list[list[Piece]] = []
        pieces = zip((rows + self.arrived).tolist(), starts.tolist(), *stops.T.tolist(), strict=True)
        self._bins.put((stops.T - starts).tolist(), pieces, closed)
        self.arrived += len(sizes)
        return self._packed(closed)

    def finish(self) -> Packed:
        """Return the packed rows that are still open, in order of opening; none is open then."""
        opened, self._bins = self._bins.opened(), _bins(self.stage)
        return self._packed(opened)

    @property
    def held(self) -> npt.NDArray[np.int64]:
        """The rows that are held back, rising."""
        return np.unique(self._packed(self._bins.opened()).rows)

    def state(self) -> dict[str, Any]:
        """Return what is held back: how many rows ``"arrived"``, and of every open ``"bins"`` its segments.

        A segment is ``(row, start, stop)``, with a stop for every leaf that has a length of its own. Fit for JSON.
        """
        return {"arrived": self.arrived, "bins": [segments.copy() for segments in self._bins.opened()]}

    @classmethod
    def restored(cls, stage: st.Pack, state: Mapping[str, Any]) -> Packer:
        """Return the packer that :meth:`state` was asked of, also after JSON.

        Raises:
            StateError: the state is damaged, or of another stage.
        """
        packer = cls(stage)
        packer.arrived, bins = _checked_state(stage, state)
        for segments in bins:
            sizes = [sum(piece[2 + leaf] - piece[1] for piece in segments) for leaf in range(len(stage.limits))]
            packer._bins.reopen(sizes, segments)
        return packer

    def _pieces(
        self, sizes: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return rows, starts and stops of the segments that rows make, in order; a row of length 0 makes none."""
        if self.stage.oversize != "split":
            rows = np.flatnonzero(sizes.any(axis=1))
            return rows, np.zeros(len(rows), np.int64), np.minimum(sizes[rows], self.stage.limits)
        length = self.stage.limits[0]
        counts = -(-sizes[:, 0] // length)
        rows = np.repeat(np.arange(len(sizes), dtype=np.int64), counts)
        starts = (np.arange(len(rows), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)) * length
        return rows, starts, np.minimum(starts[:, None] + length, sizes[rows])

    def _packed(self, closed: list[list[Piece]]) -> Packed:
        width = 2 + len(self.stage.limits)
        offsets = np.zeros(len(closed) + 1, np.int64)
        np.cumsum([len(segments) for segments in closed], out=offsets[1:])
        numbers = itertools.chain.from_iterable(itertools.chain.from_iterable(closed))
        flat = np.fromiter(numbers, np.int64, int(offsets[-1]) * width).reshape(-1, width)
        return Packed(offsets, flat[:, 0], flat[:, 1], flat[:, 2:])


def _bins(stage: st.Pack) -> Bins:
    return (BestFit if stage.method == "best_fit" else FirstFit)(stage.limits, stage.bins)


def _check_lengths(stage: st.Pack, sizes: npt.NDArray[np.int64], ids: Any) -> None:
    if sizes.min(initial=0) < 0:
        row = int(np.argmin(sizes.min(axis=1)))
        raise StageError(f"{stage.label}: row {ids[row]} has the length {sizes[row].min()}: it cannot be negative")
    if stage.oversize != "error":
        return
    over = sizes > np.array(stage.limits, np.int64)
    if over.any():
        row, leaf = (int(place) for place in np.argwhere(over)[0])
        name = "" if stage.leaves is None else f"{tree_.leaf_label(stage.leaves[leaf])} of "
        split = "" if stage.leaves is not None else ", or oversize='split'"
        raise StageError(
            f"{stage.label}: {name}row {ids[row]} is {sizes[row, leaf]} long, and a packed row has "
            f"{stage.limits[leaf]} places. Give a greater length, or oversize='truncate'{split}"
        )


def _checked_state(stage: st.Pack, state: Mapping[str, Any]) -> tuple[int, list[list[Piece]]]:
    """Return the rows that arrived and the open packed rows, after checking that there can be such.

    Raises:
        StateError: there cannot.
    """
    damaged = f"{stage.label}: the state is damaged, or of another stage: "
    mend = ". Use a state as it was saved, with the pipeline that it was saved of"
    try:
        arrived, bins = state["arrived"], [[tuple(piece) for piece in segments] for segments in state["bins"]]
    except (KeyError, TypeError) as exc:
        raise StateError(f"{damaged}it has no open rows{mend}") from exc
    numbers = [arrived, *itertools.chain.from_iterable(itertools.chain.from_iterable(bins))]
    width = 2 + len(stage.limits)
    if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers) or len(bins) > stage.bins:
        raise StateError(f"{damaged}it is not made of whole numbers, or has more than {stage.bins} open rows{mend}")
    for segments in bins:
        whole = segments and all(len(piece) == width for piece in segments)
        if not whole or any(piece[0] >= arrived or min(piece[2:]) < piece[1] for piece in segments):
            raise StateError(f"{damaged}a segment is not (row, start, stop) of a row before row {arrived}{mend}")
        if any(sum(piece[2 + leaf] - piece[1] for piece in segments) > most for leaf, most in enumerate(stage.limits)):
            raise StateError(f"{damaged}an open row has more than {stage.limits} places{mend}")
    return arrived, bins


def packed_lengths(
    stage: st.Pack, columns: Tree, items: Sequence[Tree] | None, ids: Any, after: str = ""
) -> npt.NDArray[np.int64]:
    """Return what :meth:`Packer.add` wants of columns (or of ``items``, single rows), at least one row.

    Raises:
        SchemaError: a leaf is a scalar, is not named by the stage, or differs in length from the others; names it.
    """
    found = column_lengths(columns) if items is None else item_lengths(items, ids, after)
    _check_leaves(stage, [path for path, lengths in found.items() if lengths is None], list(found))
    lengths = {path: one for path, one in found.items() if one is not None}
    if stage.leaves is None:
        return agreed(lengths, ids, stage.label, _MEND)
    return np.stack([lengths[leaf] for leaf in stage.leaves], axis=1)


def _check_leaves(stage: st.Pack, scalars: Sequence[str], paths: Sequence[str]) -> None:
    """Make sure that every leaf is a sequence, and that the stage names all or none."""
    if scalars:
        raise SchemaError(
            f"{stage.label}: {tree_.leaf_label(scalars[0])} is one value a row, and only sequences can be packed. "
            "Leave it out with drop(), or repeat it along the sequence in a map()"
        )
    if stage.leaves is None:
        return
    for leaf in stage.leaves:
        if leaf not in paths:
            raise MissingLeafError(
                f"{stage.label}: there is no leaf {leaf!r}{nearest(leaf, list(paths))} (there are: {', '.join(paths)})"
            )
    for path in paths:
        if path not in stage.leaves:
            raise SchemaError(
                f"{stage.label}: {tree_.leaf_label(path)} has no length. Name every leaf, or leave it out with drop()"
            )


def packed_schema(stage: st.Pack, schema: Tree) -> Tree:
    """Return the schema of packed rows, whose shapes are static.

    Raises:
        SchemaError: a leaf is a scalar, or is not named by the stage; names it.
    """
    leaves, treedef = tree_.flatten(schema)
    paths = tree_.paths(treedef)
    _check_leaves(stage, [path for path, spec in zip(paths, leaves, strict=True) if not spec.shape], paths)
    for index, path in enumerate(paths):
        leaves[index] = LeafSpec(leaves[index].dtype, (_length(stage, path), *leaves[index].shape[1:]))
    names = paths if stage.leaves is not None else None
    added = [LeafSpec(_INT32, (_length(stage, path),)) for path in names or paths[:1] for _ in range(2)]
    return _with_places(tree_.unflatten(treedef, leaves), names, added)


def _length(stage: st.Pack, path: str) -> int:
    return stage.limits[0] if stage.leaves is None else stage.limits[stage.leaves.index(path)]


def packed_columns(stage: st.Pack, columns: Tree, packed: Packed, ids: Any, after: str, lease: Lease) -> Tree:
    """Return columns of packed rows; no Python is run per row or segment.

    ``columns`` hold the rows that ``packed`` counts, and any number besides, which cost nothing: those of a whole
    source, say. ``ids``, their row numbers, and ``after``, which names the function that they come from, are for
    messages; ``lease`` says where columns are written to.

    Raises:
        SchemaError: leaves are not as the stage wants them; names the row, the leaf and the mend.
    """
    leaves, treedef = tree_.flatten(columns)
    paths = tree_.paths(treedef)
    _check_leaves(stage, [path for path, leaf in zip(paths, leaves, strict=True) if leaf.ndim < 2], paths)
    added: list[Any] = []
    seen: dict[str, npt.NDArray[np.int64]] = {}
    layout: _Layout | None = None
    for index, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
        if layout is None or stage.leaves is not None:
            column = 0 if stage.leaves is None else stage.leaves.index(path)
            layout = _Layout(packed, column, stage.limits[column])
            name = f"{path}_" if stage.leaves is not None else ""
            added += [layout.segment_ids(lease, name), layout.positions(lease, name)]
            seen.clear()
        values, begins, lengths = _extents(leaf, packed.rows)
        if seen and not np.array_equal(lengths, seen[paths[0]]):
            agreed({**seen, path: lengths}, [ids[row] for row in packed.rows.tolist()], stage.label, _MEND)  # says how
        seen = seen or {path: lengths}
        layout.check(lengths, path, ids, after)
        out = lease((path, "packed"), len(packed), native(leaf.dtype), (layout.length, *values.shape[1:]))
        layout.fill(values, begins, out, _fill(stage, path, out.dtype))
        leaves[index] = out
    return _with_places(tree_.unflatten(treedef, leaves), paths if stage.leaves is not None else None, added)


def _extents(
    leaf: Any, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the values of all rows end to end, and of some rows where they begin and how long they are."""
    if isinstance(leaf, Ragged):
        begins = leaf.offsets[rows]
        return leaf.values, begins, leaf.offsets[rows + 1] - begins
    count, length = leaf.shape[:2]
    return leaf.reshape(count * length, *leaf.shape[2:]), rows * length, np.full(len(rows), length, np.int64)


class _Layout:
    """Where the values of segments go in packed rows: runs that cover all places, in order.

    Each packed row has a run for every segment, and one of what is left behind them, which may be empty.
    """

    def __init__(self, packed: Packed, column: int, length: int) -> None:
        self.length, self._packed, self._column = length, packed, column
        counts, rows = np.diff(packed.offsets), len(packed)
        tails = packed.offsets[1:] + np.arange(rows)
        self._inner = np.ones(len(packed.rows) + rows, bool)
        self._inner[tails] = False
        sizes = packed.stops[:, column] - packed.starts
        self._runs = np.zeros(len(self._inner), np.int64)
        self._runs[self._inner] = sizes
        used = np.add.reduceat(sizes, packed.offsets[:-1]) if rows else np.zeros(0, np.int64)
        self._runs[tails] = length - used
        self._numbers = np.zeros(len(self._inner), np.int32)
        self._numbers[self._inner] = np.arange(1, len(sizes) + 1) - np.repeat(packed.offsets[:-1], counts)
        self._begins = np.cumsum(self._runs) - self._runs
        self._flat_ids = np.repeat(self._numbers, self._runs)
        self._empty = np.flatnonzero(self._flat_ids == 0)
        self._read: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def segment_ids(self, lease: Lease, name: str) -> npt.NDArray[Any]:
        """Return the number of the segment at every place, from 1 in each packed row; 0 behind them."""
        out = lease((f"{name}segment_ids", "packed"), len(self._packed), _INT32, (self.length,))
        out[...] = self._flat_ids.reshape(out.shape)
        return out

    def positions(self, lease: Lease, name: str) -> npt.NDArray[Any]:
        """Return the place within its segment of every place; 0 behind them."""
        out = lease((f"{name}positions", "packed"), len(self._packed), _INT32, (self.length,))
        flat = out.reshape(-1)
        dtype = np.int32 if out.size < 2**31 else np.int64  # half the bytes
        places, begins = np.arange(out.size, dtype=dtype), self._begins.astype(dtype)
        np.subtract(places, np.repeat(begins, self._runs), out=flat, casting="same_kind")
        flat[self._empty] = 0
        return out

    def check(self, lengths: npt.NDArray[np.int64], path: str, ids: Any, after: str) -> None:
        """Make sure that a leaf has the values that segments are of; ``lengths`` are those of each segment's row.

        Raises:
            SchemaError: a row is shorter than it was when it was packed.
        """
        stops = self._packed.stops[:, self._column]
        short = np.flatnonzero(stops > lengths)
        if len(short):
            place = int(short[0])
            row = ids[int(self._packed.rows[place])]
            raise SchemaError(
                f"row {row}: {tree_.leaf_label(path)} is {lengths[place]} long, but it was "
                f"packed as {stops[place]}{after}. Give the same length whenever a row is read"
            )

    def fill(self, values: npt.NDArray[Any], begins: npt.NDArray[np.int64], out: npt.NDArray[Any], fill: Any) -> None:
        """Write the values, of which those of each segment's row begin at ``begins``, and ``fill`` behind them."""
        if len(self._empty) == len(self._flat_ids):
            out[...] = fill
            return
        places = self._places(begins)
        flat = out.reshape(len(self._flat_ids), *out.shape[2:])
        if values.dtype == out.dtype:
            values.take(places, axis=0, out=flat, mode="clip")
        else:
            flat[...] = values.take(places, axis=0, mode="clip")
        flat[self._empty] = fill

    def _places(self, begins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where the value of every place comes from; leaves that begin alike share that."""
        if self._read is None or not np.array_equal(self._read[0], begins):
            shift = np.zeros(len(self._runs), np.int64)
            shift[self._inner] = begins + self._packed.starts - self._begins[self._inner]
            places = np.repeat(shift, self._runs)
            places += np.arange(len(places))
            self._read = begins, places
        return self._read[1]


def _fill(stage: st.Pack, path: str, dtype: np.dtype[Any]) -> Any:
    value = stage.value(path)
    try:
        fill = np.array(value).astype(dtype)
        fits = value == 0 or dtype.kind not in "biu" or int(fill) == value
    except (ValueError, TypeError, OverflowError):
        fits = False
    if not fits:
        raise SchemaError(
            f"pack(pad_value): {value!r} does not fit {tree_.leaf_label(path)}, which is {dtype.name}. Give a value by "
            f"leaf, pad_value={{{path!r}: ...}}, or cast the leaf before"
        )
    return fill


def _with_places(columns: Tree, names: Iterable[str] | None, added: Sequence[Any]) -> Tree:
    """Return columns with segment ids and positions added: keys of a dict, else a tuple's last parts."""
    if names is None and not isinstance(columns, dict):
        plain = isinstance(columns, tuple) and not hasattr(columns, "_fields")
        return (*columns, *added) if plain else (columns, *added)
    if not isinstance(columns, dict):
        raise SchemaError("pack() with a length by leaf adds leaves by name, so that rows must be dicts. Return dicts")
    keys = [f"{name}_{what}" if names else what for name in names or ("",) for what in ("segment_ids", "positions")]
    clash = set(keys) & set(columns)
    if clash:
        raise SchemaError(f"pack() adds a leaf {min(clash)!r}, but there is one: rename it before")
    return {**columns, **dict(zip(keys, added, strict=True))}
