"""What was measured, as Chrome trace events: https://perfetto.dev and ``chrome://tracing`` draw them."""

from __future__ import annotations

import json
import os
from typing import Any

from batchkit.metering import WAIT
from batchkit.report import Statistics

__all__ = ["trace_events", "write_trace"]


def trace_events(statistics: Statistics) -> list[dict[str, Any]]:
    """Return the events of the Trace Event Format: a complete event (``"X"``) a box, times in microseconds."""
    boxes = statistics.meter.events.latest()
    names = [
        {"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": _process_name(process)}}
        for process in dict.fromkeys(boxes["process"].tolist())
    ]
    return names + [_box(statistics, box, float(boxes["start"][0])) for box in boxes]


def _process_name(process: int) -> str:
    return "caller" if process == os.getpid() else f"worker {process}"


def _box(statistics: Statistics, event: Any, zero: float) -> dict[str, Any]:
    stage = int(event["stage"])
    box: dict[str, Any] = {
        "name": "wait" if stage == WAIT else statistics.name_of(stage),
        "cat": "wait" if stage == WAIT else "stage",
        "ph": "X",
        "ts": round((float(event["start"]) - zero) * 1e6, 3),
        "dur": round(float(event["seconds"]) * 1e6, 3),
        "pid": int(event["process"]),
        "tid": int(event["thread"]),
    }
    if event["step"] >= 0:
        box["args"] = {"epoch": int(event["epoch"]), "step": int(event["step"])}
    return box


def write_trace(statistics: Statistics, path: str | os.PathLike[str]) -> None:
    """Write the events to a file.

    Raises:
        OSError: the file cannot be written.
    """
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"traceEvents": trace_events(statistics), "displayTimeUnit": "ms"}, file)
