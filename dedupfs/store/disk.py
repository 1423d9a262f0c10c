"""The port to the operating system: the only place where the store touches files.

Knows no pack and no format. ``OSError`` is translated here, once. Tests put another ``Disk``
(tests/fakes.py) in its place that fails, or stops as a crash does, at the n-th call.
"""

import ctypes
import errno
import fcntl
import functools
import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from dedupfs.errors import FileLimitError, StoreError, StoreFullError

Buffer = bytes | bytearray | memoryview

_KEEP_SIZE = 0x01  # linux/falloc.h
_PUNCH_HOLE = 0x02
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KINDS: dict[int, type[StoreError]] = {
    errno.ENOSPC: StoreFullError,
    errno.EDQUOT: StoreFullError,
    errno.EFBIG: FileLimitError,
}
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS)
_NOT_NOW = (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL)
_FICLONERANGE = 0x4020940D  # linux/fs.h
_CLONE_RANGE = struct.Struct("@qQQQ")
_NO_CLONES = (
    *(errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS),
    errno.EPERM,  # one of them is immutable, or a swap file
    errno.EBADF,  # btrfs: one of them is not checksummed (nodatasum)
    errno.ETXTBSY,
)
_IOV_MAX = 512
_STAT_BLOCK_BYTES = 512  # whatever the file system's own are (inode(7))
_ADVICE_BYTES = 128 << 10
"""Of one call the kernel takes no more than the disk's read_ahead_kb, 128 unless somebody raised
it, or its longest request, and says nothing (force_page_cache_ra in mm/readahead.c)."""

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_RWF_DONTCACHE = 0x80  # linux/fs.h
_DONTCACHE_KERNEL_MIN = (6, 16)
"""Earlier ones have the flag too, and a race between such a write and what follows it."""


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


def clone_range(source_fd: int, start: int, stop: int, target_fd: int, offset: int) -> bool:
    """Share blocks between two files: see ``Disk.clone``, which this is without a translation."""
    argument = _CLONE_RANGE.pack(source_fd, start, stop - start, offset)
    try:
        fcntl.ioctl(target_fd, _FICLONERANGE, argument)
    except OSError as exc:
        if exc.errno in _NO_CLONES:
            return False
        raise
    return True


class File:
    """An open descriptor and its path; closed when the last reference to it goes.

    So a thread that reads from a file keeps it open, whatever a cache of files does meanwhile.
    """

    __slots__ = ("fd", "path")
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


@contextmanager
def _translated(what: str, path: object) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _translate(exc, what, path) from exc


def _translate(exc: OSError, what: str, path: object) -> StoreError:
    kind = _KINDS.get(exc.errno or 0, StoreError)
    return kind(f"{what} {path}: {exc.strerror or exc}")


