"""compile(pipeline) -> Plan; Plan.batch(k)."""

from batchkit.plan.compiling import check_shard, compile
from batchkit.plan.ordered.chunks import ChunkPlan
from batchkit.plan.ordered.walks import Feeds
from batchkit.plan.plan import Plan
from batchkit.plan.shapes import empty_slices, static_shapes
from batchkit.plan.step import Step

__all__ = ["ChunkPlan", "Feeds", "Plan", "Step", "check_shard", "compile", "empty_slices", "static_shapes"]
