"""Requests of the kernel as calls of a view, and the view's errors as errnos.

Translates in, calls, translates out; decides nothing. Knows no store. Every handler runs on the
trio thread; what lies between two awaits is atomic, and a thread only ever gets a frozen plan.
Handlers that change names do so without an await, so at most one of them can be done and not
answered when this process dies: ``once`` notes which, for the daemon that takes over.
Source: pyfuse3's rst/operations.rst and rst/general.rst, fuse(4).
"""

import errno
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

import pyfuse3
import trio

from dedupfs.chunking import Buffer
from dedupfs.errors import NoAttributeError, NotFoundError, StoreError, StoreFullError
from dedupfs.fuse import repeats
from dedupfs.fuse.attrs import (
    FOREVER_S,
    VOLATILE_S,
    absent_entry,
    forget_attributes,
    to_change,
    to_entry,
    to_statvfs,
)
from dedupfs.fuse.handshake import Unanswered
from dedupfs.fuse.reply import Tally, reply, reply_later, traced
from dedupfs.namespace.cloning import CLONE
from dedupfs.namespace.handles import SyncPlan
from dedupfs.namespace.names import Caller
from dedupfs.namespace.requests import Requests

log = logging.getLogger(__name__)

R = TypeVar("R")


async def _nowhere() -> bool:
    return False


