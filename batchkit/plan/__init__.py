"""compile(pipeline) -> Plan; Plan.batch(k)."""

from batchkit.plan.chunks import ChunkPlan
from batchkit.plan.compiling import check_shard, compile
from batchkit.plan.plan import Plan
from batchkit.plan.shapes import static_shapes
from batchkit.plan.step import Step
from batchkit.plan.walks import Feeds

__all__ = ["ChunkPlan", "Feeds", "Plan", "Step", "check_shard", "compile", "static_shapes"]
