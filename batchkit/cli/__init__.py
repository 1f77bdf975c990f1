"""The command line: ``batchkit run``, ``verify``, ``explain``, ``profile``, ``bench`` and others.

Exit codes: 0; 1 when the run failed, or ``verify`` found something; 2 when the usage or the config is not valid;
130 after Ctrl-C.
"""

from __future__ import annotations

import click

from batchkit.cli.bench import bench
from batchkit.cli.cache import cache
from batchkit.cli.explain import explain
from batchkit.cli.group import PluginGroup
from batchkit.cli.inspect import inspect
from batchkit.cli.plugins import plugins
from batchkit.cli.profile import profile
from batchkit.cli.run import run
from batchkit.cli.schema import schema
from batchkit.cli.verify import verify
from batchkit.plugins import version

__all__ = ["main"]


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"batchkit {version() or '(not installed: run from its source tree)'}")
        context.exit()


@click.group(cls=PluginGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def main() -> None:
    """Feed one input pipeline to PyTorch, TensorFlow, JAX or NumPy."""


for command in (bench, run, verify, explain, profile, inspect, cache, plugins, schema):
    main.add_command(command)
