"""``batchkit explain``."""

from __future__ import annotations

import json
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from batchkit.cli.options import open_pipeline, pipeline_options
from batchkit.lineage import Lineage
from batchkit.lineage import explain as explained

__all__ = ["explain"]

_ENDLESS = 1 << 32  # passes that repeat() without a count makes an epoch


@click.command()
@pipeline_options
@click.option("--step", type=click.IntRange(min=0), required=True, help="Which batch of the epoch, counted from 0.")
@click.option("--epoch", type=click.IntRange(min=0), default=0, show_default=True, help="Which epoch.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Which rank's part.")
@click.option("--world", type=click.IntRange(min=1), default=1, show_default=True, help="How many ranks there are.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(step: int, epoch: int, rank: int, world: int, as_json: bool, **given: Any) -> None:
    """Print which source rows a batch of CONFIG holds, without reading them."""
    lineage = explained(open_pipeline(**given), step, (rank, world), epoch=epoch)
    if as_json:
        where = {"epoch": epoch, "step": step, "shard": [rank, world]}
        click.echo(json.dumps({**where, "lineage": lineage.to_dict()}))
        return
    click.echo(f"epoch {epoch}, step {step}, rank {rank} of {world}: {_count(lineage)}")
    if len(lineage.place):
        console = Console()
        # Into a pipe or a file, all of a line is written however long it is.
        console.print(_table(lineage), soft_wrap=not console.is_terminal)


def _count(lineage: Lineage) -> str:
    padding = lineage.rows - len(set(lineage.place.tolist()))
    return f"{lineage.rows} rows" + (f", {padding} of them padding" if padding else "")


def _table(lineage: Lineage) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    several = bool(lineage.source.any())
    for title in ("row of the batch", *(["source"] if several else []), "source row", "pass over the source"):
        table.add_column(title, justify="right")
    for place, source, row, epoch in zip(
        lineage.place.tolist(), lineage.source.tolist(), lineage.row.tolist(), lineage.epoch.tolist(), strict=True
    ):
        table.add_row(str(place), *([str(source)] if several else []), str(row), _pass(epoch))
    return table


def _pass(epoch: int) -> str:
    """Return a pass as a person counts: those of an endless repeat() apart from the epoch that they are of."""
    high, low = divmod(epoch, _ENDLESS)
    return f"{low} of epoch {high}" if high else str(low)
