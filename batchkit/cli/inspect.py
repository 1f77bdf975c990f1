"""``batchkit inspect``."""

from __future__ import annotations

import json
import warnings
from typing import Any

import click

from batchkit.cli.group import running
from batchkit.cli.options import load_loader, loader_options
from batchkit.errors import BatchkitError, NarrowingWarning
from batchkit.executors import AutoExecutor
from batchkit.loader import Loader
from batchkit.pipeline import Pipeline
from batchkit.schema import LeafSpec, describe
from batchkit.tree import map_leaves

__all__ = ["inspect"]


@click.command()
@loader_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def inspect(context: click.Context, /, as_json: bool, **given: Any) -> None:
    """Show what CONFIG describes: stages, row and batch schema, number of batches, what is narrowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NarrowingWarning)  # what is narrowed is shown with the rest
        loader = load_loader(**given)
    with loader, running(context):
        click.echo(json.dumps(_described(loader), indent=2) if as_json else _text(loader))


def _text(loader: Loader) -> str:
    narrowed = _narrowed(loader)
    batches = _length(loader)
    rank, world = loader.shard
    lines = [
        str(loader.pipeline),
        f"batch: {describe(loader.schema)}",
        f"batches: {'unknown or endless' if batches is None else batches} an epoch",
        f"shard: {rank} of {world}",
        f"backend: {loader.backend.name}" + ("" if loader.device is None else f" on {loader.device}"),
        f"executor: {loader.executor.name}, workers {_chosen(loader, loader.workers)}, "
        f"prefetch {_chosen(loader, loader.prefetch)}",
    ]
    return "\n".join([*lines, *(f"narrowed: {text}" for text in narrowed)])


def _described(loader: Loader) -> dict[str, Any]:
    pipe = loader.pipeline
    ends = [_row_schema(Pipeline(pipe.source, pipe.stages[:end])) for end in range(len(pipe.stages) + 1)]
    return {
        "source": getattr(pipe.source, "kind", type(pipe.source).__name__),
        "rows": len(pipe.source) if hasattr(pipe.source, "__len__") else None,
        "row_schema": ends[0],
        "stages": [
            {"verb": stage.verb, "label": stage.label, "row_schema": end}
            for stage, end in zip(pipe.stages, ends[1:], strict=True)
        ],
        "batch_schema": map_leaves(_spec, loader.schema),
        "batches": _length(loader),
        "shard": list(loader.shard),
        "backend": loader.backend.name,
        "device": None if loader.device is None else str(loader.device),
        "executor": loader.executor.name,
        "workers": _chosen(loader, loader.workers),
        "prefetch": _chosen(loader, loader.prefetch),
        "narrowing": _narrowed(loader),
    }


def _chosen(loader: Loader, number: int) -> int | str:
    """Return a number, or ``"auto"`` where it is chosen while batches are loaded."""
    return "auto" if isinstance(loader.executor, AutoExecutor) else number


def _row_schema(pipe: Pipeline) -> Any:
    try:
        schema = pipe.schema
    except BatchkitError as exc:
        return {"problem": str(exc)}
    return None if schema is None else map_leaves(_spec, schema)


def _spec(spec: LeafSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype.name, "shape": list(spec.shape)}


def _length(loader: Loader) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def _narrowed(loader: Loader) -> list[str]:
    """Return what the framework has only a narrower dtype for: ``x: float64 -> float32 (jax)``."""
    return [
        f"{path or 'the only leaf'}: {wide.name} -> {narrow.name} ({loader.backend.name} has no {wide.name} here)"
        for path, (wide, narrow) in loader.narrowing.items()
    ]
