"""Batches copied to a device ahead of the caller; on the CPU the same code runs with streams that do nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import batchkit as bk
from batchkit_torch.backend import TorchBackend
from batchkit_torch.staging import StreamStager

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]


def numbers(rows: int = 300) -> bk.Pipeline:
    return bk.from_arrays({"x": np.arange(rows * 8, dtype=np.float32).reshape(rows, 8), "y": np.arange(rows)})


def expected(rows: int = 300, size: int = 10) -> list[tuple[np.ndarray, np.ndarray]]:
    x, y = np.arange(rows * 8, dtype=np.float32).reshape(rows, 8), np.arange(rows)
    return [(x[at : at + size], y[at : at + size]) for at in range(0, rows, size)]


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
@pytest.mark.parametrize("device", DEVICES)
def test_batches_kept_for_ever_stay_what_they_were(device: str, executor: str) -> None:
    options: dict[str, Any] = {"executor": executor, "workers": 2} if executor != "inline" else {"executor": executor}
    with bk.Loader(numbers().batch(10), "torch", device=device, prefetch_to_device=True, **options) as loader:
        kept = [batch for _ in range(3) for batch in loader]
    assert all(batch["x"].device.type == device for batch in kept)
    for batch, (x, y) in zip(kept, expected() * 3, strict=True):
        assert np.array_equal(batch["x"].cpu().numpy(), x)
        assert np.array_equal(batch["y"].cpu().numpy(), y)


def test_on_the_cpu_nothing_is_copied() -> None:
    backend = TorchBackend()
    stager = backend.stager(backend.device("cpu"), True)
    assert stager is not None
    host = {"x": backend.allocate((4, 3), np.dtype(np.float32))}
    host["x"][...] = 1
    got = stager.receive(stager.send(host))
    assert got["x"].data_ptr() == host["x"].__array_interface__["data"][0]


def test_the_cpu_is_not_staged_for_unless_that_is_wanted() -> None:
    backend = TorchBackend()
    assert backend.stager(torch.device("cpu"), False) is None
    assert isinstance(backend.stager(torch.device("cuda"), False), StreamStager) or not torch.cuda.is_available()


class _Streams:
    """What ``torch.cuda`` offers, as far as it is needed; copies are done when we say so."""

    def __init__(self) -> None:
        self.done = False
        self.waited: list[Any] = []

    def Stream(self, *device: Any) -> str:
        return "side"

    def stream(self, stream: str) -> Any:
        import contextlib

        return contextlib.nullcontext()

    def current_stream(self, *device: Any) -> Any:
        streams = self

        class Current:
            def wait_event(self, event: Any) -> None:
                streams.waited.append(event)

        return Current()

    def Event(self) -> Any:
        streams = self

        class Event:
            def record(self, stream: str) -> None:
                assert stream == "side"

            def query(self) -> bool:
                return streams.done

            def synchronize(self) -> None:
                streams.done = True

        return Event()


def test_a_slot_is_held_until_its_copy_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = _Streams()
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    stager = StreamStager(torch.device("meta"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    hosts = [{"x": np.zeros((2, 2), np.float32)} for _ in range(3)]
    sent = [stager.send(host) for host in hosts[:2]]
    assert len(stager._copying) == 2  # neither is done: both slots are still referenced
    stager.receive(sent[0])
    assert streams.waited == [sent[0].copied]
    streams.done = True
    stager.send(hosts[2])
    assert len(stager._copying) == 0
    streams.done = False
    stager.send(hosts[0])
    stager.close()
    assert streams.done
    assert len(stager._copying) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_page_locked_slots_are_not_filled_anew_while_they_are_copied() -> None:
    rows = np.arange(2048 * 4096, dtype=np.float32).reshape(2048, 4096)
    with bk.Loader(bk.from_arrays({"x": rows}).batch(256), "torch", device="cuda", executor="inline") as loader:
        assert torch.from_numpy(loader.backend.allocate((4,), np.dtype(np.float32))).is_pinned()
        kept = [batch["x"] for _ in range(4) for batch in loader]
        weight = torch.randn(4096, 4096, device="cuda")
        for batch in loader:  # the caller's own stream is busy, and waits for each copy
            kept.append((batch["x"] @ weight, batch["x"])[1])
    for number, tensor in enumerate(kept):
        at = 256 * (number % 8)
        assert np.array_equal(tensor.cpu().numpy(), rows[at : at + 256])
