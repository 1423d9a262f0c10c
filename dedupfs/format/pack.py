"""Pack files <-> values: pack header, record header, free range, pack table, trailer, chunk table.

Pure: knows no files and no index. Source: docs/format.md, "Packs". Every checksum is seeded with
the store's secret seed, the pack's number and the offset, so that bytes which only look like a
header (a pack stored as a file inside the store, for instance) are never taken for one.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash

from dedupfs.errors import CorruptError, FormatVersionError, TornRecordError
from dedupfs.model import Codec, RecordId, RecordKind

Buffer = bytes | bytearray | memoryview

PACK_VERSION = 1
PACK_MAGIC = b"DFPK"
RECORD_MAGIC = b"DFR1"
TRAILER_MAGIC = b"DFPT"

_CHECK = struct.Struct("<I")
_PACK = struct.Struct("<4sHHI")  # magic, version, zero, pack number
_RECORD = struct.Struct("<4sBBBBII16s")  # magic, kind, codec, salt, zero, stored, logical, id
_TRAILER = struct.Struct("<4sIQ")  # magic, count of records, offset of the table's header
_TABLE_ENTRY = struct.Struct("<QBBBxII16s")  # offset, kind, codec, salt, stored, logical, id
_CHUNK_TABLE = struct.Struct("<IIQ")  # pack number, count of chunks, bytes of the file
_CHUNK = struct.Struct("<QIB3x16s")  # file offset, length, salt, id

PACK_HEADER_BYTES = _PACK.size + _CHECK.size
HEADER_BYTES = _RECORD.size + _CHECK.size
TRAILER_BYTES = _TRAILER.size + _CHECK.size
TABLE_ENTRY_BYTES = _TABLE_ENTRY.size
CHUNK_TABLE_HEADER_BYTES = _CHUNK_TABLE.size
CHUNK_TABLE_ENTRY_BYTES = _CHUNK.size

CHUNK_BYTES_MAX = 1 << 24
RECORD_BYTES_MAX = (1 << 32) - 1
SALT_MAX = 255

_MASK64 = (1 << 64) - 1
_NO_ID = bytes(16)
_KINDS = {int(kind): kind for kind in RecordKind}
_CODECS = {int(codec): codec for codec in Codec}
_xxh3_64 = xxhash.xxh3_64_intdigest
_xxh3_128 = xxhash.xxh3_128_digest


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What stands in front of a payload in a record pack; lengths in bytes, header excluded."""

    kind: RecordKind
    codec: Codec
    salt: int
    stored_bytes: int
    logical_bytes: int
    record_id: RecordId


@dataclass(frozen=True, slots=True)
class FreeHeader:
    """A range that holds nothing any more: ``free_bytes`` follow the header."""

    free_bytes: int


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One record of a sealed pack; ``header_offset`` is where its header starts."""

    header_offset: int
    header: RecordHeader


@dataclass(frozen=True, slots=True)
class Trailer:
    """The end of a sealed pack: where its table's record header starts, and how many it lists."""

    count: int
    table_offset: int


