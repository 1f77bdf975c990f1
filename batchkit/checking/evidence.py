"""What in a function may make it impure: what it changes outside of itself, and what it calls.

Evidence explains a difference that was seen; it never counts as one.
"""

from __future__ import annotations

import builtins
import dis
import functools
import hashlib
import itertools
import pickle
import random
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["RANDOM", "changes", "global_random", "names_in", "outside", "snapshot"]

RANDOM = (np.random.Generator, np.random.RandomState, random.Random)
_DEPTH = 3  # how far helper functions and nested values are followed
_ITEMS = 1000
_BYTES = 1 << 26
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_FAST", "LOAD_CLASSDEREF")

Getter = Callable[[], Any]


def outside(function: Any, depth: int = _DEPTH) -> dict[str, Getter]:
    """Return what a function refers to that lives longer than a call: name -> what returns its value now."""
    found: dict[str, Getter] = {}
    if isinstance(function, functools.partial):
        found |= {name: functools.partial(_kept, value) for name, value in function.keywords.items()}
        found |= {f"argument {number}": functools.partial(_kept, one) for number, one in enumerate(function.args)}
        return found | outside(function.func, depth)
    if isinstance(function, types.MethodType):
        return _attributes(function.__self__) | outside(function.__func__, depth)
    if not isinstance(function, types.FunctionType):
        call = _call_of(function)
        inner = outside(call, depth) if isinstance(call, types.FunctionType) else {}
        return _attributes(function) | inner
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        found[name] = functools.partial(_of_cell, cell)
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            found[name] = functools.partial(function.__globals__.get, name)
    found |= _attributes(function)
    for number, value in enumerate(function.__defaults__ or ()):
        found[_default_name(function, number)] = functools.partial(_kept, value)
    if depth > 0:
        for helper in [getter() for getter in [*found.values()]]:
            if isinstance(helper, types.FunctionType) and _near(helper, function):
                found |= {name: get for name, get in outside(helper, depth - 1).items() if name not in found}
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names whose value is another one; both are what :func:`snapshot` returned."""
    return [name for name, token in before.items() if token is not None and after.get(name) != token]


def snapshot(found: Mapping[str, Getter]) -> dict[str, Any]:
    """Return something that stands for each value as it is now; ``None`` where it cannot be known."""
    return {name: _token(getter()) for name, getter in found.items()}


def global_random() -> dict[str, Any]:
    """Return what stands for the states of the global random numbers."""
    state = np.random.get_state(legacy=False)
    return {"NumPy's": _hashed(repr(state).encode() + state["state"]["key"].tobytes()), "Python's": _token(random)}


def names_in(function: Any, depth: int = _DEPTH) -> set[str]:
    """Return the dotted names of modules' members that a function's code refers to: ``numpy.random.rand``."""
    if isinstance(function, functools.partial):
        return names_in(function.func, depth)
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType):
        function = _call_of(function)
        if not isinstance(function, types.FunctionType):
            return set()
    found = set(itertools.chain.from_iterable(_chains(code, function) for code in _codes(function.__code__)))
    if depth > 0:
        for name in _global_names(function.__code__):
            helper = function.__globals__.get(name)
            if isinstance(helper, types.FunctionType) and _near(helper, function):
                found |= names_in(helper, depth - 1)
    return found


def _call_of(thing: Any) -> Any:
    """Return the function behind an object that can be called."""
    return next((vars(one)["__call__"] for one in type(thing).__mro__ if "__call__" in vars(one)), None)


def _chains(code: types.CodeType, function: types.FunctionType) -> Iterator[str]:
    closed = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    imported: dict[str, str] = {}
    chain = last_import = ""
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name == "IMPORT_NAME":
            chain = last_import = str(value)
        elif name == "IMPORT_FROM":
            chain = f"{last_import}.{value}"
        elif name.startswith("STORE_"):
            if chain:
                imported[str(value)] = chain
            chain = ""
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = f"{chain}.{value}" if chain else ""
        elif name.startswith(_LOADS) and isinstance(value, str):
            known = function.__globals__.get(value, getattr(builtins, value, None))
            if value in closed:
                known = _of_cell(closed[value])
            chain = imported.get(value) or _name_of(known, value)
        else:
            chain = ""
        if chain:
            yield chain


def _name_of(value: Any, name: str) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(getattr(value, "__self__", None), np.random.RandomState):
        return f"numpy.random.{name}"
    if isinstance(getattr(value, "__self__", None), random.Random):
        return f"random.{name}"
    if isinstance(value, (types.BuiltinFunctionType, type)) or value is hash:
        return f"{value.__module__}.{value.__qualname__}"
    return f"builtins.{name}" if name in ("id", "hash") and value is None else ""


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _codes(value)


def _global_names(code: types.CodeType) -> set[str]:
    return {
        str(instruction.argval)
        for one in _codes(code)
        for instruction in dis.get_instructions(one)
        if instruction.opname in ("LOAD_GLOBAL", "STORE_GLOBAL", "LOAD_NAME")
    }


def _near(helper: types.FunctionType, function: types.FunctionType) -> bool:
    """Whether a helper is the user's own, too."""
    return helper.__module__ == function.__module__


def _default_name(function: types.FunctionType, number: int) -> str:
    code, defaults = function.__code__, function.__defaults__ or ()
    return code.co_varnames[code.co_argcount - len(defaults) + number]


def _attributes(thing: Any) -> dict[str, Getter]:
    own = getattr(thing, "__dict__", None)
    if not isinstance(own, dict):
        return {}
    owner = "self" if not isinstance(thing, types.FunctionType) else thing.__name__
    return {f"{owner}.{name}": functools.partial(own.get, name) for name in own}


def _kept(value: Any) -> Any:
    return value


def _of_cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _hashed(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _token(value: Any, depth: int = _DEPTH) -> Any:
    if value is random:
        return _hashed(repr(random.getstate()).encode())
    if isinstance(value, (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType)):
        return None
    if isinstance(value, np.random.Generator):
        return _hashed(repr(value.bit_generator.state).encode())
    if isinstance(value, np.random.RandomState):
        return _hashed(repr(value.get_state(legacy=False)).encode() + value.get_state(legacy=False)["state"]["key"])
    if isinstance(value, random.Random):
        return _hashed(repr(value.getstate()).encode())
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), np.generic, itertools.count)):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, np.ndarray):
        return None if value.nbytes > _BYTES or value.dtype.hasobject else _hashed(value.tobytes())
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        return "ended" if frame is None else (frame.f_lasti, frame.f_lineno, _token(dict(frame.f_locals), depth - 1))
    if depth <= 0:
        return None
    return _token_of_many(value, depth - 1)


def _token_of_many(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        some = itertools.islice(value.items(), _ITEMS)
        return "mapping", len(value), [(str(key), _token(one, depth)) for key, one in some]
    if isinstance(value, (list, tuple, deque)):
        return type(value).__name__, len(value), [_token(one, depth) for one in itertools.islice(value, _ITEMS)]
    if isinstance(value, (set, frozenset)):
        return "set", len(value)
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict) and own:
        return type(value).__qualname__, [(name, _token(one, depth)) for name, one in [*own.items()][:_ITEMS]]
    try:
        return _hashed(pickle.dumps(value))
    except Exception:
        return None
