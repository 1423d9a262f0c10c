"""The first look at a directory to import: how much there is, which inodes have several names, and
which subdirectories are, with all that is below them, as the last import left them.

Reads names and status only, each once; of the store it knows what the last import noted.
"""

import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from dedupfs.errors import UsageError
from dedupfs.model import RecordId
from dedupfs.transfer.report import Problems
from dedupfs.transfer.selection import Selector
from dedupfs.transfer.sources import (
    NO_LISTING,
    KnownListings,
    SourceRow,
    child_key,
    listed,
    listed_directory,
    stamp_of,
)
from dedupfs.transfer.walk import Level, Step, Walk

FileKey = tuple[int, int]
"""Device and inode number: what two hard links have in common."""
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_TYPE, _REGULAR, _DIRECTORY = 0o170000, stat.S_IFREG, stat.S_IFDIR
_ITEMS_MAX = 1 << 16
"""A larger directory is not compared at once: that would take memory for all of it."""


@dataclass(slots=True)
class Below:
    """What an unchanged directory holds, and the tree that it is."""

    tree_id: RecordId | None
    files: int = 0
    directories: int = 1
    size_bytes: int = 0

    def add(self, other: "Below") -> None:
        """Count what a subdirectory holds."""
        self.files += other.files
        self.directories += other.directories
        self.size_bytes += other.size_bytes


@dataclass(frozen=True, slots=True)
class Scan:
    """What the first pass found.

    ``linked``: inodes with at least two names inside the tree. ``unchanged``: by their keys, the
    directories that are known as they are while the one above them is not. ``missing``: what was
    asked for by its name and is not there.
    """

    files: int
    size_bytes: int
    linked: frozenset[FileKey]
    unchanged: dict[bytes, Below]
    missing: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Looked:
    """A directory that the scan is in. ``items``: its listing; None when it cannot be compared."""

    key: bytes
    row: SourceRow | None
    below: Below
    items: list[bytes] | None = None
    same: list[tuple[bytes, Below]] = field(default_factory=list)

    def is_same(self, known: KnownListings) -> bool:
        """Whether it is, with all that is below it, what the last import made of it."""
        if self.items is None:
            return False
        if self.row is None:
            return not self.items
        listing = self.row.listing
        return listing != NO_LISTING and listing == known.digest(self.items)


class _Scanner:
    def __init__(
        self,
        store_status: os.stat_result,
        known: KnownListings | None,
        selector: Selector | None,
    ) -> None:
        self.files = 0
        self.size_bytes = 0
        self.unchanged: dict[bytes, Below] = {}
        self.seen: dict[FileKey, int] = {}
        self._store_key = (store_status.st_dev, store_status.st_ino)
        self._known = known
        self._selector = selector
        self._stack: list[_Looked] = []
        self._listed: tuple[Level | None, list[bytes] | None] = (None, None)
        self._before = (0, 0)

    def names(self, level: Level) -> list[bytes]:
        """Look at everything in a directory; return the names of its subdirectories.

        What is not selected is not there: no listing has it, so one that was made under another
        selection differs wherever the two differ.
        """
        self._before = (self.files, self.size_bytes)
        self._listed = (level, None)
        subdirectories: list[bytes] = []
        items: list[bytes] = []
        is_whole = self._known is not None
        files = size_bytes = 0
        device = level.status.st_dev
        with os.scandir(level.fd) as found:
            for entry in found if self._selector is None else self._selector.select(level, found):
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:  # gone, or the second pass will tell
                    is_whole = False
                    continue
                name = entry.name.encode(_ENCODING, _ERRORS)
                mode, size = status.st_mode, status.st_size
                if status.st_dev != device:
                    is_whole = False
                if mode & _TYPE == _DIRECTORY:
                    subdirectories.append(name)
                    continue
                files += 1
                if mode & _TYPE == _REGULAR:
                    size_bytes += size
                if status.st_nlink > 1:
                    key = (status.st_dev, status.st_ino)
                    self.seen[key] = self.seen.get(key, 0) + 1
                    is_whole = False
                if is_whole:
                    items.append(listed(name, mode, size, status.st_mtime_ns, stamp_of(status)))
                    is_whole = len(items) < _ITEMS_MAX
        self.files += files
        self.size_bytes += size_bytes
        self._listed = (level, items if is_whole else None)
        subdirectories.sort()
        return subdirectories

    def enter(self, level: Level, name: bytes) -> None:
        status = level.status
        if (status.st_dev, status.st_ino) == self._store_key:
            where = os.fsdecode(level.path) or "the directory itself"
            raise UsageError(f"the store lies in the directory to import ({where})")
        if self._known is None:
            return
        above = self._stack[-1] if self._stack else None
        key = child_key(above.key, name) if above is not None else self._known.top_key
        row = self._known.row(key)
        looked = _Looked(key, row, Below(row.tree_id if row is not None else None))
        listed_level, items = self._listed
        if listed_level is level:
            looked.below.files = self.files - self._before[0]
            looked.below.size_bytes = self.size_bytes - self._before[1]
            if row is None or row.device == status.st_dev:
                looked.items = items
        self._stack.append(looked)

    def leave(self, level: Level, name: bytes) -> None:
        if self._known is None:
            return
        looked = self._stack.pop()
        above = self._stack[-1] if self._stack else None
        if above is None or not looked.is_same(self._known):
            self.unchanged.update(looked.same)
            if above is not None:
                above.items = None
            return
        for _, below in looked.same:
            looked.below.add(below)
        above.same.append((looked.key, looked.below))
        if above.items is not None:
            status = level.status
            stamp = stamp_of(status)
            above.items.append(
                listed_directory(
                    name, status.st_mode, status.st_mtime_ns, stamp, looked.below.tree_id
                )
            )


def scan(
    top_fd: int,
    store_status: os.stat_result,
    *,
    one_file_system: bool = False,
    known: KnownListings | None = None,
    selector: Selector | None = None,
    on_directory: Callable[[], object] | None = None,
) -> Scan:
    """Count the files and bytes below ``top_fd``, find the hard links and what is unchanged.

    What cannot be read is not reported here: the second pass meets it again. ``on_directory`` is
    called in each, and may raise.

    Raises:
        UsageError: the store's directory lies in the tree.
    """
    scanner = _Scanner(store_status, known, selector)
    for step, level, name, _ in Walk(
        top_fd, Problems([], None), one_file_system=one_file_system, names=scanner.names
    ):
        if step is Step.ENTER:
            scanner.enter(level, name)
            if on_directory is not None:
                on_directory()
        elif step is Step.LEAVE:
            scanner.leave(level, name)
    linked = frozenset(key for key, count in scanner.seen.items() if count > 1)
    missing = selector.missing() if selector is not None else []
    return Scan(scanner.files, scanner.size_bytes, linked, scanner.unchanged, missing)
