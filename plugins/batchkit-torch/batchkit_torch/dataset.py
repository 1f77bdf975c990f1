"""The torch.utils.data.IterableDataset over a loader."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.context import get_spawning_popen
from typing import Any

import cloudpickle
from torch.utils.data import IterableDataset, get_worker_info

from batchkit_torch.epochs import Claim, EpochLog, Position

__all__ = ["TorchDataset"]


class TorchDataset(IterableDataset[Any]):
    """The batches of a loader, one epoch an iteration.

    By itself, or in a ``DataLoader(dataset, batch_size=None)`` without workers, it iterates
    the loader, whose ``state_dict()`` is exact. In worker ``i`` of ``n`` it computes the steps
    ``i, i + n, i + 2 n, ...``, which the DataLoader puts back in order: the batches are the
    same, none is doubled and none is missing. There they are CPU tensors, since worker
    processes must not share a GPU; use ``pin_memory=True`` and ``.to(device)``.

    DataLoader workers begin where the loader stands, and go on with the next epoch each
    time; the loader itself stays where it is. :meth:`set_epoch` chooses another epoch.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._log = EpochLog()
        self._local: Any = None
        self._turns: dict[int, tuple[Any, int]] = {}

    def __len__(self) -> int:
        """Return how many batches an epoch has; raises ``TypeError`` where that is unknown."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        if info is None:
            return iter(self._loader)
        if self._local is None:
            # A loader of its own, without threads: those of a parent that was forked are not here.
            self._local = self._loader.replicate(executor="inline", device="cpu")
        begun, turn = self._turns.get(info.id, (None, 0))
        turn = turn + 1 if begun is info else 0
        self._turns[info.id] = (info, turn)
        claim = Claim(info.seed - info.id, turn, info.id, info.num_workers, _position(self._loader))
        epoch, step = self._log.claim(claim)
        part = ((step + info.id) % info.num_workers, info.num_workers)
        batches: Iterator[Any] = self._local.iterate(epoch, part=part, start=step)
        return batches

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``, in this process and in DataLoader workers alike."""
        self._log.move(epoch, _position(self._loader))

    def __reduce__(self) -> tuple[Any, ...]:
        # cloudpickle takes the lambdas of a pipeline along, which the pickling of a spawned worker would refuse.
        # Only the workers of this process share its epochs; a copy elsewhere counts its own.
        shared = self._log if get_spawning_popen() is not None else None
        return _rebuilt, (cloudpickle.dumps(self._loader), shared)


def _rebuilt(pickled: bytes, log: EpochLog | None) -> TorchDataset:
    dataset = TorchDataset(cloudpickle.loads(pickled))
    if log is not None:
        dataset._log = log
    return dataset


def _position(loader: Any) -> Position:
    state = loader.state_dict()
    return Position(state["epoch"], state["step"])
