"""Between a daemon and its supervisor: what the one hands over for the next to go on.

Descriptors travel over a socket pair (SCM_RIGHTS); the supervisor only keeps them. Knows neither
views nor FUSE. Source: unix(7).
"""

import socket
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from dedupfs.namespace.handover import Handover
from dedupfs.namespace.live import Failed

_MESSAGE_BYTES_MAX = 1 << 16
_FDS_MAX = 16
DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Baton:
    """A connection to the kernel and the state of what it shows; ``fds`` belong to the holder."""

    view: str
    root: bytes
    owner: bytes
    fds: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, device: int, handover: Handover) -> "Baton":
        """Put what a daemon has into one."""
        fds = {DEVICE: device, **handover.fds}
        return cls(handover.view, handover.root, handover.owner, fds)

    @property
    def device(self) -> int:
        """The connection."""
        return self.fds[DEVICE]

    @property
    def handover(self) -> Handover:
        """The view's part."""
        rest = {name: fd for name, fd in self.fds.items() if name != DEVICE}
        return Handover(self.view, self.root, self.owner, rest)


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The daemon answers requests. ``names``: of the descriptors that come along, if any do."""

    view: str = ""
    root: bytes = b""
    owner: bytes = b""
    names: tuple[str, ...] = ()


Message = Ready | Failed
_decode = msgspec.msgpack.Decoder(Message).decode


class Relay:
    """One end of the line; the supervisor's and the daemon's have the same methods."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    @classmethod
    def pair(cls) -> tuple["Relay", "Relay"]:
        """Make both ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._line.fileno()

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def ready(self, baton: Baton | None = None) -> None:
        """Say that requests are answered; ``baton``: what would be lost with this process.

        Without one it may be said again and again, and nobody need listen: a supervisor that was
        killed or stopped must not keep a daemon from its work.
        """
        if baton is None:
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                self._line.send(msgspec.msgpack.encode(Ready()), socket.MSG_DONTWAIT)
            return
        said = Ready(baton.view, baton.root, baton.owner, tuple(baton.fds))
        socket.send_fds(self._line, [msgspec.msgpack.encode(said)], list(baton.fds.values()))

    def failed(self, failed: Failed) -> None:
        """Say why this process ends."""
        self._line.send(msgspec.msgpack.encode(failed))

    def receive(self) -> Baton | Ready | Failed | None:
        """Return what was said: None when the other end is closed."""
        data, fds, _flags, _address = socket.recv_fds(self._line, _MESSAGE_BYTES_MAX, _FDS_MAX)
        if not data:
            return None
        said: Message = _decode(data)
        if isinstance(said, Ready) and said.names:
            return Baton(said.view, said.root, said.owner, dict(zip(said.names, fds, strict=True)))
        return said
