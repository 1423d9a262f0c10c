"""Which processes are alive: each holds a lock on run/TOKEN.lock that the kernel drops with it.

Knows no index. Source: docs/format.md, "Layout"; flock(2).
"""

import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dedupfs.errors import StoreError
from dedupfs.store.disk import Disk, File
from dedupfs.store.layout import Layout

OWNER_PREFIX = b"p"
_TOKEN_BYTES = 8


# --- locks and forks ------------------------------------------------------------------------------

_opening = threading.RLock()
"""Held while a lock's file is opened and noted, and while it is closed: a fork waits meanwhile.
Else a child would have a lock that nobody there knows, for as long as it lives, and wait for itself
when it wants that lock."""
_locks: weakref.WeakSet[File] = weakref.WeakSet()
"""Files that are open in order to be locked, in whatever thread."""


def open_lock(disk: Disk, path: Path, *, write: bool = False, create: bool = False) -> File:
    """Open a file that is to be locked, which a forked child shall not have; see ``Disk.open``."""
    return noted(lambda: disk.open(path, write=write, create=create))


def noted(opening: Callable[[], File]) -> File:
    """Open a file in some other way that a forked child shall not have."""
    with _opening:
        file = opening()
        _locks.add(file)
        return file


def close_lock(file: File) -> None:
    """Close what ``open_lock`` has opened, which gives the lock back."""
    with _opening:
        file.close()


def _leave_locks_to_the_parent() -> None:
    """In a forked child: it shares the locks, and would keep them for as long as it lives."""
    global _opening  # noqa: PLW0603  other threads of the parent may have waited for it
    _opening = threading.RLock()
    for file in list(_locks):
        file.close()
    _locks.clear()


def _go_on() -> None:
    _opening.release()


def _fork_between() -> None:
    _opening.acquire()


os.register_at_fork(
    before=_fork_between, after_in_parent=_go_on, after_in_child=_leave_locks_to_the_parent
)


# --- owners ---------------------------------------------------------------------------------------


class Owner:
    """This process's identity in one store; its lock file is made when it is first needed."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self._file: File | None = None
        self.name = OWNER_PREFIX + secrets.token_hex(_TOKEN_BYTES).encode()

    def adopt(self, name: bytes, fd: int) -> None:
        """Go on as the process ``name``, whose lock comes with ``fd``: what it pinned is ours."""
        self.name = name
        self._file = File(fd, self._layout.owner_lock(name))

    def claim(self) -> int:
        """Take the lock, so that others see this process alive; return its descriptor."""
        if self._file is None:
            self._file = self._lock()
        return self._file.fd

    def _lock(self) -> File:
        path = self._layout.owner_lock(self.name)
        while True:
            file = open_lock(self._disk, path, create=True)
            if not self._disk.lock(file):
                raise StoreError(f"{path} is locked by somebody else")
            if same_file(file, path):  # else somebody took the name away before it was locked
                break
        self._disk.truncate(file, 0)
        self._disk.pwrite(file, [f"{os.getpid()} {_command_line()}\n".encode()], 0)
        return file

    @property
    def is_claimed(self) -> bool:
        """Whether the lock is held: only then can there be pins of this process."""
        return self._file is not None

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._file is not None:
            self._disk.unlink(self._file.path)
            close_lock(self._file)
            self._file = None

    def abandon(self) -> None:
        """In a forked child: leave the lock to the parent alone, which may die or give it back."""
        if self._file is not None:
            self._file.close()
            self._file = None


def same_file(file: File, path: Path) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fd), os.stat(path))
    except FileNotFoundError:
        return False


def _command_line() -> str:
    try:
        return Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_dead(layout: Layout, disk: Disk, owner: bytes, *, tidy: bool = True) -> bool:
    """Whether the process that ``owner`` names has ended; its lock file is removed if so.

    Without ``tidy`` that stays.
    """
    path = layout.owner_lock(owner)
    try:
        file = open_lock(disk, path, write=True)
    except FileNotFoundError:
        return True
    try:
        if not disk.lock(file):
            return False
        if tidy:
            disk.unlink(path)
        return True
    finally:
        close_lock(file)


@contextmanager
def exclusive(layout: Layout, disk: Disk, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock of the store that one process at a time may hold; say whether it is held.

    Without ``wait`` it may be somebody else's.
    """
    file = open_lock(disk, layout.run / f"{name}.lock", create=True)
    try:
        yield disk.lock(file, wait=wait)
    finally:
        close_lock(file)
