"""Anything with ``__len__`` and ``__getitem__``: a list, a torch Dataset, a Grain source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import PipelineTypeError, SchemaError, SourceError
from batchkit.functions import home_of
from batchkit.schema import spec_tree
from batchkit.sources.sharing import OwnRows, lie_apart, own
from batchkit.sources.stacking import all_detached, detached, stack_rows
from batchkit.tree import Tree

__all__ = ["SequenceSource"]

_SAMPLED_ROWS = 64
_SAMPLED_VALUES = 1024  # of one array or list
_SAMPLED_BYTES = 1 << 20


_KEPT = (list, tuple, np.ndarray)
"""What holds its rows itself, and does not fill them anew when it is asked for another one."""


class SequenceSource:
    """Rows from an object with ``__len__`` and ``__getitem__`` (``__getitems__`` is used where there is one).

    A row is any nesting of scalars, strings and arrays (of any framework). Reading the
    schema reads row 0.
    """

    kind = "sequence"

    def __init__(self, sequence: Any) -> None:
        if not (hasattr(sequence, "__len__") and hasattr(sequence, "__getitem__")):
            raise PipelineTypeError(
                f"from_sequence() needs an object with __len__ and __getitem__, not a {type(sequence).__name__}. "
                "For something that can only be iterated over, use from_generator()"
            )
        if isinstance(sequence, (dict, str, bytes)):
            raise PipelineTypeError(
                f"from_sequence() needs one row an index, and a {type(sequence).__name__} is not that. "
                "For a dict of columns, use from_arrays()"
            )
        self.sequence = sequence
        self._length = len(sequence)
        self._schema: Tree | None = None
        self._fills_anew = False
        # At once, before a function that changes the row it is given can change what a state is compared with.
        self._sample = _sampled(sequence) if type(sequence) in (list, tuple) else None

    @property
    def in_memory(self) -> bool:
        """Whether a worker process would have to be sent the rows themselves."""
        return isinstance(self.sequence, (list, tuple))

    @property
    def schema(self) -> Tree:
        """The schema of row 0.

        Raises:
            SchemaError: there is no row 0.
        """
        if self._schema is None:
            if not self._length:
                raise SchemaError("the sequence is empty, so that its rows have no known schema. Give it a row")
            self._schema = spec_tree(self.read(np.zeros(1, np.int64))[0])
        return self._schema

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def fingerprint(self) -> str:
        """Return the type and length, and what the object says of itself; of a list or tuple a hash of some rows.

        No row of anything else is read: that may take long, and give another row each time.
        """
        own = self._sample or getattr(self.sequence, "_fingerprint", None)  # Hugging Face datasets have one
        kind = type(self.sequence)
        return f"{home_of(kind)}.{kind.__qualname__}:{self._length}" + (f":{own}" if isinstance(own, str) else "")

    def read(self, rows: npt.NDArray[np.int64]) -> list[Tree]:
        """Return one tree a row, in dicts of its own."""
        numbers = rows.tolist()
        if not numbers:
            return []
        many = getattr(self.sequence, "__getitems__", None)
        # A function may change the row it is given: it must not change the sequence's own dict.
        found = [detached(self._item(numbers[0]))] if many is None else all_detached(self._many(many, numbers))
        owned = OwnRows()
        copied = not isinstance(self.sequence, _KEPT) and owned.look(found, 0)
        if many is None:
            if copied:  # before the next row is asked for
                found[0] = owned(found[0])
                return found + [owned(detached(self._item(number))) for number in numbers[1:]]
            return found + all_detached(self._items(numbers[1:]))
        return [owned(row) for row in found] if copied else found

    def lent(self, rows: npt.NDArray[np.int64]) -> list[Tree]:
        """Return one tree a row, whose arrays may be the sequence's own: for who only copies them, at once.

        A sequence that fills one array anew for every row is noticed by where the rows lie. It is read again then, and
        from then on every row is copied before the next one is asked for.
        """
        numbers, many = rows.tolist(), getattr(self.sequence, "__getitems__", None)
        if not numbers:
            return []
        if not self._fills_anew:
            items = self._items(numbers) if many is None else self._many(many, numbers)
            if isinstance(self.sequence, _KEPT) or many is not None or lie_apart(items):
                return all_detached(items)
            self._fills_anew = True
        return [own(self._item(number)) for number in numbers]

    def _many(self, many: Callable[[list[int]], Any], numbers: list[int]) -> list[Any]:
        try:
            items = list(many(numbers))
        except Exception as exc:
            raise SourceError(f"reading rows {numbers} of the sequence failed: {_cause(exc)}") from exc
        if len(items) != len(numbers):
            raise SourceError(f"__getitems__ of the sequence gave {len(items)} rows for {len(numbers)} numbers")
        return items

    def _items(self, numbers: list[int]) -> list[Any]:
        sequence, items = self.sequence, []
        try:
            for number in numbers:
                items.append(sequence[number])
        except Exception as exc:
            raise SourceError(f"reading row {numbers[len(items)]} of the sequence failed: {_cause(exc)}") from exc
        return items

    def _item(self, number: int) -> Any:
        try:
            return self.sequence[number]
        except Exception as exc:
            raise SourceError(f"reading row {number} of the sequence failed: {_cause(exc)}") from exc

    def gather(self, rows: npt.NDArray[np.int64], out: Tree | None = None) -> Tree:
        """Return the rows stacked into columns."""
        if not len(rows):
            return out if out is not None else tree_.map_leaves(_empty, self.schema)
        columns = stack_rows(self.lent(rows), rows)
        if out is None:
            return columns
        for column, place in zip(tree_.flatten(columns)[0], tree_.flatten(out)[0], strict=True):
            place[...] = column
        return out


def _sampled(rows: Sequence[Any]) -> str:
    """Return a hash of the plain values in some rows, spread over all of them."""
    digest = hashlib.blake2b(digest_size=8)
    spread = np.linspace(0, len(rows) - 1, min(_SAMPLED_ROWS, len(rows))).astype(np.int64).tolist()
    hashed = 0
    for number in [*spread[-1:], *spread[:-1]]:  # both ends, also where there is no room for more
        for part in _plain_parts(rows[number]):
            digest.update(part)
            hashed += len(part)
        if hashed > _SAMPLED_BYTES and number < len(rows) - 1:
            break
    return digest.hexdigest()


def _plain_parts(value: Any) -> Iterator[bytes]:
    """Yield what a row is made of, as bytes; of objects, which may be another thing each time, the type alone."""
    kind = type(value)
    yield f"|{kind.__qualname__}|".encode()
    if kind is dict:
        for key, inner in value.items():
            yield f"{key!r}".encode()
            yield from _plain_parts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value[:_SAMPLED_VALUES]:
            yield from _plain_parts(inner)
    elif isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        yield f"{value.dtype.str}{value.shape}".encode()
        array = np.asarray(value)
        if array.size > _SAMPLED_VALUES:
            array = array.flat[np.linspace(0, array.size - 1, _SAMPLED_VALUES).astype(np.int64)]
        yield array.tobytes()
    elif kind in (int, float, complex, bool, str):
        yield repr(value).encode("utf-8", "surrogatepass")
    elif kind is bytes:
        yield value


def _empty(spec: Any) -> npt.NDArray[Any]:
    return np.empty((0, *spec.shape), spec.dtype)


def _cause(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"
