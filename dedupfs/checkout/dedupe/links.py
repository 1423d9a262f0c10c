"""Where the links of a deduped directory are by now: in their places, moved below it, or gone.

A symbolic link holds nothing by itself, so one is only taken for gone when that is certain, and a
content whose last one is gone may have a link that was moved out of the directory. Changes nothing.
"""

import dataclasses
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dedupfs.checkout.dedupe.below import parent_of
from dedupfs.checkout.dedupe.scan import TEMPORARY_PREFIX
from dedupfs.checkout.dedupe.snapshot import Taken
from dedupfs.checkout.dedupe.take import Link
from dedupfs.checkout.packs import pack_path
from dedupfs.errors import SourceError
from dedupfs.store import Store
from dedupfs.transfer.report import Problems, shown
from dedupfs.transfer.walk import Step, Walk

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_PLACE_PARTS = 3  # packs/00/00000017.file


@dataclass(slots=True)
class FoundLinks:
    """What became of the names that an earlier run took.

    ``there``: those that still are what they were replaced by, and links to the same packs under
    other names. ``gone``: names that are none, and were not found again. ``lost``: contents that no
    name below the directory has, though a link that was moved out of it may.
    """

    there: list[Taken]
    gone: list[Taken]
    lost: dict[bytes, int]

    @property
    def newly_lost(self) -> bool:
        """Whether the last run still had a name of what is lost."""
        return any(one.entry.content in self.lost for one in self.gone)


def find_links(
    store: Store, top_fd: int, taken: Iterable[Taken], held: Mapping[bytes, int], link: Link
) -> FoundLinks:
    """Look at every name; ``held``: all contents that have a pack, and that pack.

    Raises:
        SourceError: a name cannot be looked at.
    """
    there: list[Taken] = []
    gone: list[Taken] = []
    for one in taken:
        try:
            is_there = is_in_place(store, top_fd, one, link)
        except OSError as exc:
            raise SourceError(f"cannot look at {shown(one.path)}: {exc.strerror}") from exc
        (there if is_there else gone).append(one)
    if link is Link.REFLINK:
        return FoundLinks(there, gone, {})
    there += list(_moved(store, top_fd, there, gone))
    lost: dict[bytes, int] = {}
    if link is Link.SYMLINK:
        kept = {one.entry.content for one in there}
        restored = {one.entry.content for one in gone if _is_restored(top_fd, one)}
        lost = {
            content: pack
            for content, pack in held.items()
            if content not in kept and content not in restored
        }
    return FoundLinks(there, gone, lost)


def is_in_place(store: Store, top_fd: int, one: Taken, link: Link) -> bool:
    """Whether a file still is what it was replaced by: a link to its pack.

    Where symbolic links are made, the file that became the pack is a hard link until its turn.
    What shares blocks with its pack is the user's own file; it counts while it looks the same.

    Raises:
        OSError: nobody can tell.
    """
    try:
        with parent_of(top_fd, one.path) as (directory_fd, name):
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            path = pack_path(store, one.pack)
            if link is Link.SYMLINK and stat.S_ISLNK(status.st_mode):
                return _leads_to(directory_fd, name, path)
            if link is not Link.REFLINK:
                return stat.S_ISREG(status.st_mode) and _is_file(status, path)
            seen = (status.st_mode, status.st_size, status.st_mtime_ns)
            return seen == (one.entry.mode, one.entry.size, one.entry.mtime_ns)
    except OSError as exc:
        if exc.errno in _GONE:
            return False
        raise


def _is_file(status: os.stat_result, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(status, os.stat(path))
    return False


def _leads_to(directory_fd: int, name: bytes, path: Path, *, moved_store: bool = True) -> bool:
    """Whether a symbolic link leads to a pack, by whatever name of the store.

    One that leads nowhere does (``moved_store``): the store was moved since.
    """
    target = Path(os.fsdecode(os.readlink(name, dir_fd=directory_fd)))
    if target == path:
        return True
    if _place(target) != _place(path):
        return False
    try:
        status = os.stat(name, dir_fd=directory_fd)
    except OSError as exc:
        if exc.errno in _GONE:
            return moved_store
        raise
    return _is_file(status, path)


def _moved(store: Store, top_fd: int, there: list[Taken], gone: list[Taken]) -> Iterator[Taken]:
    """Yield links to packs of these files under other names, each as the file that it was.

    That is one that is gone (and now found), as long as there is any; else it is a copy.
    """
    seen = {one.path for one in there}
    known: dict[int, list[Taken]] = {}
    for one in [*there, *gone]:
        known.setdefault(one.pack, []).append(one)
    missed: dict[int, list[Taken]] = {}
    for one in gone:
        missed.setdefault(one.pack, []).append(one)
    packs = _Packs(store, known)
    for step, level, name, status in Walk(top_fd, Problems([], None), one_file_system=True):
        if step is not Step.OBJECT or name.startswith(TEMPORARY_PREFIX):
            continue
        path = level.child_path(name)
        pack = packs.find(level.fd, name, status) if path not in seen else None
        if pack is None:
            continue
        left = missed.get(pack)
        was = _best(left or known[pack], name, status)
        if left:
            left.remove(was)
            yield dataclasses.replace(was, path=path)
        else:
            yield dataclasses.replace(was, path=path, linked=None)
    gone[:] = [one for left in missed.values() for one in left]


class _Packs:
    """Tells which of some packs a name is a link to."""

    def __init__(self, store: Store, packs: Iterable[int]) -> None:
        self._paths = {pack: pack_path(store, pack) for pack in packs}
        self._by_place = {_place(path): pack for pack, path in self._paths.items()}
        self._by_inode: dict[tuple[int, int], int] = {}
        for pack, path in self._paths.items():
            with suppress(FileNotFoundError):
                status = os.stat(path)
                self._by_inode[status.st_dev, status.st_ino] = pack

    def find(self, directory_fd: int, name: bytes, status: os.stat_result) -> int | None:
        """Return the pack; None when it is no link to one, or nobody can tell."""
        if stat.S_ISREG(status.st_mode):
            return self._by_inode.get((status.st_dev, status.st_ino))
        if not stat.S_ISLNK(status.st_mode):
            return None
        with suppress(OSError):
            target = os.fsdecode(os.readlink(name, dir_fd=directory_fd))
            pack = self._by_place.get(_place(Path(target)))
            if pack is not None and _leads_to(
                directory_fd, name, self._paths[pack], moved_store=False
            ):
                return pack
        return None


def _place(path: Path) -> tuple[str, ...]:
    return path.parts[-_PLACE_PARTS:]


def _best(files: list[Taken], name: bytes, status: os.stat_result) -> Taken:
    """Return the file that a link is most likely to be: it has its time, or its name."""

    def likeness(one: Taken) -> tuple[bool, bool]:
        same_name = one.path.rpartition(b"/")[2] == name
        return one.entry.mtime_ns == status.st_mtime_ns, same_name

    return max(files, key=likeness)


def _is_restored(top_fd: int, one: Taken) -> bool:
    """Whether a name has a file that an undo gave back, or that was never replaced."""
    with suppress(OSError), parent_of(top_fd, one.path) as (directory_fd, name):
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        same = (status.st_size, status.st_mtime_ns) == (one.entry.size, one.entry.mtime_ns)
        return same and stat.S_ISREG(status.st_mode)
    return False
