"""compile(pipeline) -> Plan; Plan.batch(k)."""

from batchkit.plan.compiling import check_shard, compile
from batchkit.plan.plan import Plan, Step

__all__ = ["Plan", "Step", "check_shard", "compile"]
