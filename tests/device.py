"""The device that ordinary users mount with, which some machines keep for root.

It belongs to the machine and not to a test: other tests, other runs too, may need it at the same
time. So whoever comes first opens it to everybody and the last one puts it back. Must not know any
test.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dedupfs.fuse.device import DEVICE

EVERYBODY = 0o666
TURN = Path("/run/dedupfs-tests-device")
"""Locked while the device's mode is looked at or changed; holds the mode to put back, if any."""
USERS = Path("/run/dedupfs-tests-device-users")
"""Locked, shared, by all who need the device open."""


@contextmanager
def device_for_everybody() -> Iterator[None]:
    """Let everybody open the device, as on ordinary distributions; for root.

    A process that was killed in here leaves it open; the next one here puts it back.
    """
    with USERS.open("a") as users:
        with _turn() as kept:
            fcntl.flock(users, fcntl.LOCK_SH)
            _open_to_everybody(kept)
        try:
            yield
        finally:
            with _turn() as kept:
                fcntl.flock(users, fcntl.LOCK_UN)  # of forks as well
                _put_back_if_last(users, kept)


@contextmanager
def _turn() -> Iterator[IO[str]]:
    with TURN.open("a+") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        try:
            kept.seek(0)
            yield kept
        finally:
            kept.flush()
            fcntl.flock(kept, fcntl.LOCK_UN)


def _open_to_everybody(kept: IO[str]) -> None:
    mode = stat.S_IMODE(DEVICE.stat().st_mode)
    if mode & EVERYBODY != EVERYBODY:
        kept.truncate(0)
        kept.write(f"{mode:o}")
        kept.flush()
        os.chmod(DEVICE, EVERYBODY)


def _put_back_if_last(users: IO[str], kept: IO[str]) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    mode = kept.read()
    if mode:
        os.chmod(DEVICE, int(mode, 8))
        kept.truncate(0)
