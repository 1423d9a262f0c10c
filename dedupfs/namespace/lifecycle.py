"""Bringing a view to life: a new one, one that was left in order, one whose daemon died.

All three do the same: take the root, replay the journal; so does a daemon that takes over from one
that died under its mount. Knows no request. Source: docs/format.md, "Views".
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dedupfs.errors import (
    CorruptError,
    ExistsError,
    FormatVersionError,
    MissingRecordError,
    StoreError,
    TornRecordError,
    UsageError,
)
from dedupfs.format.journal import MAGIC, VERSION, JournalHeader, decode_header, encode_header
from dedupfs.format.tree import decode_view_root, encode_view_root
from dedupfs.model import ID_BYTES, RecordId, RecordKind, TreeEntry, ViewRoot
from dedupfs.namespace.handover import NUMBERS, VIEW_LOCK, Handover
from dedupfs.namespace.inodes import ROOT_NUMBER
from dedupfs.namespace.journal import PREFIX as JOURNAL_PREFIX
from dedupfs.namespace.journal import Journal, journal_path
from dedupfs.namespace.ledger import Ledger
from dedupfs.namespace.replay import Replay
from dedupfs.namespace.rows import ViewRow, check_name, encode_view_row, view_owner_key
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.staging import PREFIX as STAGING_PREFIX
from dedupfs.namespace.state import ViewState
from dedupfs.namespace.trees import tree_id_of
from dedupfs.namespace.views import (
    EPHEMERAL_PREFIX,
    GONE_NAME,
    ViewLock,
    adopt_lock,
    delete_view,
    find_view,
    lock_view,
    view_directory,
    why_kept,
)
from dedupfs.store.disk import File
from dedupfs.store.limits import LIMIT_NAME, write_limit
from dedupfs.store.store import Store, Table

VIEW_COUNTER = "view"
_NEW_ROOT_MODE = 0o040755


@dataclass(slots=True)
class Opened:
    """A view that has come to life; ``row`` None: read-only."""

    state: ViewState
    row: ViewRow | None = None
    lock: ViewLock | None = None
    ephemeral: bool = False
    ledger: Ledger = field(default_factory=Ledger)
    bare: ViewRoot | None = None
    did_request: bool = False
    """Whether the request that the ledger has in hand is in the journal."""

    def release(self) -> None:
        """Let another process own the view."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None
        self.ledger.close()


def open_bare(store: Store, snapshot: str | None, handover: Handover | None = None) -> Opened:
    """Look at the catalogue or a snapshot without a view.

    The numbers of directories go into a journal in memory, which a supervisor can keep.

    Raises:
        NotFoundError: no such snapshot.
    """
    if handover is None:
        base = snapshot or ""
        bare = ViewRoot(0, "", base, 0, _base_root(store, base), ROOT_NUMBER + 1, 0)
        file = File(os.memfd_create("dedupfs-numbers"), Path("(memory)"))
        header = JournalHeader(MAGIC, VERSION, 0, "", 0, RecordId(bytes(ID_BYTES)), 0)
        store.disk.pwrite(file, [encode_header(header)], 0)
    else:
        bare = decode_view_root(handover.root)
        file = File(handover.fds[NUMBERS], Path("(memory)"))
    state = ViewState(
        store,
        bare.root,
        catalog=not bare.base,
        view_id=None,
        next_number=bare.next_number,
        directory=None,
    )
    data = store.disk.pread(file, store.disk.size(file), 0)
    valid_bytes = Replay(state, None).run(data)
    state.journal = Journal(store.disk, file.path, file, valid_bytes, 0)
    if bare.base:
        state.lease(bare.root)
    ledger = Ledger() if handover is None else handover.ledger
    return Opened(state, ledger=ledger, bare=bare)


def make_ephemeral(store: Store, snapshot: str | None, mountpoint: str) -> Opened:
    """Make a view that is deleted when it is closed."""
    name = f"{EPHEMERAL_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    opened = _open(store, name, snapshot, mountpoint)
    opened.ephemeral = True
    return opened


def take_over(store: Store, handover: Handover, mountpoint: str) -> Opened:
    """Go on with a view whose daemon died under its mount.

    Raises:
        StoreError: its root or its journal cannot be read, or it is gone.
    """
    name = handover.view
    lock = adopt_lock(store.disk, store.path, name, mountpoint, handover.fds[VIEW_LOCK])
    row = find_view(store, name)
    if row is None:
        raise StoreError(f"view {name!r} is gone from {store.path}")
    opened = _revive(store, row, lock, handover.ledger)
    opened.ephemeral = name.startswith(EPHEMERAL_PREFIX)
    return opened


