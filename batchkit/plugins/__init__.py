"""Plugins: how backends, sources, stages, executors and commands are found by name.

A plugin is an entry point of the group ``"batchkit"`` in an installed distribution, or a
local file or module that the user names. Nothing is imported until a name is asked for,
and then as little as possible: by convention the entry point is named after the thing
that it mainly offers, so ``backend("torch")`` imports the entry point ``torch`` alone.

Where several offer the same name, it is taken from a local plugin; else from batchkit
itself; else from the installed plugin whose entry point has that name; else from the
first installed plugin, in the order of their distributions' names.
"""

from __future__ import annotations

from batchkit.plugins.discovery import import_beside, importable
from batchkit.plugins.identity import version, wrong_package
from batchkit.plugins.registry import PluginInfo, Plugins, installed

__all__ = ["PluginInfo", "Plugins", "import_beside", "importable", "installed", "version", "wrong_package"]
