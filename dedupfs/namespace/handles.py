"""Open files and directories of a view: handles, and what is read and written through them.

A handle is a number that the kernel gives back; it belongs to one OpenFile or one listing. The
ledger has them all, so that a daemon that takes over can find them again. Knows no names but those
in listings.
"""

import logging
import os
import stat
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from dedupfs.errors import (
    CorruptError,
    InvalidError,
    IsADirectoryNameError,
    MissingRecordError,
    NamespaceError,
    ReadOnlyError,
    StaleError,
    StoreError,
    StoreFullError,
)
from dedupfs.model import Attr
from dedupfs.namespace import writing
from dedupfs.namespace.attributes import drop_privileges, note_same_size, put_attributes
from dedupfs.namespace.directory import Directory
from dedupfs.namespace.ledger import DIRECTORY, PRIVILEGED, Ledger
from dedupfs.namespace.openfile import OpenFile
from dedupfs.namespace.readplan import ReadPlan
from dedupfs.namespace.state import ViewState
from dedupfs.store.syncing import Syncer

log = logging.getLogger(__name__)

COOKIE_BASE = 2
"""A cookie is a slot plus this: 0 means the start, and NFS treats 1 and 2 specially."""


_PRIVILEGE_BITS = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What must reach the disk; holds its files open, so it may run in a thread."""

    steps: tuple[tuple[Syncer, int], ...]
    """Of each file how many changes must be durable."""
    may_fail: bool = False
    """Whether this only saves waiting later, so that who comes later may meet the failure."""

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to wait for."""
        return all(syncer.is_synced(changes) for syncer, changes in self.steps)

    def run(self) -> None:
        """Wait until everything is durable.

        Raises:
            StoreError, StoreFullError: it is not.
        """
        for syncer, changes in self.steps:
            try:
                syncer.sync(changes)
            except StoreError:
                if not self.may_fail:
                    raise


@dataclass(slots=True)
class _Listing:
    directory: Directory
    slots: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)


