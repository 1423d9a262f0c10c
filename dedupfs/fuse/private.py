"""Namespaces of one command's own: what is mounted there nobody else sees, and it goes with it.

Knows mounts and processes, no store and no view. As root a mount and a process namespace are
enough; anybody else, and root without CAP_SYS_ADMIN, gets a user namespace around them in which he
is who he was. Source: unshare(2), user_namespaces(7), pid_namespaces(7), mount(2).
"""

import ctypes
import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import MountError, UsageError

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x2, 0x4, 0x8
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_MS_SLAVE = 0x80000
_MNT_FORCE = 1
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_HOW = (
    "a container needs --cap-add SYS_ADMIN --device /dev/fuse; an ordinary user needs user "
    "namespaces (sysctl user.max_user_namespaces, and on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0)"
)


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory of the machine (an open descriptor of it) and where it is to appear."""

    source: int
    is_directory: bool
    target: str


def enter() -> None:
    """Move this process, which has one thread, into a mount namespace of its own.

    Its next child is the first process of a process namespace, too; this one is not, so a mount
    that it makes tells process numbers as the rest of the machine does.

    Raises:
        MountError: in words that say what to do.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE_NEWNS | _CLONE_NEWPID
    code = _unshare(flags) if uid == 0 else errno.EPERM
    if code == errno.EPERM:
        code = _unshare(flags | _CLONE_NEWUSER)
        if code == 0:
            code = _stay_who_you_are(uid, gid)
    # Mounts that come and go on the machine do so here, but none of ours there.
    code = code or _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    if code:
        raise MountError(f"cannot make a namespace: {os.strerror(code)}; {_HOW}")


def _unshare(flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc.unshare(flags) == 0 else ctypes.get_errno()


def _stay_who_you_are(uid: int, gid: int) -> int:
    try:
        for name, text in (
            ("setgroups", "deny"),  # or no group could be mapped: user_namespaces(7)
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            Path("/proc/self", name).write_text(text)
    except OSError as exc:
        return exc.errno or errno.EPERM
    return 0


def _mount(source: str | None, target: str, fs_type: str | None, flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [None if word is None else os.fsencode(word) for word in (source, target, fs_type)]
    return 0 if libc.mount(*words, ctypes.c_ulong(flags), None) == 0 else ctypes.get_errno()


def open_bind(source: Path, target: str) -> Bind:
    """Look up what is to be bound, before something is mounted over the way to it.

    Raises:
        UsageError: it is not there.
    """
    try:
        descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(f"cannot bind {source}: {exc.strerror}") from exc
    return Bind(descriptor, source.is_dir(), target)


def bind(what: Bind, root: Path) -> Path:
    """Bind into the tree at ``root``, and return where; what is missing of the target is made.

    An absolute target is a path of the namespace, and has to be there.

    Raises:
        UsageError: the target is missing, or a symbolic link leads out of the tree.
        MountError: refused.
    """
    try:
        target = _bind_target(what, root)
    except OSError as exc:
        raise UsageError(f"cannot bind on {what.target}: {exc.strerror}") from exc
    code = _mount(f"/proc/self/fd/{what.source}", str(target), None, _MS_BIND | _MS_REC)
    if code:
        raise MountError(f"cannot bind on {what.target}: {os.strerror(code)}")
    return target


def _bind_target(what: Bind, root: Path) -> Path:
    if os.path.isabs(what.target):
        return Path(os.path.realpath(what.target, strict=True))
    top = os.path.realpath(root)
    target = Path(os.path.realpath(os.path.join(top, what.target)))  # also of what is missing yet
    if not target.is_relative_to(top) or target == Path(top):
        raise UsageError(f"cannot bind on {what.target}: that is not below the snapshot's root")
    if what.is_directory:
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():  # what is there stays as it is: overlayfs would copy it to write
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    return target


def discard(mountpoint: Path) -> None:
    """Take a FUSE mount away with all that the kernel keeps for it and no daemon has yet.

    Raises:
        MountError: refused.
    """
    _unmount(mountpoint, _MNT_FORCE | _MNT_DETACH)


def detach(mountpoint: Path) -> None:
    """Take any mount away, with those below it; it ends when nobody uses it any more.

    Raises:
        MountError: refused.
    """
    _unmount(mountpoint, _MNT_DETACH)


def _unmount(mountpoint: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags) != 0:
        raise MountError(f"cannot unmount {mountpoint}: {os.strerror(ctypes.get_errno())}")


def become_first_process() -> None:
    """As the first process of the namespace: end with the parent, and show only what is in it.

    Raises:
        MountError: no mount namespace.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    code = _unshare(_CLONE_NEWNS)  # the parent goes on to use the machine's /proc
    code = code or _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    if code:
        raise MountError(f"cannot make a namespace: {os.strerror(code)}; {_HOW}")
    # Refused where a container hides a part of /proc: then that of the machine stays.
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
