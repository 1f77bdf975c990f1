"""The stages of a pipeline: one frozen dataclass a verb, one file a family."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from batchkit.stages.caching import Cache
from batchkit.stages.columns import Cast, Drop, Rename, Select
from batchkit.stages.cut import Batch, Chunk, PaddedBatch, Rebatch, Unbatch, Window, with_mask
from batchkit.stages.order import OrderStage, Repeat, Shuffle, Skip, Take
from batchkit.stages.rows import RANDOM_MAP, Filter, FlatMap, FunctionStage, Map, RandomMap, function_of
from batchkit.stages.sequences import BucketBatch, Pack, RowLengths
from batchkit.stages.stage import ColumnStage, Stage

__all__ = [
    "RANDOM_MAP",
    "STAGES",
    "Batch",
    "BucketBatch",
    "Cache",
    "Cast",
    "Chunk",
    "ColumnStage",
    "Drop",
    "Filter",
    "FlatMap",
    "FunctionStage",
    "Map",
    "OrderStage",
    "Pack",
    "PaddedBatch",
    "RandomMap",
    "Rebatch",
    "Rename",
    "Repeat",
    "RowLengths",
    "Select",
    "Shuffle",
    "Skip",
    "Stage",
    "Take",
    "Unbatch",
    "Window",
    "function_of",
    "with_mask",
]

STAGES: Mapping[str, type[Stage]] = MappingProxyType(
    {
        stage.verb: stage
        for stage in (
            *(Shuffle, Repeat, Take, Skip, Map, RandomMap, Filter, FlatMap, Window),
            *(Batch, PaddedBatch, BucketBatch, Pack, Unbatch, Rebatch, Select, Drop, Rename, Cast, Cache),
        )
    }
)
"""Every built-in stage by its verb."""
