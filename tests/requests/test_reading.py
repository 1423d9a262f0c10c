"""What a mount is asked by those who look and read: as little as the kernel can do with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.requests.conftest import BIG_BYTES, DIRECTORIES, FILES
from tests.requests.counting import Counted

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

MIB = 1 << 20


def read(path: Path) -> bytes:
    """Open, read and close, without the fstat that Python's ``open`` makes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, MIB)
    finally:
        os.close(descriptor)


def program(*words: str | Path) -> Callable[[int], object]:
    """Return a call that runs a program to its good end."""
    return lambda _number: subprocess.run(words, check=True, capture_output=True, cwd="/")


def test_a_known_name_is_not_asked_for(mount: Counted) -> None:
    assert mount.names(lambda _number: os.stat(mount.known / "d0" / "f0")) == []


def test_a_name_that_does_not_exist_is_not_asked_for_twice(mount: Counted) -> None:
    assert mount.names(lambda _number: os.path.exists(mount.known / "d0" / "absent")) == []


def test_a_cached_file_is_opened_and_released(mount: Counted) -> None:
    path = mount.known / "d0" / "f1"
    assert mount.names(lambda _number: read(path)) == ["open", "release"]


def test_attributes_that_are_known_are_not_asked_for_after_a_read(mount: Counted) -> None:
    """Where files can be written, the kernel takes it that reading has changed the access time
    (fs/fuse/dir.c, fuse_invalidate_atime), once for what it reads from us, not from its cache.
    Where they cannot, nothing is to be gathered: every close would be a reason to ask
    (``Counted.gathers``).
    """
    paths = [mount.known / f"d{number}" / "f2" for number in range(DIRECTORIES)]

    def look_again(path: Path) -> list[str]:
        os.stat(path)
        read(path)
        return [request.name for request in mount.requests(partial(os.stat, path))]

    asked = min(map(look_again, paths), key=len)  # what was known may have been forgotten
    assert asked in ([], [] if mount.read_only else ["getattr"])
    assert mount.names(lambda _number: os.stat(paths[0])) == []


def test_the_target_of_a_symlink_is_asked_for_once(mount: Counted) -> None:
    """By plain pyfuse3 each time: libfuse 3.14 cannot set FUSE_CACHE_SYMLINKS."""
    expected = ["readlink"] if mount.plain else []
    assert mount.names(lambda _number: os.readlink(mount.known / "link")) == expected


def test_find_in_a_known_tree_only_lists(mount: Counted) -> None:
    """The kernel keeps listings, but for plain pyfuse3: there each directory comes in two parts, of
    which the second is empty. Listing a directory has, as reading, changed its access time where it
    can be written: that of the first is asked for once more.
    """
    asked = mount.counts(program("find", mount.known, "-size", "+1"))
    directories = 1 + DIRECTORIES
    if mount.plain:
        assert asked.pop("readdir") <= 2 * directories
    if not mount.read_only:
        assert asked.pop("getattr", 0) <= 1
    assert asked == {"opendir": directories, "releasedir": directories}


def test_a_listing_shows_what_came_went_or_was_renamed(place: Path) -> None:
    directory = place / "listed"
    directory.mkdir()
    names = {f"f{number}" for number in range(300)}  # more than one request brings
    for name in names:
        (directory / name).touch()

    def expect(*now: str) -> None:
        assert set(os.listdir(directory)) == names | set(now)
        assert set(os.listdir(directory)) == names | set(now)

    expect()
    (directory / "came").touch()
    expect("came")
    (directory / "came").rename(directory / "renamed")
    expect("renamed")
    (directory / "renamed").rename(place / "elsewhere")
    expect()
    (place / "elsewhere").rename(directory / "back")
    expect("back")
    (directory / "back").unlink()
    expect()
    with os.scandir(directory) as entries:  # changed while it is listed
        for entry in entries:
            os.unlink(entry)
    assert os.listdir(directory) == []


def test_ls_of_a_known_directory_looks_nothing_up(mount: Counted) -> None:
    """It asks each file for two extended attributes, which the kernel does not keep."""
    asked = mount.counts(program("ls", "-l", mount.known / "d1"))
    if mount.plain:
        assert asked.pop("readdir") <= 2
    if not mount.read_only:
        assert asked.pop("getattr", 0) <= 1
    assert asked.pop("getxattr", 0) <= 3 + 2 * FILES
    assert asked == {"opendir": 1, "releasedir": 1}


def test_an_extended_attribute_is_one_request(mount: Counted) -> None:
    def get(_number: int) -> None:
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(mount.known / "d0" / "f0", "user.absent")

    assert mount.names(get) == ["getxattr"]
    assert mount.names(lambda _number: os.listxattr(mount.known / "d0" / "f0")) == ["listxattr"]


@pytest.mark.root
def test_a_file_is_read_in_requests_of_a_mebibyte(mount: Counted) -> None:
    """But for the first ones, while the kernel's read-ahead grows; root alone raises its limit."""

    def read_cold(_number: int) -> None:
        descriptor = os.open(mount.known / "big", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while os.read(descriptor, 128 << 10):
            pass
        os.close(descriptor)

    sizes = [request.size for request in mount.fewest(read_cold) if request.name == "read"]
    assert sum(sizes) == BIG_BYTES
    assert max(sizes) == MIB
    assert len(sizes) <= BIG_BYTES // MIB + 3


@pytest.mark.program("git")
def test_git_status_asks_for_no_file(writable: Counted, place: Path) -> None:
    """Of a tree that has not changed. What it lists it asks for again: see above, at find."""
    git = ["git", "-C", str(place), "-c", "user.name=n", "-c", "user.email=n@example.org"]
    for directory in ("a", "b"):
        (place / directory).mkdir()
        for number in range(5):
            (place / directory / f"f{number}").write_text(f"{number}")
            os.utime(place / directory / f"f{number}", (1e9, 1e9))  # older than the index
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], ["status"]):
        program(*git, *words)(0)
    status = program("env", "GIT_OPTIONAL_LOCKS=0", *git, "status")
    asked = writable.counts(status)
    closed = asked["release"] if writable.gathers else 0
    assert asked.pop("getattr", 0) <= asked["opendir"] + closed
    assert asked.pop("lookup", 0) <= 8, (
        "absent names, where nothing ever was: it may become a clone"
    )
    assert asked.keys() <= {"open", "release", "opendir", "readdir", "releasedir"}
    assert asked["open"] < 30, "files of git itself"
