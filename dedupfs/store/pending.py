"""Records that this process has appended but not yet committed. Knows no disk and no index."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dedupfs.format.keys import pack_record_row, unpack_record_row
from dedupfs.format.pack import HEADER_BYTES, TableChunk
from dedupfs.model import Codec, RecordId, RecordKind

_PLACE = slice(4, 16)  # pack and offset inside a row of RECORDS (format/keys.py)


def place_of(row: bytes) -> bytes:
    """Return the part of a row of RECORDS that says where the record lies."""
    return row[_PLACE]


@dataclass(slots=True)
class VerbatimPack:
    """A verbatim pack whose row is not committed yet."""

    pack: int
    file_bytes: int
    chunk_table: RecordId
    chunk_ids: list[RecordId]


@dataclass(slots=True)
class Pending:
    """What the next transaction will insert.

    ``rows``: id -> row of RECORDS with 0 references. ``references``: of the records that have
    any. ``matched``: id -> place of a committed record that ``put`` found equal; the transaction
    refuses when another record has taken its place since. ``waste``: (pack, start, stop) of
    ranges that were written for nothing and become free space. ``salts``: of ids given out for
    chunks that will come in a verbatim pack, where it is not 0; it outlives transactions, as other
    files' may come between the first chunk of a file and its last.
    """

    rows: dict[RecordId, bytes] = field(default_factory=dict)
    references: dict[RecordId, list[RecordId]] = field(default_factory=dict)
    matched: dict[RecordId, bytes] = field(default_factory=dict)
    verbatim: dict[int, VerbatimPack] = field(default_factory=dict)
    waste: list[tuple[int, int, int]] = field(default_factory=list)
    salts: dict[RecordId, int] = field(default_factory=dict)
    found_bytes: int = 0
    """Logical bytes that were found equal to a record's, since the store was opened."""
    inserted_bytes: int = 0
    """Stored bytes of records that were committed, since the store was opened."""

    def clear(self) -> None:
        """Forget all records: they are committed, or given up."""
        self.rows.clear()
        self.references.clear()
        self.matched.clear()
        self.verbatim.clear()
        self.waste.clear()

    def range_of(self, row: bytes) -> tuple[int, int, int]:
        """Return (pack, start, stop) of what a pending row takes, its header included."""
        _kind, _codec, _salt, pack, pack_offset, stored_bytes, _logical, _refs = unpack_record_row(
            row
        )
        header_bytes = 0 if pack in self.verbatim else HEADER_BYTES
        return pack, pack_offset - header_bytes, pack_offset + stored_bytes

    @property
    def stored_bytes(self) -> int:
        """What all pending records take in packs, headers included."""
        return sum(stop - start for _, start, stop in map(self.range_of, self.rows.values()))

    def add_verbatim(
        self, pack: int, file_bytes: int, table_id: RecordId, chunks: Sequence[TableChunk]
    ) -> None:
        """Take a verbatim pack with the chunks of it that are new."""
        for chunk in chunks:
            self.rows[chunk.chunk_id] = pack_record_row(
                RecordKind.CHUNK,
                Codec.RAW,
                chunk.salt,
                pack,
                chunk.file_offset,
                chunk.length,
                chunk.length,
                0,
            )
        ids = [chunk.chunk_id for chunk in chunks]
        self.verbatim[pack] = VerbatimPack(pack, file_bytes, table_id, ids)

    def gaps_of(self, verbatim: VerbatimPack) -> Iterator[tuple[int, int]]:
        """Yield the ranges of a verbatim pack that none of its chunks covers.

        They are holes already, or chunks that turned out to be in the store elsewhere.
        """
        position = 0
        for start, stop in sorted(
            self.range_of(self.rows[chunk_id])[1:] for chunk_id in verbatim.chunk_ids
        ):
            if position < start:
                yield position, start
            position = stop
        if position < verbatim.file_bytes:
            yield position, verbatim.file_bytes

    def referring_to(self, lost: Iterable[RecordId]) -> set[RecordId]:
        """Return ``lost`` and every pending record that refers to it, however indirectly.

        A verbatim pack is given up as a whole, so one lost chunk loses the rest of its chunks.
        """
        found = set(lost)
        growing = True
        while growing:
            before = len(found)
            for verbatim in self.verbatim.values():
                members = [*verbatim.chunk_ids, verbatim.chunk_table]
                if not found.isdisjoint(members):
                    found.update(members)
            for record_id, references in self.references.items():
                if record_id not in found and not found.isdisjoint(references):
                    found.add(record_id)
            growing = len(found) > before
        return found

    def drop(self, record_ids: set[RecordId]) -> list[tuple[int, int, int]]:
        """Forget these records; return the ranges of those that lie in record packs.

        Verbatim packs of which a chunk is dropped are forgotten; their files are the caller's.
        """
        ranges = []
        for record_id in record_ids:
            self.matched.pop(record_id, None)
            row = self.rows.pop(record_id, None)
            self.references.pop(record_id, None)
            if row is not None:
                place = self.range_of(row)
                if place[0] not in self.verbatim:
                    ranges.append(place)
        for pack, verbatim in list(self.verbatim.items()):
            if verbatim.chunk_table in record_ids:
                del self.verbatim[pack]
        return ranges

    def drop_pack(self, pack: int) -> None:
        """Forget everything that lies in a pack, because the pack is gone."""
        for record_id, row in list(self.rows.items()):
            if self.range_of(row)[0] == pack:
                del self.rows[record_id]
                self.references.pop(record_id, None)
        self.waste = [place for place in self.waste if place[0] != pack]
