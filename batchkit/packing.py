"""Sequences put end to end into rows of one length: which of them go where, and the columns that they make."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.bins import BestFit, Bins, FirstFit, Piece
from batchkit.casting import fill_value
from batchkit.errors import SchemaError, StageError, StateError
from batchkit.layouts import INT32, Layout, Packed
from batchkit.lengths import agreed, column_lengths, item_lengths
from batchkit.ragged import Ragged
from batchkit.schema import LeafSpec, native
from batchkit.sources.stacking import Lease
from batchkit.tree import Tree

__all__ = ["Packed", "Packer", "packed_columns", "packed_lengths", "packed_schema"]

_MEND = "All leaves of a row go together: drop one of them, or give a length by leaf, pack({...})"


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
    """Make sure that every leaf is a sequence, that the stage names all or none, and none that is not there."""
    if scalars:
        raise SchemaError(
            f"{stage.label}: {tree_.leaf_label(scalars[0])} is one value a row, and only sequences can be packed. "
            "Leave it out with drop(), or repeat it along the sequence in a map()"
        )
    stage.check_leaves(paths)
    if stage.leaves is None:
        return
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
    added = [LeafSpec(INT32, (_length(stage, path),)) for path in names or paths[:1] for _ in range(2)]
    return _with_places(tree_.unflatten(treedef, leaves), names, added)


def _length(stage: st.Pack, path: str) -> int:
    return stage.limits[0] if stage.leaves is None else stage.limits[stage.leaves.index(path)]


def packed_columns(stage: st.Pack, columns: Tree, packed: Packed, ids: Any, after: str, lease: Lease) -> Tree:
    """Return columns of packed rows.

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
    layout: Layout | None = None
    for index, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
        if layout is None or stage.leaves is not None:
            column = 0 if stage.leaves is None else stage.leaves.index(path)
            layout = Layout(packed, column, stage.limits[column])
            name = f"{path}_" if stage.leaves is not None else ""
            added += [layout.segment_ids(lease, name), layout.positions(lease, name)]
            seen.clear()
        values, begins, lengths = _extents(leaf, packed.rows)
        if seen and not np.array_equal(lengths, seen[paths[0]]):
            agreed({**seen, path: lengths}, [ids[row] for row in packed.rows.tolist()], stage.label, _MEND)  # says how
        seen = seen or {path: lengths}
        layout.check(lengths, path, ids, after)
        out = lease((path, "packed"), len(packed), native(leaf.dtype), (layout.length, *values.shape[1:]))
        layout.fill(values, begins, out, fill_value(stage.value(path), out.dtype, path, "pack"))
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
