"""What this machine and this user lack for mounts. Looks, and changes nothing; knows no store.

Each probe takes the place where it looks, so that tests can show it another one.
Source: fuse(4), mount.fuse3(8), fusermount3(1), getrlimit(2).
"""

import importlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dedupfs.maintenance.findings import Finding, Grade

TAKEOVER_KERNEL = (6, 9)
"""FUSE_NOTIFY_RESEND: fs/fuse/dev.c."""
OPEN_FILES_MIN = 1024
DEVICE = Path("/dev/fuse")
DEVICE_NUMBER = os.makedev(10, 229)
"""Documentation/admin-guide/devices.txt"""
LIBRARIES = ("pyfuse3", "trio", "lmdb", "xxhash", "zstandard", "msgspec", "click")
CLOCK_MIN_NS = 1_735_689_600 * 10**9
"""2025: there was no dedupfs before."""
USER_NAMESPACES = (
    (Path("/proc/sys/user/max_user_namespaces"), "0", "user.max_user_namespaces=10000"),
    (Path("/proc/sys/kernel/unprivileged_userns_clone"), "0", "kernel.unprivileged_userns_clone=1"),
    (
        Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        "1",
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
"""Where it is said, by which word, that an ordinary user gets none, and what says otherwise."""
FUSE_CONF = Path("/etc/fuse.conf")


def look_at_machine() -> Iterator[Finding]:
    """Probe everything that needs no store."""
    yield kernel(os.uname().release)
    yield device(DEVICE)
    yield helper(shutil.which("fusermount3"), os.geteuid())
    yield allow_other(FUSE_CONF, os.geteuid())
    yield user_namespaces(USER_NAMESPACES, os.geteuid())
    yield libraries(importlib.import_module)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE))
    yield names(sys.getfilesystemencoding())
    yield clock(time.time_ns())


def kernel(release: str) -> Finding:
    """Tell whether a daemon that dies can be followed by another."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None or (int(found[1]), int(found[2])) < TAKEOVER_KERNEL:
        return Finding(
            "kernel",
            Grade.LESS,
            f"Linux {release}: when a mount's daemon dies, the mount is dead, and each write is "
            "handed over before it returns",
            "use Linux 6.9 or later",
        )
    return Finding("kernel", Grade.OK, f"Linux {release}")


def device(path: Path) -> Finding:
    """Tell whether the device may be opened, as every mount has to."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        number = os.fstat(descriptor).st_rdev
        os.close(descriptor)
    except FileNotFoundError:
        return Finding(
            "device",
            Grade.FAULT,
            f"there is no {path}: nothing can be mounted",
            f"run 'modprobe fuse', or give the container --device {path}",
        )
    except OSError as exc:
        return Finding(
            "device",
            Grade.FAULT,
            f"cannot open {path}: {exc.strerror}: nothing can be mounted",
            f"have root run 'chmod 0666 {path}', which is what distributions have",
        )
    if number != DEVICE_NUMBER:  # a container's way to hide it, or a file in its place
        return Finding(
            "device",
            Grade.FAULT,
            f"{path} is something else than the device: nothing can be mounted",
            f"give the container --device {path}",
        )
    return Finding("device", Grade.OK, f"{path} can be opened")


def helper(path: str | None, uid: int) -> Finding:
    """Tell whether an ordinary user's mounts have the program that makes them."""
    if uid == 0:
        return Finding("fusermount3", Grade.OK, "not needed by root")
    if path is None:
        return Finding(
            "fusermount3",
            Grade.FAULT,
            "fusermount3 is not on PATH: only root can mount",
            "install the package fuse3",
        )
    status = os.stat(path)
    if not status.st_mode & stat.S_ISUID or status.st_uid != 0:
        return Finding(
            "fusermount3",
            Grade.FAULT,
            f"{path} is not set-user-id root: only root can mount",
            f"have root run 'chown root {path} && chmod 4755 {path}'",
        )
    return Finding("fusermount3", Grade.OK, f"{path} is set-user-id root")


def allow_other(path: Path, uid: int) -> Finding:
    """Tell whether a mount may be shown to other users."""
    if uid == 0:
        return Finding("allow_other", Grade.OK, "root may use --allow-other")
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        return Finding("allow_other", Grade.OK, f"user_allow_other is set in {path}")
    return Finding(
        "allow_other",
        Grade.LESS,
        "--allow-other is refused: other users, root among them, cannot look into mounts",
        f"have root put the line user_allow_other into {path}",
    )


def libraries(load: Callable[[str], object]) -> Finding:
    """Tell whether what a mount is made with is installed."""
    for name in ("pyfuse3", "trio"):
        try:
            load(name)
        except Exception as exc:  # noqa: BLE001 - a broken library may raise anything
            return Finding(
                "libraries",
                Grade.FAULT,
                f"cannot import {name}: {exc}: nothing can be mounted",
                "pip install 'dedupfs[fuse]' (needs libfuse3-dev, pkg-config and gcc)",
            )
    return Finding("libraries", Grade.OK, f"Python {platform.python_version()}, {_versions()}")


def _versions() -> str:
    """Return what is installed of LIBRARIES, as a report of a bug should have it."""
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # a distribution's, without metadata
            continue
    return ", ".join(found)


def user_namespaces(places: Iterable[tuple[Path, str, str]], uid: int) -> Finding:
    """Tell whether an ordinary user can have what 'dedupfs run' is made of."""
    if uid == 0:
        return Finding("run", Grade.OK, "root needs no user namespace")
    for path, refusal, setting in places:
        try:
            refused = path.read_text().strip() == refusal
        except OSError:  # a kernel that does not have this switch
            continue
        if refused:
            return Finding(
                "run",
                Grade.LESS,
                f"no user namespaces ({path}): 'dedupfs run' is root's alone",
                f"have root run 'sysctl {setting}'",
            )
    return Finding("run", Grade.OK, "ordinary users have user namespaces")


def open_files(limits: tuple[int, int]) -> Finding:
    """Tell whether a daemon may have as many files open as callers do."""
    soft, hard = limits
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN:
        return Finding(
            "open files",
            Grade.LESS,
            f"a process may have {soft} open files: mounts with many packs or large files being "
            "written may run out (EMFILE)",
            f"ulimit -n {hard if hard > OPEN_FILES_MIN else OPEN_FILES_MIN}"
            + (", as root" if 0 <= hard < OPEN_FILES_MIN else ""),
        )
    return Finding("open files", Grade.OK, f"a process may have {soft}")


def names(encoding: str) -> Finding:
    """Tell whether names on the command line are UTF-8, as snapshots' tags have to be."""
    if encoding.lower().replace("-", "") != "utf8":
        return Finding(
            "locale",
            Grade.LESS,
            f"names are {encoding}: those with other characters are shown escaped",
            "export LC_ALL=C.UTF-8",
        )
    return Finding("locale", Grade.OK, "names are UTF-8")


def clock(now_ns: int) -> Finding:
    """Tell whether snapshots get a date that ``prune`` can go by."""
    if now_ns < CLOCK_MIN_NS:
        return Finding(
            "clock",
            Grade.LESS,
            f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now_ns // 10**9))}: snapshots "
            "get wrong dates, and prune keeps the wrong ones",
            "set the clock (timedatectl set-ntp true)",
        )
    return Finding("clock", Grade.OK, "the clock is set")
