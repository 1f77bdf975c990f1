"""What a pipeline is described with: Python's own values, and how labels and fingerprints show them."""

from __future__ import annotations

import functools
import hashlib
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from batchkit.errors import MissingLeafError, nearest
from batchkit.functions import describe_function, home_of

__all__ = ["check_by_leaf", "describe_value", "plain", "plain_scalar"]

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
_HASHED = 1 << 16  # bytes of an array that a description looks at


def plain(value: Any) -> Any:
    """Return Python's own number, boolean or text for one of NumPy's, in lists, tuples and mappings too.

    Of whole numbers of other kinds (an array without axes) the ``int``; anything else is returned as it is.

    >>> plain(np.int64(3)), plain({"x": [np.float32(0.5), np.bool_(True)]}), plain("x")
    (3, {'x': [0.5, True]}, 'x')
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return kind(map(plain, value))
    if isinstance(value, Mapping):
        return {plain(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.generic) or callable(value):
        return plain_scalar(value)
    if not hasattr(value, "__index__") or getattr(value, "ndim", 0) > 0:
        return value
    try:
        return operator.index(value)
    except TypeError:  # an array of floats
        return value


def plain_scalar(value: Any) -> Any:
    """The same of a single value, and nothing else.

    >>> plain_scalar(np.float64(0.5)), plain_scalar([np.int64(1)]) == [np.int64(1)]
    (0.5, True)
    """
    return value.item() if isinstance(value, np.generic) and value.dtype.kind in "biufcUS" else value


def describe_value(value: Any) -> str:
    """Return how labels and fingerprints show an argument: the same in every process, and for NumPy's numbers too.

    A function is shown by its name, an array by its dtype, shape and a digest, and an object that would only show
    where it lies in memory by its class.

    >>> describe_value({"size": (8, 8), "fn": len, "part": 0.5}), describe_value(object())
    ("{'size': (8, 8), 'fn': builtins:len, 'part': 0.5}", 'builtins:object')
    >>> describe_value(np.int64(3)), describe_value(np.zeros(3))
    ('3', 'float64[3]#52f512839b')
    """
    kind = type(value)
    if kind is dict:
        return f"{{{', '.join(f'{describe_value(key)}: {describe_value(part)}' for key, part in value.items())}}}"
    if kind is list:
        return f"[{_listed(value)}]"
    if kind is tuple:
        return f"({_listed(value)}{',' if len(value) == 1 else ''})"
    if kind in (set, frozenset):  # whose order differs from process to process
        return f"{kind.__name__}({', '.join(sorted(map(describe_value, value)))})"
    if isinstance(value, np.generic) and value.dtype.kind in "biufcUS":
        return repr(value.item())
    if isinstance(value, np.ndarray):
        return _described_array(value)
    if isinstance(value, functools.partial) or (callable(value) and hasattr(value, "__qualname__")):
        return describe_function(value)
    shown = repr(value)
    return f"{home_of(kind)}:{kind.__qualname__}" if _ADDRESS.search(shown) else shown


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(describe_value, values))


def _described_array(array: np.ndarray[Any, Any]) -> str:
    digest = hashlib.blake2b(digest_size=5)
    if array.dtype.hasobject:
        digest.update(_listed(array.ravel().tolist()).encode())
    else:
        every = -(-array.nbytes // _HASHED) or 1
        digest.update(np.ascontiguousarray(array.reshape(-1)[::every]).tobytes())
    return f"{array.dtype.name}{list(array.shape)}#{digest.hexdigest()}"


def check_by_leaf(given: Any, paths: Sequence[str], where: str) -> None:
    """Make sure that an argument that is a mapping by leaf names leaves that rows have; ``where`` begins the message.

    Raises:
        MissingLeafError: there is no such leaf; names the nearest.
    """
    for name in given if isinstance(given, Mapping) else ():
        if name not in paths:
            known = ", ".join(filter(None, paths)) or "none with a name"
            raise MissingLeafError(
                f"{where}: there is no leaf {name!r}{nearest(str(name), list(paths))} (there are: {known})"
            )
