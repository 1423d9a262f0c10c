"""Walking a directory tree by descriptors, so that no symlink or rename can lead outside it.

Every step opens one name relative to its parent with O_NOFOLLOW. Depth is bounded by nothing but
memory: at most ``OPEN_DIRECTORIES_MAX`` levels stay open, a closed one is opened again through
``..`` and checked to be the same directory. Knows no store. Source: openat(2), fts(3).
"""

import enum
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from dedupfs.transfer.report import Problems

if TYPE_CHECKING:
    from dedupfs.transfer.selection import Scope

OPEN_DIRECTORIES_MAX = 100
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Step(enum.Enum):
    """What a visit is about."""

    ENTER = enum.auto()
    OBJECT = enum.auto()
    LEAVE = enum.auto()
    PASS = enum.auto()


class Level:
    """One directory on the way from the top of the walk to where it is now."""

    __slots__ = ("crossed", "fd", "name", "names", "parent", "position", "scope", "status")

    def __init__(
        self, name: bytes, parent: "Level | None", status: os.stat_result, fd: int
    ) -> None:
        self.name = name
        self.parent = parent
        self.status = status
        self.fd = fd
        self.names: list[bytes] = []
        self.position = 0
        self.crossed = False
        """Whether it is the root of another file system, not to be entered."""
        self.scope: Scope | None = None
        """What a selection says of the names in it, once they are listed."""

    @property
    def path(self) -> bytes:
        """The path from the top of the walk, without a leading slash."""
        parts = []
        level: Level | None = self
        while level is not None and level.parent is not None:
            parts.append(level.name)
            level = level.parent
        return b"/".join(reversed(parts))

    def child_path(self, name: bytes) -> bytes:
        """The path of ``name`` in this directory."""
        path = self.path
        return path + b"/" + name if path else name

    def is_same(self, status: os.stat_result) -> bool:
        """Whether ``status`` is of this very directory."""
        return (status.st_dev, status.st_ino) == (self.status.st_dev, self.status.st_ino)


Visit = tuple[Step, Level, bytes, os.stat_result]
"""``Step.OBJECT`` (no directory), ``Step.PASS`` (one that is not entered): a name in the level and
its status; else the level's own.
"""


def list_names(level: Level) -> list[bytes]:
    """Return the names in a directory, in order."""
    return sorted([os.fsencode(name) for name in os.listdir(level.fd)])


def never(_name: bytes, _status: os.stat_result) -> bool:
    """Pass no directory."""
    return False


class Walk:
    """One pass over a tree, names in byte order, each directory entered and left."""

    def __init__(
        self,
        top_fd: int,
        problems: Problems,
        *,
        one_file_system: bool = False,
        names: Callable[[Level], list[bytes]] = list_names,
        passes: Callable[[bytes, os.stat_result], bool] = never,
    ) -> None:
        """``top_fd`` stays the caller's.

        Args:
            top_fd: the directory.
            problems: hears of what cannot be read.
            one_file_system: enter no other file system.
            names: tells which names of a directory, which has just been opened, to visit.
            passes: tells of a subdirectory of where the walk is whether it need not be entered.
        """
        self._problems = problems
        self._names = names
        self._passes = passes
        self._one_file_system = one_file_system
        self._stack: list[Level] = []
        self._top_fd = top_fd

    def __iter__(self) -> Iterator[Visit]:
        try:
            yield from self._run()
        finally:
            for level in self._stack[1:]:
                _close(level)

    def _run(self) -> Iterator[Visit]:
        top = Level(b"", None, os.fstat(self._top_fd), self._top_fd)
        self._list(top)
        self._stack.append(top)
        yield Step.ENTER, top, b"", top.status
        while self._stack:
            level = self._stack[-1]
            if level.position == len(level.names):
                yield Step.LEAVE, level, level.name, level.status
                self._ascend()
                continue
            name = level.names[level.position]
            level.position += 1
            try:
                status = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
            except OSError as exc:
                self._problems.add_os_error(level.child_path(name), "left out", exc)
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield Step.OBJECT, level, name, status
                continue
            if self._passes(name, status):
                yield Step.PASS, level, name, status
                continue
            child = self._descend(level, name, status)
            if child is not None:
                yield Step.ENTER, child, name, child.status

    def _descend(self, level: Level, name: bytes, status: os.stat_result) -> Level | None:
        """Open the subdirectory; one that cannot be read is entered as if it were empty."""
        child = Level(name, level, status, -1)
        if not self._crosses(child):
            try:
                child.fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=level.fd)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    self._problems.add_os_error(child.path, "left out", exc)
                    return None
                self._problems.add_os_error(child.path, "its content is missing", exc)
            else:
                child.status = os.fstat(child.fd)
                if self._crosses(child):  # mounted since it was looked at
                    _close(child)
                else:
                    self._list(child)
        self._stack.append(child)
        if len(self._stack) > OPEN_DIRECTORIES_MAX:
            _close(self._stack[-OPEN_DIRECTORIES_MAX])
        return child

    def _crosses(self, child: Level) -> bool:
        device = self._stack[0].status.st_dev
        child.crossed = self._one_file_system and child.status.st_dev != device
        return child.crossed

    def _list(self, level: Level) -> None:
        try:
            level.names = self._names(level)
        except OSError as exc:
            self._problems.add_os_error(level.path, "its content is missing", exc)

    def _ascend(self) -> None:
        """Go back to the parent, opening it again when the walk had closed it."""
        left = self._stack.pop()
        if self._stack:
            parent = self._stack[-1]
            if parent.fd < 0 and parent.position < len(parent.names):
                parent.fd = self._reopen(parent, left)
                if parent.fd < 0:
                    self._problems.add(parent.path, "moved meanwhile; the rest of it is missing")
                    parent.position = len(parent.names)
            elif parent.fd < 0 and left.fd >= 0:
                # Nothing is left to do there, but its own parent is reached through it.
                parent.fd = self._reopen(parent, left)
        _close(left)

    def _reopen(self, level: Level, below: Level) -> int:
        """Return a descriptor of ``level``, reached from below or else from the top; or -1."""
        if below.fd >= 0:
            with suppress(OSError):
                fd = os.open("..", _DIRECTORY_FLAGS, dir_fd=below.fd)
                if level.is_same(os.fstat(fd)):
                    return fd
                os.close(fd)
        return self._reopen_from_top(level)

    def _reopen_from_top(self, level: Level) -> int:
        fd = os.dup(self._top_fd)
        for step in self._stack[1 : self._stack.index(level) + 1]:
            try:
                below = os.open(step.name, _DIRECTORY_FLAGS, dir_fd=fd)
            except OSError:
                return -1
            finally:
                os.close(fd)
            fd = below
            if not step.is_same(os.fstat(fd)):
                os.close(fd)
                return -1
        return fd


def _close(level: Level) -> None:
    """Close a level's descriptor; never the top's, which has no parent."""
    if level.fd >= 0 and level.parent is not None:
        os.close(level.fd)
        level.fd = -1
