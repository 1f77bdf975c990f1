"""Naming a user's function, and finding it again by its name."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from batchkit.errors import PipelineError, PipelineTypeError, nearest

__all__ = ["describe_function", "exportable_name", "home_of", "resolve_function"]


def home_of(part: Any) -> str:
    """Return the name of the module that a function or a class is of; the script has one name in all processes.

    >>> home_of(len), home_of(functools.partial)
    ('builtins', 'functools')
    """
    module = getattr(part, "__module__", None)
    # What multiprocessing starts runs the script once more, by this name: it is the same function there.
    return "__main__" if module == "__mp_main__" else module or "?"


def describe_function(function: Callable[..., Any]) -> str:
    """Return how messages and fingerprints name a function.

    >>> describe_function(len), describe_function(lambda row: row)
    ('builtins:len', 'batchkit.functions:<lambda>')
    """
    if isinstance(function, functools.partial):
        return f"partial({describe_function(function.func)})"
    name = getattr(function, "__qualname__", None)
    if name is None:  # a callable object
        function = type(function)
        name = function.__qualname__
    return f"{home_of(function)}:{name}"


def exportable_name(function: Callable[..., Any], what: str) -> str:
    """Return ``"module:name"`` if importing that gives the very same function.

    Raises:
        PipelineError: it is a lambda, a local function or an object; ``what`` begins the message.
    """
    name = describe_function(function)
    try:
        found = resolve_function(name, what)
    except PipelineError:
        found = None
    if found is not function or name.startswith("__main__:"):
        raise PipelineError(
            f"{what} {name} cannot be exported: only a function that can be imported as 'module:name' can. "
            "Move it to the top level of a module of its own (it runs without that, too)"
        )
    return name


def resolve_function(name: str, what: str) -> Callable[..., Any]:
    """Return the function that ``"module:name"`` means; importing the module runs it.

    Raises:
        PipelineError: there is no such module or name, or it is not callable.
    """
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise PipelineError(f"{what} {name!r} is not of the form 'module:name'")
    try:
        value: Any = importlib.import_module(module_name)
    except ImportError as exc:
        raise PipelineError(f"{what} {name!r}: cannot import module {module_name!r}: {exc}") from exc
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as exc:
            raise PipelineError(
                f"{what} {name!r}: module {module_name!r} has no {path!r}{nearest(part, dir(value))}"
            ) from exc
    if not callable(value):
        raise PipelineTypeError(f"{what} {name!r} is a {type(value).__name__}, not a function")
    return value  # type: ignore[no-any-return]