def reserve_number(store: Store) -> int:
    """Return a number for a view that is to be made; no other view is ever given it.

    Who writes it down first can tell later, whatever happened, which view is its own.
    """
    with store.transaction() as txn:
        return txn.next_number(VIEW_COUNTER)


def make_numbered(
    store: Store, name: str, snapshot: str, number: int, limit_bytes: int | None
) -> None:
    """Make the view ``name`` with a number that was reserved for it, and leave it to others.

    Raises:
        ExistsError: there is a view of that name. Else as ``bring_back``.
    """
    _check_new_name(name)
    lock = lock_view(store.disk, store.path, name, "")
    try:
        store.drop_tails()
        if find_view(store, name) is not None:
            raise ExistsError(f"there is a view {name!r} in {store.path} already")
        _make(store, name, snapshot, number)
        if limit_bytes is not None:
            write_limit(store.disk, view_directory(store.path, name), limit_bytes)
    finally:
        lock.release()


def bring_back(store: Store, name: str, snapshot: str | None, mountpoint: str) -> Opened:
    """Open the view ``name``, making it when there is none.

    Raises:
        UsageError: no possible name, or the view has another base than asked for.
        NotFoundError: no such snapshot. StoreBusyError: another process owns the view.
        StoreError: its root or its journal cannot be read. CorruptError: the index has lost it.
    """
    check_name(name, "view")
    if find_view(store, name) is None:
        _check_new_name(name)
    return _open(store, name, snapshot, mountpoint)


def _check_new_name(name: str) -> None:
    """Refuse what is no name of a view, or of one that goes with its process."""
    check_name(name, "view")
    if name.startswith(EPHEMERAL_PREFIX):
        raise UsageError(
            f"{name!r} would be removed as soon as nobody uses it: take a name for the view that "
            f"does not begin with {EPHEMERAL_PREFIX!r}"
        )


def _open(store: Store, name: str, snapshot: str | None, mountpoint: str) -> Opened:
    if snapshot is not None and find_view(store, name) is None:
        _base_root(store, snapshot)  # nothing is made for one that is not there or not readable
    lock = lock_view(store.disk, store.path, name, mountpoint)
    try:
        store.drop_tails()
        row = find_view(store, name)
        if row is None:
            row = _make(store, name, snapshot or "", None)
        elif snapshot is not None and row.base != snapshot:
            what = f"snapshot {row.base!r}" if row.base else "the whole catalogue"
            raise UsageError(
                f"view {name!r} was made over {what}, not {snapshot!r}; take another view (--view)"
            )
        with _naming(f"view {name!r}", f"'dedupfs view rm {store.path} {name}' removes it", store):
            return _revive(store, row, lock)
    except BaseException:
        lock.release()
        raise


@contextmanager
def _naming(what: str, else_removed: str, store: Store) -> Iterator[None]:
    """Say of damage what cannot be opened for it, and what can be done."""
    try:
        yield
    except (CorruptError, MissingRecordError) as exc:
        raise type(exc)(
            f"{what} cannot be opened: {exc}; run 'dedupfs check --repair {store.path}', which "
            f"mends what can be mended; if it stays so, {else_removed}, and nothing else is lost"
        ) from exc


def _base_root(store: Store, base: str) -> TreeEntry:
    """Return what a view of ``base`` begins with, which can be read."""
    if base:
        root = SnapshotCatalog(store).get(base).root
        tree_id = tree_id_of(root)
        removed = f"'dedupfs rm {store.path} {base}' removes it"
        with _naming(f"snapshot {base!r}", removed, store):
            if tree_id is not None:
                store.get(tree_id, RecordKind.TREE)
        return root
    return TreeEntry(
        name=b"",
        slot=0,
        mode=_NEW_ROOT_MODE,
        uid=os.getuid(),
        gid=os.getgid(),
        mtime_ns=time.time_ns(),
        nlink=2,
    )


def _make(store: Store, name: str, base: str, number: int | None) -> ViewRow:
    """Make a new view; its cost does not depend on what it is made over."""
    why = why_kept(store, name)
    if why:
        raise CorruptError(
            f"there are files of a view {name!r} in {store.path}: {why}; run 'dedupfs reindex' to "
            "bring it back"
        )
    directory = view_directory(store.path, name)
    for left in store.disk.listdir(directory):  # of a view whose making a crash cut short
        if left.startswith((JOURNAL_PREFIX, STAGING_PREFIX, LIMIT_NAME)):
            store.disk.unlink(directory / left)
    view_id = reserve_number(store) if number is None else number
    root = ViewRoot(
        view_id=view_id,
        name=name,
        base=base,
        generation=1,
        root=_base_root(store, base),
        next_number=ROOT_NUMBER + 1,
        created_ns=time.time_ns(),
    )
    root_id = store.put(RecordKind.VIEW_ROOT, encode_view_root(root))
    store.sync()
    header = JournalHeader(MAGIC, VERSION, view_id, name, 1, root_id, root.next_number)
    Journal.create(store.disk, directory, header).publish()
    store.disk.fsync_dir(directory.parent)
    row = ViewRow(view_id, name, base, 1, root_id, root.created_ns)
    try:
        with store.transaction() as txn:
            row = msgspec.structs.replace(row, held_bytes=txn.pending_bytes)
            txn.put(Table.VIEWS, name.encode(), encode_view_row(row))
            txn.add_reference(root_id)
    except BaseException:
        delete_view(store, name)
        raise
    return row


