"""The volume plugin API over HTTP on a unix socket: requests in, one call of the driver, answers.

Decides nothing. A failure is ``{"Err": "one line"}`` with status 500, as Docker and Podman want it.
Only root and the plugin's own user are listened to. Source: docs.docker.com/engine/extend,
"Docker plugin API" and "Docker volume plugins".
"""

import logging
import os
import socket
import socketserver
import struct
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec

from dedupfs.errors import DedupfsError, StoreBusyError, StoreError
from dedupfs.volumes.driver import Driver
from dedupfs.volumes.ledger import Volume

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 1 << 16
IDLE_S_MAX = 10.0
CONNECTIONS_MAX = 32
CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_FIRST_PASSED = 3  # sd_listen_fds(3)

Answer = dict[str, object]


class Request(msgspec.Struct, frozen=True):
    """All that any request may have."""

    Name: str = ""
    ID: str = ""
    Opts: dict[str, str] | None = None


def _described(volume: Volume, place: Path | None) -> Answer:
    options = volume.options
    created = datetime.fromtimestamp(volume.created_ns // 10**9, UTC)
    return {
        "Name": volume.name,
        "Mountpoint": "" if place is None else os.fspath(place),
        "CreatedAt": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "Status": {
            "store": options.store,
            "snapshot": options.snapshot,
            "view": options.view,
            "ephemeral": options.ephemeral,
            "ro": options.read_only,
            "users": len(volume.users),
        },
    }


def answer(driver: Driver, path: str, request: Request) -> Answer | None:
    """Do what one request asks for; None: there is no such request.

    Raises:
        DedupfsError: it cannot be done.
    """
    match path:
        case "/Plugin.Activate":
            return {"Implements": ["VolumeDriver"]}
        case "/VolumeDriver.Capabilities":
            return {"Capabilities": {"Scope": "local"}}
        case "/VolumeDriver.Create":
            driver.create(request.Name, request.Opts or {})
        case "/VolumeDriver.Remove":
            driver.remove(request.Name)
        case "/VolumeDriver.Mount":
            return {"Mountpoint": os.fspath(driver.mount(request.Name, request.ID)), "Err": ""}
        case "/VolumeDriver.Unmount":
            driver.unmount(request.Name, request.ID)
        case "/VolumeDriver.Path":
            _volume, place = driver.get(request.Name)
            return {"Mountpoint": "" if place is None else os.fspath(place), "Err": ""}
        case "/VolumeDriver.Get":
            return {"Volume": _described(*driver.get(request.Name)), "Err": ""}
        case "/VolumeDriver.List":
            return {"Volumes": [_described(*found) for found in driver.list()], "Err": ""}
        case _:
            return None
    return {"Err": ""}


class _Handler(BaseHTTPRequestHandler):
    server: "PluginServer"
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S_MAX

    def do_POST(self) -> None:
        """Answer a request; the connection is for this one alone."""
        self.close_connection = True
        body = self._body()
        if body is None:
            return
        try:
            request = msgspec.json.decode(body or b"{}", type=Request)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            self.send_error(HTTPStatus.BAD_REQUEST, f"not a request: {exc}")
            return
        try:
            said = answer(self.server.driver, self.path, request)
        except DedupfsError as exc:
            log.info("refused %s volume=%r: %s", self.path, request.Name, exc)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, str(exc))
        except Exception as exc:  # a bug in one call must not end the plugin
            log.critical("bug path=%s request=%r", self.path, request, exc_info=True)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"a bug in dedupfs: {exc!r}")
        else:
            if said is None:
                self.send_error(HTTPStatus.NOT_FOUND, f"no such request: {self.path[:64]}")
            else:
                self._send(HTTPStatus.OK, said)

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._refuse_unread(HTTPStatus.LENGTH_REQUIRED, "a request needs a Content-Length")
            return None
        if len(length) > 9 or int(length) > BODY_BYTES_MAX:
            self._refuse_unread(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too long")
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def _refuse_unread(self, code: int, message: str) -> None:
        """Refuse what was not read, and read some of it: who still sends does not hear the answer.

        Closing with bytes unread breaks the peer's connection in both directions: unix(7).
        """
        self.send_error(code, message)
        left = BODY_BYTES_MAX
        with suppress(OSError):  # it has gone, or sends nothing
            while left > 0 and (data := self.rfile.read1(left)):
                left -= len(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say what went wrong as the plugin API does."""
        self.close_connection = True
        line = " ".join((message or explain or HTTPStatus(code).phrase).split())
        self._send(code, {"Err": line.encode(errors="backslashreplace").decode()})

    def _send(self, code: int, said: Answer) -> None:
        data = msgspec.json.encode(said)
        self.send_response(code)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Log as everything else does."""
        log.debug(format, *args)


class PluginServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves ``driver`` on a listening socket, each request in a thread."""

    def __init__(self, listener: socket.socket, driver: Driver) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.driver = driver
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)

    def end(self) -> None:
        """Have ``serve_forever`` return; may be called where that runs, by a signal's handler."""
        threading.Thread(target=self.shutdown).start()

    def verify_request(self, request: object, _client_address: object) -> bool:
        """Whether the peer may ask: unix(7), SO_PEERCRED."""
        assert isinstance(request, socket.socket)
        packed = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, uid, _gid = _CREDENTIALS.unpack(packed)
        if uid in (0, os.geteuid()):
            return True
        log.warning("connection refused uid=%d", uid)
        return False

    def process_request(self, request: object, client_address: object) -> None:
        """Serve a connection in a thread, when not too many are."""
        self._slots.acquire()
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]
        except BaseException:  # no thread could be started
            self._slots.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Serve a connection."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._slots.release()

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Say that a peer went away in the middle."""
        log.debug("plugin connection ended: %r", sys.exc_info()[1])


def passed_listener() -> socket.socket | None:
    """Return the socket that the service manager listens on for us: sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    listener = socket.socket(fileno=_FIRST_PASSED)
    listener.set_inheritable(False)
    return listener


def listen(path: Path) -> socket.socket:
    """Listen on ``path``, which nobody but our user and root can open.

    Raises:
        StoreBusyError: somebody listens there. StoreError: it cannot be made, or is a file.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        if path.is_socket():
            _require_unused(path)
            path.unlink(missing_ok=True)  # a dead plugin's
        listener.bind(os.fspath(path))
        listener.listen(CONNECTIONS_MAX)
    except OSError as exc:
        listener.close()
        raise StoreError(f"cannot listen on {path}: {exc.strerror or exc}") from exc
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener


def _require_unused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
    raise StoreBusyError(f"somebody listens on {path} already")
