"""What a mount gives to whom: other users, set-user-id programs, device nodes, child processes.

Method: real mounts, as root and through fusermount3; other users are processes that gave up root.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("pyfuse3")

from tests.device import device_for_everybody
from tests.fuse.harness import Daemons, Mounted, run_code

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.unmeasured]

NOBODY = 65534
OTHER = 54321


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory where others may look, on a device that ordinary users may open."""
    with tempfile.TemporaryDirectory(prefix="dedupfs-") as name, device_for_everybody():
        directory = Path(name).resolve()
        os.chown(directory, NOBODY, NOBODY)
        directory.chmod(0o755)
        yield directory


@pytest.fixture(scope="module")
def daemons_here(place: Path) -> Iterator[dict[str, Mounted]]:
    """Three mounts: root's own, root's for all, an ordinary user's."""
    as_root, as_user = Daemons(place), Daemons(place, user=NOBODY)
    try:
        yield {
            "own": as_root.start("own", store="root-store"),
            "all": as_root.start("all", store="root-store", view="all", allow_other=True),
            "user": as_user.start("user", store="user-store"),
        }
    finally:
        as_root.end_all()
        as_user.end_all()
    assert as_root.complaints() == as_user.complaints() == []


def test_a_mount_is_its_owners_alone(daemons_here: dict[str, Mounted]) -> None:
    for name in ("own", "user"):
        path = daemons_here[name].path
        for uid in (NOBODY, OTHER):
            if (name, uid) == ("user", NOBODY):
                continue
            done = run_code(f"os.listdir({str(path)!r})", uid)
            assert "PermissionError" in done.stderr, (name, uid)
    with pytest.raises(PermissionError):
        daemons_here["user"].path.stat()  # not even root's, unless he becomes that user
    done = run_code(f"print(os.listdir({str(daemons_here['all'].path)!r}))", OTHER)
    assert done.stdout == "[]\n", done.stderr


def test_every_mount_is_nosuid_and_nodev(daemons_here: dict[str, Mounted]) -> None:
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    for mounted in daemons_here.values():
        (line,) = [line for line in lines if line.split(" ")[4] == str(mounted.path)]
        options = line.split(" ")[5].split(",")
        assert {"nosuid", "nodev"} <= set(options), line
        assert ("allow_other" in line) == (mounted.path.name == "all")


def effective_user(program: Path, uid: int) -> str:
    code = f"import subprocess; print(subprocess.check_output([{str(program)!r}, '-u'], text=True))"
    done = run_code(code, uid)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_set_user_id_program_gives_nothing(daemons_here: dict[str, Mounted], place: Path) -> None:
    program = shutil.which("id")
    assert program is not None
    outside, inside = place / "id", daemons_here["all"].path / "id"
    for path in (outside, inside):
        shutil.copy(program, path)
        path.chmod(0o4755)
        assert stat.S_IMODE(path.stat().st_mode) == 0o4755
    if effective_user(outside, OTHER) != "0":
        pytest.skip("set-user-id programs do nothing here anyway")
    assert effective_user(inside, OTHER) == str(OTHER)


def test_a_device_node_cannot_be_opened(daemons_here: dict[str, Mounted]) -> None:
    node = daemons_here["all"].path / "null"
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert stat.S_ISCHR(node.stat().st_mode)
    with pytest.raises(PermissionError):
        node.open("rb")
    done = run_code(f"os.mknod({str(node.with_name('mine'))!r}, 0o20666, 259)", OTHER)
    assert "PermissionError" in done.stderr


def attempt(path: Path, name: str, value: bytes, uid: int) -> str:
    code = (
        f"\ntry: os.setxattr({str(path)!r}, {name!r}, {value!r})\n"
        "except OSError as exc: import errno; print(errno.errorcode[exc.errno])\n"
        "else: print('done')"
    )
    done = run_code(code, uid)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_attributes_that_an_ordinary_user_may_not_set(daemons_here: dict[str, Mounted]) -> None:
    path = daemons_here["all"].path / "attributes"
    path.touch()
    os.chown(path, OTHER, OTHER)
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in ((1, 7), (4, 7), (32, 7))
    )
    capability = struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)
    assert attempt(path, "user.fine", b"v", OTHER) == "done"
    for name, value in (
        ("trusted.x", b"v"),
        ("security.x", b"v"),
        ("security.capability", capability),
        ("user.dedupfs.store", b"v"),
        ("user.dedupfs.", b"v"),
    ):
        assert attempt(path, name, value, OTHER) == "EPERM", name
    for name, value in (("user.fine", b"w"), ("system.posix_acl_access", acl)):
        assert attempt(path, name, value, NOBODY) in ("EPERM", "EACCES"), name
    assert os.listxattr(path) == ["user.fine"]


def test_attributes_of_one_file_have_an_end(daemons_here: dict[str, Mounted]) -> None:
    path = daemons_here["all"].path / "many"
    path.touch()
    os.setxattr(path, "user.largest", bytes(65_536))
    with pytest.raises(OSError, match="Argument list too long"):
        os.setxattr(path, "user.larger", bytes(65_537))
    for tail, size in ((b"n" * 200, 1), (b"v", 65_536)):
        path.unlink()
        path.touch()
        number, code = 0, 0
        while not code and number < 100_000:
            try:
                os.setxattr(path, b"user.%d%s" % (number, tail), bytes(size))
                number += 1
            except OSError as exc:
                code = exc.errno or 0
        assert code == errno.ENOSPC
        assert number > 50
        assert len(os.listxattr(path)) == number
        path.chmod(0o600)  # all of it is journaled once more, and fits


def test_nothing_that_a_daemon_has_open_goes_to_its_children(
    daemons_here: dict[str, Mounted],
) -> None:
    for mounted in daemons_here.values():
        flags = flags_of_open_files(mounted.process.pid)
        assert len(flags) > 3
        leaked = [fd for fd, bits in flags.items() if fd > 2 and not bits & os.O_CLOEXEC]
        fds = Path(f"/proc/{mounted.process.pid}/fd")
        assert not leaked, [os.readlink(fds / str(fd)) for fd in leaked]


def flags_of_open_files(pid: int) -> dict[int, int]:
    """Return the flags of each open file, but for what is closed just while we look."""
    flags = {}
    for fd in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            flags[int(fd.name)] = int(fd.read_text().splitlines()[1].split()[1], 8)
    return flags


def test_the_helper_runs_with_an_environment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Method: a helper that writes down what it is given, found on the caller's PATH."""
    from dedupfs.fuse import mountpoints

    helper = tmp_path / "fusermount3"
    helper.write_text(f"#!/bin/sh\nenv > {tmp_path}/env\nls /proc/$$/fd > {tmp_path}/fds\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("SECRET", "a secret")
    with (tmp_path / "open").open("w") as file:
        # A number that no shell takes for itself: it has its script at 10, what it saves above.
        kept = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD, 100)
    try:
        os.set_inheritable(kept, True)
        assert mountpoints.fusermount("-u", "x") is None
        assert str(kept) not in (tmp_path / "fds").read_text().split()
    finally:
        os.close(kept)
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"LC_ALL", "PATH", "PWD", "OLDPWD", "SHLVL", "_"}
    assert subprocess.run(["true"], check=True).returncode == 0