def _revive(store: Store, row: ViewRow, lock: ViewLock, ledger: Ledger | None = None) -> Opened:
    """Replay the journal over the root; with ``ledger`` for a mount whose daemon died."""
    directory = view_directory(store.path, row.name)
    root = decode_view_root(store.get(row.root_id, RecordKind.VIEW_ROOT))
    data = _read_journal(store, journal_path(directory, row.generation))
    header = _header(data, row, directory)
    state = ViewState(
        store,
        root.root,
        catalog=not row.base,
        view_id=row.view_id,
        next_number=max(root.next_number, header.next_number),
        directory=directory,
        view_name=row.name,
    )
    with store.reading() as txn:
        if any(txn.scan(Table.PINS, view_owner_key(row.view_id))):
            state.held.add(0)
    state.next_staging = _sweep(store, directory, row.generation)
    replay = _replay(state, directory, ledger)
    path = journal_path(directory, row.generation)
    try:
        valid_bytes = replay.run(data)
    except FormatVersionError as exc:
        raise FormatVersionError(f"{path}: {exc}") from exc
    torn = any(data[valid_bytes:])
    state.journal = Journal.reopen(store.disk, path, valid_bytes, row.generation, torn=torn)
    _delete_strays(state, directory)
    return Opened(state, row, lock, ledger=ledger or Ledger(), did_request=replay.did_request)


def _replay(state: ViewState, directory: Path, ledger: Ledger | None) -> Replay:
    if ledger is None:
        return Replay(state, directory)
    request = ledger.request
    return Replay(
        state,
        directory,
        keep={opened.inode for opened in ledger.open_handles()},
        since=None if request is None else (request.journal_generation, request.journal_bytes),
    )


def _delete_strays(state: ViewState, directory: Path) -> None:
    """Delete staging files that the journal, which is durable then, has no use for any more."""
    used = [staging for file in state.files.values() for staging in file.stagings()]
    wanted = {staging.path.name for staging in [*used, *state.obsolete]}
    strays = [
        name
        for name in state.store.disk.listdir(directory)
        if name.startswith(STAGING_PREFIX) and name not in wanted
    ]
    if strays:
        state.sync_journal()
        for name in strays:
            state.store.disk.unlink(directory / name)


def _read_journal(store: Store, path: Path) -> bytes:
    try:
        file = store.disk.open(path)
    except FileNotFoundError:
        raise StoreError(
            f"{path} is missing: what the view did since its last fold is lost; 'dedupfs reindex "
            f"{store.path}' brings the view back without it"
        ) from None
    return store.disk.pread(file, store.disk.size(file), 0)


def _header(data: bytes, row: ViewRow, directory: Path) -> JournalHeader:
    try:
        header, _ = decode_header(data)
    except (CorruptError, TornRecordError) as exc:  # it was durable before the index named it
        raise CorruptError(f"{journal_path(directory, row.generation)}: {exc}") from exc
    if (header.view_id, header.generation) != (row.view_id, row.generation):
        raise CorruptError(
            f"{journal_path(directory, row.generation)} belongs to view {header.view_id}, "
            f"generation {header.generation}, not {row.view_id}, {row.generation}"
        )
    return header


def _sweep(store: Store, directory: Path, generation: int) -> int:
    """Delete journals that a crash left; return the first free staging number.

    Durably: to a rebuild one of a later generation would be the truth.
    """
    next_staging = 1
    swept = False
    for name in store.disk.listdir(directory):
        if name == GONE_NAME:  # removing it was begun, and cut short before the row went
            store.disk.unlink(directory / name)
        elif name.startswith(JOURNAL_PREFIX) and name != journal_path(directory, generation).name:
            store.disk.unlink(directory / name)
            swept = True
        elif name.startswith(STAGING_PREFIX) and name.removeprefix(STAGING_PREFIX).isdigit():
            next_staging = max(next_staging, int(name.removeprefix(STAGING_PREFIX)) + 1)
    if swept:
        store.disk.fsync_dir(directory)
    return next_staging
