"""The views of a store as a set: listing, who owns one, deleting one. Knows no tree.

A view's files are in ``views/NAME/``: ``lock`` (held by the owner as long as it lives; says who
that is), ``journal.GENERATION`` and ``staging.NUMBER``. Source: docs/format.md, "Views".
"""

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from dedupfs.errors import (
    DedupfsError,
    NotFoundError,
    StoreBusyError,
    StoreError,
    UsageError,
)
from dedupfs.namespace.journal import PREFIX as JOURNAL_PREFIX
from dedupfs.namespace.journal import journal_path, read_journal
from dedupfs.namespace.rows import (
    ViewRow,
    check_name,
    decode_view_row,
    place_prefix,
    view_owner_key,
)
from dedupfs.store.disk import Disk, File
from dedupfs.store.owner import close_lock, open_lock, same_file
from dedupfs.store.store import Store, Table

VIEWS_DIRECTORY = "views"
LOCK_NAME = "lock"
GONE_NAME = "gone"
PROBE_S_MAX = 0.2
EPHEMERAL_PREFIX = "ephemeral-"
_NUMBERS_LIMIT = 2000
"""Rows of inode numbers that one transaction deletes."""
_LOST = "the index has lost this view"


class ViewOwner(msgspec.Struct, frozen=True):
    """Which process has a view open, and where it is mounted ("" for a command)."""

    pid: int
    mountpoint: str


@dataclass(frozen=True, slots=True)
class ViewLock:
    """A view's lock, held; the kernel lets go of it when the process dies."""

    file: File

    def release(self) -> None:
        """Let go."""
        close_lock(self.file)


def view_directory(store_path: Path, name: str) -> Path:
    """Return where the files of view ``name`` are."""
    return store_path / VIEWS_DIRECTORY / name


def lock_view(disk: Disk, store_path: Path, name: str, mountpoint: str) -> ViewLock:
    """Become the owner of a view, making its directory when there is none.

    Raises:
        StoreBusyError: another process is; the message names it.
    """
    directory = view_directory(store_path, name)
    disk.mkdir(directory.parent)
    disk.mkdir(directory)
    file = open_lock(disk, directory / LOCK_NAME, create=True)
    deadline_s = time.monotonic() + PROBE_S_MAX
    while not (locked := disk.lock(file)) and time.monotonic() < deadline_s:
        time.sleep(PROBE_S_MAX / 20)  # ``view_owner`` of another process holds it for a moment
    if locked and not same_file(file, directory / LOCK_NAME):
        return lock_view(disk, store_path, name, mountpoint)  # the view was just being deleted
    if not locked:
        owner = _read_owner(disk, file)
        where = f", mounted on {owner.mountpoint}" if owner and owner.mountpoint else ""
        who = f"process {owner.pid}" if owner else "another process"
        raise StoreBusyError(
            f"view {name!r} is in use by {who}{where}; unmount it, or take another view (--view)"
        )
    _say_owner(disk, file, mountpoint)
    return ViewLock(file)


def adopt_lock(disk: Disk, store_path: Path, name: str, mountpoint: str, fd: int) -> ViewLock:
    """Become the owner of a view whose lock comes with ``fd``: its last owner died."""
    file = File(fd, view_directory(store_path, name) / LOCK_NAME)
    _say_owner(disk, file, mountpoint)
    return ViewLock(file)


def _say_owner(disk: Disk, file: File, mountpoint: str) -> None:
    where = os.fsencode(mountpoint).decode(errors="backslashreplace")  # for people to read
    data = msgspec.json.encode(ViewOwner(os.getpid(), where))
    disk.truncate(file, 0)
    disk.pwrite(file, [data], 0)


def _read_owner(disk: Disk, file: File) -> ViewOwner | None:
    try:
        return msgspec.json.decode(disk.pread(file, 1 << 16, 0), type=ViewOwner)
    except msgspec.DecodeError:
        return None  # it is just being written


def view_owner(store: Store, name: str) -> ViewOwner | None:
    """Return who has view ``name`` open, or None."""
    try:
        path = view_directory(store.path, name) / LOCK_NAME
        file = open_lock(store.disk, path, write=True)
    except FileNotFoundError:
        return None
    try:
        if store.disk.lock(file):
            return None
        return _read_owner(store.disk, file) or ViewOwner(0, "")
    finally:
        close_lock(file)


def list_views(store: Store) -> list[ViewRow]:
    """Return all views, sorted by name."""
    with store.reading() as txn:
        return [decode_view_row(row) for _, row in txn.scan(Table.VIEWS)]


def find_view(store: Store, name: str) -> ViewRow | None:
    """Return the view called ``name``, or None."""
    with store.reading() as txn:
        row = txn.get(Table.VIEWS, name.encode())
    return decode_view_row(row) if row is not None else None


