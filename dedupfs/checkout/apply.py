"""Turning what a directory shows into what it is to show, one change after the other.

First everything is looked at, and nothing is done when its user has changed what would go; then
things are done in an order that can be cut off anywhere and be done again. Knows the directory
by descriptors, packs by path, no manifest.
"""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from dedupfs.checkout.changes import Change, Item, walk
from dedupfs.checkout.objects import HARDLINK, SYMLINK, CheckoutReport, ObjectMaker
from dedupfs.checkout.target import Directories, Links, State, rename_new, split, state_at
from dedupfs.errors import CorruptError, MissingRecordError, SourceError
from dedupfs.model import TreeEntry
from dedupfs.store import Store
from dedupfs.transfer.metadata import drop_inherited_acls
from dedupfs.transfer.report import Problems

_WANTED = {SYMLINK: State.LINK, HARDLINK: State.HARDLINK}


def conflicts(
    top_fd: int, changes: Iterable[Change], links: Links, *, resumed: bool
) -> list[bytes]:
    """Return the paths that changes would overwrite or remove and that are not as they were made.

    ``resumed``: what the changes make may be there already.
    """
    directories = Directories(top_fd)
    try:
        return [
            change.path
            for change in changes
            if change.path and _is_conflict(directories, change, links, resumed=resumed)
        ]
    finally:
        directories.close()


def _is_conflict(directories: Directories, change: Change, links: Links, *, resumed: bool) -> bool:
    parent, name = split(change.path)
    try:
        fd = directories.of(parent)
    except (FileNotFoundError, NotADirectoryError):
        return False  # told of the directory itself, if it is its user's doing
    if change.before is None or resumed:
        try:
            status = os.lstat(name, dir_fd=fd)
        except FileNotFoundError:
            return False
        if change.is_directory and stat.S_ISDIR(status.st_mode):
            return False  # two directories become one
    for item in (change.before, change.after if resumed else None):
        if item is not None:
            state = state_at(fd, name, item, links)
            if state.is_ours or state is State.MISSING:
                return False
    return True


