"""The INIT handshake with the kernel, with flags in our answer that libfuse does not know.

libfuse is given one end of a socket pair as its device. The kernel's INIT goes to it through the
pair; its answer comes back, gets our flags, and goes to the kernel; then the device takes the
place of libfuse's end. A daemon that takes over does the same with the INIT that was kept: then the
kernel has its answer already, and is asked to send again what the dead daemon had not answered.
Knows bytes and descriptors, not what requests mean. Source: linux/include/uapi/linux/fuse.h
(fuse_in_header, fuse_init_in, fuse_out_header, fuse_init_out), fs/fuse/dev.c (fuse_resend),
libfuse's lib/fuse_lowlevel.c.
"""

import logging
import os
import select
import socket
import struct
from dataclasses import dataclass

log = logging.getLogger(__name__)

DONT_MASK = 1 << 6
"""The umask is left to us, which default ACLs need; as root MS_POSIXACL says the same."""
PARALLEL_DIROPS = 1 << 18
"""Look-ups and listings in one directory need not wait for each other."""
CACHE_SYMLINKS = 1 << 23
"""Targets stay in the page cache: they never change here."""
HANDLE_KILLPRIV_V2 = 1 << 28
"""We clear suid, sgid and capabilities ourselves; without it each write(2) asks for an xattr."""
WRITEBACK_CACHE = 1 << 16
"""The kernel keeps writes in its page cache and hands them over later, with their times: only where
another daemon gets what it keeps."""
WANTED = DONT_MASK | PARALLEL_DIROPS | CACHE_SYMLINKS | HANDLE_KILLPRIV_V2

_REQUEST_BYTES_MAX = 1 << 21
_IN_OPCODE = struct.Struct("<II")  # fuse_in_header: length, opcode
_INIT = 26
_IN_FLAGS = 40 + 12  # behind fuse_in_header: major, minor, max_readahead, flags
_OUT_FLAGS = 16 + 12  # behind fuse_out_header: the same
_IN_FLAGS2 = _IN_FLAGS + 4
_HAS_RESEND = 1 << 7  # FUSE_HAS_RESEND is bit 39
_IN_HEADER = struct.Struct("<IIQQIII")  # length, opcode, unique, nodeid, uid, gid, pid
_UNIQUE_RESEND = 1 << 63
_NOTIFY_RESEND = struct.pack("<IiQ", 16, 7, 0)  # fuse_out_header: length, error = code, unique
_U32 = struct.Struct("<I")


def answer_with(reply: bytes, offered: int, wanted: int = WANTED) -> bytes:
    """Return libfuse's INIT reply with those of the ``wanted`` flags that the kernel offered.

    Anything that does not look like such a reply is returned as it is.
    """
    if len(reply) < _OUT_FLAGS + _U32.size:
        return reply
    (flags,) = _U32.unpack_from(reply, _OUT_FLAGS)
    changed = bytearray(reply)
    _U32.pack_into(changed, _OUT_FLAGS, flags | (offered & wanted))
    return bytes(changed)


def offered_flags(request: bytes) -> int:
    """Return the flags of an INIT request; none when it is something else or too short."""
    if len(request) < _IN_FLAGS + _U32.size:
        return 0
    _length, opcode = _IN_OPCODE.unpack_from(request)
    if opcode != _INIT:
        return 0
    (flags,) = _U32.unpack_from(request, _IN_FLAGS)
    return int(flags)


def can_resend(request: bytes) -> bool:
    """Whether the kernel that sent this INIT can send requests again (Linux 6.9)."""
    if not offered_flags(request) or len(request) < _IN_FLAGS2 + _U32.size:
        return False
    (flags2,) = _U32.unpack_from(request, _IN_FLAGS2)
    return bool(flags2 & _HAS_RESEND)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request that a daemon had taken when it died.

    ``unique``: its number, which no other request ever has; ``body``: what follows the header.
    """

    unique: int
    opcode: int
    inode: int
    pid: int
    body: bytes


def unanswered(device: int) -> list[Unanswered]:
    """Look at the requests that a dead daemon had taken and not answered.

    They stay unanswered: the handshake of the next daemon has the kernel send them once more.
    """
    found = []
    # Written to before: a request fails with EIO when its reader is killed while the kernel copies
    # it to a page that is not there yet (fs/fuse/dev.c, fuse_dev_do_read).
    request = bytearray(b"\xff") * _REQUEST_BYTES_MAX
    os.set_blocking(device, False)
    try:
        os.write(device, _NOTIFY_RESEND)
        while True:
            stop = os.readv(device, [request])
            _length, opcode, unique, inode, _uid, _gid, pid = _IN_HEADER.unpack_from(request)
            if unique & _UNIQUE_RESEND:
                body = bytes(memoryview(request)[_IN_HEADER.size + 4 : stop])
                found.append(Unanswered(unique & ~_UNIQUE_RESEND, opcode, inode, pid, body))
    except BlockingIOError:
        return found
    except OSError as exc:  # the mount was taken away meanwhile: nobody waits for anything
        log.info("connection is gone: %s", exc.strerror)
        return found
    finally:
        os.set_blocking(device, True)


class Handshake:
    """One handshake under way: ``session_fd`` is for libfuse, which owns it from then on."""

    def __init__(
        self, device: int, init_request: bytes = b"", *, cached_writes: bool = False
    ) -> None:
        """Read the kernel's INIT from ``device``, just mounted, and pass it on.

        ``init_request``: the one that the daemon had read which this one takes over from.
        ``cached_writes``: ask for a writeback cache (or, of that daemon, whether it has one).
        """
        self._device = device
        self._repeats = bool(init_request)
        session, self._proxy = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.session_fd = session.detach()
        self.request = init_request or os.read(device, _REQUEST_BYTES_MAX)
        self._offered = offered_flags(self.request)
        self._proxy.send(self.request)
        self._answered = select.poll()
        self._answered.register(self._proxy, select.POLLIN)
        self._wanted = WANTED
        if cached_writes and can_resend(self.request):
            self._wanted |= WRITEBACK_CACHE
        self.flags = 0
        """Those that we wanted and that were agreed, once it is done."""

    def finish(self) -> bool:
        """Pass libfuse's answer on if it is there, and give it the device; say whether it was."""
        if not self._answered.poll(0):
            return False
        reply = self._proxy.recv(_REQUEST_BYTES_MAX)
        answer = answer_with(reply, self._offered, self._wanted)
        os.write(self._device, _NOTIFY_RESEND if self._repeats else answer)
        self.flags = self._offered & self._wanted
        os.dup2(self._device, self.session_fd, inheritable=False)
        self.close()
        log.debug("handshake done flags=%#x", self.flags)
        return True

    @property
    def has_cached_writes(self) -> bool:
        """Whether the writeback cache is wanted and there."""
        return bool(self._offered & self._wanted & WRITEBACK_CACHE)

    def close(self) -> None:
        """Give back what libfuse does not own."""
        self._proxy.close()
        os.close(self._device)
