"""``batchkit explain``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from batchkit.cli.options import open_pipeline, pipeline_options
from batchkit.lineage import Lineage, uncounted
from batchkit.lineage import explain as explained

__all__ = ["explain"]

_ENDLESS = 1 << 32  # passes that repeat() without a count makes an epoch


@click.command()
@pipeline_options
@click.option("--step", type=click.IntRange(min=0), required=True, help="Which batch of the epoch, counted from 0.")
@click.option("--epoch", type=click.IntRange(min=0), help="Which epoch: by default the state's, or 0.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Which rank's part.")
@click.option("--world", type=click.IntRange(min=1), default=1, show_default=True, help="How many ranks there are.")
@click.option(
    "--state",
    "state_file",
    type=click.Path(exists=True, dir_okay=False),
    help="A loader's state_dict() as JSON, of an earlier step: rows that have to be computed are so from there on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    step: int, epoch: int | None, rank: int, world: int, state_file: str | None, as_json: bool, **given: Any
) -> None:
    """Print which source rows a batch of CONFIG holds.

    No row is read, unless a stage keeps no count of its rows, as a filter does: then those in front are computed.
    """
    pipeline, state = open_pipeline(**given), None if state_file is None else _read(state_file)
    reason = uncounted(pipeline)
    if reason is not None:
        click.echo(f"Rows are computed to explain this step: {reason} keeps no count of them.", err=True)
    lineage = explained(pipeline, step, (rank, world), epoch=epoch, state=state)
    if epoch is None:
        epoch = 0 if state is None else int(state["epoch"])
    if as_json:
        where = {"epoch": epoch, "step": step, "shard": [rank, world]}
        click.echo(json.dumps({**where, "lineage": lineage.to_dict()}))
        return
    click.echo(f"epoch {epoch}, step {step}, rank {rank} of {world}: {_count(lineage)}")
    if len(lineage.place):
        console = Console()
        # Into a pipe or a file, all of a line is written however long it is.
        console.print(_table(lineage), soft_wrap=not console.is_terminal)


def _read(path: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as exc:
        raise click.BadParameter(
            f"{path} is no JSON ({exc}): write json.dumps(loader.state_dict()) to it", param_hint="'--state'"
        ) from exc


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
