"""``batchkit plugins``."""

from __future__ import annotations

import dataclasses
import json

import click

from batchkit.plugins import PluginInfo, installed

__all__ = ["plugins"]


@click.command()
@click.argument("local", nargs=-1, metavar="[FILE_OR_MODULE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plugins(local: tuple[str, ...], as_json: bool) -> None:
    """List the plugins that are found, what each offers, and what is broken and why.

    A local plugin is tried when it is named: batchkit plugins ./my_plugin.py
    """
    found = installed().with_local(local).found()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(info) for info in found], indent=2))
        return
    for info in found:
        click.echo("\n".join(_lines(info)))


def _lines(info: PluginInfo) -> list[str]:
    offers = [f"  {kind}: {', '.join(names)}" for kind, names in info.offers.items()]
    problem = [f"  problem: {info.problem}"] if info.problem else []
    return [f"{info.name} ({' '.join(filter(None, (info.origin, info.version)))})", *offers, *problem]
