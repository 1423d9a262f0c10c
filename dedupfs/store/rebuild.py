"""The index made anew from pack files alone: rows of RECORDS, PACKS, FREE and DEAD.

The namespace's rows (snapshots, views) are ``maintenance/reindex.py``'s, which finds their
records through ``on_record``. Source: docs/format.md, "Rebuilding the index".
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dedupfs.errors import StoreError
from dedupfs.format.keys import (
    META_COUNTER,
    META_EMPTY,
    META_OPEN,
    PackRow,
    decode_count,
    decode_location,
    encode_count,
    encode_location,
    encode_pack_key,
    encode_pack_row,
    with_references,
)
from dedupfs.format.pack import (
    HEADER_BYTES,
    PACK_HEADER_BYTES,
    ChunkTable,
    TableChunk,
    decode_chunk_table,
)
from dedupfs.model import Codec, Location, PackKind, RecordId, RecordKind
from dedupfs.store import inventory
from dedupfs.store.commit import add_free
from dedupfs.store.db import Table
from dedupfs.store.openpack import PACK_COUNTER
from dedupfs.store.scan import Damage, ScannedFree, ScannedRecord
from dedupfs.store.store import Store
from dedupfs.store.transaction import Transaction

log = logging.getLogger(__name__)

PACK_NUMBER_MAX = 1 << 31
"""What has a larger number was not made by us and must not use up the numbers that are left."""

OnRecord = Callable[[RecordId, Location], None]


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild found.

    ``damaged``: places in packs that are no record. ``orphans``: verbatim packs without a readable
    chunk table, left as they are. ``missing``: how often records refer to a record that is nowhere;
    by records, too, that were freed before and not erased yet, which come back as dead ones.
    """

    packs: int = 0
    records: int = 0
    damaged: list[tuple[int, Damage]] = field(default_factory=list)
    orphans: list[int] = field(default_factory=list)
    missing: Counter[RecordId] = field(default_factory=Counter)


@dataclass(slots=True)
class _State:
    store: Store
    found: Rebuilt
    on_record: OnRecord
    record_packs: set[int] = field(default_factory=set)
    tables: dict[int, list[tuple[RecordId, ChunkTable]]] = field(default_factory=dict)
    """Chunk tables by the pack that they name: there may be old ones, of any number."""
    spans: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)


def rebuild(store: Store, on_record: OnRecord = lambda _id, _location: None) -> Rebuilt:
    """Fill the index of a store that was opened with ``create_index`` from its packs.

    Reads every header, and whatever payloads are needed: of records other than chunks, of records
    that exist twice, and of everything in packs that were never sealed (a crash may have cut
    those short). ``on_record`` is called for every record but chunks.
    """
    state = _State(store, Rebuilt(), on_record)
    files = list(inventory.pack_files(store))
    for pack, kind, _path in files:
        state.found.packs += 1
        if kind == PackKind.RECORDS:
            state.record_packs.add(pack)
            with store.transaction() as txn:
                _add_record_pack(state, txn, pack)
    for pack, kind, _path in files:
        if kind == PackKind.VERBATIM:
            with store.transaction() as txn:
                _add_verbatim_pack(state, txn, pack)
    with store.transaction() as txn:
        numbers = (pack for pack, _, _ in files if pack < PACK_NUMBER_MAX)
        _set_counter(txn, max(numbers, default=0))
    _count(state)
    _find_free(state)
    return state.found


def _add_record_pack(state: _State, txn: Transaction, pack: int) -> None:
    scanner = inventory.scanner(state.store, pack)
    sealed = scanner.read_trailer() is not None
    end = PACK_HEADER_BYTES
    for found in scanner.scan():
        if isinstance(found, Damage):
            state.found.damaged.append((pack, found))
            continue
        if isinstance(found, ScannedRecord):
            if not sealed and not _is_sound(state.store, found.record_id, found.location):
                damage = Damage(found.start, found.stop, "payload", torn=True)
                state.found.damaged.append((pack, damage))
                continue
            _add_record(state, txn, found.record_id, found.location)
        span = (found.start, found.stop, isinstance(found, ScannedFree))
        state.spans.setdefault(pack, []).append(span)
        end = found.stop
    if sealed:
        end = scanner.size
    row = PackRow(PackKind.RECORDS, sealed, min(end, scanner.size), 0)
    txn.put(Table.PACKS, encode_pack_key(pack), encode_pack_row(row))
    if not sealed:
        txn.put(Table.META, META_OPEN + encode_pack_key(pack), b"")


def _is_sound(store: Store, record_id: RecordId, location: Location) -> bool:
    try:
        inventory.verify(store, record_id, location)
    except StoreError as exc:
        log.info("record dropped id=%s: %s", record_id.hex(), exc)
        return False
    return True


def _add_record(state: _State, txn: Transaction, record_id: RecordId, location: Location) -> None:
    """Add a row; of two records of one id the sound one that was written first stays."""
    old = txn.get(Table.RECORDS, record_id)
    if old is not None and _is_sound(state.store, record_id, decode_location(old)[0]):
        return
    txn.put(Table.RECORDS, record_id, encode_location(location))
    if location.kind == RecordKind.CHUNK_TABLE:
        _note_table(state, record_id, location)
    if location.kind != RecordKind.CHUNK:
        state.on_record(record_id, location)


