"""Run twice by test_jax_sharding.py, as two processes with four CPU devices each; prints what it saw as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import batchkit as bk
from batchkit.errors import BackendError
from batchkit_jax.backend import JaxBackend


def refusal(call: Any, *arguments: Any) -> str:
    try:
        call(*arguments)
    except BackendError as exc:
        return str(exc)
    return "accepted"


def main(address: str, rank: int) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=rank)
    backend = JaxBackend()
    rows = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    # The law: rank r of w takes its slice of every global batch of 16 rows.
    with bk.Loader(bk.from_arrays({"x": rows}).batch(16), backend=backend, device=sharding, shard=(rank, 2)) as loader:
        batches = [batch["x"] for batch in loader]
    foreign = next(device for device in jax.devices() if device.process_index != rank)
    print(
        json.dumps(
            {
                "global shapes": [list(batch.shape) for batch in batches],
                "right": all(
                    np.array_equal(np.asarray(shard.data), rows[number * 16 : (number + 1) * 16][shard.index])
                    for number, batch in enumerate(batches)
                    for shard in batch.addressable_shards
                ),
                "foreign device": refusal(backend.device, foreign),
                "foreign sharding": refusal(backend.device, SingleDeviceSharding(foreign)),
                "uneven": refusal(backend.put, {"x": backend.allocate((6, 3), np.dtype("float32"))}, sharding),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
