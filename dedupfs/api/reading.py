"""Reading a snapshot: what a path leads to, what is there, and a file's bytes.

Symbolic links are followed inside the snapshot alone: one that leads out of it leads nowhere. Names
that no file can have (only a crafted store holds any) are left out of listings, so that what lists
a snapshot can join its names to a path. Knows no view.
"""

import io
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dedupfs.api.failures import public
from dedupfs.errors import (
    LoopError,
    MissingRecordError,
    NotADirectoryNameError,
    NotFoundError,
)
from dedupfs.model import TreeEntry
from dedupfs.namespace.trees import TreeReader, tree_id_of
from dedupfs.recipe import Recipe

if TYPE_CHECKING:
    from dedupfs.api.opened import Hold, Opened
    from dedupfs.store import Store

    WritableBuffer = bytearray | memoryview

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
LINKS_FOLLOWED_MAX = 40
READ_BYTES = 4 << 20
BUFFER_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class Stat:
    """What an object is; times in nanoseconds since 1970.

    ``ctime_ns``: when it was changed last in any way. ``device``: the number of a device node.
    """

    mode: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    nlink: int
    atime_ns: int = 0
    ctime_ns: int = 0
    device: int = 0
    content: bytes = field(default=b"", repr=False)
    """Of a file: equal in all files of a store that have the same chunks; empty: not known yet."""

    @property
    def mtime(self) -> float:
        """When the content was changed last, in seconds since 1970."""
        return self.mtime_ns / 1e9

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory. ``path`` is below the snapshot's or the view's root."""

    name: str
    path: str
    stat: Stat


def stat_of(entry: TreeEntry) -> Stat:
    """Return what a tree tells of an object, its hard link resolved."""
    size = 0 if entry.is_directory else entry.size
    return Stat(
        entry.mode,
        size,
        entry.mtime_ns,
        entry.uid,
        entry.gid,
        entry.nlink,
        entry.accessed_ns,
        entry.ctime_ns or entry.mtime_ns,
        entry.rdev,
        entry.content if entry.is_file else b"",
    )


def names_of(path: AnyPath) -> list[bytes]:
    """Return the names on a path; a slash in front of it means nothing."""
    return [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]


def shown_path(path: AnyPath) -> str:
    """Return the path as it is told in an error and handed out with entries."""
    return os.fsdecode(path).strip("/")


def expand(pending: list[bytes], target: bytes, left: int, path: AnyPath) -> None:
    """Have a link's target followed next: ``pending`` are the names ahead, the next one last.

    Raises:
        NotFoundError: it leads outside. LoopError: no more than ``left`` links may follow.
    """
    if target.startswith(b"/"):
        where = os.fsdecode(target)
        raise NotFoundError(f"{shown_path(path)!r} leads to {where!r}, outside of dedupfs")
    if left <= 0:
        raise LoopError(f"too many symbolic links in {shown_path(path)!r}")
    pending.extend(reversed(names_of(target)))


def find_entry(trees: TreeReader, root: TreeEntry, path: AnyPath, *, follow: bool) -> TreeEntry:
    """Return what ``path`` leads to below ``root``; ``follow``: through a last link, too.

    Raises:
        NotFoundError, NotADirectoryNameError, LoopError: nowhere.
    """
    above = [root]
    entry = root
    pending = names_of(path)[::-1]
    links_left = LINKS_FOLLOWED_MAX
    while pending:
        name = pending.pop()
        if not entry.is_directory:
            before = os.fsdecode(entry.name)
            raise NotADirectoryNameError(f"{before!r} in {shown_path(path)!r} is no directory")
        if name == b"..":
            if len(above) == 1:
                raise NotFoundError(f"{shown_path(path)!r} leads outside of the snapshot")
            above.pop()
            entry = above[-1]
            continue
        found = trees.find(tree_id_of(entry), name)
        if found is None:
            raise NotFoundError(f"no {os.fsdecode(name)!r} in {shown_path(path)!r}")
        found = trees.resolve(root, found)
        if found.is_symlink and (pending or follow):
            expand(pending, found.content, links_left, path)
            links_left -= 1
            entry = above[-1]
            continue
        entry = found
        above.append(entry)
    return entry


class SnapshotFile(io.RawIOBase):
    """An open file of a snapshot. ``pread`` may be called by several threads at once.

    A read costs some 20 us more than a pread(2). Chunks are verified when this process first reads
    them.
    """

    def __init__(self, opened: "Opened", recipe: Recipe, name: str, hold: "Hold | None") -> None:
        self.name = name
        self.mode = "rb"
        self._opened = opened
        self._recipe = recipe
        self._hold = hold
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._recipe.size

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        self._require_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position, as in every file."""
        self._require_open()
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}.get(whence)
        if start is None:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self._position = start + offset
        return self._position

    @public
    def pread(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on; the position stays."""
        self._require_open()
        if size < 0 or offset < 0:
            raise ValueError("a size and an offset are not negative")
        return self._core().read(self._recipe.cut(offset, offset + size))

    @public
    def readinto(self, buffer: "WritableBuffer", /) -> int:  # type: ignore[override]
        """Fill ``buffer`` from the position on; return how many bytes there were."""
        self._require_open()
        core = self._core()
        with memoryview(buffer) as view, view.cast("B") as target:
            start = self._position
            stop = min(start + len(target), self.size)
            for offset in range(start, stop, READ_BYTES):
                pieces = self._recipe.cut(offset, min(offset + READ_BYTES, stop))
                data = core.read_cached(pieces)
                if data is None:
                    data = core.read(pieces)
                target[offset - start : offset - start + len(data)] = data
        self._position = max(start, stop)
        return max(0, stop - start)

    @public
    def readall(self) -> bytes:
        """Return everything from the position on."""
        data = self.pread(max(0, self.size - self._position), self._position)
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close it; again does nothing."""
        self._hold = None
        super().close()

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _core(self) -> "Store":
        hold = self._hold
        if hold is not None and hold.forks != self._opened.forks:
            try:
                self._hold = self._opened.hold(hold.root)
            except MissingRecordError as exc:
                raise NotFoundError(f"the snapshot of {self.name!r} was removed") from exc
        return self._opened.core


class _BufferedReader(io.BufferedReader):
    """A buffered file to read, whose size fsspec's own functions ask for."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        size: int = self.raw.size  # type: ignore[attr-defined]
        return size


def wrapped(
    raw: io.RawIOBase,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> io.IOBase:
    """Return ``raw`` as open(2) would have made it, buffered and as text as ``mode`` asks."""
    if buffering == 0:
        if "b" not in mode:
            raise ValueError("text cannot be unbuffered")
        return raw
    size = BUFFER_BYTES if buffering < 2 else buffering
    buffered: io.BufferedReader | io.BufferedWriter | io.BufferedRandom
    if "+" in mode:
        buffered = io.BufferedRandom(raw, size)
    elif "r" in mode:
        buffered = _BufferedReader(raw, size)
    else:
        buffered = io.BufferedWriter(raw, size)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)


def check_mode(mode: str) -> None:
    """Refuse a mode that the built-in open would not take."""
    kinds = [letter for letter in mode if letter in "rwax"]
    if len(kinds) != 1 or len(set(mode)) != len(mode) or set(mode) - set("rwaxbt+"):
        raise ValueError(f"invalid mode: {mode!r}")
    if "b" in mode and "t" in mode:
        raise ValueError("a file is read as text or as bytes, not both")
