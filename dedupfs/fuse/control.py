"""The control socket of a mount: commands of other processes for a view that is live.

Knows how to answer, not what a commit is. Messages and framing: ``namespace/live.py``. The socket
has mode 0600 and the peer must be root or the daemon's own user (unix(7), SO_PEERCRED).
"""

import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from dedupfs.errors import DedupfsError, NotPermittedError, StoreError, UsageError
from dedupfs.fuse.housekeeping import Housekeeper
from dedupfs.namespace import live

log = logging.getLogger(__name__)

_REQUEST_BYTES_MAX = 1 << 16
_BACKLOG = 16
_CONNECTIONS_MAX = 32
"""Served at once; more wait in the backlog, and whoever does not fit there in connect(2)."""
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_RESOURCES_PAUSE_S = 0.1
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True)
class ControlServer:
    """Answers on one socket. ``stop`` begins the orderly end of the mount.

    ``counters`` tells what the mount has done. ``idle_s_max``: how long a peer may take to say its
    request, or to hear the answer.
    """

    socket_path: Path
    running: live.Running
    housekeeper: Housekeeper
    stop: Callable[[], None]
    counters: Callable[[], live.Counted] | None = None
    idle_s_max: float = 10.0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; the socket file lives as long."""
        with _listening(self.socket_path) as listener:
            task_status.started()
            try:
                async with trio.open_nursery() as nursery:
                    slots = trio.Semaphore(_CONNECTIONS_MAX)
                    while True:
                        await slots.acquire()
                        nursery.start_soon(self._serve, await accept(listener), slots)
            finally:
                self.socket_path.unlink(missing_ok=True)

    async def _serve(self, connection: trio.socket.SocketType, slots: trio.Semaphore) -> None:
        with connection:
            try:
                await self._converse(connection)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError) as exc:
                log.info("control peer went away: %r", exc)
            except Exception:  # a bug in a command must not end the mount
                log.critical("bug in a control command", exc_info=True)
            finally:
                slots.release()

    async def _converse(self, connection: trio.socket.SocketType) -> None:
        """Answer one request; nothing is read from a peer that may not ask."""
        try:
            _check_peer(connection)
        except NotPermittedError as exc:
            await self._send(connection, live.Failed.of(exc))
            return
        with trio.fail_after(self.idle_s_max):
            line = await _read_line(connection)
        with trio.CancelScope(shield=True):  # a commit is not undone halfway
            await self._send(connection, await self._answer(line))

    async def _send(self, connection: trio.socket.SocketType, reply: live.Reply) -> None:
        with trio.fail_after(self.idle_s_max):
            await trio.SocketStream(connection).send_all(live.encode(reply) + b"\n")

    async def _answer(self, line: bytes) -> live.Reply:
        try:
            return await self._do(_decode(line))
        except DedupfsError as exc:
            return live.Failed.of(exc)
        except Exception as exc:
            log.critical("bug in a control command line=%r", line[:1024], exc_info=True)
            return live.Failed.of(StoreError(f"a bug in the daemon, see its log: {exc!r}"))

    def _running(self) -> live.Running:
        """Say who serves; a supervisor that died is none, and its number may be somebody else's."""
        if os.getppid() == self.running.supervisor:
            return self.running
        return msgspec.structs.replace(self.running, supervisor=0)

    async def _do(self, request: live.Request) -> live.Reply:
        match request:
            case live.Commit(name, path, tags):
                info = await self.housekeeper.commit(name, path, tags)
                return live.Committed(info.name, info.root.count, info.root.size)
            case live.Fold():
                await self.housekeeper.fold()
                return live.Done()
            case live.LookAtLimits():
                self.housekeeper.look_at_limits()
                return live.Done()
            case live.Counters():
                if self.counters is None:
                    raise StoreError("nothing is counted here")
                return self.counters()
            case live.Base():
                return live.Shown(self.housekeeper.shown_root)
            case live.Stop():
                self.stop()
                return live.Done()
            case live.Status():
                return self._running()


def _listening(path: Path) -> trio.socket.SocketType:
    """Bind before anybody can connect: the file appears with mode 0600 behind the umask.

    Whoever holds the view's lock owns the name, so a file that is there is a dead daemon's.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        with live.short_address(path) as address:
            listener.bind(address)
    finally:
        os.umask(umask)
    listener.listen(_BACKLOG)
    return trio.socket.from_stdlib_socket(listener)


async def accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """Return the next connection; whatever happens to one of them, the mount goes on."""
    told = False
    while True:
        try:
            connection, _address = await listener.accept()
        except OSError as exc:
            if exc.errno in _NO_RESOURCES:
                if not told:
                    log.warning("no control connection can be taken now: %s", exc.strerror)
                told = True
                await trio.sleep(_NO_RESOURCES_PAUSE_S)  # as trio.serve_listeners does
            elif exc.errno != errno.ECONNABORTED:
                raise
        else:
            return connection


def _decode(line: bytes) -> live.Request:
    try:
        request: live.Request = live.decode_request(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UsageError(f"not a control request: {exc}") from exc
    return request


def _check_peer(connection: trio.socket.SocketType) -> None:
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(packed)
    if uid not in (0, os.geteuid()):
        raise NotPermittedError("only root and the daemon's own user may give it commands")


async def _read_line(connection: trio.socket.SocketType) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= _REQUEST_BYTES_MAX:
        received = await connection.recv(4096)
        if not received:
            break
        line += received
    return bytes(line)
