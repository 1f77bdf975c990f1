"""Caches behind stages that are cut in order: what comes is kept under its number, counted from the beginning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from batchkit.caching import Runs
from batchkit.errors import StateError
from batchkit.plan.numbered.passes import Passes
from batchkit.plan.ordered.walks import Cut, Feeds, Flow, State, Walk
from batchkit.plan.rows.calls import Rows
from batchkit.plan.rows.joining import joined
from batchkit.plan.rows.recording import naming, recorded_batch, recorded_rows, restored_batch, restored_rows

__all__ = ["FinishedFlow", "KeptBatchesFlow", "KeptRowsFlow", "kept_flows"]


class KeptRowsFlow:
    """Rows that are computed once. Their addresses are kept with them, so that what is random behind stays so.

    ``by_item``: whether they come as one tree a row also where all are alike.
    """

    batched = False
    MOST = 1024
    """How many rows are looked up, or computed and kept, together."""

    def __init__(self, before: Flow, where: str, passes: Passes, by_item: bool, runs: Callable[[], Runs]) -> None:
        self.before, self.where, self.passes, self.runs = before, where, passes, runs
        self._by_item = by_item

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Kept(self, epoch, state, feeds)

    def found(self, runs: Runs, number: int, most: int) -> Rows | None:
        """Return rows that were kept, from ``number`` on."""
        found = runs.take(number, most)
        return None if found is None else restored_rows(*found, self._by_item)

    def kept(self, runs: Runs, number: int, rows: Rows, state: Callable[[], State]) -> Rows:
        """Keep rows, and return them as if they had been kept before."""
        with naming(self.where):
            record = recorded_rows(rows, self.where)
            if runs.accepts:
                runs.append(number, len(rows), *record, state())
        restored = restored_rows(*record, self._by_item)
        restored.origins = rows.origins
        return restored

    @staticmethod
    def size(rows: Rows) -> int:
        """Return how many numbers rows take."""
        return len(rows)

    def given(self, parts: list[Rows], epoch: int) -> Rows:
        """Return rows as those of an epoch."""
        rows = joined(parts)
        rows.epochs = self.passes.later(rows.epochs, rows.ids, epoch)
        return rows


class KeptBatchesFlow:
    """Batches that are computed once."""

    batched = True
    MOST = 1

    def __init__(self, before: Flow, where: str, passes: Passes, runs: Callable[[], Runs]) -> None:
        self.before, self.where, self.passes, self.runs = before, where, passes, runs

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Kept(self, epoch, state, feeds)

    def found(self, runs: Runs, number: int, most: int) -> Cut | None:
        """Return a batch that was kept."""
        found = runs.take(number, 1)
        return None if found is None else Cut(restored_batch(*found))

    def kept(self, runs: Runs, number: int, cut: Cut, state: Callable[[], State]) -> Cut:
        """Keep a batch, and return it as if it had been kept before."""
        rows = cut.rows
        if rows.subs is None:  # a batch of rows none of which is the second of its source row is kept like others
            rows = dataclasses.replace(rows, subs=np.zeros_like(rows.ids))
        with naming(self.where):
            record = recorded_batch(rows)
            if runs.accepts:
                runs.append(number, 1, *record, state())
        restored = restored_batch(*record)
        restored.origins = rows.origins
        return Cut(restored)

    @staticmethod
    def size(cut: Cut) -> int:
        """Return how many numbers a batch takes."""
        return 1

    def given(self, parts: list[Cut], epoch: int) -> Cut:
        """Return a batch as one of an epoch."""
        rows = parts[0].rows
        rows.epochs = self.passes.later(rows.epochs, rows.ids, epoch)
        return Cut(rows, shared=True)


class _Kept:
    """State: the number of what comes next, whatever is kept.

    What is kept is served. At the first number that is not, the walk before is gone through from where the cache
    had got to, or else from the beginning, and keeps on to the end of the pass.
    """

    def __init__(self, flow: Any, epoch: int, state: State, feeds: Feeds) -> None:
        if state is not None and (type(state) is not int or state < 0):
            raise TypeError(f"{state!r} is no number of a row")
        self._flow, self._epoch, self._feeds = flow, epoch, feeds
        self._number: int = state or 0
        self._walk: Walk | None = None
        self._at = 0
        self._gaps = False
        """Whether the walk only fills gaps: behind them all was kept once."""

    def pull(self, most: int) -> Any:
        # As many as are asked for, whatever they were kept by: what comes behind counts the runs that it is given.
        wanted = min(most, self._flow.MOST)
        parts: list[Any] = []
        have = 0
        while have < wanted:
            part = self._next(self._number + have, wanted - have)
            if part is None:
                break
            parts.append(part)
            have += self._flow.size(part)
        self._number += have
        return self._flow.given(parts, self._epoch) if parts else None

    def _next(self, number: int, most: int) -> Any:
        runs = self._flow.runs()
        if self._walk is None or self._gaps:
            found = self._flow.found(runs, number, most)
            if found is not None:
                return found
            reached = runs.reached
            if reached.rows is not None and number >= reached.rows:
                self._check_end(number, reached.rows)
                return None
            if self._walk is None:
                self._gaps = reached.complete
                self._at, began = (reached.number, reached.state) if reached.number <= number else (0, None)
                # The first epoch is kept for all.
                self._walk = self._flow.before.walk(0, began, self._feeds)
        # A walk that was begun goes on, wherever others have got to: another one may have to pull all again.
        try:
            return self._walked(self._walk, runs, number, most)
        except BaseException:
            # What failed is tried again: behind it nothing would have the right number.
            self._walk.close()
            self._walk = None
            raise

    def _walked(self, walk: Walk, runs: Runs, number: int, most: int) -> Any:
        """Return what comes with a number; what comes before it is kept as well."""
        while True:
            before = number - self._at
            pulled = walk.pull(min(before, self._flow.MOST) if before > 0 else most)
            if pulled is None:
                runs.end(self._at)
                self._check_end(number, self._at)
                return None
            kept = self._flow.kept(runs, self._at, pulled, walk.state)
            self._at += self._flow.size(pulled)
            if before <= 0:
                return kept

    def _check_end(self, number: int, rows: int) -> None:
        if number > rows:
            raise StateError(
                f"{self._flow.where}: number {number} is asked for, but there are only {rows}: the data or a function "
                "changed since the state was taken, or since the cache was filled"
            )

    def state(self) -> State:
        return self._number

    def close(self) -> None:
        if self._walk is not None:
            self._walk.close()
            self._flow.runs().note()


def kept_flows(flow: Any) -> Iterator[KeptRowsFlow | KeptBatchesFlow]:
    """Yield all caches that a flow is made of."""
    if isinstance(flow, (KeptRowsFlow, KeptBatchesFlow)):
        yield flow
    for before in getattr(flow, "parts", None) or filter(None, [getattr(flow, "before", None)]):
        yield from kept_flows(before)


class FinishedFlow:
    """Batches with all done to them that is left to do where nothing has to come in order, for one rank."""

    batched = True

    def __init__(self, before: Flow, shard: tuple[int, int], finish: Callable[[Cut], Rows]) -> None:
        self.before, self.shard, self.finish = before, shard, finish

    def walk(self, epoch: int, state: State, feeds: Feeds) -> Walk:
        return _Finished(self, self.before.walk(epoch, state, feeds))


class _Finished:
    def __init__(self, flow: FinishedFlow, before: Walk) -> None:
        self._flow, self._before = flow, before
        self.state, self.close = before.state, before.close

    def pull(self, most: int) -> Cut | None:
        cut = self._before.pull(1)
        return None if cut is None else Cut(self._flow.finish(cut.share(self._flow.shard)), shared=True)
