"""A damaged record written once more, from a payload that was found elsewhere.

The id stays, so that everything that refers to the record is whole again; its row then names the
new place, and the old one is free. Source: docs/format.md, "Mending a record".
"""

import dataclasses

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.format.keys import (
    PackRow,
    decode_location,
    decode_pack_row,
    encode_location,
    encode_pack_key,
    encode_pack_row,
)
from dedupfs.format.pack import (
    HEADER_BYTES,
    RecordHeader,
    check_seed,
    decode_chunk_table,
    decode_header,
)
from dedupfs.model import Location, PackKind, RecordId, RecordKind
from dedupfs.store import inventory
from dedupfs.store.commit import add_free
from dedupfs.store.db import Table
from dedupfs.store.scan import Damage
from dedupfs.store.store import Store
from dedupfs.store.transaction import Transaction


def mend(store: Store, record_id: RecordId, payload: bytes) -> None:
    """Give a record of the index sound bytes again, in one transaction.

    Raises:
        CorruptError: they are not its bytes. MissingRecordError: it has no row.
    """
    old = store.locate(record_id)
    if store.digest(old.kind, payload, old.salt) != record_id:
        raise CorruptError(f"these are not the bytes of record {record_id.hex()}")
    is_freed = _lies_there(store, record_id, old)
    new = store.append_again(record_id, old, payload)
    with store.transaction() as txn:
        row = txn.get(Table.RECORDS, record_id)
        if row is None:
            raise MissingRecordError(f"record {record_id.hex()} is not in the store any more")
        txn.put(Table.RECORDS, record_id, encode_location(new, decode_location(row)[1]))
        _change_live(txn, new, 1)
        if is_freed:
            start, stop = _change_live(txn, old, -1)
            add_free(txn, old.pack, start, stop)


def _change_live(txn: Transaction, location: Location, sign: int) -> tuple[int, int]:
    """Count a record's bytes in or out of its pack; return the range that it takes there."""
    key = encode_pack_key(location.pack)
    stored = txn.get(Table.PACKS, key)
    assert stored is not None, "one was looked at, the other just made"
    row: PackRow = decode_pack_row(stored)
    start = location.pack_offset - (HEADER_BYTES if row.kind is PackKind.RECORDS else 0)
    stop = location.pack_offset + location.stored_bytes
    live_bytes = max(0, row.live_bytes + sign * (stop - start))
    txn.put(Table.PACKS, key, encode_pack_row(dataclasses.replace(row, live_bytes=live_bytes)))
    return start, stop


def _lies_there(store: Store, record_id: RecordId, location: Location) -> bool:
    """Whether the pack says so, too.

    The row may be what is damaged, and name the bytes of another record, which must not be free.
    """
    with store.reading() as txn:
        stored = txn.get(Table.PACKS, encode_pack_key(location.pack))
    try:
        row = decode_pack_row(stored) if stored is not None else None
        if row is None or location.pack_offset + location.stored_bytes > row.committed_bytes:
            return False
        if row.kind is PackKind.VERBATIM:
            return row.chunk_table is not None and _is_listed(
                store, row.chunk_table, record_id, location
            )
        return _is_record_or_damage(store, record_id, location)
    except StoreError:
        return False


def _is_record_or_damage(store: Store, record_id: RecordId, location: Location) -> bool:
    """Whether its header is there, or else nothing that could be another record's."""
    start = location.pack_offset - HEADER_BYTES
    stop = location.pack_offset + location.stored_bytes
    file = inventory.open_pack(store, location.pack, PackKind.RECORDS)
    data = store.disk.pread(file, HEADER_BYTES, start)
    try:
        header = decode_header(data, 0, check_seed(store.config.hash_seed, location.pack, start))
    except StoreError:
        scanned = inventory.scanner(store, location.pack).scan()
        found = next((found for found in scanned if found.stop > start), None)
        return isinstance(found, Damage) and (found.start, found.stop) == (start, stop)
    return isinstance(header, RecordHeader) and (header.record_id, header.stored_bytes) == (
        record_id,
        location.stored_bytes,
    )


def _is_listed(
    store: Store, chunk_table: RecordId, record_id: RecordId, location: Location
) -> bool:
    table = decode_chunk_table(store.get(chunk_table, RecordKind.CHUNK_TABLE))
    return table.pack == location.pack and any(
        (chunk.chunk_id, chunk.file_offset, chunk.length)
        == (record_id, location.pack_offset, location.stored_bytes)
        for chunk in table.chunks
    )
