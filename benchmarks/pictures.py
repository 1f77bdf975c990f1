"""The pictures of the benchmarks: panels of horizontal bars, one above the other, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from batchkit.bench import Timing
from lines import Line

__all__ = ["GREY", "OURS", "Bar", "Panel", "Rates", "Spread", "Targets", "bars_of", "draw"]

OURS, GREY, MISSED = "#00798c", "#8d99ae", "#c1121f"
INCH_A_ROW, INCHES_BESIDES = 0.36, 1.1  # of height: besides are the title and the axis
HIGHEST = 10.0  # times the target: what is better still is drawn as this, with a point
LANES = {
    "auto": (OURS, -0.33),
    "inline": ("#3d405b", -0.11),
    "threads": ("#e07a5f", 0.11),
    "processes": ("#81794f", 0.33),
}
"""The colour of an executor's marks, and where in a workload they are."""


class Panel(Protocol):
    """A part of a picture."""

    @property
    def title(self) -> str:
        """What is above it."""

    @property
    def rows(self) -> float:
        """How many bars high it is."""

    def onto(self, axes: Any) -> None:
        """Draw it."""


def draw(path: Path, *panels: Panel, width: float = 10.0) -> None:
    """Write a picture with the panels one above the other."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    heights = [INCH_A_ROW * panel.rows + INCHES_BESIDES for panel in panels]
    figure, places = plt.subplots(
        len(panels),
        figsize=(width, sum(heights)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    figure.set_layout_engine("constrained", h_pad=0.12)
    for axes, panel in zip(places[:, 0], panels, strict=True):
        panel.onto(axes)
        axes.set_title(" ", fontsize=11, pad=10)  # keeps the room; the words begin above the names of the bars
        where = {"xycoords": ("figure fraction", "axes fraction"), "textcoords": "offset points"}
        axes.annotate(panel.title, (0, 1), (8, 12), fontsize=11, fontweight="bold", annotation_clip=False, **where)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.02)
        axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)


@dataclass(frozen=True)
class Bar:
    """How quick a contender was: in the median, in the slowest round and in the fastest one."""

    name: str
    median: float
    slowest: float
    fastest: float
    note: str = ""


def bars_of(timings: Mapping[str, Timing], rows: int, notes: Mapping[str, str]) -> list[Bar]:
    """Return the rows per second of every contender, the quickest first."""
    quickest = sorted(timings.values(), key=lambda timing: timing.median)
    return [
        Bar(one.name, rows / one.median, rows / one.spread[1], rows / one.spread[0], notes[one.name])
        for one in quickest
    ]


@dataclass(frozen=True)
class Rates:
    """Rows per second of every contender; batchkit in a colour of its own."""

    title: str
    bars: Sequence[Bar]
    notes: str  # what a note says

    @property
    def rows(self) -> float:
        """How many bars high it is."""
        return len(self.bars)

    def onto(self, axes: Any) -> None:
        """Draw it."""
        names, rates = [bar.name for bar in self.bars], [bar.median for bar in self.bars]
        whiskers = [
            [bar.median - bar.slowest for bar in self.bars],
            [bar.fastest - bar.median for bar in self.bars],
        ]
        colours = [OURS if name.startswith("batchkit") else GREY for name in names]
        axes.tick_params(axis="y", labelsize=9)
        axes.barh(names, rates, color=colours, xerr=whiskers, error_kw={"lw": 1, "alpha": 0.6})
        for place, bar in enumerate(self.bars):
            note = f"{_short(bar.median)}/s, {bar.note}"
            axes.text(bar.fastest * 1.12, place, note, va="center", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(min(rates) / 2, max(bar.fastest for bar in self.bars) * (max(rates) / min(rates)) ** 0.4)
        axes.set_xlabel(f"rows per second; whiskers: slowest and fastest round; x: {self.notes}", fontsize=9)


@dataclass(frozen=True)
class Targets:
    """How far each line is beyond its target, or short of it."""

    title: str
    lines: Sequence[Line]

    @property
    def rows(self) -> float:
        """How many bars high it is: a line has two lines of text."""
        return 1.35 * len(self.lines)

    def onto(self, axes: Any) -> None:
        """Draw it: to the right of the middle line is met, to the left is missed."""
        reached = [_reached(line) for line in self.lines]
        drawn = [min(one, HIGHEST) for one in reached]
        low, high = min(0.7, *(one * 0.8 for one in drawn)), max(2.0, *drawn)
        axes.axvspan(low, 1.0, color=MISSED, alpha=0.06, lw=0)
        for place, (line, one, bar) in enumerate(zip(self.lines, reached, drawn, strict=True)):
            colour = OURS if line.met else MISSED
            axes.barh(place, abs(bar - 1.0), 0.55, min(bar, 1.0), color=colour)
            if one > HIGHEST:
                axes.plot(bar, place, marker=">", markersize=14, color=colour, clip_on=False)
            said = f"{line.found}  (target: {line.wanted})"
            style: dict[str, Any] = {} if line.met else {"color": MISSED, "fontweight": "bold"}
            said = said if line.met else f"MISSED: {said}"
            beside = max(bar, 1.0) * (high / low) ** (0.025 if one <= HIGHEST else 0.04)
            axes.text(beside, place, said, va="center", fontsize=8, **style)
        names = [f"{line.work}\nagainst {line.reference}" for line in self.lines]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.axvline(1.0, color="black", lw=1.2)
        axes.set_xscale("log")
        axes.set_xlim(low, high * (high / low) ** 0.8)  # room for the words
        _ticks(axes, low, high)
        axes.set_xlabel("measured / target, or bound / measured: right of the line is met", fontsize=9)


@dataclass(frozen=True)
class Spread:
    """Settings of several workloads, each against the best fixed one of its workload.

    A setting is the name of an executor, or one with a number of workers: ``threads, 4``. Each workload has ``auto``.
    """

    title: str
    relative: Mapping[str, Mapping[str, float]]
    target: float
    settled: Mapping[str, str]  # what auto has chosen, by workload

    @property
    def rows(self) -> float:
        """How many bars high it is."""
        return 2.2 * len(self.relative)

    def onto(self, axes: Any) -> None:
        """Draw a lane an executor in every workload, and in it a mark for every setting, with its workers."""
        for place, (workload, settings) in enumerate(self.relative.items()):
            beside = (settings["auto"], place + LANES["auto"][1])
            chosen = {"xytext": (9, 0), "textcoords": "offset points", "fontsize": 7, "color": OURS}
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            axes.annotate(self.settled[workload], beside, va="center", zorder=5, bbox=paper, **chosen)
            for name, value in settings.items():
                executor, _, workers = name.partition(", ")
                colour, lane = LANES[executor]
                at = (value, place + lane)
                axes.plot(*at, "D" if executor == "auto" else "o", color=colour, ms=11, mec="white", mew=0.8, zorder=3)
                axes.annotate(workers, at, color="white", fontsize=6.5, ha="center", va="center_baseline", zorder=4)
            if place:
                axes.axhline(place - 0.5, color="black", lw=0.5, alpha=0.3)
        for executor, (colour, _) in LANES.items():
            marker = "D" if executor == "auto" else "o"
            axes.plot([], [], marker, color=colour, label=executor, ms=8)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(LANES), frameon=False, fontsize=8)
        axes.axvline(1.0, color="black", lw=1.2)
        axes.axvline(self.target, color=OURS, lw=1.2, ls="--")
        lowest = min(min(settings.values()) for settings in self.relative.values())
        highest = max(max(settings.values()) for settings in self.relative.values())
        axes.set_xscale("log")
        axes.set_xlim(lowest * 0.7, max(2.0, highest * 2.0))
        axes.set_ylim(-0.5, len(self.relative) - 0.5)
        axes.set_yticks(range(len(self.relative)), list(self.relative), fontsize=9)
        _ticks(axes, lowest * 0.7, highest * 1.2)
        meaning = f"times the best fixed setting; dashed: the target for auto, {self.target:g}x"
        axes.set_xlabel(meaning, fontsize=9)


def _ticks(axes: Any, low: float, high: float) -> None:
    """Mark 0.1, 0.2, 0.5, 1 and so on; only powers of ten where that would be too many."""
    digits = (1, 2, 5) if high / low < 300 else (1,)
    marks = [digit * 10.0**power for power in range(-4, 2) for digit in digits]
    axes.set_xticks([mark for mark in marks if low <= mark <= high])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")


def _reached(line: Line) -> float:
    """Return how many times the target is reached; for a bound, how many times it could be used up."""
    if not line.at_most:
        return line.measured / line.target
    return line.target / line.measured if line.measured > 0 else math.inf


def _short(number: float) -> str:
    """Return three digits with a unit.

    >>> _short(9_520_000), _short(21_400)
    ('9.52 M', '21.4 k')
    """
    for power, unit in ((1e6, " M"), (1e3, " k")):
        if number >= power:
            return f"{number / power:.3g}{unit}"
    return f"{number:.3g}"
