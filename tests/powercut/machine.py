"""A machine whose power can be cut: a store on a file system of its own, a mount, and processes.

The file system lies in an image on a loop device. A cut is FS_IOC_SHUTDOWN without a flush of its
log: what it had not written to the device by itself, or because of a sync, is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, Daemons, Mounted, detach, eventually

FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_LOG_FLUSH = 2
NEVER_SYNCED = "staging file is missing"
"""What a daemon says of bytes that nobody had synced and that are gone: matching.py judges."""
IMAGE_BYTES = {"ext4": 256 << 20, "xfs": 320 << 20}


def attach(file: Path) -> str:
    """Make a loop device of a file."""
    command = ["losetup", "--find", "--show", str(file)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return found.stdout.strip()


class Image:
    """A file system in a file."""

    def __init__(self, directory: Path, kind: str, rng: random.Random) -> None:
        self.kind = kind
        self.file = directory / f"{kind}.image"
        self.path = directory / "disk"
        self.path.mkdir()
        with self.file.open("wb") as file:
            file.truncate(IMAGE_BYTES[kind])
        commands: dict[str, list[str]] = {
            "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(rng.choice([1024, 4096]))],
            "xfs": ["mkfs.xfs", "-q", "-f"],
        }
        subprocess.run([*commands[kind], str(self.file)], check=True)
        self._device = attach(self.file)
        self._mounted = False

    def mount(self) -> None:
        """Mount it; where its device went to somebody else meanwhile, on another one.

        Who detaches a device that was given on in that very moment marks the new owner's: that one
        goes with the next unmount (loop(4), LO_FLAGS_AUTOCLEAR).
        """
        if not self._is_attached():
            self._device = attach(self.file)
        options = {"ext4": "noatime", "xfs": "noatime,nouuid"}[self.kind]
        command = ["mount", "-t", self.kind, "-o", options, self._device, str(self.path)]
        subprocess.run(command, check=True)
        self._mounted = True

    def unmount(self) -> None:
        """Unmount once the last killed process has let go of its files."""
        command = ["umount", str(self.path)]
        assert eventually(
            lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0
        ), "the image stays busy"
        self._mounted = False

    def cut(self) -> None:
        """Take the power away."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def restart(self) -> None:
        """Unmount and mount.

        Another mount namespace (somebody's container) may hold the file system as it is, without
        power, and mount(2) would give that again: then a copy of the image takes its place.
        """
        self.unmount()
        self.mount()
        if not self._is_alive():
            self.unmount()
            copied = self.file.with_suffix(".copy")
            subprocess.run(["cp", "--sparse=always", self.file, copied], check=True)
            if self._is_attached():
                subprocess.run(["losetup", "--detach", self._device], check=True)
            copied.rename(self.file)
            self._device = attach(self.file)
            self.mount()
            assert self._is_alive()

    def _is_attached(self) -> bool:
        file = Path("/sys/block", Path(self._device).name, "loop/backing_file")
        try:
            return file.read_text().rstrip("\n") == str(self.file)
        except FileNotFoundError:
            return False

    def _is_alive(self) -> bool:
        """Whether the file system takes changes."""
        try:
            (self.path / "alive").touch()
        except OSError:
            return False
        return True

    def remove(self) -> None:
        if self._mounted:
            self.unmount()
        if self._is_attached():
            subprocess.run(["losetup", "--detach", self._device], check=True)
        self.file.unlink()


@dataclass
class Machine:
    """Daemon and programs over one image."""

    directory: Path
    image: Image
    daemons: Daemons = field(init=False)
    mounted: Mounted | None = None
    _programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.daemons = Daemons(self.directory)

    @property
    def store(self) -> Path:
        return self.image.path / "store"

    def start_daemon(self) -> Path:
        """Mount the view; return where."""
        self.mounted = self.daemons.start(store=str(self.store))
        return self.mounted.path

    def start(self, module: str, **said: Any) -> None:
        """Start one of the programs that work on the store.

        They reach the mount through a descriptor: one that starts late must not find the bare
        directory below it.
        """
        assert self.mounted is not None
        mount = os.open(self.mounted.path, os.O_RDONLY | os.O_DIRECTORY)
        said["mount"] = f"/proc/self/fd/{mount}"
        command = [sys.executable, "-m", f"tests.powercut.{module}", json.dumps(said)]
        log = (self.directory / f"{module}.log").open("ab")
        with log:
            self._programs.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=log, cwd=REPOSITORY, pass_fds=[mount]
                )
            )
        os.close(mount)

    def wait_for(self, calls: int) -> bool:
        """Wait until so many calls have returned; False when all programs ended before."""
        pipes = [program.stdout for program in self._programs if program.stdout is not None]
        while pipes and calls > 0:
            readable, _, _ = select.select(pipes, [], [], END_TIMEOUT_S)
            assert readable, "the programs are stuck"
            for pipe in readable:
                said = os.read(pipe.fileno(), min(calls, 4096)) if calls > 0 else b"."
                calls -= len(said)
                if not said:
                    pipes.remove(pipe)
        return calls <= 0

    def cut(self) -> list[str]:
        """Take the power away and end everything; return what the daemon had complained of."""
        assert self.mounted is not None
        complaints = complaints_in(self.mounted.log)
        self.image.cut()
        self._end_all_at_once()
        self.image.restart()
        return complaints

    def kill(self) -> None:
        """Kill the daemon; the programs end with their next call."""
        self._end_all_at_once()

    def _end_all_at_once(self) -> None:
        assert self.mounted is not None
        self.mounted.kill()
        assert self.mounted.process.stdout is not None
        self.mounted.process.stdout.close()
        detach(self.mounted.path)
        self._end_programs()
        self.mounted = None
        self.daemons.started.clear()

    def _end_programs(self) -> None:
        for program in self._programs:
            try:
                program.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                program.kill()
                raise
            finally:
                assert program.stdout is not None
                program.stdout.close()
        self._programs.clear()

    def stop(self) -> list[str]:
        """Let the programs come to their end and unmount the view in order."""
        assert self.mounted is not None
        self._end_programs()
        self.mounted.end()
        complaints = complaints_in(self.mounted.log)
        self.daemons.end_all()
        self.daemons.started.clear()
        self.mounted = None
        return complaints

    def remove(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self.mounted is not None:
            self._end_all_at_once()
        self.image.remove()


def complaints_in(log: str) -> list[str]:
    """Return what a daemon should not have had to say."""
    wanted = ("WARNING", "ERROR", "CRITICAL", "Traceback")
    lines = [line for line in log.splitlines() if line.startswith(wanted)]
    return [line for line in lines if NEVER_SYNCED not in line]
