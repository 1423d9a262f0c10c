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
from dedupfs.model import Location, PackKind, RecordId, RecordKind
from dedupfs.store import Store, Table, Transaction
from dedupfs.store.commit import add_free
from dedupfs.store.inventory import payload_of
from dedupfs.store.space import Freed, free_dead

FREE_LIMIT = 2000
"""Records freed in one transaction: other writers wait for some 20 ms."""

PUNCH_LOCK = "punch"
"""The lock of ``store.space.punch``: while it is held, no byte of a committed record goes."""

_LEAVES = (RecordKind.CHUNK, RecordKind.CHUNK_TABLE)


def free_garbage(store: Store, tell: Callable[[Freed], None]) -> bool:
    """Free until nothing is dead; ``tell`` hears of each step. Return whether any was freed.

    A record that cannot be read stays, since nobody knows what it refers to.
    """
    worked = False
    while True:
        freed = free_dead(store, FREE_LIMIT)
        worked = worked or freed.records > 0
        tell(freed)
        if not freed.more or not freed.records:
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
    if location.kind in _LEAVES:
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
