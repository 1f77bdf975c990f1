"""``batchkit cache list | verify | clear``."""

from __future__ import annotations

import dataclasses
import json

import click

from batchkit.caching import Damage, Description, clear, described, found, verified
from batchkit.cli.group import running
from batchkit.cli.options import traceback_option

__all__ = ["cache"]

_path = click.argument("path", type=click.Path())
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def cache() -> None:
    """Look after what cache(path) keeps on disk."""


@cache.command("list")
@_path
@_json
@traceback_option
@click.pass_context
def list_caches(context: click.Context, /, path: str, as_json: bool) -> None:
    """List the caches under PATH: how many rows each has, what it takes, and what it is of."""
    with running(context):
        there = [described(folder) for folder in found(path)]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in there], indent=2))
        return
    for one in there:
        click.echo("\n".join(_lines(one)))
    if not there:
        click.echo(f"no cache under {path}")


def _lines(one: Description) -> list[str]:
    have = f"{one.stored} rows so far" if one.rows is None else f"{one.stored} of {one.rows} rows"
    lines = [f"{one.name}  {have}, {one.nbytes / 1e6:.1f} MB, of {one.created or 'unknown'}"]
    if one.upstream:
        lines.append(f"  {' -> '.join(one.upstream)}")
    return [*lines, f"  damaged: {one.problem}"] if one.problem else lines


@cache.command()
@_path
@_json
@traceback_option
@click.pass_context
def verify(context: click.Context, /, path: str, as_json: bool) -> None:
    """Compare every row of the caches under PATH with its checksum.

    The exit code is 1 if one is damaged. Damaged rows are never served: they are computed again when they are needed.
    """
    with running(context):
        reports = [verified(folder) for folder in found(path)]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(report) for report in reports], indent=2))
    else:
        for report in reports:
            click.echo(f"{report.name}  {_said(report)}")
        if not reports:
            click.echo(f"no cache under {path}")
    if not all(report.sound for report in reports):
        context.exit(1)


def _said(report: Damage) -> str:
    if report.problem is not None:
        return f"damaged: {report.problem}"
    if report.damaged:
        shown = ", ".join(map(str, report.damaged[:8])) + (", ..." if len(report.damaged) > 8 else "")
        return f"damaged: {len(report.damaged)} of {report.checked} rows: {shown}"
    return f"sound: {report.checked} rows"


@cache.command("clear")
@_path
@traceback_option
@click.pass_context
def clear_caches(context: click.Context, /, path: str) -> None:
    """Remove the caches under PATH, and nothing else that lies there."""
    with running(context):
        for name in clear(path):
            click.echo(f"removed {name}")
