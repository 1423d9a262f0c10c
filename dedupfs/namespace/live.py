"""Talking to the daemon of a live view: the messages, where its socket is, and a client.

Blocking and small, so that commands can use it without pyfuse3 or trio; the answering side is
``fuse/control.py``. One JSON object on one line each way, told apart by ``type``:

    {"type": "commit", "name": ..., "path": base64, "tags": {...}}   -> {"type": "committed", ...}
    {"type": "status"}                                               -> {"type": "running", ...}
    {"type": "fold"} | {"type": "stop"} | {"type": "look-at-limits"} -> {"type": "done"}
    {"type": "counters"}                                             -> {"type": "counted", ...}
    {"type": "base"}                                                 -> {"type": "shown", ...}
    any of them, and what an older daemon does not know              -> {"type": "failed", ...}
"""

import os
import re
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import xxhash

import dedupfs.errors
from dedupfs.errors import DedupfsError, StoreBusyError, StoreError

RUN_DIRECTORY = "run"
SOCKET_SUFFIX = ".sock"
LOG_SUFFIX = ".log"
STATUS_TIMEOUT_S = 30.0
LISTENING_TIMEOUT_S = 1.0
_STEM_CHARACTERS_MAX = 64  # with "/proc/self/fd/N/" before it a path fits into sockaddr_un
_ANONYMOUS = re.compile(r"mount-(\d+)")
_LINE_BYTES_MAX = 1 << 20
LATENCY_BOUNDS_US = (
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    1_000_000, 2_500_000, 10_000_000,
)  # fmt: skip
"""Upper bounds, inclusive, between which ``Counted.timed`` counts."""


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """Freeze the view, or the directory ``path`` of it, as snapshot ``name``."""

    name: str
    path: bytes = b""
    tags: dict[str, str] = {}


class Status(msgspec.Struct, frozen=True, tag="status"):
    """Who are you?"""


class Fold(msgspec.Struct, frozen=True, tag="fold"):
    """Turn the journal into trees now."""


class LookAtLimits(msgspec.Struct, frozen=True, tag="look-at-limits"):
    """Limits of the store or of your view were changed: take them over."""


class Counters(msgspec.Struct, frozen=True, tag="counters"):
    """What have you done so far, and what do you hold?"""


class Base(msgspec.Struct, frozen=True, tag="base"):
    """Which tree does your read-only mount show, whatever became of the snapshot meanwhile?"""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Unmount and end in order; the answer comes before the end."""


Request = Commit | Status | Fold | LookAtLimits | Counters | Base | Stop


class Committed(msgspec.Struct, frozen=True, tag="committed"):
    """The snapshot that was made: entries and logical bytes below its root."""

    name: str
    entries: int
    logical_bytes: int


class Running(msgspec.Struct, frozen=True, tag="running"):
    """What a daemon serves. ``view`` is empty for a read-only mount."""

    pid: int
    view: str
    mountpoint: str
    read_only: bool
    supervisor: int = 0
    """The process that starts another daemon if this one dies, 0 if there is none."""
    snapshot: str = ""
    ephemeral: bool = False
    since_ns: int = 0
    """When it was mounted, whichever daemon serves it now; 0: that was told to nobody."""
    metrics: str = ""
    """The address at which it answers Prometheus, if it does."""


class Counted(msgspec.Struct, frozen=True, tag="counted"):
    """What a daemon has done since it began, and what it holds.

    Names have a unit. ``requests`` (by operation) and ``totals`` only grow while ``since_ns`` (in
    nanoseconds since 1970) stays what it is; a daemon that took over begins anew. A newer daemon
    may tell more, by other names; one that leaves a name out does not know.
    """

    since_ns: int
    requests: dict[str, int]
    totals: dict[str, int]
    gauges: dict[str, int]
    errors: dict[str, int] = {}
    """Failed requests by the name of their errno."""
    timed: dict[str, list[int]] = {}
    """Of some requests of each operation: how many nanoseconds they took in all, then a count for
    each of LATENCY_BOUNDS_US and for what took longer."""


class Shown(msgspec.Struct, frozen=True, tag="shown"):
    """A VIEW_ROOT payload (docs/format.md) with that tree; empty if the mount is not read-only."""

    root: bytes


class Done(msgspec.Struct, frozen=True, tag="done"):
    """It is done, or under way for ``Stop``."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """An error of ``dedupfs.errors`` by name."""

    error: str
    message: str

    @classmethod
    def of(cls, error: DedupfsError) -> "Failed":
        """Describe an error for the other process."""
        message = str(error).encode(errors="backslashreplace").decode()  # a path may be no UTF-8
        return cls(_known_class(type(error)).__name__, message)

    def raised(self) -> DedupfsError:
        """Return the error as this process would raise it."""
        error_class = getattr(dedupfs.errors, self.error, StoreError)
        if not isinstance(error_class, type) or not issubclass(error_class, DedupfsError):
            error_class = StoreError  # whoever answers may say anything
        return error_class(self.message)


def _known_class(error_class: type[DedupfsError]) -> type[DedupfsError]:
    """Return the nearest class that ``dedupfs.errors`` itself has."""
    for candidate in error_class.__mro__:
        if getattr(dedupfs.errors, candidate.__name__, None) is candidate:
            known: type[DedupfsError] = candidate
            return known
    return StoreError


Reply = Committed | Running | Counted | Shown | Done | Failed

_encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
_decode_reply = msgspec.json.Decoder(Reply).decode


def encode(message: Request | Reply) -> bytes:
    """Encode a message. JSON has no place for a path that is no UTF-8, so paths go as Latin-1."""
    if isinstance(message, Running):
        text = os.fsencode(message.mountpoint).decode("latin-1")
        message = msgspec.structs.replace(message, mountpoint=text)
    return _encode(message)


def _decoded(line: bytes) -> Reply:
    reply: Reply = _decode_reply(line)
    if isinstance(reply, Running):
        path = os.fsdecode(reply.mountpoint.encode("latin-1"))
        reply = msgspec.structs.replace(reply, mountpoint=path)
    return reply


def stem(view: str) -> str:
    """Return the name, without suffix, of a view's files in the run directory."""
    if len(view) <= _STEM_CHARACTERS_MAX:
        return f"view-{view}"
    # Too long for a socket's address and, with a suffix, for a file name.
    return f"view-{view[:32]}-{xxhash.xxh3_64_hexdigest(view.encode())}"


