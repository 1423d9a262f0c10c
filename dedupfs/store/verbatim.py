"""Turning a finished file into a verbatim pack. Knows files and the index, no names of users.

Source: docs/format.md, "Verbatim packs" and "Write order".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from dedupfs.errors import UsageError
from dedupfs.format.keys import META_MAKING, encode_pack_key
from dedupfs.format.pack import CHUNK_BYTES_MAX, TableChunk, encode_chunk_table
from dedupfs.model import Extent, PackKind, RecordId, RecordKind
from dedupfs.store.commit import lost_error
from dedupfs.store.db import Database, Table
from dedupfs.store.disk import Disk, File
from dedupfs.store.layout import Layout
from dedupfs.store.lookup import Lookup
from dedupfs.store.openpack import PACK_COUNTER, is_committed, older_index
from dedupfs.store.owner import Owner
from dedupfs.store.packs import PackFiles
from dedupfs.store.pending import Pending
from dedupfs.store.reader import Reader
from dedupfs.store.transaction import Transaction

Placed = tuple[int, Extent]
"""A chunk and its file_offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbatimMaker:
    """Makes verbatim packs. ``put``: ``Store.put``."""

    layout: Layout
    disk: Disk
    files: PackFiles
    db: Database
    pending: Pending
    lookup: Lookup
    reader: Reader
    owner: Owner
    put: Callable[[RecordKind, bytes], RecordId]

    def make(self, file: Path, chunks: Sequence[Placed], known: Sequence[Placed], mode: int) -> int:
        """See ``Store.put_verbatim``."""
        source = self.disk.open(file)
        file_bytes = self.disk.size(source)
        _check_chunks(chunks, file_bytes)
        _check_chunks(sorted([*chunks, *known], key=itemgetter(0)), file_bytes)
        fresh = self._new_chunks(source, chunks)
        listed = self._listed_chunks(fresh, known)
        self.owner.claim()
        pack = self._reserve_pack()
        path = self._link_pack(source, pack, mode)
        try:
            table = encode_chunk_table(pack, file_bytes, listed)
            table_id = self.put(RecordKind.CHUNK_TABLE, table)
        except BaseException:
            self.disk.unlink(path)
            raise
        self.pending.add_verbatim(pack, file_bytes, table_id, fresh)
        return pack

    def _new_chunks(self, source: File, chunks: Sequence[Placed]) -> list[TableChunk]:
        """Return the chunks whose ids are free; compare the bytes of the others.

        Raises:
            MissingRecordError: an id names other bytes.
        """
        fresh: dict[RecordId, TableChunk] = {}
        for file_offset, extent in chunks:
            identity, length = extent.chunk_id, extent.length
            row = self.lookup.find(identity)
            twin = fresh.get(identity)
            if row is None and twin is None:
                salt = self.pending.salts.get(identity, 0)
                fresh[identity] = TableChunk(file_offset, length, salt, identity)
                continue
            payload = self.disk.pread(source, length, file_offset)
            if row is not None:
                equal = self.reader.equal(row, RecordKind.CHUNK, payload)
                self.pending.found_bytes += length if equal else 0
            else:
                assert twin is not None
                equal = payload == self.disk.pread(source, twin.length, twin.file_offset)
            if not equal:
                raise lost_error([identity])
        return list(fresh.values())

    def _listed_chunks(
        self, fresh: Sequence[TableChunk], known: Sequence[Placed]
    ) -> list[TableChunk]:
        """Return what a chunk table lists, rising: each chunk once, new and known ones."""
        listed = {chunk.chunk_id: chunk for chunk in fresh}
        for file_offset, extent in known:
            identity = extent.chunk_id
            if identity not in listed:
                salt = self.lookup.row(identity)[2]
                listed[identity] = TableChunk(file_offset, extent.length, salt, identity)
        return sorted(listed.values(), key=lambda chunk: chunk.file_offset)

    def _reserve_pack(self) -> int:
        """Take a pack number; until the pack has a row, the owner is noted as making it.

        Not that of a record pack which was made in a transaction that a crash took back: a rebuild
        could not tell which of the two files the number means. gc removes that one.
        """
        with self.db.writing() as own:
            txn = Transaction(own)
            pack = txn.next_number(PACK_COUNTER)
            while self.disk.link_count(other := self.layout.pack(pack, PackKind.RECORDS)):
                if is_committed(other):
                    raise older_index(other)
                pack = txn.next_number(PACK_COUNTER)
            txn.put(Table.META, META_MAKING + encode_pack_key(pack), self.owner.name)
        return pack

    def _link_pack(self, file: File, pack: int, mode: int) -> Path:
        """Give a finished file its name as a verbatim pack, durably; return that name."""
        path = self.layout.pack(pack, PackKind.VERBATIM)
        self.files.make_directory(path)
        self.disk.chmod(file.path, mode)
        self.disk.fsync(file)
        if self.disk.link_count(path):
            raise older_index(path)
        self.disk.link(file.path, path)
        self.disk.fsync_dir(path.parent)
        return path


def _check_chunks(chunks: Sequence[Placed], file_bytes: int) -> None:
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
