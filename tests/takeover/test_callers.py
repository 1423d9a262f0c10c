"""What callers keep when the daemon is killed: handles, bytes, times, locks, places, numbers.

Method: a real supervised mount in which things are open, SIGKILL, and the same things once more.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.takeover.conftest import Mount
from tests.takeover.harness import Supervised, helper

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

SMALL, STAGED = 3000, 1 << 20


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def fold(mount: Supervised) -> None:
    Supervised.command("commit", mount.store, f"fold-{time.monotonic_ns()}")


@pytest.mark.parametrize("size", [0, SMALL, STAGED])
def test_a_handle_goes_on_where_it_was(mount: Mount, size: int) -> None:
    mounted = mount()
    data = content(size)
    with opened(mounted.path / "f") as fd:
        os.write(fd, data)
        before = os.fstat(fd)
        mounted.kill_daemon()
        assert os.fstat(fd) == before
        assert os.pread(fd, size + 1, 0) == data
        os.write(fd, b"more")
        mounted.kill_daemon()
        os.fsync(fd)
        assert os.pread(fd, size + 5, 0) == data + b"more"
    assert (mounted.path / "f").read_bytes() == data + b"more"


@pytest.mark.parametrize("folded", [False, True], ids=["journal", "folded"])
@pytest.mark.parametrize("settled", [False, True], ids=["new", "settled"])
@pytest.mark.parametrize("size", [SMALL, STAGED])
def test_a_file_without_a_name_lives_on(
    mount: Mount, size: int, settled: bool, folded: bool
) -> None:
    mounted = mount()
    data = content(size)
    if settled:
        (mounted.path / "f").write_bytes(data)
        fold(mounted)
    with opened(mounted.path / "f") as fd:
        if not settled:
            os.write(fd, data)
        os.unlink(mounted.path / "f")
        if folded:
            fold(mounted)
        mounted.kill_daemon()
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, size + 1, 0) == data
        os.pwrite(fd, b"changed", size // 2)
        os.fchmod(fd, 0o600)
        mounted.kill_daemon()
        expected = bytearray(data)
        expected[size // 2 : size // 2 + 7] = b"changed"
        assert os.pread(fd, size + 8, 0) == bytes(expected)
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        os.ftruncate(fd, 5)
        if folded:
            fold(mounted)
        mounted.kill_daemon()
        assert os.pread(fd, size + 8, 0) == bytes(expected[:5])
    assert "f" not in os.listdir(mounted.path)


def test_another_program_takes_over_what_is_open(mount: Mount) -> None:
    mounted = mount()
    with opened(mounted.path / "f") as fd:
        os.write(fd, b"first")
        os.unlink(mounted.path / "f")
        mounted.upgrade()
        os.write(fd, b", second")
        mounted.kill_daemon()
        assert os.pread(fd, 20, 0) == b"first, second"
        mounted.upgrade()
        assert os.pread(fd, 20, 0) == b"first, second"


def test_times_stay_to_the_nanosecond(mount: Mount) -> None:
    mounted = mount()
    path = mounted.path / "f"
    with opened(path) as fd:
        os.write(fd, content(STAGED))
        os.write(fd, content(STAGED, 2))
        seen = [os.fstat(fd).st_mtime_ns]
        mounted.kill_daemon()
        seen.append(os.fstat(fd).st_mtime_ns)
        os.utime(fd, ns=(10**18, 10**18 + 1))
        mounted.kill_daemon()
        assert os.fstat(fd).st_mtime_ns == 10**18 + 1
        os.write(fd, b"x")
        last_ns = os.fstat(fd).st_mtime_ns
    mounted.kill_daemon()
    assert seen[0] == seen[1]
    assert path.stat().st_mtime_ns == last_ns


def test_locks_are_still_held(mount: Mount) -> None:
    mounted = mount()
    code = (
        "import fcntl, sys\n"
        "fd = open(sys.argv[1], 'r+b')\n"
        "def taken(lock):\n"
        "    try: lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    except BlockingIOError: return True\n"
        "    lock(fd, fcntl.LOCK_UN); return False\n"
        "for line in sys.stdin: print(taken(fcntl.flock), taken(fcntl.lockf), flush=True)\n"
    )
    with opened(mounted.path / "f") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        other = helper(code, mounted.path / "f")
        assert other.stdin is not None
        assert other.stdout is not None
        for killed in (False, True):
            if killed:
                mounted.kill_daemon()
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "True True\n"
        fcntl.flock(fd, fcntl.LOCK_UN)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "False False\n"
        other.stdin.close()
        other.stdout.close()
        assert other.wait(60) == 0


def test_a_listing_goes_on_behind_its_cookie(mount: Mount) -> None:
    mounted = mount()
    names = {f"entry-{number:05d}-{'x' * 100}" for number in range(2000)}
    for name in names:
        (mounted.path / name).touch()
    found = []
    with os.scandir(mounted.path) as entries:
        for number, entry in enumerate(entries):
            found.append(entry.name)
            if number == 10:
                mounted.kill_daemon()
    assert sorted(found) == sorted(names)


def test_a_working_directory_that_was_removed_is_still_one(mount: Mount) -> None:
    mounted = mount()
    (mounted.path / "d").mkdir()
    code = (
        "import os, sys\n"
        "os.chdir(sys.argv[1]); print('in', flush=True)\n"
        "for line in sys.stdin:\n"
        "    attr = os.stat('.')\n"
        "    print(attr.st_nlink, os.listdir('.'), os.path.exists('f'), flush=True)\n"
    )
    inside = helper(code, mounted.path / "d")
    assert inside.stdin is not None
    assert inside.stdout is not None
    assert inside.stdout.readline() == "in\n"
    os.rmdir(mounted.path / "d")
    for step in ("nothing", "kill", "fold", "kill"):
        if step == "kill":
            mounted.kill_daemon()
        elif step == "fold":
            fold(mounted)
        inside.stdin.write("\n")
        inside.stdin.flush()
        assert inside.stdout.readline() == "0 [] False\n"
    inside.stdin.close()
    inside.stdout.close()
    assert inside.wait(60) == 0


def test_a_shared_mapping_is_written_by_the_next_daemon(mount: Mount) -> None:
    mounted = mount()
    path = mounted.path / "f"
    path.write_bytes(bytes(STAGED))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[:5] = b"first"
        mounted.kill_daemon()
        mapping[-4:] = b"last"
        mapping.flush()
    mounted.kill_daemon()
    data = path.read_bytes()
    assert (data[:5], data[-4:], len(data)) == (b"first", b"last", STAGED)


@pytest.mark.parametrize("options", [(), ("--read-only",), ("--ephemeral",)])
def test_numbers_stay_what_they_are(mount: Mount, tmp_path: Path, options: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    for number in range(5):
        (source / f"d{number}" / "sub").mkdir(parents=True)
        (source / f"d{number}" / "sub" / "f").write_bytes(b"%d" % number)
    Supervised.command("init", tmp_path / "store")
    Supervised.command("import", tmp_path / "store", source, "one")
    mounted = mount("mnt", *options)

    def numbers() -> dict[str, int]:
        return {str(path): path.stat().st_ino for path in sorted(mounted.path.rglob("*"))}

    before = numbers()
    with opened(mounted.path / "one" / "d3" / "sub" / "f", os.O_RDONLY) as fd:
        mounted.kill_daemon()
        assert numbers() == before
        assert os.pread(fd, 10, 0) == b"3"
        Supervised.command("rm", mounted.store, "one")
        Supervised.command("gc", mounted.store)
        mounted.kill_daemon()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # so that the new daemon is asked
        assert os.pread(fd, 10, 0) == b"3"


def test_the_view_stays_taken_while_nobody_serves_it(mount: Mount, tmp_path: Path) -> None:
    """The lock is the supervisor's, too: no other mount of the view can come in between."""
    mounted = mount()
    mounted.kill_daemon()
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(AssertionError, match="in use by process"):
        Supervised.command("mount", mounted.store, other)
