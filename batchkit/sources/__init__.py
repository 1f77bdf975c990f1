"""The Source protocol, and the sources that need only NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from batchkit.functions import resolve_function
from batchkit.sources.arrays import ArraySource
from batchkit.sources.combined import Combination, Concat, Interleave, Mix, Zip
from batchkit.sources.files import NpySource, NpzSource
from batchkit.sources.generator import GeneratorSource
from batchkit.sources.ragged import RaggedSource
from batchkit.sources.sequence import SequenceSource
from batchkit.sources.source import RowReader, Source

__all__ = [
    "SOURCES",
    "ArraySource",
    "Combination",
    "Concat",
    "GeneratorSource",
    "Interleave",
    "Mix",
    "NpySource",
    "NpzSource",
    "RaggedSource",
    "RowReader",
    "SequenceSource",
    "Source",
    "Zip",
]


def _sequence_from_config(fn: str, kwargs: dict[str, Any] | None = None) -> SequenceSource:
    """Call ``"module:name"``, which returns the sequence."""
    return SequenceSource(resolve_function(fn, "source fn")(**(kwargs or {})))


SOURCES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        **{"npy": NpySource, "npz": NpzSource, "generator": GeneratorSource, "sequence": _sequence_from_config},
        **{combination.kind: combination for combination in (Concat, Zip, Interleave, Mix)},
    }
)
"""What a config file may name as ``source: {kind: ...}``, and what is called with its other keys."""
