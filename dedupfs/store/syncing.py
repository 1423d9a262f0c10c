"""Makes a file durable, once for all who wait for it, and remembers when that failed.

The kernel drops what it could not write and tells once (fsync(2)), so a file whose sync failed is
never called durable again. Knows no bytes: whoever changes the file says so.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from dedupfs.errors import StoreError


class Syncer:
    """The syncs of one file or directory; ``sync`` may be called from any thread."""

    def __init__(self, path: Path, sync: Callable[[], None]) -> None:
        self._path = path
        self._sync = sync
        self._lock = threading.Lock()
        self._synced = 0
        self.changes = 0
        """How many changes were made, those that are not durable included."""
        self.failed = False
        """Whether a sync failed: who needs those bytes durable must write them to another file."""

    def changed(self) -> None:
        """Note a change that was made just now."""
        self.changes += 1

    def renew(self) -> None:
        """Note that all is durable, in another way."""
        self._synced = self.changes
        self.failed = False

    def is_synced(self, changes: int) -> bool:
        """Whether the first ``changes`` changes are durable."""
        return self._synced >= changes and not self.failed

    def sync(self, changes: int) -> None:
        """Return when the first ``changes`` changes are durable.

        Of many who wait for a sync, one more of them syncs afterwards for all.

        Raises:
            StoreFullError, StoreError: they are not, or an earlier sync failed.
        """
        with self._lock:
            if self.failed:
                raise StoreError(f"cannot sync {self._path}: an earlier sync failed")
            if self._synced >= changes:
                return
            covered = self.changes
            try:
                self._sync()
            except StoreError:
                self.failed = True
                raise
            self._synced = covered
