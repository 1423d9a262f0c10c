"""Operations on what is in files: opening, reading, writing, mapping, copying, locking."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import stat
import struct
from dataclasses import dataclass

from tests.posix import syscalls
from tests.posix.operation import Operation, Outcome, Place, described


@dataclass(frozen=True)
class Data:
    """Bytes to write, told by how they are made."""

    seed: int
    length: int

    def bytes(self) -> bytes:
        """Seeds that 4 divides are zeros, the next ones repeat themselves, the rest is random."""
        if self.seed % 4 == 0:
            return bytes(self.length)
        if self.seed % 4 == 1:
            pattern = b"%d-" % self.seed
            return (pattern * (self.length // len(pattern) + 1))[: self.length]
        return random.Random(self.seed).randbytes(self.length)


def has_capability(target: bytes | int, *, follow: bool = True) -> bool:
    try:
        os.getxattr(target, "security.capability", follow_symlinks=follow)
    except OSError:
        return False
    return True


@dataclass(frozen=True, repr=False)
class Open(Operation):
    slot: int
    path: bytes
    flags: int
    mode: int = 0o644

    def run(self, place: Place) -> Outcome:
        # A fifo without a peer must not stop the test.
        descriptor = os.open(self.path, self.flags | os.O_NONBLOCK | os.O_CLOEXEC, self.mode)
        place.keep(self.slot, descriptor)
        return described(os.fstat(descriptor))


@dataclass(frozen=True, repr=False)
class Reopen(Operation):
    """Open once more what is open in ``source``, though its name may be gone."""

    slot: int
    source: int
    flags: int

    def run(self, place: Place) -> Outcome:
        path = f"/proc/self/fd/{place.descriptor(self.source)}"
        place.keep(self.slot, os.open(path, self.flags | os.O_NONBLOCK | os.O_CLOEXEC))
        return described(os.fstat(place.descriptor(self.slot)))


@dataclass(frozen=True, repr=False)
class Dup(Operation):
    slot: int
    source: int

    def run(self, place: Place) -> Outcome:
        place.keep(self.slot, os.dup(place.descriptor(self.source)))
        return None


@dataclass(frozen=True, repr=False)
class Close(Operation):
    slot: int

    def run(self, place: Place) -> Outcome:
        place.descriptor(self.slot)
        place.drop(self.slot)
        return None


@dataclass(frozen=True, repr=False)
class Read(Operation):
    slot: int
    length: int

    def run(self, place: Place) -> Outcome:
        return os.read(place.descriptor(self.slot), self.length)


@dataclass(frozen=True, repr=False)
class Pread(Operation):
    slot: int
    offset: int
    length: int

    def run(self, place: Place) -> Outcome:
        return os.pread(place.descriptor(self.slot), self.length, self.offset)


@dataclass(frozen=True, repr=False)
class Write(Operation):
    slot: int
    data: Data

    def run(self, place: Place) -> Outcome:
        descriptor = place.descriptor(self.slot)
        return os.write(descriptor, self.data.bytes()), os.lseek(descriptor, 0, os.SEEK_CUR)


@dataclass(frozen=True, repr=False)
class Pwrite(Operation):
    slot: int
    offset: int
    data: Data

    def run(self, place: Place) -> Outcome:
        return os.pwrite(place.descriptor(self.slot), self.data.bytes(), self.offset)


@dataclass(frozen=True, repr=False)
class Seek(Operation):
    slot: int
    offset: int
    whence: int

    def run(self, place: Place) -> Outcome:
        descriptor = place.descriptor(self.slot)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return None  # places in a directory are the system's own: ListWhileChanging
        return os.lseek(descriptor, self.offset, self.whence)


@dataclass(frozen=True, repr=False)
class SeekHole(Operation):
    """SEEK_DATA or SEEK_HOLE; the outcome tells the size too, for which every file is all data."""

    slot: int
    offset: int
    whence: int

    def run(self, place: Place) -> Outcome:
        descriptor = place.descriptor(self.slot)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return None
        kept = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            return os.lseek(descriptor, self.offset, self.whence), os.fstat(descriptor).st_size
        finally:
            os.lseek(descriptor, kept, os.SEEK_SET)


@dataclass(frozen=True, repr=False)
class Truncate(Operation):
    target: bytes | int
    length: int

    def run(self, place: Place) -> Outcome:
        target = place.target(self.target)
        found = os.stat(target)
        is_same = stat.S_ISREG(found.st_mode) and found.st_size == self.length
        if isinstance(target, bytes) and is_same:
            return None  # tmpfs, unlike ext4, marks the times only where it has pages
        os.truncate(target, self.length)
        return None


@dataclass(frozen=True, repr=False)
class MapWrite(Operation):
    """Change bytes through a shared mapping; the times are set, as systems differ in them."""

    slot: int
    offset: int
    data: Data

    def run(self, place: Place) -> Outcome:
        descriptor = place.descriptor(self.slot)
        found = os.fstat(descriptor)
        if found.st_mode & (stat.S_ISUID | stat.S_ISGID) or has_capability(descriptor):
            return None  # a mount takes them when the bytes arrive: they look like a write's
        size = found.st_size
        with mmap.mmap(descriptor, 0) as mapping:
            start = self.offset % size
            data = self.data.bytes()[: size - start]
            mapping[start : start + len(data)] = data
            mapping.flush()
            read = os.pread(descriptor, len(data), start)
        os.utime(descriptor, ns=(1, 1))
        return read == data


@dataclass(frozen=True, repr=False)
class MapRead(Operation):
    slot: int
    offset: int
    length: int

    def run(self, place: Place) -> Outcome:
        with mmap.mmap(place.descriptor(self.slot), 0, access=mmap.ACCESS_READ) as mapping:
            return mapping[self.offset : self.offset + self.length]


@dataclass(frozen=True, repr=False)
class CopyRange(Operation):
    source: int
    source_offset: int | None
    sink: int
    sink_offset: int | None
    length: int

    def run(self, place: Place) -> Outcome:
        return os.copy_file_range(
            place.descriptor(self.source),
            place.descriptor(self.sink),
            self.length,
            self.source_offset,
            self.sink_offset,
        )


@dataclass(frozen=True, repr=False)
class SendFile(Operation):
    sink: int
    source: int
    offset: int | None
    length: int

    def run(self, place: Place) -> Outcome:
        source, sink = place.descriptor(self.source), place.descriptor(self.sink)
        if os.path.sameopenfile(source, sink):
            return None  # pages in the pipe are the file's own: what overlaps is undefined
        return os.sendfile(sink, source, self.offset, self.length)


@dataclass(frozen=True, repr=False)
class Sync(Operation):
    slot: int
    data_only: bool

    def run(self, place: Place) -> Outcome:
        descriptor = place.descriptor(self.slot)
        (os.fdatasync if self.data_only else os.fsync)(descriptor)
        return None


@dataclass(frozen=True, repr=False)
class Fallocate(Operation):
    slot: int
    mode: int
    offset: int
    length: int

    def run(self, place: Place) -> Outcome:
        descriptor = place.descriptor(self.slot)
        if os.fstat(descriptor).st_mode & (stat.S_ISUID | stat.S_ISGID):
            return None  # the first one in a mount's life takes the bits, though it fails
        syscalls.fallocate(descriptor, self.mode, self.offset, self.length)
        return None


@dataclass(frozen=True, repr=False)
class Flock(Operation):
    slot: int
    kind: int

    def run(self, place: Place) -> Outcome:
        fcntl.flock(place.descriptor(self.slot), self.kind | fcntl.LOCK_NB)
        return None


_LOCK = struct.Struct("hhqqi4x")  # struct flock


@dataclass(frozen=True, repr=False)
class Lock(Operation):
    """A lock on a range: ``command`` is F_SETLK, F_GETLK, or one of them for open descriptions."""

    slot: int
    command: int
    kind: int
    start: int
    length: int

    def run(self, place: Place) -> Outcome:
        wanted = _LOCK.pack(self.kind, os.SEEK_SET, self.start, self.length, 0)
        return _LOCK.unpack(fcntl.fcntl(place.descriptor(self.slot), self.command, wanted))
