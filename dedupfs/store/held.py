"""What some references alone hold: the bytes of records that would be freed without them.

Plays freeing through without changing anything, on one state of the index; costs what is held and
what is garbage already, not the store. Knows no view and no snapshot. Source: docs/format.md,
"Giving space back".
"""

from collections import Counter
from collections.abc import Mapping

from dedupfs.format.keys import PackRow, decode_location, decode_pack_row, encode_pack_key
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.format.tree import references
from dedupfs.model import Location, PackKind, RecordId, RecordKind
from dedupfs.store.db import ReadTxn, Table
from dedupfs.store.store import Store

_LEAVES = (RecordKind.CHUNK, RecordKind.CHUNK_TABLE)


def held_bytes(store: Store, txn: ReadTxn, held: Mapping[RecordId, int]) -> int:
    """Return the stored bytes, headers included, that dropping ``held`` would free.

    ``held``: how many references there are to each record. What is lost already frees nothing.

    Raises:
        StoreError: a record that would be freed cannot be read.
    """
    play = _Play(store, txn)
    # Dead records still refer to what they shared with living ones, until they are freed.
    dead = Counter({RecordId(key): 0 for key, _ in txn.scan(Table.DEAD)})
    garbage_bytes = play.run(dead) if dead else 0
    return play.run(held) - garbage_bytes


class _Play:
    """Follows references from generation to generation: each is looked up at once."""

    def __init__(self, store: Store, txn: ReadTxn) -> None:
        self._store = store
        self._txn = txn
        self._dropped: Counter[RecordId] = Counter()
        self._freed: set[RecordId] = set()
        self._packs: dict[int, PackRow | None] = {}
        self._freed_in: Counter[int] = Counter()

    def run(self, held: Mapping[RecordId, int]) -> int:
        """Drop references; return what is freed so far."""
        wave: Mapping[RecordId, int] = held
        while wave:
            below: Counter[RecordId] = Counter()
            self._dropped.update(wave)
            rows = self._txn.get_many(Table.RECORDS, wave)
            for record_id, row in zip(wave, rows, strict=True):
                if row is None or record_id in self._freed:
                    continue
                location, count = decode_location(row)
                if count <= self._dropped[record_id]:
                    self._free(record_id, location, below)
            wave = below
        return sum(self._freed_in.values())

    def _free(self, record_id: RecordId, location: Location, below: Counter[RecordId]) -> None:
        self._freed.add(record_id)
        if location.kind not in _LEAVES:
            below.update(references(location.kind, self._store.get(record_id, location.kind)))
        number = location.pack
        pack = self._pack(number)
        is_framed = pack is None or pack.kind is PackKind.RECORDS
        self._freed_in[number] += location.stored_bytes + (HEADER_BYTES if is_framed else 0)
        if pack is None or pack.chunk_table is None:
            return
        if self._freed_in[number] == pack.live_bytes:  # it goes, and its row's reference with it
            below[pack.chunk_table] += 1

    def _pack(self, number: int) -> PackRow | None:
        if number not in self._packs:
            row = self._txn.get(Table.PACKS, encode_pack_key(number))
            self._packs[number] = decode_pack_row(row) if row is not None else None
        return self._packs[number]
