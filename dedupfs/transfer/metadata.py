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

from dedupfs.model import XATTRS_BYTES_MAX, TreeEntry, xattrs_fit
from dedupfs.transfer.report import shown

Xattrs = tuple[tuple[bytes, bytes], ...]
Target = int | bytes
OnRefusal = Callable[[str, OSError], None]
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"
_OURS = "user.dedupfs."
_NO_XATTRS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.ENODATA})


@contextmanager
def object_at(directory_fd: int, name: bytes) -> Iterator[tuple[int, bytes]]:
    """Hold the object called ``name``, not following it: its O_PATH descriptor and a path to it."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        yield fd, b"/proc/self/fd/%d" % fd
    finally:
        os.close(fd)


def open_source(path: bytes) -> int:
    """Open a file for reading without leaving a trace in its atime, where that is allowed.

    ``path`` is that of an object which is held already and known to be a regular file: to open
    another by its name, because somebody swapped it, would make a device or a fifo act.
    """
    try:
        return os.open(path, _OPEN_FLAGS | os.O_NOATIME)
    except PermissionError:
        return os.open(path, _OPEN_FLAGS)


def read_xattrs(target: Target) -> Xattrs:
    """Return the xattrs that can be read, sorted by name.

    Raises:
        OSError: they cannot be read, or are more than an inode of a store can have.
    """
    try:
        names = os.listxattr(target)
    except OSError as exc:
        if exc.errno in _NO_XATTRS:
            return ()
        raise
    if not names:
        return ()
    found = []
    values_bytes = 0
    for name in names:
        if name.startswith(_OURS):
            continue  # it tells of this directory or file, not of a copy
        try:
            value = os.getxattr(target, name)
        except OSError as exc:
            if exc.errno not in _NO_XATTRS:
                raise
            continue  # removed meanwhile, or only root may read it
        found.append((os.fsencode(name), value))
        values_bytes += len(value)
        if values_bytes > XATTRS_BYTES_MAX:
            break
    xattrs = tuple(sorted(found))
    if not xattrs_fit(xattrs):
        raise OSError(errno.E2BIG, "there are too many of them")
    return xattrs


def is_in_mount(directory_fd: int) -> bool:
    """Whether a directory is in a mount of dedupfs."""
    try:
        return bool(os.getxattr(directory_fd, "user.dedupfs.store"))
    except OSError:
        return False


def apply_metadata(target: Target, entry: TreeEntry, failed: OnRefusal) -> None:
    """Give an object of our own making its owner, xattrs, mode and times, in this order.

    chown clears suid bits and capabilities, an ACL sets mode bits, and everything but utime
    changes times. ``failed`` hears what was refused; the rest is done all the same.
    """
    _apply_owner(target, entry, failed)
    _apply_xattrs(target, entry, failed)
    if not entry.is_symlink:
        with _told(failed, "its mode"):
            os.chmod(target, _safe_mode(target, entry, failed))
    times = (entry.accessed_ns, entry.mtime_ns)
    with _told(failed, "its times"):
        os.utime(target, ns=times)


@contextmanager
def _told(failed: OnRefusal, what: str) -> Iterator[None]:
    """Tell of what the kernel refuses, and of numbers and names that it cannot even be given."""
    try:
        yield
    except OSError as exc:
        failed(what, exc)
    except (ValueError, OverflowError) as exc:
        failed(what, OSError(errno.EINVAL, str(exc)))


def _safe_mode(target: Target, entry: TreeEntry, failed: OnRefusal) -> int:
    """Return the mode without what would have others act as the file's new owner or group.

    cp(1) and tar(1) do the same: one user's set-user-id program must not become another's.
    """
    mode = stat.S_IMODE(entry.mode)
    if not mode & (stat.S_ISUID | stat.S_ISGID):
        return mode
    status = os.stat(target)
    lost = stat.S_ISUID if status.st_uid != entry.uid else 0
    lost |= stat.S_ISGID if status.st_gid != entry.gid else 0
    if mode & lost:
        failed("its set-id bits", OSError(errno.EPERM, "it has another owner now"))
    return mode & ~lost


def _apply_owner(target: Target, entry: TreeEntry, failed: OnRefusal) -> None:
    """Set owner and group; an ordinary user keeps the file and tries for the group alone."""
    if os.geteuid() == 0:
        with _told(failed, "its owner"):
            os.chown(target, entry.uid, entry.gid)
        return
    try:
        os.chown(target, entry.uid, entry.gid)
    except (OSError, OverflowError):
        with suppress(OSError, OverflowError):
            os.chown(target, -1, entry.gid)


def _apply_xattrs(target: Target, entry: TreeEntry, failed: OnRefusal) -> None:
    drop_inherited_acls(target, keep={name for name, _ in entry.xattrs})
    for name, value in entry.xattrs:
        with _told(failed, f"its attribute {shown(name)}"):
            os.setxattr(target, name, value)


def drop_inherited_acls(target: Target, keep: set[bytes] | frozenset[bytes] = frozenset()) -> None:
    """Remove the ACLs that a new object got from its directory's default ACL."""
    with suppress(OSError):
        for name in os.listxattr(target):
            raw = os.fsencode(name)
            if raw in (ACL_ACCESS, ACL_DEFAULT) and raw not in keep:
                os.removexattr(target, name)
