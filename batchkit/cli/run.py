"""``batchkit run``."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from batchkit.backends import row_count
from batchkit.cli.digest import Digest, host_array
from batchkit.cli.display import Display, make_display
from batchkit.cli.group import Interrupted, running
from batchkit.cli.options import load_loader, loader_options
from batchkit.errors import StateError
from batchkit.loader import Loader
from batchkit.stages import Batch
from batchkit.tree import Tree

__all__ = ["run"]


@click.command()
@loader_options
@click.option("--epochs", type=click.IntRange(min=1), default=1, show_default=True, help="How many epochs to load.")
@click.option("--steps", type=click.IntRange(min=1), help="Stop after so many batches.")
@click.option(
    "--state", type=click.Path(path_type=Path, dir_okay=False), help="Go on from this file, and write it at the end."
)
@click.option("--digest", is_flag=True, help="Print the SHA-256 of all batches.")
@click.option("--report", is_flag=True, help="Print where the time went.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def run(
    context: click.Context,
    /,
    epochs: int,
    steps: int | None,
    state: Path | None,
    digest: bool,
    report: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Load the batches of CONFIG, and tell how fast that went.

    The rest of an epoch that an earlier run left unfinished (--state) counts as an epoch.
    """
    if state is not None and not state.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {state.absolute().parent}", param_hint="--state")
    with load_loader(**given) as loader:
        with running(context):
            if state is not None and state.exists():
                loader.load_state_dict(_read_state(state))
            totals = _Totals(Digest() if digest else None, _has_mask(loader), loader.pipeline.collated)
            with contextlib.closing(make_display()) as display:
                totals.iterate(loader, epochs, steps, display)
            if state is not None:
                _write_state(state, loader.state_dict())
        summary = totals.summary(loader)
        if report:
            summary["report"] = loader.report()
        click.echo(json.dumps(summary, indent=2) if as_json else _text(summary))
        if totals.interrupted:
            kept = "" if state is None else f" {state} is written: the same command goes on from here."
            raise Interrupted(f"Interrupted after {totals.batches} batches.{kept}")


@dataclass
class _Totals:
    """What was delivered, and how long that took."""

    digest: Digest | None
    has_mask: bool
    collated: bool
    batches: int = 0
    rows: int = 0
    epochs: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    first: float | None = None
    interrupted: bool = False

    def iterate(self, loader: Loader, epochs: int, steps: int | None, display: Display) -> None:
        """Load batches until there were enough, or until Ctrl-C."""
        began = time.perf_counter()
        try:
            for _ in range(epochs):
                place = loader.state_dict()
                display.epoch(place["epoch"], place["step"], _length(loader))
                if not self._epoch(iter(loader), steps, display):
                    return
                self.epochs += 1
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.seconds = time.perf_counter() - began

    def _epoch(self, batches: Iterator[Tree], steps: int | None, display: Display) -> bool:
        """Load the rest of an epoch, and say whether it came to its end."""
        while steps is None or self.batches < steps:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return True
            waited = time.perf_counter() - asked
            self.waited += waited
            self.first = waited if self.first is None else self.first
            rows = self._rows(batch)
            self.batches += 1
            self.rows += rows
            if self.digest is not None:
                self.digest.add(batch)
            display.batch(rows)
        return False

    def _rows(self, batch: Tree) -> int:
        if self.has_mask and isinstance(batch, dict) and "mask" in batch:
            return int(host_array(batch["mask"], "the mask").sum())
        return 0 if self.collated else row_count(batch)

    def summary(self, loader: Loader) -> dict[str, Any]:
        """Return the figures as JSON values; a batch that a function has made does not say of how many rows."""
        known = not self.collated
        figures: dict[str, Any] = {
            "backend": loader.backend.name,
            "epochs": self.epochs,
            "batches": self.batches,
            "rows": self.rows if known else None,
            "seconds": self.seconds,
            "rows_per_s": (self.rows / self.seconds if self.seconds else 0.0) if known else None,
            "time_to_first_batch_s": self.first,
            "wait_share": self.waited / self.seconds if self.seconds else 0.0,
            "interrupted": self.interrupted,
        }
        return figures if self.digest is None else {**figures, "digest": self.digest.hexdigest()}


def _text(summary: dict[str, Any]) -> str:
    first = summary["time_to_first_batch_s"]
    loaded = [_count(summary["batches"], "batch", "es"), _count(summary["epochs"], "whole epoch")]
    rate = ""
    if summary["rows"] is not None:
        loaded.insert(1, _count(summary["rows"], "row"))
        rate = f": {summary['rows_per_s']:,.0f} rows/s"
    lines = [f"{', '.join(loaded)} in {summary['seconds']:.2f} s{rate}"]
    if first is not None:
        lines.append(f"first batch after {first * 1e3:.1f} ms; waited for data {summary['wait_share']:.0%} of the time")
    if "digest" in summary:
        lines.append(f"digest {summary['digest']}")
    if "report" in summary:
        lines.append(summary["report"])
    return "\n".join(lines)


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{'' if number == 1 else plural}"


def _has_mask(loader: Loader) -> bool:
    return any(isinstance(stage, Batch) and stage.remainder == "pad" for stage in loader.pipeline.stages)


def _length(loader: Loader) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def _read_state(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise StateError(f"{path} cannot be read as a state: {exc}. Remove it to start from the beginning") from exc


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write all of the file or nothing of it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(json.dumps(state) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as exc:
        raise StateError(f"the state cannot be written to {path}: {exc}") from exc
