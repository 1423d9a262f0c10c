"""Limits in bytes: the small files that keep them, and the store's own, which every writer asks.

A limit is asked where new bytes are taken in (a write in a view, a file that is imported), never
where bytes that were taken become records: what a caller was told is stored can always be stored,
and deleting needs no room below a limit. Source: docs/format.md, "Limits".
"""

import os
import time
from pathlib import Path

import msgspec

from dedupfs.errors import CorruptError, FormatVersionError, QuotaError, UsageError
from dedupfs.format.keys import decode_pack_row
from dedupfs.store.db import Table
from dedupfs.store.disk import Disk
from dedupfs.store.layout import write_whole
from dedupfs.store.store import Store

LIMIT_NAME = "limit.json"
UNFINISHED_SUFFIX = ".new"
"""Of files in run/ that are going to be packs."""
FORMAT_VERSION = 1
_CURE = "set the limit again with 'dedupfs limit'"
LIMIT_BYTES_MAX = (1 << 63) - 1
_LOOK_BYTES = 8 << 20
_LOOK_S = 1.0
_LOOK_SHARE = 20
"""No more than one part in so many of the time goes into looking."""
_BLOCK_BYTES = 512  # the unit of st_blocks: inode(7)


class _Limit(msgspec.Struct):
    """What a limit's file says; fields that a newer dedupfs adds are passed over."""

    format_version: int
    limit_bytes: int


def read_limit(disk: Disk, directory: Path) -> int | None:
    """Return the limit of the store or view whose directory this is; None for no limit.

    Raises:
        FormatVersionError: a newer dedupfs set it. CorruptError: the file is damaged.
    """
    path = directory / LIMIT_NAME
    try:
        file = disk.open(path)
    except FileNotFoundError:
        return None
    text = disk.pread(file, 1 << 16, 0)
    file.close()
    try:
        limit = msgspec.json.decode(text, type=_Limit)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptError(f"{path} is damaged; {_CURE}: {exc}") from exc
    if limit.format_version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: format version {limit.format_version}; this dedupfs reads up to "
            f"{FORMAT_VERSION}, use a newer one"
        )
    if not 0 <= limit.limit_bytes <= LIMIT_BYTES_MAX:
        raise CorruptError(f"{path} is damaged; {_CURE}: {limit.limit_bytes} bytes")
    return limit.limit_bytes


def write_limit(disk: Disk, directory: Path, limit_bytes: int | None) -> None:
    """Set the limit of the store or view whose directory this is, durably; None: no limit.

    Raises:
        UsageError: no limit can be that. StoreFullError, StoreError: the disk refused; the limit is
            as it was.
    """
    if limit_bytes is not None and not 0 <= limit_bytes <= LIMIT_BYTES_MAX:
        raise UsageError(f"a limit is at most {LIMIT_BYTES_MAX} bytes")
    path = directory / LIMIT_NAME
    if limit_bytes is not None:
        write_whole(disk, path, msgspec.json.encode(_Limit(FORMAT_VERSION, limit_bytes)) + b"\n")
    elif LIMIT_NAME in disk.listdir(directory):
        disk.unlink(path)
        disk.fsync_dir(directory)


def file_bytes(directory: Path, suffix: str = "") -> int:
    """Return what files in a directory take on disk, without those that are packs as well."""
    found = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # settled, or deleted, since its name was read
                if status.st_nlink == 1 and entry.name.endswith(suffix):
                    found += status.st_blocks * _BLOCK_BYTES
    except (FileNotFoundError, NotADirectoryError):
        return found
    return found


def store_use(store: Store) -> int:
    """Return what the store takes, as its limit counts: O(packs and views), whatever they hold.

    That is what live records take in packs (also those that this process has not committed yet),
    and all files that are on their way there: journals and staging files of views, and what
    imports are writing. What gc has yet to free counts; the index does not.
    """
    with store.reading() as txn:
        found = sum(decode_pack_row(row).live_bytes for _, row in txn.scan(Table.PACKS))
    found += store.pending_bytes + file_bytes(store.layout.run, UNFINISHED_SUFFIX)
    views = store.path / "views"
    for name in store.disk.listdir(views):
        found += file_bytes(views / name)
    return found


class StoreLimit:
    """The limit of the whole store, for one process that adds to it. One thread.

    Looks now and then at what all processes have added; in between it knows of its own alone.
    """

    def __init__(self, store: Store) -> None:
        """Without a limit until ``reload``."""
        self._store = store
        self.limit_bytes: int | None = None
        self._forget()

    def reload(self) -> None:
        """Take over a limit that has changed. Errors as ``read_limit``."""
        self.limit_bytes = read_limit(self._store.disk, self._store.path)
        self._forget()

    def _forget(self) -> None:
        self._left_bytes = 0
        self._unseen_bytes = 0
        self._look_s = self._looked_s = 0.0
        self._taken = False
        """Whether something was taken since the last look, so that what is left is but a guess."""

    def require(self, length: int) -> None:
        """Take ``length`` of what is left, before so many bytes are added.

        Raises:
            QuotaError: there are not that many.
        """
        if self.limit_bytes is None:
            return
        self._unseen_bytes += length
        refused_before = not self._taken and not self._may_look()
        if self._is_stale() or (length > self._left_bytes and not refused_before):
            self._look(self.limit_bytes)
        if length > self._left_bytes:
            raise QuotaError(
                f"{self._store.path}: the store's limit of {self.limit_bytes} bytes is reached: "
                f"delete something, or raise it with 'dedupfs limit {self._store.path} SIZE'"
            )
        self._left_bytes -= length
        self._taken = True

    def added(self, length: int) -> None:
        """Hear that at most ``length`` bytes were added: for who cannot know how many are new.

        Raises:
            QuotaError: the limit is exceeded.
        """
        self._unseen_bytes += length
        if self._is_stale():
            self.reload()  # it may have changed during a long import
        self._left_bytes -= length
        self._taken = True
        if self._left_bytes < 0:
            self.require(0)

    def look_again(self) -> None:
        """Look at the next request: something was deleted."""
        self._looked_s = self._look_s = 0.0

    def _is_stale(self) -> bool:
        return (
            self._unseen_bytes >= _LOOK_BYTES
            and self._may_look()
            and time.monotonic() - self._looked_s >= _LOOK_S
        )

    def _may_look(self) -> bool:
        return time.monotonic() - self._looked_s >= self._look_s * _LOOK_SHARE

    def _look(self, limit_bytes: int) -> None:
        begun_s = time.monotonic()
        self._left_bytes = limit_bytes - store_use(self._store)
        self._unseen_bytes = 0
        self._taken = False
        self._looked_s = time.monotonic()
        self._look_s = self._looked_s - begun_s