class Applier:
    """Does the changes. ``links`` know the packs of both trees, ``maker`` makes the new one's."""

    def __init__(
        self,
        store: Store,
        top_fd: int,
        new_root: TreeEntry | None,
        links: Links,
        link: str,
        maker: ObjectMaker,
        report: CheckoutReport,
        problems: Problems,
        *,
        token: str,
        resumed: bool = False,
        force: bool = False,
    ) -> None:
        self._store = store
        self._new_root = new_root
        self._top_fd = top_fd
        self._links = links
        self._wanted = _WANTED.get(link, State.PLAIN)
        self._maker = maker
        self._report = report
        self._problems = problems
        self._resumed = resumed
        self._force = force
        self._temporary = f".dedupfs-{token}.new".encode()
        self._directories = Directories(top_fd, may_open=True)
        self._open: list[Change] = []
        self._made_links: dict[bytes, bytes] = {}
        self._unmade: bytes | None = None
        """A directory that could not be made: nothing below it is tried."""

    def run(self, changes: Iterable[Change]) -> None:
        """Do all of them; what the kernel refuses is reported and the rest done."""
        try:
            for change in changes:
                self._leave(change.path)
                if self._unmade is not None and change.path.startswith(self._unmade + b"/"):
                    continue
                self._unmade = None
                try:
                    self._do(change)
                except OSError as exc:
                    self._refused(change, exc)
                except (CorruptError, MissingRecordError) as exc:
                    self._report.damaged += 1
                    self._problems.add(change.path, f"not made, the store has lost it: {exc}")
            self._leave(None)
        finally:
            self._directories.close()

    def _refused(self, change: Change, exc: OSError) -> None:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise SourceError(f"cannot go on with the checkout: {exc.strerror}") from exc
        if change.is_directory:
            self._unmade = change.path
        self._problems.add_os_error(change.path, "not done", exc)

    def _do(self, change: Change) -> None:
        if change.was_directory or change.is_directory:
            if change.is_directory and change.path:
                self._enter(change)
            self._open.append(change)
            return
        parent, name = split(change.path)
        try:
            fd = self._directories.of(parent)
        except (FileNotFoundError, NotADirectoryError):
            if change.after is None:
                return  # its user removed the directory
            raise
        if change.after is None:
            self._remove(fd, name, change)
        else:
            self._put(fd, name, change, change.after)

    # --- directories ----------------------------------------------------------------------------

    def _enter(self, change: Change) -> None:
        parent, name = split(change.path)
        fd = self._directories.of(parent)
        with suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=fd)
        try:
            status = os.lstat(name, dir_fd=fd)
        except FileNotFoundError:
            status = None
        if status is not None and not stat.S_ISDIR(status.st_mode):
            if not self._may_replace(fd, name, change):
                self._report.kept.append(change.path)
                raise FileExistsError(errno.EEXIST, "its user has put something there")
            os.unlink(name, dir_fd=fd)
            status = None
        if status is None:
            os.mkdir(name, 0o700, dir_fd=fd)
            drop_inherited_acls(self._directories.of(change.path))
        else:
            self._directories.of(change.path)

    def _leave(self, path: bytes | None) -> None:
        """End the directories that ``path`` is not in; None: all."""
        while self._open:
            change = self._open[-1]
            prefix = change.path + b"/" if change.path else b""
            if path is not None and path.startswith(prefix):
                return
            self._open.pop()
            try:
                self._end(change)
            except OSError as exc:
                self._problems.add_os_error(change.path, "not done", exc)
            except (CorruptError, MissingRecordError) as exc:
                self._problems.add(change.path, f"not made, the store has lost it: {exc}")

    def _end(self, change: Change) -> None:
        if change.is_directory:
            assert change.after is not None
            fd = self._directories.of(change.path)
            with suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=fd)
            _drop_old_xattrs(fd, change)
            self._maker.apply_directory(fd, change.after.entry, change.path)
            self._report.directories += 1
            return
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._temporary, dir_fd=self._directories.of(change.path))
        if not change.path:
            return
        parent, name = split(change.path)
        try:
            fd = self._directories.of(parent)
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            self._report.kept.append(change.path)
            return
        else:
            self._report.removed += 1
        if change.after is not None:
            self._put(fd, name, change, change.after)

    # --- other objects --------------------------------------------------------------------------

    def _remove(self, fd: int, name: bytes, change: Change) -> None:
        assert change.before is not None
        state = state_at(fd, name, change.before, self._links)
        if state is State.MISSING:
            return
        if not state.is_ours and not self._force:
            self._report.kept.append(change.path)
            return
        try:
            os.unlink(name, dir_fd=fd)
        except IsADirectoryError:
            self._report.kept.append(change.path)
        else:
            self._report.removed += 1

    def _put(self, fd: int, name: bytes, change: Change, item: Item) -> None:
        """Make an object, or leave it when it is there already."""
        self._report.files += 1
        wants_link = item.entry.is_file and self._maker.wants_link(item.entry)
        wanted = self._wanted if wants_link else State.PLAIN
        before = change.before
        state = state_at(fd, name, before or item, self._links)
        same = before is not None and _is_same_object(before, item)
        if same and state is wanted:
            if state is State.PLAIN:
                self._maker.apply_again(fd, name, item.entry, change.path)
            else:
                self._report.linked_files += 1
                self._report.linked_bytes += item.entry.size
            if item.link_id:
                self._made_links.setdefault(item.link_id, change.path)
            return
        if not self._may_replace(fd, name, change):
            self._report.kept.append(change.path)
            return
        with suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=fd)
        self._make(fd, item, change.path)
        try:
            if state is State.MISSING:
                rename_new(fd, self._temporary, name)
            else:
                os.rename(self._temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=fd)
            raise

    def _may_replace(self, fd: int, name: bytes, change: Change) -> bool:
        """Whether what has this name is ours, or nothing; its user may be at work meanwhile."""
        try:
            os.lstat(name, dir_fd=fd)
        except FileNotFoundError:
            return True
        if self._force:
            return True
        items = (change.before, change.after if self._resumed else None)
        return any(
            item is not None and state_at(fd, name, item, self._links).is_ours for item in items
        )

    def _make(self, fd: int, item: Item, path: bytes) -> None:
        first = self._name_of(item.link_id) if item.link_id else None
        if first is not None and first != path and self._link_to(first, fd, item):
            return
        self._maker.make(fd, self._temporary, item.entry, path)
        if item.link_id:
            self._made_links[item.link_id] = path

    def _name_of(self, link_id: bytes) -> bytes | None:
        """Return a name that a hard-linked file has in the directory already.

        Only when a name of a file is made that no change has named is the whole tree searched.
        """
        return self._made_links.get(link_id) or self._search(link_id)

    def _search(self, link_id: bytes) -> bytes | None:
        if self._new_root is None or not self._new_root.has_links or not self._searches:
            return None
        for path, item in walk(self._store, self._new_root):
            if item.link_id and item.link_id not in self._made_links:
                self._made_links[item.link_id] = path
        self._searches = False
        return self._made_links.get(link_id)

    _searches = True

    def _link_to(self, path: bytes, fd: int, item: Item) -> bool:
        """Make another name of a file that is there; False when it is not what it should be."""
        held = os.dup(fd)  # ``of`` closes what it gave before
        directories = Directories(self._top_fd)
        try:
            parent, name = split(path)
            source_fd = directories.of(parent)
            if state_at(source_fd, name, item, self._links) is not State.PLAIN:
                return False
            os.link(
                name,
                self._temporary,
                src_dir_fd=source_fd,
                dst_dir_fd=held,
                follow_symlinks=False,
            )
        except OSError:
            return False
        else:
            return True
        finally:
            directories.close()
            os.close(held)


def _is_same_object(before: Item, after: Item) -> bool:
    """Whether only attributes differ, so that what is there may stay.

    Not one with several names: those that are still to come would not look as they were made.
    """
    one, other = before.entry, after.entry
    if before.link_id and one != other:
        return False
    if stat.S_IFMT(one.mode) != stat.S_IFMT(other.mode) or before.link_id != after.link_id:
        return False
    same_data = one.content == other.content and one.rdev == other.rdev
    return same_data and one.xattrs == other.xattrs


def _drop_old_xattrs(fd: int, change: Change) -> None:
    """Remove from a directory what it had as the old tree says, and not as the new one."""
    if change.before is None or change.after is None:
        return
    wanted = {name for name, _ in change.after.entry.xattrs}
    for name, _ in change.before.entry.xattrs:
        if name not in wanted:
            with suppress(OSError):
                os.removexattr(fd, name)
