"""A random sequence of operations from a seed: pure, it never looks at a file system.

It keeps a rough picture of what its own operations probably made, so that most of them mean
something that is there; the others find out what errors look like.
"""

from __future__ import annotations

import fcntl
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.posix import attributes as a
from tests.posix import contents as c
from tests.posix import names as n
from tests.posix.choices import (
    ACLS,
    ALICE,
    BOB,
    CAPABILITY,
    INVALID_ACLS,
    LENGTHS,
    MODES,
    NAMES,
    ODD_XATTRS,
    OFFSETS,
    PATH_MAX,
    SLOTS,
    TREE_ENTRIES,
    XATTRS,
)
from tests.posix.operation import Operation, stays_inside
from tests.posix.syscalls import (
    AT_EACCESS,
    AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW,
    F_OFD_GETLK,
    F_OFD_SETLK,
    UTIME_NOW,
    UTIME_OMIT,
)


@dataclass(frozen=True)
class Setting:
    """What there is to choose from: how many processes act, and what they may do."""

    processes: int = 1
    users: bool = False
    """Processes 2 and 3 are Alice and Bob, and process 0 and 1 are root."""
    large: int = 0
    """Bytes of the largest write, when it is larger than usual."""


class Generator:
    """Makes operations; ``one`` returns the next."""

    def __init__(self, seed: int, setting: Setting) -> None:
        self.random = random.Random(seed)
        self.setting = setting
        self.who = 0
        self.known: dict[bytes, str] = {b"": "d"}
        self.open: dict[tuple[int, int], str] = {}
        choices: list[tuple[int, Callable[[], Operation]]] = [
            (16, self._open),
            (2, self._reopen),
            (1, self._dup),
            (5, self._close),
            (5, self._read),
            (5, self._pread),
            (7, self._write),
            (7, self._pwrite),
            (2, self._seek),
            (2, self._seek_hole),
            (5, self._truncate),
            (3, self._map),
            (2, self._copy),
            (1, self._sync),
            (1, self._fallocate),
            (3, self._lock),
            (6, self._mkdir),
            (3, self._rmdir),
            (5, self._unlink),
            (10, self._rename),
            (6, self._link),
            (5, self._symlink),
            (2, self._readlink),
            (3, self._mknod),
            (3, self._list),
            (6, self._stat),
            (2, self._access),
            (1, self._umask),
            (6, self._chmod),
            (4, self._chown),
            (5, self._utime),
            (6, self._set_xattr),
            (3, self._look_at_xattrs),
            (2, self._remove_xattr),
        ]
        self.weights = [weight for weight, _ in choices]
        self.makers = [maker for _, maker in choices]

    def operations(self, count: int) -> Iterator[Operation]:
        for _ in range(count):
            yield self.one()

    def one(self) -> Operation:
        if self.random.random() < 0.15:
            self.who = self._process()
        if len(self.known) > TREE_ENTRIES and self.random.random() < 0.3:
            maker = self.random.choice([self._unlink, self._rmdir])
        else:
            (maker,) = self.random.choices(self.makers, self.weights)
        operation = maker()
        while not stays_inside(operation):
            operation = maker()
        return operation

    # --- choosing ---------------------------------------------------------------------------------

    def _process(self) -> int:
        """Mostly the first: what the others may not do is only errors."""
        last = self.setting.processes - 1
        return 0 if self.random.random() < 0.5 else self.random.randint(0, last)

    def _chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def _pick(self, kinds: str) -> bytes:
        found = [path for path, kind in self.known.items() if kind in kinds and path]
        return self.random.choice(found) if found and self._chance(0.9) else self._fresh()

    def _fresh(self) -> bytes:
        directories = [path for path, kind in self.known.items() if kind == "d"]
        parent = self.random.choice(directories)
        if parent.count(b"/") >= 3:
            parent = b""
        name = self.random.choice(NAMES)
        return parent + b"/" + name if parent else name

    def _path(self, kinds: str = "fdlps") -> bytes:
        """Return a path: mostly of something, sometimes of nothing, seldom an odd one."""
        chance = self.random.random()
        if chance < 0.04:
            return self._odd()
        return self._fresh() if chance < 0.2 else self._pick(kinds)

    def _odd(self) -> bytes:
        path = self._pick("fdlps")
        length = self.random.choice([PATH_MAX - 1, PATH_MAX])
        return self.random.choice(
            [
                b"",
                b".",
                b"y" * 256,
                path + b"/",
                path + b"/.",
                path + b"/..",
                path + b"/under",
                b"./" + path.replace(b"/", b"//"),
                b"." + b"/" * max(1, length - 1 - len(path)) + path,
                path + b"\0",
            ]
        )

    def _slot(self, kinds: str = "fdlps") -> int:
        """Return a slot in which something of such a kind is probably open."""
        found = [
            slot for (who, slot), kind in self.open.items() if who == self.who and kind in kinds
        ]
        return self.random.choice(found) if found else self.random.randrange(SLOTS)

    def _target(self, kinds: str = "fdlps") -> bytes | int:
        return self._slot(kinds) if self._chance(0.3) else self._path(kinds)

    def _around(self, operation: Operation, *paths: bytes | int) -> Operation:
        """Say who does it, sometimes from where, and which times are to be looked at meanwhile."""
        if self._chance(0.12):
            watched: list[bytes] = []
            for path in paths:
                if isinstance(path, bytes) and path and b"\0" not in path:
                    watched += [path, os.path.dirname(path.rstrip(b"/")) or b"."]
            return replace(operation, who=self.who, watch=tuple(watched))
        base = self._slot("d") if self._chance(0.05) else None
        return replace(operation, who=self.who, base=base)

    def _data(self) -> c.Data:
        length = self.random.choice(LENGTHS)
        if self.setting.large and self._chance(0.01):
            length = self.random.randrange(self.setting.large)
        return c.Data(self.random.randrange(1000), length)

    def _offset(self) -> int:
        if self._chance(0.01):
            return self.random.choice([-1, 1 << 30])
        return self.random.choice(OFFSETS) + self.random.choice([0, 0, 1, 5000])

    # --- contents ---------------------------------------------------------------------------------

    def _open(self) -> Operation:
        flags = self.random.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
        for flag, chance in (
            (os.O_CREAT, 0.5),
            (os.O_EXCL, 0.1),
            (os.O_TRUNC, 0.15),
            (os.O_APPEND, 0.15),
            (os.O_DIRECTORY, 0.08),
            (os.O_NOFOLLOW, 0.1),
            (os.O_PATH, 0.06),
            (os.O_NOATIME, 0.03),
            (os.O_DSYNC, 0.01),
        ):
            if self._chance(chance):
                flags |= flag
        if self._chance(0.02):
            flags = os.O_TMPFILE | os.O_RDWR
        path = self._path()
        kind = self.known.get(path, "f")
        if kind == "d" and self._chance(0.8):
            flags = os.O_RDONLY | (flags & (os.O_DIRECTORY | os.O_PATH | os.O_NOFOLLOW))
        elif flags & os.O_CREAT:
            self.known.setdefault(path, "f")
        slot = self.random.randrange(SLOTS)
        self.open[self.who, slot] = kind
        mode = self.random.choice(MODES)
        return self._around(c.Open(slot, path, flags, mode), path)

    def _reopen(self) -> Operation:
        slot, source = self.random.randrange(SLOTS), self._slot()
        self.open[self.who, slot] = self.open.get((self.who, source), "f")
        flags = self.random.choice([os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
        return c.Reopen(slot, source, flags, who=self.who)

    def _dup(self) -> Operation:
        slot, source = self.random.randrange(SLOTS), self._slot()
        self.open[self.who, slot] = self.open.get((self.who, source), "f")
        return c.Dup(slot, source, who=self.who)

    def _close(self) -> Operation:
        slot = self._slot()
        self.open.pop((self.who, slot), None)
        return c.Close(slot, who=self.who)

    def _read(self) -> Operation:
        return c.Read(self._slot("f"), self.random.choice(LENGTHS), who=self.who)

    def _pread(self) -> Operation:
        length = self.random.choice(LENGTHS)
        return c.Pread(self._slot("f"), self._offset(), length, who=self.who)

    def _write(self) -> Operation:
        return self._around(c.Write(self._slot("f"), self._data()), self._pick("f"))

    def _pwrite(self) -> Operation:
        slot = self._slot("f")
        return self._around(c.Pwrite(slot, self._offset(), self._data()), self._pick("f"))

    def _seek(self) -> Operation:
        whence = self.random.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 99])
        return c.Seek(self._slot("f"), self._offset(), whence, who=self.who)

    def _seek_hole(self) -> Operation:
        whence = self.random.choice([os.SEEK_DATA, os.SEEK_HOLE])
        return c.SeekHole(self._slot("f"), self._offset(), whence, who=self.who)

    def _truncate(self) -> Operation:
        """Times are watched through a descriptor alone: tmpfs clears sgid without marking them."""
        target, length = self._target("f"), self._offset()
        if isinstance(target, bytes):
            return c.Truncate(target, length, who=self.who)
        return self._around(c.Truncate(target, length), self._pick("f"))

    def _map(self) -> Operation:
        if self._chance(0.3):
            return c.MapRead(self._slot("f"), abs(self._offset()), 5000, who=self.who)
        offset = self._offset()
        return c.MapWrite(self._slot("f"), offset, self._data(), who=self.who)

    def _copy(self) -> Operation:
        length = self.random.choice(LENGTHS)
        offset = self.random.choice([None, self._offset()])
        if self._chance(0.3):
            return c.SendFile(self._slot("f"), self._slot("f"), offset, length, who=self.who)
        sink_offset = self.random.choice([None, self._offset()])
        return c.CopyRange(
            self._slot("f"), offset, self._slot("f"), sink_offset, length, who=self.who
        )

    def _sync(self) -> Operation:
        return c.Sync(self._slot("fd"), self._chance(0.5), who=self.who)

    def _fallocate(self) -> Operation:
        mode = self.random.choice([0, 1, 3, 0x10])  # nothing, keep size, punch, zero
        length = self.random.choice([-1, 0, 4096])
        return c.Fallocate(self._slot(), mode, self._offset(), length, who=self.who)

    def _lock(self) -> Operation:
        slot = self._slot("f")
        if self._chance(0.3):
            kind = self.random.choice([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN])
            return c.Flock(slot, kind, who=self.who)
        command = self.random.choice([fcntl.F_SETLK, fcntl.F_GETLK, F_OFD_SETLK, F_OFD_GETLK])
        kind = self.random.choice([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
        start, length = self.random.choice([0, 5, 10]), self.random.choice([0, 1, 10])
        return c.Lock(slot, command, kind, start, length, who=self.who)

    # --- names ------------------------------------------------------------------------------------

    def _mkdir(self) -> Operation:
        path = self._fresh() if self._chance(0.9) else self._path()
        self.known.setdefault(path, "d")
        mode = self.random.choice([0o755, 0o777, *MODES])
        return self._around(n.Mkdir(path, mode), path)

    def _rmdir(self) -> Operation:
        path = self._path("d" if self._chance(0.9) else "fdl")
        if not any(known.startswith(path + b"/") for known in self.known) and path:
            self.known.pop(path, None)
        return self._around(n.Rmdir(path), path)

    def _unlink(self) -> Operation:
        path = self._path("flps")
        if self.known.get(path) != "d":
            self.known.pop(path, None)
        return self._around(n.Unlink(path), path)

    def _rename(self) -> Operation:
        old = self._path()
        new = self._path("fdlps") if self._chance(0.6) else self._fresh()
        if self._chance(0.3) and self.known.get(old) in ("f", "d"):
            new = self._pick(self.known[old])
        flags = self.random.choices([0, 1, 2, 3, 4, 8], [60, 15, 20, 2, 0, 1])[0]
        if flags in (0, 1) and old in self.known and new and not new.startswith(old + b"/"):
            self._move(old, new)
        return self._around(n.Rename(old, new, flags), old, new)

    def _move(self, old: bytes, new: bytes) -> None:
        moved = {
            path: kind
            for path, kind in self.known.items()
            if path == old or path.startswith(old + b"/")
        }
        for path in moved:
            del self.known[path]
        self.known.update({new + path[len(old) :]: kind for path, kind in moved.items()})
        self.known[b""] = "d"

    def _link(self) -> Operation:
        new = self._fresh()
        if self._chance(0.2):
            return n.LinkOpen(self._slot(), new, who=self.who)
        old = self._path("f" if self._chance(0.7) else "fdlps")
        self.known.setdefault(new, self.known.get(old, "f"))
        flags = self.random.choice([0, 0, AT_SYMLINK_FOLLOW])
        return self._around(n.Link(old, new, flags), old, new)

    def _symlink(self) -> Operation:
        goals = [
            self._pick("fdl"),
            self.random.choice(NAMES),
            b"gone",
            b"z" * 4095,
            b"f" * 4096,
        ]
        (goal,) = self.random.choices(goals, [10, 10, 2, 1, 1])
        path = self._fresh()
        self.known.setdefault(path, "l")
        return self._around(n.Symlink(goal, path), path)

    def _readlink(self) -> Operation:
        return n.Readlink(self._path("l"), who=self.who)

    def _mknod(self) -> Operation:
        path = self._fresh()
        kinds = [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFDIR]
        if self.setting.users:
            kinds += [stat.S_IFCHR, stat.S_IFBLK]
        kind = self.random.choice(kinds)
        device = (1, 3) if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0)
        self.known.setdefault(path, "f" if kind == stat.S_IFREG else "p")
        mode = kind | self.random.choice(MODES)
        return self._around(n.Mknod(path, mode, device), path)

    def _list(self) -> Operation:
        chance = self.random.random()
        if chance < 0.1:
            count = self.random.choice([5, 40, 200])
            remove = tuple(self.random.randrange(count) for _ in range(count // 4))
            back_to = self.random.randrange(count)
            buffer_bytes = self.random.choice([300, 1000, 4096])
            path = self._fresh()
            return n.ListWhileChanging(path, count, buffer_bytes, remove, back_to, who=self.who)
        if chance < 0.5:
            return n.ListOpen(self._slot("d"), who=self.who)
        path = self._pick("d") if self._chance(0.7) else b"."
        return n.List(path, self.random.choice([300, 4096]), who=self.who)

    # --- attributes -------------------------------------------------------------------------------

    def _stat(self) -> Operation:
        if self._chance(0.4):
            return a.Statx(
                self._target(), self.random.choice([0, AT_SYMLINK_NOFOLLOW]), who=self.who
            )
        return a.Stat(self._target(), self._chance(0.5), who=self.who)

    def _access(self) -> Operation:
        flags = self.random.choice([0, 0, AT_EACCESS, AT_SYMLINK_NOFOLLOW])
        return a.Access(
            self._path(), self.random.choice([0, 1, 2, 4, 6, 7, 8]), flags, who=self.who
        )

    def _umask(self) -> Operation:
        return a.Umask(self.random.choice([0o022, 0o000, 0o077, 0o002]), who=self.who)

    def _chmod(self) -> Operation:
        target = self._target()
        return self._around(a.Chmod(target, self.random.choice(MODES)), target)

    def _chown(self) -> Operation:
        uid, gid = (self.random.choice([-1, 0, ALICE, BOB]) for _ in range(2))
        target = self._target()
        return self._around(a.Chown(target, uid, gid, self._chance(0.7)), target)

    def _utime(self) -> Operation:
        atime, mtime = (
            self.random.choice(
                [
                    (self.random.randrange(10**9), self.random.randrange(10**9)),
                    (-5, 999_999_999),
                    (0, 0),
                    (0, UTIME_NOW),
                    (0, UTIME_OMIT),
                ]
            )
            for _ in range(2)
        )
        target = self._target()
        return self._around(a.Utime(target, atime, mtime, self._chance(0.7)), target)

    def _set_xattr(self) -> Operation:
        target, flags = self._target(), self.random.choice([0, 0, 0, 1, 2])
        name = self.random.choice(XATTRS)
        value: bytes | c.Data = c.Data(
            self.random.randrange(1000), self.random.choice([0, 1, 50, 3000])
        )
        chance = self.random.random()
        if chance < 0.4:
            name = self.random.choice([a.ACCESS_ACL, a.ACCESS_ACL, a.DEFAULT_ACL])
            target = self._target("fd") if name == a.ACCESS_ACL else self._target("d")
            value = self.random.choice(ACLS if self._chance(0.8) else INVALID_ACLS)
        elif chance < 0.5:
            name = self.random.choice(ODD_XATTRS)
        elif chance < 0.55:
            name, value = "security.capability", self.random.choice([CAPABILITY, b"x"])
        elif chance < 0.58:
            value = c.Data(1, self.random.choice([65_536, 65_537]))
        return self._around(a.SetXattr(target, name, value, flags, self._chance(0.7)), target)

    def _xattr_name(self) -> str:
        return self.random.choice([*XATTRS, *ODD_XATTRS, a.ACCESS_ACL, a.DEFAULT_ACL])

    def _look_at_xattrs(self) -> Operation:
        if self._chance(0.5):
            return a.ListXattr(self._target(), self._chance(0.7), who=self.who)
        return a.GetXattr(self._target(), self._xattr_name(), self._chance(0.7), who=self.who)

    def _remove_xattr(self) -> Operation:
        target, name = self._target(), self._xattr_name()
        return self._around(a.RemoveXattr(target, name, self._chance(0.7)), target)
