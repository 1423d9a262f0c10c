"""A directory -> the files in it that have equal bytes, and what had to be left out, and why.

By size, then by a hash of samples, then by a hash of everything: hints, all of them. Whoever
replaces a file compares bytes. Reads and changes nothing; of the store it knows the hash alone, and
how long its verbatim packs are.
"""

import enum
import fcntl
import os
import stat
import struct
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.checkout.dedupe.below import opened_below
from dedupfs.errors import SourceError, UsageError
from dedupfs.model import RecordKind
from dedupfs.store import Store
from dedupfs.transfer.extents import Blocks, blocks_of
from dedupfs.transfer.leases import why_busy
from dedupfs.transfer.report import OnProgress, Problem, Problems, Progress
from dedupfs.transfer.scan import FileKey
from dedupfs.transfer.walk import Level, Step, Walk

TEMPORARY_PREFIX = b".dedupfs-"
"""Names of files that a run makes beside those that it replaces; what a crash leaves of them."""
MIN_BYTES = 1 << 20
_SAMPLE_BYTES = 64 << 10
_BLOCK_BYTES = 4 << 20
_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS, linux/fs.h
_FIXED = 0x10 | 0x20  # immutable, append only


class Why(enum.StrEnum):
    """Why a file stays as it is."""

    SMALL = "smaller than --min-size"
    OWNER = "it belongs to another user, who could write to the store through a link"
    OUTSIDE = "it has names outside of the directory"
    FIXED = "it is immutable or append-only"
    READ_ONLY = "its file system is mounted read-only"
    MOUNT = "another file system is mounted there"
    CHANGED = "it changed meanwhile"
    ATTRIBUTES = "its owner, mode or attributes differ from the copy that stays"


@dataclass(slots=True)
class Inode:
    """A regular file, whatever names it has in the directory."""

    key: FileKey
    status: os.stat_result
    paths: list[bytes]
    is_pack: bool = False
    """Whether a pack of the store is this inode: that is one more name, and not somebody's."""

    @property
    def size(self) -> int:
        """Its length."""
        return self.status.st_size

    @property
    def disk_bytes(self) -> int:
        """What its blocks take."""
        return self.status.st_blocks * 512


@dataclass(slots=True)
class Group:
    """Files of equal content, as far as a hash can tell; the one that costs least comes first.

    ``shared``: those that take no blocks of their own, because they share the first one's.
    ``stored``: the store has this content in one piece.
    """

    size: int
    inodes: list[Inode]
    shared: set[FileKey] = field(default_factory=set)
    stored: bool = False

    @property
    def duplicates(self) -> list[Inode]:
        """What a replacement would free."""
        spare = self.inodes if self.stored else self.inodes[1:]
        return [inode for inode in spare if inode.key not in self.shared]

    @property
    def duplicate_bytes(self) -> int:
        """The blocks of the duplicates."""
        return sum(inode.disk_bytes for inode in self.duplicates)


@dataclass(slots=True)
class Found:
    """The result of a scan. ``skipped``: files that stay as they are; ``small``: how many more."""

    directory: Path
    groups: list[Group] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)
    leftovers: list[bytes] = field(default_factory=list)
    linked: dict[bytes, os.stat_result] = field(default_factory=dict)
    """Names of packs' own inodes: links that somebody made."""
    files: int = 0
    size_bytes: int = 0
    small: int = 0
    unique: int = 0
    shared_bytes: int = 0
    """What was saved before: links to one file, and files that share their blocks."""

    @property
    def duplicate_bytes(self) -> int:
        """What replacing all duplicates would free."""
        return sum(group.duplicate_bytes for group in self.groups)


def refuse_overlap(store: Store, directory: Path) -> None:
    """Raise UsageError when one of the two lies in the other; both without symbolic links."""
    inside = Path(os.path.realpath(store.path))
    if directory.is_relative_to(inside) or inside.is_relative_to(directory):
        raise UsageError(f"{directory} and the store {store.path} lie in each other")


