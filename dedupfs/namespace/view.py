"""A mountable tree: the operations of a file system over a catalogue or one snapshot.

The facade that adapters (FUSE today) call with numbers and bytes; it reads the clock, refuses
changes on a read-only mount, and hands everything to the module that knows. Synchronous; one
thread.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self

from dedupfs.errors import (
    InvalidError,
    NotPermittedError,
    ReadOnlyError,
    StoreError,
)
from dedupfs.format.tree import encode_view_root
from dedupfs.model import Attr, SnapshotInfo, TreeEntry
from dedupfs.namespace import attributes, cloning, names
from dedupfs.namespace.attributes import AttrChange
from dedupfs.namespace.fold import Folder
from dedupfs.namespace.handles import HandleTable, SyncPlan
from dedupfs.namespace.handover import LEDGER, NUMBERS, OWNER, VIEW_LOCK, Handover
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.lifecycle import Opened, bring_back, make_ephemeral, open_bare, take_over
from dedupfs.namespace.names import Caller
from dedupfs.namespace.quota import Quota, StatFs
from dedupfs.namespace.readplan import ReadPlan
from dedupfs.namespace.relief import Relief
from dedupfs.namespace.views import delete_view
from dedupfs.store.pace import run_steps
from dedupfs.store.store import Store

log = logging.getLogger(__name__)

__all__ = ["AttrChange", "Caller", "StatFs", "View"]

JOURNAL_BYTES_MAX = 64 << 20
"""A journal that has grown this long is folded at once ..."""
EDITS_MAX = 30_000
"""... or has so many edits: a daemon that takes over replays them while callers wait (about 10 us
each) ..."""
FOLD_IDLE_S = 5.0
"""... and any other once nothing has changed for so long."""
FOLD_AGE_S = 30.0
"""... or when its first edit is so old."""


class View:
    """One open view. Inodes are the kernel's nodeids; the root's is 1."""

    def __init__(self, store: Store, opened: Opened) -> None:
        self._store = store
        self._opened = opened
        self._state = opened.state
        self.ledger = opened.ledger
        self._handles = HandleTable(opened.state, opened.ledger, read_only=opened.row is None)
        self._folder = Folder(opened.state, opened.row) if opened.row is not None else None
        self.quota = Quota(store, self._folder, (self._let_go, self._fold_and_free))
        self.makes_room_later = False
        """Whether somebody catches a write's StoreFullError, folds, gives back, and retries."""
        self._is_to_be_tried_again = False
        self.relief = Relief(store, read_only=self._folder is None)
        self._first_change_s: float | None = None
        self._last_change_s = 0.0
        if self._folder is not None and self._folder.has_changes():
            self._first_change_s = time.monotonic()  # a crash left a journal: fold it soon
        self.name = opened.row.name if opened.row is not None else ""

    @classmethod
    def bring_back(
        cls,
        store: Store,
        name: str = "default",
        *,
        snapshot: str | None = None,
        mountpoint: str = "",
    ) -> Self:
        """Bring back the view ``name``, or make it over the catalogue or ``snapshot``.

        Raises:
            UsageError: no possible name, or the view has another base. NotFoundError: no such
                snapshot. StoreBusyError: another process owns it. CorruptError: a limit's file is.
        """
        return cls(store, bring_back(store, name, snapshot, mountpoint))._within_limits()

    @classmethod
    def open_ephemeral(
        cls, store: Store, *, snapshot: str | None = None, mountpoint: str = ""
    ) -> Self:
        """Make a view that ``close`` deletes."""
        return cls(store, make_ephemeral(store, snapshot, mountpoint))._within_limits()

    def _within_limits(self) -> Self:
        try:
            self.quota.reload()
        except BaseException:
            self._opened.release()
            raise
        return self

    @classmethod
    def open_read_only(cls, store: Store, *, snapshot: str | None = None) -> Self:
        """Look at the catalogue or a snapshot; nothing can be changed, and nothing is kept."""
        return cls(store, open_bare(store, snapshot))

    @classmethod
    def take_over(cls, store: Store, handover: Handover, mountpoint: str) -> Self:
        """Go on with the view of a daemon that died: its open files are open, nothing is lost.

        Raises:
            StoreError: its root or its journal cannot be read.
        """
        if handover.root:
            view = cls(store, open_bare(store, None, handover))
        else:
            view = cls(store, take_over(store, handover, mountpoint))
        view._handles.restore()
        try:
            view.quota.reload()
        except StoreError as exc:  # callers wait: it is for who set it, not for them
            log.error("limits do not count until they are set again view=%s: %s", view.name, exc)
        return view

    def handover(self) -> Handover:
        """Return what another daemon needs to go on if this one dies."""
        fds = {LEDGER: self.ledger.fd, OWNER: self._store.claim_owner()}
        root = b""
        if self._opened.bare is not None:
            root = encode_view_root(self._opened.bare)
            assert self._state.journal is not None
            fds[NUMBERS] = self._state.journal.fd
        if self._opened.lock is not None:
            fds[VIEW_LOCK] = self._opened.lock.file.fd
        return Handover(self.name, root, self._store.owner, fds)

    @property
    def has_cached_writes(self) -> bool:
        """Whether writes come from the kernel's page cache, which knows when they were made."""
        return self._state.kernel_keeps_times

    @has_cached_writes.setter
    def has_cached_writes(self, cached: bool) -> None:
        self._state.kernel_keeps_times = self.ledger.has_cached_writes = cached

    @property
    def did_request(self) -> bool:
        """Whether the request that the ledger has in hand was done before the daemon died."""
        return self._opened.did_request

    def begin_request(self, opcode: int, inode: int, pid: int) -> None:
        """Note what is about to be done, until ``ledger.end``."""
        journal = self._state.journal
        if journal is None:
            self.ledger.begin(opcode, inode, pid, 0, 0)
        else:
            self.ledger.begin(opcode, inode, pid, journal.generation, journal.size)

    @property
    def read_only(self) -> bool:
        """Whether every change is refused."""
        return self._folder is None

    def close(self) -> None:
        """Fold, let go of the view, or delete it when it is ephemeral."""
        try:
            if self._opened.ephemeral:
                delete_view(self._store, self.name)
            elif self._folder is not None:
                self._folder.fold()
        finally:
            self._opened.release()

    def abandon(self) -> None:
        """In a forked child: the view is the parent's; its lock goes when the parent lets go."""
        if self._opened.lock is not None:
            self._opened.lock.file.close()

    def _now(self) -> int:
        """Return the time of a change that is about to be made."""
        if self._folder is None:
            raise ReadOnlyError("the mount is read-only")
        self._last_change_s = time.monotonic()
        if self._first_change_s is None:
            self._first_change_s = self._last_change_s
        return time.time_ns()

    # --- names -----------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attr:
        """Return the attributes of what ``name`` stands for.

        Raises:
            NotFoundError, NameTooLongError: nothing.
        """
        directory = self._state.directory(parent)
        return self._state.attr_of(directory, names.find(directory, name))

    def create(self, parent: int, name: bytes, mode: int, caller: Caller) -> tuple[int, Attr]:
        """Make a regular file and open it; return its handle and attributes."""
        self.quota.require_name()
        now_ns = self._now()
        state = self._state
        directory = state.directory(parent)
        fresh = TreeEntry(name=name, slot=0, mode=mode & 0o7777 | 0o100000)
        entry = names.make(state, directory, fresh, caller, now_ns)
        file = state.open_new(state.inode_of(directory, entry), entry)
        handle = self._handles.open_object(file, privileged=caller.uid == 0)
        return handle, state.attr_as(file.inode, entry)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attr:
        """Make a file of any type but directory and symlink."""
        return self._make(parent, TreeEntry(name=name, slot=0, mode=mode, rdev=rdev), caller)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        """Make a directory."""
        mode = mode & 0o7777 | 0o040000
        return self._make(parent, TreeEntry(name=name, slot=0, mode=mode, nlink=2), caller)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attr:
        """Make a symbolic link."""
        fresh = TreeEntry(name=name, slot=0, mode=0o120777, size=len(target), content=target)
        return self._make(parent, fresh, caller)

    def _make(self, parent: int, fresh: TreeEntry, caller: Caller) -> Attr:
        self.quota.require_name()
        now_ns = self._now()
        directory = self._state.directory(parent)
        entry = names.make(self._state, directory, fresh, caller, now_ns)
        return self._state.attr_of(directory, entry)

    def link(self, inode: int, new_parent: int, new_name: bytes) -> Attr:
        """Give an inode one more name."""
        self.quota.require_name()
        now_ns = self._now()
        directory = self._state.directory(new_parent)
        names.link(self._state, inode, directory, new_name, now_ns)
        return self._state.attr(inode)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name; the inode lives on while it has others or is open."""
        now_ns = self._now()
        names.unlink(self._state, self._state.directory(parent), name, now_ns)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        now_ns = self._now()
        names.rmdir(self._state, self._state.directory(parent), name, now_ns)

    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """Rename; flags as in renameat2(2)."""
        now_ns = self._now()
        old_directory = self._state.directory(old_parent)
        new_directory = self._state.directory(new_parent)
        names.rename(self._state, old_directory, old_name, new_directory, new_name, flags, now_ns)

    def readlink(self, inode: int) -> bytes:
        """Return the target of a symbolic link."""
        entry = self._state.entry_of(inode)
        if not entry.is_symlink:
            raise InvalidError("no symbolic link")
        return entry.content

    # --- attributes ------------------------------------------------------------------------------

    def getattr(self, inode: int) -> Attr:
        """Return the attributes of an inode.

        Raises:
            StaleError: nothing has this number.
        """
        return self._state.attr(inode)

    def setattr(self, inode: int, change: AttrChange) -> Attr:
        """Change attributes; return all of them."""
        if change.size is not None and change.size > self._state.entry_of(inode).size:
            self.quota.require_name()
        entry = attributes.setattr_(self._state, inode, change, self._now())
        attr = self._state.attr_as(inode, entry)
        if self._state.kernel_keeps_times:
            return attr
        if change.mtime_ns is not None or change.size is not None:
            noted_ns = 0 if change.mtime_ns is not None else attr.mtime_ns
            self._handles.note_mtime(inode, noted_ns)
        return attr

    def getxattr(self, inode: int, name: bytes) -> bytes:
        """Return an extended attribute, ``user.dedupfs.*`` included."""
        return attributes.getxattr(self._state, inode, name)

    def listxattr(self, inode: int, *, privileged: bool = True) -> list[bytes]:
        """Return the names of the attributes that were set; trusted.* to the privileged."""
        names = [name for name, _ in self._state.entry_of(inode).xattrs]
        return [name for name in names if privileged or not name.startswith(b"trusted.")]

    def setxattr(
        self,
        inode: int,
        name: bytes,
        value: bytes,
        flags: int = 0,
        *,
        is_member: Callable[[int], bool] = lambda _gid: True,
    ) -> None:
        """Set an extended attribute; ``is_member``: whether the caller is of a file's group."""
        self.quota.require_name(len(value))
        now_ns = self._now()
        attributes.setxattr(self._state, inode, name, value, flags, now_ns, is_member)

    def removexattr(self, inode: int, name: bytes) -> None:
        """Remove an extended attribute."""
        attributes.removexattr(self._state, inode, name, self._now())

    def clone(self, inode: int, source: bytes, *, privileged: bool) -> None:
        """Make an unused directory a clone of ``source``: ``SNAPSHOT`` or ``SNAPSHOT:PATH``.

        Raises:
            NotPermittedError: not ``privileged``: modes above what is cloned, or a mount that shows
                one snapshot alone, may keep the caller from it.
        """
        now_ns = self._now()
        if not privileged:
            raise NotPermittedError("cloning is for the store's owner")
        cloning.clone(self._state, inode, source, now_ns)

    def may_become_clone(self, inode: int) -> bool:
        """Whether a directory without entries may have some at once: nothing was ever in it."""
        return not self.read_only and cloning.is_unused(self._state.directory(inode))

    def statfs(self) -> StatFs:
        """Return the room on the store's file system, or within the limits."""
        return self.quota.statfs()

    def is_volatile(self, inode: int) -> bool:
        """Whether other processes change what is in this directory: the catalogue's root."""
        return inode == ROOT_INODE and self._state.is_catalog

    def can_keep_listing(self, inode: int) -> bool:
        """Whether only the caller's own requests change the names in a directory.

        Not in the catalogue's root, nor where a clone may bring a whole tree at once.
        """
        if self.is_volatile(inode):
            return False
        return self.read_only or not cloning.is_unused(self._state.directory(inode))

    def forget(self, inodes: Iterable[tuple[int, int]]) -> None:
        """Drop what is kept of removed objects that the kernel no longer knows."""
        for inode, _count in inodes:
            self._handles.forget(inode)
            names.forget_directory(self._state, inode)

    # --- files -----------------------------------------------------------------------------------

    def open(self, inode: int, flags: int, *, privileged: bool = False) -> int:
        """Open a regular file; return its handle.

        ``privileged``: writes keep suid and sgid bits, as the caller may (CAP_FSETID).
        """
        writing = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        now_ns = self._now() if writing else 0
        return self._handles.open(inode, flags, now_ns, privileged=privileged)

    def inode_of(self, handle: int) -> int:
        """Return the inode behind a file's handle."""
        return self._handles.file(handle).inode

    def plan_read(self, handle: int, file_offset: int, size: int) -> ReadPlan:
        """Plan a read: up to ``size`` bytes, fewer at the end of the file."""
        return self._handles.plan_read(handle, file_offset, size)

    def write(self, handle: int, file_offset: int, data: bytes) -> int:
        """Write; when this returns, SIGKILL cannot lose it.

        Raises:
            StoreFullError: the disk is full; nothing was written.
        """
        self._is_to_be_tried_again = self.makes_room_later
        try:
            self.quota.require(len(data))
        finally:
            self._is_to_be_tried_again = False
        return self._handles.write(handle, file_offset, data, self._now())

    def _let_go(self) -> None:
        """Give back at once what costs no fold."""
        if self._folder is not None:
            self._handles.adopt_found()
            self._folder.drop_obsolete()

    def _fold_and_free(self) -> None:
        """Give back what was deleted since the last fold."""
        if self._first_change_s is not None and not self._is_to_be_tried_again:
            self.fold()
            run_steps(self.relief.giving_back(hurried=True))

    def release(self, handle: int) -> None:
        """The last descriptor of a handle is closed."""
        self._handles.release(handle)

    def plan_fsync(self, inode: int | None) -> SyncPlan:
        """Plan to make one file (or, with None, all names and attributes) durable."""
        return self._handles.plan_sync(inode)

    def opendir(self, inode: int) -> int:
        """Open a directory for listing; return its handle."""
        return self._handles.opendir(inode)

    def directory_of(self, handle: int) -> int:
        """Return the inode of an open directory."""
        return self._handles.directory(handle).inode

    def readdir(self, handle: int, cookie: int) -> Iterator[tuple[int, bytes, Attr]]:
        """Yield (cookie, name, attributes) of the entries behind ``cookie``."""
        return self._handles.readdir(handle, cookie)

    def releasedir(self, handle: int) -> None:
        """Close a directory handle."""
        self._handles.releasedir(handle)

    def totals(self) -> dict[str, int]:
        """Return what was done since the view was opened; each only grows."""
        return {**self._store.totals(), "tree_reads": self._state.trees.reads}

    def gauges(self) -> dict[str, int]:
        """Return what there is now."""
        journal = self._state.journal
        return {
            **self._handles.gauges(),
            "changed_files": len(self._state.files),
            "journal_bytes": journal.size if journal is not None else 0,
        }

    # --- housekeeping ----------------------------------------------------------------------------

    def wants_fold(self) -> bool:
        """Whether it is time to fold: the journal is long or old, or nothing is going on."""
        journal = self._state.journal
        if journal is None or self._folder is None:
            return False
        if journal.size >= JOURNAL_BYTES_MAX or self._state.edit_count >= EDITS_MAX:
            return True
        if self._handles.settle_wanted:
            return True
        if self._first_change_s is None:
            return False
        now_s = time.monotonic()
        return (
            now_s - self._last_change_s >= FOLD_IDLE_S or now_s - self._first_change_s >= FOLD_AGE_S
        )

    def prepare_fold(self) -> SyncPlan:
        """Plan the waiting that a fold would do: run it in a thread first."""
        return self._handles.plan_fold()

    def fold(self) -> None:
        """Turn what changed into trees and start a new journal.

        Raises:
            StoreFullError, StoreError: the view goes on with the journal it has.
        """
        if self._folder is None:
            return
        self._folder.fold(everything=False)
        self._handles.settle_wanted.clear()
        self._first_change_s = None

    @property
    def has_changes(self) -> bool:
        """Whether anything was done since the last fold, which may let go of something."""
        return self._folder is not None and self._first_change_s is not None

    def commit(
        self,
        snapshot: str,
        *,
        path: bytes = b"",
        tags: dict[str, str] | None = None,
        created_ns: int | None = None,
    ) -> SnapshotInfo:
        """Freeze the view, or the directory at ``path`` of it, as a snapshot.

        Raises:
            UsageError, ExistsError: the name. NotADirectoryNameError: the path. ReadOnlyError: the
                mount is read-only.
        """
        if self._folder is None:
            raise ReadOnlyError("a read-only mount has nothing to commit")
        when_ns = time.time_ns() if created_ns is None else created_ns
        made = self._folder.commit(snapshot, path, tags or {}, when_ns)
        self.quota.recount_soon()
        return made
