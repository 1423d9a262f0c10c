"""Modes, owners, times, extended attributes and ACLs on a mount are as on any file system.

Method: system calls and setfacl/getfacl on a real mount of a real view; one daemon for the module.
Other users are acted by processes that gave up root.
"""

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.fuse.harness import run, run_code

pytestmark = pytest.mark.fuse

needs_acl_tools = pytest.mark.skipif(shutil.which("setfacl") is None, reason="acl not installed")
NOBODY = 65534
OTHER = 54321


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def can(path: Path, mode: int, *, uid: int) -> bool:
    """Whether a process of that user may open the file so."""
    done = run_code(f"os.close(os.open({str(path)!r}, {mode}))", uid)
    assert done.returncode == 0 or "PermissionError" in done.stderr
    return done.returncode == 0


def test_modes_and_the_umask(work: Path) -> None:
    old = os.umask(0o027)
    try:
        (work / "d").mkdir()
        (work / "f").touch()
        os.mkfifo(work / "p")
    finally:
        os.umask(old)
    assert (mode_of(work / "d"), mode_of(work / "f"), mode_of(work / "p")) == (0o750, 0o640, 0o640)
    (work / "f").chmod(0o7754)
    assert mode_of(work / "f") == 0o7754


@pytest.mark.root
def test_owners_and_set_gid_directories(work: Path) -> None:
    os.chown(work, 0, OTHER)
    work.chmod(0o2775)
    (work / "f").touch()
    (work / "d").mkdir()
    assert (work / "f").stat().st_gid == OTHER
    assert (work / "d").stat().st_gid == OTHER
    assert mode_of(work / "d") & stat.S_ISGID
    os.chown(work / "f", NOBODY, -1)
    assert ((work / "f").stat().st_uid, (work / "f").stat().st_gid) == (NOBODY, OTHER)


@pytest.mark.root
def test_the_kernel_checks_permissions(work: Path) -> None:
    work.chmod(0o755)
    (work / "f").write_bytes(b"x")
    (work / "f").chmod(0o640)
    os.chown(work / "f", 0, OTHER)
    assert not can(work / "f", os.O_RDONLY, uid=NOBODY)
    assert can(work / "f", os.O_RDONLY, uid=OTHER)
    assert not can(work / "f", os.O_WRONLY, uid=OTHER)


@pytest.mark.root
def test_writing_and_giving_away_clear_suid_and_sgid(work: Path) -> None:
    path = work / "f"
    path.write_bytes(b"x" * 10)
    os.chown(path, NOBODY, NOBODY)
    for change in (
        f"os.write(os.open({str(path)!r}, os.O_WRONLY), b'y')",
        f"os.truncate({str(path)!r}, 3)",
    ):
        path.chmod(0o6777)
        assert run_code(f"{change}", OTHER).returncode == 0
        assert mode_of(path) == 0o777, change
    path.chmod(0o6777)
    os.chown(path, OTHER, OTHER)
    assert mode_of(path) == 0o777


@pytest.mark.root
def test_nobody_takes_set_id_bits_from_another_one_s_file_by_giving_it_to_nobody(
    work: Path,
) -> None:
    path = work / "f"
    path.write_bytes(b"x")
    path.chmod(0o4755)
    assert "PermissionError" in run_code(f"os.chown({str(path)!r}, -1, -1)", OTHER).stderr
    assert mode_of(path) == 0o4755
    path.chmod(0o755)
    assert run_code(f"os.chown({str(path)!r}, -1, -1)", OTHER).returncode == 0


def test_times_are_kept_to_the_nanosecond(work: Path) -> None:
    path = work / "f"
    path.touch()
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    assert path.stat().st_atime_ns == 1_234_567_890_123_456_789
    assert path.stat().st_mtime_ns == 987_654_321_987_654_321
    os.utime(path, ns=(0, -1_500_000_000))
    assert path.stat().st_mtime_ns == -1_500_000_000
    before = path.stat()
    path.write_bytes(b"now")
    assert path.stat().st_mtime_ns > before.st_mtime_ns
    assert path.stat().st_ctime_ns > before.st_ctime_ns


