"""Daemons in processes of their own, as tests start, watch and end them.

Nothing here sleeps: readiness is a line in a pipe, the end is the end of the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]
END_TIMEOUT_S = 60
MNT_DETACH = 2
PR_SET_DUMPABLE = 4


class DaemonError(Exception):
    """The daemon did not get ready; the text is all it said."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"exit code {code}: {said}")
        self.code = code
        self.said = said


@dataclass
class Mounted:
    """A daemon that answered."""

    store: Path
    path: Path
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End in order and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(END_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL; the mount stays and is dead."""
        self.process.kill()
        self.process.wait(END_TIMEOUT_S)


@dataclass
class Daemons:
    """Starts daemons and makes sure that none outlives the test."""

    directory: Path
    command: list[str] = field(default_factory=lambda: [sys.executable, "-m", "tests.fuse.daemon"])
    user: int | None = None
    started: list[Mounted] = field(default_factory=list)
    expected_complaints: list[str] = field(default_factory=list)

    def start(
        self, name: str = "mnt", store: str = "store", view: str = "default", **options: object
    ) -> Mounted:
        path, store_path = self.directory / name, self.directory / store
        with suppress(FileExistsError):  # a dead mount, too, exists only for mkdir
            path.mkdir()
            if self.user is not None:
                os.chown(path, self.user, self.user)
        log_path = self.directory / f"{name}.log"
        said = {"view": view, **options}
        if self.user is not None:
            said["user"] = self.user
        arguments = [str(store_path), str(path), json.dumps(said)]
        with log_path.open("wb") as log_file:
            process = subprocess.Popen(
                [*self.command, *arguments],
                stdout=subprocess.PIPE,
                stderr=log_file,
                cwd=REPOSITORY,
            )
        assert process.stdout is not None
        mounted = Mounted(store_path, path, process, log_path)
        if process.stdout.readline() != b"ready\n":
            process.stdout.close()
            raise DaemonError(process.wait(END_TIMEOUT_S), mounted.log)
        self.started.append(mounted)
        return mounted

    def end_all(self) -> None:
        """End what still runs, and take away what is left of it."""
        for mounted in reversed(self.started):
            mounted.end()
            assert mounted.process.stdout is not None
            mounted.process.stdout.close()
            while is_mounted(mounted.path):
                detach(mounted.path)

    def complaints(self) -> list[str]:
        """Return what the daemons logged as error or worse."""
        lines = [line for mounted in self.started for line in mounted.log.splitlines()]
        return [line for line in lines if line.startswith(("ERROR", "CRITICAL", "Traceback"))]


def is_mounted(path: Path) -> bool:
    table = Path("/proc/self/mounts").read_text(errors="surrogateescape")
    return any(line.split(" ")[1] == str(path) for line in table.splitlines())


def detach(path: Path) -> None:
    if os.geteuid() == 0:
        ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(path), MNT_DETACH)
    else:
        subprocess.run(["fusermount3", "-u", "-z", path], check=True)


def run(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    """Run a command to its end and return its output."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, cwd=cwd)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def become(uid: int) -> None:
    """Give up root in this process for good.

    Not subprocess's ``user=``: the interpreter may lie where only root can start it.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # Or /proc/self/fd would stay root's: prctl(2), PR_SET_DUMPABLE.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def run_code(code: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code with ``os`` and ``socket`` at hand, perhaps as another user."""
    code = f"import os, socket; {code}"
    before = f"from tests.fuse.harness import become; import os, socket; become({user}); "
    return subprocess.run(
        [sys.executable, "-c", code if user is None else before + code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for what nothing announces, such as a timeout in the kernel."""
    pause = threading.Event()
    deadline = time.monotonic() + END_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.02)
    return True


def read_until(pipe: IO[bytes], enough: Callable[[bytes], bool]) -> bytes:
    """Read what a process says until ``enough`` of it is there."""
    said = b""
    while not enough(said):
        readable, _, _ = select.select([pipe], [], [], END_TIMEOUT_S)
        assert readable, f"nothing more than {said[-200:]!r}"
        part = os.read(pipe.fileno(), 65536)
        assert part, f"ended after {said[-200:]!r}"
        said += part
    return said
