"""NumPy's own files, mapped into memory where the file allows it and never unpickled."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchkit import tree as tree_
from batchkit.errors import CorruptSourceError, MissingLeafError, PipelineTypeError, SourceNotFoundError, nearest
from batchkit.sources.arrays import ArraySource
from batchkit.tree import Tree

__all__ = ["NpySource", "NpzSource"]


class NpySource(ArraySource):
    """One ``.npy`` file a leaf, mapped into memory; sent to a worker as paths.

    ``path`` is one path, or a tree of them: ``{"image": "images.npy", "label": "labels.npy"}``.
    """

    kind = "npy"
    in_memory = False

    def __init__(self, path: Tree) -> None:
        self.path = tree_.map_leaves(_as_path, path)
        self._found = tree_.map_leaves(os.path.abspath, self.path)
        super().__init__(tree_.map_leaves(_map_npy, self.path))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._found,)  # a worker may start in another directory

    @property
    def files(self) -> list[str]:
        """The files that the rows are read from."""
        return tree_.flatten(self._found)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the description that a config file would have."""
        return {"kind": self.kind, "path": self.path}


class NpzSource(ArraySource):
    """The arrays of one ``.npz`` file as a dict; stored members are mapped, compressed ones are read."""

    kind = "npz"
    in_memory = False

    def __init__(self, path: str | os.PathLike[str], keys: Sequence[str] | None = None) -> None:
        self.path = _as_path(path)
        self._found = os.path.abspath(self.path)
        self.keys = None if keys is None else list(keys)
        super().__init__(_read_npz(self.path, self.keys))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._found, self.keys)

    @property
    def files(self) -> list[str]:
        """The file that the rows are read from."""
        return [self._found]

    def to_dict(self) -> dict[str, Any]:
        """Return the description that a config file would have."""
        described: dict[str, Any] = {"kind": self.kind, "path": self.path}
        return described if self.keys is None else {**described, "keys": self.keys}


def _as_path(path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise PipelineTypeError(f"a path must be text or a Path, not {path!r}")
    return os.fspath(path)


def _existing(path: str) -> str:
    if not os.path.exists(path):
        folder = Path(path).resolve().parent
        seen = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        hint = nearest(Path(path).name, seen) or ("" if folder.is_dir() else f"; there is no folder {folder}")
        raise SourceNotFoundError(f"there is no file {path!r} (from {os.getcwd()}){hint}")
    if os.path.isdir(path):
        held = sorted(entry.name for entry in Path(path).iterdir() if entry.suffix in (".npy", ".npz"))[:5]
        raise SourceNotFoundError(
            f"{path!r} is a folder. Give the file in it{f', such as {os.path.join(path, held[0])!r}' if held else ''}"
        )
    return path


def _map_npy(path: str) -> npt.NDArray[Any]:
    with open(_existing(path), "rb") as file:
        return _map_member(path, file, 0, os.path.getsize(path), path)


def _map_member(path: str, file: Any, start: int, stop: int, what: str) -> npt.NDArray[Any]:
    """Map the ``.npy`` image that lies at ``start:stop`` of a file."""
    file.seek(start)
    shape, fortran, dtype = _read_header(file, what)
    offset = file.tell()
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if offset + size > stop:
        raise CorruptSourceError(
            f"{what} is truncated: its header promises {dtype.name}{list(shape)}, which is {size} bytes, "
            f"but only {max(stop - offset, 0)} follow. Write or download the file again"
        )
    if size == 0:
        return np.empty(shape, dtype)
    mapped = np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    return mapped.view(np.ndarray)


def _read_header(file: Any, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of format versions 1 to 3 (numpy.lib.format)."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:  # 3.0 differs from 2.0 in the header's encoding alone, which matters for field names only
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    except (ValueError, EOFError, UnicodeError, SyntaxError) as exc:
        raise CorruptSourceError(f"{what} is not a .npy file, or its header is damaged: {exc}") from exc
    if dtype.hasobject:
        raise CorruptSourceError(
            f"{what} holds Python objects ({dtype}), which only unpickling could read, and that can run code. "
            "Save it anew as numbers, booleans or fixed-width strings: np.save(path, array.astype(...))"
        )
    return shape, fortran, dtype


def _read_npz(path: str, keys: list[str] | None) -> dict[str, npt.NDArray[Any]]:
    try:
        with zipfile.ZipFile(_existing(path)) as archive, open(path, "rb") as file:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            for key in keys or ():
                if key not in members:
                    raise MissingLeafError(
                        f"{path} has no array {key!r}{nearest(key, list(members))} (it has: {', '.join(members)})"
                    )
            chosen = {key: info for key, info in members.items() if keys is None or key in keys}
            return {key: _read_npz_member(path, archive, file, info) for key, info in chosen.items()}
    except (zipfile.BadZipFile, EOFError, zipfile.zlib.error) as exc:  # type: ignore[attr-defined]
        raise CorruptSourceError(f"{path} is not a .npz file, or it is damaged or truncated: {exc}") from exc


def _read_npz_member(path: str, archive: zipfile.ZipFile, file: Any, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    what = f"{path}[{info.filename.removesuffix('.npy')}]"
    if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
        # APPNOTE.TXT 4.3.7: 30 bytes, then the name and the extra field, whose lengths the header itself gives.
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise CorruptSourceError(f"{what}: the archive's directory points at no member. Write the file again")
        start = (
            info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        )
        return _map_member(path, file, start, start + info.file_size, what)
    with archive.open(info) as member:
        shape, fortran, dtype = _read_header(member, what)
        data = member.read()
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(data) != wanted:
        raise CorruptSourceError(f"{what} is truncated: {len(data)} of {wanted} bytes. Write the file again")
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
