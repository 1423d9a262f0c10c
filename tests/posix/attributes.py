"""Operations on attributes: looking, modes, owners, times, extended attributes, ACLs."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass

from tests.posix import syscalls
from tests.posix.contents import Data, has_capability
from tests.posix.operation import (
    Inode,
    Operation,
    Outcome,
    Place,
    described,
    shown_mode,
    shown_times,
)

ACCESS_ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return an ACL as the kernel passes it: entries of tag, permissions, id; perhaps invalid."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@dataclass(frozen=True, repr=False)
class Stat(Operation):
    target: bytes | int
    follow: bool = True

    def run(self, place: Place) -> Outcome:
        target = place.target(self.target)
        return described(os.stat(target, follow_symlinks=self.follow or isinstance(target, int)))


@dataclass(frozen=True, repr=False)
class Statx(Operation):
    target: bytes | int
    flags: int = 0

    def run(self, place: Place) -> Outcome:
        if isinstance(self.target, int):
            base, path = place.descriptor(self.target), b""
            found = syscalls.statx(base, path, self.flags | syscalls.AT_EMPTY_PATH)
        else:
            found = syscalls.statx(syscalls.AT_FDCWD, self.target, self.flags)
        is_directory = stat.S_ISDIR(found.mode)
        return (
            found.mask,
            found.attributes & 0x74,  # compressed, immutable, append, nodump, encrypted
            shown_mode(found.mode),
            (found.nlink, found.uid, found.gid, found.rdev),
            Inode(found.inode),
            None if is_directory else found.size,
            shown_times(found.mode, found.times_ns),
        )


@dataclass(frozen=True, repr=False)
class Access(Operation):
    path: bytes
    mode: int
    flags: int = 0

    def run(self, place: Place) -> Outcome:
        syscalls.faccessat2(self.path, self.mode, self.flags)
        return None


@dataclass(frozen=True, repr=False)
class Umask(Operation):
    mask: int

    def run(self, place: Place) -> Outcome:
        before, place.umask = place.umask, self.mask
        return before


@dataclass(frozen=True, repr=False)
class Chmod(Operation):
    target: bytes | int
    mode: int

    def run(self, place: Place) -> Outcome:
        os.chmod(place.target(self.target), self.mode)
        return None


def _is_like_a_write(target: bytes | int, *, follow: bool) -> bool:
    """Whether a mount cannot tell chown(2) to nobody from a write: the kernel asks for the same."""
    found = os.stat(target, follow_symlinks=follow)
    set_id = found.st_mode & (stat.S_ISUID | stat.S_ISGID)
    another_one_s = os.geteuid() not in (0, found.st_uid)
    return bool(set_id and another_one_s) or has_capability(target, follow=follow)


@dataclass(frozen=True, repr=False)
class Chown(Operation):
    target: bytes | int
    uid: int
    gid: int
    follow: bool = True

    def run(self, place: Place) -> Outcome:
        target = place.target(self.target)
        follow = self.follow or isinstance(target, int)
        if self.uid == self.gid == -1 and _is_like_a_write(target, follow=follow):
            return None
        os.chown(target, self.uid, self.gid, follow_symlinks=follow)
        return None


@dataclass(frozen=True, repr=False)
class Utime(Operation):
    """``atime`` and ``mtime``: seconds and nanoseconds, or 0 and UTIME_NOW or UTIME_OMIT."""

    target: bytes | int
    atime: tuple[int, int]
    mtime: tuple[int, int]
    follow: bool = True

    def run(self, place: Place) -> Outcome:
        flags = 0 if self.follow else syscalls.AT_SYMLINK_NOFOLLOW
        times = (*self.atime, *self.mtime)
        if isinstance(self.target, int):
            syscalls.utimensat(place.descriptor(self.target), None, times, 0)
        else:
            syscalls.utimensat(syscalls.AT_FDCWD, self.target, times, flags)
        return None


@dataclass(frozen=True, repr=False)
class SetXattr(Operation):
    target: bytes | int
    name: str
    value: bytes | Data
    flags: int = 0
    follow: bool = True

    def run(self, place: Place) -> Outcome:
        target = place.target(self.target)
        follow = self.follow or isinstance(target, int)
        value = self.value if isinstance(self.value, bytes) else self.value.bytes()
        os.setxattr(target, self.name, value, self.flags, follow_symlinks=follow)
        return None


@dataclass(frozen=True, repr=False)
class GetXattr(Operation):
    target: bytes | int
    name: str
    follow: bool = True

    def run(self, place: Place) -> Outcome:
        target = place.target(self.target)
        return os.getxattr(
            target, self.name, follow_symlinks=self.follow or isinstance(target, int)
        )


@dataclass(frozen=True, repr=False)
class ListXattr(Operation):
    target: bytes | int
    follow: bool = True

    def run(self, place: Place) -> Outcome:
        target = place.target(self.target)
        return sorted(os.listxattr(target, follow_symlinks=self.follow or isinstance(target, int)))


@dataclass(frozen=True, repr=False)
class RemoveXattr(Operation):
    target: bytes | int
    name: str
    follow: bool = True

    def run(self, place: Place) -> Outcome:
        target = place.target(self.target)
        follow = self.follow or isinstance(target, int)
        os.removexattr(target, self.name, follow_symlinks=follow)
        return None
