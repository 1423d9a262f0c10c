"""Answers to OPENDIR that let the kernel keep the listing, which pyfuse3 has no way to say.

For the time of one answer, libfuse's descriptor of the device is one end of a socket pair; the
answer comes out of the other end, gets the flag, and goes to the kernel. The kernel asks whether a
listing that it keeps is still true only where it is read from its begin (fs/fuse/readdir.c,
fuse_readdir_cached). Knows bytes and descriptors, no directories. Source:
linux/include/uapi/linux/fuse.h (fuse_out_header, fuse_open_out).

Between ``begin`` and ``finish`` nothing may be awaited: every answer would take the detour, and a
task that begins to wait for the device would wait for the socket.
"""

import os
import socket
import struct

CACHE_DIR = 1 << 3
"""FOPEN_CACHE_DIR; FOPEN_KEEP_CACHE has to go with it, or each opendir drops what was kept."""
KEEP_CACHE = 1 << 1

_ANSWER = struct.Struct("<IiQQII")  # length, error, unique; handle, open_flags, backing_id
_ANSWER_BYTES_MAX = 4096


def keeping_listing(answer: bytes) -> bytes:
    """Return the answer to OPENDIR with the flags; any other answer as it is."""
    if len(answer) != _ANSWER.size:
        return answer
    length, error, unique, handle, flags, backing_id = _ANSWER.unpack(answer)
    if error:
        return answer
    flags |= CACHE_DIR | KEEP_CACHE
    return _ANSWER.pack(length, error, unique, handle, flags, backing_id)


class Detour:
    """Stands between libfuse and the kernel for one answer at a time."""

    def __init__(self, session_fd: int) -> None:
        """``session_fd``: libfuse's descriptor of the device."""
        self._session_fd = session_fd
        self._device = os.dup(session_fd)
        self._theirs, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self.under_way = False

    def begin(self) -> None:
        """Let the next answer take the detour."""
        os.dup2(self._theirs.fileno(), self._session_fd, inheritable=False)
        self.under_way = True

    def finish(self) -> None:
        """Give libfuse the device again, and the kernel its answer."""
        self.under_way = False
        os.dup2(self._device, self._session_fd, inheritable=False)
        try:
            answer = self._ours.recv(_ANSWER_BYTES_MAX)
        except BlockingIOError:  # there was none
            return
        try:
            os.write(self._device, keeping_listing(answer))
        except FileNotFoundError:  # the request was interrupted (fs/fuse/dev.c)
            return
        except OSError:  # the mount is gone
            return

    def close(self) -> None:
        """Give back all descriptors but libfuse's."""
        if self.under_way:
            self.finish()
        os.close(self._device)
        self._theirs.close()
        self._ours.close()
