"""Where plugins are: in the metadata of installed distributions, in local files and modules."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from batchkit.hookspecs import GROUP
from batchkit.plugins.candidate import Candidate, closest

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["discover", "import_beside", "importable", "local_candidate", "local_path"]


@functools.cache
def discover(path: tuple[str, ...]) -> tuple[Candidate, ...]:
    """Return the plugins installed under ``sys.path``, by the names of their distributions; imports none of them."""
    from importlib import metadata

    found: dict[tuple[str, str], Candidate] = {}
    for distribution in metadata.distributions(path=list(path)):
        # A damaged entry_points.txt or METADATA is its own distribution's trouble alone.
        with contextlib.suppress(Exception):
            for entry in distribution.entry_points:
                if entry.group == GROUP:
                    name, version = _identity(distribution)
                    mend = f"Repair or remove the distribution {name!r}"
                    # The same distribution further down the path is hidden by the first one.
                    found.setdefault(
                        (_normal(name), entry.name), Candidate(entry.name, name, version, entry.load, mend)
                    )
    return tuple(found[key] for key in sorted(found))


def _identity(distribution: Distribution) -> tuple[str, str | None]:
    return distribution.metadata["Name"] or "a distribution without a name", distribution.metadata["Version"]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def local_path(path: str, base: Path) -> str:
    """Return a local plugin's file as an absolute path, and a module's name as it is.

    >>> local_path("my_project.plugin", Path("/data"))
    'my_project.plugin'
    """
    return str(base / path) if path.endswith(".py") or "/" in path or os.sep in path else path


def local_candidate(path: str, base: Path) -> Candidate:
    """Return the plugin in a file, whose relative path starts at ``base``, or in a module."""
    mend = "Correct it, or take it out of plugins"
    file = Path(local_path(path, base))
    if file.is_absolute():
        return Candidate(file.stem, str(file), None, functools.partial(_load_file, file), mend, True)
    return Candidate(path, f"module {path}", None, functools.partial(import_beside, path, base), mend, True)


def _load_file(file: Path) -> ModuleType:
    """Import a file that is no part of a package; once, for as long as it does not change."""
    if not file.is_file():
        names = [entry.name for entry in file.parent.glob("*.py")]
        meant = closest(file.name, names)
        raise FileNotFoundError(f"there is no file {str(file)!r}{f'; did you mean {meant!r}?' if meant else ''}")
    stat = file.stat()
    stamp = (stat.st_mtime_ns, stat.st_size)
    # Unpickling and dataclasses look a class's module up in sys.modules.
    name = f"batchkit_plugin_{re.sub(r'[^0-9a-zA-Z_]', '_', file.stem)}_{zlib.crc32(os.fsencode(file.resolve())):08x}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__batchkit_stamp__", None) == stamp:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with importable(file.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module.__batchkit_stamp__ = stamp  # type: ignore[attr-defined]
    _take_along(module)
    return module


def _take_along(module: ModuleType) -> None:
    """Have cloudpickle send a module by value: a worker process could not import it by its name."""
    import cloudpickle  # only those who have such modules need it

    cloudpickle.register_pickle_by_value(module)


@contextlib.contextmanager
def importable(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Put a folder first on ``sys.path`` for as long as the ``with`` block runs."""
    entry = os.fspath(folder)
    importlib.invalidate_caches()  # a file that was written a moment ago counts, too
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def import_beside(name: str, folder: str | os.PathLike[str]) -> ModuleType:
    """Import a module, looking in ``folder`` first; it is not looked for there afterwards.

    Raises:
        ImportError: there is no such module, or another one of its name was imported before
            from elsewhere, so that the one in ``folder`` cannot be.
    """
    top = name.partition(".")[0]
    before = set(sys.modules)
    with importable(folder):
        module = importlib.import_module(name)
    origin = getattr(sys.modules[top], "__file__", None)
    here = _files(top, folder)
    if here and not (origin and any(file.samefile(origin) for file in here)):
        raise ImportError(f"{here[0]} cannot be imported, because {top!r} was imported from {origin} before: rename it")
    if not any(os.path.realpath(entry) == os.path.realpath(folder) for entry in sys.path):
        for new in set(sys.modules) - before:
            if _files(new.partition(".")[0], folder):
                _take_along(sys.modules[new])
    return module


def _files(top: str, folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files in a folder that a top-level module of that name could be."""
    return [file for file in (Path(folder, f"{top}.py"), Path(folder, top, "__init__.py")) if file.is_file()]
