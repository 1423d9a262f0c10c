"""What gc gives back now, and how much more when certain snapshots and views are removed before.

gc is played through on one state of the index and of the pack files, without a change, once for
what is garbage already and then for each question on top of that. A question costs what would be
freed. Source: docs/format.md, "Giving space back"; docs/cli.md, "du", says what is counted.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dedupfs.errors import CorruptError, NotFoundError, StoreError
from dedupfs.format.keys import META_MAKING, decode_count, decode_pack_key, split_pin_key
from dedupfs.format.tree import decode_view_root
from dedupfs.maintenance.blocks import (
    BLOCK_UNIT_BYTES,
    Blocks,
    Inode,
    blocks_of_files,
    inode_of,
    stat_files,
)
from dedupfs.maintenance.release import Exclusive, Release, has_gone, sum_of_sizes
from dedupfs.model import PackKind, RecordId, RecordKind, SnapshotInfo, TreeEntry
from dedupfs.namespace.rows import (
    TOMBSTONE_OWNER,
    ViewRow,
    decode_snapshot_row,
    decode_view_row,
    view_owner_key,
)
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of
from dedupfs.namespace.views import EPHEMERAL_PREFIX, view_directory, view_owner
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.inventory import indexed_packs
from dedupfs.store.owner import is_dead
from dedupfs.store.space import pin_owners


class Forecast:
    """Answers from one state of the index, for as long as ``txn`` lasts. Not for several threads.

    Lets go of the pack that this process appends to, as gc could not remove it otherwise: for the
    thread that puts.
    """

    def __init__(self, store: Store, txn: ReadTxn) -> None:
        store.packs.give_up_idle()
        self._store = store
        self._txn = txn
        self._reader = TreeReader(store)
        self._scope_bytes: dict[bytes, int] = {}
        self._files: list[os.stat_result] = []
        self._gone: Counter[Inode] = Counter()
        self._garbage = Release(store, txn)
        self._garbage_records = self._garbage_stored_bytes = 0
        self.damaged: dict[str, None] = {}
        self._play_garbage()
        self._blocks = Blocks(store, txn, self._garbage, self._gone)

    @property
    def garbage(self) -> Exclusive:
        """What gc gives back when nothing else is removed.

        Records of removals, which it counts apart as well, are in ``disk_bytes`` alone.
        """
        disk_bytes = self._blocks.garbage_bytes() + blocks_of_files(self._files, self._gone)
        return Exclusive(
            self._garbage.logical_bytes,
            self._garbage_stored_bytes,
            self._garbage_records,
            disk_bytes=disk_bytes,
            problems=tuple(self._garbage.problems),
        )

    @property
    def garbage_records(self) -> set[RecordId]:
        """The records of it."""
        return self._garbage.freed

    def exclusive(
        self,
        snapshots: Iterable[str] = (),
        views: Iterable[str] = (),
        owners: Iterable[bytes] = (),
    ) -> Exclusive:
        """Return what removing all these gives back, on top of what is garbage already.

        ``owners``: of pins that go (a checkout's).

        Raises:
            NotFoundError: one does not exist. CorruptError: its row is damaged.
        """
        release = Release(self._store, self._txn, self._garbage)
        for name in dict.fromkeys(snapshots):
            info, record_id = self.snapshot(name)
            release.drop_root(record_id, self._logical(info.root))
        files: list[os.stat_result] = []
        for name in dict.fromkeys(views):
            row = self.view(name)
            release.drop_root(row.root_id, self.view_logical_bytes(row))
            self._drop_pins(release, view_owner_key(row.view_id))
            files += stat_files(view_files(self._store.path, name))
        for owner in dict.fromkeys(owners):
            self._drop_pins(release, owner)
        gone = Counter(inode_of(status) for status in files)
        disk_bytes = self._blocks.extra_bytes(release, gone) + blocks_of_files(files, gone)
        return Exclusive(
            release.logical_bytes,
            release.stored_bytes,
            len(release.freed),
            release.shared_bytes(),
            disk_bytes,
            tuple(release.problems),
        )

    def growing(self, steps: Iterable[Iterable[str]]) -> Iterator[int]:
        """Yield what the disk gets back for the snapshots of all steps so far.

        Each record is played through once, whatever the number of steps; errors as ``exclusive``.
        """
        release = Release(self._store, self._txn, self._garbage)
        for names in steps:
            for name in names:
                release.drop_root(self.snapshot(name)[1], 0)
            yield self._blocks.extra_bytes(release, Counter())

    # --- who holds ----------------------------------------------------------------------------

    def snapshot(self, name: str) -> tuple[SnapshotInfo, RecordId]:
        """Return a snapshot and the id of its record; errors as ``exclusive``."""
        row = self._txn.get(Table.SNAPSHOTS, name.encode("utf-8", "surrogateescape"))
        if row is None:
            raise NotFoundError(f"no snapshot {name!r} in {self._store.path}")
        return decode_snapshot_row(row)

    def view(self, name: str) -> ViewRow:
        """Return a view's row; errors as ``exclusive``."""
        row = self._txn.get(Table.VIEWS, name.encode("utf-8", "surrogateescape"))
        if row is None:
            raise NotFoundError(f"no view {name!r} in {self._store.path}")
        return decode_view_row(row)

    def snapshots(self) -> Sequence[str]:
        """Return the names of all whose rows can be read."""
        return list(self._names(Table.SNAPSHOTS, "snapshot"))

    def views(self) -> Sequence[str]:
        """Return the names of all whose rows can be read."""
        return list(self._names(Table.VIEWS, "view"))

    def _names(self, table: Table, what: str) -> Iterator[str]:
        for key, row in self._txn.scan(table):
            name = key.decode("utf-8", "surrogateescape")
            try:
                decode_snapshot_row(row) if table is Table.SNAPSHOTS else decode_view_row(row)
            except CorruptError:
                shown = key.decode(errors="backslashreplace")
                self.damaged[f"{what} {shown!r} has a damaged row; run 'dedupfs check'"] = None
            else:
                yield name

    # --- how large ----------------------------------------------------------------------------

    def logical_bytes(self, info: SnapshotInfo) -> int:
        """Return the bytes of all files of a snapshot, a hard-linked one counted once."""
        return self._logical(info.root)

    def view_logical_bytes(self, row: ViewRow) -> int:
        """Return the same of what a view has written, as of its last fold."""
        root = self.view_root(row)
        return self._logical(root) if root is not None else 0

    def view_file_bytes(self, name: str) -> int:
        """Return the blocks of a view's journal and staging files: what it did since that fold."""
        return sum(
            status.st_blocks * BLOCK_UNIT_BYTES
            for status in stat_files(view_files(self._store.path, name))
        )

    def view_root(self, row: ViewRow) -> TreeEntry | None:
        """Return the root of a view, a later one if that is gone; None: cannot be read, or no view.

        A mounted view goes on while this looks: each of its folds frees the root before.
        """
        try:
            return decode_view_root(self._store.get(row.root_id, RecordKind.VIEW_ROOT)).root
        except StoreError as exc:
            if not has_gone(self._store, self._txn, row.root_id):
                self.damaged[f"view {row.name!r}: {exc}"] = None
                return None
        return self._later_view_root(row.name)

    def _later_view_root(self, name: str) -> TreeEntry | None:
        while True:
            with self._store.reading() as now:
                stored = now.get(Table.VIEWS, name.encode("utf-8", "surrogateescape"))
                if stored is None:
                    return None
                root_id = None
                try:
                    root_id = decode_view_row(stored).root_id
                    return decode_view_root(self._store.get(root_id, RecordKind.VIEW_ROOT)).root
                except StoreError as exc:
                    if root_id is None or not has_gone(self._store, now, root_id):
                        self.damaged[f"view {name!r}: {exc}"] = None
                        return None

    def _logical(self, root: TreeEntry) -> int:
        """Return the logical bytes of a scope. Its root may or may not count hard-linked files."""
        links_id = links_id_of(root)
        if links_id is None:
            return root.size
        if root.content not in self._scope_bytes:
            try:
                self._scope_bytes[root.content] = sum_of_sizes(
                    self._reader.entries(tree_id_of(root))
                ) + sum_of_sizes(self._reader.entries(links_id))
            except StoreError as exc:
                if not self._has_gone(root):
                    self.damaged[str(exc)] = None
                return root.size
        return self._scope_bytes[root.content]

    def _has_gone(self, root: TreeEntry) -> bool:
        """Whether a scope has been removed since: its tree of names or of links is gone."""
        ids = (tree_id_of(root), links_id_of(root))
        return any(found and has_gone(self._store, self._txn, found) for found in ids)

    # --- garbage ------------------------------------------------------------------------------

    def _play_garbage(self) -> None:
        """Drop what gc drops: what processes and views that are dead held, then dead records."""
        store, txn, garbage = self._store, self._txn, self._garbage
        files: list[Path] = []
        with self._noting():
            for owner in {owner for owner in pin_owners(txn) if self._is_dead(owner)}:
                self._drop_pins(garbage, owner)
        with self._noting():
            files += self._dead_makers_files()
        for name in self.views():
            if name.startswith(EPHEMERAL_PREFIX) and view_owner(store, name) is None:
                row = self.view(name)
                garbage.drop_root(row.root_id, 0)
                self._drop_pins(garbage, view_owner_key(row.view_id))
                files += view_files(store.path, name)
        garbage.free_dead(RecordId(key) for key, _ in txn.scan(Table.DEAD))
        with self._noting():
            for _pack, pack_row in indexed_packs(txn):
                if not pack_row.live_bytes and pack_row.chunk_table is not None:
                    garbage.drop_pin(pack_row.chunk_table, 1)  # a gc was stopped before it went
        self._garbage_records = len(garbage.freed)
        self._garbage_stored_bytes = garbage.stored_bytes
        if not garbage.unreadable_snapshot:  # else tombstones are needed on
            self._drop_pins(garbage, TOMBSTONE_OWNER)
        self._files = list(stat_files(files))
        self._gone.update(inode_of(status) for status in self._files)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Note a damaged row, and leave out what comes behind it."""
        try:
            yield
        except CorruptError as exc:
            self.damaged[f"{exc}; run 'dedupfs check'"] = None

    def _dead_makers_files(self) -> Iterator[Path]:
        """Yield the packs that somebody was making or removing who has died."""
        for key, making in self._txn.scan(Table.META, prefix=META_MAKING):
            if not making or self._is_dead(making):
                pack = decode_pack_key(key[len(META_MAKING) :])
                yield from (self._store.layout.pack(pack, kind) for kind in PackKind)

    def _is_dead(self, owner: bytes) -> bool:
        return is_dead(self._store.layout, self._store.disk, owner, tidy=False)

    def _drop_pins(self, release: Release, owner: bytes) -> None:
        with self._noting():
            for key, row in self._txn.scan(Table.PINS, prefix=owner):
                found, record_id = split_pin_key(key)
                if found == owner:
                    release.drop_pin(record_id, decode_count(row))


def view_files(store_path: Path, name: str) -> list[Path]:
    """Return the files of a view: its lock, its journal, its staging files."""
    try:
        return list(view_directory(store_path, name).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def forecast_removal(
    store: Store, snapshots: Iterable[str] = (), views: Iterable[str] = ()
) -> tuple[Exclusive, Exclusive]:
    """Return what is garbage already, and what removing all these gives back on top of it.

    Raises:
        NotFoundError: one does not exist. CorruptError: its row is damaged.
    """
    with store.reading() as txn:
        forecast = Forecast(store, txn)
        return forecast.garbage, forecast.exclusive(snapshots, views)
