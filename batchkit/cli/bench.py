"""``batchkit bench``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchkit.cli.options import traceback_option
from batchkit.config import parse_assignment

if TYPE_CHECKING:
    from rich.table import Table

    from batchkit.bench import Change, Record

__all__ = ["bench"]

_WIDE = 180  # columns of a table that no terminal limits
_REASON = 300  # characters of a reason that are printed; all of them are in the files


def _names(context: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the names between the commas, each once, in the order given."""
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    if not all(names):
        raise click.BadParameter(f"{value!r} has an empty name: write numpy,torch", context, param)
    return names


@click.command()
@click.argument("config", type=click.Path())
@click.option("--backends", callback=_names, metavar="A,B", default="numpy", show_default=True, help="Which backends.")
@click.option(
    "--executors",
    callback=_names,
    metavar="A,B",
    default="inline,threads,processes",
    show_default=True,
    help="Which executors, each with every backend.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="How many turns each has.")
@click.option(
    "--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Turns before that, uncounted."
)
@click.option("--steps", type=click.IntRange(min=1), help="Batches a turn, instead of an epoch.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True, help="Cut a turn off."
)
@click.option(
    "--work", "work_ms", type=click.FloatRange(min=0), default=0.0, metavar="MS", help="Take so long for every batch."
)
@click.option("--busy", is_flag=True, help="Compute during --work instead of sleeping.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Give a contender up after so many seconds of silence.",
)
@click.option(
    "--against", type=click.Path(path_type=Path, dir_okay=False), help="Compare with the bench.json of another run."
)
@click.option("--fail-on-slower", is_flag=True, help="End with 1 where --against shows less rows/s beyond the spread.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench-results"),
    show_default=True,
    help="The folder for bench.json and bench.html.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@click.option("--pipeline", metavar="NAME", help="Which one of the file's pipelines.")
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Change a value of the file.")
@click.option("--no-imports", is_flag=True, help="Refuse a config that names functions or plugins.")
@traceback_option
@click.pass_context
def bench(
    context: click.Context,
    /,
    config: str,
    backends: tuple[str, ...],
    executors: tuple[str, ...],
    against: Path | None,
    fail_on_slower: bool,
    output: Path,
    as_json: bool,
    pipeline: str | None,
    assignments: tuple[str, ...],
    no_imports: bool,
    **terms: Any,
) -> None:
    """Measure the pipeline of CONFIG with several backends and executors.

    Each pair has a process of its own. They take turns, round after round, so that whatever else
    the machine does hits all of them alike. One that is missing or fails is a line that says why.
    """
    from batchkit import bench as benchmark  # not needed by the other commands
    from batchkit.bench.record import read

    if terms["timeout"] <= terms["seconds"]:
        raise click.BadParameter("it must be longer than --seconds, or every turn times out", param_hint="--timeout")
    if fail_on_slower and against is None:
        raise click.UsageError("--fail-on-slower needs --against")
    other = None if against is None else read(against)  # now: it may be the file that is written below
    contest = benchmark.Contest(config, pipeline, dict(map(parse_assignment, assignments)), not no_imports)
    asked = benchmark.Terms(**terms)
    benchmark.check(contest, asked)
    _make_folder(output)
    entries = [benchmark.Entry(backend, executor) for backend in backends for executor in executors]
    record = benchmark.measure(contest, entries, asked, lambda: datetime.now(timezone.utc).astimezone(), _tell)
    changes = [] if other is None else benchmark.compare(record, other)
    notes = [] if other is None else benchmark.incomparable(record, other)
    _write(output / "bench.json", record.text())
    _write(output / "bench.html", benchmark.page(record, changes, notes))
    if as_json:
        click.echo(record.text(), nl=False)
    else:
        _print(record, changes, notes)
    _tell(f"written: {output / 'bench.json'}, {output / 'bench.html'}")
    if not record.measured or (fail_on_slower and any(change.rows_verdict == "slower" for change in changes)):
        context.exit(1)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise click.BadParameter(f"the folder cannot be made: {exc}", param_hint="--output") from exc


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise click.ClickException(f"{path} cannot be written: {exc}") from exc


def _print(record: Record, changes: Sequence[Change], notes: Sequence[str]) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    if record.measured:
        console.print(_results(record))
    for result in record.results:
        if not result.measured:
            reason = " ".join((result.problem or "it was not run").split())
            console.print(f"{result.name} is left out: {reason[:_REASON]}", soft_wrap=True)
    if not record.measured:
        console.print("no contender could be measured")
    if changes:
        console.print(_changes(changes))
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)


def _results(record: Record) -> Table:
    from rich.table import Table

    from batchkit.bench.figures import FIGURES

    rounds = record.terms.rounds
    table = Table(title=f"Medians of {rounds} round{'' if rounds == 1 else 's'} (lowest to highest)")
    for heading in ("backend", "executor"):
        table.add_column(heading)
    headings = ("rows/s", "first batch", "waited", "peak memory", f"times {record.measured[0].name}")
    for heading in headings:
        table.add_column(heading, justify="right")
    for result in record.measured:
        cells = [figure.text(result) for figure in FIGURES]
        table.add_row(result.backend, result.executor, *cells, f"{record.relative(result):.2f}x")
    return table


def _changes(changes: Sequence[Change]) -> Table:
    from rich.table import Table

    from batchkit.bench.figures import quantity

    table = Table(title="Against the other run")
    table.add_column("contender")
    for heading in ("rows/s then", "now", "now / then", "first batch", f"times {changes[0].name}"):
        table.add_column(heading, justify="right")
    for change in changes:
        table.add_row(
            change.name,
            quantity(change.then, "rows/s"),
            quantity(change.now, "rows/s"),
            f"{change.rows:.2f}x {change.rows_verdict}",
            f"{change.first:.2f}x {change.first_verdict}",
            f"{change.place_then:.2f}x then, {change.place_now:.2f}x now",
        )
    return table
