"""What was measured, as Chrome trace events: https://perfetto.dev and ``chrome://tracing`` draw them."""

from __future__ import annotations

import json
import os
from typing import Any

from batchkit.metering import Event
from batchkit.report import Statistics

__all__ = ["trace_events", "write_trace"]


def trace_events(statistics: Statistics) -> list[dict[str, Any]]:
    """Return the events of the Trace Event Format: a complete event (``"X"``) a box, times in microseconds."""
    boxes = sorted(statistics.meter.events, key=lambda event: event.start)
    if not boxes:
        return []
    zero = boxes[0].start
    names = [
        {"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": _process_name(process)}}
        for process in dict.fromkeys(event.process for event in boxes)
    ]
    return names + [_box(event, statistics.name_of(event.name), zero) for event in boxes]


def _process_name(process: int) -> str:
    return "caller" if process == os.getpid() else f"worker {process}"


def _box(event: Event, name: str, zero: float) -> dict[str, Any]:
    box: dict[str, Any] = {
        "name": name,
        "cat": "wait" if event.name == "wait" else "stage",
        "ph": "X",
        "ts": round((event.start - zero) * 1e6, 3),
        "dur": round(event.seconds * 1e6, 3),
        "pid": event.process,
        "tid": event.thread,
    }
    if event.step is not None:
        box["args"] = {"epoch": event.step[0], "step": event.step[1]}
    return box


def write_trace(statistics: Statistics, path: str | os.PathLike[str]) -> None:
    """Write the events to a file.

    Raises:
        OSError: the file cannot be written.
    """
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"traceEvents": trace_events(statistics), "displayTimeUnit": "ms"}, file)
