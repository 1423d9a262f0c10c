"""Turning a finished file into a verbatim pack. Knows files and the index, no names of users.

Source: docs/format.md, "Verbatim packs" and "Write order".
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from dedupfs.errors import UsageError
from dedupfs.format.keys import META_MAKING, encode_pack_key
from dedupfs.format.pack import CHUNK_BYTES_MAX, TableChunk
from dedupfs.model import Extent, PackKind, RecordId, RecordKind
from dedupfs.store.commit import lost_error
from dedupfs.store.db import Database, Table
from dedupfs.store.disk import Disk, File
from dedupfs.store.layout import Layout
from dedupfs.store.openpack import PACK_COUNTER, older_index
from dedupfs.store.packs import PackFiles
from dedupfs.store.pending import Pending
from dedupfs.store.reader import Reader
from dedupfs.store.transaction import Transaction


def check_chunks(chunks: Sequence[tuple[int, Extent]], file_bytes: int) -> None:
    """Check that chunks rise, do not overlap and lie in the file.

    Raises:
        UsageError: they do not.
    """
    stop = 0
    for file_offset, extent in chunks:
        start, stop = stop, file_offset + extent.length
        if file_offset < start or not 0 < extent.length <= CHUNK_BYTES_MAX or stop > file_bytes:
            raise UsageError(
                f"chunk of {extent.length} bytes at {file_offset} overlaps or leaves its file"
            )


def new_chunks(
    disk: Disk,
    pending: Pending,
    reader: Reader,
    record_row: Callable[[RecordId], bytes | None],
    source: File,
    chunks: Sequence[tuple[int, Extent]],
) -> list[TableChunk]:
    """Return the chunks whose ids are free; compare the bytes of the others.

    Raises:
        MissingRecordError: an id names other bytes.
    """
    fresh: dict[RecordId, TableChunk] = {}
    for file_offset, extent in chunks:
        identity, length = extent.chunk_id, extent.length
        row = pending.rows.get(identity) or record_row(identity)
        twin = fresh.get(identity)
        if row is None and twin is None:
            salt = pending.salts.get(identity, 0)
            fresh[identity] = TableChunk(file_offset, length, salt, identity)
            continue
        payload = disk.pread(source, length, file_offset)
        if row is not None:
            equal = reader.equal(row, RecordKind.CHUNK, payload)
            pending.found_bytes += length if equal else 0
        else:
            assert twin is not None
            equal = payload == disk.pread(source, twin.length, twin.file_offset)
        if not equal:
            raise lost_error([identity])
    return list(fresh.values())


def listed_chunks(
    fresh: Sequence[TableChunk],
    known: Sequence[tuple[int, Extent]],
    row_of: Callable[[RecordId], bytes],
) -> list[TableChunk]:
    """Return what a chunk table lists, rising: each chunk once, new and known ones."""
    listed = {chunk.chunk_id: chunk for chunk in fresh}
    for file_offset, extent in known:
        identity = extent.chunk_id
        if identity not in listed:
            salt = row_of(identity)[2]
            listed[identity] = TableChunk(file_offset, extent.length, salt, identity)
    return sorted(listed.values(), key=lambda chunk: chunk.file_offset)


def reserve_pack(db: Database, owner: bytes) -> int:
    """Take a pack number; until the pack has a row, ``owner`` is noted as making it."""
    with db.writing() as own:
        txn = Transaction(own)
        pack = txn.next_number(PACK_COUNTER)
        txn.put(Table.META, META_MAKING + encode_pack_key(pack), owner)
    return pack


def link_pack(
    layout: Layout, disk: Disk, files: PackFiles, file: File, pack: int, mode: int = 0o400
) -> Path:
    """Give a finished file its name as a verbatim pack, durably; return that name."""
    path = layout.pack(pack, PackKind.VERBATIM)
    files.make_directory(path)
    disk.chmod(file.path, mode)
    disk.fsync(file)
    if disk.link_count(path):
        raise older_index(path)
    disk.link(file.path, path)
    disk.fsync_dir(path.parent)
    return path
