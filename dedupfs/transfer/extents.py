"""Files that share their blocks: clone one, share with another what is equal, tell what is shared.

XFS and btrfs do it; elsewhere everything here says so by False or None. Knows no store.
Source: ioctl_ficlone(2), ioctl_fideduperange(2), Linux Documentation/filesystems/fiemap.rst.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

_FICLONE = 0x40049409  # linux/fs.h
_FIDEDUPERANGE = 0xC0189436
_FIEMAP = 0xC020660B
_DEDUPE = struct.Struct("=QQHHIqQQiI")  # struct file_dedupe_range with one file_dedupe_range_info
_FIEMAP_HEAD = struct.Struct("=QQIIII")
_FIEMAP_EXTENT = struct.Struct("=QQQQQIIII")
_FLAG_SYNC = 0x01
_EXTENT_LAST = 0x01
_EXTENT_UNKNOWN = 0x02 | 0x04 | 0x08 | 0x100 | 0x200 | 0x400
"""Not on disk yet, compressed, inline, packed with others: the place says nothing."""
_EXTENT_SHARED = 0x2000
_EXTENTS_AT_ONCE = 256
STEP_BYTES = 16 << 20
"""What btrfs deals with in one call; a lock is held meanwhile."""
_UNABLE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EPERM}
)

Blocks = tuple[tuple[int, int, int], ...]
"""(file offset, place on the device, length) of every run of blocks that a file has."""


def clone(source_fd: int, target_fd: int) -> bool:
    """Make the file ``target_fd`` one that shares every block with ``source_fd``; or say False.

    Raises:
        OSError: the file systems can, and something else went wrong.
    """
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as exc:
        if exc.errno in _UNABLE:
            return False
        raise
    return True


def share(source_fd: int, target_fd: int, size: int) -> bool:
    """Have ``target_fd`` use the blocks of ``source_fd`` where their bytes are equal.

    The kernel locks both files, compares the bytes and then changes where they lie, nothing else:
    no time, no attribute, whoever has the file open. A range that differs stays as it is.

    Returns:
        Whether all ``size`` bytes were equal.

    Raises:
        OSError: the file systems cannot, or the file may not be changed.
    """
    offset = 0
    while offset < size:
        length = min(STEP_BYTES, size - offset)
        request = bytearray(_DEDUPE.pack(offset, length, 1, 0, 0, target_fd, offset, 0, 0, 0))
        fcntl.ioctl(source_fd, _FIDEDUPERANGE, request)
        done, status = _DEDUPE.unpack(request)[7:9]
        if status < 0:
            raise OSError(-status, errno.errorcode.get(-status, "the kernel refused"))
        if status or not done:
            return False
        offset += done
    return True


def blocks_of(fd: int) -> Blocks | None:
    """Return where a file's data lies; None when the file system does not tell, or not exactly."""
    found: list[tuple[int, int, int]] = []
    try:
        for logical, physical, length, flags in _extents(fd):
            if flags & _EXTENT_UNKNOWN:
                return None
            found.append((logical, physical, length))
    except OSError:
        return None
    return tuple(found)


def shared_bytes(fd: int) -> int:
    """Return how many bytes of a file lie in blocks that other files have, too, as far as known."""
    size = os.fstat(fd).st_size
    shared = 0
    try:
        for logical, _physical, length, flags in _extents(fd):
            if flags & _EXTENT_SHARED:
                shared += max(0, min(logical + length, size) - logical)
    except OSError:
        return 0
    return shared


def _extents(fd: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield file offset, place on the device, length and flags of each run of blocks.

    Raises:
        OSError: the file system cannot tell.
    """
    start = 0
    while True:
        room = bytes(_FIEMAP_EXTENT.size * _EXTENTS_AT_ONCE)
        head = _FIEMAP_HEAD.pack(start, (1 << 64) - 1 - start, _FLAG_SYNC, 0, _EXTENTS_AT_ONCE, 0)
        request = bytearray(head + room)
        fcntl.ioctl(fd, _FIEMAP, request)
        count = _FIEMAP_HEAD.unpack_from(request)[3]
        if not count:
            return
        for index in range(count):
            at = _FIEMAP_HEAD.size + index * _FIEMAP_EXTENT.size
            logical, physical, length, _, _, flags, *_ = _FIEMAP_EXTENT.unpack_from(request, at)
            yield logical, physical, length, flags
            if flags & _EXTENT_LAST:
                return
            start = logical + length
