"""What a program imports: stores, snapshots and views as Python objects, without FUSE.

The names here, and their attributes without an underscore, are the public interface; everything
else in dedupfs may change. ``dedupfs`` itself hands them out. Source: docs/api.md.
"""

from dedupfs.api.reading import Entry, Stat
from dedupfs.api.results import Change, Collected, DiskUsage, Pruned, Stats, Taken, ViewInfo
from dedupfs.api.snapshot import Snapshot
from dedupfs.api.store import Store
from dedupfs.api.tree import Tree
from dedupfs.api.view import View

__all__ = [
    "Change",
    "Collected",
    "DiskUsage",
    "Entry",
    "Pruned",
    "Snapshot",
    "Stat",
    "Stats",
    "Store",
    "Taken",
    "Tree",
    "View",
    "ViewInfo",
]
