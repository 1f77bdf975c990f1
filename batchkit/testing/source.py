"""What every source must do."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.schema import LeafSpec
from batchkit.sources import Source
from batchkit.testing.samples import assert_same_tree
from batchkit.tree import Tree

__all__ = ["SourceConformance"]


class SourceConformance:
    """Subclass it, override :meth:`make_source` and :meth:`expected_rows`, and pytest runs every check.

    The source must have at least three rows, and rows that differ.
    """

    def make_source(self) -> Source:
        """Return a new source over the same data at every call."""
        raise NotImplementedError("override make_source() to return your source")

    def expected_rows(self) -> Sequence[Tree]:
        """Return the rows of that source, read in the plainest way that there is."""
        raise NotImplementedError("override expected_rows() to return the list of rows")

    def test_len_is_the_number_of_rows(self) -> None:
        """``len(source)`` is the number of rows."""
        assert len(self.make_source()) == len(self.expected_rows())

    def test_schema_is_that_of_the_columns(self) -> None:
        """``schema`` has the nesting, dtypes and row shapes that ``gather`` returns."""
        source = self.make_source()
        specs, nesting = tree_.flatten(source.schema)
        columns, found = tree_.flatten(source.gather(_numbers(0, 1)))
        assert nesting == found
        for path, spec, column in zip(tree_.paths(nesting), specs, columns, strict=True):
            where = tree_.leaf_label(path)
            assert isinstance(spec, LeafSpec), f"{where}: the schema must be a tree of LeafSpec"
            assert _fits(spec, column), (
                f"{where}: the schema says {spec}, gather gives {column.dtype}{column.shape[1:]}"
            )

    def test_gather_follows_the_order_asked_for(self) -> None:
        """Row numbers in any order give the rows in that order."""
        count = len(self.expected_rows())
        self._check(self.make_source(), np.random.default_rng(0).permutation(count)[::-1].astype(np.int64))
        self._check(self.make_source(), np.arange(count, dtype=np.int64)[::-1])

    def test_gather_repeats_a_row(self) -> None:
        """A row number that is there twice gives the row twice."""
        self._check(self.make_source(), _numbers(0, 0, 1, 2, 2, 2))

    def test_gather_of_no_rows_is_empty(self) -> None:
        """No row numbers give columns of length 0, of the same dtypes and row shapes."""
        source = self.make_source()
        empty, nesting = tree_.flatten(source.gather(_numbers()))
        some, expected = tree_.flatten(source.gather(_numbers(0)))
        assert nesting == expected
        for got, column in zip(empty, some, strict=True):
            assert got.shape == (0, *column.shape[1:])
            assert got.dtype == column.dtype or column.dtype.kind in "US"

    def test_gather_fills_out_in_place(self) -> None:
        """``out=`` is filled and returned; nothing else is allocated for the caller."""
        source, rows = self.make_source(), _numbers(0, 1, 2)
        expected = source.gather(rows)
        out = tree_.map_leaves(np.empty_like, expected)
        places = tree_.flatten(out)[0]
        given = source.gather(rows, out)
        for place, leaf in zip(places, tree_.flatten(given)[0], strict=True):
            assert leaf is place, "gather(rows, out) must return the columns of out"
        assert_same_tree(tree_.unflatten(tree_.flatten(out)[1], places), expected, "gather(rows, out)")

    def test_fingerprint_stays_the_same(self) -> None:
        """Reading does not change the fingerprint."""
        source = self.make_source()
        before = source.fingerprint()
        source.gather(_numbers(1, 0))
        assert source.fingerprint() == before
        assert isinstance(before, str)

    def test_equal_sources_have_equal_fingerprints(self) -> None:
        """Two sources over the same data have one fingerprint: a state of one is valid for the other."""
        assert self.make_source().fingerprint() == self.make_source().fingerprint()

    def test_a_pickled_copy_reads_the_same(self) -> None:
        """A copy that went through cloudpickle, as to a worker process, reads the same rows."""
        self._check(cloudpickle.loads(cloudpickle.dumps(self.make_source())), _numbers(0, 1, 2))

    def test_gather_from_several_threads(self) -> None:
        """Four threads that read different rows at once get their own rows."""
        source, count = self.make_source(), len(self.expected_rows())
        requests = [_numbers(number % count) for number in range(24)]
        with ThreadPoolExecutor(4) as pool:
            for got, rows in zip(pool.map(source.gather, requests), requests, strict=True):
                self._compare(got, rows)

    def test_columns_are_the_callers_own(self) -> None:
        """Writing into a gathered column changes nothing in the source."""
        source = self.make_source()
        rows = np.arange(len(self.expected_rows()), dtype=np.int64)
        for column in tree_.flatten(source.gather(rows))[0]:
            assert column.flags.writeable, "gather must return memory that the caller may write to"
            column[...] = np.zeros((), column.dtype)
        self._compare(source.gather(rows), rows)

    def _check(self, source: Source, rows: npt.NDArray[np.int64]) -> None:
        self._compare(source.gather(rows), rows)

    def _compare(self, columns: Tree, rows: npt.NDArray[np.int64]) -> None:
        expected = self.expected_rows()
        leaves, nesting = tree_.flatten(columns)
        for leaf in leaves:
            assert len(leaf) == len(rows), f"{len(rows)} rows were asked for, and {len(leaf)} came"
        for place, row in enumerate(rows.tolist()):
            got = tree_.unflatten(nesting, [leaf[place] for leaf in leaves])
            assert_same_tree(got, _as_arrays(expected[row], nesting, leaves), f"row {row}")


def _numbers(*rows: int) -> npt.NDArray[np.int64]:
    return np.array(rows, np.int64)


def _fits(spec: LeafSpec, column: npt.NDArray[Any]) -> bool:
    sides = zip(spec.shape, column.shape[1:], strict=False)
    shape_fits = len(spec.shape) == column.ndim - 1 and all(side in (None, length) for side, length in sides)
    # A text dtype without a size means any length.
    return shape_fits and (
        spec.dtype == column.dtype or (spec.dtype.kind == column.dtype.kind and spec.dtype.kind in "US")
    )


def _as_arrays(row: Tree, nesting: tree_.TreeDef, columns: Sequence[npt.NDArray[Any]]) -> Tree:
    """Return a row whose Python numbers are of the columns' dtypes."""
    leaves, own = tree_.flatten(row)
    if own != nesting:
        return row
    return tree_.unflatten(
        own,
        [
            leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf, c.dtype)
            for leaf, c in zip(leaves, columns, strict=True)
        ],
    )
