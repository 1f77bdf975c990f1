"""Where the time went: how long the caller waited, what each stage took, which one is the bottleneck."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from batchkit.executors import Setting
from batchkit.executors.threads import SLOW_SECONDS
from batchkit.metering import HOST_COPY, PUT, SOURCE, STAGED, TRANSPORT, Meter, StageFigures
from batchkit.resources import cores

__all__ = ["StageReport", "Statistics", "bottleneck", "stage_names", "text"]

_FED = 0.05  # a caller who waits for less than this share of its time would gain nothing
_MOST = 0.5
_MODULE = re.compile(r"[\w.]+:(?=\w)")  # of my_data:decode


class StageReport(NamedTuple):
    """What one stage takes of every batch."""

    name: str
    kind: int
    """The stage's number in the pipeline, or one of the constants of ``batchkit.metering``."""
    calls: float
    """How often it was called, over all batches."""
    seconds: float
    """Wall time a batch."""
    share: float
    """Its part of the time that all stages take together."""
    bytes: float
    """What it makes a batch, in bytes; 0 where that is not known."""
    cpu_share: float
    """The part of its time that it spends on a core rather than waiting."""
    gil_share: float | None
    """The part of its time during which no other thread can run Python; ``None`` where that is not known."""

    @property
    def waits(self) -> bool:
        """Whether it mostly waits for something that is not a core."""
        return self.cpu_share < _MOST

    @property
    def gil_bound(self) -> bool | None:
        """Whether it holds the GIL for most of its time; ``None`` where that is not known."""
        return None if self.gil_share is None else self.gil_share >= _MOST


class Statistics:
    """How many batches were delivered, how long the caller waited for them, and what each stage took."""

    def __init__(self, names: dict[int, str]) -> None:
        self.meter = Meter()
        self.batches = 0
        self.waited = 0.0
        """Seconds during which the caller waited for a batch."""
        self.first: float | None = None
        """Seconds until the first batch was there."""
        self.began: float | None = None
        self.ended = 0.0
        self._names = names

    def begin(self, asked: float, given: float) -> None:
        """Note when the first batch was asked for and given."""
        self.began, self.first = asked, given - asked

    def name_of(self, kind: int) -> str:
        """Return how a stage is shown."""
        return self._names.get(kind, f"stage {kind}")

    @property
    def seconds(self) -> float:
        """From when the first batch was asked for until the last one was given."""
        return 0.0 if self.began is None else self.ended - self.began

    @property
    def wait_share(self) -> float:
        """The part of that time during which the caller waited."""
        return self.waited / self.seconds if self.seconds else 0.0

    @property
    def queue(self) -> float | None:
        """How many finished batches waited for the caller on average; ``None`` where nothing is computed ahead."""
        return self.meter.occupancy

    @property
    def stages(self) -> list[StageReport]:
        """What each stage takes a batch, in the order of the pipeline."""
        meter = self.meter
        found = dict(meter.stages)
        each = {kind: figures.seconds / self._count(kind, figures) for kind, figures in found.items()}
        together = sum(each.values()) or 1.0
        return [
            StageReport(
                self.name_of(kind),
                kind,
                figures.calls,
                each[kind],
                each[kind] / together,
                figures.bytes / self._count(kind, figures),
                figures.cpu_share,
                figures.gil_share,
            )
            for kind, figures in sorted(found.items())
        ]

    def _count(self, kind: int, figures: StageFigures) -> float:
        """Over how many batches the figures of a stage were taken."""
        if kind in (PUT, STAGED):
            return max(figures.calls, 1.0)
        if kind == SOURCE and self.meter.pulls:
            return self.meter.pulls
        return max(self.meter.steps, 1.0)


def stage_names(pipeline: Any) -> dict[int, str]:
    """Return how a report names the stages of a pipeline, and what comes before and behind them."""
    names = {SOURCE: f"source {getattr(pipeline.source, 'kind', type(pipeline.source).__name__)}"}
    names |= {number: _MODULE.sub("", label) for number, label in enumerate(_labels(pipeline))}
    return {
        **names,
        HOST_COPY: "copy for the backend",
        TRANSPORT: "to and from the worker",
        STAGED: "copy to the device, ahead",
        PUT: "hand-over",
    }


def _labels(pipeline: Any, lead: str = "") -> Iterator[str]:
    """Yield the label of every stage: those of the parts of a combination in order, with the part, then its own."""
    for name, part in zip(pipeline.source.names if pipeline.parts else (), pipeline.parts, strict=True):
        yield from _labels(part, f"{lead}part {name}: ")
    yield from (f"{lead}{stage.label}" for stage in pipeline.stages)


