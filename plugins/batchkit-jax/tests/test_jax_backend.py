"""The JAX backend does what every backend must, on the default device and on a named one."""

from __future__ import annotations

from batchkit.testing import BackendConformance
from batchkit_jax.backend import JaxBackend


class TestDefaultDevice(BackendConformance):
    def make_backend(self) -> JaxBackend:
        return JaxBackend()


class TestNamedDevice(BackendConformance):
    device = "cpu:0"

    def make_backend(self) -> JaxBackend:
        return JaxBackend()
