"""The report: one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from batchkit.bench.compare import Change
from batchkit.bench.figures import FIGURES, quantity
from batchkit.bench.plot import bars
from batchkit.bench.record import Record, Result

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --paper: #ffffff; --soft: #5f6c7b; --line: #d5dbe1; --bar: #3f8fa3;
  --good: #1b7f4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --paper: #14191f; --soft: #9aa7b4; --line: #333d47;
  --bar: #3a8295; --good: #5cc58c; --bad: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 880px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.note, caption { color: var(--soft); } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; } td.num { white-space: nowrap; }
.faster { color: var(--good); font-weight: 600; } .slower, .problem { color: var(--bad); }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .tick, svg .unit { fill: var(--soft); }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); } svg .bar { fill: var(--bar); }
svg .whisker { stroke: var(--ink); stroke-width: 1.3; } svg .round { fill: var(--ink); fill-opacity: .55; }
code { font-size: .9em; overflow-wrap: anywhere; } pre { white-space: pre-wrap; margin: 0; }
"""


def page(record: Record, changes: Sequence[Change] = (), notes: Sequence[str] = ()) -> str:
    """Return the report of a run as HTML; with ``changes`` since another one, and ``notes`` on those."""
    title = f"batchkit bench: {record.config['path']}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(record.date)}</p>',
        *_results(record),
        *_left_out(record),
        *_changes(changes, notes),
        *(f'<h2>{figure.title}</h2><div class="wide">{bars(figure, record.measured)}</div>' for figure in FIGURES),
        '<p class="note">A bar is the median of the rounds, the whisker reaches from the lowest to the highest, '
        "and a dot is a round.</p>",
        *_measured_on(record),
        *_rounds(record),
    ]
    if not record.measured:
        sections = [section for section in sections if "<svg" not in section]
    body = "\n".join(sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _results(record: Record) -> list[str]:
    if not record.measured:
        return ['<p class="problem">No contender could be measured.</p>']
    heads = ["backend", "executor", *(figure.title.lower() for figure in FIGURES), "bytes/s", "very first batch"]
    rows = [
        [
            result.backend,
            result.executor,
            *(figure.text(result) for figure in FIGURES),
            quantity(result.median(lambda turn: turn.bytes_per_s), "B/s"),
            quantity(result.cold_first_s, "s"),
            f"{record.relative(result):.2f}x",
        ]
        for result in record.measured
    ]
    return [
        "<h2>Results</h2>",
        _table([*heads, f"rows/s, times {record.measured[0].name}"], rows),
        '<p class="note">Medians of the rounds, and the lowest to the highest. The very first batch is that of '
        "the first turn, for which workers had to be started.</p>",
    ]


def _left_out(record: Record) -> list[str]:
    rows = [
        f"<tr><td>{escape(result.name)}</td><td class='problem'><pre>{escape(_reason(result))}</pre></td></tr>"
        for result in record.results
        if not result.measured
    ]
    if not rows:
        return []
    return ["<h2>Left out</h2>", f'<div class="wide"><table>{"".join(rows)}</table></div>']


def _reason(result: Result) -> str:
    return result.problem or "it was not run"


def _changes(changes: Sequence[Change], notes: Sequence[str]) -> list[str]:
    if not changes and not notes:
        return []
    heads = ["", "rows/s then", "now", "now / then", "", "first batch, times as soon", "", "place then", "place now"]
    rows = "".join(
        "<tr>"
        + _cells(
            change.name,
            quantity(change.then, "rows/s"),
            quantity(change.now, "rows/s"),
            f"{change.rows:.2f}x",
        )
        + _verdict(change.rows_verdict)
        + _cells(f"{change.first:.2f}x")
        + _verdict(change.first_verdict)
        + _cells(f"{change.place_then:.2f}x", f"{change.place_now:.2f}x")
        + "</tr>"
        for change in changes
    )
    table = f'<div class="wide"><table><tr>{_heads(heads)}</tr>{rows}</table></div>' if changes else ""
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return [
        "<h2>Against the other run</h2>",
        table,
        '<p class="note">Faster or slower is what is so in every round. A place is the throughput as a multiple of '
        "that of the first contender in the same run.</p>",
        f"<ul>{listed}</ul>" if listed else "",
    ]


def _measured_on(record: Record) -> list[str]:
    machine, terms = record.machine, record.terms
    facts = {
        "CPU": machine.get("cpu"),
        "cores": f"{machine.get('cores_usable')} usable of {machine.get('cores')}",
        "memory": quantity(machine.get("memory_bytes"), "B"),
        "system": machine.get("system"),
        "Python": machine.get("python"),
        **machine.get("packages", {}),
    }
    asked = {
        "config": record.config["path"],
        "pipeline": record.config.get("pipeline") or "the only one",
        "changed": ", ".join(f"{key}={value}" for key, value in record.config["overrides"].items()) or "nothing",
        "digest of the config": record.config["digest"],
        "rounds": f"{terms.rounds}, after {terms.warmup} to warm up",
        "a turn": f"{terms.steps or 'an epoch, or all'} batches, at most {terms.seconds:g} s",
        "work a batch": f"{terms.work_ms:g} ms, {'computing' if terms.busy else 'asleep'}" if terms.work_ms else "none",
    }
    if terms.steps is None:
        asked["a turn"] = f"an epoch, or several where that is quick; at most {terms.seconds:g} s"
    return ["<h2>Measured on</h2>", _facts(facts), "<h2>What was asked for</h2>", _facts(asked)]


def _rounds(record: Record) -> list[str]:
    rows = [
        [
            result.name,
            f"{kind} {index}",
            f"{turn.seconds:.4f}",
            f"{turn.batches:,}",
            f"{turn.rows:,}",
            f"{turn.waited_s:.4f}",
            f"{turn.first_s * 1e3:.3f}",
            quantity(turn.peak_bytes, "B"),
        ]
        for result in record.results
        for kind, turns in (("warm-up", result.warmup), ("round", result.turns))
        for index, turn in enumerate(turns, 1)
    ]
    heads = ["", "", "seconds", "batches", "rows", "waited, s", "first batch, ms", "peak memory"]
    return [f"<h2>All rounds</h2><details><summary>{len(rows)} turns</summary>{_table(heads, rows)}</details>"]


def _facts(facts: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items())
    return f'<div class="wide"><table>{rows}</table></div>'


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = "".join(f"<tr>{_cells(*row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{_heads(heads)}</tr>{lines}</table></div>'


def _heads(heads: Iterable[str]) -> str:
    return "".join(f"<th>{escape(head)}</th>" for head in heads)


def _cells(*texts: str) -> str:
    return "".join(f'<td class="num">{escape(text)}</td>' for text in texts)


def _verdict(verdict: str) -> str:
    kind = f' class="{verdict}"' if verdict in ("faster", "slower") else ""
    return f"<td{kind}>{escape(verdict)}</td>"
