"""A volume plugin as users start it: a process with a socket that the test listens on for it.

The test holds the listening socket, as systemd would: whoever connects before the plugin is there
waits, and a plugin that is ended and started again leaves no gap.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dedupfs.cli import main
from dedupfs.maintenance.check import check
from dedupfs.store import Store
from tests.conftest import detach, fuse_mounts_below
from tests.fuse.harness import REPOSITORY

TIMEOUT_S = 120
LARGE_BYTES = 1 << 20
SEAM_BYTES_MAX = LARGE_BYTES // 8
"""Behind a seam, chunks of 1 to 16 KiB are cut anew until a cut is again where it was: 2 to 27 kB
with the rest in 150 samples of other bytes. What is not recognized costs LARGE_BYTES and more."""
APPLETS = ("sh", "cat", "ls", "touch", "sleep", "test", "cmp", "stat", "chmod", "dd")
_AS_ITS_SERVICE_MANAGER = 'exec 3<&0 </dev/null; LISTEN_PID=$$ exec "$@"'


class Asking(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(os.fspath(self._path))


class Plugin:
    """A store and the plugin for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.state = directory / "state"
        self.socket_directory = Path(tempfile.mkdtemp(prefix="dedupfs-"))  # a short path
        self.socket_path = self.socket_directory / "plugin.sock"
        self.stores = [self.store]
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(self.socket_path))
        self._listener.listen(16)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "dedupfs", "volume-plugin", *map(str, self.stores)]
        self._process = subprocess.Popen(
            ["sh", "-c", _AS_ITS_SERVICE_MANAGER, "sh", *command, "--state", str(self.state)],
            stdin=self._listener.fileno(),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LISTEN_FDS": "1"},
        )

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(TIMEOUT_S)
        self._process = None
        assert code == (0 if number == signal.SIGTERM else -number)

    def children(self) -> list[int]:
        """Return the live children of the plugin's process."""
        assert self._process is not None
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended meanwhile
                state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
                if int(parent) == self._process.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def end(self) -> None:
        if self._process is not None:
            self.ask("List")  # before it can answer, a signal would just end it
            self.stop()
        self._listener.close()
        shutil.rmtree(self.socket_directory)

    def ask(self, what: str, **request: object) -> Any:
        """Ask for something that must work."""
        code, said = self.answer(what, json.dumps(request).encode())
        assert code == 200, said
        return said

    def refused(self, what: str, **request: object) -> str:
        """Ask for something that must not work; return the one line that says why."""
        code, said = self.answer(what, json.dumps(request).encode())
        assert code == 500, said
        line: str = said["Err"]
        assert line
        assert line.count("\n") == 0
        assert "a bug in dedupfs" not in line
        return line

    def answer(self, what: str, body: bytes, **headers: str) -> tuple[int, Any]:
        connection = Asking(self.socket_path)
        try:
            path = what if what.startswith("/") else f"/VolumeDriver.{what}"
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def dedupfs(self, *words: object) -> str:
        return subprocess.run(
            [sys.executable, "-m", "dedupfs", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        ).stdout

    def stored_bytes(self) -> int:
        found: int = json.loads(self.dedupfs("stats", self.store, "--json"))["stored_bytes"]
        return found


def image_of_busybox(directory: Path) -> bytes:
    """Return the tar archive of a root directory that has nothing but busybox."""
    programs = directory / "image" / "bin"
    programs.mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, programs / "busybox")
    for applet in APPLETS:
        (programs / applet).symlink_to("busybox")
    return subprocess.run(
        ["tar", "-C", programs.parent, "-c", "."], check=True, capture_output=True, timeout=60
    ).stdout


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    """A running plugin for a store with the snapshot ``base``; in the end the store is checked."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_bytes(b"from the snapshot\n")
    (data / "large").write_bytes(random.Random(7).randbytes(LARGE_BYTES))
    store = tmp_path / "store"
    assert main(["init", str(store), "--chunk-size", "4KiB"]) == 0
    assert main(["import", str(store), str(data), "base"]) == 0
    plugin = Plugin(tmp_path)
    try:
        plugin.start()
        yield plugin
    finally:
        plugin.end()
        for point in fuse_mounts_below(tmp_path):
            subprocess.run(
                [sys.executable, "-m", "dedupfs", "umount", point],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                check=False,
                timeout=TIMEOUT_S,
            )
        for point in fuse_mounts_below(tmp_path):
            detach(point)
    with Store.open(store) as opened:
        report = check(opened)
    assert report.ok, "\n".join(map(str, report.problems))
