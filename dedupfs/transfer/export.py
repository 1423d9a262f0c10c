"""Snapshot (or a directory of one) -> directory: everything restored, nothing followed.

Every object is made relative to its open parent with O_EXCL or O_NOFOLLOW, and the target is closed
to everybody else until it is complete, so that nobody who could write there leads the export
outside it. Nor do the names and numbers of a crafted tree: what no file can have is reported.
Hard-linked inodes are first made in a hidden directory of the target and linked from there.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import (
    CorruptError,
    MissingRecordError,
    SourceError,
    StoreError,
    UsageError,
)
from dedupfs.model import HOLE, TreeEntry
from dedupfs.namespace.contents import load_recipe
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of
from dedupfs.recipe import Piece, Recipe
from dedupfs.store import Store
from dedupfs.transfer.entries import is_possible
from dedupfs.transfer.metadata import (
    apply_metadata,
    drop_inherited_acls,
    object_at,
)
from dedupfs.transfer.report import ExportReport, OnProblem, OnProgress, Problems, Progress, shown

OPEN_DIRECTORIES_MAX = 100
READ_BYTES = 4 << 20
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Level:
    """A directory being filled. ``fd`` is -1 while it is closed because it is far up."""

    entry: TreeEntry
    path: bytes
    fd: int
    children: Iterator[TreeEntry]
    key: tuple[int, int]


def export_tree(
    store: Store,
    root: TreeEntry,
    directory: Path,
    *,
    top: TreeEntry | None = None,
    progress: OnProgress | None = None,
    on_error: OnProblem | None = None,
) -> ExportReport:
    """Restore ``top`` (a directory below ``root``, or all of it) as ``directory``.

    ``root`` is the scope whose hard links count. Damaged files are left out and reported.

    Raises:
        UsageError: the target exists and is not an empty directory, or ``top`` is no directory.
        SourceError: the target cannot be written.
    """
    started = time.monotonic()
    top = root if top is None else top
    if not top.is_directory:
        raise UsageError(f"{shown(top.name)} is no directory; dedupfs cat prints a file")
    top_fd = _open_target(directory)
    run = _Export(store, root, progress, on_error)
    try:
        run.restore(top, top_fd)
    except OSError as exc:
        raise SourceError(f"cannot export to {directory}: {exc.strerror}") from exc
    finally:
        run.close()
        os.close(top_fd)
    run.report.seconds = time.monotonic() - started
    return run.report


def _open_target(directory: Path) -> int:
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise SourceError(f"cannot export to {directory}: {exc.strerror}") from exc
    try:
        if not os.listdir(fd):
            _close_to_others(fd)
            if not os.listdir(fd):
                return fd
    except OSError as exc:
        os.close(fd)
        raise SourceError(f"cannot export to {directory}: {exc.strerror}") from exc
    os.close(fd)
    raise UsageError(f"{directory} is not empty: export to a new directory")


def _close_to_others(fd: int) -> None:
    """Keep others out of a directory that was there before, as far as the file system can.

    The last thing that is done to it is to give it the owner and mode that it has in the snapshot.
    """
    drop_inherited_acls(fd)
    with suppress(OSError):
        if os.fstat(fd).st_uid != os.geteuid():
            os.chown(fd, os.geteuid(), -1)
        os.chmod(fd, 0o700)


class _Export:
    """One run."""

    def __init__(
        self,
        store: Store,
        root: TreeEntry,
        progress: OnProgress | None,
        on_error: OnProblem | None,
    ) -> None:
        self.report = ExportReport()
        self._store = store
        self._root = root
        self._reader = TreeReader(store)
        self._problems = Problems(self.report.problems, on_error)
        self._on_progress = progress
        self._progress = Progress(root.count, root.size)
        self._stack: list[_Level] = []
        self._links_fd = -1
        self._made_links: dict[bytes, bool] = {}
        self._links_name = b""

    def restore(self, top: TreeEntry, top_fd: int) -> None:
        """Fill the target, children before their directory's times."""
        self._progress = Progress(top.count, top.size)
        if top.has_links and links_id_of(self._root) is not None:
            self._make_links_directory(top, top_fd)
        self._push(top, b"", os.dup(top_fd))
        while self._stack:
            level = self._stack[-1]
            child = next(level.children, None)
            if child is None:
                self._leave()
            elif not is_possible(child):
                path = _join(level.path, child.name)
                self._damaged(path, "no file can have this name or type")
            elif child.is_directory:
                self._enter(level, child)
            else:
                path = _join(level.path, child.name)
                try:
                    self._make_object(level, child, path)
                except OSError as exc:
                    self._problems.add_os_error(path, "not restored", exc)
                self._count(child, path)

    def close(self) -> None:
        """Let go of what an interrupted run still holds."""
        for level in self._stack:
            if level.fd >= 0:
                os.close(level.fd)
        if self._links_fd >= 0:
            os.close(self._links_fd)

    # --- directories ------------------------------------------------------------------------------

    def _push(self, entry: TreeEntry, path: bytes, fd: int) -> None:
        status = os.fstat(fd)
        children = self._reader.sound_entries(
            tree_id_of(entry), lambda exc: self._lost_below(path, exc)
        )
        self._stack.append(_Level(entry, path, fd, children, (status.st_dev, status.st_ino)))
        self.report.directories += 1
        if len(self._stack) > OPEN_DIRECTORIES_MAX:
            far = self._stack[-OPEN_DIRECTORIES_MAX]
            if far is not self._stack[0]:
                os.close(far.fd)
                far.fd = -1

    def _enter(self, level: _Level, entry: TreeEntry) -> None:
        path = _join(level.path, entry.name)
        try:
            os.mkdir(entry.name, 0o700, dir_fd=level.fd)
            fd = os.open(entry.name, _DIRECTORY_FLAGS, dir_fd=level.fd)
        except OSError as exc:
            self._problems.add_os_error(path, "not restored, with all below it", exc)
            return
        drop_inherited_acls(fd)
        self._push(entry, path, fd)

    def _leave(self) -> None:
        level = self._stack.pop()
        if self._stack and self._stack[-1].fd < 0:
            parent = self._stack[-1]
            parent.fd = os.open("..", _DIRECTORY_FLAGS, dir_fd=level.fd)
            status = os.fstat(parent.fd)
            if (status.st_dev, status.st_ino) != parent.key:
                raise SourceError(f"{shown(parent.path)} was moved during the export: stopped")
        if not self._stack:
            self._remove_links_directory(level.fd)
        self._apply(level.fd, level.entry, level.path)
        os.close(level.fd)

    # --- hard links -------------------------------------------------------------------------------

    def _make_links_directory(self, top: TreeEntry, top_fd: int) -> None:
        taken = set()
        with suppress(StoreError):  # its damage is told when it is walked through
            taken = {entry.name for entry in self._reader.entries(tree_id_of(top))}
        number = 0
        while (name := b".dedupfs-export-%d" % number) in taken:
            number += 1
        self._links_name = name
        os.mkdir(self._links_name, 0o700, dir_fd=top_fd)
        self._links_fd = os.open(self._links_name, _DIRECTORY_FLAGS, dir_fd=top_fd)

    def _remove_links_directory(self, top_fd: int) -> None:
        if self._links_fd < 0:
            return
        for link_id, is_made in self._made_links.items():
            if is_made:
                os.unlink(link_id.hex().encode(), dir_fd=self._links_fd)
        os.rmdir(self._links_name, dir_fd=top_fd)

    def _make_link(self, level: _Level, entry: TreeEntry, path: bytes) -> None:
        link_id = entry.content
        hidden_name = link_id.hex().encode()
        if link_id not in self._made_links:
            inode = self._reader.resolve(self._root, entry)
            self._made_links[link_id] = False
            self._made_links[link_id] = self._make(self._links_fd, hidden_name, inode, path)
        if self._made_links[link_id]:
            os.link(
                hidden_name,
                entry.name,
                src_dir_fd=self._links_fd,
                dst_dir_fd=level.fd,
                follow_symlinks=False,
            )

    # --- objects ----------------------------------------------------------------------------------

    def _make_object(self, level: _Level, entry: TreeEntry, path: bytes) -> None:
        try:
            if entry.is_link:
                self._make_link(level, entry, path)
            else:
                self._make(level.fd, entry.name, entry, path)
        except (CorruptError, MissingRecordError) as exc:
            self._damaged(path, f"the store has lost it: {exc}")
        except (ValueError, OverflowError) as exc:
            self._damaged(path, f"no file can be so: {exc}")

    def _damaged(self, path: bytes, why: str) -> None:
        self._problems.add(path, f"not restored, {why}")
        self.report.damaged += 1

    def _lost_below(self, path: bytes, exc: StoreError) -> None:
        self._problems.add(path or b".", f"not all of it restored, the store has lost it: {exc}")
        self.report.damaged += 1

    def _make(self, directory_fd: int, name: bytes, entry: TreeEntry, path: bytes) -> bool:
        """Make anything but a directory; return whether it is there."""
        if entry.is_file:
            self._make_file(directory_fd, name, entry, path)
            return True
        if entry.is_symlink:
            os.symlink(entry.content, name, dir_fd=directory_fd)
        else:
            file_type = stat.S_IFMT(entry.mode)
            try:
                os.mknod(name, file_type | 0o600, entry.rdev, dir_fd=directory_fd)
            except PermissionError as exc:
                self._problems.add_os_error(path, "not restored: a special file", exc)
                return False
        with object_at(directory_fd, name) as (fd, target):
            _require_made(os.fstat(fd), entry)
            self._apply(target, entry, path)
        return True

    def _make_file(self, directory_fd: int, name: bytes, entry: TreeEntry, path: bytes) -> None:
        recipe = load_recipe(self._store, entry.content)
        fd = os.open(name, _FILE_FLAGS, 0o600, dir_fd=directory_fd)
        try:
            self._write(fd, recipe)
            self._apply(fd, entry, path)
        except BaseException:
            os.unlink(name, dir_fd=directory_fd)  # half a file is worse than none
            raise
        finally:
            os.close(fd)

    def _write(self, fd: int, recipe: Recipe) -> None:
        """Write the data where it belongs; what is not written stays a hole."""
        for pieces, length in data_runs(recipe):
            data = memoryview(self._store.read(pieces))
            file_offset = pieces[0].file_offset
            while data:
                written = os.pwrite(fd, data, file_offset)
                file_offset += written
                data = data[written:]
            self._progress.bytes_done += length
            self._tell()
        os.truncate(fd, recipe.size)

    def _apply(self, target: int | bytes, entry: TreeEntry, path: bytes) -> None:
        apply_metadata(
            target,
            entry,
            lambda what, exc: self._problems.add_os_error(path, f"{what} could not be set", exc),
        )

    def _count(self, entry: TreeEntry, path: bytes) -> None:
        self.report.files += 1
        self.report.logical_bytes += entry.size if entry.is_file else 0
        self._progress.files_done += 1
        self._progress.path = path
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._progress)


def _require_made(status: os.stat_result, entry: TreeEntry) -> None:
    """Refuse to dress what somebody put in the place of an object that was just made.

    Only one with another name elsewhere could hurt: its owner or mode would change there as well.
    """
    if stat.S_IFMT(status.st_mode) != stat.S_IFMT(entry.mode) or status.st_nlink != 1:
        raise OSError(errno.ESTALE, "somebody replaced it meanwhile")


def data_runs(
    recipe: Recipe, start: int = 0, stop: int | None = None
) -> Iterator[tuple[list[Piece], int]]:
    """Yield the file's data as runs of neighbouring pieces of at most about ``READ_BYTES``."""
    stop = recipe.size if stop is None else stop
    run: list[Piece] = []
    length = 0
    while start < stop:
        window_stop = min(stop, start + READ_BYTES)
        for piece in recipe.cut(start, window_stop):
            if piece.chunk_id == HOLE:
                if run:
                    yield run, length
                run, length = [], 0
            else:
                run.append(piece)
                length += piece.length
        if run:
            yield run, length
        run, length = [], 0
        start = window_stop


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
