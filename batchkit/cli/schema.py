"""``batchkit schema``."""

from __future__ import annotations

import json

import click

from batchkit.config import json_schema

__all__ = ["schema"]


@click.command()
def schema() -> None:
    """Print the JSON Schema of config files, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))
