"""What the differential test has found once: the steps of each fault, made short.

Method: as test_differential.py; native file system and mount must agree after each step.
"""

from __future__ import annotations

import os

import pytest

from tests.posix.attributes import (
    ACCESS_ACL,
    DEFAULT_ACL,
    Chmod,
    Chown,
    GetXattr,
    ListXattr,
    RemoveXattr,
    SetXattr,
    Stat,
    Utime,
    acl,
)
from tests.posix.choices import ALICE, BOB, CAPABILITY
from tests.posix.contents import Close, Data, Open, Reopen, Truncate, Write
from tests.posix.events import Compare, Fold, Kill
from tests.posix.names import Link, Mkdir, Mknod, Rename, Rmdir, Symlink, Unlink
from tests.posix.pair import Pair, Step
from tests.posix.syscalls import UTIME_OMIT

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

NEW = os.O_RDWR | os.O_CREAT
FIFO, SOCKET = 0o010644, 0o140644
NAMED_TWICE = acl(
    (1, 7, 2**32 - 1),
    (2, 7, 5),
    (2, 6, 5),
    (4, 5, 2**32 - 1),
    (16, 5, 2**32 - 1),
    (32, 1, 2**32 - 1),
)
MINIMAL = acl((1, 7, 2**32 - 1), (4, 5, 2**32 - 1), (32, 1, 2**32 - 1))

EVERYBODY: dict[str, list[Step]] = {
    "attribute names of no namespace are refused": [
        Mkdir(b"d"),
        SetXattr(b"d", "other.x", b"1"),
        GetXattr(b"d", "other.x"),
        RemoveXattr(b"d", "system.x"),
        SetXattr(b"d", "user.", b"1"),
    ],
    "what is open and has no name has attributes": [
        Mknod(b"f", FIFO),
        Mknod(b"s", SOCKET),
        Symlink(b"goal", b"l"),
        Open(1, b"f", os.O_RDWR),
        Open(2, b"s", os.O_PATH),
        Open(3, b"l", os.O_PATH | os.O_NOFOLLOW),
        Open(4, b"g", NEW),
        Write(4, Data(2, 5000)),
        Close(4),
        Open(4, b"g", os.O_PATH),
        Unlink(b"f"),
        Unlink(b"s"),
        Unlink(b"l"),
        Mknod(b"h", 0o100600),
        Rename(b"h", b"g"),
        Stat(1),
        Stat(2),
        Stat(3),
        Stat(4),
        Chmod(1, 0o600),
        Stat(1),
        Fold(),
        Stat(4),
        Reopen(5, 4, os.O_RDWR),
        Write(5, Data(3, 100)),
        Close(5),
        Reopen(5, 4, os.O_RDONLY),
        Stat(5),
        Close(5),
        Close(4),
    ],
    "truncating to the same size marks the times": [
        Open(1, b"f", NEW),
        Truncate(1, 0, watch=(b"f",)),
        Truncate(1, 100, watch=(b"f",)),
        Truncate(1, 100, watch=(b"f",)),
        Truncate(1, 0),
        Open(2, b"f", os.O_WRONLY | os.O_TRUNC, watch=(b"f",)),
    ],
    "an access time at the beginning of 1970 stays": [
        Mkdir(b"d"),
        Utime(b"d", (0, 0), (0, UTIME_OMIT)),
        Stat(b"d"),
    ],
    "an ACL may name one user twice": [
        Mkdir(b"d"),
        SetXattr(b"d", DEFAULT_ACL, NAMED_TWICE),
        SetXattr(b"d", ACCESS_ACL, NAMED_TWICE),
    ],
    "an ACL that is not there can be removed": [
        Mkdir(b"d"),
        RemoveXattr(b"d", DEFAULT_ACL, watch=(b"d",)),
        RemoveXattr(b"d", ACCESS_ACL, watch=(b"d",)),
        SetXattr(b"d", ACCESS_ACL, b"\x02\0\0\0", watch=(b"d",)),
    ],
    "giving a file to its owner clears suid and sgid": [
        Open(1, b"f", NEW),
        Chmod(b"f", 0o6777),
        Chown(b"f", -1, -1, watch=(b"f",)),
        Stat(b"f"),
        Mkdir(b"d", 0o2755),
        Chown(b"d", -1, -1, watch=(b"d",)),
        Stat(b"d"),
    ],
    "a directory that was removed before a crash stays removed": [
        Mkdir(b"d"),
        Mkdir(b"e"),
        Mkdir(b"e/g"),
        Mknod(b"d/f", 0o100644),
        Unlink(b"d/f"),
        Rmdir(b"d"),
        Mkdir(b"d"),
        Mkdir(b"h"),
        Mknod(b"h/f", 0o100644),
        Unlink(b"h/f"),
        Rename(b"e", b"h"),
        Rename(b"h", b"i"),
        Kill(),
        Fold(),
        Compare(),
        Kill(),
    ],
}

ROOT: dict[str, list[Step]] = {
    "root keeps suid when it writes to a file with a capability": [
        Open(1, b"f", NEW),
        Chmod(b"f", 0o4755),
        SetXattr(b"f", "security.capability", CAPABILITY),
        Write(1, Data(2, 100)),
        Stat(b"f"),
        ListXattr(b"f"),
        SetXattr(b"f", "security.capability", CAPABILITY),
        Write(1, Data(2, 100)),
        Stat(b"f"),
    ],
    "a directory keeps its capability when it is given away": [
        Mkdir(b"d"),
        SetXattr(b"d", "security.capability", CAPABILITY),
        Chown(b"d", ALICE, -1),
        ListXattr(b"d"),
    ],
    "trusted attributes are listed to root alone": [
        Mknod(b"f", 0o100644),
        SetXattr(b"f", "trusted.t", b"1"),
        SetXattr(b"f", "user.a", b"1"),
        ListXattr(b"f"),
        ListXattr(b"f", who=2),
    ],
    "who is not in a file's group cannot keep its sgid bit by an ACL": [
        Mknod(b"f", 0o100755),
        Chown(b"f", BOB, ALICE),
        Chmod(b"f", 0o2755),
        SetXattr(b"f", ACCESS_ACL, MINIMAL, who=3),
        Stat(b"f"),
        Mknod(b"g", 0o100755),
        Chown(b"g", ALICE, BOB),
        Chmod(b"g", 0o2755),
        SetXattr(b"g", ACCESS_ACL, MINIMAL, who=2),  # a supplementary group is one, too
        Stat(b"g"),
        Link(b"g", b"h"),
        SetXattr(b"h", ACCESS_ACL, MINIMAL),
        Stat(b"g"),
    ],
}


@pytest.mark.parametrize("steps", EVERYBODY.values(), ids=EVERYBODY.keys())
def test_it_is_as_on_a_native_file_system(shared_pair: Pair, steps: list[Step]) -> None:
    assert shared_pair.run(steps) is None


@pytest.mark.root
@pytest.mark.parametrize("steps", ROOT.values(), ids=ROOT.keys())
def test_it_is_so_for_root_and_others(shared_pair: Pair, steps: list[Step]) -> None:
    assert shared_pair.run(steps) is None
