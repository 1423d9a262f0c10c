"""A process that has imported what a mount needs, and forks a worker for each order.

So a mount waits for no interpreter to start, the plugin itself touches no mount, and a worker that
hangs in one hangs nobody else. The process ends with the plugin; a worker brings its order to an
end, and only then does the next plugin's process begin. Knows no order.
Source: fork(2), unix(7) (SCM_RIGHTS), flock(2).
"""

import fcntl
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from dedupfs.errors import DedupfsError, MountError
from dedupfs.namespace.live import Failed

log = logging.getLogger(__name__)

COMMAND = "volume-workers"
LOCK_NAME = "workers"
ORDER_BYTES_MAX = 1 << 16
LEFT_S_MAX = 30.0
"""So long may a worker of an earlier plugin go on ..."""
LEFT_STEP_S = 0.05
"""... and so often it is asked."""
_DONE = b"done"
_OF_OUR_MANAGER = ("LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")


class Workers:
    """The plugin's side: has orders carried out, started when the first one is given.

    ``directory``: whose plugin's they are. May be called by several threads.
    """

    def __init__(self, directory: Path) -> None:
        self._lock_path = directory / LOCK_NAME
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._said: dict[str, BinaryIO] = {}  # by those that are under way

    def start(self) -> None:
        """Let the process begin to import, if there is none.

        Raises:
            MountError: it cannot be started.
        """
        with self._lock:
            self._connected()

    def do(self, order: bytes, about: str, until_s: float) -> bool:
        """Have a worker carry ``order`` out; return whether it has by ``until_s`` (monotonic).

        One that takes longer goes on: ``outlast`` it before the next one ``about`` the same.

        Raises:
            DedupfsError: what the worker raised. MountError: it ended.
        """
        reader, writer = os.pipe()
        self._said[about] = open(reader, "rb")  # noqa: SIM115 - it stays when that takes too long
        try:
            self._give(order, writer)
        finally:
            os.close(writer)
        answer = _read_until(reader, until_s)
        if answer is None:
            return False
        self._said.pop(about).close()
        if answer == _DONE:
            return True
        try:
            failed = msgspec.json.decode(answer, type=Failed)
        except msgspec.DecodeError:
            raise MountError("the worker ended before it was done") from None
        raise failed.raised()

    def outlast(self, about: str, until_s: float) -> bool:
        """Wait for an order about this that took too long; return whether none is under way."""
        said = self._said.get(about)
        if said is not None:
            if _read_until(said.fileno(), until_s) is None:
                return False
            self._said.pop(about).close()
        return True

    def close(self) -> None:
        """Let the process end; its workers bring their orders to an end."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _give(self, order: bytes, writer: int) -> None:
        with self._lock:
            try:
                socket.send_fds(self._connected(), [order], [writer])
            except (BrokenPipeError, ConnectionResetError):  # killed: by another one, then
                self._drop()
                socket.send_fds(self._connected(), [order], [writer])

    def _connected(self) -> socket.socket:
        if self._connection is not None:
            return self._connection
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(_OF_OUR_MANAGER)
        }
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "dedupfs", COMMAND, os.fspath(self._lock_path)],
                    cwd="/",
                    env=environment,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # no terminal's signal ends a mount half-way
                )
            except OSError as exc:
                ours.close()
                raise MountError(f"cannot run {sys.executable}: {exc.strerror}") from exc
        self._connection = ours
        return ours

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.wait()  # it does nothing but wait for orders
            self._process = None


def _read_until(fd: int, until_s: float) -> bytes | None:
    """Return all that comes until the last writer is gone; None: that is not in time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    said = b""
    while poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
        data = os.read(fd, ORDER_BYTES_MAX)
        if not data:
            return said
        said += data
    return None


def serve(orders: socket.socket, lock_path: Path, carry_out: Callable[[bytes], None]) -> None:
    """Fork a worker for each order that comes, until the other side is gone.

    Begins when no worker of an earlier plugin is left, so that no two mount at one place.
    """
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _outlast(lock)  # each worker has it, too, for it is forked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they end
    gc.freeze()  # or the collector would write to, and so copy, every page that is shared
    while True:
        order, fds, _flags, _address = socket.recv_fds(orders, ORDER_BYTES_MAX, 1)
        if not order:
            return
        try:
            _fork(orders, order, fds, carry_out)
        except OSError as exc:
            _say(fds, Failed("MountError", f"cannot fork: {exc.strerror}"))
        finally:
            for fd in fds:
                os.close(fd)


def _outlast(lock: int) -> None:
    until_s = time.monotonic() + LEFT_S_MAX
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                log.warning("a worker of an earlier plugin hangs: going on")
                return
            time.sleep(LEFT_STEP_S)
        else:
            return


def _fork(
    orders: socket.socket, order: bytes, fds: Sequence[int], carry_out: Callable[[bytes], None]
) -> None:
    if os.fork() != 0:
        return
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, orders.fileno())  # or the plugin would not see our parent die
        try:
            carry_out(order)
        except DedupfsError as exc:
            _say(fds, Failed.of(exc))
        except BaseException as exc:  # noqa: BLE001 - there is nobody above us
            traceback.print_exc()
            _say(fds, Failed("MountError", f"a bug in dedupfs: {exc!r}"))
        else:
            _say(fds, None)
            code = 0
    finally:
        os._exit(code)


def _say(fds: Sequence[int], failed: Failed | None) -> None:
    data = _DONE if failed is None else msgspec.json.encode(failed)
    for fd in fds:
        with suppress(BrokenPipeError):  # the plugin was killed: the next one looks what there is
            os.write(fd, data)
