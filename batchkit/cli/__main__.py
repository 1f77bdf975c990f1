"""``python -m batchkit.cli``."""

from __future__ import annotations

from batchkit.cli import main

if __name__ == "__main__":
    main(prog_name="batchkit")
