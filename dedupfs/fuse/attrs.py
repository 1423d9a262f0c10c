"""Values of the namespace as pyfuse3's, and back.

Knows neither views nor requests. Source: pyfuse3's rst/data.rst, fuse_lowlevel.h
(``fuse_entry_param``).
"""

import stat

import pyfuse3

from dedupfs.model import Attr
from dedupfs.namespace.view import AttrChange, StatFs

FOREVER_S = 1e6
"""A view is changed through its own mount alone, so the kernel may keep what it learned."""
VOLATILE_S = 1.0
"""How long the kernel may believe what another process can change: the catalogue of snapshots."""

FILE_IO_BYTES = 128 * 1024
"""``st_blksize`` of a file: stdio and Python's ``open`` buffer that much, and so send 32 times
fewer requests than with a page."""


def to_entry(attr: Attr, timeout_s: float = FOREVER_S) -> pyfuse3.EntryAttributes:
    """Translate ``attr``; the kernel may keep name and attributes for ``timeout_s``."""
    entry = pyfuse3.EntryAttributes()
    mode = attr.mode
    entry.st_ino = attr.inode
    entry.st_mode = mode
    entry.st_nlink = attr.nlink
    entry.st_uid = attr.uid
    entry.st_gid = attr.gid
    entry.st_size = attr.size
    entry.st_blocks = attr.stored_blocks
    entry.st_atime_ns = attr.atime_ns
    entry.st_mtime_ns = attr.mtime_ns
    entry.st_ctime_ns = attr.ctime_ns
    entry.entry_timeout = timeout_s
    entry.attr_timeout = timeout_s
    if attr.rdev:
        entry.st_rdev = attr.rdev
    if stat.S_ISREG(mode):
        entry.st_blksize = FILE_IO_BYTES
    return entry


def absent_entry(timeout_s: float) -> pyfuse3.EntryAttributes:
    """Say that a name does not exist, which the kernel may believe for ``timeout_s``."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = timeout_s
    return entry


def forget_attributes(inode: int) -> None:
    """Have the kernel ask again for mode, owner and ACLs of an inode that it has in use.

    It takes no lock that a request could hold, so a handler may do it: inode.c of Linux,
    fuse_reverse_inval_inode (with pages to drop, it would wait for them).
    """
    pyfuse3.invalidate_inode(inode, attr_only=True)


def to_change(
    attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, ctx: pyfuse3.RequestContext
) -> AttrChange:
    """Translate what a setattr request asks for; ``now`` has become a number in pyfuse3."""
    return AttrChange(
        mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        size=attr.st_size if fields.update_size else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        privileged=ctx.uid == 0,  # CAP_FSETID is not in the request; the superuser has it
        caller_uid=ctx.uid,
    )


def to_statvfs(statfs: StatFs) -> pyfuse3.StatvfsData:
    """Translate the figures for statfs(2)."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = statfs.block_bytes
    data.f_frsize = statfs.block_bytes
    data.f_blocks = statfs.blocks
    data.f_bfree = statfs.blocks_free
    data.f_bavail = statfs.blocks_available
    data.f_files = statfs.inodes
    data.f_ffree = statfs.inodes_free
    data.f_favail = statfs.inodes_free
    data.f_namemax = statfs.name_bytes_max
    return data
