"""The INIT handshake with the kernel, with flags in our answer that libfuse does not know.

libfuse is given one end of a socket pair as its device. The kernel's INIT goes to it through the
pair; its answer comes back, gets our flags, and goes to the kernel; then the device takes the place
of libfuse's end. Knows bytes and descriptors, no requests. Source: linux/include/uapi/linux/fuse.h
(fuse_in_header, fuse_init_in, fuse_out_header, fuse_init_out), libfuse's lib/fuse_lowlevel.c.
"""

import logging
import os
import select
import socket
import struct

log = logging.getLogger(__name__)

DONT_MASK = 1 << 6
"""The umask is left to us, which default ACLs need; as root MS_POSIXACL says the same."""
PARALLEL_DIROPS = 1 << 18
"""Look-ups and listings in one directory need not wait for each other."""
CACHE_SYMLINKS = 1 << 23
"""Targets stay in the page cache: they never change here."""
HANDLE_KILLPRIV_V2 = 1 << 28
"""We clear suid, sgid and capabilities ourselves; without it each write(2) asks for an xattr."""
WANTED = DONT_MASK | PARALLEL_DIROPS | CACHE_SYMLINKS | HANDLE_KILLPRIV_V2

_REQUEST_BYTES_MAX = 1 << 21
_IN_OPCODE = struct.Struct("<II")  # fuse_in_header: length, opcode
_INIT = 26
_IN_FLAGS = 40 + 12  # behind fuse_in_header: major, minor, max_readahead, flags
_OUT_FLAGS = 16 + 12  # behind fuse_out_header: the same
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


class Handshake:
    """One handshake under way: ``session_fd`` is for libfuse, which owns it from then on."""

    def __init__(self, device: int) -> None:
        """Read the kernel's INIT from ``device``, just mounted, and pass it on."""
        self._device = device
        session, self._proxy = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.session_fd = session.detach()
        request = os.read(device, _REQUEST_BYTES_MAX)
        self._offered = offered_flags(request)
        self._proxy.send(request)
        self._answered = select.poll()
        self._answered.register(self._proxy, select.POLLIN)
        self.flags = 0
        """Those of WANTED that were agreed, once it is done."""

    def finish(self) -> bool:
        """Pass libfuse's answer on if it is there, and give it the device; say whether it was."""
        if not self._answered.poll(0):
            return False
        reply = self._proxy.recv(_REQUEST_BYTES_MAX)
        os.write(self._device, answer_with(reply, self._offered))
        self.flags = self._offered & WANTED
        os.dup2(self._device, self.session_fd, inheritable=False)
        self.close()
        log.debug("handshake done flags=%#x", self.flags)
        return True

    def close(self) -> None:
        """Give back what libfuse does not own."""
        self._proxy.close()
        os.close(self._device)
