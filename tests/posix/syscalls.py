"""System calls that Python has no name for, by ctypes; each raises OSError as those of ``os`` do.

Paths are bytes; a path argument of None stands for the descriptor itself, as utimensat(2) has it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EACCESS = 0x200
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
STATX_BASIC_STATS = 0x7FF
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
F_OFD_GETLK, F_OFD_SETLK = 36, 37

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_GETDENTS64 = {"x86_64": 217, "aarch64": 61}[os.uname().machine]
_FACCESSAT2 = 439
_STATX = struct.Struct("<IIQIIIHxxQQQQ")
_STATX_TIME = struct.Struct("<qIxxxx")
_TIMESPEC = struct.Struct("qq")
_DIRENT = struct.Struct("<QqHB")  # linux_dirent64: number, next offset, length, type


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def renameat2(old_base: int, old: bytes, new_base: int, new: bytes, flags: int) -> None:
    _checked(_libc.renameat2(old_base, old, new_base, new, flags))


def linkat(old_base: int, old: bytes, new_base: int, new: bytes, flags: int) -> None:
    _checked(_libc.linkat(old_base, old, new_base, new, flags))


def utimensat(base: int, path: bytes | None, times: tuple[int, int, int, int], flags: int) -> None:
    """Set times; ``times`` is (atime seconds, nanoseconds, mtime seconds, nanoseconds)."""
    packed = _TIMESPEC.pack(*times[:2]) + _TIMESPEC.pack(*times[2:])
    _checked(_libc.utimensat(base, path, packed, flags))


def faccessat2(path: bytes, mode: int, flags: int) -> None:
    result = _libc.syscall(
        ctypes.c_long(_FACCESSAT2), ctypes.c_int(AT_FDCWD), path, mode, ctypes.c_int(flags)
    )
    _checked(result)


def fallocate(file: int, mode: int, offset: int, length: int) -> None:
    _checked(_libc.fallocate(file, mode, ctypes.c_long(offset), ctypes.c_long(length)))


@dataclass(frozen=True)
class Statx:
    """The fields of struct statx that a file system decides about (statx(2))."""

    mask: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    inode: int
    size: int
    attributes_mask: int
    rdev: tuple[int, int]
    times_ns: tuple[int, int, int]


def statx(base: int, path: bytes, flags: int) -> Statx:
    buffer = ctypes.create_string_buffer(256)
    _checked(_libc.statx(base, path, flags, STATX_BASIC_STATS, buffer))
    fields = _STATX.unpack_from(buffer.raw)
    mask, _blksize, attributes, nlink, uid, gid, mode, inode, size, _blocks, known = fields
    atime, _btime, ctime, mtime = (
        seconds * 10**9 + part
        for seconds, part in (_STATX_TIME.unpack_from(buffer.raw, 64 + 16 * i) for i in range(4))
    )
    major, minor = struct.unpack_from("<II", buffer.raw, 128)
    return Statx(
        mask & STATX_BASIC_STATS,
        attributes & known,
        nlink,
        uid,
        gid,
        mode,
        inode,
        size,
        known,
        (major, minor),
        (atime, mtime, ctime),
    )


@dataclass(frozen=True)
class Dirent:
    """One entry as getdents64(2) gives it; ``cookie`` is where the next one begins."""

    inode: int
    cookie: int
    kind: int
    name: bytes


def getdents(directory: int, buffer_bytes: int) -> list[Dirent]:
    """Read some entries; none at the end."""
    buffer = ctypes.create_string_buffer(buffer_bytes)
    length = _checked(
        _libc.syscall(
            ctypes.c_long(_GETDENTS64),
            ctypes.c_int(directory),
            buffer,
            ctypes.c_uint(buffer_bytes),
        )
    )
    raw, start, entries = buffer.raw, 0, []
    while start < length:
        inode, cookie, record_bytes, kind = _DIRENT.unpack_from(raw, start)
        name = raw[start + 19 : start + record_bytes].split(b"\0", 1)[0]
        entries.append(Dirent(inode, cookie, kind, name))
        start += record_bytes
    return entries
