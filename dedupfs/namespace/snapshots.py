"""The catalogue: immutable named roots. One transaction per change; knows no views.

Every change of a snapshot's name, tags or pin is a new SNAPSHOT record with a higher revision,
and a removal is a tombstone record, so packs alone rebuild the catalogue (design promise P5). For
that no two records may claim one revision: they are put within the transaction that makes them
true, and what others left of such a transaction when they died is dropped first.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from dedupfs.errors import CorruptError, ExistsError, NotFoundError, UsageError
from dedupfs.format.pack import SALT_MAX
from dedupfs.format.tree import encode_snapshot
from dedupfs.model import ID_BYTES, RecordId, RecordKind, SnapshotInfo, TreeEntry
from dedupfs.namespace.rows import (
    TOMBSTONE_OWNER,
    check_name,
    decode_snapshot_row,
    encode_snapshot_row,
)
from dedupfs.store.store import Store, Table, Transaction

log = logging.getLogger(__name__)

SEQUENCE_COUNTER = "snapshot sequence"


class SnapshotCatalog:
    """All snapshots of one store, straight from the index: other processes' changes are seen.

    What was decoded is kept as long as its row stays the same, and the whole list as long as the
    index does: the root of a mount asks for them with each request.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[bytes, tuple[bytes, SnapshotInfo]] = {}
        self._listed: tuple[int, Sequence[SnapshotInfo]] | None = None

    def list(self) -> Sequence[SnapshotInfo]:
        """Return all snapshots, sorted by name."""
        with self._store.reading() as txn:
            if self._listed is not None and self._listed[0] == txn.state_number:
                return self._listed[1]
            found: dict[bytes, tuple[bytes, SnapshotInfo]] = {}
            damaged = False
            for key, row in txn.scan(Table.SNAPSHOTS):
                try:
                    found[key] = row, self._verified(key, row)
                except CorruptError as exc:  # the others are to be seen all the same
                    log.error("snapshot left out: %s", exc)
                    damaged = True
            infos = [info for _, info in found.values()]
            self._known = found
            self._listed = None if damaged else (txn.state_number, infos)
        return infos

    def _verified(self, key: bytes, row: bytes) -> SnapshotInfo:
        """Decode a row, unless it is the one that was decoded last."""
        known = self._known.get(key)
        if known is None or known[0] != row:
            known = row, self._decoded(key, row)
            self._known[key] = known
        return known[1]

    def _decoded(self, key: bytes, row: bytes) -> SnapshotInfo:
        """Decode a row; it holds the record's payload, so that the record's id tells damage."""
        info, record_id = decode_snapshot_row(row)
        digest, payload = self._store.digest, row[ID_BYTES:]
        if info.name.encode("utf-8", "surrogateescape") != key or not any(
            digest(RecordKind.SNAPSHOT, payload, salt) == record_id for salt in range(SALT_MAX + 1)
        ):
            name = key.decode(errors="backslashreplace")
            raise CorruptError(
                f"the index row of snapshot {name!r} is damaged; run 'dedupfs check --repair'"
            )
        return info

    def find(self, name: str) -> SnapshotInfo | None:
        """Return the snapshot called ``name``, or None."""
        key = name.encode("utf-8", "surrogateescape")
        if not 0 < len(key) <= 255:
            return None
        with self._store.reading() as txn:
            row = txn.get(Table.SNAPSHOTS, key)
        return self._verified(key, row) if row is not None else None

    def get(self, name: str) -> SnapshotInfo:
        """Return the snapshot called ``name``.

        Raises:
            NotFoundError: there is none.
        """
        info = self.find(name)
        if info is None:
            raise NotFoundError(f"no snapshot {name!r} in {self._store.path}")
        return info

    def require_free(self, name: str) -> None:
        """Refuse a name that is none or is taken, before any work is done for it.

        Raises:
            UsageError: no possible name. ExistsError: taken.
        """
        check_name(name)
        if self.find(name) is not None:
            raise ExistsError(f"snapshot {name!r} exists already in {self._store.path}")

    def add(
        self,
        name: str,
        root: TreeEntry,
        *,
        tags: Mapping[str, str] | None = None,
        source: str = "",
        created_ns: int | None = None,
    ) -> SnapshotInfo:
        """Make a snapshot of ``root`` (see SnapshotInfo.root), whose records were put before.

        Raises:
            UsageError, ExistsError: the name. MissingRecordError: a record that ``root`` refers
                to was freed meanwhile; put it again.
        """
        self.require_free(name)
        info = SnapshotInfo(
            sequence=0,
            name=name,
            root=msgspec.structs.replace(root, name=b"", slot=0),
            created_ns=time.time_ns() if created_ns is None else created_ns,
            tags=dict(tags or {}),
            source=source,
        )
        # One transaction for all: a record that is committed without a referrer could be collected.
        with self._store.transaction() as txn:
            key = info.name.encode()
            if txn.get(Table.SNAPSHOTS, key) is not None:
                raise ExistsError(f"snapshot {info.name!r} exists already in {self._store.path}")
            self._store.drop_tails()
            info = msgspec.structs.replace(info, sequence=txn.next_number(SEQUENCE_COUNTER))
            record_id = self._store.put(RecordKind.SNAPSHOT, encode_snapshot(info))
            txn.put(Table.SNAPSHOTS, key, encode_snapshot_row(info, record_id))
            txn.add_reference(record_id)
        return info

    def clone(self, name: str, new_name: str) -> SnapshotInfo:
        """Make a second snapshot of the same root; the cost does not depend on its size."""
        info = self.get(name)
        return self.add(new_name, info.root, tags=info.tags, source=info.source)

    def rename(self, name: str, new_name: str) -> SnapshotInfo:
        """Give a snapshot another name."""
        self.require_free(new_name)
        return self._revise(name, lambda info: msgspec.structs.replace(info, name=new_name))

    def tag(
        self, name: str, changes: Mapping[str, str], remove: Iterable[str] = ()
    ) -> SnapshotInfo:
        """Set and remove tags."""
        removed = set(remove)

        def revise(info: SnapshotInfo) -> SnapshotInfo:
            tags = {key: value for key, value in info.tags.items() if key not in removed}
            return msgspec.structs.replace(info, tags={**tags, **changes})

        return self._revise(name, revise)

    def pin(self, name: str, pinned: bool) -> SnapshotInfo:
        """Protect a snapshot from being removed, or end that."""
        return self._revise(name, lambda info: msgspec.structs.replace(info, pinned=pinned))

    def _revise(self, name: str, change: Callable[[SnapshotInfo], SnapshotInfo]) -> SnapshotInfo:
        while True:
            info = self.get(name)
            revised = change(info)
            revised = msgspec.structs.replace(revised, revision=info.revision + 1)
            with self._store.transaction() as txn:
                old_id = self._take(txn, info)
                if old_id is None:
                    continue  # somebody else changed it between our look and our transaction
                key = revised.name.encode()
                if txn.get(Table.SNAPSHOTS, key) is not None:
                    raise ExistsError(f"snapshot {revised.name!r} exists already")
                self._store.drop_tails()
                record_id = self._store.put(RecordKind.SNAPSHOT, encode_snapshot(revised))
                txn.put(Table.SNAPSHOTS, key, encode_snapshot_row(revised, record_id))
                txn.add_reference(record_id)
                txn.drop_reference(old_id)
            return revised

    def remove(self, names: Sequence[str]) -> tuple[SnapshotInfo, ...]:
        """Remove snapshots; all or none. Their space is freed by ``maintenance.gc``.

        Raises:
            NotFoundError: one does not exist. UsageError: one is pinned.
        """
        infos = [self.get(name) for name in dict.fromkeys(names)]
        for info in infos:
            if info.pinned:
                raise UsageError(f"snapshot {info.name!r} is pinned; 'dedupfs unpin' it first")
        changed = self.remove_unless_changed(infos)
        if changed is not None:
            raise NotFoundError(f"snapshot {changed.name!r} was changed meanwhile; look again")
        return tuple(infos)

    def remove_unless_changed(
        self, going: Sequence[SnapshotInfo], staying: Sequence[SnapshotInfo] = ()
    ) -> SnapshotInfo | None:
        """Remove ``going`` provided that they, and ``staying``, still are as they were seen.

        Returns one that another process has changed or removed; then nothing is done.
        """
        with self._store.transaction() as txn:
            taken = []
            for info in [*going, *staying]:
                record_id = self._unchanged(txn, info)
                if record_id is None:
                    return info
                taken.append((info, record_id))
            self._store.drop_tails()
            for info, record_id in taken[: len(going)]:
                txn.delete(Table.SNAPSHOTS, info.name.encode())
                txn.drop_reference(record_id)
                tombstone = msgspec.structs.replace(info, revision=info.revision + 1, deleted=True)
                tombstone_id = self._store.put(RecordKind.SNAPSHOT, encode_snapshot(tombstone))
                txn.pin(TOMBSTONE_OWNER, tombstone_id)
        self._store.packs.give_up_idle()  # or a gc by this process could not remove it
        return None

    @classmethod
    def _take(cls, txn: Transaction, expected: SnapshotInfo) -> RecordId | None:
        """Delete the row if it still is ``expected``; return the id of its record."""
        record_id = cls._unchanged(txn, expected)
        if record_id is not None:
            txn.delete(Table.SNAPSHOTS, expected.name.encode())
        return record_id

    @staticmethod
    def _unchanged(txn: Transaction, expected: SnapshotInfo) -> RecordId | None:
        """Return the id of the snapshot's record if its row still is ``expected``."""
        row = txn.get(Table.SNAPSHOTS, expected.name.encode())
        if row is None:
            return None
        info, record_id = decode_snapshot_row(row)
        if (info.sequence, info.revision) != (expected.sequence, expected.revision):
            return None
        return record_id
