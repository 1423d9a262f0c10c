"""What every operation has: who does it, from where, and what it observes besides its own result.

An operation is a frozen value that can be printed, sent to another process and pasted into a test.
``perform`` runs one below a root and returns an *outcome*: plain values that can be compared with
those of another root. Numbers of inodes are wrapped in ``Inode``, since they are equal only up to
renaming; errors are ``Failed``.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from itertools import groupby

Outcome = object
_EXPLICIT_UNTIL_NS = 1_600_000_000 * 10**9
"""What operations set is older; what the clock gives is newer."""
NOW = "now"
_CLOCK_REALTIME_COARSE = 5  # clock_gettime(2): the clock that stamps files


@dataclass(frozen=True)
class Inode:
    """An inode number; two roots agree when one number always stands for the same other one."""

    number: int


@dataclass(frozen=True)
class Failed:
    """The error of a system call by its name."""

    error: str


class OutsideError(Exception):
    """The operation would leave the root: a fault of the generator, which must do no harm."""


class NoDescriptorError(Exception):
    """The operation speaks of a slot in which nothing is open, as happens in a shrunk list."""


@dataclass
class Place:
    """Where one process works: below ``root``, with what it has open there, by slot."""

    root: int
    slots: dict[int, int] = field(default_factory=dict)
    umask: int = 0o022

    def descriptor(self, slot: int) -> int:
        if slot not in self.slots:
            raise NoDescriptorError
        return self.slots[slot]

    def keep(self, slot: int, descriptor: int) -> None:
        """Put an open descriptor into a slot, closing what was there."""
        self.drop(slot)
        self.slots[slot] = descriptor

    def drop(self, slot: int) -> None:
        if slot in self.slots:
            os.close(self.slots.pop(slot))

    def leave(self) -> None:
        """Close everything, also where the mount is dead."""
        os.chdir("/")
        for descriptor in (*self.slots.values(), self.root):
            with suppress(OSError):
                os.close(descriptor)
        self.slots.clear()

    def target(self, target: bytes | int) -> bytes | int:
        """Return what a call of ``os`` takes: the path, or what is open in the slot."""
        return target if isinstance(target, bytes) else self.descriptor(target)


@dataclass(frozen=True, kw_only=True, repr=False)
class Operation(ABC):
    """One system call or a few; subclasses say which."""

    who: int = 0
    """Which process does it."""
    base: int | None = None
    """The slot of an open directory from which paths lead, instead of the root."""
    watch: tuple[bytes, ...] = ()
    """Paths whose times are looked at before and after."""

    @abstractmethod
    def run(self, place: Place) -> Outcome:
        """Do it below the place's root, and say what came of it."""

    def __repr__(self) -> str:
        """Return the operation as code, without what is as by default."""
        shown = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.kw_only and value == item.default:
                continue
            plain = item.default is MISSING and not item.kw_only
            shown.append(_code(value) if plain else f"{item.name}={_code(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _code(value: object) -> str:
    """Return a value as code, long runs of one byte not spelled out."""
    if isinstance(value, tuple) and value:
        return f"({', '.join(map(_code, value))},)"
    if not isinstance(value, bytes) or len(value) < 100:
        return repr(value)
    runs = [(byte, len(list(run))) for byte, run in groupby(value)]
    if len(runs) > 9:
        return repr(value)
    return " + ".join(f"{bytes([byte])!r} * {count}" for byte, count in runs)


def perform(operation: Operation, place: Place) -> Outcome:
    """Run the operation and return everything about it that two roots must agree on."""
    if not stays_inside(operation):
        raise OutsideError(repr(operation))
    os.umask(place.umask)
    before = [_times(place, path) for path in operation.watch]
    if before:
        _await_tick()
    try:
        os.fchdir(place.root if operation.base is None else place.descriptor(operation.base))
        outcome = operation.run(place)
    except NoDescriptorError:
        return Failed("nothing is open in the slot")
    except OSError as exc:
        outcome = Failed(errno.errorcode.get(exc.errno or 0, str(exc.errno)))
    except ValueError as exc:  # Python itself refuses, on both sides the same
        outcome = Failed(str(exc))
    if not operation.watch:
        return outcome
    after = [_times(place, path) for path in operation.watch]
    return outcome, [_change(old, new) for old, new in zip(before, after, strict=True)]


def stays_inside(operation: Operation) -> bool:
    """Whether the operation can reach nothing outside of its root, whatever was done before.

    Paths are relative, and ".." comes once at most and after a real name: that is the directory in
    which the name is, since links lead to nothing but names beside or below themselves.
    """
    for item in fields(operation):
        value = getattr(operation, item.name)
        for path in value if isinstance(value, tuple) else (value,):
            if (
                isinstance(path, bytes)
                and item.name not in ("value", "top")
                and not _is_inside(path)
            ):
                return False
            if item.name == "goal" and {b"", b".", b".."} & set(path.split(b"/")):
                return False
    return True


def _is_inside(path: bytes) -> bool:
    steps = [step for step in path.split(b"/") if step not in (b"", b".")]
    return not path.startswith(b"/") and steps[:1] != [b".."] and steps.count(b"..") <= 1


def _times(place: Place, path: bytes) -> tuple[int, ...] | None:
    try:
        os.fchdir(place.root)
        found = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISFIFO(found.st_mode):
        return (found.st_ino,)
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _change(old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> Outcome:
    if old is None or new is None or old[0] != new[0]:
        return old is None, new is None  # came, went, or another one has the name now
    _inode, *old_times = old
    _inode, *new_times = new
    return tuple(
        "earlier" if after < before else "later" if after > before else "same"
        for before, after in zip(old_times, new_times, strict=True)
    )


def _await_tick() -> None:
    """Wait (a few milliseconds) until the clock that stamps files has moved past this moment.

    Finer times that the kernel may give are not enough: tmpfs gives a directory those of the file
    that came or went, and UTIME_NOW reaches a mount as the coarse time.
    """
    now_ns = time.time_ns()
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= now_ns:
        os.sched_yield()


def coarse(time_ns: int) -> int | str:
    """Return a time that an operation set as it is, one that the clock gave as ``NOW``.

    The beginning of 1970 is kept in a mount as its first nanosecond (docs/format.md: 0 has another
    meaning).
    """
    if not time_ns:
        return 1
    return time_ns if time_ns < _EXPLICIT_UNTIL_NS else NOW


def described(found: os.stat_result) -> Outcome:
    """Return what stat(2) must say alike; a directory's size and all blocks are the system's own.

    Of the time of the last change only its being recent can be compared: nothing can set it.
    """
    is_directory = stat.S_ISDIR(found.st_mode)
    times_ns = (found.st_mtime_ns, found.st_atime_ns, found.st_ctime_ns)
    return (
        shown_mode(found.st_mode),
        Inode(found.st_ino),
        found.st_nlink,
        (found.st_uid, found.st_gid),
        None if is_directory else found.st_size,
        found.st_rdev,
        shown_times(found.st_mode, times_ns),
    )


def shown_times(mode: int, times_ns: tuple[int, ...]) -> Outcome:
    """Return times as they are compared: of a fifo none, a mount hears nothing of its use."""
    return None if stat.S_ISFIFO(mode) else [coarse(time_ns) for time_ns in times_ns]


def shown_mode(mode: int) -> str:
    """Return the mode as it is compared.

    Sgid without group execution gives no group to anybody. FUSE's rules keep it when somebody
    writes (linux/fuse.h, FUSE_HANDLE_KILLPRIV_V2); other systems take it from whoever is not in the
    group, since Linux 6.2.
    """
    if stat.S_ISREG(mode) and not mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return oct(mode)
