"""What is open in a snapshot that another process removes stays open, whoever serves it.

Method: a real supervised mount, the snapshot removed and its name given to another one, what may be
freed freed, SIGKILL or an upgrade; then what no page cache has is asked for.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.fuse.harness import eventually
from tests.takeover.conftest import Mount
from tests.takeover.harness import Supervised

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

BYTES = 1 << 20
NAMES = ["big", "left", "right"]


def make_snapshot(store: Path, source: Path, content: bytes) -> None:
    directory = source / "sub"
    directory.mkdir(parents=True)
    (directory / "big").write_bytes(content)
    (directory / "left").write_bytes(content[:100])
    os.link(directory / "left", directory / "right")
    Supervised.command("import", store, source, "one")


def pack_blocks(store: Path) -> int:
    return sum(path.stat().st_blocks for path in (store / "packs").rglob("*") if path.is_file())


@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=["writable", "read-only"])
def test_what_is_open_in_a_removed_snapshot_outlives_daemons(
    mount: Mount, tmp_path: Path, options: tuple[str, ...]
) -> None:
    store, content = tmp_path / "store", random.Random(1).randbytes(BYTES)
    Supervised.command("init", store)
    make_snapshot(store, tmp_path / "old", content)
    mounted = mount("mnt", *options)
    old = mounted.path / "one" / "sub"
    fds = [os.open(old / name, os.O_RDONLY) for name in NAMES]
    directory = os.open(old, os.O_RDONLY | os.O_DIRECTORY)
    attributes = [os.fstat(fd) for fd in (*fds, directory)]
    assert os.pread(fds[0], 100, 0) == content[:100]

    Supervised.command("rm", store, "one")
    make_snapshot(store, tmp_path / "new", b"n" * 1000)
    Supervised.command("gc", store)
    # What others change in the catalogue may come a second late.
    assert eventually(lambda: (old / "big").read_bytes() == b"n" * 1000)
    for take_over in (mounted.kill_daemon, mounted.kill_daemon, mounted.upgrade):
        take_over()
        for fd in fds:  # the answer is to be the daemon's
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fds[0], BYTES + 1, 0) == content
        assert [os.pread(fd, 200, 0) for fd in fds[1:]] == [content[:100]] * 2
        assert [os.fstat(fd) for fd in (*fds, directory)] == attributes
        assert sorted(os.listdir(directory)) == NAMES
        assert os.stat("big", dir_fd=directory) == attributes[0]
        assert os.listdir(mounted.path) == ["one"]
        assert (old / "big").read_bytes() == b"n" * 1000
        assert (old / "big").stat().st_ino != attributes[0].st_ino

    Supervised.command("gc", store)
    assert pack_blocks(store) >= BYTES // 512
    for fd in (*fds, directory):
        os.close(fd)
    mounted.end()
    Supervised.command("gc", store)
    assert pack_blocks(store) < BYTES // 1024
