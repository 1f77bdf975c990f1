"""Caches as they lie on disk: their manifests, and listing, verifying and clearing them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchkit.caching.files import INDEX, Files
from batchkit.caching.lock import locked
from batchkit.caching.outline import Outline
from batchkit.caching.reached import read_reached
from batchkit.errors import BatchkitError, SourceError, SourceNotFoundError

__all__ = [
    "MANIFEST",
    "Damage",
    "Description",
    "clear",
    "described",
    "found",
    "lock_of",
    "publish",
    "read_manifest",
    "verified",
]

MANIFEST = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"[0-9a-f]{32}")
_LEFT = re.compile(r"([0-9a-f]{32})\.[\w-]+\.part")
_PATIENCE = 5.0


@dataclass(frozen=True)
class Description:
    """One cache: whose rows it holds, how many of how many, and what they take."""

    name: str
    folder: str
    rows: int | None
    """How many rows it has room for; ``None`` where that is not known before the last of them has come."""
    stored: int
    nbytes: int
    created: str
    upstream: list[str] = field(default_factory=list)
    problem: str | None = None


@dataclass(frozen=True)
class Damage:
    """What verifying a cache has found."""

    name: str
    checked: int
    damaged: list[int]
    problem: str | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and self.problem is None


def lock_of(folder: Path) -> Path:
    """Return the lock file of a cache."""
    return folder.with_name(f"{folder.name}.lock")


def publish(folder: Path, rows: int | None, outline: Outline, upstream: list[str]) -> Files:
    """Make a new cache without rows, all of it at once, in place of what is there. The caller holds the lock.

    Raises:
        OSError: that is not possible.
        SchemaError: the rows cannot be kept on disk; names the leaf and the mend.
    """
    content = {
        "format": _FORMAT,
        "rows": rows,
        "byteorder": sys.byteorder,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "upstream": upstream,
        **outline.to_json(),
    }
    content["checksum"] = _checksum(content)
    _sweep(folder)
    part = Path(tempfile.mkdtemp(".part", f"{folder.name}.", folder.parent))
    try:
        os.chmod(part, 0o777 & ~_umask())
        Files(part, rows, outline).make()
        with open(part / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _put_away(folder)
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    made = Files(folder, rows, outline)
    made.open()
    return made


def read_manifest(folder: Path) -> tuple[dict[str, Any], Outline]:
    """Return the manifest of a cache.

    Raises:
        FileNotFoundError: there is none.
        SourceError: it is damaged, or of another version; the cache has to be built anew.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content["checksum"] != _checksum({key: part for key, part in content.items() if key != "checksum"}):
            raise ValueError("its checksum is wrong")
        if content["format"] != _FORMAT or content["byteorder"] != sys.byteorder:
            raise ValueError("it is of another version of batchkit, or of another kind of machine")
        return content, Outline.from_json(content)
    except (ValueError, KeyError, TypeError, AttributeError, BatchkitError) as exc:
        raise SourceError(f"{path} cannot be used: {exc}. The cache is built anew when it is needed") from exc


def found(path: str | os.PathLike[str]) -> list[Path]:
    """Return the folders of the caches under ``path``, damaged ones included.

    Raises:
        SourceNotFoundError: there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise SourceNotFoundError(f"there is no folder {str(root)!r}: give the path that cache(path) was given")
    if _is_cache(root):
        return [root]
    return sorted(folder for folder in root.iterdir() if _is_cache(folder))


def _is_cache(folder: Path) -> bool:
    named = _NAME.fullmatch(folder.name) is not None and folder.is_dir()
    return named and any((folder / name).exists() for name in (MANIFEST, INDEX))


def described(folder: Path) -> Description:
    """Return what a cache is, as its manifest and its index say; no row is read."""
    nbytes = sum(_taken(entry) for entry in folder.iterdir() if entry.is_file())
    try:
        content, outline = read_manifest(folder)
        files = Files(folder, content["rows"], outline)
        if not files.sound():
            problem = "a file is missing or has the wrong size or header: its rows are computed again when needed"
            return Description(
                folder.name, str(folder), content["rows"], 0, nbytes, content["created"], content["upstream"], problem
            )
        files.open()
    except (OSError, SourceError) as exc:
        return Description(folder.name, str(folder), 0, 0, nbytes, "", [], str(exc))
    stored, rows = len(files.marked()), content["rows"]
    if rows is None:
        rows = read_reached(folder).rows
    return Description(folder.name, str(folder), rows, stored, nbytes, content["created"], content["upstream"])


def verified(folder: Path) -> Damage:
    """Read every row of a cache, and compare it with its checksum."""
    try:
        content, outline = read_manifest(folder)
        files = Files(folder, content["rows"], outline)
        if not files.sound():
            return Damage(folder.name, 0, [], "a file is missing or has the wrong size or header")
        files.open()
    except (OSError, SourceError) as exc:
        return Damage(folder.name, 0, [], str(exc))
    marked = files.marked()
    damaged: list[int] = []
    for start in range(0, len(marked), 1024):
        positions = marked[start : start + 1024]
        damaged += positions[~files.there(positions)].tolist()
    return Damage(folder.name, len(marked), damaged)


def clear(path: str | os.PathLike[str]) -> list[str]:
    """Remove the caches under ``path`` and what killed processes have left there; return their names.

    Nothing else is touched. A process that is reading one goes on.

    Raises:
        SourceNotFoundError: there is no such folder.
        SourceError: one is being written to for longer than some seconds, or cannot be removed.
    """
    removed = []
    for folder in found(path):
        with _cleared(folder):
            _put_away(folder)
            _sweep(folder)
            lock_of(folder).unlink(missing_ok=True)
        removed.append(folder.name)
    root = Path(path)
    if root.is_dir():
        for entry in list(root.iterdir()):
            left = _LEFT.fullmatch(entry.name)
            if left is not None:
                with _cleared(root / left[1]):
                    _sweep(root / left[1])
                    lock_of(root / left[1]).unlink(missing_ok=True)
    return removed


@contextlib.contextmanager
def _cleared(folder: Path) -> Iterator[None]:
    try:
        with locked(lock_of(folder), _PATIENCE) as held:
            if not held:
                raise SourceError(f"{folder} is being written to: end the process that does so, or try again")
            yield
    except OSError as exc:
        if isinstance(exc, BatchkitError):
            raise
        raise SourceError(f"{folder} cannot be removed: {exc}") from exc


def _put_away(folder: Path) -> None:
    """Remove a cache: out of the way at once, so that nobody finds half of it."""
    if not folder.exists():
        return
    away = Path(tempfile.mkdtemp(".part", f"{folder.name}.", folder.parent))
    os.rename(folder, away / folder.name)
    shutil.rmtree(away, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half made. The caller holds the lock."""
    for entry in folder.parent.glob(f"{folder.name}.*.part"):
        shutil.rmtree(entry, ignore_errors=True)


def _checksum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _taken(path: Path) -> int:
    """Return what a file takes on disk: of one that is written here and there that is less than its size."""
    status = path.stat()
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
