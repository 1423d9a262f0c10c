"""Mounts with a supervisor, and their daemons killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dedupfs.namespace import live
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, detach, eventually, is_mounted, run


@dataclass
class Supervised:
    """One mount by ``dedupfs mount``; ``kills`` counts the daemons that were killed."""

    store: Path
    path: Path
    kills: int = 0

    @classmethod
    def start(cls, directory: Path, name: str = "mnt", *options: str) -> Supervised:
        store, path = directory / "store", directory / name
        path.mkdir(exist_ok=True)
        mount = cls(store, path)
        mount.command("mount", store, path, *options)
        return mount

    @staticmethod
    def command(*words: object) -> str:
        return run(sys.executable, "-m", "dedupfs", *[str(word) for word in words])

    def running(self) -> live.Running:
        """Ask who serves; there may be nobody for a moment."""
        found: list[live.Running] = []

        def ask() -> bool:
            daemon = live.daemon_at(self.store, self.path)
            found.extend([daemon.running] if daemon is not None else [])
            return bool(found)

        assert eventually(ask), "no daemon answers"
        return found[0]

    def kill_daemon(self) -> None:
        """SIGKILL, without waiting for the next one: its callers do."""
        pid = self.running().pid
        end = live.ProcessEnd(pid)
        os.kill(pid, signal.SIGKILL)
        assert end.wait(END_TIMEOUT_S)
        end.close()
        self.kills += 1

    def upgrade(self) -> None:
        """Let the installed program take over; return when it has."""
        before = self.running()
        os.kill(before.supervisor, signal.SIGUSR2)
        assert eventually(lambda: self.running().pid != before.pid)
        assert self.running().supervisor == before.supervisor

    def end(self) -> None:
        """Unmount, and wait until all is put away."""
        if not is_mounted(self.path):
            return
        running = self.running()
        end = live.ProcessEnd(running.supervisor)
        self.command("umount", self.path)
        assert end.wait(END_TIMEOUT_S)
        end.close()

    def abandon(self) -> None:
        """Take away what a failed test left."""
        while is_mounted(self.path):
            detach(self.path)


def helper(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python code that talks with the test over its standard streams."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *[str(argument) for argument in arguments]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
