"""On a mount, setting user.dedupfs.clone on a new directory fills it with a snapshot's tree.

Method: system calls on a real mount; what the kernel has cached of the directory while it was empty
(names that were not there, mode, ACLs) must not be seen any more. One daemon for the module, whose
store has a snapshot "base".
"""

import errno
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from bench.commands import disk_bytes
from dedupfs.namespace import live
from tests.fuse.harness import Mounted, run, run_code

pytestmark = pytest.mark.fuse

CLONE = "user.dedupfs.clone"
FILES = 300
NOBODY = 65534


@pytest.fixture(scope="module")
def base(shared_mount: Mounted) -> Path:
    """The snapshot's directory in the mount: 300 files, and a root that only its owner enters."""
    made = shared_mount.path / "making"
    (made / "sub").mkdir(parents=True)
    (made / "file").write_bytes(b"of the snapshot")
    for number in range(FILES):
        (made / "sub" / str(number)).write_bytes(b"%d" % number * 100)
    made.chmod(0o700)
    daemon = live.daemon_at(shared_mount.store, shared_mount.path)
    assert daemon is not None
    live.ask(daemon.socket_path, live.Commit("base", b"making"))
    return shared_mount.path / "base"


def test_names_that_were_not_there_are(base: Path, work: Path) -> None:
    missing = [work / "file", work / "sub", work / "sub" / "7"]
    for _ in range(2):
        assert not any(path.exists() for path in missing)
    assert os.listdir(work) == []
    os.setxattr(work, CLONE, b"base")
    assert sorted(os.listdir(work)) == ["file", "sub"]
    assert all(path.exists() for path in missing)
    assert (work / "sub" / "7").read_bytes() == b"7" * 100
    assert len(os.listdir(work / "sub")) == FILES
    with pytest.raises(OSError, match="No data"):
        os.getxattr(work, CLONE)


def test_an_open_directory_and_a_working_directory_see_it(base: Path, work: Path) -> None:
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(fd) == []
        os.setxattr(fd, CLONE, b"base:sub")
        assert len(os.listdir(fd)) == FILES
        assert os.stat("5", dir_fd=fd).st_size == 100
    finally:
        os.close(fd)


@pytest.mark.root
def test_the_kernel_goes_by_the_clones_mode_at_once(base: Path, work: Path) -> None:
    work.chmod(0o755)
    assert run_code(f"os.listdir({str(work)!r})", NOBODY).returncode == 0
    os.setxattr(work, CLONE, b"base")
    done = run_code(f"os.listdir({str(work)!r})", NOBODY)
    assert "PermissionError" in done.stderr
    assert stat.S_IMODE(work.stat().st_mode) == 0o700


@pytest.mark.root
def test_another_user_cannot_clone(base: Path, work: Path) -> None:
    (work / "theirs").mkdir()
    os.chown(work / "theirs", NOBODY, NOBODY)
    done = run_code(f"os.setxattr({str(work / 'theirs')!r}, {CLONE!r}, b'base')", NOBODY)
    assert "PermissionError" in done.stderr
    assert os.listdir(work / "theirs") == []


def test_twenty_clones_take_next_to_nothing_and_are_isolated(
    base: Path, work: Path, shared_mount: Mounted
) -> None:
    before = disk_bytes(shared_mount.store)
    for number in range(20):
        (work / str(number)).mkdir()
        os.setxattr(work / str(number), CLONE, b"base")
    assert disk_bytes(shared_mount.store) - before <= 20 * 65_536
    (work / "3" / "file").write_bytes(b"another")
    shutil.rmtree(work / "4" / "sub")
    with (work / "5" / "sub" / "9").open("ab") as file:
        file.write(b"more")
    assert (work / "2" / "file").read_bytes() == b"of the snapshot"
    assert len(os.listdir(work / "5" / "sub")) == FILES
    assert (
        (work / "6" / "sub" / "9").read_bytes() == (base / "sub" / "9").read_bytes() == b"9" * 100
    )
    numbers = {(work / str(number) / "file").stat().st_ino for number in range(20)}
    assert len(numbers) == 20
    assert (base / "file").read_bytes() == b"of the snapshot"


def test_errors_are_errnos(base: Path, work: Path) -> None:
    (work / "used").mkdir()
    (work / "used" / "f").touch()
    (work / "unused").mkdir()
    cases = {
        ("used", b"base"): errno.ENOTEMPTY,
        ("used/f", b"base"): errno.ENOTDIR,
        ("unused", b"missing"): errno.ENOENT,
        ("unused", b"base:missing"): errno.ENOENT,
        ("unused", b"base:file"): errno.ENOTDIR,
        ("unused", b"/"): errno.EINVAL,
    }
    for (name, value), expected in cases.items():
        with pytest.raises(OSError, match=re.escape(os.strerror(expected))):
            os.setxattr(work / name, CLONE, value)


@pytest.mark.program("setfattr", "diff")
def test_a_shell_can_clone(base: Path, work: Path) -> None:
    (work / "run").mkdir()
    run("setfattr", "-n", CLONE, "-v", "base", str(work / "run"))
    subprocess.run(["diff", "-r", str(base), str(work / "run")], check=True, timeout=60)
