"""Rows kept on disk, shared by threads and processes."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit.caching.files import Files
from batchkit.caching.folder import MANIFEST, lock_of, publish, read_manifest
from batchkit.caching.lock import locked
from batchkit.caching.outline import Lease, Leaves, Outline, Taken, merged
from batchkit.caching.reached import Reached, read_reached, write_reached
from batchkit.errors import CacheWarning, SourceError

__all__ = ["DiskStore"]

_PATIENCE = 2.0  # seconds to wait for another process that writes; then the rows are left to be computed again
_COPIED = 1024  # rows that are copied at a time where columns change


class DiskStore:
    """Rows in the folder ``path / key``: ``rows`` of them, or as many as come.

    Any process may read at any time; one writes at a time, under a lock that the system takes back from a
    process that dies. Every row is checked against its checksum before it is first served.

    Raises:
        SourceError: the folder cannot be made.
    """

    def __init__(self, path: str, key: str, rows: int | None, upstream: list[str], where: str) -> None:
        self._folder, self._rows, self._upstream, self._where = Path(path) / key, rows, upstream, where
        self._files: Files | None = None
        self._stamp: tuple[int, ...] | None = None
        self._refused = self._told = False
        self._lock = threading.Lock()
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise self._unusable(exc) from exc

    def _unusable(self, exc: OSError) -> SourceError:
        return SourceError(
            f"{self._where}: no cache can be made at {str(self._folder.parent)!r}: {exc}. Give a path that can be "
            "written to, or leave cache() out"
        )

    @property
    def accepts(self) -> bool:
        """Whether more rows can be stored."""
        return not self._refused

    # -- reading

    def take(self, positions: npt.NDArray[np.int64], lease: Lease) -> Taken:
        """Return what is there of some rows."""
        files = self._files
        if files is None:
            files = self._opened()
        if files is None:
            return Taken(np.zeros(len(positions), np.bool_), [], None)
        return files.take(positions, lease)

    def _opened(self) -> Files | None:
        """Open what is there, if it is in order; if not, it is mended where rows are written."""
        with self._lock:
            if self._files is None:
                try:
                    files = self._found()
                except (OSError, SourceError):
                    return None
                if files is None or not files.sound():
                    return None
                self._open(files)
            return self._files

    def _open(self, files: Files) -> None:
        files.open()
        self._files, self._stamp = files, self._seen()

    def _found(self) -> Files | None:
        content, outline = read_manifest(self._folder)
        return Files(self._folder, self._rows, outline) if content["rows"] == self._rows else None

    def _seen(self) -> tuple[int, ...] | None:
        """Return what tells one making of the cache from another."""
        try:
            status = os.stat(self._folder / MANIFEST)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns

    # -- writing

    def write(self, positions: npt.NDArray[np.int64], outline: Outline, leaves: Leaves) -> None:
        """Store rows.

        Raises:
            SchemaError: they are not like those that are there, or cannot be kept on disk.
            SourceError: there is no cache yet, and none can be made.
        """
        self._alone(lambda: self._ready(outline).put(positions, leaves))

    def append(
        self,
        positions: npt.NDArray[np.int64],
        outline: Outline,
        leaves: Leaves,
        note: Callable[[Reached], Reached] | None,
    ) -> bool:
        """The same, and change then what is noted of how far the cache has got, if anything; say whether that was done.

        Raises:
            SchemaError: they are not like those that are there, or cannot be kept on disk.
            SourceError: there is no cache yet, and none can be made.
        """

        def put() -> None:
            self._ready(outline).put(positions, leaves)
            if note is not None:
                self._noted(note)

        return self._alone(put)

    def note(self, note: Callable[[Reached], Reached]) -> None:
        """Change what is noted of how far the cache has got, where there is one."""
        self._alone(lambda: self._noted(note) if self._folder.is_dir() else None)

    @property
    def reached(self) -> Reached:
        """What is noted of how far the cache has got."""
        return read_reached(self._folder)

    def _noted(self, note: Callable[[Reached], Reached]) -> None:
        before = read_reached(self._folder)
        after = note(before)
        if after is not before:
            write_reached(self._folder, after)

    def _alone(self, action: Callable[[], None]) -> bool:
        """Write while nobody else does; who has to wait for too long leaves it be. Say whether it was done."""
        with self._lock:
            if self._refused:
                return False
            try:
                with locked(lock_of(self._folder), _PATIENCE) as held:
                    if held:
                        action()
                    return held
            except OSError as exc:
                if isinstance(exc, SourceError):
                    raise
                self._refuse(exc)
                return False

    def _ready(self, outline: Outline) -> Files:
        """Return files that can hold rows like these; the lock is held."""
        if self._files is None or self._stamp != self._seen():
            self._renew()
        files = self._files
        if files is None:
            files = publish(self._folder, self._rows, outline, self._upstream)
        else:
            whole = merged(files.outline, outline)
            if whole == files.outline:
                return files
            files = self._changed(files, whole)
        self._files, self._stamp = files, self._seen()
        return files

    def _renew(self) -> None:
        """Open what another process has made, or what a crash or a damage has left."""
        self._files = None
        try:
            files = self._found()
        except (FileNotFoundError, SourceError):
            return  # built anew
        if files is None:
            return
        if not files.sound():
            files.make()
        self._open(files)

    def _changed(self, old: Files, outline: Outline) -> Files:
        """Return files for rows whose shapes vary more than those so far, which are taken along."""
        old.open()  # up to what was written last: its files are replaced now
        reached = read_reached(self._folder)
        new_files = publish(self._folder, self._rows, outline, self._upstream)
        marked = old.marked()
        for start in range(0, len(marked), _COPIED):
            positions = marked[start : start + _COPIED]
            taken = old.take(positions, _fresh)
            if taken.outline is not None:
                new_files.put(positions[taken.there], taken.leaves)
        if self._rows is None:
            write_reached(self._folder, reached)
        old.close()
        return new_files

    def _refuse(self, exc: OSError) -> None:
        """Store nothing from now on: what is there is served, all else is computed every time."""
        if self._files is None:
            raise self._unusable(exc) from exc
        self._refused = True
        if not self._told:
            self._told = True
            warnings.warn(
                f"{self._where}: {str(self._folder)!r} cannot be written to any more: {exc}. What is there is served, "
                "and other rows are computed every time. Make room, or give another path",
                CacheWarning,
                stacklevel=2,
            )


def _fresh(column: int, rows: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.empty((rows, *shape), dtype)
