"""The stages of a pipeline: one frozen dataclass a verb, one file a family."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from batchkit.stages.columns import Cast, Drop, Rename, Select
from batchkit.stages.cut import Batch, PaddedBatch, Unbatch, with_mask
from batchkit.stages.order import OrderStage, Repeat, Shuffle, Skip, Take
from batchkit.stages.rows import RANDOM_MAP, FunctionStage, Map, RandomMap
from batchkit.stages.stage import ColumnStage, Stage

__all__ = [
    "RANDOM_MAP",
    "STAGES",
    "Batch",
    "Cast",
    "ColumnStage",
    "Drop",
    "FunctionStage",
    "Map",
    "OrderStage",
    "PaddedBatch",
    "RandomMap",
    "Rename",
    "Repeat",
    "Select",
    "Shuffle",
    "Skip",
    "Stage",
    "Take",
    "Unbatch",
    "with_mask",
]

STAGES: Mapping[str, type[Stage]] = MappingProxyType(
    {
        stage.verb: stage
        for stage in (
            *(Shuffle, Repeat, Take, Skip, Map, RandomMap),
            *(Batch, PaddedBatch, Unbatch, Select, Drop, Rename, Cast),
        )
    }
)
"""Every built-in stage by its verb."""
