"""Rows that were computed once, kept in memory or on disk; knows nothing of pipelines and plans."""

from batchkit.caching.disk import DiskStore
from batchkit.caching.folder import Damage, Description, clear, described, found, verified
from batchkit.caching.identity import WHOLE, identity
from batchkit.caching.memory import MemoryStore
from batchkit.caching.outline import Column, Leaves, Outline, Store, Taken, joined, merged
from batchkit.caching.records import characters, of_columns, of_items, text, to_columns, to_items
from batchkit.caching.runs import DiskRuns, Found, MemoryRuns, NoRuns, Runs

__all__ = [
    "WHOLE",
    "Column",
    "Damage",
    "Description",
    "DiskRuns",
    "DiskStore",
    "Found",
    "Leaves",
    "MemoryRuns",
    "MemoryStore",
    "NoRuns",
    "Outline",
    "Runs",
    "Store",
    "Taken",
    "characters",
    "clear",
    "described",
    "found",
    "identity",
    "joined",
    "merged",
    "of_columns",
    "of_items",
    "text",
    "to_columns",
    "to_items",
    "verified",
]
