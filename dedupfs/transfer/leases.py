"""Whether anybody has a file open for writing, and whether anybody has tried to since.

A read lease is refused while somebody has the file open for writing or mapped so, and whoever wants
to open it for writing waits until the lease is given back, which its holder can see. It belongs to
the file's owner or to root. Source: fcntl(2) F_SETLEASE; Linux fs/locks.c.
"""

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_F_SETSIG = 10  # linux/fcntl.h
_UNABLE = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK})


class Lease:
    """A read lease of an open file."""

    def __init__(self, fd: int) -> None:
        """Take it.

        Raises:
            BlockingIOError: somebody has the file open for writing.
            PermissionError: it is another user's file.
            OSError: the file system has no leases.
        """
        self._fd = fd
        # A broken lease is told by a signal: one that does nothing unless somebody listens.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)

    @property
    def holds(self) -> bool:
        """Whether nobody has tried to open the file for writing since."""
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK

    def release(self) -> None:
        """Give it back; whoever waits for it goes on."""
        with suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


@contextmanager
def leased(fd: int) -> Iterator[Lease]:
    """Hold a read lease; errors as ``Lease``."""
    lease = Lease(fd)
    try:
        yield lease
    finally:
        lease.release()


def why_not_leased(exc: OSError) -> str:
    """Say why a lease was refused."""
    if exc.errno == errno.EAGAIN:
        return "in use: somebody has it open for writing"
    if exc.errno == errno.EACCES:
        return "it belongs to another user"
    if exc.errno in _UNABLE:
        return "its file system cannot tell who has it open"
    return exc.strerror or str(exc)


def why_busy(fd: int) -> str | None:
    """Say why a file cannot be had alone just now; None when it can."""
    try:
        with leased(fd):
            return None
    except OSError as exc:
        return why_not_leased(exc)


def open_again(fd: int, flags: int) -> int:
    """Open what ``fd`` (opened with O_PATH) is, whatever its name means by now."""
    return os.open(b"/proc/self/fd/%d" % fd, flags | os.O_CLOEXEC)