def _note_table(state: _State, record_id: RecordId, location: Location) -> None:
    try:
        payload = inventory.payload_of(state.store, record_id, location)
        table = decode_chunk_table(payload)
    except StoreError as exc:
        log.warning("chunk table unreadable id=%s: %s", record_id.hex(), exc)
        return
    state.tables.setdefault(table.pack, []).append((record_id, table))


def _add_verbatim_pack(state: _State, txn: Transaction, pack: int) -> None:
    if pack not in state.tables or pack in state.record_packs:
        state.found.orphans.append(pack)
        return
    record_id, table = _best_table(state, pack)
    file = inventory.open_pack(state.store, pack, PackKind.VERBATIM)
    if not state.store.disk.size(file):  # a crash cut its removal off: truncated, not yet unlinked
        state.found.orphans.append(pack)
        return
    for chunk in table.chunks:
        location = _location(pack, chunk)
        stop = chunk.file_offset + chunk.length
        # A freed chunk's blocks may have been punched; then its bytes are not those of its id.
        solid = state.store.disk.is_solid(file, chunk.file_offset, stop)
        if not solid and not _is_sound(state.store, chunk.chunk_id, location):
            state.spans.setdefault(pack, []).append((chunk.file_offset, stop, True))
            continue
        _add_record(state, txn, chunk.chunk_id, location)
        state.spans.setdefault(pack, []).append((chunk.file_offset, stop, False))
    state.spans.setdefault(pack, []).extend(_gaps(table))
    row = PackRow(PackKind.VERBATIM, True, table.file_bytes, 0, record_id)
    txn.put(Table.PACKS, encode_pack_key(pack), encode_pack_row(row))


def _gaps(table: ChunkTable) -> Iterator[tuple[int, int, bool]]:
    """Yield what no chunk covers: holes, or bytes that nothing refers to."""
    position = 0
    for chunk in table.chunks:
        if position < chunk.file_offset:
            yield position, chunk.file_offset, True
        position = chunk.file_offset + chunk.length
    if position < table.file_bytes:
        yield position, table.file_bytes, True


def _best_table(state: _State, pack: int) -> tuple[RecordId, ChunkTable]:
    """Return the chunk table of a pack; of several the one of which most is true, then the newest.

    Reindex writes a second one when the first was damaged, which may be readable again.
    """
    tables = state.tables[pack]
    if len(tables) == 1:
        return tables[0]
    return max(reversed(tables), key=lambda found: _sound_bytes(state.store, found[1]))


def _sound_bytes(store: Store, table: ChunkTable) -> int:
    return sum(
        chunk.length
        for chunk in table.chunks
        if _is_sound(store, chunk.chunk_id, _location(table.pack, chunk))
    )


def _location(pack: int, chunk: TableChunk) -> Location:
    length = chunk.length
    return Location(
        RecordKind.CHUNK, Codec.RAW, chunk.salt, pack, chunk.file_offset, length, length
    )


def _set_counter(txn: Transaction, pack_max: int) -> None:
    key = META_COUNTER + PACK_COUNTER.encode()
    row = txn.get(Table.META, key)
    number = max(pack_max, decode_count(row) if row is not None else 0)
    txn.put(Table.META, key, encode_count(number))


def _count(state: _State) -> None:
    """Set every row's reference count, put the dead into DEAD, and sum up live bytes."""
    store = state.store
    live: Counter[int] = Counter()
    with store.transaction() as txn:
        wanted = inventory.count_references(store, txn).counts
        verbatim = {
            pack for pack, row in inventory.indexed_packs(txn) if row.kind == PackKind.VERBATIM
        }
        for key, row in txn.scan(Table.RECORDS):
            state.found.records += 1
            location, _ = decode_location(row)
            count = wanted.pop(RecordId(key), 0)
            txn.put(Table.RECORDS, key, with_references(row, count))
            if not count:
                txn.put(Table.DEAD, key, b"")
            header_bytes = 0 if location.pack in verbatim else HEADER_BYTES
            live[location.pack] += header_bytes + location.stored_bytes
        for pack, old in list(inventory.indexed_packs(txn)):
            new = PackRow(old.kind, old.sealed, old.committed_bytes, live[pack], old.chunk_table)
            txn.put(Table.PACKS, encode_pack_key(pack), encode_pack_row(new))
            if not live[pack]:
                txn.put(Table.META, META_EMPTY + encode_pack_key(pack), b"")
    state.found.missing = wanted


def _find_free(state: _State) -> None:
    """Everything in a pack that no row points at is free."""
    with state.store.transaction() as txn:
        places = {
            (record.location.pack, record.location.pack_offset)
            for record in inventory.indexed_records(txn)
        }
        for pack, spans in state.spans.items():
            header_bytes = HEADER_BYTES if pack in state.record_packs else 0
            for start, stop, free in spans:
                if free or (pack, start + header_bytes) not in places:
                    add_free(txn, pack, start, stop)
