"""A Python generator function, or what can be iterated over again: rows, or whole batches, one after the other."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from batchkit.arguments import describe_value, plain, plain_scalar
from batchkit.errors import PipelineError, PipelineTypeError, SourceError
from batchkit.functions import describe_function, exportable_name, resolve_function

__all__ = ["GeneratorSource"]


class GeneratorSource:
    """A function that returns a fresh iterator, or an object that gives one; never loaded whole.

    The function is called anew each epoch, and of an object ``iter()`` is taken. There are no row numbers: rows are
    counted as they come, and resuming replays them.
    """

    kind = "generator"

    def __init__(self, fn: Any, batched: bool = False, kwargs: dict[str, Any] | None = None) -> None:
        if isinstance(fn, str):
            fn = resolve_function(fn, "from_generator(fn)")
        if isinstance(fn, Iterator) or not (callable(fn) or hasattr(fn, "__iter__")):
            raise PipelineTypeError(
                f"from_generator() needs a function that returns a fresh iterator, not a {type(fn).__name__}: "
                + (
                    "an iterator can be used once only, and every epoch needs a new one. Leave the call out: "
                    "from_generator(rows), not from_generator(rows())"
                    if isinstance(fn, Iterator)
                    else "it can be neither called nor iterated over"
                )
            )
        if isinstance(fn, (Mapping, bytes, bytearray)):
            raise PipelineTypeError(
                f"from_generator() needs what gives one row after the other, and a {type(fn).__name__} does not. "
                "For a dict of columns, use from_arrays()"
            )
        if not isinstance(batched, bool):
            raise PipelineTypeError(f"from_generator(batched) must be True or False, not {batched!r}")
        if kwargs and not callable(fn):
            raise PipelineTypeError(
                f"from_generator() was given arguments ({', '.join(kwargs)}), and a {type(fn).__name__} that is "
                "iterated over, not called. Give a function that makes it of them"
            )
        self.fn = fn
        self.batched = batched
        self.kwargs = {name: plain_scalar(value) for name, value in (kwargs or {}).items()}
        self._last: Callable[[], Any] = _nothing
        """Returns the iterator of the last epoch, if that is still there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fn, self.batched, self.kwargs)

    def fingerprint(self) -> str:
        """Return the function's name and arguments, or the object's class; what they yield cannot be known."""
        given = "".join(f",{name}={describe_value(value)}" for name, value in sorted(self.kwargs.items()))
        own = getattr(self.fn, "_fingerprint", None)  # Hugging Face datasets
        said = f":{own}" if isinstance(own, str) else ""
        return f"{describe_function(self.fn)}{said}{given}" + (":batched" if self.batched else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the description that a config file would have.

        Raises:
            PipelineError: it is no function that can be imported.
        """
        if not callable(self.fn):
            raise PipelineError(
                f"the {type(self.fn).__name__} of from_generator() cannot be exported, as it lives in this process "
                "alone: give a function that makes it, from_generator('module:name') (it runs without that, too)"
            )
        described: dict[str, Any] = {
            "kind": self.kind,
            "fn": exportable_name(self.fn, "the function of from_generator()"),
        }
        if self.batched:
            described["batched"] = True
        return {**described, "kwargs": plain(self.kwargs)} if self.kwargs else described

    def open(self) -> Iterator[Any]:
        """Start an epoch.

        Raises:
            SourceError: the function failed, or returned what is no fresh iterator.
        """
        name = describe_function(self.fn)
        try:
            made = self.fn(**self.kwargs) if callable(self.fn) else self.fn
            iterator: Iterator[Any] = iter(made)
        except Exception as exc:
            raise SourceError(f"from_generator({name}): starting it failed: {type(exc).__name__}: {exc}") from exc
        if iterator is self._last():
            raise SourceError(
                f"from_generator({name}): it returned the same iterator as for the last epoch, which is used up. "
                "Return a new one from each call"
                if callable(self.fn)
                else f"from_generator({name}): its __iter__() returned the same iterator as for the last epoch, which "
                "is used up. Return a new one from each call"
            )
        self._last = _reference(iterator, held=iterator is made or made is self.fn)
        return iterator


def _reference(iterator: Iterator[Any], held: bool) -> Callable[[], Any]:
    """Return what returns the iterator; ``held``: it may be kept alive, as whoever returned it may have kept it."""
    try:
        return weakref.ref(iterator)
    except TypeError:  # built-in iterators cannot be referred to weakly
        return (lambda: iterator) if held else _nothing


def _nothing() -> None:
    return None
