"""Freeing all that nothing refers to, also when a part of it cannot be read. Punches nothing.

Source: docs/format.md, "Giving space back".
"""

import dataclasses
from collections.abc import Callable

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import (
    decode_location,
    decode_pack_row,
    encode_pack_key,
    encode_pack_row,
)
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.format.tree import references
from dedupfs.model import Location, PackKind, RecordId
from dedupfs.store import Store, Table, Transaction
from dedupfs.store.commit import add_free
from dedupfs.store.inventory import payload_of
from dedupfs.store.pace import Pace
from dedupfs.store.space import LEAVES, Freed, free_dead

_FREE_FIRST, _FREE_LEAST, _FREE_MOST = 200, 20, 5000
"""Records freed in one transaction: how many depends on how long other writers wait for it."""


class Freeing:
    """Frees what is dead, in slices that others can write between."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pace = Pace(_FREE_FIRST, least=_FREE_LEAST, most=_FREE_MOST)

    def step(self) -> Freed:
        """Free one slice."""
        self._store.db.give_way()
        freed = free_dead(self._store, self._pace.limit)
        self._pace.note(freed.records, freed.held_s)
        return freed


def free_garbage(store: Store, tell: Callable[[Freed], bool | None]) -> bool:
    """Free until nothing is dead; return whether any was freed.

    ``tell`` hears of each step, and may say that it is enough.

    A record that cannot be read stays, since nobody knows what it refers to.
    """
    worked = False
    freeing = Freeing(store)
    while True:
        freed = freeing.step()
        worked = worked or freed.records > 0
        if tell(freed) or not freed.more or not freed.records:
            return worked


def erase_unreadable(store: Store) -> int:
    """Free dead records that cannot be read; return how many.

    What they refer to stays counted as it is, which is right only in an index whose references
    were counted without them: for reindex.
    """
    with store.reading() as txn:
        dead = [RecordId(key) for key, _ in txn.scan(Table.DEAD)]
    erased = 0
    with store.transaction() as changes:
        for record_id in dead:
            row = changes.get(Table.RECORDS, record_id)
            if row is None:
                continue
            location, count = decode_location(row)
            if not count and not _is_readable(store, record_id, location):
                _erase(changes, record_id, location)
                erased += 1
    return erased


def _is_readable(store: Store, record_id: RecordId, location: Location) -> bool:
    """Whether it can be told what a record refers to."""
    if location.kind in LEAVES:
        return True
    try:
        references(location.kind, bytes(payload_of(store, record_id, location)))
    except StoreError:
        return False
    return True


def _erase(txn: Transaction, record_id: RecordId, location: Location) -> None:
    key = encode_pack_key(location.pack)
    stored = txn.get(Table.PACKS, key)
    if stored is None:
        raise CorruptError(f"pack {location.pack} has no row; run 'dedupfs reindex'")
    row = decode_pack_row(stored)
    start = location.pack_offset - (HEADER_BYTES if row.kind is PackKind.RECORDS else 0)
    stop = location.pack_offset + location.stored_bytes
    txn.delete(Table.RECORDS, record_id)
    txn.delete(Table.DEAD, record_id)
    add_free(txn, location.pack, start, stop)
    left = dataclasses.replace(row, live_bytes=max(0, row.live_bytes - (stop - start)))
    txn.put(Table.PACKS, key, encode_pack_row(left))
