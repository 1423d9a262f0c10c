"""What a service manager hears from a real mount, and from whom.

systemd believes a service's main process alone (NotifyAccess=main), so it matters who speaks.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.store import Store
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, detach

pytestmark = pytest.mark.fuse
CREDENTIALS = struct.Struct("iII")  # unix(7), SCM_CREDENTIALS
MORE_TIME = b"EXTEND_TIMEOUT_USEC="


class Listener:
    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        opened.bind("")
        opened.settimeout(END_TIMEOUT_S)
        self.address = "@" + opened.getsockname()[1:].decode()

    def hear(self) -> tuple[int, dict[str, str]]:
        """Return the next datagram that is no sign of life, and who sent it."""
        while True:
            data, controls, _flags, _from = self._socket.recvmsg(
                4096, socket.CMSG_SPACE(CREDENTIALS.size)
            )
            ((_level, _kind, credentials),) = controls
            if data != b"WATCHDOG=1":
                pid = CREDENTIALS.unpack(credentials)[0]
                return pid, dict(line.split("=", 1) for line in data.decode().split("\n"))

    def is_silent(self) -> bool:
        """Whether nothing has come but wishes for more time: an end takes as long as it takes."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(4096).startswith(MORE_TIME):
                pass
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def listener() -> Iterator[Listener]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        yield Listener(opened)


def dedupfs(*words: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dedupfs", *words],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@contextmanager
def taken_down(directory: Path) -> Iterator[tuple[Path, Path]]:
    """Give a store's path and a mount point; the store is right in the end."""
    store, mountpoint = directory / "store", directory / "mnt"
    mountpoint.mkdir()
    try:
        yield store, mountpoint
    finally:
        if os.path.ismount(mountpoint):
            detach(mountpoint)
    with Store.open(store) as opened:
        assert check(opened).ok


def test_the_supervisor_speaks_when_the_mount_answers_is_upgraded_and_ends(
    tmp_path: Path, listener: Listener
) -> None:
    with taken_down(tmp_path) as (store, mountpoint):
        words = ("mount", "--foreground", "--", str(store), str(mountpoint))
        with dedupfs(*words, NOTIFY_SOCKET=listener.address) as process:
            try:
                sender, said = listener.hear()
                assert said.pop("STATUS").startswith(f"{store} on {mountpoint}, answered by")
                assert (sender, said) == (process.pid, {"READY": "1"})
                (mountpoint / "file").write_text("kept")
                process.send_signal(signal.SIGUSR2)
                sender, said = listener.hear()
                assert (sender, said["RELOADING"]) == (process.pid, "1")
                assert int(said["MONOTONIC_USEC"]) > 0
                sender, said = listener.hear()
                assert (sender, said["READY"]) == (process.pid, "1")
                assert (mountpoint / "file").read_text() == "kept"
                process.terminate()
                sender, said = listener.hear()
                assert (sender, said["STOPPING"]) == (process.pid, "1")
                process.communicate(timeout=END_TIMEOUT_S)
                assert process.returncode == 0
                assert listener.is_silent()
            finally:
                process.kill()


def test_a_mount_that_fails_is_never_ready(tmp_path: Path, listener: Listener) -> None:
    words = ("mount", "--foreground", str(tmp_path / "store"), str(tmp_path / "none"))
    with dedupfs(*words, NOTIFY_SOCKET=listener.address) as process:
        process.communicate(timeout=END_TIMEOUT_S)
        assert process.returncode != 0
    assert listener.is_silent()


def test_a_mount_in_the_background_is_not_the_service_that_made_it(
    tmp_path: Path, listener: Listener
) -> None:
    with taken_down(tmp_path) as (store, mountpoint):
        for words in (("mount", str(store), str(mountpoint)), ("umount", str(mountpoint))):
            with dedupfs(*words, NOTIFY_SOCKET=listener.address) as process:
                process.communicate(timeout=END_TIMEOUT_S)
                assert process.returncode == 0
    assert listener.is_silent()
