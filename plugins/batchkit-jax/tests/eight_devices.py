"""Run by test_jax_sharding.py in a process whose CPU is eight devices; prints what it saw as JSON."""

from __future__ import annotations

import json
import threading
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import NamedSharding, PartitionSpec

import batchkit as bk
from batchkit.errors import BackendError
from batchkit_jax.backend import JaxBackend

BACKEND = JaxBackend()


def column(shape: tuple[int, ...], dtype: str = "float32") -> npt.NDArray[Any]:
    made = BACKEND.allocate(shape, np.dtype(dtype))
    made[...] = np.arange(int(np.prod(shape))).reshape(shape)
    return made


def seen(host: npt.NDArray[Any], mesh: jax.sharding.Mesh, *spec: Any) -> dict[str, Any]:
    """Hand one column over, and tell what each device has and which of its parts alias the host memory."""
    array = BACKEND.put({"x": host}, BACKEND.device(NamedSharding(mesh, PartitionSpec(*spec))))["x"]
    low, high = host.ctypes.data, host.ctypes.data + host.nbytes
    shards = array.addressable_shards
    return {
        "shards": [list(shard.data.shape) for shard in shards],
        "right": all(np.array_equal(np.asarray(shard.data), host[shard.index]) for shard in shards),
        "aliases": sum(low <= shard.data.unsafe_buffer_pointer() < high for shard in shards),
        "equal": bool(np.array_equal(np.asarray(array), host)),
    }


def refusal(mesh: jax.sharding.Mesh, spec: tuple[Any, ...], **columns: npt.NDArray[Any]) -> str:
    try:
        BACKEND.put(columns, NamedSharding(mesh, PartitionSpec(*spec)))
    except BackendError as exc:
        return str(exc)
    return "accepted"


def overwritten(mesh: jax.sharding.Mesh) -> bool:
    """Say whether parts that JAX cannot alias hold what they held when put returned."""
    host = column((8 * 300_001,))
    before = host.copy()
    array = BACKEND.put({"x": host}, NamedSharding(mesh, PartitionSpec("data")))["x"]
    aliased = [
        shard.data.unsafe_buffer_pointer() == host[shard.index].ctypes.data for shard in array.addressable_shards
    ]
    index = [shard.index for shard in array.addressable_shards]
    host[...] = -1
    return all(
        alias or np.array_equal(np.asarray(shard.data), before[where])
        for alias, shard, where in zip(aliased, array.addressable_shards, index, strict=True)
    )


def loader_epoch(mesh: jax.sharding.Mesh, ahead: bool | None = None) -> dict[str, Any]:
    x, y = np.arange(100 * 3, dtype=np.float32).reshape(100, 3), np.arange(100, dtype=np.int32)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    kept, refused, threads = [], "", set[str]()

    class Noting(JaxBackend):
        def put(self, batch: Any, device: Any) -> Any:
            threads.add(threading.current_thread().name.partition("-")[0])
            return super().put(batch, device)

    pipe = bk.from_arrays({"x": x, "y": y}).batch(16)
    with bk.Loader(pipe, backend=Noting(), device=sharding, executor="inline", prefetch_to_device=ahead) as loader:
        batches = iter(loader)
        try:
            kept.extend(batches)
        except BackendError as exc:
            refused = str(exc)
    return {
        "batches": len(kept),
        "x": bool(np.array_equal(np.concatenate([np.asarray(batch["x"]) for batch in kept]), x[:96])),
        "y": bool(np.array_equal(np.concatenate([np.asarray(batch["y"]) for batch in kept]), y[:96])),
        "sharded": all(batch["x"].sharding == sharding for batch in kept),
        "last": refused,
        "threads": sorted(threads),
    }


def main() -> None:
    mesh = jax.make_mesh((8,), ("data",))
    grid = jax.make_mesh((4, 2), ("data", "model"))
    observed = {
        "rows": seen(column((256, 64)), mesh, "data"),
        "small parts": seen(column((8, 3)), mesh, "data"),
        "replicated": seen(column((5, 3)), mesh),
        "two axes": seen(column((64, 64)), grid, "data", "model"),
        "both on the rows": seen(column((256, 16)), grid, ("data", "model")),
        "trailing none": seen(column((64,)), mesh, "data", None),
        "no rows": seen(column((0, 4)), mesh, "data"),
        "overwritten": overwritten(mesh),
        "uneven rows": refusal(mesh, ("data",), x=column((252, 4)), y=column((252,))),
        "uneven rows on a grid": refusal(grid, (("data", "model"),), image=column((12, 4))),
        "uneven columns": refusal(grid, ("data", "model"), x=column((8, 5))),
        "too few axes": refusal(grid, ("data", "model"), image=column((8, 4)), label=column((8,))),
        "no axis": refusal(mesh, ("data",), scale=column(())),
        "named": BACKEND.device("cpu:5").id,
        "loader": loader_epoch(mesh),
        "loader, ahead": loader_epoch(mesh, ahead=True),
    }
    print(json.dumps(observed))


if __name__ == "__main__":
    main()
