"""Each request is done once, wherever in it the daemon dies.

Method: a first daemon that kills itself in the middle of one kind of request, before or after the
view has done it (tests/takeover/dying.py); the caller must see what it sees of a native directory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.view import Caller, View
from dedupfs.store.store import Store
from tests.device import device_for_everybody
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, detach, is_mounted, run_code

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

AT_FDCWD, RENAME_EXCHANGE = -100, 2
NOBODY = 65534


def exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def create(root: Path) -> None:
    fd = os.open(root / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
    os.write(fd, b"made")
    assert os.fstat(fd).st_mode & 0o777 == 0o640
    os.close(fd)
    assert (root / "new").read_bytes() == b"made"


def truncating_open(root: Path) -> None:
    with (root / "a").open("w") as file:
        file.write("again")
    assert (root / "a").read_text() == "again"


def removed(root: Path, name: str, remove: Callable[[Path], None]) -> None:
    remove(root / name)
    assert name not in os.listdir(root)


def exchanged(root: Path) -> None:
    exchange(root / "a", root / "b")
    assert [(root / name).read_text() for name in "ab"] == ["of b", "of a"]


def replaced(root: Path) -> None:
    os.rename(root / "a", root / "b")
    assert (root / "b").read_text() == "of a"
    assert "a" not in os.listdir(root)


def linked(root: Path) -> None:
    os.link(root / "a", root / "c")
    assert (root / "a").stat().st_nlink == (root / "c").stat().st_nlink == 2


def xattr_created(root: Path) -> None:
    os.setxattr(root / "a", "user.new", b"value", os.XATTR_CREATE)
    assert os.getxattr(root / "a", "user.new") == b"value"


def cloned(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        (root / "d" / "a").stat()
    os.setxattr(root / "d", "user.dedupfs.clone", b"base")
    assert (root / "d" / "a").read_text() == "of a"
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o755


def xattr_removed(root: Path) -> None:
    os.removexattr(root / "a", "user.old")
    assert os.listxattr(root / "a") == []


def made(root: Path, make: Callable[[Path], object], kind: Callable[[int], bool]) -> None:
    make(root / "new")
    assert kind((root / "new").lstat().st_mode)


def written(root: Path) -> None:
    with (root / "a").open("r+b") as file:
        file.write(b"OF")
    assert (root / "a").read_bytes() == b"OF a"


def truncated(root: Path) -> None:
    os.truncate(root / "a", 2)
    assert (root / "a").read_bytes() == b"of"


def listed(root: Path) -> None:
    assert set(os.listdir(root)) >= {"a", "b", "d"}


STEPS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "create": ("create", create),
    "mknod": ("mknod", lambda root: made(root, os.mkfifo, stat.S_ISFIFO)),
    "mkdir": ("mkdir", lambda root: made(root, os.mkdir, stat.S_ISDIR)),
    "symlink": ("symlink", lambda root: made(root, lambda p: os.symlink("x", p), stat.S_ISLNK)),
    "link": ("link", linked),
    "unlink": ("unlink", lambda root: removed(root, "a", os.unlink)),
    "rmdir": ("rmdir", lambda root: removed(root, "d", os.rmdir)),
    "rename": ("rename", replaced),
    "exchange": ("rename", exchanged),
    "setxattr create": ("setxattr", xattr_created),
    "clone": ("clone", cloned),
    "removexattr": ("removexattr", xattr_removed),
    "open with truncation": ("open", truncating_open),
    "opendir": ("opendir", listed),
    "readdir": ("readdir", listed),
    "write": ("write", written),
    "truncate": ("setattr", truncated),
    "release": ("release", written),
    "lookup": ("lookup", listed),
}


@pytest.fixture
def store_path(tmp_path: Path) -> Iterator[Path]:
    """Make a store whose view has a directory "work" with two files and, since then, another."""
    path = tmp_path / "store"
    root = Caller(os.geteuid(), os.getegid())
    with Store.create(path) as store:
        view = View.bring_back(store)
        work = view.mkdir(ROOT_INODE, b"work", 0o755, root).inode
        for name in (b"a", b"b"):
            handle, attr = view.create(work, name, 0o644, root)
            view.write(handle, 0, b"of " + name)
            view.release(handle)
            if name == b"a":
                view.setxattr(attr.inode, b"user.old", b"old")
        view.commit("base", path=b"work")
        view.mkdir(work, b"d", 0o700, root)
        view.close()
    yield path
    with Store.open(path) as store:
        report = check(store)
        assert not report.problems, report.problems


@contextmanager
def dying(
    store_path: Path, mountpoint: Path, operation: str, when: str, *user: int
) -> Iterator[None]:
    """A mount whose first daemon dies in ``operation`` and whose second one ends in order."""
    log_path = store_path.parent / "log"
    arguments = [str(word) for word in (store_path, mountpoint, operation, when, *user)]
    with log_path.open("wb") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.takeover.dying", *arguments],
            stdout=subprocess.PIPE,
            stderr=log_file,
            cwd=REPOSITORY,
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n", log_path.read_text()
        yield
        assert log_path.read_text().count("took over") == operation.count(",") + 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_TIMEOUT_S) == 0
    finally:
        process.stdout.close()
        while is_mounted(mountpoint):
            detach(mountpoint)
        process.wait(END_TIMEOUT_S)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_request_is_done_once(store_path: Path, step: str, when: str) -> None:
    operation, act = STEPS[step]
    mountpoint = store_path.parent / "mnt"
    mountpoint.mkdir()
    with dying(store_path, mountpoint, operation, when):
        act(mountpoint / "work")


@pytest.mark.parametrize(
    ("step", "second"),
    [("create", "lookup"), ("create", "open"), ("mkdir", "lookup"), ("link", "lookup")],
)
def test_a_request_is_done_once_though_the_next_daemon_dies_as_well(
    store_path: Path, step: str, second: str
) -> None:
    """Its answer is that it was done: who gave it must not be the only one who knows."""
    first, act = STEPS[step]
    mountpoint = store_path.parent / "mnt"
    mountpoint.mkdir()
    with dying(store_path, mountpoint, f"{first},{second}", "after"):
        act(mountpoint / "work")


@pytest.fixture
def users_own() -> Iterator[Path]:
    """A directory of an ordinary user, and a device that ordinary users may open."""
    with tempfile.TemporaryDirectory(prefix="dedupfs-") as name, device_for_everybody():
        directory = Path(name).resolve()
        (directory / "mnt").mkdir()
        for path in (directory, directory / "mnt"):
            os.chown(path, NOBODY, NOBODY)
            path.chmod(0o755)
        yield directory


@pytest.mark.root
@pytest.mark.program("fusermount3")
def test_an_ordinary_users_mount_is_taken_over_as_well(users_own: Path) -> None:
    store, mountpoint = users_own / "store", users_own / "mnt"
    with dying(store, mountpoint, "write", "after", NOBODY):
        code = (
            f"fd = os.open({str(mountpoint / 'f')!r}, os.O_RDWR | os.O_CREAT); "
            "os.write(fd, b'first'); os.write(fd, b', second'); print(os.pread(fd, 20, 0))"
        )
        done = run_code(code, NOBODY)
        assert (done.returncode, done.stdout) == (0, "b'first, second'\n"), done.stderr
