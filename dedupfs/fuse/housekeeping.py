"""Folding a live view's journal, on a timer, on request and before a commit.

Knows a view and trio, no FUSE. A fold is prepared in a thread (records synced) and then done on the
trio thread, in one step that no request can see half of; two are never under way at once.
"""

import logging
import time
from collections.abc import Awaitable, Callable

import trio
import trio.lowlevel

from dedupfs.errors import DedupfsError
from dedupfs.model import SnapshotInfo
from dedupfs.namespace.view import View

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
RETRY_INTERVAL_S = 30.0
"""A full disk or a failing one does not heal within a second; the journal keeps everything."""


async def _at_once() -> None:
    """Nothing has to arrive."""


class Housekeeper:
    """The only one who folds a view while it is mounted."""

    def __init__(self, view: View, quiet: Callable[[], Awaitable[None]] = _at_once) -> None:
        """``quiet`` returns when what the kernel had ready to write has arrived."""
        self._view = view
        self._quiet = quiet
        self._one_at_a_time = trio.Lock()

    async def fold(self) -> None:
        """Turn the journal into trees."""
        async with self._one_at_a_time:
            await self._prepare()
            self._view.fold()

    def look_at_limits(self) -> None:
        """Take over limits that were changed."""
        self._view.quota.reload()

    async def commit(self, name: str, path: bytes, tags: dict[str, str]) -> SnapshotInfo:
        """Freeze the view, or a directory of it, as a snapshot.

        What the kernel keeps in its page cache is not in it unless the one who asks has called
        syncfs(2) before: this process must not touch its own mount.
        """
        async with self._one_at_a_time:
            await self._quiet()
            await self._prepare()
            return self._view.commit(name, path=path, tags=tags, created_ns=time.time_ns())

    async def _prepare(self) -> None:
        plan = self._view.prepare_fold()
        await trio.to_thread.run_sync(plan.run)

    async def _give_back(self) -> None:
        """Free what the fold let go of, in slices between which requests are answered."""
        while self._view.give_back():
            await trio.lowlevel.checkpoint()

    async def _count_held(self) -> None:
        """Find out what a limited view holds, while requests are answered."""
        count = self._view.quota.count()
        if count is not None:
            await trio.to_thread.run_sync(count.run)
            self._view.quota.counted(count)

    async def run(self) -> None:
        """Fold whenever the view wants it; a failure is logged and tried again, never fatal."""
        while True:
            await trio.sleep(CHECK_INTERVAL_S)
            try:
                if self._view.wants_fold():
                    await self.fold()
                    await self._give_back()
                await self._count_held()
                continue
            except DedupfsError as exc:
                log.error("fold failed, will be tried again view=%s: %s", self._view.name, exc)
            except Exception:  # the mount must live on; the journal has it all
                log.critical("bug in fold view=%s", self._view.name, exc_info=True)
            await trio.sleep(RETRY_INTERVAL_S)
