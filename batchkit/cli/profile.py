"""``batchkit profile``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchkit.cli.group import running
from batchkit.cli.options import load_loader, loader_options

if TYPE_CHECKING:
    from batchkit.bench.stages import StageLimit

__all__ = ["profile"]

_BAR = 30  # characters


@click.command()
@loader_options
@click.option("--steps", type=click.IntRange(min=1), default=16, show_default=True, help="How many batches are taken.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="How often each stage runs.")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Draw a bar chart to this file, as SVG."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the bars.")
@click.pass_context
def profile(
    context: click.Context, /, steps: int, rounds: int, output: Path | None, as_json: bool, **given: Any
) -> None:
    """Measure each stage of CONFIG by itself.

    What comes to a stage is computed before the clock runs, so that each one's own limit is seen.
    Everything is computed by one thread: workers multiply what a stage can do.
    """
    from batchkit.bench.stages import stage_limits

    if output is not None and not output.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {output.absolute().parent}", param_hint="--output")
    with load_loader(**given) as loader:
        with running(context):
            limits = stage_limits(loader, steps, rounds)
        if output is not None:
            output.write_text(_drawn(str(given["config"]), limits), encoding="utf-8")
        click.echo(json.dumps(_described(limits), indent=2) if as_json else _text(limits))


def _described(limits: Sequence[StageLimit]) -> dict[str, Any]:
    together = sum(limit.median for limit in limits)
    return {
        "stages": [
            {
                "stage": limit.name,
                "seconds_a_batch": list(limit.seconds),
                "median_s": limit.median,
                "share": limit.median / together if together else 0.0,
                "rows_per_s": limit.rows_per_s,
            }
            for limit in limits
        ],
        "seconds_a_batch": together,
        "slowest": max(limits, key=lambda limit: limit.median).name,
    }


def _text(limits: Sequence[StageLimit]) -> str:
    from batchkit.bench.figures import quantity

    together = sum(limit.median for limit in limits) or 1.0
    width = max(len(limit.name) for limit in limits)
    slowest = max(limits, key=lambda limit: limit.median)
    lines = [
        f"{limit.name:<{width}}  {_bar(limit.median / slowest.median)}  {quantity(limit.median, 's'):>8} a batch  "
        f"{limit.median / together:4.0%}  at most {quantity(limit.rows_per_s, 'rows/s')}"
        for limit in limits
    ]
    rows, rest = limits[0].rows, max(together - slowest.median, 1e-9)
    lines.append(
        f"{slowest.name} is the slowest: {slowest.median / together:.0%} of a batch's {quantity(together, 's')}. "
        f"One thread loads {quantity(rows / together, 'rows/s')}; without it, {quantity(rows / rest, 'rows/s')}"
    )
    return "\n".join(lines)


def _bar(share: float) -> str:
    full, eighths = divmod(round(share * _BAR * 8), 8)
    return ("█" * full + " ▏▎▍▌▋▊▉"[eighths]).ljust(_BAR)[:_BAR]


def _drawn(config: str, limits: Sequence[StageLimit]) -> str:
    """Return the bars as an SVG file that brings its colours along."""
    from batchkit.bench.figures import quantity
    from batchkit.bench.plot import Bar, chart, stand_alone

    bars = [
        Bar(limit.name, limit.seconds, f"{quantity(limit.median, 's')}, {quantity(limit.rows_per_s, 'rows/s')}")
        for limit in limits
    ]
    return stand_alone(chart(f"Time a batch of every stage of {config}", bars, "s", "less is better"))
