"""One file replaced by another object of the same name, so that both exist until it is settled.

The replacement is made under a temporary name, then the two names are exchanged, and only when the
directory is on disk, and nobody has wanted to write to the original meanwhile, the original goes.
Knows no store.
Source: rename(2) RENAME_EXCHANGE, fcntl(2) F_SETLEASE.
"""

import ctypes
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from dedupfs.checkout.dedupe.scan import TEMPORARY_PREFIX
from dedupfs.transfer.leases import Lease

COMPARE_BYTES = 4 << 20
_RENAME_EXCHANGE = 2  # linux/fs.h
Make = Callable[[int, bytes], None]
"""Makes the replacement in a directory, under a name."""
_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + rb"[0-9a-f]{16}-(\d{1,10})")
_UNDO = re.compile(re.escape(TEMPORARY_PREFIX) + rb"[0-9a-f]{16}-undo")
_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = _libc.renameat2
_renameat2.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
]


def temporary_name(pack: int) -> bytes:
    """Return a name that is nobody's, for what has the bytes of this pack."""
    return TEMPORARY_PREFIX + secrets.token_hex(8).encode() + b"-%d" % pack


def pack_of_temporary(name: bytes) -> int | None:
    """Return the pack in a name that ``temporary_name`` made; None for any other name."""
    found = _TEMPORARY.fullmatch(name)
    return int(found[1]) if found is not None else None


def undo_name() -> bytes:
    """Return a name that is nobody's, for a file that is being restored."""
    return TEMPORARY_PREFIX + secrets.token_hex(8).encode() + b"-undo"


def is_undo_name(name: bytes) -> bool:
    """Whether ``undo_name`` made it."""
    return _UNDO.fullmatch(name) is not None


def exchange(directory_fd: int, name: bytes, other: bytes) -> None:
    """Let each of two names have the other's object, in one step."""
    if _renameat2(directory_fd, name, directory_fd, other, _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def equal_bytes(one_fd: int, other_fd: int, size: int) -> bool:
    """Whether the first ``size`` bytes of two files are the same, and neither is longer."""
    ones, others = bytearray(COMPARE_BYTES), bytearray(COMPARE_BYTES)
    offset = 0
    while offset < size:
        got = os.preadv(one_fd, [ones], offset)
        if not got or os.preadv(other_fd, [memoryview(others)[:got]], offset) != got:
            return False
        if memoryview(ones)[:got] != memoryview(others)[:got]:
            return False
        offset += got
    return os.fstat(one_fd).st_size == size == os.fstat(other_fd).st_size


@dataclass(slots=True)
class _Swap:
    """A name whose original now has the temporary name."""

    directory_fd: int
    times: os.stat_result
    name: bytes
    temporary: bytes
    replacement: os.stat_result


class Swaps:
    """The names of one object, exchanged one by one and settled together. Close it."""

    def __init__(self, fd: int, lease: Lease | None) -> None:
        """``fd``: the object that has the names now; it and the lease stay the caller's."""
        self._fd = fd
        self._lease = lease
        self._original = os.fstat(fd)
        self._swaps: list[_Swap] = []

    def add(self, directory_fd: int, name: bytes, temporary: bytes, make: Make) -> bool:
        """Exchange ``name`` with what ``make`` makes under the temporary name.

        Returns:
            False when the name is another object's by now; nothing is left behind then.
        """
        times = os.fstat(directory_fd)
        kept_fd = os.dup(directory_fd)
        swap: _Swap | None = None
        is_done = False
        try:
            make(kept_fd, temporary)
            replacement = os.stat(temporary, dir_fd=kept_fd, follow_symlinks=False)
            swap = _Swap(kept_fd, times, name, temporary, replacement)
            exchange(kept_fd, name, temporary)
            taken = os.stat(temporary, dir_fd=kept_fd, follow_symlinks=False)
            is_done = os.path.samestat(taken, self._original)
            if is_done:
                self._swaps.append(swap)
            else:
                self._put_back(swap)
        except BaseException:
            is_done = False
            self._give_up(kept_fd, temporary, swap)
            raise
        finally:
            if not is_done:
                _set_times(kept_fd, times)
                os.close(kept_fd)
        return is_done

    def _give_up(self, directory_fd: int, temporary: bytes, swap: _Swap | None) -> None:
        """Leave the names as they were, however far it came."""
        with suppress(FileNotFoundError):
            now = os.stat(temporary, dir_fd=directory_fd, follow_symlinks=False)
            if swap is None or os.path.samestat(now, swap.replacement):
                _remove(directory_fd, temporary)
            else:
                self._put_back(swap)

    def settle(self) -> bool:
        """Remove the originals, unless somebody has wanted to write: then they are put back.

        The new names are synced first: a power cut leaves one of the two under each.
        """
        for swap in self._swaps:
            os.fsync(swap.directory_fd)
        is_untouched = self._is_untouched()
        while self._swaps:
            swap = self._swaps.pop()
            try:
                if is_untouched:
                    _remove(swap.directory_fd, swap.temporary)
                else:
                    self._put_back(swap)
                _set_times(swap.directory_fd, swap.times)
            finally:
                os.close(swap.directory_fd)
        return is_untouched

    def _is_untouched(self) -> bool:
        if self._lease is not None and not self._lease.holds:
            return False
        now, before = os.fstat(self._fd), self._original
        return (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)

    @staticmethod
    def _put_back(swap: _Swap) -> None:
        """Exchange the two names again, unless somebody gave the name to another object since."""
        exchange(swap.directory_fd, swap.name, swap.temporary)
        now = os.stat(swap.temporary, dir_fd=swap.directory_fd, follow_symlinks=False)
        if not os.path.samestat(now, swap.replacement):
            exchange(swap.directory_fd, swap.name, swap.temporary)
        _remove(swap.directory_fd, swap.temporary)

    def close(self) -> None:
        """Put back what was not settled: the run ends early."""
        while self._swaps:
            swap = self._swaps.pop()
            with suppress(OSError):
                self._put_back(swap)
                _set_times(swap.directory_fd, swap.times)
            os.close(swap.directory_fd)


def _remove(directory_fd: int, name: bytes) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory_fd)


def _set_times(directory_fd: int, times: os.stat_result) -> None:
    """Give a directory its times back: whoever looks at them learns of names, and none changed."""
    with suppress(OSError):
        os.utime(directory_fd, ns=(times.st_atime_ns, times.st_mtime_ns))


def remove_leftover(
    directory_fd: int, name: bytes, pack_fd: int | None = None, target: bytes = b""
) -> bool:
    """Remove what a run that was cut short left under a temporary name, if it is safe elsewhere.

    Of an undo that is a copy which is not needed, or the link whose copy is in place. Of a dedupe
    (``pack_fd``: its pack, -1 when that is gone) it is a link to the pack, or an original whose
    replacement is in place: then the pack has its bytes.
    """
    times = os.fstat(directory_fd)
    if pack_fd is not None and not _is_in_pack(directory_fd, name, pack_fd, target):
        return False
    os.unlink(name, dir_fd=directory_fd)
    _set_times(directory_fd, times)
    return True


def _is_in_pack(directory_fd: int, name: bytes, pack_fd: int, target: bytes) -> bool:
    status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(name, dir_fd=directory_fd) == target
    if not stat.S_ISREG(status.st_mode) or pack_fd < 0:
        return False
    if os.path.samestat(status, os.fstat(pack_fd)):
        return True
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        return equal_bytes(fd, pack_fd, os.fstat(pack_fd).st_size)
    finally:
        os.close(fd)
