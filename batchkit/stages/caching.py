"""Rows or batches that are computed once and kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

from batchkit.errors import PipelineError, PipelineTypeError
from batchkit.resources import size_in_bytes
from batchkit.stages.stage import Stage

__all__ = ["Cache"]


@dataclass(frozen=True)
class Cache(Stage):
    """Keep what comes before, as it is in its first epoch: in memory, or with a ``path`` on disk.

    ``memory`` is how much memory may be used: bytes, or text such as ``"2GB"``.
    """

    verb: ClassVar[str] = "cache"
    path: str | None = None
    memory: int | str | None = None

    known: ClassVar[str | None] = None
    """What the rows before it are told by; set where a pipeline is sent to another process."""
    keeps: ClassVar[bool] = True
    """Whether rows are kept; where they are not, each is computed again as it was in the first epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None:
            if not isinstance(self.path, (str, os.PathLike)):
                raise PipelineTypeError(f"cache(path) must be text or a Path, not {self.path!r}")
            object.__setattr__(self, "path", os.fspath(self.path))
        if self.memory is not None:
            if self.path is not None:
                raise PipelineError(
                    "cache() keeps rows on disk, or in memory within a budget: give path or memory, not both"
                )
            size_in_bytes(self.memory, "cache(memory)")

    @property
    def identity(self) -> str:
        """What a state must match: where rows are kept changes no batch."""
        return "cache()"

    @property
    def budget(self) -> int | None:
        """How many bytes may be kept in memory; ``None`` where that is not said."""
        return None if self.memory is None else size_in_bytes(self.memory, "cache(memory)")

    def told(self, key: str) -> Cache:
        """Return the same stage for another process: with its path in full, and what its rows are told by."""
        assert self.path is not None
        return _remade(os.path.abspath(self.path), None, key, self.keeps)

    def unkept(self) -> Cache:
        """Return the same stage, which freezes what comes before but keeps nothing."""
        return _remade(self.path, self.memory, self.known, False)

    def __reduce__(self) -> tuple[Any, ...]:
        path = None if self.path is None else os.path.abspath(self.path)  # a worker may start in another directory
        return _remade, (path, self.memory, self.known, self.keeps)


def _remade(path: str | None, memory: int | str | None, key: str | None, keeps: bool) -> Cache:
    stage = Cache(path, memory)
    object.__setattr__(stage, "known", key)
    object.__setattr__(stage, "keeps", keeps)
    return stage
