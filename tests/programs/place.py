"""A mount that a test takes down and brings back under a program, and what lies in it.

A `Place` is a native directory and a mount beside each other: the native one says what is right.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.maintenance.check import check
from dedupfs.store import Store
from tests.fuse.harness import Daemons, Mounted

LIMIT_S = 240
CALM = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/nonexistent"}


@dataclass
class Place:
    """A writable view at ``mount``, and ``native``, a directory on the disk of its store."""

    daemons: Daemons
    allow_other: bool = False
    mounted: Mounted = field(init=False)
    _remounted: bool = False

    def __post_init__(self) -> None:
        self.native = self.daemons.directory / "native"
        self.native.mkdir()
        self._mount()

    def _mount(self) -> None:
        self.mounted = self.daemons.start(allow_other=self.allow_other)

    @property
    def mount(self) -> Path:
        return self.mounted.path

    def both(self) -> tuple[Path, Path]:
        return self.native, self.mount

    def remount(self) -> None:
        """Unmount in order, mount again: everything is what it was, inode numbers too."""
        before = listing(self.mount, with_inodes=True)
        assert self.mounted.end() == 0
        self._expect_no_complaint()
        self._mount()
        assert listing(self.mount, with_inodes=True) == before
        self._remounted = True

    def kill_daemon(self) -> None:
        self.mounted.kill()
        self._expect_no_complaint()

    def mount_again(self) -> None:
        """Mount where a killed daemon has left its mount."""
        self._mount()

    def end(self) -> None:
        """Remount, unless the test has, unmount and check the store: every test ends so."""
        if not self._remounted:
            self.remount()
        assert self.mounted.end() == 0
        with Store.open(self.mounted.store) as store:
            report = check(store)
        assert report.ok, [str(problem) for problem in report.problems]

    def _expect_no_complaint(self) -> None:
        """Look at the log now: the next daemon starts it anew."""
        assert self.daemons.complaints() == []


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    expect: int = 0,
    user: str | None = None,
) -> str:
    """Run a program to its end, in a plain environment, and return what it said."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=LIMIT_S,
        cwd=cwd or "/",
        env={"PATH": os.environ["PATH"], **CALM, **(env or {})},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    assert done.returncode == expect, f"{words} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def python(code: str, *arguments: str | Path) -> str:
    """Run Python code in a process of its own."""
    return run(sys.executable, "-c", code, *arguments)


def start_python(code: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start Python code whose standard output is read here."""
    words = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/")


def listing(
    top: Path, *, with_inodes: bool = False, without: Sequence[str] = (), times: bool = True
) -> dict[str, tuple[object, ...]]:
    """Return everything that can be seen of a tree: attributes, content, xattrs, hard links."""
    found: dict[str, tuple[object, ...]] = {}
    first_names: dict[int, str] = {}
    for directory, directory_names, file_names in os.walk(top):
        directory_names[:] = sorted(set(directory_names) - set(without))
        for name in sorted({*directory_names, *file_names} - set(without)):
            path = os.path.join(directory, name)
            shown = os.path.relpath(path, top)
            status = os.lstat(path)
            is_directory = stat.S_ISDIR(status.st_mode)
            found[shown] = (
                status.st_mode,
                (status.st_uid, status.st_gid),
                status.st_rdev,
                first_names.setdefault(status.st_ino, shown),
                status.st_mtime_ns if times else 0,
                0 if is_directory else (status.st_size, status.st_nlink),
                _content(path, status.st_mode),
                _xattrs(path),
                status.st_ino if with_inodes else 0,
            )
    return found


def _content(path: str, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _xattrs(path: str) -> dict[str, bytes]:
    with suppress(PermissionError):
        return {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
    return {}
