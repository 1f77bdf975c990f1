"""Batches cut over a mesh of eight devices, and over two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def _environment(devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def eight() -> dict[str, Any]:
    """Return what eight_devices.py saw."""
    done = subprocess.run(
        [sys.executable, str(HERE / "eight_devices.py")],
        env=_environment(8),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize(
    ("layout", "shards"),
    [
        ("rows", [[32, 64]] * 8),
        ("small parts", [[1, 3]] * 8),
        ("replicated", [[5, 3]] * 8),
        ("two axes", [[16, 32]] * 8),
        ("both on the rows", [[32, 16]] * 8),
        ("trailing none", [[8]] * 8),
        ("no rows", [[0, 4]] * 8),
    ],
)
def test_every_device_has_its_part(layout: str, shards: list[list[int]], eight: dict[str, Any]) -> None:
    assert eight[layout]["shards"] == shards
    assert eight[layout]["right"]
    assert eight[layout]["equal"]


@pytest.mark.parametrize("layout", ["rows", "both on the rows", "replicated"])
def test_aligned_parts_are_not_copied(layout: str, eight: dict[str, Any]) -> None:
    assert eight[layout]["aliases"] == 8


@pytest.mark.parametrize("layout", ["small parts", "two axes"])
def test_parts_that_cannot_be_read_in_place_are_copied(layout: str, eight: dict[str, Any]) -> None:
    assert eight[layout]["aliases"] <= 1


def test_parts_are_copied_before_put_returns(eight: dict[str, Any]) -> None:
    assert eight["overwritten"]


def test_uneven_rows_name_the_rows_the_axis_and_the_mend(eight: dict[str, Any]) -> None:
    assert eight["uneven rows"] == (
        "backend 'jax': leaf 'x' has 252 rows, which the 8 devices along the mesh axis 'data' cannot share evenly. "
        'Use .batch(size, remainder="drop") or remainder="pad", with a size that is a multiple of 8'
    )


def test_uneven_rows_name_every_axis_they_are_cut_along(eight: dict[str, Any]) -> None:
    assert (
        "leaf 'image' has 12 rows, which the 8 devices along the mesh axis 'data' x 'model'"
        in (eight["uneven rows on a grid"])
    )


def test_an_uneven_axis_of_a_leaf_is_named(eight: dict[str, Any]) -> None:
    assert (
        "leaf 'x' has 5 entries along its axis 1, which the 2 devices along the mesh axis 'model'"
        in (eight["uneven columns"])
    )


def test_a_leaf_with_too_few_axes_is_named(eight: dict[str, Any]) -> None:
    assert "leaf 'label' of shape (8,) has 1 of the 2 axes" in eight["too few axes"]
    assert "PartitionSpec('data', 'model') over the mesh {'data': 4, 'model': 2}" in eight["too few axes"]


def test_a_single_value_cannot_be_cut(eight: dict[str, Any]) -> None:
    assert "leaf 'scale' of shape () has 0 of the 1 axes" in eight["no axis"]


def test_a_number_counts_the_devices(eight: dict[str, Any]) -> None:
    assert eight["named"] == 5


def test_a_loader_shards_every_batch(eight: dict[str, Any]) -> None:
    assert eight["loader"]["batches"] == 6
    assert eight["loader"]["x"]
    assert eight["loader"]["y"]
    assert eight["loader"]["sharded"]


def test_a_thread_shards_batches_ahead_of_the_caller(eight: dict[str, Any]) -> None:
    ahead = eight["loader, ahead"]
    assert (eight["loader"]["threads"], ahead["threads"]) == (["MainThread"], ["batchkit"])
    assert {name: ahead[name] for name in ("batches", "x", "y", "sharded", "last")} == {
        name: eight["loader"][name] for name in ("batches", "x", "y", "sharded", "last")
    }


def test_a_loader_says_that_the_last_batch_cannot_be_cut(eight: dict[str, Any]) -> None:
    assert "has 4 rows, which the 8 devices" in eight["loader"]["last"]
    assert 'remainder="drop"' in eight["loader"]["last"]


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, Any]]:
    """Return what two_processes.py saw in each of two processes of four devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_processes.py"), address, str(rank)],
            env=_environment(4),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        finished = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, stderr) in zip(running, finished, strict=True):
        assert process.returncode == 0, stderr
    return [json.loads(stdout) for stdout, _ in finished]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_gives_its_own_rows(rank: int, two_processes: list[dict[str, Any]]) -> None:
    assert two_processes[rank]["global shapes"] == [[16, 3]] * 4
    assert two_processes[rank]["right"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_device_of_another_process_is_refused(rank: int, two_processes: list[dict[str, Any]]) -> None:
    assert f"belongs to process {1 - rank}, and this is process {rank}" in two_processes[rank]["foreign device"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_sharding_without_own_devices_is_refused(rank: int, two_processes: list[dict[str, Any]]) -> None:
    assert "none of the devices of the sharding" in two_processes[rank]["foreign sharding"]


@pytest.mark.parametrize("rank", [0, 1])
def test_uneven_rows_of_a_process_are_named(rank: int, two_processes: list[dict[str, Any]]) -> None:
    assert "leaf 'x' has 6 rows, which the 4 devices along the mesh axis 'data'" in two_processes[rank]["uneven"]
