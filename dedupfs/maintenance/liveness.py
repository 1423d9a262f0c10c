"""Does any process use a store? Asked from outside, by the locks that the kernel drops with them.

Knows no index. Three kinds of locks tell: a process's own (run/TOKEN.lock), a view's
(views/NAME/lock), and the one that LMDB takes on its lock file for as long as an index is open,
which also shows those that only read. Source: docs/format.md, "Layout"; fcntl(2), "Open file
description locks"; mdb.c, mdb_env_share_locks.
"""

import fcntl
import os
import struct
from pathlib import Path

from dedupfs.errors import StoreBusyError, StoreError
from dedupfs.namespace.views import LOCK_NAME, VIEWS_DIRECTORY
from dedupfs.store.disk import Disk
from dedupfs.store.layout import Layout
from dedupfs.store.owner import close_lock, open_lock

_LMDB_LOCK = "lock.mdb"
_FLOCK = struct.Struct("@hhqqi")  # struct flock: type, whence, start, length, pid
_F_OFD_GETLK = 36  # linux/fcntl.h; a lock of this very process conflicts too


def require_unused(layout: Layout, disk: Disk, index: Path) -> None:
    """Refuse a store that a process uses. ``index`` is where its index is at the moment.

    Raises:
        StoreBusyError: the message names the process.
    """
    pid = _index_user(index)
    if pid is not None:
        raise StoreBusyError(_busy(layout, f"process {pid}" if pid > 0 else "this process"))
    for name in disk.listdir(layout.run):
        if layout.owner_of_lock(name) is not None:
            _require_unlocked(layout, disk, layout.run / name, "process")
    views = layout.root / VIEWS_DIRECTORY
    for name in disk.listdir(views):
        _require_unlocked(layout, disk, views / name / LOCK_NAME, f"view {name}")


def _busy(layout: Layout, who: str) -> str:
    return f"{layout.root} is in use by {who}: unmount its views and end its commands first"


def _require_unlocked(layout: Layout, disk: Disk, path: Path, who: str) -> None:
    try:
        file = open_lock(disk, path)
    except (FileNotFoundError, StoreError):
        return
    try:
        if not disk.lock(file):
            text = disk.pread(file, 200, 0).decode(errors="replace").strip()
            raise StoreBusyError(_busy(layout, f"{who} {text}"))
    finally:
        close_lock(file)


def _index_user(index: Path) -> int | None:
    """Return the pid of a process that has the index open, or None; -1 is this process."""
    try:
        fd = os.open(index / _LMDB_LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _whence, _start, _length, pid = _FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else int(pid)
    except OSError:
        return None
    finally:
        os.close(fd)
