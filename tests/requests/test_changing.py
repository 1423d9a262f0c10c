"""What a mount is asked by those who make, write and remove.

The kernel takes it that any change of names in a directory has changed all of its attributes
(fs/fuse/dir.c, fuse_dir_changed), so it asks for those once more before the next change: the calls
here are made in a directory that was looked at just before.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.requests.counting import Counted, Request, Try

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

MIB = 1 << 20


def in_known(directory: Path, call: Callable[[Path], object], *names: str) -> tuple[Try, Try]:
    """Return a call in one of some directories, not yet changed; and what is done before it: a look
    at the directory and at names in it, so that the kernel knows their attributes.
    """
    directories = [directory / f"known{number}" for number in range(8)]
    for known in directories:
        known.mkdir()

    def look(number: int) -> None:
        for path in (directory, directories[number], *map(directories[number].joinpath, names)):
            os.stat(path)

    return lambda number: call(directories[number]), look


def test_a_small_file_costs_five_requests_and_nothing_else(writable: Counted, place: Path) -> None:
    """One of them asks for the attribute ``security.capability`` before it is written; one more
    tells the time where the kernel gathers what is written.
    """

    def make(directory: Path) -> None:
        descriptor = os.open(directory / "new", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(descriptor, b"x" * 4000)
        os.close(descriptor)

    expected = Counter(["lookup", "create", "getxattr", "write", "release"])
    if writable.gathers:
        expected["setattr"] = 1
    assert writable.counts(*in_known(place, make)) == expected


def test_a_file_that_is_written_anew_is_not_looked_up(writable: Counted, place: Path) -> None:
    def write(directory: Path) -> None:
        descriptor = os.open(directory / "there", os.O_WRONLY)
        os.write(descriptor, b"x" * 4000)
        os.close(descriptor)

    write_known = in_known(place, write, "there")
    for directory in place.iterdir():
        (directory / "there").write_bytes(b"content")
    asked = writable.counts(*write_known)
    assert asked.pop("getxattr", 0) <= 1, "security.capability, once a file"
    assert asked.pop("setattr", 0) <= (1 if writable.gathers else 0)
    assert asked == {"open": 1, "write": 1, "release": 1}


def test_large_writes_arrive_by_the_mebibyte(writable: Counted, place: Path) -> None:
    def write(number: int) -> None:
        descriptor = os.open(place / f"large{number}", os.O_WRONLY | os.O_CREAT)
        for start in range(4):
            os.write(descriptor, bytes([start + 1]) * MIB)
        os.close(descriptor)

    asked = writable.counts(write)
    assert 4 <= asked["write"] <= (8 if writable.gathers else 4)
    assert asked["getxattr"] <= (asked["write"] if writable.plain else 1)


def test_small_writes_ask_for_no_attribute_each(writable: Counted, place: Path) -> None:
    """Plain pyfuse3 does: libfuse 3.14 cannot set FUSE_HANDLE_KILLPRIV_V2."""

    def write(number: int) -> None:
        descriptor = os.open(place / f"pieces{number}", os.O_WRONLY | os.O_CREAT)
        for _ in range(64):
            os.write(descriptor, b"x" * 4096)
        os.close(descriptor)

    asked = writable.counts(write)
    assert asked["write"] <= (2 if writable.gathers else 64)
    assert asked["getxattr"] <= (64 if writable.plain else 1)


CALLS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "mkdir": (lambda top: os.mkdir(top / "new"), ["lookup", "mkdir"]),
    "rmdir": (lambda top: os.rmdir(top / "empty"), ["rmdir"]),
    "unlink": (lambda top: os.unlink(top / "f"), ["unlink"]),
    "rename": (lambda top: os.rename(top / "f", top / "new"), ["lookup", "rename"]),
    "rename over": (lambda top: os.rename(top / "f", top / "other"), ["lookup", "rename"]),
    "symlink": (lambda top: os.symlink("f", top / "new"), ["lookup", "symlink"]),
    "link": (lambda top: os.link(top / "f", top / "new"), ["lookup", "link"]),
    "mknod": (lambda top: os.mkfifo(top / "new"), ["lookup", "mknod"]),
    "chmod": (lambda top: os.chmod(top / "f", 0o600), ["setattr"]),
    "utime": (lambda top: os.utime(top / "f", (1, 1)), ["setattr"]),
    "truncate": (lambda top: os.truncate(top / "f", 3), ["getxattr", "setattr"]),
    "setxattr": (lambda top: os.setxattr(top / "f", "user.a", b"b"), ["setxattr"]),
}


TOLD = {"unlink": 1, "rename": 1, "rename over": 2, "link": 1, "setxattr": 1}
"""Files whose time the kernel has changed, where it owns times; it tells us at once or later."""


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_changes_a_name_asks_for_that_alone(
    writable: Counted, place: Path, name: str
) -> None:
    """Of a new name, or one that is replaced, first what it is; before a file's first change also
    for ``security.capability``. Nothing comes after, such as the attributes of what was made.
    """
    call, expected = CALLS[name]
    known = in_known(place, call, "empty", "f", "other")
    for directory in place.iterdir():
        (directory / "empty").mkdir()
        for file in ("f", "other"):
            (directory / file).write_bytes(b"content")
    asked = writable.names(*known)
    if writable.gathers and name in TOLD:
        told = [request for request in asked if request == "setattr"]
        assert len(told) <= TOLD[name]
        asked = [request for request in asked if request != "setattr"]
    assert asked == expected


def test_what_was_just_made_is_known(writable: Counted, place: Path) -> None:
    def make(number: int) -> list[Request]:
        made = place / f"made{number}"
        made.mkdir()
        return writable.requests(partial(os.stat, made))

    asked = min(map(make, range(3)), key=len)  # what was known may have been forgotten
    assert asked[1:] == [], "at most of the directory above"
    assert writable.names(lambda _number: os.stat(place / "made0")) == []
