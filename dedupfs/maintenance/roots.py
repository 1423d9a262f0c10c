"""What holds the records of a rebuilt index: snapshots, tombstones and views, found again.

A snapshot is its SNAPSHOT record of the highest revision, unless that is a tombstone. A view is a
directory in views/ whose journal names its root. Source: docs/format.md, "Rebuilding the index".
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dedupfs.errors import DedupfsError, FormatVersionError, StoreError, UsageError
from dedupfs.format.journal import (
    MAGIC,
    VERSION,
    Adopt,
    Edit,
    JournalHeader,
    Place,
    Put,
    Remove,
)
from dedupfs.format.keys import META_COUNTER, decode_location, encode_count
from dedupfs.format.tree import (
    decode_extents,
    decode_snapshot,
    decode_view_root,
    encode_snapshot,
    entry_references,
)
from dedupfs.model import (
    HOLE,
    SNAPSHOT_NAME_BYTES_MAX,
    Location,
    RecordId,
    RecordKind,
    SnapshotInfo,
    ViewRoot,
)
from dedupfs.namespace.directory import CATALOG_SLOTS_START
from dedupfs.namespace.inodes import ROOT_NUMBER
from dedupfs.namespace.journal import PREFIX as JOURNAL_PREFIX
from dedupfs.namespace.journal import Journal, read_journal
from dedupfs.namespace.lifecycle import VIEW_COUNTER
from dedupfs.namespace.rows import (
    TOMBSTONE_OWNER,
    ViewRow,
    check_name,
    encode_snapshot_row,
    encode_view_row,
    view_owner_key,
)
from dedupfs.namespace.snapshots import SEQUENCE_COUNTER
from dedupfs.namespace.trees import TreeReader, tree_id_of
from dedupfs.namespace.views import EPHEMERAL_PREFIX, VIEWS_DIRECTORY, view_directory
from dedupfs.store import Store, Table, Transaction
from dedupfs.store.inventory import payload_of

log = logging.getLogger(__name__)

_VIEW_NUMBER_MAX = 0xFF000000
"""Numbers of views have 32 bits, and there must be some left."""
_LOST_PREFIX = ".lost-"
"""Put before the name of a view's directory that cannot be brought back, so that gc leaves it."""


