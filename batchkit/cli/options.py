"""The options that say which Loader a command works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from batchkit.cli.group import TRACEBACK
from batchkit.config import load, load_pipeline, parse_assignment
from batchkit.loader import Loader
from batchkit.pipeline import Pipeline

__all__ = ["load_loader", "loader_options", "open_pipeline", "pipeline_options", "traceback_option"]

_LOADER = {
    "backend": "The framework that gets the batches: numpy, torch, tensorflow, jax, ...",
    "device": "The framework's name of a device, such as cpu or cuda:0.",
    "executor": "Where batches are computed: auto, inline, threads, processes, ...",
    "workers": "How many workers, or auto.",
    "prefetch": "How many batches are computed ahead.",
    "shard": "Load part R of W of every batch.",
}
_METAVARS = {"workers": "N", "prefetch": "N", "shard": "R/W"}


def _keep_traceback(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    context.meta[TRACEBACK] = wanted


traceback_option = click.option(
    "--traceback", is_flag=True, expose_value=False, callback=_keep_traceback, help="Show where an error comes from."
)


def _options(command: Callable[..., Any], *own: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.argument("config", type=click.Path()),
        *own,
        click.option("--pipeline", metavar="NAME", help="Which one of the file's pipelines."),
        click.option(
            "--set",
            "assignments",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change a value of the file: loader.workers=4, pipeline.stages[1].batch.size=512. May be repeated.",
        ),
        click.option("--no-imports", is_flag=True, help="Refuse a config that names functions or plugins."),
        traceback_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def loader_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument CONFIG and the options that :func:`load_loader` takes."""
    own = [click.option(f"--{name}", metavar=_METAVARS.get(name, "NAME"), help=text) for name, text in _LOADER.items()]
    return _options(command, *own)


def pipeline_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument CONFIG and the options that :func:`open_pipeline` takes."""
    return _options(command)


def open_pipeline(config: str, pipeline: str | None, assignments: tuple[str, ...], no_imports: bool) -> Pipeline:
    """Return the pipeline that the options describe, without a loader: no framework is imported."""
    overrides = dict(parse_assignment(text) for text in assignments)
    return load_pipeline(config, pipeline=pipeline, allow_imports=not no_imports, overrides=overrides)


def load_loader(
    config: str, pipeline: str | None, assignments: tuple[str, ...], no_imports: bool, **given: str | None
) -> Loader:
    """Return the Loader that the options describe."""
    texts = [*assignments, *(f"loader.{name}={value}" for name, value in given.items() if value is not None)]
    overrides = dict(parse_assignment(text) for text in texts)
    return load(config, pipeline=pipeline, allow_imports=not no_imports, overrides=overrides)
