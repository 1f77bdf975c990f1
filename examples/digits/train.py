"""Train on the digits with one framework: ``python train.py --backend jax``."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import batchkit as bk
from journal import Journal
from prepare import prepare

HERE = Path(__file__).parent
FRAMEWORKS = ("torch", "tensorflow", "jax")


def main() -> None:
    """Train, and write the record to ``<backend>.json``."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--backend", choices=FRAMEWORKS, required=True)
    arguments.add_argument("--epochs", type=int, default=60)
    arguments.add_argument("--out", type=Path, default=HERE / "out", help="the folder for the record")
    options = arguments.parse_args()

    prepare()
    journal = Journal(options.backend, options.epochs)
    train = import_module(f"train_{options.backend}").train
    config = HERE / "digits.yaml"
    with (
        bk.load(config, pipeline="train", backend=options.backend) as training,
        bk.load(config, pipeline="test", backend=options.backend) as test,
    ):
        journal.accuracy = train(training, test, journal)
    journal.write(options.out / f"{options.backend}.json")


if __name__ == "__main__":
    main()