def bottleneck(statistics: Statistics, setting: Setting, settled: bool = False) -> str:
    """Return one sentence: what limits the loading, and the change that would help most.

    ``settled``: the setting was measured to be the fastest, so that no other one would help.
    """
    stages = statistics.stages
    waited = statistics.wait_share
    if waited < _FED:
        return f"the caller is the limit: it waits for data {waited:.0%} of its time, so that nothing here would help"
    if not stages:
        return "no stage was measured yet"
    slowest = max(stages, key=lambda stage: stage.seconds)
    source = next((stage.share for stage in stages if stage.kind == SOURCE), 0.0)
    if slowest.kind == SOURCE:
        behind = "the stages behind it are not the limit"
    elif source < 0.2:
        behind = "the source is not the limit"
    else:
        behind = f"the source takes {source:.0%}"
    how, change = _advice(slowest, setting, settled)
    computed = slowest.kind not in (PUT, STAGED, HOST_COPY, TRANSPORT) and not slowest.waits
    cheap = sum(stage.seconds for stage in stages) < SLOW_SECONDS
    if computed and cheap and setting.executor != "processes" and not settled:
        change = "steps are too cheap for other workers to help: only larger batches or less work a row would"
    return f"{slowest.name} takes {slowest.share:.0%} of the time{how}: {change}; {behind}"


def _advice(stage: StageReport, setting: Setting, settled: bool) -> tuple[str, str]:
    """Return what is special about the slowest stage, and what to do about it."""
    if stage.kind in (PUT, STAGED):
        return "", "the backend copies to its device: a larger prefetch, smaller dtypes or fewer, larger batches help"
    if stage.kind == HOST_COPY:
        return "", "have the last function return contiguous arrays of the dtype that the backend wants (see .cast())"
    if stage.kind == TRANSPORT:
        return "", "the steps are too cheap to be sent to other processes: executor='threads' helps"
    if stage.gil_bound:
        if setting.executor != "processes" and not settled:
            return " and holds the GIL", "executor='processes' helps, or a vectorised function behind batch()"
        return " and holds the GIL", _more_workers(setting, settled)
    if stage.waits:
        return " and mostly waits", _more_workers(setting, settled, idle=True)
    releases = " and releases the GIL" if stage.gil_bound is not None else ""
    if setting.executor == "inline" and not settled:
        return releases, "executor='threads' computes ahead, so that it overlaps with the caller's own work"
    return releases, _more_workers(setting, settled)


def _more_workers(setting: Setting, settled: bool, idle: bool = False) -> str:
    if settled:
        return "no other setting was faster here, so that only less work a batch would help"
    if setting.executor == "inline":
        return f"executor='threads' with workers={max(2 * cores(), 4) if idle else cores()} helps"
    if idle:
        return f"more workers help ({setting.workers} so far; waiting needs no core)"
    if setting.workers < cores():
        return f"more workers help ({setting.workers} so far, on {cores()} cores)"
    return f"all {cores()} cores are used: only less work a batch or more cores would help"


def text(statistics: Statistics, setting: Setting, backend: str, chosen: str = "", settled: bool = False) -> str:
    """Return the report as a table with a few lines around it; ``chosen`` says why the setting is what it is."""
    if not statistics.batches or statistics.first is None:
        return "nothing was loaded yet"
    lines = [
        f"{statistics.batches} batches in {statistics.seconds:.3f} s for backend {backend!r}, by executor "
        f"{setting.executor!r}{_workers(setting)}",
        f"first batch after {statistics.first * 1e3:.1f} ms; waited for data {statistics.waited:.3f} s in all "
        f"({statistics.wait_share:.0%}), {statistics.waited / statistics.batches * 1e6:.0f} µs a batch",
    ]
    if chosen:
        lines.append(chosen)
    if statistics.queue is not None and setting.workers:
        most = setting.prefetch + setting.workers
        lines.append(f"{statistics.queue:.1f} finished batches were waiting on average, of at most {most}")
    lines += _table(statistics.stages)
    lines.append(f"bottleneck: {bottleneck(statistics, setting, settled)}")
    return "\n".join(lines)


def _workers(setting: Setting) -> str:
    if not setting.workers:
        return ""
    return f" ({setting.workers} worker{'' if setting.workers == 1 else 's'}, prefetch {setting.prefetch})"


def _table(stages: Sequence[StageReport]) -> list[str]:
    rows = [("stage", "calls", "time a batch", "share", "bytes a batch", "GIL")]
    rows += [
        (
            _cut(stage.name),
            f"{stage.calls:,.0f}",
            _time(stage.seconds),
            f"{stage.share:.0%}",
            _size(stage.bytes),
            _gil(stage),
        )
        for stage in stages
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place in (0, 5) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _gil(stage: StageReport) -> str:
    if stage.kind in (PUT, STAGED):
        return ""
    if stage.gil_bound:
        return "held"
    return "waits" if stage.waits else "-" if stage.gil_bound is None else "released"


def _cut(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def _size(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B" if size else "-"
