"""The device of FUSE and the mount(2) that connects it, for who may mount by himself.

Knows no session and no pyfuse3, so that a command can mount for a daemon. Source: Linux
fs/fuse/inode.c, libfuse's lib/mount.c.
"""

import ctypes
import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import MountError
from dedupfs.fuse import mountpoints

log = logging.getLogger(__name__)

DEVICE = Path("/dev/fuse")
READ_AHEAD_KIB = 1024
"""The kernel's 128 make it ask for 128 KiB at a time; with this a request is up to 1 MiB."""

DIRTY_PERCENT = 10
"""Of what the machine may have in written pages that no disk has yet, a mount's share; else 1."""

_MS_RDONLY = 0x1
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_NOEXEC = 0x8
_MS_NOATIME = 0x400
_MS_POSIXACL = 0x10000
"""With it the kernel leaves the umask to us, which default ACLs need: they replace it."""


@dataclass(frozen=True, slots=True)
class MountFlags:
    """What a caller may choose about a mount."""

    read_only: bool = False
    allow_other: bool = False
    cached_writes: bool = False
    """Let the kernel keep writes in its page cache, where it can hand them to another daemon."""
    no_exec: bool = False
    labels: str = ""
    """Options of mount(8) for SELinux: ``context="..."`` and the like, with commas between."""


def open_device() -> int:
    """Return a new connection to the kernel.

    Raises:
        MountError: there is none, or not for this user.
    """
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise MountError(
            f"there is no {DEVICE}: run 'modprobe fuse', or give the container --device {DEVICE}"
        ) from exc
    except OSError as exc:
        raise MountError(f"cannot open {DEVICE}: {exc.strerror}") from exc


def mount_device(mountpoint: str | os.PathLike[str], source: bytes, flags: MountFlags) -> int:
    """Mount by mount(2), for root or in a user namespace, and return the open device.

    Raises:
        MountError: in words that say what to do.
    """
    device = open_device()
    user = f"user_id={os.geteuid()},group_id={os.getegid()}"
    data = f"fd={device},rootmode=40000,{user},default_permissions"
    if flags.allow_other:
        data += ",allow_other"
    if flags.labels:
        data += f",{flags.labels}"
    bits = _MS_NOSUID | _MS_NODEV | _MS_NOATIME | _MS_POSIXACL
    if flags.read_only:
        bits |= _MS_RDONLY
    if flags.no_exec:
        bits |= _MS_NOEXEC
    libc = ctypes.CDLL(None, use_errno=True)
    fs_type = mountpoints.FS_TYPE.encode()
    if libc.mount(source, os.fsencode(mountpoint), fs_type, bits, data.encode()) == 0:
        return device
    code = ctypes.get_errno()
    os.close(device)
    if code == errno.EPERM:
        raise MountError(
            f"cannot mount on {mountpoint}: not permitted; a container needs --cap-add SYS_ADMIN"
        )
    if code == errno.EINVAL and flags.labels:  # nobody took them: Linux, fs/fs_context.c
        raise MountError(
            f"cannot mount on {mountpoint}: the kernel does not take {flags.labels}; "
            "is SELinux enabled, and does its policy know that label?"
        )
    raise MountError(f"cannot mount on {mountpoint}: {os.strerror(code)}")


def raise_limits(mountpoint: Path) -> None:
    """Let the kernel ask for more at once, and keep more that was written.

    Only root can, so it is done where possible. The device number comes from the mount table: a
    daemon's stat of its own mount would wait for itself.
    """
    mount = mountpoints.mount_at(mountpoint)
    if mount is None or not mount.is_ours or os.geteuid() != 0:
        return
    for name, value in (("read_ahead_kb", READ_AHEAD_KIB), ("max_ratio", DIRTY_PERCENT)):
        knob = Path(f"/sys/class/bdi/{mount.device}/{name}")
        try:
            knob.write_text(f"{value}\n")
        except OSError as exc:  # a container with a read-only /sys: slower, not broken
            log.info("limit left as it is path=%s: %s", knob, exc.strerror)
