"""What ``device=`` may be: nothing, a name such as ``"gpu:1"``, a JAX device or a sharding."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh, PartitionSpec, Sharding

from batchkit.errors import BackendError

__all__ = ["Target", "has_own_memory", "resolve"]

Target: TypeAlias = "jax.Device | Sharding | None"
"""Where a batch goes; ``None`` is JAX's default device, with nothing committed to it."""


def resolve(device: Any) -> Target:
    """Return the device or sharding that a user means.

    Raises:
        BackendError: there is none such in this process; names those that there are.
    """
    if device is None:
        return None
    if isinstance(device, Sharding):
        if device.addressable_devices:
            return device
        raise BackendError(
            f"backend 'jax': none of the devices of the sharding {device} belongs to this process, which has "
            f"{_present()}. Give every process a sharding with some of its own devices"
        )
    if isinstance(device, jax.Device):
        if device.process_index == jax.process_index():
            return device
        raise BackendError(
            f"backend 'jax': device {device} belongs to process {device.process_index}, and this is process "
            f"{jax.process_index()}. Use one of its own ({_present()}), or a jax.sharding.Sharding over all"
        )
    if isinstance(device, str):
        platform, _, number = device.lower().partition(":")
        found = _devices_of(platform) if platform else []
        index = int(number) if number.isdigit() else 0 if device.lower() == platform else -1
        if 0 <= index < len(found):
            return found[index]
    if isinstance(device, (Mesh, PartitionSpec)):
        raise BackendError(
            f"backend 'jax': device={device} is one half of a sharding: give a mesh and what goes along its axes, as "
            "jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data')) does for the rows"
        )
    raise BackendError(
        f"backend 'jax' has no device {device!r}; there is {_present()}. "
        "Use one of these, a jax.Device or a jax.sharding.Sharding, or leave device= out"
    )


def has_own_memory(device: Target) -> bool:
    """Return whether arrays there are copies, rather than the host's own memory."""
    if device is None:
        return jax.default_backend() != "cpu"
    on: Any = device.device_set if isinstance(device, Sharding) else (device,)
    return any(one.platform != "cpu" for one in on)


def _devices_of(platform: str) -> list[jax.Device]:
    try:
        return list(jax.local_devices(backend=platform))
    except RuntimeError:  # what JAX says to a platform that is not there
        return []


def _present() -> str:
    platforms = dict.fromkeys([jax.default_backend(), "cpu"])
    names = [f"{platform}:{index}" for platform in platforms for index in range(len(_devices_of(platform)))]
    return ", ".join(repr(name) for name in names)
