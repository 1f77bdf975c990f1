"""The Source protocol: data that can be read by row number."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import PipelineTypeError
from batchkit.schema import LeafSpec
from batchkit.tree import Tree

__all__ = ["RowReader", "Source", "checked_schema"]


@runtime_checkable
class Source(Protocol):
    """Data with a known number of rows, any of which can be read at any time.

    All methods may be called from several threads.
    """

    @property
    def schema(self) -> Tree:
        """The :class:`~batchkit.schema.LeafSpec` of every leaf of one row."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def fingerprint(self) -> str:
        """Return a short text that differs when the data differ; the same in every process."""
        ...

    def gather(self, rows: npt.NDArray[np.int64], out: Tree | None = None) -> Tree:
        """Return the columns of ``rows``: the row's nesting, each leaf of shape ``(len(rows), ...)``.

        ``rows`` may be in any order and hold a number twice; each is in ``range(len(self))``.
        ``out``, if given, is a tree of preallocated columns of the schema's dtypes: fill it
        and return it. Never return a view of the source's own memory.
        """
        ...


@runtime_checkable
class RowReader(Protocol):
    """A source that has its rows one by one, so that rows of varying shape can be read, too."""

    def read(self, rows: npt.NDArray[np.int64]) -> list[Any]:
        """Return one tree a row."""
        ...


def checked_schema(source: Source) -> Tree:
    """Return the schema of a source of somebody's own.

    Raises:
        PipelineTypeError: a leaf of it is no LeafSpec; names source and leaf.
    """
    schema = source.schema
    specs, treedef = tree_.flatten(schema)
    for path, spec in zip(tree_.paths(treedef), specs, strict=True):
        if not isinstance(spec, LeafSpec):
            raise PipelineTypeError(
                f"{type(source).__name__}.schema: {tree_.leaf_label(path)} is {spec!r}, not a LeafSpec. Say dtype and "
                "shape of one row: bk.LeafSpec(np.dtype('int64'), ())"
            )
    return schema
