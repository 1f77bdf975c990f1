"""The JAX user's data set: something that can be iterated over again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["JaxDataset"]


class JaxDataset:
    """Batches of device arrays; every ``iter()`` is the next epoch of the loader.

    >>> list(JaxDataset([{"x": 1}]))
    [{'x': 1}]
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader  # public: its state_dict() is the data set's place

    def __iter__(self) -> Iterator[Any]:
        """Start the next epoch, or go on in the one that a loaded state left off in."""
        return iter(self.loader)

    def __len__(self) -> int:
        """Return the number of batches of an epoch.

        Raises:
            TypeError: it is not known, or there is no end.
        """
        return len(self.loader)

    def __repr__(self) -> str:
        return f"JaxDataset({self.loader!r})"
