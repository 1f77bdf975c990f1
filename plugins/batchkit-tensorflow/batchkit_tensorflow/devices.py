"""Which TensorFlow device a user's ``device=`` means here."""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf

from batchkit.errors import BackendError

__all__ = ["CPU", "resolve"]

CPU = "/device:CPU:0"
"""Where host memory becomes a tensor."""

_NAME = re.compile(
    r"(?:/job:\w+)?(?:/replica:\d+)?(?:/task:\d+)?(?:/?device:|/)?(?P<kind>[a-z][a-z_]*)(?::(?P<index>\d+))?",
    re.IGNORECASE,
)


def resolve(device: Any) -> str:
    """Return TensorFlow's name of the device for ``None``, ``"cpu"``, ``"gpu"``, ``"GPU:1"``, ``"/device:GPU:0"``, ...

    ``None`` is where TensorFlow itself would put a tensor: the first GPU, else the CPU.

    Raises:
        BackendError: there is no such device here; lists those that there are.
    """
    known = [logical.name for logical in tf.config.list_logical_devices()]
    if device is None:
        return next((name for name in known if ":GPU:" in name), CPU)
    given = device.to_string() if isinstance(device, tf.DeviceSpec) else getattr(device, "name", device)
    match = _NAME.fullmatch(str(given))
    if match:
        name = f"/device:{match['kind'].upper()}:{match['index'] or 0}"
        if name in known:
            return name
    names = ", ".join(repr(name.removeprefix("/device:")) for name in known)
    raise BackendError(f"backend 'tensorflow' has no device {str(device)!r} here: choose one of {names}")
