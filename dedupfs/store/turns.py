"""Who writes to the index or waits to: each writer holds a shared flock(2) on its file meanwhile.

LMDB itself locks another file, and with fcntl(2). Source: docs/architecture.md, "Paths".
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GIVE_WAY_S = 5.0
"""Others may write without a break; long work goes on all the same, a transaction now and then."""
_GIVE_WAY_STEP_S = 0.0005
_GIVE_WAY_STEP_MAX_S = 0.008


class Turns:
    """The descriptors of one process. Where there is no flock, nobody gives way."""

    def __init__(self, path: Path) -> None:
        self._writer = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._asker = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._writer)
            raise

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Say so to those who ask, while it is ours to write or to wait for that."""
        with suppress(OSError):
            fcntl.flock(self._writer, fcntl.LOCK_SH)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(self._writer, fcntl.LOCK_UN)

    def give_way(self, limit_s: float) -> bool:
        """See ``Database.give_way``."""
        until_s = time.monotonic() + limit_s
        pause_s = _GIVE_WAY_STEP_S
        while True:
            try:
                fcntl.flock(self._asker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    return False
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _GIVE_WAY_STEP_MAX_S)
            except OSError:
                return True
            else:
                fcntl.flock(self._asker, fcntl.LOCK_UN)
                return True

    def close(self) -> None:
        """Ask no more, and keep nobody waiting."""
        for fd in (self._writer, self._asker):
            with suppress(OSError):  # closed before
                os.close(fd)
        self._writer = self._asker = -1
