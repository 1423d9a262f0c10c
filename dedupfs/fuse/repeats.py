"""Requests that must not be done twice, though the kernel may send them again.

A daemon that took over is sent what the dead one had taken and not answered. Handlers that change
names do so without an await, so each daemon leaves at most one request that is done and not
answered: it is noted before it begins, and answered here without being done when it comes again.
Knows which requests these are, not what they do. Source: linux/include/uapi/linux/fuse.h (opcodes,
fuse_setxattr_in).
"""

import functools
import os
import struct
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import pyfuse3

from dedupfs.fuse.handshake import Unanswered
from dedupfs.namespace.attributes import XATTR_CREATE
from dedupfs.namespace.cloning import CLONE
from dedupfs.namespace.ledger import RequestInHand

SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN = 6, 8, 9, 10, 11, 12, 13, 14
SETXATTR, REMOVEXATTR, OPENDIR, CREATE = 21, 24, 27, 35
_RENAME2 = 45
_SETXATTR_IN = struct.Struct("<II")  # size, flags


Look = tuple[int, int, int]
"""Opcode, inode and thread: by what a request is known when a handler has it."""


class Repeating(Protocol):
    """What the operations of a mount must be able to say and do for this."""

    begin: Callable[[int, int, int], None]
    """Note a request (opcode, inode, process id) that is about to be done."""
    done: set[Look]
    """What daemons before this one had done and not answered."""

    def entry(self, parent_inode: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Return what a name stands for."""
        ...

    def opened(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file, as a part of the request that was noted."""
        ...


Handler = TypeVar("Handler", bound=Callable[..., Any])
Again = Callable[..., Any]


def once(
    opcode: int, again: Again | None = None, *, inode_at: int = 0
) -> Callable[[Handler], Handler]:
    """Note each call of a handler before it is done.

    ``again`` answers the one that was done and not answered; without, doing it again does no harm,
    but what it opened must be known. ``inode_at``: which argument is the inode of the request's
    header; the last one is its context.
    """

    def wrap(handler: Handler) -> Handler:
        @functools.wraps(handler)
        def noted(operations: Repeating, *args: Any) -> Any:
            inode, pid = args[inode_at], args[-1].pid
            operations.begin(opcode, inode, pid)
            if operations.done and again and take(operations.done, opcode, inode, pid):
                return again(operations, *args)
            return handler(operations, *args)

        return cast(Handler, noted)

    return wrap


def take(done: set[Look], opcode: int, inode: int, pid: int) -> bool:
    """Whether this request was done by a daemon before this one; said once."""
    if (opcode, inode, pid) not in done:
        return False
    done.remove((opcode, inode, pid))
    return True


def entry_again(
    operations: Repeating, parent_inode: int, name: bytes, *_rest: object
) -> pyfuse3.EntryAttributes:
    """Answer what made a name."""
    return operations.entry(parent_inode, name)


def link_again(
    operations: Repeating, _inode: int, new_parent_inode: int, new_name: bytes, *_rest: object
) -> pyfuse3.EntryAttributes:
    """Answer what made one more name."""
    return operations.entry(new_parent_inode, new_name)


def create_again(
    operations: Repeating,
    parent_inode: int,
    name: bytes,
    _mode: int,
    flags: int,
    ctx: pyfuse3.RequestContext,
) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
    """Answer what made a file and opened it: the handle died with its daemon."""
    entry = operations.entry(parent_inode, name)
    return operations.opened(entry.st_ino, flags & ~os.O_TRUNC, ctx), entry


def nothing_again(*_args: object) -> None:
    """Answer what has no answer but that it is done."""


def find(request: RequestInHand | None, unanswered: list[Unanswered]) -> Unanswered | None:
    """Return the request that was in hand, if it has no answer yet.

    A thread waits for its request, so it has one; and the note is taken back before the next
    request is read. So one that the kernel sends again and that looks like the one noted is it.
    """
    if request is None:
        return None
    wanted = (request.opcode, request.inode, request.pid)
    return next((found for found in unanswered if looks(found) == wanted), None)


def looks(request: Unanswered) -> Look:
    """Return by what a request is known when a handler has it.

    Two that have the first two in common are never under way at once: the kernel holds a lock of
    the directory, or of the inode whose attribute it is.
    """
    opcode = RENAME if request.opcode == _RENAME2 else request.opcode
    return opcode, request.inode, request.pid


def is_harmful(request: Unanswered) -> bool:
    """Whether doing it twice would fail: all but plain setxattr, open and opendir."""
    if request.opcode == SETXATTR:  # pyfuse3 asks for the attribute before XATTR_CREATE
        if request.body.startswith(CLONE + b"\0", _SETXATTR_IN.size):
            return True
        return bool(_SETXATTR_IN.unpack_from(request.body)[1] & XATTR_CREATE)
    return request.opcode not in (OPEN, OPENDIR)
