"""What dropping some references would free: gc, played through without changing anything.

Costs what is freed, never the whole store. Works on one state of the index.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import PackRow, decode_location, decode_pack_row, encode_pack_key
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.format.tree import references
from dedupfs.model import PackKind, RecordId, RecordKind
from dedupfs.store import ReadTxn, Store, Table

_LEAVES = (RecordKind.CHUNK, RecordKind.CHUNK_TABLE)


@dataclass(frozen=True, slots=True)
class Exclusive:
    """What only some snapshots hold. ``stored_bytes`` includes record headers and metadata."""

    logical_bytes: int
    stored_bytes: int
    records: int


class Release:
    """Drops references and follows what that frees, recipe by recipe and tree by tree."""

    def __init__(self, store: Store, txn: ReadTxn) -> None:
        self._store = store
        self._txn = txn
        self._packs: dict[int, PackRow] = {}
        self._dropped: Counter[RecordId] = Counter()
        self._freed_in: Counter[int] = Counter()
        self.freed: set[RecordId] = set()
        self.logical_bytes = 0
        """Of the freed chunks."""
        self.stored_bytes = 0
        """Of all freed records, headers included."""

    @property
    def exclusive(self) -> Exclusive:
        """The sums so far."""
        return Exclusive(self.logical_bytes, self.stored_bytes, len(self.freed))

    def drop(self, record_ids: Iterable[RecordId]) -> None:
        """Drop one reference to each of ``record_ids``."""
        pending = list(record_ids)
        while pending:
            record_id = pending.pop()
            self._dropped[record_id] += 1
            pending += self._free_if_unused(record_id)

    def free_dead(self, record_ids: Iterable[RecordId]) -> None:
        """Free records that have no references already."""
        for record_id in record_ids:
            self.drop(self._free_if_unused(record_id))

    def _free_if_unused(self, record_id: RecordId) -> list[RecordId]:
        """Free a record whose references are all dropped; return what it refers to.

        As gc does: what is lost already frees nothing, and what cannot be read stays.
        """
        row = self._txn.get(Table.RECORDS, record_id)
        if row is None:
            return []
        location, count = decode_location(row)
        if record_id in self.freed or count > self._dropped[record_id]:
            return []
        if count < self._dropped[record_id]:
            raise CorruptError(
                f"record {record_id.hex()} has only {count} references; run 'dedupfs check'"
            )
        found: list[RecordId] = []
        if location.kind not in _LEAVES:
            try:
                found += references(location.kind, self._store.get(record_id, location.kind))
            except StoreError:
                return []
        pack = self._pack(location.pack)
        span_bytes = location.stored_bytes
        span_bytes += HEADER_BYTES if pack.kind is PackKind.RECORDS else 0
        self.freed.add(record_id)
        self.stored_bytes += span_bytes
        if location.kind is RecordKind.CHUNK:
            self.logical_bytes += location.logical_bytes
        self._freed_in[location.pack] += span_bytes
        if pack.chunk_table is not None and self._freed_in[location.pack] == pack.live_bytes:
            found.append(pack.chunk_table)  # the pack goes, and with it the reference of its row
        return found

    def _pack(self, pack: int) -> PackRow:
        row = self._packs.get(pack)
        if row is None:
            stored = self._txn.get(Table.PACKS, encode_pack_key(pack))
            if stored is None:
                raise CorruptError(f"pack {pack} is not in the index; run 'dedupfs check'")
            row = self._packs[pack] = decode_pack_row(stored)
        return row
