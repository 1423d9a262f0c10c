"""Everything that is in a store, for check, scrub, usage and reindex: rows, packs, pack files.

Changes nothing. Policy, progress and the namespace's roots are ``maintenance/``'s. Source:
docs/format.md, "Index" and "Packs".
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import (
    PACK_KEY_MAX,
    PackRow,
    decode_count,
    decode_free,
    decode_location,
    decode_pack_key,
    decode_pack_row,
    encode_pack_key,
    split_pin_key,
)
from dedupfs.format.pack import ChunkTable, decode_chunk_table
from dedupfs.format.tree import references
from dedupfs.model import Location, PackKind, RecordId, RecordKind
from dedupfs.store.db import ReadTxn, Table
from dedupfs.store.disk import File
from dedupfs.store.scan import PackScanner, Scanned, read_payload
from dedupfs.store.store import Store


@dataclass(frozen=True, slots=True)
class IndexedRecord:
    """A row of RECORDS."""

    record_id: RecordId
    location: Location
    references: int


@dataclass(frozen=True, slots=True)
class FreeRange:
    """A row of FREE: ``[start, stop)`` of a pack; ``punched`` once its blocks are given back."""

    pack: int
    start: int
    stop: int
    punched: bool


@dataclass(slots=True)
class References:
    """What ``count_references`` found. ``unreadable``: records whose references are not known."""

    counts: Counter[RecordId] = field(default_factory=Counter)
    unreadable: list[tuple[RecordId, StoreError]] = field(default_factory=list)


def indexed_records(txn: ReadTxn) -> Iterator[IndexedRecord]:
    """Yield every row of RECORDS in order of id."""
    for key, row in txn.scan(Table.RECORDS):
        location, count = decode_location(row)
        yield IndexedRecord(RecordId(key), location, count)


def indexed_record(txn: ReadTxn, record_id: RecordId) -> IndexedRecord | None:
    """Return the row of one record."""
    row = txn.get(Table.RECORDS, record_id)
    if row is None:
        return None
    location, count = decode_location(row)
    return IndexedRecord(record_id, location, count)


def indexed_packs(txn: ReadTxn) -> Iterator[tuple[int, PackRow]]:
    """Yield every row of PACKS in order of number."""
    for key, row in txn.scan(Table.PACKS):
        yield decode_pack_key(key), decode_pack_row(row)


def indexed_pack(txn: ReadTxn, pack: int) -> PackRow | None:
    """Return the row of one pack."""
    row = txn.get(Table.PACKS, encode_pack_key(pack))
    return decode_pack_row(row) if row is not None else None


def free_ranges(txn: ReadTxn) -> Iterator[FreeRange]:
    """Yield every row of FREE in order of pack and offset."""
    for key, row in txn.scan(Table.FREE):
        yield FreeRange(*decode_free(key, row))


def dead_records(txn: ReadTxn) -> Iterator[RecordId]:
    """Yield every id in DEAD."""
    for key, _ in txn.scan(Table.DEAD):
        yield RecordId(key)


def pins(txn: ReadTxn) -> Iterator[tuple[bytes, RecordId, int]]:
    """Yield (owner, id, count) of every row of PINS."""
    for key, row in txn.scan(Table.PINS):
        owner, record_id = split_pin_key(key)
        yield owner, record_id, decode_count(row)


def count_references(store: Store, txn: ReadTxn) -> References:
    """Count what every row's references should be, by all that the store itself knows.

    That is: the references in every record's payload (dead ones included, until they are freed),
    pins, and the chunk tables of verbatim packs. The roots that the namespace's rows refer to
    come on top of it.
    """
    found = References()
    for record in indexed_records(txn):
        if record.location.kind in (RecordKind.CHUNK, RecordKind.CHUNK_TABLE):
            continue
        try:
            payload = bytes(payload_of(store, record.record_id, record.location))
            found.counts.update(references(record.location.kind, payload))
        except StoreError as exc:
            found.unreadable.append((record.record_id, exc))
    for _owner, record_id, count in pins(txn):
        found.counts[record_id] += count
    for _pack, row in indexed_packs(txn):
        if row.chunk_table is not None:
            found.counts[row.chunk_table] += 1
    return found


# --- pack files ------------------------------------------------------------------------------


def pack_files(store: Store) -> Iterator[tuple[int, PackKind, Path]]:
    """Yield (number, kind, path) of every pack file on disk, whatever the index says.

    Files whose number no pack can have are none of ours.
    """
    layout = store.layout
    for directory in store.disk.listdir(layout.packs):
        if not (layout.packs / directory).is_dir():
            continue
        for name in store.disk.listdir(layout.packs / directory):
            found = layout.pack_of(name)
            if found is None or found[0] > PACK_KEY_MAX:
                continue
            if layout.pack(*found) == layout.packs / directory / name:
                yield found[0], found[1], layout.packs / directory / name


def open_pack(store: Store, pack: int, kind: PackKind) -> File:
    """Open a pack's file for reading.

    Raises:
        CorruptError: it is missing.
    """
    path = store.layout.pack(pack, kind)
    try:
        return store.disk.open(path)
    except FileNotFoundError:
        raise CorruptError(f"{path} is missing") from None


def scanner(store: Store, pack: int, stop: int | None = None) -> PackScanner:
    """Return a scanner of a record pack, up to ``stop`` (default: the end of the file)."""
    file = open_pack(store, pack, PackKind.RECORDS)
    return PackScanner(store.disk, file, pack, store.config.hash_seed, stop)


def scan_pack(store: Store, pack: int, stop: int | None = None) -> Iterator[Scanned]:
    """Yield records, free ranges and damage of a record pack in order of offset.

    Give the row's ``committed_bytes`` as ``stop``, else the tail that a live process is appending
    is scanned too. Free ranges that were not punched yet still show the records they were.
    """
    return scanner(store, pack, stop).scan()


def payload_of(store: Store, record_id: RecordId, location: Location) -> bytes | memoryview:
    """Read and verify one record afresh, whatever this process has verified before.

    Raises:
        CorruptError: damaged, or its pack is missing.
    """
    file = store.reader.open_pack(location.pack)
    return memoryview(read_payload(store.disk, file, store.digest, record_id, location))


def verify(store: Store, record_id: RecordId, location: Location) -> None:
    """Read one committed record from its pack and compare it with its id.

    Raises:
        CorruptError: it is damaged; names its pack, offset, expected and actual id.
    """
    payload_of(store, record_id, location)


def chunk_table(store: Store, record_id: RecordId) -> ChunkTable:
    """Return the chunk table of a verbatim pack.

    Raises:
        MissingRecordError: no such record.
        CorruptError: it is damaged, or no chunk table.
    """
    return decode_chunk_table(store.get(record_id, RecordKind.CHUNK_TABLE))
