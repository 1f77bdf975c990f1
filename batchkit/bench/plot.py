"""Bars with whiskers, drawn as SVG by hand: a report needs nothing but a browser."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from batchkit.bench.figures import Figure, number, scaled
from batchkit.bench.record import Result

__all__ = ["Bar", "bars", "chart", "stand_alone", "ticks"]

_NAMES, _PLOT, _VALUES = 190, 430, 210  # widths in px: names on the left, bars, figures on the right
_ROW, _TOP, _AXIS = 30, 6, 44  # heights
_CHARACTER = 7.2  # px: about as wide as a character gets


class Bar(NamedTuple):
    """One bar: its name, the values of all rounds, and what is written beside it."""

    name: str
    values: Sequence[float]
    text: str


def bars(figure: Figure, results: Sequence[Result]) -> str:
    """Return an SVG with a bar for the median of every contender."""
    better = "more is better" if figure.more_is_better else "less is better"
    shown = [Bar(result.name, result.values(figure.of), figure.text(result)) for result in results]
    return chart(f"{figure.title} of every contender", shown, figure.unit, better)


def chart(title: str, shown: Sequence[Bar], unit: str, better: str) -> str:
    """Return an SVG with a bar for each median.

    A whisker goes from the lowest to the highest round, and every round is a dot.
    """
    highest = max((max(bar.values) for bar in shown if bar.values), default=0.0)
    factor, unit = scaled(highest, unit)
    marks = ticks(highest / factor)
    scale = _PLOT / (marks[-1] * factor)
    bottom = _TOP + _ROW * len(shown)
    width, height = _NAMES + _PLOT + _VALUES, bottom + _AXIS
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">'
    ]
    for mark in marks:
        x = _NAMES + mark * factor * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{number(mark)}</text>')
    middle = _NAMES + _PLOT / 2
    parts.append(f'<text class="unit" x="{middle}" y="{bottom + 36}" text-anchor="middle">{unit} ({better})</text>')
    for place, bar in enumerate(shown):
        parts += _row(bar, _TOP + _ROW * place, scale)
    parts.append(f'<line class="axis" x1="{_NAMES}" y1="{_TOP}" x2="{_NAMES}" y2="{bottom}"/></svg>')
    return "\n".join(parts)


_STYLE = """
svg { background: #ffffff; }
text { font: 12px system-ui, sans-serif; fill: #1f2933; }
.tick, .unit { fill: #5f6c7b; } .grid { stroke: #d5dbe1; } .axis { stroke: #5f6c7b; } .bar { fill: #3f8fa3; }
.whisker { stroke: #1f2933; stroke-width: 1.3; } .round { fill: #1f2933; fill-opacity: .55; }
"""


def stand_alone(svg: str) -> str:
    """Return a chart as a file of its own: it brings along the colours that a page would give it."""
    head, rest = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{_STYLE}</style>{rest}\n'


def _row(bar: Bar, top: float, scale: float) -> list[str]:
    middle, values = top + _ROW / 2, bar.values
    label = _shortened(bar.name, int((_NAMES - 10) / _CHARACTER))
    parts = [f'<text class="name" x="{_NAMES - 8}" y="{middle + 4}" text-anchor="end">{escape(label)}</text>']
    said = f'<text class="value" x="{{x:.1f}}" y="{middle + 4}">{escape(bar.text)}</text>'
    if not values:
        return [*parts, said.format(x=_NAMES + 8)]
    median = statistics.median(values)
    low, high = _NAMES + min(values) * scale, _NAMES + max(values) * scale
    return [
        *parts,
        f'<rect class="bar" x="{_NAMES}" y="{top + 6}" width="{median * scale:.1f}" height="{_ROW - 12}" rx="2"/>',
        f'<line class="whisker" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>',
        *(
            f'<line class="whisker" x1="{end:.1f}" y1="{middle - 5}" x2="{end:.1f}" y2="{middle + 5}"/>'
            for end in (low, high)
        ),
        *(f'<circle class="round" cx="{_NAMES + value * scale:.1f}" cy="{middle}" r="2"/>' for value in values),
        said.format(x=max(high, _NAMES + median * scale) + 8),
    ]


def ticks(highest: float) -> list[float]:
    """Return about five round numbers from 0 to at least ``highest``.

    >>> ticks(9.3)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not highest > 0:
        return [0.0, 1.0]
    rough = highest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(round(power * nice, 12) for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    return [round(step * count, 12) for count in range(math.ceil(highest / step - 1e-9) + 1)]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