class HandleTable:
    """All open handles of one mount."""

    def __init__(self, state: ViewState, ledger: Ledger, *, read_only: bool) -> None:
        self._state = state
        self._ledger = ledger
        self._read_only = read_only
        self._files: dict[int, OpenFile] = {}
        self._listings: dict[int, _Listing] = {}
        self._privileged: set[int] = set()
        self.settle_wanted: set[int] = set()
        """Inodes whose last handle is gone and whose bytes wait in staging files."""

    def gauges(self) -> dict[str, int]:
        """Return how many handles there are."""
        return {"open_files": len(self._files), "open_directories": len(self._listings)}

    def restore(self) -> None:
        """Open again what the ledger has open: this daemon goes on where another one died.

        What cannot be found again, as below a damaged directory, is stale: it must not keep the
        daemon, and every one behind it, from serving the rest.
        """
        mtimes_ns: dict[int, int] = {}
        for was in list(self._ledger.open_handles()):
            try:
                if was.flags & DIRECTORY:
                    self._listings[was.handle] = _Listing(self._state.directory(was.inode))
                    continue
                file = self._state.open_file(was.inode)
            except (NamespaceError, MissingRecordError, CorruptError) as exc:
                log.warning("open file cannot be found again inode=%d: %s", was.inode, exc)
                continue
            self._files[was.handle] = file
            file.open_count += 1
            if was.flags & PRIVILEGED:
                self._privileged.add(was.handle)
            mtimes_ns[was.inode] = max(was.mtime_ns, mtimes_ns.get(was.inode, 0))
        for inode, file in self._state.files.items():
            noted_ns = mtimes_ns.get(inode)
            # The journal has it when attributes changed after the write: with their ctime.
            if noted_ns and file.staging is not None and noted_ns != file.mtime_ns:
                file.mtime_ns, file.ctime_ns = noted_ns, 0
            if not file.open_count and file.staging is not None:
                self.settle_wanted.add(inode)

    def open(self, inode: int, flags: int, now_ns: int, *, privileged: bool) -> int:
        """Open a regular file and return its handle; see AttrChange for ``privileged``.

        Raises:
            ReadOnlyError: for writing, on a read-only mount. IsADirectoryNameError, InvalidError:
                not a regular file.
        """
        to_write = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if to_write and self._read_only:
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
                writing.truncate(self._state, file, 0, now_ns)
            else:
                note_same_size(self._state, inode, now_ns)
        return self.open_object(file, privileged=privileged)

    def open_object(self, file: OpenFile, *, privileged: bool) -> int:
        """Return a new handle of ``file``."""
        handle = self._ledger.open(file.inode, PRIVILEGED if privileged else 0)
        if privileged:
            self._privileged.add(handle)
        file.open_count += 1
        self._files[handle] = file
        self.settle_wanted.discard(file.inode)
        return handle

    def file(self, handle: int) -> OpenFile:
        """Return the file behind a handle.

        Raises:
            StaleError: it was open in a daemon that died, and could not be found again.
        """
        try:
            return self._files[handle]
        except KeyError:
            raise StaleError(f"handle {handle} is not open") from None

    def plan_read(self, handle: int, file_offset: int, size: int) -> ReadPlan:
        """Plan to read up to ``size`` bytes."""
        return self.file(handle).plan_read(file_offset, size)

    def write(self, handle: int, file_offset: int, data: bytes, now_ns: int) -> int:
        """Write all of ``data``."""
        file = self.file(handle)
        cached = self._state.kernel_keeps_times
        if file.entry.mode & _PRIVILEGE_BITS or (file.entry.xattrs and not cached):
            # From a page cache bytes come late: a capability may be younger than they are. The
            # kernel has removed an older one before it took them (file_remove_privs), and takes
            # bytes for a set-id file into its cache from those alone who keep the bits.
            drop_privileges(
                self._state,
                file.inode,
                keep_bits=handle in self._privileged,
                now_ns=now_ns,
                keep_capability=cached,
            )
        writing.write(self._state, file, file_offset, data, now_ns)
        if file.staging is not None and not cached:
            self._ledger.note_mtime(handle, now_ns)
        return len(data)

    def note_mtime(self, inode: int, mtime_ns: int) -> None:
        """Let the ledger have the mtime of a file that was set otherwise than by a write.

        0: the journal has it, and it may be an older one.
        """
        file = self._state.files.get(inode)
        if file is None or file.staging is None or not file.open_count:
            return
        for handle, opened in self._files.items():
            if opened is file:
                self._ledger.note_mtime(handle, mtime_ns)

    def release(self, handle: int) -> None:
        """Close a handle; the last one of a file without changes drops it.

        One without a name stays until the kernel forgets it, since O_PATH may still hold it.
        Closing it again does nothing: a daemon may have died between doing it and saying so.
        """
        mtime_ns = self._ledger.close_handle(handle)
        file = self._files.pop(handle, None)
        if file is None:
            return
        self._privileged.discard(handle)
        file.open_count -= 1
        if mtime_ns and file.staging is not None and not file.orphan:
            self._keep_mtime(file)
        if file.open_count:
            return
        if file.orphan:
            if file.forgotten:
                self._drop(file)
        elif not file.unsettled:
            self._state.discard(file)
        elif file.staging is not None:
            self.settle_wanted.add(file.inode)

    def forget(self, inode: int) -> None:
        """The kernel does not know ``inode`` any more: drop it when it has no name either.

        Its last release may still be on the way.
        """
        self._state.nameless.pop(inode, None)
        file = self._state.files.get(inode)
        if file is not None and file.orphan:
            file.forgotten = True
            if not file.open_count:
                self._drop(file)

    def _drop(self, file: OpenFile) -> None:
        self._state.discard(file)
        if file.inode in self._state.held:
            self.settle_wanted.add(file.inode)  # so that a fold gives its pins up

    def _keep_mtime(self, file: OpenFile) -> None:
        """Journal the time of the last write, which only the ledger has had so far."""
        try:
            put_attributes(self._state, file.inode, file.current_entry(), time.time_ns())
        except StoreFullError:  # a crash before the next fold costs the exact time, nothing else
            log.info("disk full, mtime not journaled inode=%d", file.inode)

    def plan_sync(self, inode: int | None) -> SyncPlan:
        """Plan to make one file durable, or (None) all names and attributes.

        What the journal tells too is durable by it alone: replay gives it to the staging file.
        """
        state = self._state
        if state.journal is None:
            return SyncPlan(())
        file = None if inode is None else state.files.get(inode)
        if file is not None:
            writing.tell_before_sync(state, file)
            writing.adopt_before_sync(state, file)
        journal, names = state.journal.syncer, state.names
        always = (names, names.changes), (journal, journal.changes)
        if file is None or file.staging is None:
            return SyncPlan(always)
        return SyncPlan(((file.staging.syncer, file.staging.promised), *always))

    def adopt_found(self) -> None:
        """Give up the room of bytes that the store turned out to have."""
        for file in list(self._state.files.values()):
            writing.adopt_before_sync(self._state, file)

    def plan_fold(self) -> SyncPlan:
        """Plan to make durable what a fold would have to wait for.

        That is not the journal, of which the next one makes nothing but waste, nor what is going to
        be poured into a pack.
        """
        state = self._state
        if state.journal is None:
            return SyncPlan(())
        files = list(state.files.values())
        for file in files:
            writing.adopt_before_sync(self._state, file)
        verbatim_bytes_min = state.store.config.verbatim_bytes_min
        syncers = [
            file.staging.syncer
            for file in files
            if file.staging is not None and (file.open_count or file.size >= verbatim_bytes_min)
        ]
        if state.obsolete:  # they are deleted once the journal says so durably
            syncers.append(state.journal.syncer)
        return SyncPlan(tuple((syncer, syncer.changes) for syncer in syncers), may_fail=True)

    # --- directories -----------------------------------------------------------------------------

    def opendir(self, inode: int) -> int:
        """Open a directory for listing and return its handle."""
        listing = _Listing(self._state.directory(inode))
        handle = self._ledger.open(inode, DIRECTORY)
        self._listings[handle] = listing
        return handle

    def directory(self, handle: int) -> Directory:
        """Return the directory behind a handle.

        Raises:
            StaleError: it was open in a daemon that died, and could not be found again.
        """
        listing = self._listings.get(handle)
        if listing is None:
            raise StaleError(f"directory handle {handle} is not open")
        return listing.directory

    def readdir(self, handle: int, cookie: int) -> Iterator[tuple[int, bytes, Attr]]:
        """Yield (cookie, name, attributes) of the entries behind ``cookie``, in slot order.

        A cookie means the same entry in every handle and for ever, so entries may come and go.
        """
        directory = self.directory(handle)
        listing = self._listings[handle]
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
        """Close a directory handle; again does nothing."""
        self._ledger.close_handle(handle)
        self._listings.pop(handle, None)