def anonymous_stem(pid: int) -> str:
    """Return the same for a mount that nobody asks for by its view's name."""
    return f"mount-{pid}"


def remove_leftovers(store_path: Path) -> None:
    """Remove the files of anonymous mounts whose supervisor and daemon are gone."""
    for path in (store_path / RUN_DIRECTORY).glob("mount-*"):
        match = _ANONYMOUS.fullmatch(path.stem)
        if match is None or _is_running(int(match[1])):
            continue
        if not _is_listening(path.with_suffix(SOCKET_SUFFIX)):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Whether a process runs; one that is dead and that nobody buries does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b") ")[2][:1] not in (b"Z", b"X")


def _is_listening(socket_path: Path) -> bool:
    """Whether a daemon is there: without its supervisor, or in another container."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            _connect(connection, socket_path, LISTENING_TIMEOUT_S)
        except (TimeoutError, BlockingIOError):
            return True
        except OSError:
            return False
    return True


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Give an address for ``path`` that fits into sockaddr_un however long its directory is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def ask(socket_path: Path, request: Request, *, timeout_s: float | None = None) -> Reply:
    """Send a request to a daemon and return its answer.

    Raises:
        StoreBusyError: no answer in time.
        StoreError: no daemon there, or it went away in the middle.
        DedupfsError: the one that the daemon answered with.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            _connect(connection, socket_path, timeout_s)
            with suppress(BrokenPipeError):  # the daemon may say no before it has read all
                connection.sendall(encode(request) + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline(_LINE_BYTES_MAX)
        except (TimeoutError, BlockingIOError) as exc:
            raise StoreBusyError(f"no answer from the daemon at {socket_path}") from exc
        except OSError as exc:
            raise StoreError(f"no daemon at {socket_path}: {exc.strerror}") from exc
    try:
        reply = _decoded(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise StoreError(f"the daemon at {socket_path} ended before it answered") from exc
    if isinstance(reply, Failed):
        raise reply.raised()
    return reply


def _connect(connection: socket.socket, path: Path, timeout_s: float | None) -> None:
    """Connect, waiting while more want to than the daemon takes at once.

    A socket with Python's own timeout would not wait, so the kernel's is used: socket(7).
    """
    if timeout_s is not None:
        timeout_us = max(1, int(timeout_s * 1e6))
        limit = struct.pack("ll", timeout_us // 10**6, timeout_us % 10**6)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    with short_address(path) as address:
        connection.connect(address)
    connection.settimeout(timeout_s)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that answered."""

    socket_path: Path
    running: Running


def daemons(store_path: Path) -> Iterator[Daemon]:
    """Find the live daemons of a store; sockets that a dead one left are passed over.

    Raises:
        StoreBusyError: one does not answer. StoreError: nobody may look for them.
    """
    for path in _sockets(store_path):
        found = _daemon_at_socket(path)
        if found is not None:
            yield found


def _sockets(store_path: Path) -> list[Path]:
    try:
        return sorted((store_path / RUN_DIRECTORY).glob(f"*{SOCKET_SUFFIX}"))
    except PermissionError as exc:
        raise StoreError(f"cannot look into {store_path}: {exc.strerror}") from exc


def _daemon_at_socket(path: Path) -> Daemon | None:
    """Return who answers; None when nobody is there. Errors as ``daemons``."""
    try:
        reply = ask(path, Status(), timeout_s=STATUS_TIMEOUT_S)
    except StoreBusyError:
        raise
    except StoreError:
        return None
    return Daemon(path, reply) if isinstance(reply, Running) else None


def daemon_of_view(store_path: Path, view: str) -> Daemon | None:
    """Return the daemon that serves a view, if there is one."""
    return next((found for found in daemons(store_path) if found.running.view == view), None)


def daemon_at(store_path: Path, mountpoint: Path) -> Daemon | None:
    """Return the daemon behind a mount point, if there is one."""
    wanted = os.fspath(mountpoint)
    return next(
        (found for found in daemons(store_path) if found.running.mountpoint == wanted), None
    )


def fold_all(store_path: Path, on_problem: Callable[[str], None]) -> None:
    """Have the live views of a store let go of what was deleted in them; dead ones are passed over.

    ``on_problem`` hears of those that cannot or do not answer: on a full disk no fold may succeed
    before gc, which asks for it, has freed something.
    """
    for path in _sockets(store_path):
        where = os.fspath(path)
        try:
            found = _daemon_at_socket(path)
            if found is not None and not found.running.read_only:
                where = found.running.mountpoint
                ask(path, Fold())
        except DedupfsError as exc:
            on_problem(f"{where} holds what was deleted in it until its next fold: {exc}")


class ProcessEnd:
    """Waits for a process that need not be our child; made while it surely still runs."""

    def __init__(self, pid: int) -> None:
        try:
            self._handle: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._handle = None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether it ended within ``timeout_s``."""
        if self._handle is None:
            return True
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def close(self) -> None:
        """Forget the process."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