def test_changes_in_a_directory_show_in_its_times(work: Path) -> None:
    os.utime(work, ns=(0, 0))
    (work / "f").touch()
    assert work.stat().st_mtime_ns > 0
    os.utime(work, ns=(0, 0))
    (work / "f").rename(work / "g")
    assert work.stat().st_mtime_ns > 0
    os.utime(work, ns=(0, 0))
    (work / "g").unlink()
    assert work.stat().st_mtime_ns > 0


def test_extended_attributes(work: Path) -> None:
    path = work / "f"
    path.touch()
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(path, "user.a")
    os.setxattr(path, "user.a", b"\0binary\xff")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.big", b"x" * 20_000)
    assert sorted(os.listxattr(path)) == ["user.a", "user.big", "user.empty"]
    assert os.getxattr(path, "user.a") == b"\0binary\xff"
    assert os.getxattr(path, "user.empty") == b""
    assert os.getxattr(path, "user.big") == b"x" * 20_000
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.a", b"", os.XATTR_CREATE)
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.setxattr(path, "user.new", b"", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"2", os.XATTR_REPLACE)
    os.removexattr(path, "user.big")
    assert sorted(os.listxattr(path)) == ["user.a", "user.empty"]
    os.setxattr(work, "user.of-a-directory", b"1")
    assert os.listxattr(work) == ["user.of-a-directory"]


@pytest.mark.root
def test_attributes_of_the_system(work: Path) -> None:
    path = work / "f"
    path.touch()
    os.setxattr(path, "trusted.a", b"1")
    assert os.getxattr(path, "trusted.a") == b"1"
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(path, "security.capability", capability)
    assert os.getxattr(path, "security.capability") == capability


@pytest.mark.root
@needs_acl_tools
def test_an_acl_lets_one_more_user_in_and_chmod_shuts_it_out(work: Path) -> None:
    path = work / "f"
    path.write_bytes(b"x")
    path.chmod(0o600)
    run("setfacl", "-m", f"u:{OTHER}:rw", path)
    assert f"user:{OTHER}:rw-" in run("getfacl", "-cpn", path)
    assert mode_of(path) == 0o660
    assert can(path, os.O_RDWR, uid=OTHER)
    assert not can(path, os.O_RDONLY, uid=NOBODY)
    path.chmod(0o640)
    assert "mask::r--" in run("getfacl", "-cpn", path)
    assert can(path, os.O_RDONLY, uid=OTHER)
    assert not can(path, os.O_RDWR, uid=OTHER)
    run("setfacl", "-b", path)
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert not can(path, os.O_RDONLY, uid=OTHER)


@needs_acl_tools
def test_an_acl_that_is_only_a_mode_leaves_no_attribute(work: Path) -> None:
    path = work / "f"
    path.touch()
    run("setfacl", "--set", "u::rwx,g::r-x,o::---", path)
    assert mode_of(path) == 0o750
    assert os.listxattr(path) == []


@needs_acl_tools
def test_a_default_acl_replaces_the_umask_below_it(work: Path) -> None:
    run("setfacl", "-d", "-m", f"u:{OTHER}:rwx,g::rwx,o::r-x", work)
    old = os.umask(0o077)
    try:
        (work / "d").mkdir()
        (work / "f").touch()
        (work / "d" / "g").touch(0o600)
    finally:
        os.umask(old)
    assert mode_of(work / "f") == 0o664
    assert mode_of(work / "d") == 0o775
    assert mode_of(work / "d" / "g") == 0o600
    assert f"default:user:{OTHER}:rwx" in run("getfacl", "-cpn", work / "d")
    assert f"user:{OTHER}:rwx" in run("getfacl", "-cpn", work / "f")
    run("setfacl", "-k", work)
    (work / "h").touch()
    assert os.listxattr(work / "h") == []


def test_statfs_tells_the_store_s_disk(work: Path) -> None:
    figures = os.statvfs(work)
    assert figures.f_blocks > 0
    assert 0 < figures.f_bavail <= figures.f_bfree <= figures.f_blocks
    assert figures.f_namemax == 255
