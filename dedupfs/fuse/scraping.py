"""Answers Prometheus: one page over HTTP, on a trio task that costs nothing until it is asked.

Knows bytes and sockets, not what is counted. Takes GET and HEAD of /metrics, one request a
connection. Whatever comes in, the mount goes on. Source: RFC 9112.
"""

import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

import trio

from dedupfs import metrics
from dedupfs.errors import MountError, UsageError
from dedupfs.fuse.control import accept
from dedupfs.namespace import live

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_REQUEST_BYTES_MAX = 8192
_CONNECTIONS_MAX = 8
_BACKLOG = 16
_IDLE_S_MAX = 10.0
_TEXT = "text/plain; charset=utf-8"

Page = Callable[[], Callable[[], bytes]]
"""Takes the numbers, at once; returns what makes a page of them, in a thread."""


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``[IPV6]:PORT`` or ``PORT``, which is for this host.

    Raises:
        UsageError: it is none.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"--metrics {text!r}: write an IPv6 address as [ADDRESS]:PORT")
    if not (port.isascii() and port.isdecimal()) or int(port) > 65535 or (colon and not host):
        raise UsageError(f"--metrics {text!r} is not of the form ADDRESS:PORT, or PORT")
    return host or HOST, int(port)


def listen(text: str) -> socket.socket:
    """Bind what is asked for, and nothing else.

    Raises:
        UsageError: it is no address. MountError: it cannot be had.
    """
    host, port = parse_address(text)
    listener: socket.socket | None = None
    try:
        family, kind, _proto, _name, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind)
        # A daemon that takes over binds again while connections of the dead one linger.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, UnicodeError) as exc:
        if listener is not None:
            listener.close()
        said = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise MountError(f"cannot serve metrics on {text}: {said}") from exc
    return listener


def address_of(listener: socket.socket) -> str:
    """Return where a socket listens, as ``parse_address`` takes it."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class MetricsServer:
    """Serves ``page`` on a socket that listens. ``idle_s_max``: how long a peer may take."""

    listener: socket.socket
    page: Page
    content_type: str
    idle_s_max: float = _IDLE_S_MAX

    async def run(self) -> None:
        """Serve until cancelled."""
        with trio.socket.from_stdlib_socket(self.listener) as listener:
            async with trio.open_nursery() as nursery:
                slots = trio.Semaphore(_CONNECTIONS_MAX)
                while True:
                    await slots.acquire()
                    nursery.start_soon(self._serve, await accept(listener), slots)

    async def _serve(self, connection: trio.socket.SocketType, slots: trio.Semaphore) -> None:
        with connection:
            try:
                with trio.fail_after(self.idle_s_max):
                    answer = await self._answer(await _read_head(connection))
                    await trio.SocketStream(connection).send_all(answer)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError) as exc:
                # No more than this: anybody who can connect could fill the disk with it.
                log.debug("metrics peer went away: %r", exc)
            except Exception:  # a bug in a page must not end the mount
                log.critical("bug in the metrics page", exc_info=True)
            finally:
                slots.release()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"only GET\n", _TEXT, "Allow: GET, HEAD\r\n")
        if target != b"/metrics":
            return _response("404 Not Found", b"see /metrics\n", _TEXT)
        try:
            page = await trio.to_thread.run_sync(self.page())
        except OSError as exc:  # the store's disk, not the peer
            said = f"{exc.strerror}\n".encode()
            return _response("503 Service Unavailable", said, _TEXT)
        response = _response("200 OK", page, self.content_type)
        return response if method == b"GET" else response[: len(response) - len(page)]


def _response(status: str, body: bytes, content_type: str, extra: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n{extra}\r\n"
    )
    return head.encode() + body


async def _read_head(connection: trio.socket.SocketType) -> bytes:
    """Return the request with its header lines, which nobody reads but must be taken.

    Raises:
        OSError: there is no end to it.
    """
    head = bytearray()
    while b"\r\n\r\n" not in head:
        received = await connection.recv(4096)
        head += received
        if not received or len(head) > _REQUEST_BYTES_MAX:
            raise OSError(errno.EMSGSIZE, "not a request")
    return bytes(head)


class Prometheus:
    """What a mount tells Prometheus, and where: bound when it is made.

    Raises:
        UsageError: ``address`` is none. MountError: it cannot be had.
    """

    def __init__(
        self, address: str, store: str, running: live.Running, tell: Callable[[], live.Counted]
    ) -> None:
        self._store = store
        self._running = running
        self._tell = tell
        self._listener = listen(address)
        self.address = address_of(self._listener)

    async def run(self) -> None:
        """Answer until cancelled, or until the socket is of no use any more."""
        try:
            await MetricsServer(self._listener, self._page, metrics.CONTENT_TYPE).run()
        except* OSError as group:  # the network has gone: accept(2); the mount has not
            log.error("no metrics any more: %r", group.exceptions)

    def close(self) -> None:
        """Let go of the address."""
        self._listener.close()

    def _page(self) -> Callable[[], bytes]:
        who = self._running
        told = metrics.MountCounters(self._store, who.view, who.mountpoint, self._tell())

        def rendered() -> bytes:
            return metrics.render([told], {self._store: metrics.file_system_sums(self._store)})

        return rendered
