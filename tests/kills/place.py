"""A store, its mounts as a user makes them, and SIGKILL for whoever serves one.

Everything goes through the command line. Nothing sleeps: a command returns when it is done, a
process's end is seen by its pidfd, a moment to kill at is a count of events and a short spin.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.maintenance.check import check
from dedupfs.namespace import live
from dedupfs.namespace.view import View
from dedupfs.store import Store
from tests.fuse.harness import REPOSITORY, detach, is_mounted

LIMIT_S = 200
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def dedupfs_words(*words: object) -> list[str]:
    return [sys.executable, "-m", "dedupfs", *map(str, words)]


def spin(generator: random.Random, seconds_max: float) -> None:
    """Let a random short time pass without giving the processor away for long."""
    stop = time.perf_counter() + generator.uniform(0, seconds_max)
    while time.perf_counter() < stop:
        os.sched_yield()


@dataclass
class Place:
    """A directory with a store and mount points."""

    directory: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.directory / "store"

    def mountpoint(self, name: str) -> Path:
        path = self.directory / name
        if not is_mounted(path):  # a dead one must not be touched
            path.mkdir(exist_ok=True)
        return path

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start a command; it is ended with the test at the latest."""
        process = subprocess.Popen(
            dedupfs_words(*words),
            cwd=self.directory,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def dedupfs(self, *words: object, codes: Sequence[int] = (0,)) -> str:
        """Run a command to its end; return what it printed, errors last."""
        process = self.start(*words)
        out, err = process.communicate(timeout=LIMIT_S)
        self.started.remove(process)
        assert process.returncode in codes, f"{words}: exit {process.returncode}: {err}"
        return out + err

    def mount(self, name: str, *options: object) -> Path:
        path = self.mountpoint(name)
        self.dedupfs("mount", self.store, path, *options)
        return path

    def umount(self, name: str) -> None:
        self.dedupfs("umount", self.directory / name)

    def assert_sound(self) -> None:
        """``check`` is clean; beside live mounts, too."""
        with Store.open(self.store) as store:
            report = check(store)
        assert report.ok, [str(problem) for problem in report.problems]

    def end_all(self) -> None:
        """End what still runs and take mounts away, dead or not."""
        for process in self.started:
            process.kill()
            process.communicate(timeout=LIMIT_S)
        for path in sorted(self.directory.iterdir()):
            if is_mounted(path):
                kill_mount(path)
            while is_mounted(path):
                detach(path)


def kill_mount(mountpoint: Path) -> int:
    """SIGKILL every process that serves a mount, supervisor first; return how many there were.

    They are found by their command line, ``dedupfs mount ... MOUNTPOINT ...``, which only they
    have. Who makes the others is killed before them, and what appeared meanwhile after that.
    """
    killed = 0
    while pids := _serving(mountpoint):
        ends = [live.ProcessEnd(pid) for pid in pids]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        for end in ends:
            assert end.wait(LIMIT_S), f"SIGKILL did not end it: {mountpoint}"
            end.close()
    return killed


def _serving(mountpoint: Path) -> list[int]:
    """Return the processes that serve a mount, parents before children."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                if b"mount" in words and os.fsencode(mountpoint) in words:
                    state, parent = _state(int(entry))
                    if state not in "ZX":
                        parents[int(entry)] = parent
    found = [pid for pid, parent in parents.items() if parent not in parents]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _state(pid: int) -> tuple[str, int]:
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1])


def read_some(pipe: int, count: int) -> int:
    """Read up to ``count`` bytes from a pipe, waiting for the first; return how many."""
    readable, _, _ = select.select([pipe], [], [], LIMIT_S)
    assert readable, "nothing happens any more"
    return len(os.read(pipe, count))


def drain(pipe: int) -> None:
    """Forget what has happened so far."""
    while select.select([pipe], [], [], 0)[0] and os.read(pipe, 1 << 16):
        continue


def read_file(view: View, inode: int) -> bytes:
    """Read a whole file of a view that is open in this process."""
    handle = view.open(inode, os.O_RDONLY)
    try:
        return view.plan_read(handle, 0, view.getattr(inode).size).run()
    finally:
        view.release(handle)
