"""Changing a column's dtype without ever changing a value in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, SchemaError
from batchkit.tree import leaf_label

__all__ = ["DoesNotFitError", "cast_into", "cast_mend", "fill_value", "parse_dtype"]


class DoesNotFitError(Exception):
    """A value of a column has no counterpart in the dtype it is cast to; ``value`` is the first one met."""

    def __init__(self, value: Any, dtype: np.dtype[Any]) -> None:
        super().__init__(f"{value} does not fit {dtype.name}")
        self.value = value
        self.dtype = dtype


def parse_dtype(name: Any) -> np.dtype[Any]:
    """Return the dtype that a user means, bfloat16 and float8 included where ml_dtypes is installed.

    Raises:
        PipelineError: there is no such dtype, or it is one of Python objects.
    """
    dtype: np.dtype[Any]
    try:
        dtype = np.dtype(name)
    except TypeError as exc:
        try:
            import ml_dtypes

            dtype = np.dtype(getattr(ml_dtypes, str(name)))
        except (ImportError, AttributeError, TypeError):
            raise PipelineError(f"no dtype {name!r}. Give a NumPy name such as 'float32', 'int64' or 'bool'") from exc
    if dtype.hasobject:
        raise PipelineError(f"dtype {name!r} holds Python objects; give one of numbers, booleans, strings or bytes")
    return dtype


def cast_into(column: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Write ``column`` to ``out`` of the same shape and another dtype.

    Rounding a float to fewer bits is allowed; an integer, or an overflow to infinity, that
    would come out as another number is not.

    Raises:
        DoesNotFitError: a value does not fit.
    """
    before, after = column.dtype, out.dtype
    if column.size and after.kind in "iu" and before.kind in "iuf":
        _check_range(column, after)
    if before.kind in "fc":
        try:
            with np.errstate(over="raise"):
                np.copyto(out, column, casting="unsafe")
        except FloatingPointError:
            finite = column[np.isfinite(column)]
            raise DoesNotFitError(finite.flat[int(np.abs(finite).argmax())], after) from None
        return
    np.copyto(out, column, casting="unsafe")


def _check_range(column: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    limits = np.iinfo(dtype)
    if column.dtype.kind == "f":
        # 2.0**63 is a float64, 2**63 - 1 is not: compare with the exclusive power of two.
        bad = ~((column > float(limits.min) - 1) & (column < float(limits.max) + 1))
        if bad.any():
            raise DoesNotFitError(column[bad].flat[0], dtype)
        return
    for value in (int(column.max()), int(column.min())):
        if not limits.min <= value <= limits.max:
            raise DoesNotFitError(value, dtype)


def cast_mend(leaf: str, dtype: np.dtype[Any]) -> str:
    """Return the verb that a message tells users to add.

    >>> cast_mend("label", np.dtype("int32")), cast_mend("meta/id", np.dtype("int32"))
    (".cast(label='int32')", ".cast({'meta/id': 'int32'})")
    """
    return f".cast({leaf}={dtype.name!r})" if leaf.isidentifier() else f".cast({{{leaf!r}: {dtype.name!r}}})"


def fill_value(value: Any, dtype: np.dtype[Any], leaf: str, verb: str) -> Any:
    """Return what ``verb(pad_value=value)`` fills a leaf with; 0 stands for what is empty in any dtype.

    >>> fill_value(0, np.dtype("<U3"), "word", "pack"), fill_value(-1, np.dtype("int8"), "x", "pack")
    (np.str_(''), np.int8(-1))

    Raises:
        SchemaError: the value does not fit the dtype; names the leaf and the mend.
    """
    if isinstance(value, (int, float)) and value == 0:
        return np.zeros((), dtype)[()]
    try:
        fill = np.array(value).astype(dtype)[()]
        fits = dtype.kind not in "biu" or int(fill) == value
    except (ValueError, TypeError, OverflowError):
        fits = False
    if not fits:
        raise SchemaError(
            f"{verb}(pad_value): {value!r} does not fit {leaf_label(leaf)}, which is {dtype.name}. Give a value by "
            f"leaf, pad_value={{{leaf!r}: ...}}, or cast the leaf before"
        )
    return fill
