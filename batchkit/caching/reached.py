"""How far a cache of rows that come in order has got: what a process that goes on with it has to know."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["NOTE", "Reached", "read_reached", "write_reached"]

NOTE = "reached.json"
_FORMAT = 1


class Reached(NamedTuple):
    """Rows up to ``number`` were put into a cache, and what gives them stood at ``state`` behind the last of them.

    That stays true where rows are lost: such a cache has gaps.

    ``rows`` is how many there are, once the end was seen.
    """

    number: int = 0
    state: Any = None
    rows: int | None = None

    @property
    def complete(self) -> bool:
        """Whether all rows were put there."""
        return self.number == self.rows


def read_reached(folder: Path) -> Reached:
    """Return what is noted in the folder of a cache: the beginning, where there is nothing or it is damaged."""
    try:
        content = json.loads((folder / NOTE).read_bytes())
        if content.pop("checksum") != _checksum(content) or content["format"] != _FORMAT:
            return Reached()
        return Reached(content["number"], _restored(content["state"]), content["rows"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Reached()


def write_reached(folder: Path, reached: Reached) -> None:
    """Put a note in place, all of it at once. The caller holds the cache's lock.

    Raises:
        OSError: that is not possible.
    """
    content = {"format": _FORMAT, "number": reached.number, "rows": reached.rows}
    try:
        content["state"] = _plain(reached.state)
        text = json.dumps({**content, "checksum": _checksum(content)})
    except (TypeError, ValueError):  # a generator's own state that is no JSON: others begin at the beginning
        content.update(number=0, state=None)
        text = json.dumps({**content, "checksum": _checksum(content)})
    descriptor, part = tempfile.mkstemp(".part", f"{NOTE}.", folder)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, folder / NOTE)
    except BaseException:
        os.unlink(part)
        raise


def _checksum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _plain(state: Any) -> Any:
    if isinstance(state, np.ndarray):
        return {"array": state.tolist()}
    if isinstance(state, (list, tuple)):
        return [_plain(part) for part in state]
    if isinstance(state, dict):
        return {"own": state}
    return state if state is None or isinstance(state, (str, float)) else int(state)


def _restored(state: Any) -> Any:
    if isinstance(state, list):
        return [_restored(part) for part in state]
    if isinstance(state, dict):
        return state["own"] if "own" in state else np.array(state["array"], np.int64)
    return state
