"""The torch.utils.data.IterableDataset over a loader."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.context import get_spawning_popen
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from batchkit import Loader
from batchkit_torch.epochs import Claim, EpochLog, Position

__all__ = ["TorchDataset"]


class TorchDataset(IterableDataset[Any]):
    """The batches of a loader, one epoch an iteration.

    By itself, or in a ``DataLoader(dataset, batch_size=None)`` without workers, it iterates
    the loader, whose ``state_dict()`` is exact. In worker ``i`` of ``n`` it computes the steps
    ``i, i + n, i + 2 n, ...``, which the DataLoader puts back in order: the batches are the
    same, none is doubled and none is missing. There they are CPU tensors, since worker
    processes cannot share a GPU with their parent; use ``pin_memory=True`` and ``.to(device)``.

    DataLoader workers begin where ``loader.state_dict()`` stands, and go on with the next
    epoch each time, while the loader stays where it is. :meth:`set_epoch` chooses another.

    Args:
        loader: what to iterate over; its ``device`` is that of the batches outside of workers.
        host_backend: the backend that worker processes use, with device ``"cpu"``.
        placings: of a copy in another process: how often the loader that it is a copy of was put somewhere.
    """

    def __init__(self, loader: Loader, host_backend: Any, placings: int | None = None) -> None:
        self._loader = loader
        self._host_backend = host_backend
        self._placings = placings
        self._log = EpochLog()
        self._in_worker: Loader | None = None
        self._turns: dict[int, tuple[Any, int]] = {}

    def __len__(self) -> int:
        """Return how many batches an epoch has; raises ``TypeError`` where that is unknown."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        if info is None:
            return iter(self._loader)
        if self._in_worker is None:
            self._in_worker = self._hosted()
        began, turn = self._turns.get(info.id, (None, 0))
        turn = turn + 1 if began is info else 0
        self._turns[info.id] = (info, turn)
        placings = self._loader.placings if self._placings is None else self._placings
        claim = Claim(info.seed - info.id, turn, info.id, info.num_workers, _position(self._loader), placings)
        epoch, step = self._log.claim(claim)
        part = ((step + info.id) % info.num_workers, info.num_workers)
        return self._in_worker.iterate(epoch, part=part, start=step)

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one, of this dataset, of its loader and of DataLoader workers that live on."""
        self._loader.set_epoch(epoch)
        self._log.move(epoch, Position(epoch, 0), self._loader.placings)

    def _hosted(self) -> Loader:
        """Return a loader of the same batches on the CPU, without threads: those of a parent that was forked are not
        there. What only executors with workers take is left out.
        """
        without = {"executor": "inline", "workers": "auto", "timeout": None, "memory_limit": None}
        return self._loader.replicate(backend=self._host_backend, device="cpu", prefetch_to_device=None, **without)

    def __reduce__(self) -> tuple[Any, ...]:
        loader = self._hosted()
        loader.load_state_dict(self._loader.state_dict())
        # Only the workers of this process share its epochs; a copy elsewhere counts its own.
        log = self._log if get_spawning_popen() is not None else None
        return _rebuilt, (loader, log, self._loader.placings)


def _rebuilt(loader: Loader, log: EpochLog | None, placings: int) -> TorchDataset:
    dataset = TorchDataset(loader, loader.backend, placings)
    if log is not None:
        dataset._log = log
    return dataset


def _position(loader: Loader) -> Position:
    state = loader.state_dict()
    return Position(state["epoch"], state["step"])
