"""Counting references is exact in cold and in hot code, and whichever thread lets a column go."""

from __future__ import annotations

import ast
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchkit as bk
from batchkit.buffers import Slots
from batchkit.plan.rows.ownership import owned

FLOAT = np.dtype(np.float32)
INT = np.dtype(np.int64)


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_an_array_of_the_functions_own_is_told_from_anybody_elses_after_many_calls() -> None:
    table = np.arange(4.0)
    for _ in range(20_000):
        mine = [np.empty(2)]
        at = address(mine[0])
        owned(mine, set())
        assert address(mine[0]) == at
        theirs = [table]
        owned(theirs, set())
        assert theirs[0] is not table
        views = [table[:1]]
        owned(views, set())
        assert not np.shares_memory(views[0], table)


def test_a_column_that_is_let_go_is_used_again_after_many_leases() -> None:
    slots = Slots(bk.NumpyBackend())
    assert len({address(slots.column("x", 4, FLOAT, (3,))) for _ in range(20_000)}) == 1


def test_columns_that_other_threads_let_go_are_never_filled_before() -> None:
    slots, given = Slots(bk.NumpyBackend()), queue.Queue[tuple[int, Any]]()
    seen: set[int] = set()
    changed: list[int] = []

    def lease(number: int) -> None:
        for step in range(3000):
            column = slots.column("x", 16, INT, ())
            column[:] = number * 10_000 + step
            seen.add(address(column))
            given.put((number * 10_000 + step, column))
            del column

    def let_go() -> None:
        while True:
            value, column = given.get()
            if column is None:
                return
            if not (column == value).all():
                changed.append(value)
            del column

    threads = [threading.Thread(target=lease, args=(number,)) for number in range(3)]
    others = [threading.Thread(target=let_go) for _ in range(2)]
    for thread in threads + others:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in others:
        given.put((0, None))
    for thread in others:
        thread.join()
    assert changed == []
    assert {address(slots.column("x", 16, INT, ())) for _ in range(5000)} & seen


@pytest.mark.parametrize(
    ("file", "counted"),
    [
        ("buffers.py", "entry[0]"),
        ("executors/pieces.py", "self.memory"),
        ("executors/arena.py", "self.root"),
        ("plan/rows/ownership.py", "root"),
        ("sources/sharing.py", "root"),
    ],
)
def test_a_count_is_compared_with_one_of_the_same_expression(file: str, counted: str) -> None:
    """Interpreters differ in which references an expression itself adds."""
    tree = ast.parse((Path(bk.__file__).parent / file).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = {ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func).endswith("getrefcount")}
    assert found == {counted}