@dataclass(slots=True)
class Roots:
    """What was found, as of one rebuild."""

    snapshots: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    """Snapshots of one name: the older one (wanted name, name it has now)."""
    tombstones: int = 0
    lost_views: list[tuple[str, str]] = field(default_factory=list)
    """Views that cannot be brought back: (name, why). Their files are kept."""
    shortened_views: list[tuple[str, str]] = field(default_factory=list)
    """Views that came back without what their journal said: (name, why)."""
    unreadable: list[tuple[RecordId, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    """One SNAPSHOT or VIEW_ROOT record."""

    record_id: RecordId
    location: Location


class RootFinder:
    """``note`` takes records while the packs are scanned; ``restore`` writes the rows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._snapshots: list[_Found] = []
        self._views: list[_Found] = []
        self._view_ids: set[int] = set()
        self._sequence = 0
        """The highest sequence number of a snapshot that anything found speaks of."""
        self._roots = Roots()

    def note(self, record_id: RecordId, location: Location) -> None:
        """Remember a record that may be a root."""
        if location.kind is RecordKind.SNAPSHOT:
            self._snapshots.append(_Found(record_id, location))
        elif location.kind is RecordKind.VIEW_ROOT:
            self._views.append(_Found(record_id, location))

    def restore(self) -> Roots:
        """Write the rows of all snapshots and views, and what they hold."""
        self._restore_snapshots()
        self._restore_views()
        with self._store.transaction() as txn:
            self._set_counter(txn, SEQUENCE_COUNTER, self._sequence)
        return self._roots

    def _payloads(self, found: Iterable[_Found]) -> Iterator[tuple[RecordId, bytes]]:
        for item in found:
            row = self._store.db.record_row(item.record_id)
            if row is None or decode_location(row)[0] != item.location:
                continue  # damaged, and there is a sound one of this id
            try:
                payload = bytes(payload_of(self._store, item.record_id, item.location))
            except StoreError as exc:
                self._roots.unreadable.append((item.record_id, str(exc)))
            else:
                yield item.record_id, payload

    # --- snapshots ----------------------------------------------------------------------------

    def _restore_snapshots(self) -> None:
        latest: dict[int, tuple[SnapshotInfo, RecordId]] = {}
        for record_id, payload in self._payloads(self._snapshots):
            try:
                info = decode_snapshot(payload)
                check_name(info.name)
            except (StoreError, UsageError) as exc:
                self._roots.unreadable.append((record_id, str(exc)))
                continue
            known = latest.get(info.sequence)
            if known is None or known[0].revision < info.revision:
                latest[info.sequence] = info, record_id
        infos = sorted(latest.values(), key=lambda found: found[0].sequence, reverse=True)
        taken: dict[str, tuple[SnapshotInfo, RecordId]] = {}
        wanted = {info.name for info, _ in infos}
        for info, record_id in infos:  # the newest first: it keeps its name
            if info.deleted:
                self._keep_tombstone(record_id)
            elif info.name in taken:
                renamed = self._rename(info, wanted)
                wanted.add(renamed[0].name)
                taken[renamed[0].name] = renamed
            else:
                taken[info.name] = info, record_id
        with self._store.transaction() as txn:
            for name, (info, record_id) in sorted(taken.items()):
                txn.put(Table.SNAPSHOTS, name.encode(), encode_snapshot_row(info, record_id))
                txn.add_reference(record_id)
                self._roots.snapshots.append(name)
        self._note_sequences(latest)

    def _keep_tombstone(self, record_id: RecordId) -> None:
        with self._store.transaction() as txn:
            txn.pin(TOMBSTONE_OWNER, record_id)
        self._roots.tombstones += 1

    def _rename(self, info: SnapshotInfo, taken: set[str]) -> tuple[SnapshotInfo, RecordId]:
        suffix = f"+{info.sequence}"
        name = info.name[: SNAPSHOT_NAME_BYTES_MAX - len(suffix)] + suffix
        while name in taken:
            suffix += "+"
            name = info.name[: SNAPSHOT_NAME_BYTES_MAX - len(suffix)] + suffix
        changed = msgspec.structs.replace(info, name=name, revision=info.revision + 1)
        self._roots.renamed.append((info.name, name))
        return changed, self._store.put(RecordKind.SNAPSHOT, encode_snapshot(changed))

    @staticmethod
    def _set_counter(txn: Transaction, name: str, number: int) -> None:
        if number:
            txn.put(Table.META, META_COUNTER + name.encode(), encode_count(number))

    # --- views --------------------------------------------------------------------------------

    def _restore_views(self) -> None:
        roots: dict[RecordId, ViewRoot] = {}
        for record_id, payload in self._payloads(self._views):
            try:
                roots[record_id] = decode_view_root(payload)
            except StoreError as exc:
                self._roots.unreadable.append((record_id, str(exc)))
        for name in self._store.disk.listdir(self._store.path / VIEWS_DIRECTORY):
            try:
                check_name(name, "view")
            except UsageError:
                continue
            if not name.startswith(EPHEMERAL_PREFIX):
                self._restore_view(name, roots)
        with self._store.transaction() as txn:
            seen = self._view_ids | {root.view_id for root in roots.values()}
            self._set_counter(txn, VIEW_COUNTER, max([*seen, _beyond_lost_numbers()]))

    def _restore_view(self, name: str, roots: dict[RecordId, ViewRoot]) -> None:
        directory = view_directory(self._store.path, name)
        why = "its directory holds no journal"
        numbers: set[int] = set()
        for path in self._journals(directory):
            try:
                header, _start, records = read_journal(path.read_bytes())
            except (DedupfsError, OSError) as exc:
                why = f"{path}: {exc}"
                continue
            numbers.add(header.view_id)
            self._view_ids.add(header.view_id)
            root = roots.get(header.root_id)
            if root is None or root.name != name or header.name != name:
                why = f"{path}: its root {header.root_id.hex()} is lost"
                continue
            try:
                edits = [edit for record, _ in records for edit in record.edits]
            except FormatVersionError as exc:
                raise FormatVersionError(f"{path}: {exc}") from exc
            self._add_view(name, root, header.root_id, header.generation, edits)
            return
        own = {i: r for i, r in roots.items() if not numbers or r.view_id in numbers}
        self._restore_without_journal(name, directory, own, why)

    def _journals(self, directory: Path) -> list[Path]:
        """Return the journals of a view, the one of the latest generation first."""
        names = self._store.disk.listdir(directory)
        found = [
            (int(name.removeprefix(JOURNAL_PREFIX)), directory / name)
            for name in names
            if name.startswith(JOURNAL_PREFIX) and name.removeprefix(JOURNAL_PREFIX).isdigit()
        ]
        return [path for _, path in sorted(found, reverse=True)]

    def _restore_without_journal(
        self, name: str, directory: Path, roots: dict[RecordId, ViewRoot], why: str
    ) -> None:
        """Bring a view back as of its last fold, with an empty journal.

        ``roots``: those that may be its own; a removed view of the same name may have left others.
        """
        candidates = [(r.view_id, r.generation, i) for i, r in roots.items() if r.name == name]
        if not candidates:
            self._set_aside(name, directory, why)
            return
        view_id, generation, record_id = max(candidates)
        root = roots[record_id]
        for path in self._journals(directory):
            self._store.disk.rename(path, path.with_name(_LOST_PREFIX + path.name))
        Journal.create(
            self._store.disk,
            directory,
            JournalHeader(MAGIC, VERSION, view_id, name, generation, record_id, root.next_number),
        ).publish()
        self._add_view(name, root, record_id, generation, [])
        self._roots.shortened_views.append((name, why))

    def _set_aside(self, name: str, directory: Path, why: str) -> None:
        names = [n for n in self._store.disk.listdir(directory) if n != "lock"]
        if not names:
            return  # made, but nothing was ever written: gc clears it away
        self._store.disk.rename(directory, directory.with_name(_LOST_PREFIX + name))
        self._roots.lost_views.append((name, why))

    def _add_view(
        self,
        name: str,
        root: ViewRoot,
        root_id: RecordId,
        generation: int,
        edits: Sequence[Edit],
    ) -> None:
        row = ViewRow(root.view_id, name, root.base, generation, root_id, root.created_ns)
        owner = view_owner_key(root.view_id)
        if not root.base:
            self._note_sequences(self._sequences_in(root, edits))
        with self._store.transaction() as txn:
            txn.put(Table.VIEWS, name.encode(), encode_view_row(row))
            txn.add_reference(root_id)
            for record_id in dict.fromkeys(_records_in(edits)):
                if txn.get(Table.RECORDS, record_id) is not None:
                    txn.pin(owner, record_id)
        self._roots.views.append(name)

    def _note_sequences(self, sequences: Iterable[int]) -> None:
        self._sequence = max(self._sequence, *sequences, 0)

    def _sequences_in(self, root: ViewRoot, edits: Iterable[Edit]) -> Iterator[int]:
        """Yield the sequence numbers in whose place a catalogue's view has something of its own.

        Of a snapshot that was removed nothing else may be left; a new one that got its number would
        be taken for it, and hidden.
        """
        own = TreeReader(self._store).sound_entries(tree_id_of(root.root), _tell_unreadable)
        slots = [entry.slot for entry in own]
        for edit in edits:
            if isinstance(edit, Put) and edit.directory == ROOT_NUMBER:
                slots.append(edit.entry.slot)
            elif isinstance(edit, Place) and edit.directory == ROOT_NUMBER:
                slots.append(edit.slot)
            elif isinstance(edit, Remove) and edit.directory == ROOT_NUMBER:
                slots.append(edit.hide)
        return (slot for slot in slots if slot < CATALOG_SLOTS_START)


def _beyond_lost_numbers() -> int:
    """Return a number that no view had of which nothing is left.

    Whoever had reserved it, or whose view it was, may have it written down somewhere else, and
    would take another view for that one, and remove it. No store has made a view each second since
    1970, which is what would bring numbers beyond this one.
    """
    return min(int(time.time()), _VIEW_NUMBER_MAX)


def _tell_unreadable(exc: StoreError) -> None:
    log.warning("root of a view cannot be read: %s", exc)


def _records_in(edits: Iterable[Edit]) -> Iterator[RecordId]:
    """Yield the records that replaying a journal needs."""
    for edit in edits:
        try:
            if isinstance(edit, Put):
                yield from entry_references(edit.entry)
            elif isinstance(edit, Adopt):
                for extent in decode_extents(edit.extents):
                    if extent.chunk_id != HOLE:
                        yield extent.chunk_id
        except StoreError as exc:
            log.warning("journal edit refers to nothing: %s", exc)
