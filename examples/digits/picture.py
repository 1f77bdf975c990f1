"""The demo's picture: loss curves, and throughputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt

COLOURS = {"torch": "#d1495b", "tensorflow": "#edae49", "jax": "#00798c"}


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw one curve and one bar for every record."""
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
    for record in records:
        losses = record["losses"]
        label = f"{record['backend']}, {record['accuracy']:.1%} of the test set right"
        curves.plot(range(1, len(losses) + 1), losses, color=COLOURS[record["backend"]], label=label)
    curves.set(yscale="log", xlabel="epoch", ylabel="mean training loss", title="The same batches, in the same order")
    curves.grid(alpha=0.3, which="both")
    curves.legend(frameon=False)

    names = [record["backend"] for record in records]
    speeds = [record["rows_per_second"] for record in records]
    drawn = bars.barh(names, speeds, color=[COLOURS[name] for name in names])
    notes = [f" {record['rows_per_second']:,.0f}\n {record['waiting']:.1%} waiting" for record in records]
    bars.bar_label(drawn, notes)
    bars.invert_yaxis()
    bars.set(xlabel="rows trained on per second", title="Throughput, and time waiting for data")
    bars.set_xlim(0, max(speeds) * 1.45)
    bars.xaxis.set_major_locator(plt.MaxNLocator(5))
    bars.xaxis.set_major_formatter("{x:,.0f}")
    bars.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
