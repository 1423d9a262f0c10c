"""Folding: what a view did becomes trees, its root moves, and its journal starts anew.

The one commit point is the transaction in ``_move_root``: before it the old root and the old
journal are the truth, after it the new ones. Source: docs/format.md, "Views".
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from dedupfs.errors import MissingRecordError, StaleError, StoreError, UsageError
from dedupfs.format.journal import MAGIC, VERSION, JournalHeader
from dedupfs.format.tree import encode_view_root, entry_references
from dedupfs.model import RecordId, RecordKind, SnapshotInfo, TreeEntry, ViewRoot
from dedupfs.namespace.directory import CatalogDirectory, Directory
from dedupfs.namespace.freezing import freeze
from dedupfs.namespace.journal import Journal
from dedupfs.namespace.journaling import append_file, append_orphan
from dedupfs.namespace.openfile import OpenFile
from dedupfs.namespace.rows import ViewRow, decode_view_row, encode_view_row, view_owner_key
from dedupfs.namespace.settle import settle
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.state import ViewState
from dedupfs.namespace.trees import directory_entry, links_id_of, put_tree, tree_id_of
from dedupfs.store.holes import punch
from dedupfs.store.store import Table, Transaction

log = logging.getLogger(__name__)

PUNCH_RANGES_MAX = 1000
ATTEMPTS = 3
"""A record that was found may be freed before it is referred to; then it is put again."""


class Folder:
    """Folds and commits one view."""

    def __init__(self, state: ViewState, row: ViewRow) -> None:
        self._state = state
        self._store = state.store
        self.row = row

    # --- folding ---------------------------------------------------------------------------------

    def fold(self, *, everything: bool = True) -> None:
        """Turn what changed into records and move the view's root.

        Without ``everything``, new bytes of a file that is still open stay in its staging file, and
        the new journal says so: a file that is being written is not settled again and again.

        Raises:
            StoreFullError, StoreError: the view goes on with the journal it has.
        """
        if not self.has_changes():
            return
        for attempt in range(ATTEMPTS):
            try:
                self._fold(everything)
            except BaseException as exc:
                for file in self._state.files.values():
                    file.revert()
                self._store.drop_pending()
                if not isinstance(exc, MissingRecordError) or attempt + 1 == ATTEMPTS:
                    raise
            else:
                return

    def has_changes(self) -> bool:
        """Whether a fold would change anything."""
        state = self._state
        if any(inode not in state.files for inode in state.held):
            return True
        if state.names.failed or (state.journal is not None and state.journal.syncer.failed):
            return True  # the next one can be durable
        return any(d.dirty and not d.removed for d in state.directories.values()) or any(
            file.unsettled and not file.orphan for file in state.files.values()
        )

    def drop_obsolete(self) -> bool:
        """Delete staging files that no name leads to: once the journal says so durably.

        Their room is what a full disk may need most.
        """
        state = self._state
        if not state.obsolete:
            return False
        state.sync_journal()
        for staging in state.obsolete:
            staging.remove()
        state.obsolete.clear()
        return True

    def _fold(self, everything: bool) -> None:
        state = self._state
        with suppress(StoreError):  # the next journal will not speak of them
            self.drop_obsolete()
        carried = []
        for file in list(state.files.values()):
            if not file.orphan and file.unsettled:
                carry = not everything and file.may_be_carried and not state.names.failed
                if carry and file.open_count:
                    carried.append(file)
                else:
                    settle(file)
                self._put_back(file)
        encoded = self._encode_directories()
        root = encoded.get(state.root.number, state.root.entry)
        view_root = ViewRoot(
            view_id=self.row.view_id,
            name=self.row.name,
            base=self.row.base,
            generation=self.row.generation + 1,
            root=root,
            next_number=state.inodes.next_number,
            created_ns=self.row.created_ns,
        )
        root_id = self._store.put(RecordKind.VIEW_ROOT, encode_view_root(view_root))
        self._move_root(root_id, carried)
        self._start_anew(encoded, carried)

    def _put_back(self, file: OpenFile) -> None:
        """Let the directory have the entry of a settled file (in memory: the trees will say so)."""
        try:
            holder, old = self._state.locate(file.inode)
        except StaleError:
            file.orphan = True
            return
        entry = msgspec.structs.replace(
            file.entry,
            mtime_ns=file.mtime_ns,
            ctime_ns=file.ctime_ns,
            name=old.name,
            slot=old.slot,
        )
        holder.put(entry)

    def _encode_directories(self) -> dict[int, TreeEntry]:
        """Put the trees of all changed directories, deepest first; return their entries."""
        state = self._state
        changed: dict[int, Directory] = {}
        for directory in state.directories.values():
            if not directory.dirty or directory.scope.removed or directory.removed:
                continue
            above: Directory | None = directory
            while above is not None and above.number not in changed:
                changed[above.number] = above
                above = above.parent
        encoded: dict[int, TreeEntry] = {}
        for directory in _deepest_first(changed.values()):
            entry = self._encode(directory, encoded)
            encoded[directory.number] = entry
            if directory.parent is not None and not directory.is_links:
                directory.parent.put(entry)
        return encoded

    def _encode(self, directory: Directory, encoded: dict[int, TreeEntry]) -> TreeEntry:
        if isinstance(directory, CatalogDirectory):
            entries = list(directory.own_entries())
        else:
            entries = directory.entries()
        old = directory.entry
        if not directory.changes and not directory.is_scope and tree_id_of(old) is not None:
            return old  # only its own attributes changed: the tree and its sums are as they were
        links_id, linked_bytes = self._links_of(directory, encoded)
        tree_id: RecordId | None = None
        if entries or directory.next_slot > 1 or links_id is not None:
            tree_id = put_tree(self._store, entries, directory.next_slot)
        made = directory_entry(
            old.name,
            old.slot,
            entries,
            tree_id,
            mode=old.mode,
            uid=old.uid,
            gid=old.gid,
            mtime_ns=old.mtime_ns,
            xattrs=old.xattrs,
            links_id=links_id,
            ctime_ns=old.ctime_ns,
            atime_ns=old.atime_ns,
        )
        return msgspec.structs.replace(made, size=made.size + linked_bytes)

    def _links_of(
        self, directory: Directory, encoded: dict[int, TreeEntry]
    ) -> tuple[RecordId | None, int]:
        """Return the links tree of a scope, and the bytes of the inodes in it."""
        if not directory.is_scope:
            return None, 0
        links_id = links_id_of(directory.entry)
        for number, entry in encoded.items():
            links = self._state.directories[number]
            if links.is_links and links.parent is directory:
                links_id = tree_id_of(entry)
        size = sum(entry.size for entry in self._state.trees.entries(links_id))
        return links_id, size

    def _move_root(self, root_id: RecordId, carried: list[OpenFile]) -> None:
        """Make the new root and a new journal the truth."""
        state = self._state
        old_journal = state.journal
        assert old_journal is not None
        assert state.path is not None
        generation = self.row.generation + 1
        header = JournalHeader(
            MAGIC,
            VERSION,
            self.row.view_id,
            self.row.name,
            generation,
            root_id,
            state.inodes.next_number,
        )
        self._store.sync()  # the header names the root, so the root is durable first
        journal = Journal.create(self._store.disk, state.path, header)
        state.journal = journal
        row = msgspec.structs.replace(self.row, generation=generation, root_id=root_id)
        owner = view_owner_key(self.row.view_id)
        try:
            for file in carried:
                file.sync()
                for edit in file.restated(times_told=state.kernel_keeps_times):
                    # Each is a record of its own, so that none is too long.
                    append_file(state, file.inode, [edit], file.mtime_ns)
            self._restate_nameless()
            journal.publish()
            with self._store.transaction() as txn:
                row = self._write_row(txn, row)
                txn.add_reference(root_id)
                txn.drop_reference(self.row.root_id)
                txn.release_pins(owner)
                for record_id in self._still_open():
                    txn.pin(owner, record_id)
                state.inodes.write(txn)
        except BaseException:
            state.journal = old_journal
            journal.remove()
            state.names.changed()  # or it might come back, to a rebuild the latest one
            raise
        state.names.renew()
        self.row = row
        state.held = {inode for inode, file in state.files.items() if file.orphan}
        for file in carried:
            file.carried()
        self._clean_up(old_journal.remove)

    def _restate_nameless(self) -> None:
        """Say in the new journal what has no name and may be in use, for a daemon that takes over.

        After a power cut nobody misses it, so nothing of it needs to be durable.
        """
        state = self._state
        for directory in state.directories.values():
            if directory.removed:
                entry = msgspec.structs.replace(directory.entry, content=b"")
                append_orphan(state, directory.inode, entry, 0)
        for file in state.files.values():
            if file.orphan:
                append_orphan(state, file.inode, file.named_entry(), file.mtime_ns)
                for edit in file.restated(times_told=state.kernel_keeps_times):
                    append_file(state, file.inode, [edit], file.mtime_ns)

    def _clean_up(self, step: Callable[[], None]) -> None:
        """Do what a crash would leave to the next mount: the fold is committed in any case."""
        try:
            step()
        except StoreError as exc:
            log.warning("left for the next mount view=%s: %s", self.row.name, exc)

    def _still_open(self) -> list[RecordId]:
        """Return what open files need beyond the new root: without a name, or adopted chunks."""
        return [
            record_id
            for file in self._state.files.values()
            if file.open_count or file.orphan
            for record_id in [*entry_references(file.entry), *file.adopted_ids()]
        ]

    def _start_anew(self, encoded: dict[int, TreeEntry], carried: list[OpenFile]) -> None:
        state = self._state
        state.inodes.written()
        for number, entry in encoded.items():
            state.directories[number].rebase(entry)
        for directory in list(state.directories.values()):
            if directory.removed or directory.scope.removed:  # empty; its tree may be freed now
                directory.rebase(msgspec.structs.replace(directory.entry, content=b""))
        for file in list(state.files.values()):
            if file.orphan or file in carried:
                continue
            file.unsettled = False
            state.obsolete += file.confirm()
            if not file.open_count:
                del state.files[file.inode]
        made_packs = bool(state.obsolete)
        for staging in state.obsolete:
            self._clean_up(staging.remove)
        state.obsolete.clear()
        if made_packs:
            self._clean_up(self._punch)
        state.edit_count = 0
        state.owned.clear()
        state.held_back.clear()
        if state.journal is not None:
            state.journal.ready.clear()

    def _punch(self) -> None:
        """Give back what turned out to be in the store already while it lay in a staging file."""
        punch(self._store, PUNCH_RANGES_MAX, wait=False, every_pack=False)

    def _write_row(self, txn: Transaction, row: ViewRow) -> ViewRow:
        """Put the view's row, charged for what this transaction inserts."""
        key = row.name.encode()
        stored = txn.get(Table.VIEWS, key)
        if stored is None or decode_view_row(stored).view_id != row.view_id:
            raise UsageError(f"view {row.name!r} was removed")
        if row.held_bytes >= 0:
            held_bytes = row.held_bytes + txn.pending_bytes
            row = msgspec.structs.replace(row, held_bytes=held_bytes)
        txn.put(Table.VIEWS, key, encode_view_row(row))
        return row

    def pin_new(self, record_id: RecordId) -> bool:
        """Hold what was just put back from gc until the next fold; False: some of it was freed.

        The view is charged for it, as it is for what a fold puts.
        """
        try:
            with self._store.transaction() as txn:
                row = self._write_row(txn, self.row)
                txn.pin(view_owner_key(row.view_id), record_id)
        except MissingRecordError:
            return False
        self.row = row
        self._state.held.add(0)
        return True

    # --- committing ------------------------------------------------------------------------------

    def commit(
        self, snapshot: str, path: bytes, tags: dict[str, str], created_ns: int
    ) -> SnapshotInfo:
        """Freeze the view's root, or the directory at ``path``, as a snapshot.

        Raises:
            UsageError, ExistsError: the name. NotFoundError, NotADirectoryNameError: the path.
        """
        catalog = SnapshotCatalog(self._store)
        catalog.require_free(snapshot)
        self.fold()
        root = freeze(self._state, path)
        return catalog.add(
            snapshot, root, tags=tags, source=f"view {self.row.name}", created_ns=created_ns
        )


def _deepest_first(directories: Iterable[Directory]) -> list[Directory]:
    """Return the directories so that each comes before those that it lies in.

    Not by recursion: they may lie deeper than Python's stack.
    """
    depths: dict[int, int] = {}
    listed = list(directories)
    for directory in listed:
        way: list[int] = []
        above: Directory | None = directory
        while above is not None and above.number not in depths:
            way.append(above.number)
            above = above.parent
        depth = depths[above.number] if above is not None else -1
        depths.update((number, depth + step) for step, number in enumerate(reversed(way), start=1))
    return sorted(listed, key=lambda directory: depths[directory.number], reverse=True)
