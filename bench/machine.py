"""What a figure is worthless without: the machine, its disk, all versions, the commit."""

from __future__ import annotations

import os
import platform
import shutil
import time
from importlib import metadata
from pathlib import Path

from bench.commands import ROOT, BenchError, run

_LIBRARIES = (
    *("pyfuse3", "trio", "lmdb", "xxhash", "pyfastcdc", "msgspec", "zstandard", "click", "rich"),
    "matplotlib",
)
_VERSION_OPTIONS = {"mkfs.xfs": "-V", "restic": "version", "umount": "-V"}
_PACKAGES = {
    "fuse-overlayfs": "fuse-overlayfs",
    "bindfs": "bindfs",
    "borg": "borgbackup python3-llfuse",
    "restic": "restic",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "rsync": "rsync",
    "git": "git",
    "setfattr": "attr",
    "fusermount3": "fuse3",
}
"""Programs that take part, and the Debian packages that bring them."""
_OTHERS = ("cp", "tar", "grep", "find", "umount", "mkfs.s3ql")


def missing() -> str:
    """Return the one command that brings all peers that are missing, or nothing."""
    absent = [package for program, package in _PACKAGES.items() if not shutil.which(program)]
    return f"apt-get install -y --no-install-recommends {' '.join(absent)}" if absent else ""


def machine(directory: Path) -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": _commit(),
        "processor": _first_field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _first_field("/proc/meminfo", "MemTotal"),
        "load": f"{os.getloadavg()[0]:.2f}",
        "kernel": platform.release(),
        "system": _first_field("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "disk": _disk(directory),
        "user": "root" if os.geteuid() == 0 else "ordinary",
    }


def programs() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    for name in (*_PACKAGES, *_OTHERS):
        found[name] = _program_version(name)
    return found


def _program_version(name: str) -> str:
    if not shutil.which(name):
        return "not installed"
    try:
        said = run(name, _VERSION_OPTIONS.get(name, "--version")).strip()
    except BenchError:
        return "unknown"
    words = (said.splitlines() or ["unknown"])[0].split()
    numbers = (word.strip(",v") for word in words)
    return next((word for word in numbers if word[:1].isdigit()), "unknown")


def _disk(directory: Path) -> str:
    """Return the file system's type and options, and the device under it."""
    try:
        columns = "SOURCE,FSTYPE,OPTIONS"
        target = run("findmnt", "-no", columns, "--target", directory).split()
        source, kind, options = target[0], target[1], target[2]
        device = run("lsblk", "-dno", "SIZE,ROTA,MODEL", source, accept=(0, 32)).split()
    except (BenchError, IndexError):
        return "unknown"
    what = f", {device[0]}{' ' + ' '.join(device[2:]) if device[2:] else ''}" if device else ""
    return f"{kind} ({options}) on {source}{what}"


def _first_field(path: str, key: str, separator: str = ":") -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return "unknown"
    for line in lines:
        name, found, value = line.partition(separator)
        if found and name.strip() == key:
            return value.strip()
    return "unknown"


def _commit() -> str:
    git = ("git", "-C", str(ROOT))
    try:
        commit = run(*git, "rev-parse", "--short", "HEAD").strip()
        changed = run(*git, "status", "--porcelain", "--untracked-files=no", "--", "dedupfs")
    except BenchError:
        return "unknown"
    return f"{commit} and changes" if changed else commit
