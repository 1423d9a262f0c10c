"""Walk order -> items to store: what is unchanged, what is complete, what has to be read.

Opens files a little ahead of their turn, so that the disk reads them meanwhile; puts nothing.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import msgspec

from dedupfs.model import FILE_BYTES_MAX, TreeEntry
from dedupfs.namespace.trees import tree_id_of
from dedupfs.transfer.builder import object_entry
from dedupfs.transfer.metadata import (
    Target,
    Xattrs,
    is_in_mount,
    object_at,
    open_source,
    read_xattrs,
)
from dedupfs.transfer.report import Problems
from dedupfs.transfer.scan import Below, FileKey, Scan
from dedupfs.transfer.sources import (
    NO_STAMP,
    KnownDirectory,
    KnownSources,
    Stamp,
    child_key,
    stamp_of,
)
from dedupfs.transfer.walk import Level, Step, Visit, Walk, list_names

AHEAD_FILES_MAX = 64
AHEAD_BYTES = 2 << 20
"""How much of each file the kernel is asked to read before its turn."""


@dataclass(slots=True)
class Item:
    """One step of the import. ``fd`` >= 0: a regular file that has to be read."""

    step: Step
    level: Level
    name: bytes
    status: os.stat_result
    xattrs: Xattrs = ()
    known: KnownDirectory | None = None
    entry: TreeEntry | None = None
    stamp: Stamp = NO_STAMP
    fd: int = -1
    below: Below | None = None
    link_key: FileKey | None = None
    known_link_id: bytes | None = None
    is_unchanged: bool = False

    @property
    def path(self) -> bytes:
        """The path from the top of the walk, for messages."""
        is_level = self.step is Step.ENTER or self.step is Step.LEAVE
        return self.level.path if is_level else self.level.child_path(self.name)

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Gatherer:
    """Turns the visits of a walk into items."""

    def __init__(
        self,
        top_fd: int,
        found: Scan,
        known: KnownSources,
        trusted_before_ns: int,
        problems: Problems,
        *,
        one_file_system: bool = False,
        names: Callable[[Level], list[bytes]] = list_names,
    ) -> None:
        """``trusted_before_ns``: a file touched later may change again without a new ctime."""
        self._walk = Walk(
            top_fd,
            problems,
            one_file_system=one_file_system,
            names=names,
            passes=self._is_unchanged,
        )
        self._linked = found.linked
        self._unchanged_below = found.unchanged
        self._known = known
        self._trusted_before_ns = trusted_before_ns
        self._problems = problems
        self._stack: list[KnownDirectory] = []
        self._met_links: set[FileKey] = set()
        self._keeps_ctimes: dict[int, bool] = {}

    def items_ahead(self) -> Generator[Item, None, None]:
        """Yield the items, having looked at up to ``AHEAD_FILES_MAX`` that come after each."""
        items = self._items()
        waiting: deque[Item] = deque(islice(items, AHEAD_FILES_MAX))
        try:
            while waiting:
                yield waiting.popleft()
                waiting.extend(islice(items, 1))
        finally:
            for item in waiting:
                item.close()

    def _items(self) -> Iterator[Item]:
        for visit in self._walk:
            step = visit[0]
            if step is Step.ENTER:
                yield self._enter(visit)
            elif step is Step.LEAVE:
                yield Item(*visit, known=self._stack.pop())
            elif step is Step.PASS:
                yield self._pass(visit)
            else:
                item = self._object(visit)
                if item is not None:
                    yield item

    def _is_unchanged(self, name: bytes, status: os.stat_result) -> bool:
        """Whether the last import's tree of a subdirectory is what it and all below it are now.

        The scan has compared what is below with the row of the subdirectory, and only what that
        row is about counts.
        """
        known = self._stack[-1]
        below = self._unchanged_below.get(child_key(known.key, name))
        if below is None:
            return False
        entry = known.unchanged(name, status)
        return (
            entry is not None
            and entry.is_directory
            and tree_id_of(entry) == below.tree_id
            and (entry.mode, entry.mtime_ns) == (status.st_mode, status.st_mtime_ns)
        )

    def _pass(self, visit: Visit) -> Item:
        known, name = self._stack[-1], visit[2]
        entry, stamp = known.entries[name]
        below = self._unchanged_below[child_key(known.key, name)]
        return Item(*visit, entry=entry, stamp=stamp, below=below)

    def _enter(self, visit: Visit) -> Item:
        _, level, name, status = visit
        known = self._known.child(self._stack[-1], name) if self._stack else self._known.top()
        self._stack.append(known)
        item = Item(*visit, known=known)
        if level.fd >= 0:
            if status.st_dev not in self._keeps_ctimes:
                self._keeps_ctimes[status.st_dev] = not is_in_mount(level.fd)
            item.stamp = self.stamp(status)
            item.xattrs = self._xattrs(level.fd, item)
        return item

    def _xattrs(self, target: Target, item: Item) -> Xattrs:
        try:
            return read_xattrs(target)
        except OSError as exc:
            self._problems.add_os_error(item.path, "its extended attributes are missing", exc)
            item.stamp = NO_STAMP  # the next import looks again
            return ()

    def _object(self, visit: Visit) -> Item | None:
        _, level, name, status = visit
        item = Item(*visit)
        item.stamp = self.stamp(status)
        key = (status.st_dev, status.st_ino)
        known = self._stack[-1]
        if key in self._linked:
            item.link_key = key
            before = known.find(name)
            item.known_link_id = before.content if before is not None and before.is_link else None
            if key in self._met_links:
                return item
        item.entry = self._unchanged(known, name, status)
        item.is_unchanged = item.entry is not None
        if item.entry is None:
            try:
                self._open(item)
            except OSError as exc:
                self._problems.add_os_error(level.child_path(name), "left out", exc)
                return None
        if item.link_key is not None:
            self._met_links.add(item.link_key)
        return item

    def stamp(self, status: os.stat_result) -> Stamp:
        """Return what the next import shall compare; nothing if the file is still warm.

        Nor in a mount of dedupfs: what a snapshot has tells its mtime for a ctime, and when another
        snapshot is mounted in its place, the same inode numbers are others'.
        """
        is_warm = max(status.st_mtime_ns, status.st_ctime_ns) >= self._trusted_before_ns
        if is_warm or not self._keeps_ctimes.get(status.st_dev, True):
            return NO_STAMP
        return stamp_of(status)

    def _unchanged(
        self, known: KnownDirectory, name: bytes, status: os.stat_result
    ) -> TreeEntry | None:
        entry = known.unchanged(name, status)
        if entry is not None and entry.is_link:
            entry = self._known.inode(entry)
            if entry is not None:  # a file of its own, when its other names are left out now
                entry = msgspec.structs.replace(entry, name=name, nlink=1)
        if entry is None or entry.mode != status.st_mode or entry.mtime_ns != status.st_mtime_ns:
            return None
        return entry if not entry.is_file or entry.size == status.st_size else None

    def _open(self, item: Item) -> None:
        """Read what is not a regular file; open what is and have its first bytes read."""
        with object_at(item.level.fd, item.name) as (fd, path):
            status = os.fstat(fd)
            if stat.S_IFMT(status.st_mode) != stat.S_IFMT(item.status.st_mode):
                raise OSError(errno.ESTALE, "became something else meanwhile")
            if not stat.S_ISREG(status.st_mode):
                target = os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
                xattrs = self._xattrs(path, item)
                item.entry = object_entry(item.name, status, xattrs, target, len(target))
                return
            item.fd = open_source(path)
        try:
            item.status = os.fstat(item.fd)
            if item.status.st_size > FILE_BYTES_MAX:
                raise OSError(errno.EFBIG, f"more than {FILE_BYTES_MAX >> 40} TiB")
            item.stamp = self.stamp(item.status)
            item.xattrs = self._xattrs(item.fd, item)
            with suppress(OSError):  # only advice
                os.posix_fadvise(item.fd, 0, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        except OSError:
            item.close()
            raise
