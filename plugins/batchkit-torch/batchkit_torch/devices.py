"""Which torch device a user's ``device=`` means here."""

from __future__ import annotations

from typing import Any

import torch

from batchkit.errors import BackendError

__all__ = ["available", "resolve"]


def available() -> dict[str, int]:
    """Return the kinds of device of this machine, and how many there are of each.

    >>> available()["cpu"]
    1
    """
    kinds = {"cpu": 1}
    accelerator = getattr(torch, "accelerator", None)
    current = accelerator.current_accelerator() if accelerator is not None else None
    for kind in dict.fromkeys(["cuda", "mps", "xpu", *([current.type] if current is not None else [])]):
        module = getattr(torch, kind, None)
        if kind == "mps":
            count = int(torch.backends.mps.is_available())
        else:
            count = module.device_count() if module is not None and module.is_available() else 0
        if count:
            kinds[kind] = count
    return kinds


def resolve(device: Any) -> torch.device:
    """Return the device for ``None`` (torch's own default), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... or a torch device.

    A kind of accelerator without a number is its current device.

    Raises:
        BackendError: there is no such device here; lists those that there are.
    """
    if device is None:
        # Not get_default_device(): this one also obeys a torch.device() context in older versions.
        device = torch.empty(0).device
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as exc:
        raise BackendError(f"backend 'torch' has no device {device!r}: choose one of {_listed(available())}") from exc
    kinds = available()
    if (wanted.index or 0) >= kinds.get(wanted.type, 0):
        raise BackendError(f"backend 'torch' has no device {str(wanted)!r} here: choose one of {_listed(kinds)}")
    if wanted.type == "cpu":
        return torch.device("cpu")
    if wanted.index is None and wanted.type != "mps":
        return torch.device(wanted.type, getattr(torch, wanted.type).current_device())
    return wanted


def _listed(kinds: dict[str, int]) -> str:
    names = []
    for kind, count in kinds.items():
        names += [kind] if count == 1 else [f"{kind}:{index}" for index in range(count)]
    return ", ".join(repr(name) for name in names)
