"""The directory of a checkout: reached by descriptors alone, so that nobody leads us out of it.

What stands at a name is compared with what a tree says; a name that was changed since is its
user's. Knows no store beyond the paths of packs. Source: openat(2), O_NOFOLLOW; renameat2(2).
"""

import ctypes
import enum
import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from dedupfs.checkout.changes import Item
from dedupfs.errors import SourceError
from dedupfs.model import TreeEntry

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ATTRIBUTE = "user.dedupfs.checkout"
_NOREPLACE = 1  # linux/fs.h
_libc = ctypes.CDLL(None, use_errno=True)


class State(enum.Enum):
    """What stands at a name, compared with what should."""

    MISSING = "missing"
    LINK = "link"
    HARDLINK = "hardlink"
    PLAIN = "plain"
    OTHER = "other"

    @property
    def is_ours(self) -> bool:
        """Whether it is what was made there."""
        return self in (State.LINK, State.HARDLINK, State.PLAIN)


class Links:
    """Which packs a checkout's files may be links to."""

    def __init__(self, packs: Mapping[bytes, int], path_of: Callable[[int], Path]) -> None:
        self.packs = dict(packs)
        self._path_of = path_of
        self._inodes: dict[int, tuple[int, int] | None] = {}

    def path(self, content: bytes) -> Path | None:
        """Return the file of the pack that this content is; None when it is no link."""
        pack = self.packs.get(content)
        return self._path_of(pack) if pack is not None else None

    def is_inode(self, content: bytes, status: os.stat_result) -> bool:
        """Whether a file is the pack's own."""
        pack = self.packs.get(content)
        if pack is None:
            return False
        if pack not in self._inodes:
            try:
                found = self._path_of(pack).stat()
                self._inodes[pack] = (found.st_dev, found.st_ino)
            except OSError:
                self._inodes[pack] = None
        return self._inodes[pack] == (status.st_dev, status.st_ino)


def state_at(directory_fd: int, name: bytes, item: Item, links: Links) -> State:
    """Compare what is called ``name`` with an object of a tree."""
    try:
        status = os.lstat(name, dir_fd=directory_fd)
    except (FileNotFoundError, NotADirectoryError):
        return State.MISSING
    entry = item.entry
    kind = stat.S_IFMT(status.st_mode)
    if entry.is_file:
        return _file_state(directory_fd, name, entry, status, links)
    if kind != stat.S_IFMT(entry.mode):
        return State.OTHER
    if entry.is_symlink:
        same = os.readlink(name, dir_fd=directory_fd) == entry.content
        return State.PLAIN if same else State.OTHER
    if not entry.is_directory and status.st_rdev != entry.rdev and not stat.S_ISFIFO(kind):
        return State.OTHER
    return State.PLAIN


def _file_state(
    directory_fd: int, name: bytes, entry: TreeEntry, status: os.stat_result, links: Links
) -> State:
    if stat.S_ISLNK(status.st_mode):
        path = links.path(entry.content)
        is_ours = path is not None and os.readlink(name, dir_fd=directory_fd) == bytes(path)
        return State.LINK if is_ours else State.OTHER
    if not stat.S_ISREG(status.st_mode):
        return State.OTHER
    if links.is_inode(entry.content, status):
        return State.HARDLINK
    if status.st_size != entry.size or not _is_same_time(status.st_mtime_ns, entry.mtime_ns):
        return State.OTHER
    bits = stat.S_IMODE(entry.mode) & 0o777
    return State.PLAIN if stat.S_IMODE(status.st_mode) & 0o777 == bits else State.OTHER


def _is_same_time(found_ns: int, wanted_ns: int) -> bool:
    """Whether a time is the one that was set; some file systems keep whole seconds."""
    seconds_only = found_ns % 10**9 == 0
    return found_ns == wanted_ns or (seconds_only and found_ns // 10**9 == wanted_ns // 10**9)


def open_directory(parent_fd: int, name: bytes) -> int:
    """Open a directory below another, following nothing; make it usable for its owner."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
    held = os.open(name, flags, dir_fd=parent_fd)
    try:
        mode = os.fstat(held).st_mode
        if os.geteuid() and mode & 0o700 != 0o700:
            os.chmod(b"/proc/self/fd/%d" % held, stat.S_IMODE(mode) | 0o700)
        return os.open(b"/proc/self/fd/%d/." % held, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(held)


class Directories:
    """The directories below a top, of which the last one asked for stays open.

    So paths should be asked for in the order of a walk. ``may_open``: change the mode of one that
    its owner could not use; it has to be given back its own.
    """

    def __init__(self, top_fd: int, *, may_open: bool = False) -> None:
        self._top_fd = top_fd
        self._may_open = may_open
        self._path = b""
        self._fd = -1

    def of(self, path: bytes) -> int:
        """Return the descriptor of a directory, good until the next call.

        Raises:
            FileNotFoundError, NotADirectoryError: there is none, or a symbolic link leads there.
        """
        if not path:
            return self._top_fd
        if self._fd >= 0 and path == self._path:
            return self._fd
        below = self._path + b"/"
        if self._fd >= 0 and path.startswith(below):
            fd, rest = self._fd, path[len(below) :]
        else:
            self.close()
            fd, rest = os.dup(self._top_fd), path
        self._fd = -1
        for name in rest.split(b"/"):
            try:
                found = self._open(fd, name)
            finally:
                os.close(fd)
            fd = found
        self._fd, self._path = fd, path
        return fd

    def _open(self, parent_fd: int, name: bytes) -> int:
        try:
            if self._may_open:
                return open_directory(parent_fd, name)
            return os.open(name, DIRECTORY_FLAGS, dir_fd=parent_fd)
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from exc
            raise

    def close(self) -> None:
        """Close what is open; ask for others afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def still_there(top_fd: int, paths: Iterable[bytes]) -> list[bytes]:
    """Return which of these names there are, each once, in order."""
    directories = Directories(top_fd)
    found = []
    for path in sorted(set(paths)):
        parent, name = split(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(name, dir_fd=directories.of(parent))
            found.append(path)
    directories.close()
    return found


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return the path of the directory that a name is in, and the name."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


def rename_new(directory_fd: int, old: bytes, new: bytes) -> None:
    """Rename unless there is something called ``new``.

    Raises:
        FileExistsError: there is.
    """
    if _libc.renameat2(directory_fd, old, directory_fd, new, _NOREPLACE) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):  # not on this file system
        with suppress(FileNotFoundError):
            os.lstat(new, dir_fd=directory_fd)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(old, new, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        return
    raise OSError(number, os.strerror(number))


def sync_file_system(fd: int) -> None:
    """Make durable what was done on a file system: links that went must not come back.

    Raises:
        SourceError: the disk could not.
    """
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise SourceError(f"cannot sync the checkout's file system: {os.strerror(number)}")
