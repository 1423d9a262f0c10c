"""Which records there are, those that this process has pending over those of the index.

``Lookup`` finds them by id, ``Finder`` by what they hold. Knows no disk. Source:
docs/format.md, "Ids".
"""

from collections.abc import Callable, Sequence

from dedupfs.errors import MissingRecordError, StoreError
from dedupfs.format.keys import decode_pack_row, encode_pack_key
from dedupfs.format.pack import SALT_MAX
from dedupfs.model import HOLE, RecordId, RecordKind
from dedupfs.store.db import Database, ReadTxn, Table
from dedupfs.store.pending import Pending, place_of
from dedupfs.store.reader import Reader

Payload = bytes | memoryview


class Lookup:
    """Records by their ids. Any thread."""

    def __init__(self, pending: Pending, db: Database) -> None:
        self._pending = pending
        self._db = db

    def find(self, record_id: RecordId) -> bytes | None:
        """Return a record's row of RECORDS, or None."""
        return self._pending.rows.get(record_id) or self._db.record_row(record_id)

    def row(self, record_id: RecordId) -> bytes:
        """Return a record's row of RECORDS, or raise MissingRecordError."""
        row = self.find(record_id)
        if row is None:
            raise MissingRecordError(f"record {record_id.hex()} is not in the store")
        return row

    def rows(self, record_ids: Sequence[RecordId]) -> list[bytes | None]:
        """Return the rows of several records."""
        # Pending first: a record that is committed in between is then found in the index.
        pending = [self._pending.rows.get(record_id) for record_id in record_ids]
        committed = self._db.record_rows(record_ids)
        return [one or other for one, other in zip(pending, committed, strict=True)]

    def chunk_table_of(self, txn: ReadTxn, pack: int) -> RecordId:
        """See ``Store.chunk_table_of``."""
        pending = self._pending.verbatim.get(pack)
        if pending is not None:
            return pending.chunk_table
        row = txn.get(Table.PACKS, encode_pack_key(pack))
        table_id = decode_pack_row(row).chunk_table if row is not None else None
        if table_id is None:
            raise MissingRecordError(f"verbatim pack {pack} is not in the store (any more)")
        return table_id


class Finder:
    """Records by their bytes, which are always compared: an id is a hint."""

    def __init__(
        self,
        pending: Pending,
        lookup: Lookup,
        reader: Reader,
        digest: Callable[[RecordKind, Payload, int], RecordId],
    ) -> None:
        self._pending = pending
        self._lookup = lookup
        self._reader = reader
        self._digest = digest

    def find(
        self, kind: RecordKind, payload: Payload, digest: RecordId | None
    ) -> tuple[bool, RecordId, int]:
        """Return whether the store has ``payload``, and the id and salt it has or can have."""
        for salt in range(SALT_MAX + 1):
            identity = None if salt else digest
            identity = identity or self._digest(kind, payload, salt)
            if identity == HOLE:
                continue
            row = self._lookup.find(identity)
            if row is None:
                return False, identity, salt
            # A row of another salt is damaged: what it points at would never be verified.
            if row[2:3] == bytes([salt]) and self._reader.equal(row, kind, payload, identity):
                self.note_match(identity, row)
                return True, identity, salt
        raise StoreError(f"{SALT_MAX + 1} records of one id: somebody crafts collisions")

    def note_match(self, record_id: RecordId, row: bytes) -> None:
        """See ``Store.note_match``."""
        self._pending.found_bytes += int.from_bytes(row[20:24], "little")  # logical: format/keys.py
        if record_id not in self._pending.rows:
            self._pending.matched[record_id] = place_of(row)
