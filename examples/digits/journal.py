"""What a training run writes down: a digest of what it was fed, its losses, its speed, its waiting."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@dataclass
class Journal:
    """The record of one run.

    The first epoch is the one that is digested. It is left out of the times, which would
    otherwise measure the digest, and the frameworks' compilers.
    """

    backend: str
    epochs: int
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    rows: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    digest: Any = field(default_factory=hashlib.sha256)

    def progress(self) -> Iterator[int]:
        """Count the epochs: with a bar on a terminal, in plain lines elsewhere."""
        console = Console()
        if not console.is_terminal:
            for epoch in range(self.epochs):
                yield epoch
                if (epoch + 1) % 10 == 0 or epoch + 1 == self.epochs:
                    done = f"epoch {epoch + 1:3}/{self.epochs}"
                    print(f"{self.backend:10} {done}  loss {self.losses[-1]:.4f}", flush=True)
            return
        columns = (
            TextColumn("{task.description:10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(self.backend, total=self.epochs, loss="")
            for epoch in range(self.epochs):
                yield epoch
                bar.update(task, advance=1, loss=f"loss {self.losses[-1]:.4f}")

    def watch(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Hand on one epoch's batches, and write down how long each was waited for."""
        first = not self.losses
        begin = asked = time.perf_counter()
        for batch in loader:
            got = time.perf_counter()
            if first:
                self._digest(batch)
            else:
                self.waiting += got - asked
                self.rows += len(batch["label"])
            yield batch
            asked = time.perf_counter()
        if not first:
            self.seconds += time.perf_counter() - begin

    def _digest(self, batch: dict[str, Any]) -> None:
        for name in sorted(batch):
            values = np.asarray(batch[name])
            if values.dtype.kind in "iu":
                # JAX has no 64-bit integers unless asked: the same labels, in a narrower dtype.
                values = values.astype(np.int64)
            self.digest.update(f"{name} {values.dtype} {values.shape}".encode())
            self.digest.update(values.tobytes())

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        record = {
            "backend": self.backend,
            "digest": self.digest.hexdigest(),
            "accuracy": self.accuracy,
            "rows_per_second": self.rows / self.seconds,
            "waiting": self.waiting / self.seconds,
            "losses": self.losses,
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=2))
