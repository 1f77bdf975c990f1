"""What ``device=`` may be for JAX."""

from __future__ import annotations

from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec, SingleDeviceSharding

from batchkit.errors import BackendError
from batchkit_jax.backend import JaxBackend


def test_none_stays_none() -> None:
    assert JaxBackend().device(None) is None


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "CPU:0", "CPU"])
def test_a_name_is_a_device_of_this_process(name: str) -> None:
    assert JaxBackend().device(name) is jax.local_devices(backend="cpu")[0]


def test_a_jax_device_is_taken_as_it_is() -> None:
    device = jax.local_devices()[0]
    assert JaxBackend().device(device) is device


def test_a_sharding_is_taken_as_it_is() -> None:
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    assert JaxBackend().device(sharding) is sharding


@pytest.mark.parametrize("device", ["tpu-pod", "cpu:99", "cpu:-1", "cpu:one", "cpu:", "", ":0", 0, 1.5, ("cpu",)])
def test_what_is_no_device_is_refused_with_those_that_are(device: Any) -> None:
    with pytest.raises(BackendError) as caught:
        JaxBackend().device(device)
    assert f"no device {device!r}; there is 'cpu:0'" in str(caught.value)
    assert "jax.sharding.Sharding" in str(caught.value)


@pytest.mark.parametrize("half", [jax.make_mesh((1,), ("data",)), PartitionSpec("data")])
def test_half_a_sharding_is_refused_with_the_whole_one(half: Any) -> None:
    with pytest.raises(BackendError, match=r"one half of a sharding.*NamedSharding\(mesh, jax.sharding.PartitionSpec"):
        JaxBackend().device(half)
