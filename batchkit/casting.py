"""Changing a column's dtype: what is rounded, and what is refused because another value would come out."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.errors import PipelineError, SchemaError
from batchkit.tree import leaf_label

__all__ = [
    "DoesNotFitError",
    "alike_mend",
    "cast_into",
    "cast_mend",
    "cast_text",
    "dtype_name",
    "fill_value",
    "parse_dtype",
]


class DoesNotFitError(Exception):
    """A value of a column has no counterpart in the dtype it is cast to; ``value`` is the first one met."""

    def __init__(self, value: Any, dtype: np.dtype[Any]) -> None:
        super().__init__(f"{value} does not fit {dtype_name(dtype)}")
        self.value = value
        self.dtype = dtype


def parse_dtype(name: Any) -> np.dtype[Any]:
    """Return the dtype that a user means, bfloat16 and float8 included where ml_dtypes is installed.

    A framework's dtype is taken by its name: ``torch.float32``, ``tf.float32``.

    Raises:
        PipelineError: there is no such dtype, or it is one of Python objects.
    """
    dtype: np.dtype[Any]
    try:
        if name is None:  # which NumPy takes for float64
            raise TypeError("None is no dtype")
        dtype = np.dtype(name)
    except TypeError as exc:
        try:
            dtype = _dtype_by_name(name)
        except (ImportError, AttributeError, TypeError):
            raise PipelineError(f"no dtype {name!r}. Give a NumPy name such as 'float32', 'int64' or 'bool'") from exc
    if dtype.hasobject:
        raise PipelineError(f"dtype {name!r} holds Python objects; give one of numbers, booleans, strings or bytes")
    return dtype


def _dtype_by_name(given: Any) -> np.dtype[Any]:
    own = getattr(given, "name", None)
    name = own if isinstance(own, str) else str(given).removeprefix("torch.")
    if not isinstance(given, str):
        with contextlib.suppress(TypeError):
            return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name that :func:`parse_dtype` makes the dtype of again, on any machine.

    >>> dtype_name(np.dtype("float32")), dtype_name(np.dtype("<U8")), dtype_name(np.dtype("S"))
    ('float32', 'U8', 'bytes')
    """
    return dtype.str[1:] if dtype.kind in "US" and dtype.itemsize else dtype.name


