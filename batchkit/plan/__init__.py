"""compile(pipeline) -> Plan; Plan.batch(k)."""

from batchkit.plan.plan import Plan, Step, check_shard, compile

__all__ = ["Plan", "Step", "check_shard", "compile"]
