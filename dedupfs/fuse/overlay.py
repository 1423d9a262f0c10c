"""The kernel's overlayfs over a mount of ours: what is written goes to a plain directory.

Knows mounts, no store and no view. Source: Linux Documentation/filesystems/overlayfs.rst,
fs/overlayfs/params.c; mount(2).
"""

import ctypes
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import MountError
from dedupfs.fuse import mountpoints

FS_TYPE = "overlay"
UPPER, WORK, LOWER = "upper", "work", "lower"
"""Directories of a scratch directory: the changes, overlayfs's own, where the snapshot is."""
_MS_NOSUID, _MS_NODEV, _MS_NOATIME = 0x2, 0x4, 0x400
_FIT = "give a directory on a disk of this machine (ext4, XFS, btrfs) or tmpfs: --upper-dir DIR"
_PROBE = b"probe"
_ACLS = {"system.posix_acl_access", "system.posix_acl_default"}


@dataclass(frozen=True, slots=True)
class Top:
    """What an upper directory was given for the root of what is below it."""

    mode: int
    uid: int
    gid: int
    xattrs: tuple[tuple[bytes, bytes], ...]


def xattr_prefix() -> bytes:
    """Return the prefix of overlayfs's own attributes for mounts by this process."""
    return b"user.overlay." if _is_in_user_namespace() else b"trusted.overlay."


def _is_in_user_namespace() -> bool:
    """Whether this process is root over less than the machine: user_namespaces(7)."""
    return Path("/proc/self/uid_map").read_text(encoding="utf-8").split() != [
        "0",
        "0",
        str((1 << 32) - 1),
    ]


def require_fit(directory: Path) -> None:
    """Refuse a directory on a file system that overlayfs takes no upper directory from.

    The kernel would only say that an argument is invalid, or fail later.

    Raises:
        MountError: in words that say what to do.
    """
    mount = mountpoints.mount_containing(directory)
    if mount is not None and (mount.fs_type == FS_TYPE or mount.fs_type.startswith("fuse")):
        raise MountError(
            f"{directory} lies on {mount.fs_type}, which overlayfs cannot write to: {_FIT}"
        )
    name = xattr_prefix() + _PROBE
    try:
        os.setxattr(directory, name, b"y")
        os.removexattr(directory, name)
    except OSError as exc:
        raise MountError(
            f"{directory} cannot keep the attributes of overlayfs "
            f"({name.decode()}: {exc.strerror}): {_FIT}"
        ) from exc


def prepare(scratch: Path) -> Top:
    """Make the upper directory look as the root of what is mounted below.

    Raises:
        MountError: refused.
    """
    lower, upper = scratch / LOWER, scratch / UPPER
    try:
        status = os.stat(lower)
        for directory in (upper, scratch / WORK):
            directory.mkdir(mode=0o700)
        own = os.stat(upper)
        if (status.st_uid, status.st_gid) != (own.st_uid, own.st_gid):
            _chown(upper, status)
        _copy_xattrs(lower, upper)
        os.chmod(upper, stat.S_IMODE(status.st_mode))
        os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))
        made = os.stat(upper)
        names = sorted(os.fsencode(name) for name in os.listxattr(upper))
        xattrs = tuple((name, os.getxattr(upper, name)) for name in names)
    except OSError as exc:
        raise MountError(f"cannot make an upper directory in {scratch}: {exc.strerror}") from exc
    return Top(made.st_mode, made.st_uid, made.st_gid, xattrs)


def _chown(upper: Path, status: os.stat_result) -> None:
    """Give it the root's owner, who may be nobody that this user namespace knows."""
    try:
        os.chown(upper, status.st_uid, status.st_gid)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EINVAL):
            raise


def _copy_xattrs(source: Path, target: Path) -> None:
    """Copy the attributes that this user may set; ACLs are not those of the place, either."""
    names = set(os.listxattr(source))
    for name in set(os.listxattr(target)) & _ACLS - names:
        os.removexattr(target, name)
    for name in names:
        if os.fsencode(name).startswith(xattr_prefix()):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL):
                raise


def mount(scratch: Path, mountpoint: Path) -> None:
    """Mount what is at ``lower`` of a scratch directory, with changes going to ``upper`` of it.

    No redirects: a directory of the tree that is renamed answers EXDEV, as on two file systems,
    and programs copy. No syncs: what is in the upper directory is taken in, or of no use.

    Raises:
        MountError: refused.
    """
    options = {
        "lowerdir": LOWER,
        "upperdir": UPPER,
        "workdir": WORK,
        "redirect_dir": "nofollow",
        "metacopy": "off",
        "index": "off",
    }
    words = [f"{key}={value}" for key, value in options.items()] + ["volatile"]
    if _is_in_user_namespace():
        words.append("userxattr")
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(scratch)  # so that no name in the path has to be quoted for the kernel
        code = _mount(mountpoint, ",".join(words))
    finally:
        os.fchdir(here)
        os.close(here)
    if code:
        raise MountError(
            f"cannot mount an overlay with its upper directory in {scratch}: {os.strerror(code)}; "
            f"it needs Linux 5.11 and a file system that overlayfs can write to: {_FIT}"
        )


def _mount(mountpoint: Path, data: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    target, flags = os.fsencode(mountpoint), _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    if libc.mount(b"dedupfs", target, FS_TYPE.encode(), ctypes.c_ulong(flags), data.encode()) == 0:
        return 0
    return ctypes.get_errno()
