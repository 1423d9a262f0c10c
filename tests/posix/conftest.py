"""The pair of file systems that the tests compare: tmpfs, and a mount of a store next to it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.device import device_for_everybody
from tests.fuse.harness import REPOSITORY, Daemons
from tests.posix.choices import ALICE, BOB
from tests.posix.pair import Pair, User

SHARED_MEMORY = Path("/dev/shm")
NOBODY = 65534
"""An ordinary user that fusermount3 finds by name."""
ROOT_AND_USERS = (User(), User(), User(ALICE, (BOB,)), User(BOB))
"""Two processes of root, for their locks, and two users with a group in common."""

MakePair = Callable[..., Pair]


@contextmanager
def pairs() -> Iterator[MakePair]:
    """Yield a function that makes a pair; in the end the store must be in order.

    Its directory is one that other users may enter, which those of pytest are not.
    """
    with tempfile.TemporaryDirectory(prefix="dedupfs-") as name, ExitStack() as stack:
        directory = Path(name).resolve()
        directory.chmod(0o755)

        def make(users: Sequence[User] = (User(),), **options: object) -> Pair:
            native = stack.enter_context(native_directory(directory, users[0]))
            daemons = Daemons(directory, user=users[0].uid)
            if users[0].uid is not None:
                (directory / "store").mkdir()
                os.chown(directory / "store", users[0].uid, users[0].uid)
            stack.callback(daemons.end_all)
            pair = Pair(daemons, native, users, options)
            stack.callback(end, pair)
            return pair

        yield make


@pytest.fixture
def make_pair() -> Iterator[MakePair]:
    """Return a function that makes the test's own pair."""
    with pairs() as make:
        yield make


@contextmanager
def native_directory(directory: Path, user: User) -> Iterator[Path]:
    """Yield an empty directory on a tmpfs: our own as root, in /dev/shm otherwise.

    Not ext4, which gives inode numbers again and has room for 4 KiB of attributes. The mount
    ignores devices and reads without marking the time, and so does this.
    """
    native = directory / "native"
    native.mkdir()
    if os.geteuid() == 0:
        options = "noatime,nodev,nosuid,inode64,size=2g,mode=0755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", native], check=True)
        try:
            if user.uid is not None:
                os.chown(native, user.uid, user.uid)
            yield native
        finally:
            subprocess.run(["umount", native], check=True)
        return
    if not (SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)):
        pytest.skip("no tmpfs to compare with")
    native = Path(tempfile.mkdtemp(dir=SHARED_MEMORY))
    try:
        yield native
    finally:
        subprocess.run(["rm", "-rf", native], check=True)


def end(pair: Pair) -> None:
    """End actors and daemons; neither a daemon nor ``check`` may have complained."""
    try:
        pair.close()
    finally:
        pair.daemons.end_all()
    assert pair.daemons.complaints() == pair.daemons.expected_complaints
    check = [sys.executable, "-m", "dedupfs", "check", str(pair.mounted.store)]
    done = subprocess.run(check, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(params=[True, False], ids=["cached", "uncached"])
def writes(request: pytest.FixtureRequest) -> dict[str, object]:
    """Options of a mount whose writes the kernel keeps, or hands over at once.

    It keeps them only where a supervisor would start another daemon; these tests are none, and so a
    daemon's death is a mount's.
    """
    return {"supervisor": os.getpid()} if request.param else {}


@pytest.fixture
def user_pair(make_pair: MakePair, writes: dict[str, object]) -> Iterator[Pair]:
    """A pair of an ordinary user's, mounted through fusermount3 for him: two processes of his.

    For root; whoever is none has ``pair``.
    """
    with device_for_everybody():
        yield make_pair((User(NOBODY), User(NOBODY)), **writes)


def anybody_s(make: MakePair, **options: object) -> Pair:
    """Return a pair for whoever runs the tests; for root one with two other users."""
    if os.geteuid() == 0:
        return make(ROOT_AND_USERS, allow_other=True, **options)
    return make((User(), User()), **options)


@pytest.fixture
def pair(make_pair: MakePair, writes: dict[str, object]) -> Pair:
    """A pair of the test's own."""
    return anybody_s(make_pair, **writes)


@pytest.fixture(scope="module")
def shared_pair() -> Iterator[Pair]:
    """One pair for all tests of a module."""
    with pairs() as make:
        yield anybody_s(make)
