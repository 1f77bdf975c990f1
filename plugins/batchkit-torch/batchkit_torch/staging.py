"""Copying batches to a device ahead of the caller, on a stream of its own."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, NamedTuple

import torch

from batchkit import tree as tree_
from batchkit.tree import Tree
from batchkit_torch.hosting import tensor_of

__all__ = ["StreamStager"]


class _Sent(NamedTuple):
    """Tensors whose copying has been started, and the event that says when it is done."""

    tensors: list[torch.Tensor]
    nesting: tree_.TreeDef
    copied: Any


class StreamStager:
    """Copies on a side stream, from page-locked slots without waiting; the caller's stream waits for the event.

    A slot stays referenced, and so is not filled anew, until its event has happened. The same
    code runs on the CPU, whose streams and events do nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device)
        self._copies = device.type != "cpu"
        self._where = (device,) if self._copies else ()
        self._stream: Any = None
        self._copying: deque[tuple[Any, list[torch.Tensor]]] = deque()
        self._lock = threading.Lock()

    def send(self, batch: Tree) -> _Sent:
        """Start to copy a host batch."""
        leaves, nesting = tree_.flatten(batch)
        hosts = [tensor_of(leaf) for leaf in leaves]
        with self._lock:
            if self._stream is None:
                self._stream = self._module.Stream(*self._where)
            with self._module.stream(self._stream):
                tensors = [host.to(self._device, non_blocking=True) for host in hosts]
                copied = self._module.Event()
                copied.record(self._stream)
            if self._copies:
                self._copying.append((copied, hosts))
            while self._copying and self._copying[0][0].query():
                self._copying.popleft()
        return _Sent(tensors, nesting, copied)

    def receive(self, sent: _Sent) -> Tree:
        """Return the tensors; what the caller's stream does next waits for their copying."""
        stream = self._module.current_stream(*self._where)
        stream.wait_event(sent.copied)
        if self._copies:
            for tensor in sent.tensors:
                # Their memory belongs to the side stream: it must not be used again before this stream is done.
                tensor.record_stream(stream)
        return tree_.unflatten(sent.nesting, sent.tensors)

    def close(self) -> None:
        """Wait for what is being copied, and let go of the slots."""
        with self._lock:
            while self._copying:
                self._copying.popleft()[0].synchronize()
