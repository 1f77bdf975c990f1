"""What a state holds: a cursor, and what the pipeline was, so that another one's is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from batchkit.errors import StateError

__all__ = ["STATE_VERSION", "checked_cursor"]

STATE_VERSION = 1


def checked_cursor(state: Any, fingerprint: Mapping[str, Any]) -> tuple[int, int]:
    """Return the (epoch, step) of a state of the pipeline with this ``fingerprint``.

    Raises:
        StateError: the state is damaged, or of another pipeline or data set; names what differs.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"a state is a dict from state_dict(), not a {type(state).__name__}")
    lacking = [key for key in ("version", "epoch", "step", "pipeline") if key not in state]
    if lacking:
        raise StateError(f"the state lacks {', '.join(lacking)}: it is damaged, or not from state_dict()")
    if state["version"] != STATE_VERSION:
        raise StateError(f"the state has version {state['version']!r}, and this batchkit reads {STATE_VERSION}")
    for key in ("epoch", "step"):
        if type(state[key]) is not int or state[key] < 0:
            raise StateError(f"the state's {key} is {state[key]!r}, not a whole number of at least 0: it is damaged")
    theirs = state["pipeline"]
    if not isinstance(theirs, Mapping) or not isinstance(theirs.get("stages"), Iterable):
        raise StateError("the state's pipeline is damaged: it should hold 'source' and 'stages'")
    _check_same(theirs, fingerprint)
    return state["epoch"], state["step"]


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    then, now = list(theirs["stages"]), ours["stages"]
    for number in range(max(len(then), len(now))):
        one = then[number] if number < len(then) else "nothing"
        two = now[number] if number < len(now) else "nothing"
        if one != two:
            raise StateError(
                f"the state is of another pipeline: its stage {number} is {one}, and here it is {two}. "
                "Load it with the pipeline it was taken from"
            )
    if theirs.get("source") != ours["source"]:
        raise StateError(
            f"the state is of another data set: its fingerprint is {theirs.get('source')}, and here it is "
            f"{ours['source']}. "
            "The rows, their number or dtypes changed since"
        )
