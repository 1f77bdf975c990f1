"""A plain Python generator function: rows, or whole batches, one after the other."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from batchkit.errors import PipelineTypeError, SourceError
from batchkit.functions import describe_function, exportable_name, resolve_function

__all__ = ["GeneratorSource"]


class GeneratorSource:
    """A function that returns a fresh iterator; called anew each epoch, never loaded whole.

    It has no row numbers: its rows are counted as they come, and resuming replays them.
    """

    kind = "generator"

    def __init__(
        self, fn: Callable[..., Any] | str, batched: bool = False, kwargs: dict[str, Any] | None = None
    ) -> None:
        if isinstance(fn, str):
            fn = resolve_function(fn, "from_generator(fn)")
        if inspect.isgenerator(fn) or not callable(fn):
            raise PipelineTypeError(
                f"from_generator() needs a function that returns a fresh iterator, not a {type(fn).__name__}: an "
                "iterator can be used once only, and every epoch needs a new one. Leave the call out: "
                "from_generator(rows), not from_generator(rows())"
            )
        if not isinstance(batched, bool):
            raise PipelineTypeError(f"from_generator(batched) must be True or False, not {batched!r}")
        self.fn = fn
        self.batched = batched
        self.kwargs = dict(kwargs or {})
        self._last: weakref.ref[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fn, self.batched, self.kwargs)

    def fingerprint(self) -> str:
        """Return the function's name and arguments; what it yields cannot be known."""
        given = "".join(f",{name}={value!r}" for name, value in sorted(self.kwargs.items()))
        return f"{describe_function(self.fn)}{given}" + (":batched" if self.batched else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the description that a config file would have."""
        described: dict[str, Any] = {
            "kind": self.kind,
            "fn": exportable_name(self.fn, "the function of from_generator()"),
        }
        if self.batched:
            described["batched"] = True
        return {**described, "kwargs": self.kwargs} if self.kwargs else described

    def open(self) -> Iterator[Any]:
        """Start an epoch.

        Raises:
            SourceError: the function failed, or returned what is no fresh iterator.
        """
        name = describe_function(self.fn)
        try:
            made = self.fn(**self.kwargs)
            iterator: Iterator[Any] = iter(made)
        except Exception as exc:
            raise SourceError(f"from_generator({name}): starting it failed: {type(exc).__name__}: {exc}") from exc
        if iterator is made and self._last is not None and iterator is self._last():
            raise SourceError(
                f"from_generator({name}): it returned the same iterator as for the last epoch, which is used up. "
                "Return a new one from each call"
            )
        try:
            self._last = weakref.ref(iterator)
        except TypeError:  # some built-in iterators cannot be referred to weakly
            self._last = None
        return iterator
