"""Whether the package that was imported is the one that this project installed."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
    reinstall = f"pip install --force-reinstall {PROJECT}"
    with contextlib.suppress(metadata.PackageNotFoundError):
        other = metadata.distribution("batchkit")
        return (
            f"the distribution 'batchkit' {other.version} in {other.locate_file('')} is another project "
            f"that is imported by the same name: pip uninstall batchkit, then {reinstall}"
        )
    try:
        ours = metadata.distribution(PROJECT)
    except metadata.PackageNotFoundError:
        return None
    expected = _package_folder(ours)
    if expected is None or expected == here:
        return None
    mend = f"start Python from another folder, or {reinstall}"
    return f"'import batchkit' finds {here}, but {PROJECT} {ours.version} is in {expected}: {mend}"


def _package_folder(distribution: Distribution) -> Path | None:
    """Return where a distribution put the package ``batchkit``, or ``None`` where its records do not tell."""
    if any(line.startswith("batchkit/__init__.py,") for line in (distribution.read_text("RECORD") or "").splitlines()):
        return Path(str(distribution.locate_file("batchkit"))).resolve()
    with contextlib.suppress(ValueError, KeyError, TypeError):  # installed as editable: PEP 610 has its folder
        # Imported here: only installations like this one need them, and they take longer than all of this package.
        import json
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        url = urlsplit(json.loads(distribution.read_text("direct_url.json") or "")["url"])
        folder = Path(url2pathname(url.path), "batchkit")
        if url.scheme == "file" and folder.is_dir():
            return folder.resolve()
    return None