def cast_into(column: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Write ``column`` to ``out`` of the same shape and another dtype; neither is text.

    Rounded, as NumPy does it: a float to fewer bits, an integer or a time to the nearest float, the fraction of a
    float that becomes an integer or a time (cut off), a time to a coarser unit. What is not 0 becomes ``True``.

    Raises:
        DoesNotFitError: a value is out of range: beyond the least or greatest integer or time, or finite and no
            longer so; NaN, infinity or NaT to an integer; an imaginary part that is not 0 to a real number.
    """
    if column.dtype.kind == "c" and out.dtype.kind not in "cb" and "complex" not in out.dtype.name:
        _refuse(column, column.imag != 0, out.dtype)
        column = column.real
    if _extended(column.dtype) and out.dtype.kind != "b":
        column = column.astype(np.float32)  # which holds all that any of them does
    _check_range(column, out.dtype)
    with np.errstate(over="raise" if out.dtype.isbuiltin == 1 else "ignore", invalid="ignore"):
        try:
            np.copyto(out, column, casting="unsafe")
        except FloatingPointError:
            finite = column[np.isfinite(column)]
            raise DoesNotFitError(finite.flat[int(np.abs(finite).argmax())], out.dtype) from None
    if _extended(out.dtype):
        _check_extended(column, out)
    elif column.dtype.kind in "mM" and out.dtype.kind in "mM" and np.can_cast(column.dtype, out.dtype):
        # A finer unit holds a shorter span of time, and NumPy does not look.
        _refuse(column, out.astype(column.dtype).view(np.int64) != column.view(np.int64), out.dtype)


def cast_text(column: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return text as ``dtype``, or anything as the text or bytes that ``dtype`` is; text is never cut off.

    Raises:
        DoesNotFitError: text is longer than ``dtype`` is wide, or a number in it is out of range.
        ValueError: there is no number in it, or text and bytes that are not ASCII.
    """
    if dtype.kind not in "US":
        wide = np.dtype("complex128" if dtype.kind == "c" else "float64")
        if (dtype.kind not in "fc" and not _extended(dtype)) or dtype.itemsize >= wide.itemsize:
            return column.astype(dtype)
        numbers, out = column.astype(wide), np.empty(column.shape, dtype)
        cast_into(numbers, out)
        return out
    plain = column.astype(np.float32) if _extended(column.dtype) else column
    text = plain.astype(dtype.kind, copy=False)
    if not dtype.itemsize:
        return text
    if text.dtype.itemsize > dtype.itemsize:
        most = dtype.itemsize // np.dtype(f"{dtype.kind}1").itemsize
        _refuse(text, np.char.str_len(text) > most, dtype)
    return text.astype(dtype)


def _refuse(column: npt.NDArray[Any], bad: npt.NDArray[np.bool_], dtype: np.dtype[Any]) -> None:
    if bad.any():
        raise DoesNotFitError(column[bad].flat[0], dtype)


def _extended(dtype: np.dtype[Any]) -> bool:
    """Say whether a dtype is one of the real ones of ml_dtypes, with at most 16 bits."""
    return dtype.isbuiltin == 2 and "complex" not in dtype.name


def _check_range(column: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    if column.dtype.kind in "mM" and dtype.kind not in "mMb":
        _refuse(column, np.isnat(column), dtype)
        column = column.view(np.int64)
    limits = _limits(dtype)
    if limits is None or not column.size or column.dtype.kind not in "iuf":
        return
    least, greatest = limits
    if column.dtype.kind == "f":
        # 2.0**63 is a float64, 2**63 - 1 is not: compare with the exclusive power of two.
        _refuse(column, ~((column > float(least) - 1) & (column < float(greatest) + 1)), dtype)
        return
    for value in (int(column.max()), int(column.min())):
        if not least <= value <= greatest:
            raise DoesNotFitError(value, dtype)


def _limits(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Return the least and the greatest integer of a dtype of whole numbers, and of one of times."""
    if dtype.kind in "mM":
        dtype = np.dtype(np.int64)
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    name = dtype.name
    if not _extended(dtype) or not name.removeprefix("u").startswith("int"):
        return None
    bits = int(name.lstrip("uint"))
    return (0, (1 << bits) - 1) if name[0] == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)


def _check_extended(column: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Refuse what overflowed to NaN or infinity, or to the greatest number where a dtype has neither."""
    if _limits(out.dtype) is not None or column.dtype.kind == "b":
        return
    came = out.astype(np.float32)
    bad = (np.isfinite(column) != np.isfinite(came)) | (np.isinf(column) & np.isnan(came))
    if out.dtype.name.startswith(("float4", "float6")):
        import ml_dtypes

        bad |= np.abs(column) > float(ml_dtypes.finfo(out.dtype).max)  # type: ignore[no-untyped-call]
    _refuse(column, bad, out.dtype)


def cast_mend(leaf: str, dtype: np.dtype[Any]) -> str:
    """Return the verb that a message tells users to add.

    >>> cast_mend("label", np.dtype("int32")), cast_mend("meta/id", np.dtype("int32"))
    (".cast(label='int32')", ".cast({'meta/id': 'int32'})")
    """
    name = dtype_name(dtype)
    return f".cast({leaf}={name!r})" if leaf.isidentifier() else f".cast({{{leaf!r}: {name!r}}})"


def alike_mend(leaf: str, one: np.dtype[Any], other: np.dtype[Any]) -> str:
    """Return how a leaf that has two dtypes gets one that holds the values of both.

    >>> alike_mend("x", np.dtype("int32"), np.dtype("float64"))
    "Return one dtype, or add .cast(x='float64')"
    >>> alike_mend("x", np.dtype("int64"), np.dtype("uint64"))
    "Return one dtype, or add .cast(x='int64') or .cast(x='uint64'), whichever holds all values"
    >>> alike_mend("x", np.dtype("int64"), np.dtype("str"))
    'Return one dtype'
    """
    kinds = one.kind + other.kind
    try:
        common = np.result_type(one, other)
    except TypeError:
        return "Return one dtype"
    if common.hasobject or common.names or any((kinds[0] in same) != (kinds[1] in same) for same in ("US", "mM")):
        return "Return one dtype"
    if set(kinds) == {"i", "u"} and common.kind == "f":  # no integer holds all of both
        signed, unsigned = (one, other) if kinds == "iu" else (other, one)
        choice = f"{cast_mend(leaf, signed)} or {cast_mend(leaf, unsigned)}"
        return f"Return one dtype, or add {choice}, whichever holds all values"
    return f"Return one dtype, or add {cast_mend(leaf, np.dtype(common.kind) if common.kind in 'US' else common)}"


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
