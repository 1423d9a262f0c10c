"""Folding a live view's journal, on a timer, on request and before a commit.

Knows a view and trio, no FUSE. A fold is prepared in a thread (records synced) and then done on the
trio thread, in one step that no request can see half of; two are never under way at once.
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from dedupfs.errors import DedupfsError
from dedupfs.model import SnapshotInfo
from dedupfs.namespace.view import View
from dedupfs.store.pace import Steps

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
LOOK_INTERVAL_S = 10.0
"""How often the disk is asked what it has left ..."""
LOOK_AGAIN_S = 60.0
"""... and how soon garbage is looked for once more."""
ROOM_WAIT_S = 30.0
"""How long a write waits for room; a commit that is under way may wait for that very write."""
RETRY_INTERVAL_S = 30.0
"""A full disk or a failing one does not heal within a second; the journal keeps everything."""


async def _at_once() -> None:
    """Nothing has to arrive."""


class Housekeeper:
    """The only one who folds a view while it is mounted."""

    def __init__(
        self,
        view: View,
        quiet: Callable[[], Awaitable[None]] = _at_once,
        *,
        auto_gc: bool = True,
    ) -> None:
        """``quiet`` returns when what the kernel had ready to write has arrived.

        ``auto_gc``: look for what others left to be freed when the disk runs low.
        """
        self._view = view
        self._quiet = quiet
        self._auto_gc = auto_gc
        self._one_at_a_time = trio.Lock()
        self._searching = trio.Lock()
        self._giving_back = trio.Lock()
        self._next_look_s = 0.0
        self._next_search_s = 0.0

    async def fold(self) -> None:
        """Turn the journal into trees."""
        async with self._one_at_a_time:
            await self._prepare()
            self._view.fold()

    def look_at_limits(self) -> None:
        """Take over limits that were changed."""
        self._view.quota.reload()

    @property
    def shown_root(self) -> bytes:
        """The VIEW_ROOT payload of what a read-only mount shows, as another daemon would get it."""
        return self._view.handover().root

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

    async def _give_back(self, *, hurried: bool = False) -> None:
        """Free what the fold let go of, in slices between which requests are answered.

        What reads, waits or changes files is done in a thread; only the index's transactions are
        this one's. One at a time: a second one finds the lock of who punches taken, and so nothing
        to give back.
        """
        async with self._giving_back:
            for work in self._view.relief.giving_back(hurried=hurried):
                await trio.to_thread.run_sync(work)

    async def make_room(self) -> bool:
        """A write has found the disk full: fold and free what can be; say whether to try it again.

        Others' garbage is looked for only now and then, since a full disk is asked often.
        """
        may_help = False
        with trio.move_on_after(ROOM_WAIT_S):
            has_waited = self._one_at_a_time.locked()  # for one that may have made room
            async with self._one_at_a_time, self._hurry():
                has_folded = self._view.has_changes
                under_way = self._searching.locked() or self._giving_back.locked()
                may_help = has_folded or has_waited or under_way
                if has_folded:
                    await self._prepare()
                    self._view.fold()
                if has_folded or under_way:
                    await self._give_back(hurried=True)
                if (under_way or self._may_search()) and self._view.relief.is_room_low():
                    may_help = True  # even if the time is up before all of it is back
                    found_some = await self._look_for_garbage() > 0
                    may_help = found_some or has_folded or has_waited or under_way
        return may_help

    @asynccontextmanager
    async def _hurry(self) -> AsyncIterator[None]:
        """Have what is being given back come soon."""
        self._view.relief.is_waited_for = True
        try:
            yield
        finally:
            self._view.relief.is_waited_for = False

    def _may_search(self) -> bool:
        return self._auto_gc and trio.current_time() >= self._next_search_s

    async def _look_for_garbage(self) -> int:
        """Return how many bytes of disk came back: none when it was tried a moment ago."""
        async with self._searching:  # a write waits for one that is under way
            if not self._may_search():
                return 0
            self._next_search_s = trio.current_time() + LOOK_AGAIN_S
            try:
                async with self._giving_back:
                    gained_bytes = await self._in_steps(self._view.relief.making_room())
            except trio.Cancelled:
                self._next_search_s = 0.0  # whoever waits for room next goes on with it
                raise
        log.info("disk low, gave back view=%s disk_bytes=%d", self._view.name, gained_bytes)
        return gained_bytes

    async def _in_steps(self, steps: Steps[int]) -> int:
        while True:
            try:
                work = next(steps)
            except StopIteration as done:
                gained_bytes: int = done.value
                return gained_bytes
            await trio.to_thread.run_sync(work)

    async def _look_whether_low(self) -> None:
        if self._auto_gc and trio.current_time() >= self._next_look_s:
            self._next_look_s = trio.current_time() + LOOK_INTERVAL_S
            if self._view.relief.is_room_low():
                await self._look_for_garbage()

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
                await self._look_whether_low()
                continue
            except DedupfsError as exc:
                log.error("fold failed, will be tried again view=%s: %s", self._view.name, exc)
            except Exception:  # the mount must live on; the journal has it all
                log.critical("bug in fold view=%s", self._view.name, exc_info=True)
            await trio.sleep(RETRY_INTERVAL_S)