class Operations(Tally, pyfuse3.Operations):
    """One view behind one mount.

    A write is in the view's journal, or in a staging file, when its request is answered. Whether
    the kernel may keep writes back is the session's to agree on (``handshake.WRITEBACK_CACHE``).
    """

    enable_writeback_cache = False
    supports_dot_lookup = False  # a view is not asked for "." and ".."
    enable_acl = True  # the kernel checks ACLs; the view keeps them in step with mode bits

    def __init__(
        self,
        view: Requests,
        on_init: Callable[[], None] = lambda: None,
        *,
        done: Sequence[Unanswered] = (),
        make_room: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """``done``: requests that daemons before this one had done and not answered.

        ``make_room``: tries to free something on a full disk; says whether to try again.
        """
        super().__init__(_HANDLERS)
        self.done = {repeats.looks(request) for request in done}
        self.begin = view.begin_request
        self.answered = view.ledger.end
        """The last request that was dealt with without an await has its answer."""
        self._view = view
        self._make_room = make_room or _nowhere
        view.makes_room_later = make_room is not None
        self._on_init = on_init
        self._in_threads = 0
        self._keep_listing: Callable[[], None] = lambda: None
        self._has_request: Callable[[], bool] = lambda: True
        if log.isEnabledFor(logging.DEBUG):
            for name in _HANDLERS:
                setattr(self, name, traced(getattr(self, name)))

    def init(self) -> None:
        """Tell the owner that the kernel's INIT is being answered."""
        self._on_init()

    def is_idle(self) -> bool:
        """Whether no request waits for a thread."""
        return self._in_threads == 0

    def can_see_requests(self, has_request: Callable[[], bool]) -> None:
        """Wait for a quick disk in place while the kernel has no other request."""
        self._has_request = has_request

    def _is_alone(self) -> bool:
        """Whether a wait in here holds up no other request that is known."""
        return self._in_threads == 0 and not self._has_request()

    def can_keep_listings(self, keep_listing: Callable[[], None]) -> None:
        """Have the kernel keep listings that only its own requests change."""
        self._keep_listing = keep_listing

    def entry(self, parent_inode: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Return what a name stands for."""
        attr = self._view.lookup(parent_inode, name)
        return to_entry(attr, self._timeout_s(parent_inode))

    async def _in_thread(self, run: Callable[[], R]) -> R:
        self._in_threads += 1
        try:
            return await trio.to_thread.run_sync(run)
        finally:
            self._in_threads -= 1

    def _timeout_s(self, directory: int) -> float:
        if directory == pyfuse3.ROOT_INODE and self._view.is_volatile(directory):
            return VOLATILE_S
        return FOREVER_S

    # --- names ------------------------------------------------------------------------------------

    @reply
    def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        timeout_s = self._timeout_s(parent_inode)
        try:
            return to_entry(self._view.lookup(parent_inode, name), timeout_s)
        except NotFoundError:
            if timeout_s != FOREVER_S or self._view.may_become_clone(parent_inode):
                raise  # another process, or a clone, may make it any moment
            return absent_entry(timeout_s)

    @reply
    @repeats.once(repeats.MKNOD, repeats.entry_again)
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        attr = self._view.mknod(parent_inode, name, mode, rdev, _caller(ctx))
        return to_entry(attr, self._timeout_s(parent_inode))

    @reply
    @repeats.once(repeats.MKDIR, repeats.entry_again)
    def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        attr = self._view.mkdir(parent_inode, name, mode, _caller(ctx))
        return to_entry(attr, self._timeout_s(parent_inode))

    @reply
    @repeats.once(repeats.SYMLINK, repeats.entry_again)
    def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        attr = self._view.symlink(parent_inode, name, target, _caller(ctx))
        return to_entry(attr, self._timeout_s(parent_inode))

    @reply
    @repeats.once(repeats.LINK, repeats.link_again, inode_at=1)
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        attr = self._view.link(inode, new_parent_inode, new_name)
        return to_entry(attr, self._timeout_s(new_parent_inode))

    @reply
    @repeats.once(repeats.UNLINK, repeats.nothing_again)
    def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._view.unlink(parent_inode, name)

    @reply
    @repeats.once(repeats.RMDIR, repeats.nothing_again)
    def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._view.rmdir(parent_inode, name)

    @reply
    @repeats.once(repeats.RENAME, repeats.nothing_again)
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        self._view.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @reply
    def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._view.readlink(inode)

    # --- attributes -------------------------------------------------------------------------------

    @reply
    def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return to_entry(self._view.getattr(inode), self._timeout_s(inode))

    @reply
    def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changed = self._view.setattr(inode, to_change(attr, fields, ctx))
        return to_entry(changed, self._timeout_s(inode))

    @reply
    def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # with default_permissions the kernel has checked already

    @reply
    @repeats.once(repeats.SETXATTR)
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        # pyfuse3 has looked after XATTR_CREATE and XATTR_REPLACE.
        if name == CLONE:
            if not repeats.take(self.done, repeats.SETXATTR, inode, ctx.pid):
                self._view.clone(inode, value, privileged=ctx.uid in (0, os.geteuid()))
            forget_attributes(inode)
            return
        self._view.setxattr(inode, name, value, is_member=functools.partial(_is_member, ctx))

    @reply
    def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        again = self.done and name != CLONE
        if again and repeats.take(self.done, repeats.SETXATTR, inode, ctx.pid):
            raise NoAttributeError("it was not set before this XATTR_CREATE, which is done again")
        return self._view.getxattr(inode, name)

    @reply
    def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return self._view.listxattr(inode, privileged=ctx.uid == 0)

    @reply
    @repeats.once(repeats.REMOVEXATTR, repeats.nothing_again)
    def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._view.removexattr(inode, name)

    # --- files ------------------------------------------------------------------------------------

    @reply
    @repeats.once(repeats.CREATE, repeats.create_again)
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        handle, attr = self._view.create(parent_inode, name, mode, _caller(ctx))
        entry = to_entry(attr, self._timeout_s(parent_inode))
        return pyfuse3.FileInfo(fh=handle, keep_cache=True), entry

    @reply
    @repeats.once(repeats.OPEN)
    def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return self.opened(inode, flags, ctx)

    def opened(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file, as a part of the request that was noted."""
        handle = self._view.open(inode, flags, privileged=ctx.uid == 0)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    @reply_later
    async def read(self, fh: int, off: int, size: int) -> bytes:
        data = await self._read(fh, off, size)
        self.totals["read_bytes"] += len(data)
        return cast(bytes, data)  # pyfuse3 takes any buffer

    async def _read(self, fh: int, off: int, size: int) -> Buffer:
        plan = self._view.plan_read(fh, off, size)  # no await in here: one version of the file
        data = plan.run_cached(self._is_alone)
        if data is not None:
            return data  # pyfuse3 answers before anything else runs that could use its memory
        self.totals["waited_reads"] += 1
        try:  # a thread hop costs about 90 us, so only bytes that need the disk pay it
            return await self._in_thread(plan.run)
        except StoreError:
            again = self._view.plan_read(fh, off, size)
            if again == plan:
                raise
            # The bytes were replaced and their chunks freed while the disk was waited for.
            return await self._in_thread(again.run)

    @reply_later
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        try:
            written = self._view.write(fh, off, buf)
        except StoreFullError:  # nothing of it was written
            if not await self._make_room():
                raise
            written = self._view.write(fh, off, buf)
        self.totals["written_bytes"] += written
        return written

    @reply
    def flush(self, fh: int) -> None:
        # The kernel then spares every close() this request. Each write was answered when it was in
        # the journal or the staging file, so a close has no failure of ours to tell; those of the
        # kernel's own writing back it tells by itself (fs/fuse/file.c, fuse_flush).
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @reply_later
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._durable(self._view.plan_fsync(self._view.inode_of(fh)))

    async def _durable(self, plan: SyncPlan) -> None:
        if not plan.is_done:
            await self._in_thread(plan.run)

    @reply
    def release(self, fh: int) -> None:
        self._view.release(fh)

    # --- directories ------------------------------------------------------------------------------

    @reply
    @repeats.once(repeats.OPENDIR)
    def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        handle = self._view.opendir(inode)
        if self._view.can_keep_listing(inode):
            self._keep_listing()
        return handle

    @reply
    def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        timeout_s = self._timeout_s(self._view.directory_of(fh))
        for cookie, name, attr in self._view.readdir(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, to_entry(attr, timeout_s), cookie):
                break

    @reply_later
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        # names are in the view's journal, which is one file
        await self._durable(self._view.plan_fsync(None))

    @reply
    def releasedir(self, fh: int) -> None:
        self._view.releasedir(fh)

    # --- the whole --------------------------------------------------------------------------------

    @reply
    def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return to_statvfs(self._view.statfs())

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        try:
            self._view.forget(inode_list)
        except Exception:  # nobody waits for an answer, and none may be raised
            log.critical("bug op=forget args=%r", inode_list, exc_info=True)


_HANDLERS = [name for name, member in vars(Operations).items() if hasattr(member, "__wrapped__")]


def _is_member(ctx: pyfuse3.RequestContext, gid: int) -> bool:
    """Whether the caller is in a group, or the superuser, who need not be.

    pyfuse3 does not hand FUSE_SETXATTR_ACL_KILL_SGID on, with which the kernel would say so.
    """
    if ctx.uid == 0 or ctx.gid == gid:
        return True
    try:
        return gid in pyfuse3.get_sup_groups(ctx.pid)
    except (OSError, RuntimeError):  # in another PID namespace, or gone: rather not
        return False


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.umask)
