"""What some references alone hold: the bytes of records that would be freed without them.

Plays freeing through without changing anything, on one state of the index; costs what is held and
what is garbage already, not the store. Knows no view and no snapshot. Source: docs/format.md,
"Giving space back".
"""

from collections import Counter
from collections.abc import Mapping

from dedupfs.errors import CorruptError
from dedupfs.format.keys import PackRow, decode_pack_row, encode_pack_key, unpack_record_row
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.format.tree import references
from dedupfs.model import PackKind, RecordId, RecordKind
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
        self._packs: dict[int, PackRow] = {}
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
                kind, _codec, _salt, pack, _offset, stored, _logical, count = unpack_record_row(row)
                if count <= self._dropped[record_id]:
                    self._freed.add(record_id)
                    if kind not in _LEAVES:
                        known = RecordKind(kind)
                        below.update(references(known, self._store.get(record_id, known)))
                    self._take_from(pack, stored, below)
            wave = below
        return sum(self._freed_in.values())

    def _take_from(self, number: int, stored_bytes: int, below: Counter[RecordId]) -> None:
        pack = self._packs.get(number) or self._pack(number)
        if pack.kind is PackKind.RECORDS:
            self._freed_in[number] += stored_bytes + HEADER_BYTES
            return
        self._freed_in[number] += stored_bytes
        if pack.chunk_table is not None and self._freed_in[number] == pack.live_bytes:
            below[pack.chunk_table] += 1  # it goes, and its row's reference with it

    def _pack(self, number: int) -> PackRow:
        row = self._txn.get(Table.PACKS, encode_pack_key(number))
        if row is None:
            raise CorruptError(f"pack {number} is not in the index; run 'dedupfs check'")
        found = self._packs[number] = decode_pack_row(row)
        return found
