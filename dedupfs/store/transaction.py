"""The write transaction that callers get: rows of any table, references, pins, counters.

Only notes reference changes; ``commit.py`` applies them at the end. Knows no pack.
Source: docs/format.md, "Index" and "Write order".
"""

from collections import Counter

from dedupfs.errors import StoreError
from dedupfs.format.keys import META_COUNTER, decode_count, encode_count, split_pin_key
from dedupfs.model import RecordId
from dedupfs.store.db import Table, WriteTxn
from dedupfs.store.owner import Owner
from dedupfs.store.pending import Pending


class Transaction(WriteTxn):
    """The one write transaction of all processes; made by ``Store.transaction``."""

    def __init__(
        self, txn: WriteTxn, owner: Owner | None = None, pending: Pending | None = None
    ) -> None:
        super().__init__(txn.raw, txn.handles)
        self._owner = owner
        self._pending = pending
        self.deltas: Counter[RecordId] = Counter()

    def next_number(self, counter: str) -> int:
        """Return the next number of a persistent counter; the first is 1."""
        key = META_COUNTER + counter.encode()
        row = self.get(Table.META, key)
        number = (decode_count(row) if row is not None else 0) + 1
        self.put(Table.META, key, encode_count(number))
        return number

    @property
    def pending_bytes(self) -> int:
        """What the records take that this transaction will insert, at most; O(those)."""
        return self._pending.stored_bytes if self._pending is not None else 0

    def add_reference(self, record_id: RecordId, count: int = 1) -> None:
        """Count ``count`` more references to a record, pending or in the index."""
        self.deltas[record_id] += count

    def drop_reference(self, record_id: RecordId, count: int = 1) -> None:
        """Count ``count`` fewer references to a record."""
        self.deltas[record_id] -= count

    def pin(self, owner: bytes, record_id: RecordId) -> None:
        """Hold a record for ``owner``: ``b"v"`` + u32 big endian of a view, or ``Store.owner``.

        Pins are counted. A process's pins die with it, a view's are released by its owner.
        """
        if self._owner is not None and owner == self._owner.name:
            self._owner.claim()
        key = owner + record_id
        row = self.get(Table.PINS, key)
        count = decode_count(row) if row is not None else 0
        self.put(Table.PINS, key, encode_count(count + 1))
        self.deltas[record_id] += 1

    def unpin(self, owner: bytes, record_id: RecordId) -> None:
        """Undo one ``pin``.

        Raises:
            StoreError: the owner has not pinned this record.
        """
        key = owner + record_id
        row = self.get(Table.PINS, key)
        if row is None:
            raise StoreError(f"record {record_id.hex()} is not pinned by {owner!r}")
        count = decode_count(row) - 1
        if count:
            self.put(Table.PINS, key, encode_count(count))
        else:
            self.delete(Table.PINS, key)
        self.deltas[record_id] -= 1

    def release_pins(self, owner: bytes, limit: int | None = None) -> int:
        """Undo every pin of ``owner``, or those of ``limit`` records; return of how many."""
        released = 0
        for key, row in self.scan(Table.PINS, prefix=owner):
            found, record_id = split_pin_key(key)
            if found == owner:
                self.deltas[record_id] -= decode_count(row)
                self.delete(Table.PINS, key)
                released += 1
                if released == limit:
                    break
        return released
