"""Reading and writing what a file is besides its bytes: xattrs, owner, mode, times.

Objects that cannot be opened without effect (symlinks, fifos, devices) are opened with O_PATH and
reached as ``/proc/self/fd/N``, which is that very object whatever its name means by now.
Source: open(2) O_PATH, xattr(7), symlink(7), acl(5).
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dedupfs.model import TreeEntry

Xattrs = tuple[tuple[bytes, bytes], ...]
Target = int | bytes
OnRefusal = Callable[[str, OSError], None]
ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"
_NO_XATTRS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.ENODATA})


@contextmanager
def object_at(directory_fd: int, name: bytes) -> Iterator[tuple[int, bytes]]:
    """Hold the object called ``name``, not following it: its O_PATH descriptor and a path to it."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        yield fd, b"/proc/self/fd/%d" % fd
    finally:
        os.close(fd)


def read_xattrs(target: Target) -> Xattrs:
    """Return the xattrs that can be read, sorted by name."""
    try:
        names = os.listxattr(target)
    except OSError as exc:
        if exc.errno in _NO_XATTRS:
            return ()
        raise
    if not names:
        return ()
    found = []
    for name in names:
        try:
            value = os.getxattr(target, name)
        except OSError as exc:
            if exc.errno not in _NO_XATTRS:
                raise
            continue  # removed meanwhile, or only root may read it
        found.append((os.fsencode(name), value))
    return tuple(sorted(found))


def apply_metadata(target: Target, entry: TreeEntry, failed: OnRefusal) -> None:
    """Give an object of our own making its owner, xattrs, mode and times, in this order.

    chown clears suid bits and capabilities, an ACL sets mode bits, and everything but utime
    changes times. ``failed`` hears what was refused; the rest is done all the same.
    """
    _apply_owner(target, entry, failed)
    _apply_xattrs(target, entry, failed)
    if not entry.is_symlink:
        try:
            os.chmod(target, stat.S_IMODE(entry.mode))
        except OSError as exc:
            failed("its mode", exc)
    times = (entry.atime_ns or entry.mtime_ns, entry.mtime_ns)
    try:
        os.utime(target, ns=times)
    except OSError as exc:
        failed("its times", exc)


def _apply_owner(target: Target, entry: TreeEntry, failed: OnRefusal) -> None:
    """Set owner and group; an ordinary user keeps the file and tries for the group alone."""
    try:
        os.chown(target, entry.uid, entry.gid)
    except OSError as exc:
        if os.geteuid() == 0:
            failed("its owner", exc)
            return
        with suppress(OSError):
            os.chown(target, -1, entry.gid)


def _apply_xattrs(target: Target, entry: TreeEntry, failed: OnRefusal) -> None:
    drop_inherited_acls(target, keep={name for name, _ in entry.xattrs})
    for name, value in entry.xattrs:
        try:
            os.setxattr(target, name, value)
        except OSError as exc:
            failed(f"its attribute {os.fsdecode(name)}", exc)


def drop_inherited_acls(target: Target, keep: set[bytes] | frozenset[bytes] = frozenset()) -> None:
    """Remove the ACLs that a new object got from its directory's default ACL."""
    with suppress(OSError):
        for name in os.listxattr(target):
            raw = os.fsencode(name)
            if raw in (ACL_ACCESS, ACL_DEFAULT) and raw not in keep:
                os.removexattr(target, name)