class RealDisk:
    """``Disk`` on the machine's own file systems."""

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> File:
        flags = os.O_CLOEXEC | (os.O_RDWR if write or create else os.O_RDONLY)
        try:
            return File(os.open(path, flags | (os.O_CREAT if create else 0), 0o600), path)
        except FileNotFoundError:
            raise
        except OSError as exc:
            raise _translate(exc, "cannot open", path) from exc

    def pwrite(self, file: File, buffers: Sequence[Buffer], offset: int) -> None:
        if len(buffers) == 1:  # as nearly always, and nearly always all of it at once
            try:
                written = os.pwrite(file.fd, buffers[0], offset)
            except OSError as exc:
                raise _translate(exc, "cannot write", file.path) from exc
            if written == memoryview(buffers[0]).nbytes:
                return
        rest = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        with _translated("cannot write", file.path):
            while rest:
                written = os.pwritev(file.fd, rest[:_IOV_MAX], offset)
                offset += written
                while rest and written >= len(rest[0]):
                    written -= len(rest.pop(0))
                if written:
                    rest[0] = rest[0][written:]

    def pread(self, file: File, length: int, offset: int) -> bytes:
        try:
            data = os.pread(file.fd, length, offset)
            while len(data) < length:
                more = os.pread(file.fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data
        except (OverflowError, MemoryError) as exc:  # a damaged row may say anything
            raise StoreError(f"cannot read {length} bytes at {offset} of {file.path}") from exc
        except OSError as exc:
            raise _translate(exc, "cannot read", file.path) from exc

    def preadv(self, file: File, buffers: Sequence[memoryview], offset: int) -> int:
        rest = list(buffers)
        done = 0
        try:
            while rest:
                got = os.preadv(file.fd, rest[:_IOV_MAX], offset + done)
                if not got:
                    break
                done += got
                while rest and got >= len(rest[0]):
                    got -= len(rest.pop(0))
                if got:
                    rest[0] = rest[0][got:]
        except OverflowError as exc:  # a damaged row may say anything
            raise StoreError(f"cannot read at {offset} of {file.path}") from exc
        except OSError as exc:
            raise _translate(exc, "cannot read", file.path) from exc
        return done

    def preadv_cached(self, file: File, buffers: Sequence[memoryview], offset: int) -> bool:
        try:
            got = os.preadv(file.fd, buffers, offset, os.RWF_NOWAIT)
        except OverflowError:
            return False  # the slow way will say what is wrong
        except OSError as exc:
            if exc.errno in _NOT_NOW:
                return False
            raise _translate(exc, "cannot read", file.path) from exc
        return got == sum([len(buffer) for buffer in buffers])

    def will_need(self, file: File, start: int, stop: int) -> None:
        with suppress(OSError, OverflowError):  # only advice
            for at in range(start, stop, _ADVICE_BYTES):
                length = min(_ADVICE_BYTES, stop - at)
                os.posix_fadvise(file.fd, at, length, os.POSIX_FADV_WILLNEED)

    def write_out(self, file: File, start: int, stop: int) -> None:
        # Without waiting, this says nothing of failures, and takes none from the sync to come.
        _sync_file_range(file.fd, start, stop - start, _SYNC_FILE_RANGE_WRITE)

    def drop_cached(self, file: File, start: int, stop: int) -> None:
        with suppress(OSError):
            os.posix_fadvise(file.fd, start, stop - start, os.POSIX_FADV_DONTNEED)

    def pread_once(self, file: File, length: int, offset: int) -> bytes | bytearray:
        flags = uncached_flags()
        if flags:
            buffer = bytearray(length)
            try:
                if os.preadv(file.fd, [buffer], offset, flags) == length:
                    return buffer
            except (OSError, OverflowError):
                pass  # no such flag here; or else the ordinary way will say what is wrong
        return self.pread(file, length, offset)

    def size(self, file: File) -> int:
        with _translated("cannot stat", file.path):
            return os.fstat(file.fd).st_size

    def fsync(self, file: File) -> None:
        with _translated("cannot sync", file.path):
            os.fsync(file.fd)

    def fdatasync(self, file: File) -> None:
        with _translated("cannot sync", file.path):
            os.fdatasync(file.fd)

    def fsync_dir(self, path: Path) -> None:
        with _translated("cannot sync", path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def truncate(self, file: File, length: int) -> None:
        with _translated("cannot truncate", file.path):
            os.ftruncate(file.fd, length)

    def touch(self, file: File, mtime_ns: int) -> None:
        with _translated("cannot change", file.path):
            os.utime(file.fd, ns=(mtime_ns, mtime_ns))

    def punch(self, file: File, start: int, stop: int) -> bool:
        if _fallocate(file.fd, _PUNCH_HOLE | _KEEP_SIZE, start, stop - start) == 0:
            return True
        number = ctypes.get_errno()
        if number in _NO_HOLES:
            return False
        raise _translate(OSError(number, os.strerror(number)), "cannot punch", file.path)

    def clone(self, source: File, start: int, stop: int, target: File, offset: int) -> bool:
        with _translated("cannot share blocks with", target.path):
            return clone_range(source.fd, start, stop, target.fd, offset)

    def is_solid(self, file: File, start: int, stop: int) -> bool:
        try:
            return os.lseek(file.fd, start, os.SEEK_HOLE) >= stop
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # start is behind the end
                return False
            raise _translate(exc, "cannot seek in", file.path) from exc

    def next_data(self, file: File, start: int) -> int | None:
        try:
            return os.lseek(file.fd, start, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # a hole up to the end, or start is behind it
                return None
            raise _translate(exc, "cannot seek in", file.path) from exc

    def data_bytes(self, file: File, start: int, stop: int) -> int:
        found = 0
        while start < stop:
            data = self.next_data(file, start)
            if data is None or data >= stop:
                break
            with _translated("cannot seek in", file.path):
                start = min(stop, os.lseek(file.fd, data, os.SEEK_HOLE))
            found += start - data
        return found

    def reserve(self, path: Path, spare_bytes: int) -> bool:
        with _translated("cannot reserve", path):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                failed = _fallocate(fd, _KEEP_SIZE, size, spare_bytes)
                return not (failed and ctypes.get_errno() in _FULL)
            finally:
                os.close(fd)

    def chmod(self, path: Path, mode: int) -> None:
        with _translated("cannot change", path):
            os.chmod(path, mode)

    def mkdir(self, path: Path) -> None:
        with _translated("cannot make", path), suppress(FileExistsError):
            os.mkdir(path, 0o700)

    def rename(self, source: Path, target: Path) -> None:
        with _translated("cannot rename to", target):
            os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        with _translated("cannot link to", target):
            os.link(source, target)

    def unlink(self, path: Path) -> None:
        with _translated("cannot remove", path), suppress(FileNotFoundError):
            os.unlink(path)

    def link_count(self, path: Path) -> int:
        with _translated("cannot stat", path):
            try:
                return os.stat(path).st_nlink
            except FileNotFoundError:
                return 0

    def disk_bytes(self, path: Path) -> int:
        with _translated("cannot stat", path):
            try:
                return os.stat(path).st_blocks * _STAT_BLOCK_BYTES
            except FileNotFoundError:
                return 0

    def listdir(self, path: Path) -> list[str]:
        with _translated("cannot list", path):
            try:
                return sorted(os.listdir(path))
            except FileNotFoundError:
                return []

    def lock(self, file: File, *, wait: bool = False) -> bool:
        with _translated("cannot lock", file.path):
            try:
                fcntl.flock(file.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                return True
            except BlockingIOError:
                return False
