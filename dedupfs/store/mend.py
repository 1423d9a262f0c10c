"""A damaged record written once more, from a payload that was found elsewhere.

The id stays, so that everything that refers to the record is whole again; its row then names the
new place, and the old one is free. Source: docs/format.md, "Write order".
"""

import dataclasses

from dedupfs.errors import CorruptError, MissingRecordError
from dedupfs.format.keys import (
    PackRow,
    decode_location,
    decode_pack_row,
    encode_location,
    encode_pack_key,
    encode_pack_row,
)
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.model import Location, PackKind, RecordId
from dedupfs.store.commit import add_free
from dedupfs.store.db import Table
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
    new = store.append_again(record_id, old.kind, old.salt, payload)
    with store.transaction() as txn:
        row = txn.get(Table.RECORDS, record_id)
        if row is None:
            raise MissingRecordError(f"record {record_id.hex()} is not in the store any more")
        txn.put(Table.RECORDS, record_id, encode_location(new, decode_location(row)[1]))
        _change_live(txn, old, -1)
        _change_live(txn, new, 1)


def _change_live(txn: Transaction, location: Location, sign: int) -> None:
    """Count a record's bytes in or out of its pack; what is out is free."""
    key = encode_pack_key(location.pack)
    stored = txn.get(Table.PACKS, key)
    if stored is None:
        return  # its row is lost too: that is mended by a rebuild
    row: PackRow = decode_pack_row(stored)
    start = location.pack_offset - (HEADER_BYTES if row.kind is PackKind.RECORDS else 0)
    stop = location.pack_offset + location.stored_bytes
    live_bytes = max(0, row.live_bytes + sign * (stop - start))
    txn.put(Table.PACKS, key, encode_pack_row(dataclasses.replace(row, live_bytes=live_bytes)))
    if sign < 0 <= start and stop <= row.committed_bytes:
        add_free(txn, location.pack, start, stop)
