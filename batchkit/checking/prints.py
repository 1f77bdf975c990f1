"""The print of a row: a few bytes that stand for all of its leaves, wherever in a pipeline it is.

Rows are replaced by their prints at one place of the pipeline, and what follows (orders, cuts) is kept, so that
the same rows come at the same steps whatever place is looked at, and two runs are compared by a few bytes a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import stages as st
from batchkit import tree as tree_
from batchkit.pipeline import Pipeline
from batchkit.ragged import Ragged
from batchkit.tree import Tree

__all__ = ["Print", "printed", "read_print"]

LEAVES = 32
"""How many leaves have a print of their own; the last one stands for all further ones."""
BYTES = 16
NAMES = 1024
"""How many bytes the names of the leaves may take."""
ROWS = 32  # of a batch, where the pipeline cuts none


@dataclass(frozen=True, eq=False)
class Print:
    """The prints of the rows of one batch: uint8 of shape (rows, 1 + leaves, bytes); one where a function has made it.

    First the structure (names, dtypes, shapes), then the leaves one by one.
    """

    rows: npt.NDArray[np.uint8]
    leaves: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, start: int, stop: int | None) -> Print:
        """Return the print of some of the rows."""
        return Print(self.rows[start:stop], self.leaves)


def printed(pipeline: Pipeline, place: int) -> Pipeline:
    """Return the pipeline with its rows replaced by their prints behind the first ``place`` stages.

    Of the stages after it those are kept that say which rows come and in what order. From a stage on whose output
    depends on what is in the rows, nothing is kept.
    """
    before = Pipeline(pipeline.source, pipeline.stages[:place])
    pipe = before.map(_batch_print if before.collated else _columns_print if before.batched else _row_print)
    size = next((stage.size for stage in pipeline.stages if isinstance(stage, st.Batch)), ROWS)
    for stage in pipeline.stages[place:]:
        if isinstance(stage, st.RandomMap):  # those behind it are numbered by it
            pipe = pipe.random_map(_same)
        elif type(stage) is st.Map or isinstance(stage, st.ColumnStage):
            continue
        elif isinstance(stage, st.Batch):
            pipe = pipe.batch(stage.size, remainder=stage.remainder)
        elif isinstance(stage, (st.OrderStage, st.Unbatch)):
            pipe = pipe.apply(stage)
        elif isinstance(stage, st.Cache):  # said when it was described: what it freezes
            pipe = Pipeline(pipe.source, (*pipe.stages, stage))
        else:
            break
    return pipe if pipe.batched else pipe.batch(size)


def read_print(batch: Tree) -> Print:
    """Return the print that a batch of :func:`printed` holds."""
    marks, names = batch[0], batch[1]
    text = next((bytes(row).rstrip(b"\0") for row in names if row.any()), b"")
    return Print(np.array(marks), tuple(text.decode("utf-8", "replace").split("\n")))


def _same(rows: Tree, rng: Any) -> Tree:
    return rows


def _row_print(row: Tree) -> Tree:
    leaves, treedef = tree_.flatten(row)
    paths = tree_.paths(treedef)
    marks = np.zeros((1 + LEAVES, BYTES), np.uint8)
    marks[0] = _digest([f"{path}|{_kind(leaf)}".encode() for path, leaf in zip(paths, leaves, strict=True)])
    _mark(marks, [_content(leaf) for leaf in leaves])
    return marks, _names(paths)


def _batch_print(batch: Tree) -> Tree:
    """Return the print of a batch that a function has made: it has no rows, so that it is one as a whole."""
    marks, names = _row_print(batch)
    return marks[None], names[None]


def _columns_print(columns: Tree) -> Tree:
    leaves, treedef = tree_.flatten(columns)
    paths = tree_.paths(treedef)
    count = len(leaves[0]) if leaves else 0
    marks = np.zeros((count, 1 + LEAVES, BYTES), np.uint8)
    for place in range(count):
        row = [leaf[place] for leaf in leaves]
        marks[place, 0] = _digest([f"{path}|{_kind(leaf)}".encode() for path, leaf in zip(paths, row, strict=True)])
        _mark(marks[place], [_content(leaf) for leaf in row])
    return marks, np.tile(_names(paths), (count, 1))


def _mark(marks: npt.NDArray[np.uint8], contents: Sequence[bytes]) -> None:
    for number, content in enumerate(contents[: LEAVES - 1]):
        marks[1 + number] = _digest([content])
    if len(contents) >= LEAVES:
        marks[LEAVES] = _digest(contents[LEAVES - 1 :])


def _digest(parts: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    digest = hashlib.blake2b(digest_size=BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return np.frombuffer(digest.digest(), np.uint8)


def _names(paths: Sequence[str]) -> npt.NDArray[np.uint8]:
    text = "\n".join(paths).encode()[:NAMES]
    return np.frombuffer(text.ljust(NAMES, b"\0"), np.uint8).copy()


def _kind(leaf: Any) -> str:
    """Return dtype and shape; without the width of text, which depends on the other rows."""
    if isinstance(leaf, Ragged):
        return f"ragged {leaf.dtype}"
    if isinstance(leaf, (np.ndarray, np.generic)):
        return f"{leaf.dtype.kind if leaf.dtype.kind in 'OSTU' else leaf.dtype.str}{list(leaf.shape)}"
    return type(leaf).__qualname__


def _content(leaf: Any) -> bytes:
    """Return the bytes of a leaf; none for an object of which they are not known."""
    if isinstance(leaf, list):
        return b"".join(_content(item) for item in leaf)
    if isinstance(leaf, Ragged):
        return leaf.values.tobytes() + leaf.offsets.tobytes()
    if isinstance(leaf, (np.ndarray, np.generic)):
        if leaf.dtype.kind in "OSTU":
            return b"".join(_content(item) for item in np.ravel(leaf).tolist())
        return leaf.tobytes()
    if isinstance(leaf, (str, bytes, int, float, complex, type(None))):
        text = (
            leaf
            if isinstance(leaf, bytes)
            else (leaf if isinstance(leaf, str) else repr(leaf)).encode("utf-8", "surrogatepass")
        )
        return len(text).to_bytes(8, "little") + text
    bytes_of = getattr(leaf, "tobytes", None)  # pictures of PIL, tensors
    found = bytes_of() if callable(bytes_of) else b""
    return found if isinstance(found, bytes) else b""
