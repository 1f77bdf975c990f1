"""What a state holds: a cursor, and what the pipeline was, so that another one's is refused."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from batchkit.errors import StateError

__all__ = ["STATE_VERSION", "checked_cursor", "packed_walk", "unpacked_walk"]

STATE_VERSION = 1
GREATEST = 2**53
"""The greatest number that every reader of JSON takes as it is."""


def packed_walk(epoch: int, step: int, walk: Any) -> dict[str, Any]:
    """Return where a walk stood as JSON, with a check that it belongs to the step.

    Raises:
        StateError: a generator's own state is no JSON.
    """
    at = _packed(walk)
    return {"at": at, "check": _check(epoch, step, at)}


def unpacked_walk(state: Mapping[str, Any], indexed: bool) -> Any:
    """Return what was packed, or ``None`` if the state holds no walk; those of an ``indexed`` pipeline never do.

    Raises:
        StateError: it is damaged.
    """
    walk = state.get("walk")
    if walk is None:
        return None
    if indexed or not state["step"]:
        raise StateError("the state has a walk, which no state of this pipeline has here: it is damaged")
    try:
        at = walk["at"]
        if walk["check"] != _check(state["epoch"], state["step"], at):
            raise StateError("the state's walk does not fit its epoch and step: it is damaged")
        return _unpacked(at)
    except (TypeError, ValueError, KeyError, zlib.error) as exc:
        raise StateError(f"the state's walk cannot be read ({type(exc).__name__}: {exc}): it is damaged") from exc


def _check(epoch: int, step: int, at: Any) -> int:
    try:
        return zlib.crc32(json.dumps([epoch, step, at], sort_keys=True).encode())
    except (TypeError, ValueError) as exc:
        raise StateError(f"the generator's own state_dict() is no JSON ({exc}): return numbers, text, lists") from exc


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        rising = bool((value[1:] >= value[:-1]).all())  # then the differences are small
        words = (np.diff(value, prepend=0) if rising else value).astype("<i8")
        planes = np.frombuffer(words.tobytes(), np.uint8).reshape(-1, 8).T.tobytes()
        return {"d" if rising else "z": base64.b64encode(zlib.compress(planes)).decode()}
    if isinstance(value, (list, tuple)):
        return [_packed(each) for each in value]
    if isinstance(value, dict):
        return {"own": value}
    return value if value is None or isinstance(value, (str, float)) else int(value)


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(each) for each in value]
    if isinstance(value, dict) and "own" in value:
        return value["own"]
    if isinstance(value, dict):
        ((key, text),) = value.items()
        planes = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
        words = np.frombuffer(planes.reshape(8, -1).T.tobytes(), "<i8").astype(np.int64)
        return np.cumsum(words) if key == "d" else words
    return value


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
        if state[key] > GREATEST:
            raise StateError(f"the state's {key} is {state[key]}, more than there can be: it is damaged")
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
