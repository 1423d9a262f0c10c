"""What is asked of a view: the requests of a file system, with numbers and bytes.

Each reads the clock, is refused on a read-only mount if it would change anything, and goes to the
module that knows. Synchronous; one thread. Knows nothing of opening, folding and closing (view.py).
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator

from dedupfs.errors import InvalidError, NotPermittedError, ReadOnlyError
from dedupfs.model import Attr, TreeEntry
from dedupfs.namespace import attributes, cloning, names
from dedupfs.namespace.attributes import AttrChange
from dedupfs.namespace.handles import HandleTable, SyncPlan
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.ledger import Ledger
from dedupfs.namespace.names import Caller
from dedupfs.namespace.quota import Quota, StatFs
from dedupfs.namespace.readplan import ReadPlan
from dedupfs.namespace.state import ViewState


class Requests:
    """The requests that a view answers. Inodes are the kernel's nodeids; the root's is 1."""

    def __init__(self, state: ViewState, ledger: Ledger, quota: Quota, *, read_only: bool) -> None:
        self._state = state
        state.entered.keep_in(ledger)
        self._handles = HandleTable(state, ledger, read_only=read_only)
        self.ledger = ledger
        self.quota = quota
        self.read_only = read_only
        """Whether every change is refused."""
        self.makes_room_later = False
        """Whether somebody catches a write's StoreFullError, folds, gives back, and retries."""
        self._is_to_be_tried_again = False
        """Whether the write in hand is such a one."""
        self._first_change_s: float | None = None
        """When the first change since the last fold was made; None: there is none."""
        self._last_change_s = 0.0

    def begin_request(self, opcode: int, inode: int, pid: int) -> None:
        """Note what is about to be done, until ``ledger.end``."""
        journal = self._state.journal
        if journal is None:
            self.ledger.begin(opcode, inode, pid, 0, 0)
        else:
            self.ledger.begin(opcode, inode, pid, journal.generation, journal.size)

    def _now(self) -> int:
        """Return the time of a change that is about to be made."""
        if self.read_only:
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
