"""A command that is killed at its n-th call of the disk, or a moment after.

    python -m tests.kills.dying COUNT SPIN_US COMMAND...

SIGKILL comes from a second thread, after a short spin, so it may hit LMDB's own writes as well. The
last line on standard error of a command that got to its end is "calls N".
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from dedupfs.cli import main
from dedupfs.store.realdisk import RealDisk

CHANGING = (
    *("open", "pwrite", "fsync", "fdatasync", "fsync_dir", "truncate", "punch", "reserve"),
    *("chmod", "mkdir", "rename", "link", "unlink", "lock", "pread", "preadv"),
)


class Countdown:
    """Counts calls; starts the end of this process at one of them."""

    def __init__(self, count: int, spin_us: int) -> None:
        self.calls = 0
        self._count = count
        self._spin_s = spin_us / 1e6

    def counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self._count:
                threading.Thread(target=self._die, daemon=True).start()
            return method(*arguments, **options)

        return call

    def _die(self) -> None:
        stop = time.perf_counter() + self._spin_s
        while time.perf_counter() < stop:
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    countdown = Countdown(int(sys.argv[1]), int(sys.argv[2]))
    for name in CHANGING:
        setattr(RealDisk, name, countdown.counted(getattr(RealDisk, name)))
    code = main(sys.argv[3:])
    sys.stderr.write(f"calls {countdown.calls}\n")
    sys.exit(code)
