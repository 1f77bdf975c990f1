"""What a state holds: a cursor, and what the pipeline was, so that another one's is refused."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.errors import StateError

__all__ = ["STATE_VERSION", "checked_cursor", "packed_walk", "unpacked_walk"]

STATE_VERSION = 1
GREATEST = 2**53
"""The greatest number that every reader of JSON takes as it is."""
MOST = 2**24
"""More rows than are ever held back."""


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
    except (TypeError, ValueError, KeyError, OverflowError, zlib.error) as exc:
        raise StateError(f"the state's walk cannot be read ({type(exc).__name__}: {exc}): it is damaged") from exc


def _check(epoch: int, step: int, at: Any) -> int:
    try:
        return zlib.crc32(json.dumps([epoch, step, at], sort_keys=True).encode())
    except (TypeError, ValueError) as exc:
        raise StateError(f"the generator's own state_dict() is no JSON ({exc}): return numbers, text, lists") from exc


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _packed_vector(value)
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
        return _unpacked_vector(value)
    return value


def _packed_vector(value: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return numbers as text: one number as often as it is there, else differences where these are smaller.

    The text is the lowest bytes of all numbers, then the next ones, as many as the greatest one has: the key says so.
    """
    if len(value) and (value == value[0]).all():
        return {"same": [int(value[0]), len(value)]}
    steps = np.diff(value, prepend=0)
    near = np.abs(steps).sum() < np.abs(value).sum()
    words = (steps << 1) ^ (steps >> 63) if near else value  # the sign below, so that the high bytes are 0
    count = -(-int(np.bitwise_or.reduce(words.view(np.uint64))).bit_length() // 8)
    planes = words.astype("<i8").view(np.uint8).reshape(-1, 8).T[:count]
    return {f"{'d' if near else 'z'}{count}": base64.b64encode(zlib.compress(planes.tobytes())).decode()}


def _unpacked_vector(value: dict[str, Any]) -> npt.NDArray[np.int64]:
    ((key, packed),) = value.items()
    if key == "same":
        number, many = packed
        if type(many) is not int or not 0 < many < MOST:
            raise ValueError(f"there cannot be {many} numbers")
        return np.full(many, number, np.int64)
    kind, count = key[:1], int(key[1:])
    if kind not in ("d", "z") or not 0 <= count <= 8:
        raise ValueError(f"there are no numbers of the kind {key!r}")
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed, validate=True)), np.uint8)
    words = np.zeros((8, len(planes) // max(count, 1)), np.uint8)
    words[:count] = planes.reshape(count, -1) if count else 0
    numbers = np.frombuffer(words.T.tobytes(), "<i8").astype(np.int64)
    return np.cumsum((numbers >> 1) ^ -(numbers & 1)) if kind == "d" else numbers


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
