"""dedupfs: any number of almost equal directories out of one deduplicated store.

The names in ``__all__`` are the public interface (docs/api.md); each is imported when it is first
asked for, so that ``import dedupfs`` and the command line start at once.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dedupfs import errors
    from dedupfs.api import (
        Change,
        Collected,
        DiskUsage,
        Entry,
        Pruned,
        Snapshot,
        Stat,
        Stats,
        Store,
        Taken,
        Tree,
        View,
        ViewInfo,
    )

__version__ = "0.1.0"
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
    "errors",
]


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    found: object
    if name == "errors":
        found = importlib.import_module("dedupfs.errors")
    elif name in __all__:
        found = getattr(importlib.import_module("dedupfs.api"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
