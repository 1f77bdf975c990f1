"""Restoring at every step."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

import batchkit as bk
from batchkit import tree as tree_
from batchkit.testing.samples import assert_same_tree
from batchkit.tree import Tree

__all__ = ["check_resume"]


def check_resume(
    pipe: bk.Pipeline,
    *,
    batches: int | None = None,
    ahead: int = 2,
    to_numpy: Callable[[Any], Any] = np.asarray,
    **options: Any,
) -> None:
    """Fail unless a new loader, restored at any step of the first epoch, gives the rest that an uninterrupted one does.

    The rest is that of the epoch and the first batches of the one after it, byte for byte; each
    state goes through JSON. Restoring starts before the first batch and ends after StopIteration.

    Args:
        pipe: the pipeline; give ``batches`` if its epoch is endless.
        batches: look at so many batches of the epoch only.
        ahead: how many batches of the next epoch are compared.
        to_numpy: turns one of the backend's arrays into a NumPy array.
        options: what the :class:`~batchkit.Loader` is made with.

    Raises:
        AssertionError: names the step at which restoring went wrong, and the first batch that differs.
    """

    def frozen(batch: Tree) -> Tree:
        return tree_.map_leaves(lambda leaf: np.array(to_numpy(leaf)), batch)

    with bk.Loader(pipe, **options) as loader:
        states = [_through_json(loader)]
        run = []
        for batch in itertools.islice(iter(loader), batches):
            run.append(frozen(batch))
            states.append(_through_json(loader))
        whole = batches is None or len(run) < batches
        following = []
        if whole:
            states.append(_through_json(loader))
            following = [frozen(batch) for batch in itertools.islice(iter(loader), ahead)]

    for taken, state in enumerate(states):
        when = f"restored after batch {taken} of {len(run)}" if taken <= len(run) else "restored after the epoch's end"
        with bk.Loader(pipe, **options) as again:
            again.load_state_dict(state)
            rest, expected = list(run[taken:]), list(run[taken:])
            if rest:
                rest = [frozen(batch) for batch in itertools.islice(iter(again), None if whole else len(rest))]
            _compare(rest, expected, when, "the rest of the epoch")
            if whole:
                then = [frozen(batch) for batch in itertools.islice(iter(again), len(following))]
                _compare(then, following, when, "the next epoch")


def _through_json(loader: bk.Loader) -> Any:
    return json.loads(json.dumps(loader.state_dict()))


def _compare(got: list[Tree], expected: list[Tree], when: str, what: str) -> None:
    assert len(got) == len(expected), f"{when}, {what} has {len(got)} batches and should have {len(expected)}"
    for number, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        assert_same_tree(mine, theirs, f"{when}, {what}, batch {number}")
