"""``batchkit verify``."""

from __future__ import annotations

import json
from typing import Any

import click

from batchkit.checking import NAMES
from batchkit.checking import verify as check
from batchkit.cli.group import running
from batchkit.cli.options import open_pipeline, pipeline_options

__all__ = ["verify"]


@click.command()
@pipeline_options
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True, help="How many steps are looked at.")
@click.option(
    "--sample-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another one looks at other steps."
)
@click.option(
    "--without",
    type=click.Choice(NAMES),
    metavar="CHECK",
    multiple=True,
    help=f"Leave a check out: {', '.join(NAMES)}. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(
    context: click.Context,
    /,
    steps: int,
    sample_seed: int,
    without: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Check whether CONFIG gives the same batches however they are computed, and name the stage that does not.

    Ends with exit code 1 if something differs.
    """
    pipeline = open_pipeline(**given)
    with running(context):
        verdict = check(pipeline, steps=steps, seed=sample_seed, without=without)
    click.echo(json.dumps(verdict.to_dict(), indent=2) if as_json else str(verdict))
    if not verdict.ok:
        context.exit(1)
