"""What a caller may do to make a daemon or a command work for ever, or need all memory.

Method: real mounts and commands; directories deeper than Python's stack and than any path may be.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.store import Store
from tests.cli.conftest import Run
from tests.conftest import Scale
from tests.fuse.harness import Daemons

pytestmark = pytest.mark.unmeasured

BEYOND_THE_STACK = 1_100


@contextmanager
def bottom_of(top: Path, depth: int) -> Iterator[int]:
    """Make ``depth`` directories inside each other, and yield the last one's descriptor."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def write_at(directory_fd: int, name: str, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=directory_fd)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


@pytest.fixture
def deep_place(tmp_path: Path) -> Iterator[Path]:
    """A directory that is emptied by rm(1): what pytest would do it with has a stack, too."""
    yield tmp_path
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


@pytest.mark.fuse
@pytest.mark.slow
def test_directories_deeper_than_the_stack(
    deep_place: Path, daemons: Daemons, run: Run, scale: Scale
) -> None:
    depth = scale(BEYOND_THE_STACK, 4_000)
    store, source = deep_place / "store", deep_place / "source"
    source.mkdir()
    with bottom_of(source, depth) as bottom:
        write_at(bottom, "leaf", b"bottom")
    mounted = daemons.start()
    with bottom_of(mounted.path, depth) as bottom:
        write_at(bottom, "leaf", b"bottom")
    run("commit", mounted.path, "a")  # folds it
    with bottom_of(mounted.path / "d", 0) as second:
        write_at(second, "changed", b"1")
        os.rename("d", "renamed", src_dir_fd=second, dst_dir_fd=second)
    assert mounted.end() == 0
    mounted = daemons.start()
    assert sorted(os.listdir(mounted.path / "d")) == ["changed", "renamed"]
    assert mounted.end() == 0
    run("import", store, source, "b")
    run("import", store, source, "c")
    assert run("find", store, "leaf", "b").out.count("/d") == depth - 1
    run("diff", store, "a", "b")
    run("du", store)
    run("export", store, "b", deep_place / "out")
    run("export", store, "b", "--tar", deep_place / "out.tar")
    run("reindex", store)
    run("scrub", store)
    run("rm", store, "--no-gc", "c")
    run("gc", store)
    with Store.open(store) as opened:
        assert [str(problem) for problem in check(opened).problems] == []


@pytest.mark.fuse
def test_a_file_of_terabytes_that_are_not_there(tmp_path: Path, daemons: Daemons, run: Run) -> None:
    mounted = daemons.start()
    path = mounted.path / "huge"
    path.touch()
    with path.open("r+b") as file:
        for size in (1 << 46 | 1, 1 << 62, (1 << 63) - 1):
            with pytest.raises(OSError, match="File too large"):
                os.truncate(path, size)
            with pytest.raises(OSError, match="File too large"):
                os.pwrite(file.fileno(), b"x", size - 1)
        assert path.stat().st_size == 0
        for start in range(1 << 30, 1 << 43, 1 << 40):
            os.pwrite(file.fileno(), b"x" * 5000, start)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 5, (1 << 30) + 4998) == b"xx\0\0\0"
    size = path.stat().st_size
    assert size > 1 << 42
    run("commit", mounted.path, "s")
    assert mounted.end() == 0
    mounted = daemons.start()
    assert path.stat().st_size == size
    assert (mounted.path / "s" / "huge").stat().st_size == size
    assert mounted.end() == 0
    with Store.open(mounted.store) as store:
        assert check(store).ok


def test_an_import_of_more_attributes_than_fit_keeps_the_file(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(b"kept")
    number = 0
    while number < 400:
        try:
            os.setxattr(source / "f", f"user.{number:04}{'n' * 200}", b"")
        except OSError as exc:
            pytest.skip(f"this file system takes {number} attributes: {exc.strerror}")
        number += 1
    run("init", tmp_path / "store")
    said = run("import", tmp_path / "store", source, "s", code=7).err
    assert "f: its extended attributes are missing" in said
    assert run("cat", tmp_path / "store", "s:f").out == "kept"
    run("check", tmp_path / "store")
