"""What this machine and this user lack for mounts. Looks, and changes nothing; knows no store.

Each probe takes the place where it looks, so that tests can show it another one.
Source: fuse(4), mount.fuse3(8), fusermount3(1), getrlimit(2).
"""

import importlib
import os
import re
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dedupfs.maintenance.findings import Finding, Grade

TAKEOVER_KERNEL = (6, 9)
"""FUSE_NOTIFY_RESEND: fs/fuse/dev.c."""
OPEN_FILES_MIN = 1024
DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")


def look_at_machine() -> Iterator[Finding]:
    """Probe everything that needs no store."""
    yield kernel(os.uname().release)
    yield device(DEVICE)
    yield helper(shutil.which("fusermount3"), os.geteuid())
    yield allow_other(FUSE_CONF, os.geteuid())
    yield libraries(importlib.import_module)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE))
    yield names(sys.getfilesystemencoding())


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
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
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
    return Finding("libraries", Grade.OK, "pyfuse3 and trio can be imported")


def open_files(limits: tuple[int, int]) -> Finding:
    """Tell whether a daemon may have as many files open as callers do."""
    soft, hard = limits
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN:
        return Finding(
            "open files",
            Grade.LESS,
            f"a process may have {soft} open files: mounts with many packs or large files being "
            "written may run out (EMFILE)",
            f"ulimit -n {max(OPEN_FILES_MIN, hard)}",
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
