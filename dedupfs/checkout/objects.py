"""Making one object of a tree in a directory: a link to a pack, or a file of its own.

An object is made under another name and then renamed, so that a name is never half a file. Knows
descriptors and packs, no manifest and no order of things.
"""

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.checkout.target import Links
from dedupfs.errors import StoreError
from dedupfs.model import TreeEntry
from dedupfs.namespace.contents import load_recipe
from dedupfs.recipe import Recipe
from dedupfs.store import Store
from dedupfs.store.syscalls import clone_range
from dedupfs.store.whole import Run, block_part, raw_runs
from dedupfs.transfer.export import data_runs
from dedupfs.transfer.metadata import apply_metadata, object_at
from dedupfs.transfer.report import Problem, Problems

SYMLINK, HARDLINK, REFLINK, COPY = "symlink", "hardlink", "reflink", "copy"
_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_HARD_LINK = (errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP)
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


@dataclass(slots=True)
class CheckoutReport:
    """What a run made and what it could not.

    ``linked_bytes`` (logical) take no space in the directory; ``shared_bytes`` were reflinked.
    ``kept``: what its user changed or added, and was left alone. ``fallbacks``: files that were
    copied although they should have been links. ``damaged``: files that the store has lost.
    """

    number: int = 0
    link: str = ""
    files: int = 0
    directories: int = 0
    removed: int = 0
    linked_files: int = 0
    linked_bytes: int = 0
    shared_bytes: int = 0
    copied_bytes: int = 0
    assembled: int = 0
    assembled_bytes: int = 0
    fallbacks: int = 0
    damaged: int = 0
    seconds: float = 0.0
    kept: list[bytes] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def is_linkable(entry: TreeEntry, link: str, bytes_min: int) -> bool:
    """Whether a file can be a link to a pack: what a link cannot have must not be asked for.

    Attributes and set-id bits cannot be. A hard link shows the pack's owner, so nobody may lose
    the right to read by that.
    """
    if not entry.is_file or entry.size < max(1, bytes_min) or link not in (SYMLINK, HARDLINK):
        return False
    if entry.xattrs or entry.mode & _SPECIAL_BITS:
        return False
    is_own = (entry.uid, entry.gid) == (os.geteuid(), os.getegid())
    return link == SYMLINK or is_own or entry.mode & 0o444 == 0o444


class ObjectMaker:
    """Makes objects under a name that is free, in directories that are open."""

    def __init__(
        self,
        store: Store,
        links: Links,
        link: str,
        report: CheckoutReport,
        problems: Problems,
    ) -> None:
        self._store = store
        self._links = links
        self._link = link
        self._report = report
        self._problems = problems

    def wants_link(self, entry: TreeEntry) -> bool:
        """Whether a file is to be a link to a pack."""
        return self._links.path(entry.content) is not None and is_linkable(entry, self._link, 1)

    def make(self, directory_fd: int, name: bytes, entry: TreeEntry, path: bytes) -> None:
        """Make anything but a directory; nothing is there when this raises.

        Raises:
            OSError: the kernel refused. StoreError: the store has lost it.
        """
        if entry.is_file:
            pack = self._links.path(entry.content) if self.wants_link(entry) else None
            if pack is not None and self._make_link(directory_fd, name, entry, pack):
                self._report.linked_files += 1
                self._report.linked_bytes += entry.size
            else:
                self._make_file(directory_fd, name, entry, path)
            return
        if entry.is_symlink:
            os.symlink(entry.content, name, dir_fd=directory_fd)
        else:
            kind = stat.S_IFMT(entry.mode)
            os.mknod(name, kind | 0o600, entry.rdev, dir_fd=directory_fd)
        with object_at(directory_fd, name) as (_fd, target):
            self._apply(target, entry, path)

    def apply_again(self, directory_fd: int, name: bytes, entry: TreeEntry, path: bytes) -> None:
        """Give an object that was made before the attributes that it has now."""
        with object_at(directory_fd, name) as (_fd, target):
            self._apply(target, entry, path)

    def apply_directory(self, directory_fd: int, entry: TreeEntry, path: bytes) -> None:
        """Give a directory its attributes, after all that is in it."""
        self._apply(directory_fd, entry, path)

    # --- links --------------------------------------------------------------------------------

    def _make_link(self, directory_fd: int, name: bytes, entry: TreeEntry, pack: Path) -> bool:
        if self._link == SYMLINK:
            os.symlink(bytes(pack), name, dir_fd=directory_fd)
            return True
        if not _dress(self._store, pack, entry):
            self._report.fallbacks += 1
            return False
        try:
            os.link(bytes(pack), name, dst_dir_fd=directory_fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in _NO_HARD_LINK:
                raise
            self._report.fallbacks += 1
            return False
        return True

    # --- files --------------------------------------------------------------------------------

    def _make_file(self, directory_fd: int, name: bytes, entry: TreeEntry, path: bytes) -> None:
        recipe = load_recipe(self._store, entry.content)
        fd = os.open(name, _FILE_FLAGS, 0o600, dir_fd=directory_fd)
        try:
            os.truncate(fd, recipe.size)
            shared = self._share(fd, recipe) if self._link == REFLINK else []
            position = 0
            for run in shared:
                self._copy(fd, recipe, position, run.start)
                position = run.stop
                self._report.shared_bytes += run.stop - run.start
            self._copy(fd, recipe, position, recipe.size)
            self._apply(fd, entry, path)
        except BaseException:
            os.unlink(name, dir_fd=directory_fd)  # half a file is worse than none
            raise
        finally:
            os.close(fd)

    def _share(self, fd: int, recipe: Recipe) -> list[Run]:
        """Share blocks with packs; return which parts of the file need no bytes any more."""
        runs = raw_runs(self._store, recipe)
        shared = []
        for run in runs:
            part = block_part(run, recipe.size)
            if part is None:
                continue
            source = self._store.reader.open_pack(part.pack)
            stop = part.pack_start + part.stop - part.start
            if clone_range(source.fd, part.pack_start, stop, fd, part.start):
                shared.append(part)
        if shared and raw_runs(self._store, recipe) != runs:
            return []  # a chunk went elsewhere meanwhile, and its place may be a hole by now
        return shared

    def _copy(self, fd: int, recipe: Recipe, start: int, stop: int) -> None:
        for pieces, length in data_runs(recipe, start, stop):
            data = memoryview(self._store.read(pieces))
            file_offset = pieces[0].file_offset
            while data:
                written = os.pwrite(fd, data, file_offset)
                file_offset += written
                data = data[written:]
            self._report.copied_bytes += length

    def _apply(self, target: int | bytes, entry: TreeEntry, path: bytes) -> None:
        apply_metadata(
            target,
            entry,
            lambda what, exc: self._problems.add_os_error(path, f"{what} could not be set", exc),
        )


def _dress(store: Store, pack: Path, entry: TreeEntry) -> bool:
    """Let a pack have the mode that a file's hard link shows, but for writing; say if it can.

    It has one for all its names: the first hard link decides.
    """
    wanted = entry.mode & 0o555 | 0o400
    status = pack.stat()
    if stat.S_IMODE(status.st_mode) == wanted:
        return True
    if status.st_nlink > 1:
        return False
    try:
        store.disk.chmod(pack, wanted)
    except StoreError:
        return False
    return True
