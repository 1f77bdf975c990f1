"""Train the same pipeline with every framework that is installed, and compare.

Exits with 1 where two frameworks were fed different batches, or one learned too little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from batchkit.plugins import installed
from picture import draw
from prepare import prepare
from train import FRAMEWORKS

HERE = Path(__file__).parent
GOAL = 0.95
# TensorFlow keeps its notices to itself, and adds up in the same order on every machine.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}

Record = dict[str, Any]


def available(names: list[str]) -> list[str]:
    """Return those of ``names`` that can train here; print why the others cannot."""
    problems = {info.name: info.problem for info in installed().found()}
    ready = []
    for name in names:
        problem = problems.get(name, f"pip install batchkit-{name}")
        if problem:
            print(f"{name} is left out: {problem}")
        else:
            ready.append(name)
    return ready


def train(backend: str, options: argparse.Namespace) -> Record:
    """Train in a process of its own, so that no framework disturbs another; return what it wrote down."""
    command = [sys.executable, HERE / "train.py", "--backend", backend]
    command += ["--epochs", str(options.epochs), "--out", options.out]
    subprocess.run(command, check=True, env={**QUIET, **os.environ})
    record: Record = json.loads((options.out / f"{backend}.json").read_text())
    return record


def show(records: list[Record]) -> None:
    """Print the table."""
    table = Table(title="One pipeline definition, every framework")
    for heading in ("framework", "first epoch"):
        table.add_column(heading, no_wrap=True)
    for heading in ("accuracy", "rows/s", "waiting"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            record["backend"],
            record["digest"][:16],
            f"{record['accuracy']:.1%}",
            f"{record['rows_per_second']:,.0f}",
            f"{record['waiting']:.1%}",
        )
    Console().print(table)
    print(
        "first epoch: the digest of its batches; accuracy: on the test set; "
        "rows/s: trained on; waiting: for data, of the whole time"
    )


def failures(records: list[Record]) -> list[str]:
    """Return what went wrong."""
    wrong = [
        f"{record['backend']} got {record['accuracy']:.1%} of the test set right, less than {GOAL:.0%}"
        for record in records
        if record["accuracy"] < GOAL
    ]
    if len({record["digest"] for record in records}) > 1:
        wrong.append("the frameworks were fed different batches: the digests differ")
    return wrong


def main() -> int:
    """Train, show, draw; return the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--backend", choices=FRAMEWORKS, action="append", help="only this one; may be repeated")
    arguments.add_argument("--epochs", type=int, default=60)
    arguments.add_argument("--out", type=Path, default=HERE / "out", help="the folder for the records")
    arguments.add_argument("--picture", type=Path, default=HERE / "digits.png")
    options = arguments.parse_args()

    prepare()
    backends = available(options.backend or list(FRAMEWORKS))
    if not backends:
        print("no framework is installed: make install")
        return 1
    records = [train(backend, options) for backend in backends]
    show(records)
    draw(records, options.picture)
    print(f"loss curves and throughputs: {options.picture}")
    for failure in failures(records):
        print(f"FAILED: {failure}")
    return 1 if failures(records) else 0


if __name__ == "__main__":
    sys.exit(main())
