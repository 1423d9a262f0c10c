"""The mounts of dedupfs that this machine knows: find them, tell dead ones, take them away.

Knows neither pyfuse3 nor stores, so that commands can use it where there is no FUSE. Asks nothing
of a live mount except in ``is_stale``. Source: proc(5) (mountinfo), umount(2), fusermount3(1).
"""

import ctypes
import errno
import os
import re
import select
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import MountError, StoreFullError

SUBTYPE = "dedupfs"
FS_TYPE = f"fuse.{SUBTYPE}"
MOUNT_TABLE = Path("/proc/self/mountinfo")

_ESCAPE = re.compile(r"\\([0-7]{3})")  # space, tab, newline and backslash in mountinfo
_USER = re.compile(r"(?:^|,)user_id=(\d+)(?:,|$)")
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_CONNECTION_LOST = (errno.ENOTCONN, errno.ECONNABORTED)


class MountBusyError(MountError):
    """Some process has an open file or its working directory below the mount point."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table.

    ``device`` is ``major:minor`` of ``st_dev``; ``user`` is who mounted it, if it is FUSE's. What
    is mounted below one that is ``shared`` comes up in other mount namespaces, too. With
    ``allow_other`` it lets other users in.
    """

    device: str
    mountpoint: Path
    fs_type: str
    source: str
    user: int | None = None
    shared: bool = False
    allow_other: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether a dedupfs daemon made it."""
        return self.fs_type == FS_TYPE


def read_mounts(table: Path | None = None) -> list[Mount]:
    """Return all mounts, a later one on top of an earlier one of the same mount point."""
    text = (table or MOUNT_TABLE).read_bytes().decode(errors="surrogateescape")
    return [_parse(line) for line in text.split("\n") if line]


def mount_at(mountpoint: Path) -> Mount | None:
    """Return what is mounted on exactly this (absolute) path, the topmost if there are several."""
    found = [mount for mount in read_mounts() if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def mount_containing(path: Path) -> Mount | None:
    """Return the mount that an absolute path lies in."""
    best: Mount | None = None
    for mount in read_mounts():
        deeper = best is None or len(mount.mountpoint.parts) >= len(best.mountpoint.parts)
        if deeper and path.is_relative_to(mount.mountpoint):
            best = mount
    return best


def who_has_copies(mount: Mount) -> list[str]:
    """Name a process of each mount namespace that has a mount, as far as this user may look.

    A namespace gets copies of all mounts when it is made, and unless they are slaves of ours
    (mount_namespaces(7)) they stay when ours goes: the connection ends with the last of them.
    """
    found: dict[str, str] = {}
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            namespace = os.readlink(process / "ns/mnt")
            if namespace in found:
                continue
            mounts = read_mounts(process / "mountinfo")
            name = (process / "comm").read_text(errors="replace").strip()
        except OSError:  # it has ended, or is somebody else's
            continue
        if any(
            (m.device, m.fs_type, m.source) == (mount.device, FS_TYPE, mount.source) for m in mounts
        ):
            found[namespace] = f"{process.name} ({name})"
    return list(found.values())


def find_mount(path: str | os.PathLike[str]) -> Mount | None:
    """Return the dedupfs mount that ``path`` names; symbolic links are followed if need be."""
    for spelling in (os.path.abspath(path), os.path.realpath(path)):
        mount = mount_at(Path(spelling))
        if mount is not None and mount.is_ours:
            return mount
    return None


def is_stale(mount: Mount) -> bool:
    """Whether the daemon of a mount is gone.

    Asks for statfs, the one answer that the kernel never takes from a cache.
    """
    try:
        os.statvfs(mount.mountpoint)
    except OSError as exc:
        return exc.errno in _CONNECTION_LOST
    return False


def answers_within(mount: Mount, seconds: float) -> bool | None:
    """Whether a mount's file system answers, dead or alive as ``is_stale`` says; None: not in time.

    Asks in a process of its own, which is killed if it waits too long: this one may hang nowhere.
    """
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = int(is_stale(mount))
        finally:
            os._exit(code)
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(seconds * 1000):
            # Not waited for: when a daemon has taken the request, not even SIGKILL ends the wait
            # before it answers (fs/fuse/dev.c, request_wait_answer).
            os.kill(pid, signal.SIGKILL)
            return None
    finally:
        os.close(handle)
    _pid, status = os.waitpid(pid, 0)
    return {0: True, 1: False}.get(os.waitstatus_to_exitcode(status))


def clear_stale(mountpoint: Path) -> int:
    """Take away dead mounts of dedupfs on a path, and return how many there were.

    Raises:
        MountError: a live one is there, or a dead one cannot be taken away.
    """
    cleared = 0
    while (mount := mount_at(mountpoint)) is not None and mount.is_ours:
        if not is_stale(mount):
            raise MountError(
                f"{mountpoint} is already a mount of {mount.source}; "
                f"run 'dedupfs umount {mountpoint}' first"
            )
        unmount(mountpoint, lazy=True)
        cleared += 1
    return cleared


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount; ``lazy`` takes the mount out of the tree at once, whoever still uses it.

    Raises:
        MountBusyError: in use (not when ``lazy``).
        MountError: not permitted, or fusermount3 is missing.
    """
    if os.geteuid() == 0:
        _unmount_as_root(mountpoint, lazy)
    else:
        _unmount_as_user(mountpoint, lazy)