@dataclass(frozen=True, slots=True)
class TableChunk:
    """One chunk of a verbatim pack."""

    file_offset: int
    length: int
    salt: int
    chunk_id: RecordId


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Payload of a CHUNK_TABLE record: which chunks a verbatim pack holds."""

    pack: int
    file_bytes: int
    chunks: tuple[TableChunk, ...]


def record_id(hash_seed: int, kind: RecordKind, payload: Buffer, salt: int = 0) -> RecordId:
    """Return the id of ``payload``: its XXH3-128, seeded by store, kind and salt."""
    return RecordId(_xxh3_128(payload, hash_seed ^ (kind << 56) ^ (salt << 48)))


def check_seed(hash_seed: int, pack: int, pack_offset: int) -> int:
    """Return the seed of the checksum that stands at ``pack_offset`` of ``pack``."""
    return (hash_seed + pack * 0x9E3779B97F4A7C15 + pack_offset) & _MASK64


def _seal(fields: bytes, seed: int) -> bytes:
    return fields + _CHECK.pack(_xxh3_64(fields, seed) & 0xFFFFFFFF)


def _unseal(buffer: Buffer, offset: int, fields: struct.Struct, seed: int, what: str) -> None:
    """Check the checksum behind ``fields`` at ``offset``; there are enough bytes."""
    stop = offset + fields.size
    (expected,) = _CHECK.unpack_from(buffer, stop)
    actual = _xxh3_64(memoryview(buffer)[offset:stop], seed) & 0xFFFFFFFF
    if actual != expected:
        raise CorruptError(f"bad {what}: checksum {expected:08x} expected, {actual:08x} found")


def encode_pack_header(pack: int, hash_seed: int) -> bytes:
    """Encode the first ``PACK_HEADER_BYTES`` of a record pack."""
    return _seal(_PACK.pack(PACK_MAGIC, PACK_VERSION, 0, pack), check_seed(hash_seed, pack, 0))


def decode_pack_header(buffer: Buffer, pack: int, hash_seed: int) -> None:
    """Check that ``buffer`` starts with the header of pack number ``pack``.

    Raises:
        TornRecordError: the buffer is shorter than a pack header.
        CorruptError: the magic, the number or the checksum does not match.
        FormatVersionError: a newer dedupfs wrote this pack.
    """
    if len(buffer) < PACK_HEADER_BYTES:
        raise TornRecordError(f"pack {pack} ends inside its header")
    magic, version, _zero, number = _PACK.unpack_from(buffer)
    if magic != PACK_MAGIC:
        raise CorruptError(f"pack {pack} does not start with {PACK_MAGIC!r}")
    _unseal(buffer, 0, _PACK, check_seed(hash_seed, number, 0), "pack header")
    if number != pack:
        raise CorruptError(f"the file of pack {pack} holds pack {number}")
    if version > PACK_VERSION:  # only now: a version read from a corrupt header means nothing
        raise FormatVersionError(f"pack {pack} has version {version}; we read {PACK_VERSION}")


def encode_header(
    kind: RecordKind,
    codec: Codec,
    salt: int,
    stored_bytes: int,
    logical_bytes: int,
    identity: bytes,
    seed: int,
) -> bytes:
    """Encode a record header; ``seed`` is ``check_seed`` of the place it is written to."""
    return _seal(
        _RECORD.pack(RECORD_MAGIC, kind, codec, salt, 0, stored_bytes, logical_bytes, identity),
        seed,
    )


def encode_free_header(free_bytes: int, seed: int) -> bytes:
    """Encode the header of a free range of which ``free_bytes`` follow the header."""
    return _seal(
        _RECORD.pack(
            RECORD_MAGIC,
            RecordKind.FREE,
            Codec.RAW,
            0,
            0,
            free_bytes & 0xFFFFFFFF,
            free_bytes >> 32,
            _NO_ID,
        ),
        seed,
    )


def decode_header(buffer: Buffer, offset: int, seed: int) -> RecordHeader | FreeHeader:
    """Decode the record header that starts ``offset`` bytes into ``buffer``.

    ``stored_bytes`` (or ``free_bytes``) of the result counts what follows the header, so the next
    record starts at ``offset + HEADER_BYTES + stored_bytes``.

    Raises:
        TornRecordError: fewer than HEADER_BYTES are left; a crash cut the append short.
        CorruptError: the magic or the checksum does not match, or a field has no meaning.
    """
    if len(buffer) - offset < HEADER_BYTES:
        raise TornRecordError(f"{len(buffer) - offset} bytes are left of a record header")
    magic, kind, codec, salt, zero, stored, logical, identity = _RECORD.unpack_from(buffer, offset)
    if magic != RECORD_MAGIC:
        raise CorruptError(f"bad record header: {RECORD_MAGIC!r} expected, {magic!r} found")
    _unseal(buffer, offset, _RECORD, seed, "record header")
    if kind not in _KINDS or codec not in _CODECS or zero:
        raise FormatVersionError(f"record of {kind=} {codec=} {zero=}: written by a newer dedupfs")
    if kind == RecordKind.FREE:
        return FreeHeader(stored | logical << 32)
    return RecordHeader(_KINDS[kind], _CODECS[codec], salt, stored, logical, RecordId(identity))


encode_table_entry = _TABLE_ENTRY.pack
"""header_offset, kind, codec, salt, stored_bytes, logical_bytes, id -> entry of a PACK_TABLE."""


def decode_pack_table(payload: Buffer) -> list[TableEntry]:
    """Decode a PACK_TABLE payload: the records of a sealed pack in order of offset.

    Raises:
        CorruptError: not a whole number of entries, or an entry of unknown kind or codec.
    """
    if len(payload) % TABLE_ENTRY_BYTES:
        raise CorruptError(f"{len(payload)} bytes are no whole number of pack table entries")
    entries = []
    for offset, kind, codec, salt, stored, logical, identity in _TABLE_ENTRY.iter_unpack(payload):
        if kind not in _KINDS or codec not in _CODECS:
            raise CorruptError(f"pack table entry of unknown {kind=} {codec=}")
        header = RecordHeader(
            _KINDS[kind], _CODECS[codec], salt, stored, logical, RecordId(identity)
        )
        entries.append(TableEntry(offset, header))
    return entries


def encode_trailer(count: int, table_offset: int, seed: int) -> bytes:
    """Encode the last ``TRAILER_BYTES`` of a sealed pack."""
    return _seal(_TRAILER.pack(TRAILER_MAGIC, count, table_offset), seed)


def decode_trailer(buffer: Buffer, seed: int) -> Trailer:
    """Decode the trailer that ``buffer`` consists of.

    Raises:
        TornRecordError: the buffer is shorter than a trailer.
        CorruptError: the magic or the checksum does not match: the pack is not sealed.
    """
    if len(buffer) < TRAILER_BYTES:
        raise TornRecordError(f"{len(buffer)} bytes are left of a trailer")
    magic, count, table_offset = _TRAILER.unpack_from(buffer)
    if magic != TRAILER_MAGIC:
        raise CorruptError(f"bad trailer: {TRAILER_MAGIC!r} expected, {magic!r} found")
    _unseal(buffer, 0, _TRAILER, seed, "trailer")
    return Trailer(count, table_offset)


def encode_chunk_table(pack: int, file_bytes: int, chunks: Sequence[TableChunk]) -> bytes:
    """Encode a CHUNK_TABLE payload; ``chunks`` rise by file offset."""
    return _CHUNK_TABLE.pack(pack, len(chunks), file_bytes) + b"".join(_pack_chunks(chunks))


def _pack_chunks(chunks: Iterable[TableChunk]) -> Iterable[bytes]:
    for chunk in chunks:
        yield _CHUNK.pack(chunk.file_offset, chunk.length, chunk.salt, chunk.chunk_id)


def decode_chunk_table(payload: Buffer) -> ChunkTable:
    """Decode a CHUNK_TABLE payload.

    Raises:
        CorruptError: the length contradicts the count, or chunks overlap or leave the file.
    """
    if len(payload) < CHUNK_TABLE_HEADER_BYTES:
        raise CorruptError(f"{len(payload)} bytes are no chunk table")
    pack, count, file_bytes = _CHUNK_TABLE.unpack_from(payload)
    if len(payload) != CHUNK_TABLE_HEADER_BYTES + count * CHUNK_TABLE_ENTRY_BYTES:
        raise CorruptError(f"{len(payload)} bytes are no chunk table of {count} chunks")
    chunks = []
    stop = 0
    body = memoryview(payload)[CHUNK_TABLE_HEADER_BYTES:]
    for file_offset, length, salt, chunk_id in _CHUNK.iter_unpack(body):
        if file_offset < stop or not length or file_offset + length > file_bytes:
            raise CorruptError(f"chunk table of pack {pack}: bad chunk at {file_offset=} {length=}")
        stop = file_offset + length
        chunks.append(TableChunk(file_offset, length, salt, RecordId(chunk_id)))
    return ChunkTable(pack, file_bytes, tuple(chunks))