class Scanner:
    """One scan of one directory."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        *,
        min_bytes: int = MIN_BYTES,
        known: Mapping[int, Sequence[Path]] | None = None,
        packs: Container[FileKey] = (),
        half_done: Container[FileKey] = (),
        progress: OnProgress | None = None,
    ) -> None:
        """Prepare it.

        Args:
            store: whose hash is used; nothing is written to it.
            directory: an absolute path without symbolic links.
            min_bytes: smaller files are left out.
            known: the files that the store may have in one piece, by length.
            packs: the inodes of those: what is a link to one is saved already.
            half_done: those of them that an interrupted run made.
            progress: hears how many bytes were read.
        """
        self.found = Found(directory)
        self._store = store
        self._min_bytes = max(1, min_bytes)
        self._known = known or {}
        self._packs = packs
        self._half_done = half_done
        self._on_progress = progress
        self._progress = Progress()
        self._problems = Problems(self.found.skipped, None)

    def run(self, top_fd: int) -> Found:
        """Scan everything below ``top_fd``."""
        refuse_overlap(self._store, self.found.directory)
        by_size: dict[int, list[Inode]] = defaultdict(list)
        for inode in self._candidates(top_fd):
            by_size[inode.size].append(inode)
        classes: list[list[Inode]] = []
        for size, inodes in by_size.items():
            if len(inodes) > 1 or size in self._known:
                classes.append(inodes)
            else:
                self.found.unique += 1
        self._progress.bytes_total = sum(len(one) * one[0].size for one in classes)
        for inodes in classes:
            self._group(top_fd, inodes)
        self.found.groups.sort(key=lambda group: group.duplicate_bytes, reverse=True)
        return self.found

    # --- which files --------------------------------------------------------------------------

    def _candidates(self, top_fd: int) -> Iterable[Inode]:
        if os.fstatvfs(top_fd).f_flag & os.ST_RDONLY:
            raise SourceError(f"{self.found.directory}: {Why.READ_ONLY}")
        inodes: dict[FileKey, Inode] = {}
        for step, level, name, status in Walk(top_fd, self._problems, one_file_system=True):
            if step is Step.ENTER and level.crossed:
                self._problems.add(level.path, Why.MOUNT)
            elif step is Step.OBJECT and stat.S_ISREG(status.st_mode):
                self._see(inodes, level, name, status)
            elif step is Step.OBJECT and name.startswith(TEMPORARY_PREFIX):
                self.found.leftovers.append(level.child_path(name))
        device = os.fstat(top_fd).st_dev
        for inode in inodes.values():
            if inode.status.st_dev != device:  # a file is mounted over this one
                self._problems.add(inode.paths[0], Why.MOUNT)
            else:
                yield inode

    def _see(
        self, inodes: dict[FileKey, Inode], level: Level, name: bytes, status: os.stat_result
    ) -> None:
        if name.startswith(TEMPORARY_PREFIX):
            self.found.leftovers.append(level.child_path(name))
            return
        self.found.files += 1
        self.found.size_bytes += status.st_size
        if status.st_size < self._min_bytes:
            self.found.small += 1
            return
        key = (status.st_dev, status.st_ino)
        if key in self._packs and key not in self._half_done:
            self.found.shared_bytes += status.st_blocks * 512
            self.found.linked[level.child_path(name)] = status
            return
        known = inodes.get(key)
        if known is None:
            is_pack = key in self._packs
            inodes[key] = Inode(key, status, [level.child_path(name)], is_pack)
        else:
            known.paths.append(level.child_path(name))
            self.found.shared_bytes += known.disk_bytes

    # --- which are equal ----------------------------------------------------------------------

    def _group(self, top_fd: int, inodes: list[Inode]) -> None:
        """Split files of one size by their content, and see which of it the store has."""
        size = inodes[0].size
        packs = self._known.get(size, ())
        samples = {path: self._digest_at(path, size, self._sample) for path in packs}
        for sample, alike in self._split(top_fd, inodes, self._sample).items():
            near = [path for path, digest in samples.items() if digest == sample]
            if len(alike) == 1 and not near:
                self.found.unique += 1
                self._tell(size)
                continue
            stored = {self._digest_at(path, size, self._whole) for path in near}
            for digest, same in self._split(top_fd, alike, self._whole).items():
                if len(same) == 1 and digest not in stored:
                    self.found.unique += 1
                else:
                    self._add_group(top_fd, same, digest in stored)

    @staticmethod
    def _digest_at(path: Path, size: int, digest: Callable[[int, int], bytes]) -> bytes:
        with suppress(OSError), path.open("rb", buffering=0) as file:
            return digest(file.fileno(), size)
        return b""

    def _split(
        self, top_fd: int, inodes: list[Inode], digest: Callable[[int, int], bytes]
    ) -> dict[bytes, list[Inode]]:
        classes: dict[bytes, list[Inode]] = defaultdict(list)
        for inode in inodes:
            try:
                with opened_below(top_fd, inode.paths[0]) as fd:
                    if is_same_file(inode.status, os.fstat(fd)):
                        classes[digest(fd, inode.size)].append(inode)
                    else:
                        self._problems.add(inode.paths[0], Why.CHANGED)
            except OSError as exc:
                self._problems.add_os_error(inode.paths[0], "cannot be read", exc)
        return classes

    def _sample(self, fd: int, size: int) -> bytes:
        offsets = sorted({0, max(0, size // 2 - _SAMPLE_BYTES), max(0, size - _SAMPLE_BYTES)})
        return self._digest(b"".join(os.pread(fd, _SAMPLE_BYTES, offset) for offset in offsets))

    def _whole(self, fd: int, size: int) -> bytes:
        digests = bytearray()
        buffer = bytearray(_BLOCK_BYTES)
        offset = 0
        while offset < size:
            got = os.preadv(fd, [buffer], offset)
            if not got:
                return b""
            digests += self._digest(memoryview(buffer)[:got])
            offset += got
            self._tell(got)
        return self._digest(bytes(digests))

    def _digest(self, data: bytes | memoryview) -> bytes:
        return self._store.digest(RecordKind.CHUNK, data)

    def _tell(self, length: int) -> None:
        self._progress.bytes_done += length
        if self._on_progress is not None:
            self._on_progress(self._progress)

    def _add_group(self, top_fd: int, inodes: list[Inode], stored: bool) -> None:
        """Add a group of what can be replaced; its first file is one that need not be."""
        inodes.sort(key=lambda inode: (inode.disk_bytes, inode.paths))
        group = Group(inodes[0].size, inodes, stored=stored)
        places = {inode.key: self._blocks(top_fd, inode) for inode in inodes}
        seen = {_blocks_at(path) for path in self._known.get(group.size, ())} - {None, ()}
        for inode in inodes:
            place = places[inode.key]
            if place is not None and place in seen:
                group.shared.add(inode.key)
                self.found.shared_bytes += inode.disk_bytes
            elif place:
                seen.add(place)
        self.found.groups.append(group)

    def _blocks(self, top_fd: int, inode: Inode) -> Blocks | None:
        with suppress(OSError), opened_below(top_fd, inode.paths[0]) as fd:
            return blocks_of(fd)
        return None


def _blocks_at(path: Path) -> Blocks | None:
    with suppress(OSError), path.open("rb") as file:
        return blocks_of(file.fileno())
    return None


# --- what can be replaced ---------------------------------------------------------------------


def why_not(fd: int, inode: Inode) -> str | None:
    """Say why a file, open as ``fd``, must not be replaced by a link; None when it may."""
    flags = bytearray(8)
    with suppress(OSError):  # file systems without such flags
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        if struct.unpack("=q", flags)[0] & _FIXED:
            return Why.FIXED
    status = os.fstat(fd)
    if not is_same_file(inode.status, status):
        return Why.CHANGED
    if status.st_uid != os.geteuid():
        return Why.OWNER
    if status.st_nlink > len(inode.paths) + inode.is_pack:
        return Why.OUTSIDE
    return why_busy(fd)


def is_same_file(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether it is the same inode and nothing was done to it in between, as far as one can see."""
    return _stamp(before) == _stamp(after)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
