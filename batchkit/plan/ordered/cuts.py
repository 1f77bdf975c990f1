"""What cuts rows into windows and batches in order, and takes batches apart."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

import numpy as np

from batchkit import stages as st
from batchkit.padding import fresh
from batchkit.plan.numbered.batches import pad_columns
from batchkit.plan.ordered.barren import Barren, PassRows, pass_rows
from batchkit.plan.ordered.walks import Cut, Feeds, Flow, State, Walk, pull_rows
from batchkit.plan.rows.calls import Call, Rows
from batchkit.plan.rows.cutting import cut_rows
from batchkit.plan.rows.joining import joined
from batchkit.plan.rows.rowwise import call_batches, window_padded

__all__ = ["BatchCallsFlow", "CutFlow", "UncutFlow", "WindowFlow", "stacked"]


class WindowFlow:
    """Rows each of which is a run of rows."""

    batched = False

    def __init__(self, before: Flow, stage: st.Window, after: str) -> None:
        self.before, self.stage, self.after = before, stage, after

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Windows(self, epoch, state, feeds)


class _Windows:
    """State: where the walk before stood in front of the oldest run needed, and how many of its rows are not."""

    PULLED = 256

    def __init__(self, flow: WindowFlow, epoch: int, state: State, feeds: Feeds) -> None:
        self._flow, self._stage = flow, flow.stage
        began, offset = state or (None, 0)
        self._offset: int = offset
        self._before = flow.before.walk(epoch, began, feeds)
        self._runs: deque[tuple[State, Rows]] = deque()
        self._have = 0

    def pull(self, most: int) -> Rows | None:
        windows: list[Rows] = []
        while len(windows) < most:
            window = self._window()
            if window is None:
                break
            windows.append(window)
        return joined(windows) if windows else None

    def _window(self) -> Rows | None:
        stage = self._stage
        while self._have < self._offset + stage.length:
            began, rows = self._before.state(), self._before.pull(self.PULLED)
            if rows is None:
                break
            self._runs.append((began, rows))
            self._have += len(rows)
        count = min(self._have - self._offset, stage.length)
        if count <= 0 or (count < stage.length and stage.remainder == "drop"):
            return None
        rows = joined([rows for _, rows in self._runs]).part(self._offset, self._offset + count)
        window = cut_rows(_STACK, rows, self._flow.after, fresh).columns
        self._offset += stage.step
        while len(self._runs) > 1 and self._offset >= len(self._runs[0][1]):
            passed = len(self._runs.popleft()[1])
            self._offset, self._have = self._offset - passed, self._have - passed
        origins = None if rows.origins is None else rows.origins.grouped(np.array([count]))
        return Rows(rows.ids[:1], rows.epoch_of(0), items=[window_padded(window, stage, count)], origins=origins)

    def state(self) -> State:
        return (self._runs[0][0] if self._runs else self._before.state(), self._offset)

    def close(self) -> None:
        self._before.close()


_STACK = st.Batch(1)


class CutFlow:
    """Rows cut into batches. With ``stacks`` the batches are finished here, for stages on batches that follow."""

    batched = True

    def __init__(self, before: Flow, stage: st.Batch, after: str, stacks: bool) -> None:
        self.before, self.stage, self.after, self.stacks = before, stage, after, stacks

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Cut(self, self.before.walk(epoch, state, feeds))


class _Cut:
    def __init__(self, flow: CutFlow, before: Walk) -> None:
        self._flow, self._before = flow, before
        self.state, self.close = before.state, before.close

    def pull(self, most: int) -> Cut | None:
        stage = self._flow.stage
        parts = pull_rows(self._before, stage.size)
        have = sum(map(len, parts))
        if not have or (have < stage.size and stage.remainder == "drop"):
            return None
        rows = dataclasses.replace(joined(parts), at=None)  # nobody asks for it any more: a step is not to carry it
        cut = Cut(rows, stage.size if stage.remainder == "pad" else None)
        return stacked(cut, stage, self._flow.after) if self._flow.stacks else cut


def stacked(cut: Cut, stage: st.Batch, after: str) -> Cut:
    """Return a batch with its rows put into columns, and padded."""
    whole = cut_rows(stage, cut.rows, after, fresh)
    return Cut(whole if cut.size is None else pad_columns(whole, cut.size), None, cut.group)


class BatchCallsFlow:
    """Functions on batches in front of an ``unbatch``, which have to run before what follows can be cut."""

    batched = True

    def __init__(self, before: Flow, calls: Sequence[Call]) -> None:
        self.before, self.calls = before, tuple(calls)

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _BatchCalls(self.calls, self.before.walk(epoch, state, feeds))


class _BatchCalls:
    def __init__(self, calls: Sequence[Call], before: Walk) -> None:
        self._calls, self._before = calls, before
        self.state, self.close = before.state, before.close

    def pull(self, most: int) -> Cut | None:
        cut = self._before.pull(1)
        return None if cut is None else Cut(call_batches(cut.rows, self._calls), cut.size, cut.group)


class UncutFlow:
    """Batches taken apart into rows."""

    batched = False

    def __init__(self, before: Flow) -> None:
        self.before = before

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Uncut(self, epoch, state, feeds)


class _Uncut:
    """State: where the walk before stood in front of the batch, and how many of its rows were pulled."""

    def __init__(self, flow: UncutFlow, epoch: int, state: State, feeds: Feeds) -> None:
        began, drop = state or (None, 0)
        self._drop: int = drop
        self._before = flow.before.walk(epoch, began, feeds)
        self._began = self._before.state()
        self._rows: Rows | None = None
        self._offset = 0
        self._barren, self._passes = Barren("a filter on batches"), PassRows()

    def pull(self, most: int) -> Rows | None:
        while self._rows is None or self._offset >= len(self._rows):
            self._began = self._before.state()
            cut = self._before.pull(1)
            if cut is None:
                self._rows = None
                return None
            self._rows, self._offset, self._drop = cut.rows, self._drop, 0
            of_pass, have = pass_rows(self._before), len(self._rows)
            self._passes.count(of_pass, 1, have)
            self._barren.count(of_pass, 1, have, "left nothing of {} batches in a row")
        start, self._offset = self._offset, min(self._offset + most, len(self._rows))
        return self._rows.part(start, self._offset)

    def pass_rows(self) -> int | None:
        return self._passes.most

    def state(self) -> State:
        if self._rows is None:
            return (self._began, self._drop)
        return (self._began, self._offset)

    def close(self) -> None:
        self._before.close()
