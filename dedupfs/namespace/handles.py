"""Open files and directories of a view: handles, and what is read and written through them.

A handle is a number that the kernel gives back; it belongs to one OpenFile or one listing. Knows no
names but those in listings.
"""

import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dedupfs.errors import InvalidError, IsADirectoryNameError, ReadOnlyError
from dedupfs.model import Attr
from dedupfs.namespace.attributes import drop_privileges
from dedupfs.namespace.directory import Directory
from dedupfs.namespace.openfile import OpenFile, ReadPlan
from dedupfs.namespace.state import ViewState

COOKIE_BASE = 2
"""A cookie is a slot plus this: 0 means the start, and NFS treats 1 and 2 specially."""


_PRIVILEGE_BITS = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What must reach the disk; holds its files open, so it may run in a thread."""

    steps: tuple[Callable[[], None], ...]

    def run(self) -> None:
        """Wait until everything is durable.

        Raises:
            StoreError, StoreFullError: it is not.
        """
        for step in self.steps:
            step()


@dataclass(slots=True)
class _Listing:
    directory: Directory
    slots: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)


class HandleTable:
    """All open handles of one mount."""

    def __init__(self, state: ViewState, *, read_only: bool) -> None:
        self._state = state
        self._read_only = read_only
        self._next = 1
        self._files: dict[int, OpenFile] = {}
        self._listings: dict[int, _Listing] = {}
        self._privileged: set[int] = set()
        self.settle_wanted: set[int] = set()
        """Inodes whose last handle is gone and whose bytes wait in staging files."""

    def open(self, inode: int, flags: int, now_ns: int, *, privileged: bool) -> int:
        """Open a regular file and return its handle; see AttrChange for ``privileged``.

        Raises:
            ReadOnlyError: for writing, on a read-only mount. IsADirectoryNameError, InvalidError:
                not a regular file.
        """
        writing = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writing and self._read_only:
            raise ReadOnlyError("the mount is read-only")
        entry = self._state.entry_of(inode)
        if entry.is_directory:
            raise IsADirectoryNameError("a directory is opened with opendir")
        if not entry.is_file:
            raise InvalidError("only regular files are opened here")
        file = self._state.open_file(inode)
        if flags & os.O_TRUNC:
            drop_privileges(self._state, inode, keep_bits=privileged, now_ns=now_ns)
            if file.size:
                file.truncate(0, now_ns)
        return self.open_object(file, privileged=privileged)

    def open_object(self, file: OpenFile, *, privileged: bool) -> int:
        """Return a new handle of ``file``."""
        handle = self._next
        if privileged:
            self._privileged.add(handle)
        self._next += 1
        file.open_count += 1
        self._files[handle] = file
        self.settle_wanted.discard(file.inode)
        return handle

    def file(self, handle: int) -> OpenFile:
        """Return the file behind a handle."""
        return self._files[handle]

    def plan_read(self, handle: int, file_offset: int, size: int) -> ReadPlan:
        """Plan to read up to ``size`` bytes."""
        return self._files[handle].plan_read(file_offset, size)

    def write(self, handle: int, file_offset: int, data: bytes, now_ns: int) -> int:
        """Write all of ``data``."""
        file = self._files[handle]
        if file.entry.mode & _PRIVILEGE_BITS or file.entry.xattrs:
            keep_bits = handle in self._privileged
            drop_privileges(self._state, file.inode, keep_bits=keep_bits, now_ns=now_ns)
        file.write(file_offset, data, now_ns)
        return len(data)

    def release(self, handle: int) -> None:
        """Close a handle; the last one of a file without changes or without a name drops it."""
        file = self._files.pop(handle)
        self._privileged.discard(handle)
        file.open_count -= 1
        if file.open_count:
            return
        if file.orphan or not file.unsettled:
            self._state.discard(file)
            if file.inode in self._state.held:
                self.settle_wanted.add(file.inode)  # so that a fold gives its pins up
        elif file.staging is not None:
            self.settle_wanted.add(file.inode)

    def plan_sync(self, inode: int | None) -> SyncPlan:
        """Plan to make one file durable, or (None) all of the view."""
        state = self._state
        if state.journal is None:
            return SyncPlan(())
        files = state.files.values() if inode is None else [state.files.get(inode)]
        stagings = [file.staging for file in files if file is not None and file.staging is not None]
        steps: list[Callable[[], None]] = [staging.sync for staging in stagings]
        if state.names_unsynced and state.path is not None:
            path = state.path
            steps.append(lambda: state.store.disk.fsync_dir(path))
        steps.append(state.journal.sync)
        return SyncPlan(tuple(steps))

    # --- directories -----------------------------------------------------------------------------

    def opendir(self, inode: int) -> int:
        """Open a directory for listing and return its handle."""
        handle = self._next
        self._next += 1
        self._listings[handle] = _Listing(self._state.directory(inode))
        return handle

    def readdir(self, handle: int, cookie: int) -> Iterator[tuple[int, bytes, Attr]]:
        """Yield (cookie, name, attributes) of the entries behind ``cookie``, in slot order.

        A cookie means the same entry in every handle and for ever, so entries may come and go.
        """
        listing = self._listings[handle]
        directory = listing.directory
        if cookie == 0 or not listing.slots:
            pairs = sorted((entry.slot, entry.name) for entry in directory.entries())
            listing.slots = [slot for slot, _ in pairs]
            listing.names = [name for _, name in pairs]
        for index in range(bisect_right(listing.slots, cookie - COOKIE_BASE), len(listing.slots)):
            slot, name = listing.slots[index], listing.names[index]
            entry = directory.find(name)
            if entry is not None and entry.slot == slot:
                yield slot + COOKIE_BASE, name, self._state.attr_of(directory, entry)

    def releasedir(self, handle: int) -> None:
        """Close a directory handle."""
        del self._listings[handle]
