"""Records that tell reindex which snapshots were removed: which there are, and when they may go.

Source: docs/format.md, "Index rows of the namespace" and "Rebuilding the index".
"""

from dedupfs.format.keys import (
    META_MAKING,
    decode_count,
    decode_location,
    decode_pack_row,
    encode_pack_key,
    split_pin_key,
)
from dedupfs.model import PackKind, RecordId, RecordKind
from dedupfs.namespace.rows import TOMBSTONE_OWNER
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.holes import unpunched_packs


def tombstones(txn: ReadTxn) -> list[tuple[RecordId, int]]:
    """Return the pins that keep records of removed snapshots."""
    pins = []
    for key, row in txn.scan(Table.PINS, prefix=TOMBSTONE_OWNER):
        owner, record_id = split_pin_key(key)
        if owner == TOMBSTONE_OWNER:
            pins.append((record_id, decode_count(row)))
    return pins


def nothing_to_outdate(store: Store) -> bool:
    """Whether no record of a removed snapshot can be found by a scan of the packs any more.

    A tombstone tells reindex that older records of its snapshot do not count. Those had no
    references when it was written, so once every dead snapshot record is freed, every free range of
    a record pack is covered by a free header, and the file of every pack that goes is gone, none is
    left.
    """
    with store.reading() as txn:
        if b"" in (owner for _, owner in txn.scan(Table.META, prefix=META_MAKING)):
            return False  # another process is at it, or died at it
        for key, _ in txn.scan(Table.DEAD):
            row = txn.get(Table.RECORDS, key)
            if row is not None and decode_location(row)[0].kind is RecordKind.SNAPSHOT:
                return False
        for pack in unpunched_packs(txn):
            found = txn.get(Table.PACKS, encode_pack_key(pack))
            if found is None or decode_pack_row(found).kind is PackKind.RECORDS:
                return False
    return True


def release_tombstones(store: Store, pins: list[tuple[RecordId, int]]) -> None:
    """Let go of the pins, as far as they are still there."""
    with store.transaction() as txn:
        for record_id, count in pins:
            row = txn.get(Table.PINS, TOMBSTONE_OWNER + record_id)
            held = decode_count(row) if row is not None else 0  # another gc may have been faster
            for _ in range(min(count, held)):
                txn.unpin(TOMBSTONE_OWNER, record_id)
