"""Borg and restic: a repository of backups, and the newest one mounted (read-only)."""

from __future__ import annotations

import os
import subprocess
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.commands import BenchError, disk_bytes, inode_count, run, unmount
from bench.peers import Peer

MOUNT_SECONDS_MAX = 120


class Backup(Peer):
    """Takes backups of directories into a repository."""

    writable = False
    rounds_max = 1

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.repository = place / "repository"

    def ready(self, source: Path) -> None:
        super().ready(source)
        self.init()
        self.create(source)

    @abstractmethod
    def init(self) -> None:
        """Make the repository, without encryption where that is possible."""

    @abstractmethod
    def create(self, source: Path) -> None:
        """Take a backup of a directory; it becomes the newest one."""

    def disk_bytes(self) -> int:
        return disk_bytes(self.repository)

    def inode_count(self) -> int:
        return inode_count(self.repository)


class Borg(Backup):
    name = "borg"
    programs = ("borg",)

    def init(self) -> None:
        self._count = 0
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        self._borg("init", "--encryption", "none", str(self.repository))

    def create(self, source: Path) -> None:
        self._count += 1
        self._borg("create", f"{self.repository}::{self._count}", ".", cwd=source)

    def _borg(self, *arguments: str | Path, cwd: Path | None = None) -> None:
        env = {
            "BORG_BASE_DIR": str(self.place),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "PYTHONPATH": "",
        }
        run("borg", *arguments, cwd=cwd, env=env)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        self._borg("mount", f"{self.repository}::{self._count}", self.mountpoint)
        try:
            yield self.mountpoint
        finally:
            unmount(self.mountpoint)


class Restic(Backup):
    name = "restic"
    programs = ("restic",)

    def init(self) -> None:
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        self._env = {
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(self.place / "cache"),
            "RESTIC_REPOSITORY": str(self.repository),
        }
        run("restic", "init", env=self._env)

    def create(self, source: Path) -> None:
        run("restic", "--quiet", "backup", ".", cwd=source, env=self._env)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Its mount stays in the foreground and is there when it lists the newest snapshot."""
        daemon = subprocess.Popen(
            ["restic", "mount", str(self.mountpoint)],
            env={**os.environ, **self._env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        top = self.mountpoint / "snapshots" / "latest"
        try:
            deadline = time.monotonic() + MOUNT_SECONDS_MAX
            while not top.is_dir():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise BenchError("restic mount did not come up")
                time.sleep(0.02)
            yield top.resolve()  # "latest" is a symbolic link
        finally:
            if daemon.poll() is None and self.mountpoint.is_mount():
                unmount(self.mountpoint)
            daemon.terminate()
            daemon.wait(timeout=60)
