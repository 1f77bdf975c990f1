"""Whether a batch looks like the first one: the same leaves, dtypes and, where rows are stacked, row shapes."""

from __future__ import annotations

from typing import Any

from batchkit import tree as tree_
from batchkit.casting import alike_mend
from batchkit.errors import SchemaError
from batchkit.schema import LeafSpec, spec_of
from batchkit.tree import Tree

__all__ = ["Likeness"]


class Likeness:
    """What the first delivered batch of a pipeline with functions looks like; later ones must, too."""

    def __init__(self, host: Tree, at: tuple[int, int], varies: bool = False, collated: bool = False) -> None:
        leaves, self._treedef = tree_.flatten(host)
        self._varies = varies  # rows of one batch are alike, but not those of two
        self._collated = collated  # a function has made the batch, of any shape
        self._signature = self._signed(leaves)
        self._specs = [spec_of(leaf) for leaf in leaves]
        self._at = at

    def check(self, host: Tree, at: tuple[int, int], after: str) -> None:
        """Compare a batch of (epoch, step) ``at``; ``after`` names the last function for the message.

        Raises:
            SchemaError: it has other leaves or dtypes, or other row shapes where rows are stacked; names the leaf,
                both, and the mend.
        """
        leaves, treedef = tree_.flatten(host)
        if treedef == self._treedef and self._signed(leaves) == self._signature:
            return
        where = f"epoch {at[0]}, step {at[1]}"
        first = f"in epoch {self._at[0]}, step {self._at[1]}"
        if treedef != self._treedef:
            have, had = (", ".join(tree_.paths(each)) for each in (treedef, self._treedef))
            raise SchemaError(
                f"{where}: the batch has the leaves ({have}), but {first} it had ({had}){after}. "
                "Return the same structure for every row and batch"
            )
        for path, leaf, then_spec in zip(tree_.paths(treedef), leaves, self._specs, strict=True):
            now_spec = spec_of(leaf)
            unlike = now_spec.shape[1:] != then_spec.shape[1:]
            if self._varies:
                unlike = len(now_spec.shape) != len(then_spec.shape)
            if self._collated:
                unlike, now_spec, then_spec = False, LeafSpec(now_spec.dtype, ()), LeafSpec(then_spec.dtype, ())
            if now_spec.dtype != then_spec.dtype or unlike:
                label, now, then = tree_.leaf_label(path), _row(now_spec), _row(then_spec)
                mend = _mend(path, now_spec, then_spec)
                raise SchemaError(f"{where}: {label} is {now}, but {first} it was {then}{after}. {mend}")

    def _signed(self, leaves: list[Any]) -> Any:
        dtypes = [leaf.dtype.kind if leaf.dtype.kind in "US" else leaf.dtype for leaf in leaves]
        if self._collated:
            return dtypes
        return [
            (dtype, leaf.ndim if self._varies else leaf.shape[1:]) for dtype, leaf in zip(dtypes, leaves, strict=True)
        ]


def _row(spec: LeafSpec) -> LeafSpec:
    return LeafSpec(spec.dtype, spec.shape[1:])


def _mend(path: str, now: LeafSpec, then: LeafSpec) -> str:
    if now.shape[1:] != then.shape[1:]:
        return "Bring all rows to one shape (pad or crop them) in a map() before batch()"
    return alike_mend(path, then.dtype, now.dtype)
