"""The port to the operating system: what the store needs of a file system, and its open files.

Knows no pack and no format. ``store/realdisk.py`` is the machine's own; tests put another ``Disk``
(tests/fakes.py) in its place that fails, or stops as a crash does, at the n-th call.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class File:
    """An open descriptor and its path; closed when the last reference to it goes.

    So a thread that reads from a file keeps it open, whatever a cache of files does meanwhile.
    """

    __slots__ = ("__weakref__", "fd", "path")
    _close = staticmethod(os.close)  # one may outlive this module's names, when a program ends

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path

    def close(self) -> None:
        """Close the descriptor now, which also gives its lock back."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            try:  # noqa: SIM105 - suppress is one of those names
                self._close(fd)
            except OSError:
                pass

    def __del__(self) -> None:
        self.close()


class Disk(Protocol):
    """What the store needs of a file system. Offsets and lengths are bytes.

    Every method raises StoreFullError (ENOSPC, EDQUOT), FileLimitError (EFBIG) or another
    StoreError, with the path.
    """

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> File:
        """Open a file; FileNotFoundError (as it is) when it does not exist and is not created."""
        ...

    def pwrite(self, file: File, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all of ``buffers`` one behind the other at ``offset``."""
        ...

    def pread(self, file: File, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes; fewer only at the end of the file."""
        ...

    def preadv(self, file: File, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill ``buffers`` one behind the other; return how many bytes there were: fewer only at
        the end of the file."""
        ...

    def preadv_cached(self, file: File, buffers: Sequence[memoryview], offset: int) -> bool:
        """Fill ``buffers`` if the page cache has all of it, else return False at once."""
        ...

    def will_need(self, file: File, start: int, stop: int) -> None:
        """Begin to read ``[start, stop)`` into the page cache, without waiting for it."""
        ...

    def write_out(self, file: File, start: int, stop: int) -> None:
        """Begin to write ``[start, stop)`` to the disk, without waiting for it: only advice."""
        ...

    def drop_cached(self, file: File, start: int, stop: int) -> None:
        """Leave nothing of ``[start, stop)`` in the page cache that the disk has: only advice."""
        ...

    def pread_once(self, file: File, length: int, offset: int) -> bytes | bytearray:
        """As ``pread``, for bytes that nobody is likely to want again: they are not cached."""
        ...

    def size(self, file: File) -> int:
        """Return the length of the file."""
        ...

    def fsync(self, file: File) -> None:
        """Make data and metadata durable."""
        ...

    def fdatasync(self, file: File) -> None:
        """Make the data durable, and the metadata that is needed to read it."""
        ...

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a directory durable."""
        ...

    def truncate(self, file: File, length: int) -> None:
        """Cut the file to ``length``."""
        ...

    def touch(self, file: File, mtime_ns: int) -> None:
        """Set the time of the last change."""
        ...

    def punch(self, file: File, start: int, stop: int) -> bool:
        """Give the blocks of ``[start, stop)`` back; False when the file system cannot."""
        ...

    def clone(self, source: File, start: int, stop: int, target: File, offset: int) -> bool:
        """Let ``target`` share the blocks of ``[start, stop)`` from ``offset`` on (FICLONERANGE).

        False when the file system cannot, or not these: all but the end of ``source`` must be whole
        blocks.
        """
        ...

    def is_solid(self, file: File, start: int, stop: int) -> bool:
        """Whether no part of ``[start, stop)`` is known to be a hole."""
        ...

    def next_data(self, file: File, start: int) -> int | None:
        """Return the first offset from ``start`` on that is in no known hole; None when none is."""
        ...

    def data_bytes(self, file: File, start: int, stop: int) -> int:
        """Return how many bytes of ``[start, stop)`` are in no known hole."""
        ...

    def reserve(self, path: Path, spare_bytes: int) -> bool:
        """Keep ``spare_bytes`` allocated behind the end of a file; False when the disk is full."""
        ...

    def chmod(self, path: Path, mode: int) -> None:
        """Change permissions."""
        ...

    def mkdir(self, path: Path) -> None:
        """Make a directory (0700), unless it exists."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing ``target``."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """Make a hard link; StoreError when ``target`` exists."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a name, if it is there."""
        ...

    def link_count(self, path: Path) -> int:
        """Return how many names the file has; 0 when it does not exist."""
        ...

    def disk_bytes(self, path: Path) -> int:
        """Return what the file system has given out for a file; 0 when it does not exist."""
        ...

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted; none when it does not exist."""
        ...

    def lock(self, file: File, *, wait: bool = False) -> bool:
        """Take the exclusive lock that the kernel drops with its holder; False when taken."""
        ...
