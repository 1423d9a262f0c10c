"""The machine's own file systems as a ``Disk``; ``OSError`` is translated here.

Knows no pack and no format.
"""

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dedupfs.errors import FileLimitError, StoreError, StoreFullError
from dedupfs.store import syscalls
from dedupfs.store.disk import Buffer, File

_KINDS: dict[int, type[StoreError]] = {
    errno.ENOSPC: StoreFullError,
    errno.EDQUOT: StoreFullError,
    errno.EFBIG: FileLimitError,
}
_NOT_NOW = (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL)
_IOV_MAX = 512
_STAT_BLOCK_BYTES = 512  # whatever the file system's own are (inode(7))
_ADVICE_BYTES = 128 << 10
"""Of one call the kernel takes no more than the disk's read_ahead_kb, 128 unless somebody raised
it, or its longest request, and says nothing (force_page_cache_ra in mm/readahead.c)."""


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
        syscalls.begin_to_write(file.fd, start, stop)

    def drop_cached(self, file: File, start: int, stop: int) -> None:
        with suppress(OSError):
            os.posix_fadvise(file.fd, start, stop - start, os.POSIX_FADV_DONTNEED)

    def pread_once(self, file: File, length: int, offset: int) -> bytes | bytearray:
        flags = syscalls.uncached_flags()
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
        with _translated("cannot punch", file.path):
            return syscalls.punch(file.fd, start, stop)

    def clone(self, source: File, start: int, stop: int, target: File, offset: int) -> bool:
        with _translated("cannot share blocks with", target.path):
            return syscalls.clone_range(source.fd, start, stop, target.fd, offset)

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
                return syscalls.reserve_behind(fd, spare_bytes)
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
