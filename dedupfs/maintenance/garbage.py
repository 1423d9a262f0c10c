"""Freeing all that nothing refers to, also when a part of it is broken. Punches nothing.

``store.space.free_dead`` frees whole records; what refers to a record that was lost is freed here,
so that a snapshot with damage can still be removed. Source: docs/format.md, "Giving space back".
"""

import dataclasses
from collections.abc import Callable

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
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
        try:
            freed = free_dead(store, FREE_LIMIT)
        except MissingRecordError:
            freed = erase_broken(store)
            if not freed.records:
                raise
        worked = worked or freed.records > 0
        tell(freed)
        if not freed.more or not freed.records:
            return worked


def erase_broken(store: Store, *, unreadable: bool = False) -> Freed:
    """Free dead records that refer to what is lost, and with ``unreadable`` those past reading.

    The references of an unreadable record stay counted, which is right only in an index whose
    references were counted without it: for reindex.
    """
    with store.reading() as txn:
        dead = [RecordId(key) for key, _ in txn.scan(Table.DEAD)]
    records = stored_bytes = 0
    with store.transaction() as changes:
        for record_id in dead:
            row = changes.get(Table.RECORDS, record_id)
            if row is None:
                continue
            location, count = decode_location(row)
            if count:
                continue
            found = _references(store, record_id, location)
            if found is None and not unreadable:
                continue
            whole = found is not None and all(changes.get(Table.RECORDS, key) for key in found)
            if not whole:
                records += 1
                stored_bytes += _erase(changes, record_id, location, found or [])
    return Freed(records, stored_bytes, more=records > 0)


def _references(store: Store, record_id: RecordId, location: Location) -> list[RecordId] | None:
    """Return what a record refers to; None when it cannot be read."""
    if location.kind in _LEAVES:
        return []
    try:
        return references(location.kind, bytes(payload_of(store, record_id, location)))
    except StoreError:
        return None


def _erase(txn: Transaction, record_id: RecordId, location: Location, found: list[RecordId]) -> int:
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
    for target in found:
        if txn.get(Table.RECORDS, target) is not None:
            txn.drop_reference(target)
    return stop - start
