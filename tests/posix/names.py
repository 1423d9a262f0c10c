"""Operations on names: making, linking, renaming, removing, listing."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.posix import syscalls
from tests.posix.operation import Inode, Operation, Outcome, Place


@dataclass(frozen=True, repr=False)
class Mkdir(Operation):
    path: bytes
    mode: int = 0o755

    def run(self, place: Place) -> Outcome:
        os.mkdir(self.path, self.mode)
        return None


@dataclass(frozen=True, repr=False)
class Rmdir(Operation):
    path: bytes

    def run(self, place: Place) -> Outcome:
        os.rmdir(self.path)
        return None


@dataclass(frozen=True, repr=False)
class Unlink(Operation):
    path: bytes

    def run(self, place: Place) -> Outcome:
        os.unlink(self.path)
        return None


@dataclass(frozen=True, repr=False)
class Rename(Operation):
    """renameat2(2); ``new_base`` is a slot as ``base`` is."""

    old: bytes
    new: bytes
    flags: int = 0
    new_base: int | None = None

    def run(self, place: Place) -> Outcome:
        new_base = place.root if self.new_base is None else place.descriptor(self.new_base)
        syscalls.renameat2(syscalls.AT_FDCWD, self.old, new_base, self.new, self.flags)
        return None


@dataclass(frozen=True, repr=False)
class Link(Operation):
    old: bytes
    new: bytes
    flags: int = 0
    new_base: int | None = None

    def run(self, place: Place) -> Outcome:
        new_base = place.root if self.new_base is None else place.descriptor(self.new_base)
        syscalls.linkat(syscalls.AT_FDCWD, self.old, new_base, self.new, self.flags)
        return None


@dataclass(frozen=True, repr=False)
class LinkOpen(Operation):
    """Give what is open in the slot a name, though it may have none any more."""

    slot: int
    new: bytes

    def run(self, place: Place) -> Outcome:
        path = b"/proc/self/fd/%d" % place.descriptor(self.slot)
        syscalls.linkat(
            syscalls.AT_FDCWD, path, syscalls.AT_FDCWD, self.new, syscalls.AT_SYMLINK_FOLLOW
        )
        return None


@dataclass(frozen=True, repr=False)
class Symlink(Operation):
    goal: bytes
    path: bytes

    def run(self, place: Place) -> Outcome:
        os.symlink(self.goal, self.path)
        return None


@dataclass(frozen=True, repr=False)
class Readlink(Operation):
    path: bytes

    def run(self, place: Place) -> Outcome:
        return os.readlink(self.path)


@dataclass(frozen=True, repr=False)
class Mknod(Operation):
    """``mode`` has the type; a device gets the number (1, 3)."""

    path: bytes
    mode: int
    device: tuple[int, int] = (0, 0)

    def run(self, place: Place) -> Outcome:
        os.mknod(self.path, self.mode, os.makedev(*self.device))
        return None


@dataclass(frozen=True, repr=False)
class List(Operation):
    """All entries of a directory with their types and numbers, read in buffers of some size."""

    path: bytes
    buffer_bytes: int = 4096

    def run(self, place: Place) -> Outcome:
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            entries = read_all(directory, self.buffer_bytes)
        finally:
            os.close(directory)
        # What "." and ".." are numbered is not compared: a mount's entries need not have them.
        return sorted(
            (entry.name, entry.kind, Inode(entry.inode))
            for entry in entries
            if entry.name not in (b".", b"..")
        )


@dataclass(frozen=True, repr=False)
class ListOpen(Operation):
    """The same through the descriptor in the slot, from its beginning."""

    slot: int

    def run(self, place: Place) -> Outcome:
        directory = place.descriptor(self.slot)
        os.lseek(directory, 0, os.SEEK_SET)
        names = [entry.name for entry in read_all(directory, 4096)]
        return sorted(name for name in names if name not in (b".", b".."))


@dataclass(frozen=True, repr=False)
class ListWhileChanging(Operation):
    """List a directory of ``count`` files of its own in steps, with changes between the steps.

    The outcome is what was wrong: an entry that was there all the time is listed exactly once,
    also after going back to the place behind the entry ``back_to``; one that never was there is not
    listed, and one that was removed before the listing began anew is not. After going back one that
    was removed since the directory was opened may be listed, as POSIX has it (readdir): the kernel
    looks whether a listing that it keeps is still true only where it begins anew.
    """

    path: bytes
    count: int
    buffer_bytes: int
    remove: tuple[int, ...]
    back_to: int

    def run(self, place: Place) -> Outcome:
        os.mkdir(self.path)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fchdir(directory)
            try:
                return self._wrong(directory)
            finally:
                for name in os.listdir(b"."):
                    os.unlink(name)
        finally:
            os.close(directory)
            os.fchdir(place.root if self.base is None else place.descriptor(self.base))
            os.rmdir(self.path)

    def _wrong(self, directory: int) -> Outcome:
        names = [b"%d-" % number * (number % 7 + 1) for number in range(self.count)]
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        gone = {names[number % self.count] for number in self.remove}
        waiting = sorted(gone)
        first: list[syscalls.Dirent] = []
        while entries := syscalls.getdents(directory, self.buffer_bytes):
            first += entries
            for name in waiting[:3]:
                os.unlink(name)
                os.close(os.open(b"new" + name, os.O_CREAT | os.O_WRONLY))
            del waiting[:3]
        for name in waiting:
            os.unlink(name)
        place = self.back_to % len(first)
        os.lseek(directory, first[place].cookie, os.SEEK_SET)
        again = read_all(directory, self.buffer_bytes)
        os.lseek(directory, 0, os.SEEK_SET)
        anew = read_all(directory, self.buffer_bytes)
        stayed = set(names) - gone
        return [
            _differences("first", first, stayed, set(names)),
            _differences("again", again, stayed & {e.name for e in first[place + 1 :]}, set(names)),
            _differences("anew", anew, stayed, stayed),
        ]


def _differences(
    which: str, listed: list[syscalls.Dirent], needed: set[bytes], allowed: set[bytes]
) -> Outcome:
    names = [entry.name for entry in listed if entry.name not in (b".", b"..")]
    old = [name for name in names if not name.startswith(b"new")]
    return (
        which,
        {"missing": sorted(needed - set(names)), "unknown": sorted(set(old) - allowed)},
        {"twice": sorted({name for name in names if names.count(name) > 1})},
    )


def read_all(directory: int, buffer_bytes: int) -> list[syscalls.Dirent]:
    found = []
    while entries := syscalls.getdents(directory, buffer_bytes):
        found += entries
    return found