def _unmount_as_root(mountpoint: Path, lazy: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise _busy(mountpoint)
    raise MountError(f"cannot unmount {mountpoint}: {os.strerror(code)}")


def _unmount_as_user(mountpoint: Path, lazy: bool) -> None:
    said = fusermount("-u", *(["-z"] if lazy else []), "--", os.fspath(mountpoint))
    if said is None:
        return
    if "busy" in said:
        raise _busy(mountpoint)
    raise MountError(f"cannot unmount {mountpoint}: {said}")


def _busy(mountpoint: Path) -> MountBusyError:
    return MountBusyError(
        f"{mountpoint} is in use: leave it and close its files ('fuser -vm {mountpoint}' lists "
        "who has some), then try again"
    )


def fusermount(*arguments: str, channel: int | None = None) -> str | None:
    """Run the helper that mounts and unmounts for ordinary users.

    Returns None when it worked, else what it said. ``channel``: the socket over which it hands
    back the device.

    Raises:
        MountError: it is not installed.
    """
    path = shutil.which("fusermount3")
    if path is None:
        raise MountError("fusermount3 is missing: install the package fuse3, or run as root")
    environment = {"LC_ALL": "C", "PATH": os.defpath}
    if channel is not None:
        environment["_FUSE_COMMFD"] = str(channel)
    done = subprocess.run(
        ["fusermount3", *arguments],
        executable=path,
        check=False,
        capture_output=True,
        env=environment,
        pass_fds=[] if channel is None else [channel],
    )
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
    return said.splitlines()[-1].removeprefix("fusermount3: ")


def _parse(line: str) -> Mount:
    """Parse ``id parent major:minor root mount-point options fields... - type source options``."""
    left, _, right = line.partition(" - ")
    fields = left.split(" ")
    fs_type, source, *super_options = right.split(" ")
    user = _USER.search(super_options[-1]) if super_options else None
    uid = None if user is None else int(user[1])
    to_all = bool(super_options) and "allow_other" in super_options[-1].split(",")
    shared = any(field.startswith("shared:") for field in fields[6:])
    return Mount(
        fields[2], Path(_unescape(fields[4])), fs_type, _unescape(source), uid, shared, to_all
    )


def _unescape(field: str) -> str:
    return _ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), field)


def write_back(mountpoint: Path) -> None:
    """Have the kernel hand over what it keeps of writes and of shared mappings: syncfs(2).

    Not for the daemon of the mount: it would wait for itself.

    Raises:
        StoreFullError: the disk is full, now or at the last write whose program was not asked.
        MountError: it cannot be done.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise MountError(f"cannot open {mountpoint}: {exc.strerror}") from exc
    try:
        if libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            failed = StoreFullError if code in (errno.ENOSPC, errno.EDQUOT) else MountError
            raise failed(f"cannot sync {mountpoint}: {os.strerror(code)}")
    finally:
        os.close(descriptor)


def write_back_outside(mountpoint: Path) -> None:
    """Do as ``write_back`` for the daemon of the mount: by sync(1), in a process of its own.

    A thread of the daemon that waits in its own mount would keep a killed daemon from ending.

    Raises:
        MountError: it cannot be done.
    """
    command = ["sync", "-f", "--", os.fspath(mountpoint)]
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as exc:
        raise MountError(f"cannot run sync(1) for {mountpoint}: {exc.strerror}") from exc
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise MountError(f"cannot sync {mountpoint}: {said.splitlines()[-1]}")
