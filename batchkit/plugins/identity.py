"""Whether the package that was imported is the one that this project installed."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["PROJECT", "version", "wrong_package"]

PROJECT = "batchkit-core"


def version() -> str | None:
    """Return the installed version of this project; ``None`` when it runs from a source tree."""
    from importlib import metadata

    try:
        return metadata.version(PROJECT)
    except metadata.PackageNotFoundError:
        return None


def wrong_package() -> str | None:
    """Say what is wrong if ``import batchkit`` finds, or may find, another project's files; else ``None``.

    The distribution ``batchkit`` on PyPI is an unrelated project with the same import name.
    """
    from importlib import metadata

    here = Path(sys.modules["batchkit"].__file__ or "").resolve().parent
    mend = f"pip uninstall batchkit, then pip install --force-reinstall {PROJECT}"
    with contextlib.suppress(metadata.PackageNotFoundError):
        other = metadata.distribution("batchkit")
        return (
            f"the distribution 'batchkit' {other.version} in {other.locate_file('')} is another project "
            f"that is imported by the same name: {mend}"
        )
    try:
        ours = metadata.distribution(PROJECT)
    except metadata.PackageNotFoundError:
        return None
    expected = _package_folder(ours)
    if expected is None or expected == here:
        return None
    return f"'import batchkit' finds {here}, but {PROJECT} {ours.version} is in {expected}: {mend}"


def _package_folder(distribution: Distribution) -> Path | None:
    """Return where a distribution put the package ``batchkit``, or ``None`` where its records do not tell."""
    for file in distribution.files or ():
        if file.parts == ("batchkit", "__init__.py"):
            return Path(str(distribution.locate_file(file))).resolve().parent
    with contextlib.suppress(ValueError, KeyError, TypeError):  # installed as editable: PEP 610 has its folder
        from urllib.request import url2pathname  # imports the whole of http and ssl

        url = urlsplit(json.loads(distribution.read_text("direct_url.json") or "")["url"])
        folder = Path(url2pathname(url.path), "batchkit")
        if url.scheme == "file" and folder.is_dir():
            return folder.resolve()
    return None
