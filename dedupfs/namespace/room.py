"""Keeping the last of a disk for what gives space back: folds, deletions, the index.

Knows the store's file system, nothing of what is written. Without it a full disk could not even
record that a file was deleted (design promise P11).
"""

import os
import time
from pathlib import Path

from dedupfs.errors import StoreFullError

KEPT_BYTES_MAX = 32 << 20
KEPT_SHARE = 32
"""Kept free: at most KEPT_BYTES_MAX, and at most one part in KEPT_SHARE of a small disk."""
LOW_SHARE = 20
"""Less than one part in LOW_SHARE (5 %) is low, and so is ..."""
LOW_KEPT = 4
"""... less than so many times what is kept free."""
_LOOK_BYTES = 8 << 20
_LOOK_S = 1.0


def kept_bytes(path: Path) -> int:
    """Return how much of a store's file system is not for data."""
    found = os.statvfs(path)
    return min(KEPT_BYTES_MAX, found.f_blocks * found.f_frsize // KEPT_SHARE)


def is_low(path: Path) -> bool:
    """Whether a store's file system has so little left that gc should look for more by itself."""
    found = os.statvfs(path)
    low_bytes = max(found.f_blocks * found.f_frsize // LOW_SHARE, LOW_KEPT * kept_bytes(path))
    return found.f_bavail * found.f_frsize < low_bytes


class Room:
    """Says whether there is room for more data; asks the file system only now and then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left_bytes = 0
        self._unseen_bytes = 0
        self._looked_s = 0.0

    def require(self, length: int) -> None:
        """Take ``length`` bytes of what is left.

        Raises:
            StoreFullError: there are not that many.
        """
        now_s = time.monotonic()
        self._unseen_bytes += length
        stale = self._unseen_bytes >= _LOOK_BYTES or now_s - self._looked_s >= _LOOK_S
        if stale or length > self._left_bytes:
            self._look(now_s)
        if length > self._left_bytes:
            raise StoreFullError(
                f"{self._path}: the disk is full: delete something (there is room left for that)"
            )
        self._left_bytes -= length

    def _look(self, now_s: float) -> None:
        found = os.statvfs(self._path)
        self._left_bytes = found.f_bavail * found.f_frsize - kept_bytes(self._path)
        self._unseen_bytes = 0
        self._looked_s = now_s
