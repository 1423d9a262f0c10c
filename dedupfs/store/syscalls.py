"""System calls that Python has no name for, as they are: nothing here is translated.

Source: the man pages of Linux, and its headers where a number is named.
"""

import ctypes
import errno
import fcntl
import functools
import os
import re
import struct

_KEEP_SIZE = 0x01  # linux/falloc.h
_PUNCH_HOLE = 0x02
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FICLONERANGE = 0x4020940D  # linux/fs.h
_CLONE_RANGE = struct.Struct("@qQQQ")
_NO_CLONES = (
    *(errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS),
    errno.EPERM,  # one of them is immutable, or a swap file
    errno.EBADF,  # btrfs: one of them is not checksummed (nodatasum)
    errno.ETXTBSY,
)
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_RWF_DONTCACHE = 0x80  # linux/fs.h
_DONTCACHE_KERNEL_MIN = (6, 16)
"""Earlier ones have the flag too, and a race between such a write and what follows it."""

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


@functools.cache
def uncached_flags() -> int:
    """Return the flags of a preadv(2) or pwritev(2) that leaves no pages in the page cache.

    A write is begun at once, and a large file that is only to be on disk needs no more memory
    than is on its way. Pages that nobody had before may cost a virtual machine more than all that
    is done with them. 0 where the kernel cannot; a file system that cannot says EOPNOTSUPP.
    """
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    able = release is not None and tuple(map(int, release.groups())) >= _DONTCACHE_KERNEL_MIN
    return _RWF_DONTCACHE if able else 0


def begin_to_write(fd: int, start: int, stop: int) -> None:
    """Begin to write ``[start, stop)`` to the disk, without waiting for it: only advice."""
    _sync_file_range(fd, start, stop - start, _SYNC_FILE_RANGE_WRITE)


def punch(fd: int, start: int, stop: int) -> bool:
    """Give the blocks of ``[start, stop)`` back; False when the file system cannot."""
    if _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, start, stop - start) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_HOLES:
        return False
    raise OSError(number, os.strerror(number))


def reserve_behind(fd: int, spare_bytes: int) -> bool:
    """Keep ``spare_bytes`` allocated behind the end of a file; False when the disk is full."""
    failed = _fallocate(fd, _KEEP_SIZE, os.fstat(fd).st_size, spare_bytes)
    return not (failed and ctypes.get_errno() in _FULL)


def clone_range(source_fd: int, start: int, stop: int, target_fd: int, offset: int) -> bool:
    """Let a file share the blocks of ``[start, stop)`` of another from ``offset`` on.

    False when the file system cannot, or not these: all but the end of the source must be whole
    blocks.
    """
    argument = _CLONE_RANGE.pack(source_fd, start, stop - start, offset)
    try:
        fcntl.ioctl(target_fd, _FICLONERANGE, argument)
    except OSError as exc:
        if exc.errno in _NO_CLONES:
            return False
        raise
    return True
