"""Verbatim packs whose chunk table was lost: the chunks that files still want are found in them.

A verbatim pack is one file as it was, so a chunk lies in it where a recipe of that file says. Each
candidate is compared with its id; what is found gets a new chunk table. For reindex.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dedupfs.errors import StoreError
from dedupfs.format.keys import (
    PackRow,
    decode_location,
    encode_location,
    encode_pack_key,
    encode_pack_row,
)
from dedupfs.format.pack import TableChunk, encode_chunk_table
from dedupfs.format.tree import decode_extents, decode_recipe
from dedupfs.model import HOLE, Codec, Location, PackKind, RecordId, RecordKind
from dedupfs.store import Store, Table
from dedupfs.store.disk import File
from dedupfs.store.inventory import open_pack, payload_of


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Where a lost chunk would lie in the file that it was stored with."""

    chunk_id: RecordId
    file_offset: int
    length: int


def salvage_chunks(store: Store, packs: list[int], missing: Counter[RecordId]) -> list[int]:
    """Bring back missing chunks from packs without a chunk table; return the packs that had some.

    ``missing``: how often a record is referred to that no row describes; what was found is taken
    out of it.
    """
    helped = []
    for pack in packs if missing else ():
        try:
            file = open_pack(store, pack, PackKind.VERBATIM)
        except StoreError:
            continue
        try:
            found = _find(store, file, missing)
            if found:
                _add_pack(store, pack, store.disk.size(file), found, missing)
                helped.append(pack)
        finally:
            file.close()
    return helped


def _find(store: Store, file: File, missing: Counter[RecordId]) -> list[TableChunk]:
    found: dict[int, TableChunk] = {}
    ids = set()
    for wanted in _candidates(store, missing):
        if wanted.chunk_id in ids or wanted.file_offset in found:
            continue
        data = store.disk.pread(file, wanted.length, wanted.file_offset)
        if store.digest(RecordKind.CHUNK, data) == wanted.chunk_id:
            ids.add(wanted.chunk_id)
            found[wanted.file_offset] = TableChunk(
                wanted.file_offset, wanted.length, 0, wanted.chunk_id
            )
    chunks: list[TableChunk] = []
    for _, chunk in sorted(found.items()):
        if not chunks or chunks[-1].file_offset + chunks[-1].length <= chunk.file_offset:
            chunks.append(chunk)
    return chunks


def _candidates(store: Store, missing: Counter[RecordId]) -> Iterator[_Candidate]:
    with store.reading() as txn:
        for key, row in txn.scan(Table.RECORDS):
            location, _count = decode_location(row)
            if location.kind is not RecordKind.RECIPE:
                continue
            try:
                yield from _in_recipe(store, RecordId(key), location, missing)
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


def _add_pack(
    store: Store,
    pack: int,
    file_bytes: int,
    chunks: list[TableChunk],
    missing: Counter[RecordId],
) -> None:
    table = encode_chunk_table(pack, file_bytes, chunks)
    table_id = store.put(RecordKind.CHUNK_TABLE, table)
    with store.transaction() as txn:
        for chunk in chunks:
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
        live_bytes = sum(chunk.length for chunk in chunks)
        row = PackRow(PackKind.VERBATIM, True, file_bytes, live_bytes, table_id)
        txn.put(Table.PACKS, encode_pack_key(pack), encode_pack_row(row))
        txn.add_reference(table_id)
