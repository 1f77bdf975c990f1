"""Turning host columns into JAX arrays, with the columns' own memory wherever JAX can read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding

from batchkit import tree as tree_
from batchkit.backends import aligned_empty
from batchkit.errors import BackendError
from batchkit_jax.devices import Target
from batchkit_jax.dtypes import PACKED

__all__ = ["ALIGNMENT", "place"]

ALIGNMENT = 64
"""Bytes: XLA on the CPU reads host memory in place from an address that is a multiple of this."""

Column: TypeAlias = "npt.NDArray[Any]"


def place(columns: Sequence[Column], nesting: tree_.TreeDef, target: Target) -> list[jax.Array]:
    """Return one array a column, on a device or cut as a sharding says.

    Where the sharding spans processes, the columns are this process's part of the rows.

    Raises:
        BackendError: a column cannot be cut that way; names the leaf, its shape and the axis.
    """
    if target is None:
        # Not committed to a device, as device_put(x) itself: jit may move it to where the parameters are.
        return jax.device_put([_stable(column) for column in columns])  # type: ignore[no-any-return]
    # Half the cost of device_put(columns, device), and the same transfer.
    sharding = target if isinstance(target, Sharding) else SingleDeviceSharding(target)
    axes = _named_axes(sharding)
    arrays = []
    for number, column in enumerate(columns):
        if column.ndim < axes:
            raise BackendError(
                f"backend 'jax': {_label(nesting, number)} of shape {column.shape} has {column.ndim} of the {axes} axes"
                f" that {_spec(sharding)} names. Shard the rows only (a PartitionSpec of one entry), or give the leaf"
                " more axes in a map()"
            )
        try:
            arrays.append(_place_one(column, sharding))
        except ValueError as exc:
            raise BackendError(_misfit(column, _label(nesting, number), sharding, exc)) from exc
    return arrays


def _place_one(column: Column, sharding: Sharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.make_array_from_callback(column.shape, sharding, lambda index: _stable(column[index]))
    # JAX itself cuts the column here, and copies in the background the parts that it cannot alias.
    parts = len(sharding.addressable_devices)
    whole = _stable(column) if column.nbytes % (parts * ALIGNMENT) == 0 else column.copy()
    array: jax.Array = jax.make_array_from_process_local_data(sharding, whole)  # type: ignore[no-untyped-call]
    return array


def _stable(column: Column) -> Column:
    """Return ``column`` if JAX will alias it, else a private copy that JAX can alias.

    JAX copies what it cannot alias in the background, after the call has returned, and would
    see what is written to ``column`` in the meantime.
    """
    if (
        column.flags.c_contiguous
        and column.__array_interface__["data"][0] % ALIGNMENT == 0
        and column.dtype not in PACKED
    ):
        return column
    private = aligned_empty(column.shape, column.dtype, ALIGNMENT)
    private[...] = column
    return private


def _named_axes(sharding: Sharding) -> int:
    """Return how many axes a column needs: trailing ``None`` of a PartitionSpec ask for none."""
    if not isinstance(sharding, NamedSharding):
        return 0
    return max((place for place, axis in enumerate(sharding.spec, 1) if axis is not None), default=0)


def _label(nesting: tree_.TreeDef, number: int) -> str:
    return tree_.leaf_label(tree_.paths(nesting)[number])


def _spec(sharding: Sharding) -> str:
    if not isinstance(sharding, NamedSharding):
        return str(sharding)
    entries = ", ".join(repr(axis) for axis in sharding.spec)
    return f"PartitionSpec({entries}) over the mesh {dict(sharding.mesh.shape)}"


def _misfit(column: Column, label: str, sharding: Sharding, cause: ValueError) -> str:
    """Return what does not divide: the rows and their mesh axis, or another axis of the leaf."""
    for axis, parts, names in _cuts(sharding):
        if not column.shape[axis] % parts:
            continue
        if axis == 0:
            return (
                f"backend 'jax': {label} has {len(column)} rows, which the {parts} devices along the mesh axis {names} "
                'cannot share evenly. Use .batch(size, remainder="drop") or remainder="pad", with a size that is a '
                f"multiple of {parts}"
            )
        return (
            f"backend 'jax': {label} has {column.shape[axis]} entries along its axis {axis}, which the {parts} devices "
            f"along the mesh axis {names} cannot share evenly. Leave that axis out of the PartitionSpec"
        )
    return f"backend 'jax': {label} of shape {column.shape} cannot be laid out as {_spec(sharding)}: {cause}"


def _cuts(sharding: Sharding) -> list[tuple[int, int, str]]:
    """Return every axis of a column that is cut: its number, into how many parts here, along which mesh axes."""
    if not isinstance(sharding, NamedSharding):
        return []
    shape = sharding.mesh.local_mesh.shape
    cuts = []
    for number, entry in enumerate(sharding.spec):
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        parts = int(np.prod([shape[name] for name in names], dtype=np.int64))
        cuts.append((number, parts, " x ".join(repr(name) for name in names)))
    return cuts
