"""The law, run on somebody's own pipeline: which stage breaks it, where, and the mend."""

from __future__ import annotations

from batchkit.checking.trial import NAMES, verify
from batchkit.checking.verdict import Check, Finding, Verdict

__all__ = ["NAMES", "Check", "Finding", "Verdict", "verify"]
