"""Chunks that files want and no chunk table lists are looked for in verbatim packs.

A verbatim pack is one file as it was, so a chunk lies in it where a recipe of that file says. Each
candidate is compared with its id; a pack in which some are found gets a chunk table that lists
them. For reindex, when a chunk table was damaged.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dedupfs.errors import StoreError
from dedupfs.format.keys import (
    PackRow,
    decode_location,
    decode_pack_row,
    encode_location,
    encode_pack_key,
    encode_pack_row,
)
from dedupfs.format.pack import TableChunk, encode_chunk_table
from dedupfs.format.tree import decode_extents, decode_recipe
from dedupfs.model import HOLE, Codec, Location, PackKind, RecordId, RecordKind
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.disk import File
from dedupfs.store.inventory import open_pack, pack_files, payload_of


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Where a lost chunk would lie in the file that it was stored with."""

    chunk_id: RecordId
    file_offset: int
    length: int


def salvage_chunks(store: Store, missing: Counter[RecordId]) -> list[int]:
    """Bring missing chunks back from verbatim packs; return the packs that had some.

    ``missing``: how often a record is referred to that no row describes; what was found is taken
    out of it.
    """
    helped = []
    for pack, kind, _path in list(pack_files(store)):
        if not missing or kind is not PackKind.VERBATIM:
            continue
        try:
            file = open_pack(store, pack, kind)
        except StoreError:
            continue
        try:
            known = _known_chunks(store, pack)
            found = _find(store, file, known, missing)
            if found:
                _add_chunks(store, pack, store.disk.size(file), known, found, missing)
                helped.append(pack)
        finally:
            file.close()
    return helped


def _known_chunks(store: Store, pack: int) -> list[TableChunk]:
    """Return the chunks that the index has in a pack already."""
    with store.reading() as txn:
        return [
            TableChunk(location.pack_offset, location.logical_bytes, location.salt, record_id)
            for record_id, location in _locations(txn)
            if location.pack == pack
        ]


def _locations(txn: ReadTxn) -> Iterator[tuple[RecordId, Location]]:
    for key, row in txn.scan(Table.RECORDS):
        yield RecordId(key), decode_location(row)[0]


def _find(
    store: Store, file: File, known: Iterable[TableChunk], missing: Counter[RecordId]
) -> list[TableChunk]:
    taken = {chunk.file_offset for chunk in known}
    found: dict[RecordId, TableChunk] = {}
    for wanted in _candidates(store, missing):
        if wanted.chunk_id in found or wanted.file_offset in taken:
            continue
        data = store.disk.pread(file, wanted.length, wanted.file_offset)
        if store.digest(RecordKind.CHUNK, data) == wanted.chunk_id:
            taken.add(wanted.file_offset)
            found[wanted.chunk_id] = TableChunk(
                wanted.file_offset, wanted.length, 0, wanted.chunk_id
            )
    return list(found.values())


def _candidates(store: Store, missing: Counter[RecordId]) -> Iterator[_Candidate]:
    with store.reading() as txn:
        for record_id, location in _locations(txn):
            if location.kind is not RecordKind.RECIPE:
                continue
            try:
                yield from _in_recipe(store, record_id, location, missing)
            except StoreError:
                continue  # a recipe that cannot be read is told by check


def _in_recipe(
    store: Store, record_id: RecordId, location: Location, missing: Counter[RecordId]
) -> Iterator[_Candidate]:
    file_offset = 0
    for page_id, length in decode_recipe(bytes(payload_of(store, record_id, location))):
        start = file_offset
        file_offset += length
        try:
            page = decode_extents(store.get(page_id, RecordKind.RECIPE_PAGE))
        except StoreError:
            continue
        for extent in page:
            if extent.chunk_id != HOLE and extent.chunk_id in missing:
                yield _Candidate(extent.chunk_id, start, extent.length)
            start += extent.length


def _add_chunks(
    store: Store,
    pack: int,
    file_bytes: int,
    known: list[TableChunk],
    found: list[TableChunk],
    missing: Counter[RecordId],
) -> None:
    """Give a pack rows for what was found in it, and a table that lists all it has."""
    table: list[TableChunk] = []
    for chunk in sorted([*known, *found], key=lambda chunk: chunk.file_offset):
        if not table or table[-1].file_offset + table[-1].length <= chunk.file_offset:
            table.append(chunk)
    table_id = store.put(RecordKind.CHUNK_TABLE, encode_chunk_table(pack, file_bytes, table))
    key = encode_pack_key(pack)
    with store.transaction() as txn:
        old = txn.get(Table.PACKS, key)
        row = decode_pack_row(old) if old else PackRow(PackKind.VERBATIM, True, file_bytes, 0)
        live_bytes = row.live_bytes
        for chunk in table:
            if chunk.chunk_id in missing:
                location = Location(
                    RecordKind.CHUNK,
                    Codec.RAW,
                    chunk.salt,
                    pack,
                    chunk.file_offset,
                    chunk.length,
                    chunk.length,
                )
                references = missing.pop(chunk.chunk_id)
                txn.put(Table.RECORDS, chunk.chunk_id, encode_location(location, references))
                live_bytes += chunk.length
        changed = dataclasses.replace(
            row, committed_bytes=file_bytes, live_bytes=live_bytes, chunk_table=table_id
        )
        txn.put(Table.PACKS, key, encode_pack_row(changed))
        txn.add_reference(table_id)
        if row.chunk_table is not None:
            txn.drop_reference(row.chunk_table)
