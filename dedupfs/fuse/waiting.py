"""Waiting for the kernel's next request: look again for a moment before going to sleep.

Most of a FUSE request is two processors waking up; a daemon that looks again for 100 us spares its
own share. Bounded, only after a request, and
never while a thread's result is awaited; every two milliseconds other tasks have their turn. Knows
no requests. pyfuse3 awaits ``pyfuse3._wait_fuse_readable`` before each request: a private name, so
it is replaced only when it is there.
"""

import os
import select
import time
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

from dedupfs.fuse.detour import Detour

SPIN_NS = 100_000
POLL_MS = 1
TURN_NS = 2_000_000
"""Other tasks wait at most so long for a daemon that is kept busy."""
WORKERS_KEPT = 8
"""pyfuse3 ends those of its tasks that find more than so many others waiting (``min_tasks``)."""
_NAME = "_wait_fuse_readable"


def can_replace() -> bool:
    """Whether this pyfuse3 waits through a name that can be replaced."""
    return callable(getattr(pyfuse3, _NAME, None))


class Waiter:
    """Stands in for pyfuse3's own waiting while it is installed."""

    def __init__(
        self, session_fd: int, is_idle: Callable[[], bool], answered: Callable[[], None]
    ) -> None:
        """``is_idle``: whether no request waits for a thread.

        ``answered`` is called before each look for a request: the last one that was dealt with
        without an await has its answer.
        """
        self._is_idle = is_idle
        self._answered = answered
        self._park: Callable[[], Awaitable[bool]] = getattr(pyfuse3, _NAME)
        self._requests = select.poll()
        self._requests.register(session_fd, select.POLLIN)
        self._before: Callable[[], bool] | None = None
        self._session_fd = session_fd
        self._detour: Detour | None = None
        self._parked = 0
        self._turn_ns = 0
        self._served = False
        self._gives_way = False
        """Whether the task that looks lets others have their turn. Of pyfuse3's tasks one looks,
        the rest is parked: when none is, pyfuse3 starts another one for each request."""

    def install(self, before: Callable[[], bool] | None = None) -> None:
        """Begin; ``before`` is called until it says True, and only then is the device looked at."""
        self._before = before
        setattr(pyfuse3, _NAME, self.wait)

    def remove(self) -> None:
        """Let pyfuse3 wait by itself again."""
        setattr(pyfuse3, _NAME, self._park)
        if self._detour is not None:
            self._detour.close()

    def has_request(self) -> bool:
        """Whether the kernel has a request that nobody has taken."""
        return bool(self._requests.poll(0))

    def keep_listing(self) -> None:
        """Let the kernel keep what is listed by the OPENDIR in hand, whose answer comes next.

        Then the same worker waits again at once, with no turn of the loop in between, which ends
        the detour: pyfuse3 ends a worker instead only when more than WORKERS_KEPT are parked.
        """
        if self._detour is not None and self._parked <= WORKERS_KEPT:
            self._detour.begin()

    async def wait(self) -> bool:
        """Return True when there is a request, False when the session ends."""
        if self._detour is not None and self._detour.under_way:
            self._detour.finish()
        if self._before is not None:
            if not self._before():
                return await self._parking()
            self._before = None
            self._detour = Detour(self._session_fd)
        self._answered()
        while True:
            now_ns = time.perf_counter_ns()
            if not self._gives_way and now_ns - self._turn_ns > TURN_NS:
                now_ns = await self._give_way()
            if not self._gives_way and self._served and self._look(now_ns):
                return True
            if not await self._parking():
                return False
            if self._gives_way:
                continue
            self._turn_ns = time.perf_counter_ns()
            self._served = True
            # Another task may have taken what woke this one; to read the device would then block
            # the whole process. So look again, with no await between the look and the read.
            if self._requests.poll(0):
                return True

    async def _give_way(self) -> int:
        """Let other tasks run; return what time it is then."""
        self._gives_way = True
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._gives_way = False
        self._turn_ns = time.perf_counter_ns()
        return self._turn_ns

    async def quiet(self) -> None:
        """Return when no request waits in the device, in a thread or in a handler."""
        while not self._is_idle() or self._requests.poll(0):
            await trio.lowlevel.checkpoint()

    async def _parking(self) -> bool:
        self._parked += 1
        try:
            return await self._park()
        finally:
            self._parked -= 1

    def _look(self, now_ns: int) -> bool:
        if self._is_idle():
            return self._spin(now_ns + SPIN_NS) or bool(self._requests.poll(POLL_MS))
        return bool(self._requests.poll(0))

    def _spin(self, until_ns: int) -> bool:
        """Ask again and again, giving way to whoever wants this processor."""
        while not self._requests.poll(0):
            os.sched_yield()
            if time.perf_counter_ns() > until_ns:
                return False
        return True