def remove_view(store: Store, name: str) -> None:
    """Delete a view that nobody has open; its space is freed by ``maintenance.gc``.

    Raises:
        UsageError, NotFoundError: no such view. StoreBusyError: somebody has it open.
    """
    check_name(name, "view")
    if find_view(store, name) is None:
        raise NotFoundError(f"no view {name!r} in {store.path}")
    lock = lock_view(store.disk, store.path, name, "")
    try:
        delete_view(store, name)
    finally:
        lock.release()


def remove_numbered_view(store: Store, name: str, view_id: int, *, only_unused: bool) -> bool:
    """Delete the view ``name`` if it has that number, and what a crash has left of it.

    ``only_unused``: not if anything was written into it since it was made.

    Returns:
        Whether it is gone; one of that name with another number is somebody else's.

    Raises:
        StoreBusyError: somebody has it open.
    """
    row = find_view(store, name)
    if row is None and not os.path.lexists(view_directory(store.path, name)):
        return True
    if row is not None and row.view_id != view_id:  # whoever has that one open
        return True
    lock = lock_view(store.disk, store.path, name, "")
    try:
        row = find_view(store, name)
        if row is None:
            if not why_kept(store, name):
                delete_view(store, name)
            return True
        if row.view_id != view_id:
            return True
        if only_unused and not _is_as_made(store, row):
            return False
        delete_view(store, name)
        return True
    finally:
        lock.release()


def _is_as_made(store: Store, row: ViewRow) -> bool:
    if row.generation != 1:
        return False
    path = journal_path(view_directory(store.path, row.name), row.generation)
    _header, _length, records = read_journal(path.read_bytes())
    return next(records, None) is None


def delete_view(store: Store, name: str) -> None:
    """Delete the view's row, references and files; the caller owns it or nobody does."""
    row = find_view(store, name)
    directory = view_directory(store.path, name)
    if row is not None:
        _mark_gone(store, directory)
        _forget_numbers(store, row)
        with store.transaction() as txn:
            if txn.delete(Table.VIEWS, name.encode()):  # else another has deleted it meanwhile
                txn.drop_reference(row.root_id)
                txn.release_pins(view_owner_key(row.view_id))
    if directory.is_symlink():
        raise UsageError(f"{directory} is a symbolic link; nothing was deleted there")
    for left in store.disk.listdir(directory):
        if left != GONE_NAME:  # which says why the others go, until none is left
            with suppress(StoreError):
                store.disk.unlink(directory / left)
    shutil.rmtree(directory, ignore_errors=True)


def _forget_numbers(store: Store, row: ViewRow) -> None:
    """Delete the rows of inode numbers, which may be many, bit by bit: other writers wait.

    Stopped in between, the view is still there, and some of its directories get other numbers.
    """
    for table in (Table.PLACES, Table.HOMES):
        while True:
            with store.reading() as txn:
                found = txn.scan(table, place_prefix(row.view_id))
                keys = [key for key, _ in islice(found, _NUMBERS_LIMIT)]
            if not keys:
                break
            store.db.give_way()
            with store.transaction() as changes:
                for key in keys:
                    changes.delete(table, key)


def _mark_gone(store: Store, directory: Path) -> None:
    """Say durably that the files may go: without, a view whose row is lost can be brought back."""
    if directory.is_symlink() or not directory.is_dir():
        return
    store.disk.open(directory / GONE_NAME, create=True).close()
    store.disk.fsync_dir(directory)


def why_kept(store: Store, name: str) -> str:
    """Return why the files of a view without a row must stay; "" when they are of no use.

    They are of none when the view was removed, or never made. One whose row a damaged index has
    lost is brought back by reindex, from these files.
    """
    try:
        return "" if _is_abandoned(store, view_directory(store.path, name)) else _LOST
    except (DedupfsError, OSError) as exc:
        return str(exc)


def _is_abandoned(store: Store, directory: Path) -> bool:
    names = store.disk.listdir(directory)
    if GONE_NAME in names or directory.name.startswith(EPHEMERAL_PREFIX):
        return True
    published = [n for n in names if n.removeprefix(JOURNAL_PREFIX).isdigit()]
    if len(published) > 1:
        return False
    for left in published:
        header, _length, records = read_journal((directory / left).read_bytes())
        if header.generation != 1 or next(records, None) is not None:
            return False
    return True


def remove_dead_ephemeral(store: Store) -> list[str]:
    """Delete ephemeral views whose process died; return their names."""
    removed = []
    for row in list_views(store):
        if row.name.startswith(EPHEMERAL_PREFIX) and view_owner(store, row.name) is None:
            remove_view(store, row.name)
            removed.append(row.name)
    return removed
