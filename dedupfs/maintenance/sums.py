"""What a store takes and has to free, for a look every minute.

By names that docs/cli.md, "metrics", explains. Costs O(packs, views, snapshots, garbage and free
ranges), never a look at each record, so it says less than ``dedupfs stats``: of garbage only what
is known, not what that alone refers to.
"""

from dedupfs.format.keys import decode_free, unpack_record_row
from dedupfs.maintenance.usage import disk_usage
from dedupfs.store import Store, Table
from dedupfs.store.limits import read_limit, store_use


def store_sums(store: Store) -> dict[str, int]:
    """Add up what there is, as of one moment of the index."""
    values = {"live_bytes": store_use(store)}
    limit_bytes = read_limit(store.disk, store.path)
    if limit_bytes is not None:
        values["limit_bytes"] = limit_bytes
    garbage_bytes = hole_bytes = unpunched_bytes = 0
    with store.reading() as txn:
        for name, table in (
            ("snapshots", Table.SNAPSHOTS),
            ("views", Table.VIEWS),
            ("packs", Table.PACKS),
        ):
            values[name] = sum(1 for _ in txn.scan(table))
        for key, _ in txn.scan(Table.DEAD):
            row = txn.get(Table.RECORDS, key)
            if row is not None:
                _kind, _codec, _salt, _pack, _offset, stored, _logical, refs = unpack_record_row(
                    row
                )
                garbage_bytes += 0 if refs else stored
        for key, row in txn.scan(Table.FREE):
            _pack, start, stop, punched = decode_free(key, row)
            if punched:
                hole_bytes += stop - start
            else:
                unpunched_bytes += stop - start
    values["garbage_bytes"] = garbage_bytes
    values["hole_bytes"] = hole_bytes
    values["unpunched_bytes"] = unpunched_bytes
    values["disk_bytes"] = disk_usage(store.path).disk_bytes
    return values
