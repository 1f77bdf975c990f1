"""One input pipeline for PyTorch, TensorFlow, JAX and NumPy.

Describe a pipeline once (:class:`Pipeline`), and a :class:`Loader` feeds it to any framework:
the same batches everywhere, in an order that depends on the seed alone, resumable from any step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchkit import errors as _errors
from batchkit.backends import Backend, NumpyBackend
from batchkit.combining import concat, interleave, mix, zip
from batchkit.errors import *  # noqa: F403
from batchkit.executors import Executor
from batchkit.hookspecs import hookimpl
from batchkit.loader import Loader
from batchkit.pipeline import (
    Pipeline,
    from_arrays,
    from_generator,
    from_npy,
    from_npz,
    from_ragged,
    from_sequence,
    from_source,
)
from batchkit.ragged import Ragged
from batchkit.schema import LeafSpec
from batchkit.skipping import Skip
from batchkit.sources import Source
from batchkit.stages import ColumnStage

if TYPE_CHECKING:
    from batchkit import transforms as transforms
    from batchkit.checking import Verdict, verify
    from batchkit.config import load
    from batchkit.lineage import Lineage, explain

__all__ = [
    "Backend",
    "ColumnStage",
    "Executor",
    "LeafSpec",
    "Lineage",
    "Loader",
    "NumpyBackend",
    "Pipeline",
    "Ragged",
    "Skip",
    "Source",
    "Verdict",
    "concat",
    "explain",
    "from_arrays",
    "from_generator",
    "from_npy",
    "from_npz",
    "from_ragged",
    "from_sequence",
    "from_source",
    "hookimpl",
    "interleave",
    "load",
    "mix",
    "verify",
    "zip",
    *(name for name in _errors.__all__ if name != "nearest"),
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Reading a config file needs pydantic and a YAML parser: imported when first asked for.
    if name == "load":
        from batchkit.config import load

        return load
    if name in ("Verdict", "verify"):
        from batchkit import checking

        return getattr(checking, name)
    if name in ("Lineage", "explain"):
        from batchkit import lineage

        return getattr(lineage, name)
    if name == "transforms":
        import importlib

        return importlib.import_module("batchkit.transforms")
    hint = ""
    if not name.startswith("_"):
        from batchkit.peers import name_hint

        hint = name_hint(name, __all__)
    raise AttributeError(f"module 'batchkit' has no attribute {name!r}{hint}")
