"""How long the caller waited, and for what."""

from __future__ import annotations

import time

__all__ = ["Statistics"]


class Statistics:
    """How many batches were delivered, and how long the callers waited for them."""

    def __init__(self) -> None:
        self.batches = 0
        self.waited = 0.0
        self.first: float | None = None
        self.began = time.perf_counter()

    def add(self, waited: float) -> None:
        """Count one delivered batch."""
        self.batches += 1
        self.waited += waited
        if self.first is None:
            self.first = waited

    def text(self, loaded_by: str) -> str:
        """Return the figures as a few lines; ``loaded_by`` says what did the work."""
        if not self.batches or self.first is None:
            return "nothing was loaded yet"
        return (
            f"{self.batches} batches {loaded_by}\n"
            f"first batch after {self.first * 1e3:.1f} ms; waited for data {self.waited:.3f} s in all, "
            f"{self.waited / self.batches * 1e6:.0f} µs a batch"
        )
