"""Keys and rows of the store's own index tables. Pure; source: docs/format.md, "Index".

Knows nothing of LMDB, nor of the rows that other layers keep in their own tables. Integers in
keys are big endian, so that keys sort as numbers do; in rows they are little endian.
"""

import struct
from dataclasses import dataclass

from dedupfs.errors import CorruptError, StoreError
from dedupfs.model import ID_BYTES, Codec, Location, PackKind, RecordId, RecordKind

_RECORD = struct.Struct("<BBBxIQIII")  # kind, codec, salt, pack, offset, stored, logical, refs
_PACK = struct.Struct("<BBxxQQ16s")  # kind, sealed, committed bytes, live bytes, chunk table id
_FREE = struct.Struct("<QB")  # length, punched
_FREE_KEY = struct.Struct(">IQ")  # pack, offset
_PACK_KEY = struct.Struct(">I")
_COUNT = struct.Struct("<Q")
_REFERENCES = struct.Struct("<I")

RECORD_ROW_BYTES = _RECORD.size
PACK_ROW_BYTES = _PACK.size
FREE_ROW_BYTES = _FREE.size
REFERENCES_OFFSET = RECORD_ROW_BYTES - _REFERENCES.size
REFERENCES_MAX = (1 << 32) - 1
PACK_KEY_MAX = (1 << 32) - 1

META_COUNTER = b"counter:"
META_CONFIG = b"config"
META_OPEN = b"open:"
META_MAKING = b"making:"
META_PUNCH = b"punch:"
META_EMPTY = b"empty:"
META_MOVED = b"moved:"

_KINDS = {int(kind): kind for kind in RecordKind}
_CODECS = {int(codec): codec for codec in Codec}
_PACK_KINDS = {int(kind): kind for kind in PackKind}
_NO_TABLE = bytes(ID_BYTES)

pack_record_row = _RECORD.pack
"""kind, codec, salt, pack, pack_offset, stored_bytes, logical_bytes, references -> row."""

_unpack_record = _RECORD.unpack

pack_free_key = _FREE_KEY.pack
"""pack, pack_offset -> key of FREE."""

pack_free_row = _FREE.pack
"""length in bytes, punched (0 or 1) -> row of FREE."""


@dataclass(frozen=True, slots=True)
class PackRow:
    """What the index knows of one pack; sizes in bytes.

    ``committed_bytes``: how much of the file is valid; an open pack may be longer, which is then
    an append under way or what a crash left. ``live_bytes``: what rows of RECORDS lie in it,
    headers included. ``chunk_table``: of a verbatim pack, which holds one reference to it.
    """

    kind: PackKind
    sealed: bool
    committed_bytes: int
    live_bytes: int
    chunk_table: RecordId | None = None


def unpack_record_row(row: bytes) -> tuple[int, int, int, int, int, int, int, int]:
    """Return what ``pack_record_row`` was given; kind and codec may be unknown ones.

    Raises:
        CorruptError: the row has another length.
    """
    try:
        return _unpack_record(row)
    except struct.error:
        raise CorruptError(f"an index row of {len(row)} bytes, not {RECORD_ROW_BYTES}") from None


def encode_location(location: Location, references: int = 0) -> bytes:
    """Encode a row of RECORDS."""
    return _RECORD.pack(
        location.kind,
        location.codec,
        location.salt,
        location.pack,
        location.pack_offset,
        location.stored_bytes,
        location.logical_bytes,
        references,
    )


def decode_location(row: bytes) -> tuple[Location, int]:
    """Decode a row of RECORDS into where the record is and how many references it has.

    Raises:
        CorruptError: the row has another length or an unknown kind or codec.
    """
    if len(row) != RECORD_ROW_BYTES:
        raise CorruptError(f"an index row of {len(row)} bytes, not {RECORD_ROW_BYTES}")
    kind, codec, salt, pack, offset, stored, logical, references = _RECORD.unpack(row)
    if kind not in _KINDS or codec not in _CODECS:
        raise CorruptError(f"an index row of unknown {kind=} {codec=}")
    location = Location(_KINDS[kind], _CODECS[codec], salt, pack, offset, stored, logical)
    return location, references


def decode_references(row: bytes) -> int:
    """Return the reference count of a row of RECORDS.

    Raises:
        CorruptError: the row has another length.
    """
    if len(row) != RECORD_ROW_BYTES:
        raise CorruptError(f"an index row of {len(row)} bytes, not {RECORD_ROW_BYTES}")
    (references,) = _REFERENCES.unpack_from(row, REFERENCES_OFFSET)
    return int(references)


def with_references(row: bytes, references: int) -> bytes:
    """Return a row of RECORDS with another reference count."""
    return row[:REFERENCES_OFFSET] + _REFERENCES.pack(references)


def encode_pack_row(row: PackRow) -> bytes:
    """Encode a row of PACKS."""
    return _PACK.pack(
        row.kind,
        row.sealed,
        row.committed_bytes,
        row.live_bytes,
        row.chunk_table or _NO_TABLE,
    )


def decode_pack_row(row: bytes) -> PackRow:
    """Decode a row of PACKS.

    Raises:
        CorruptError: the row has another length, an unknown kind or flag.
    """
    if len(row) != PACK_ROW_BYTES:
        raise CorruptError(f"a pack row of {len(row)} bytes, not {PACK_ROW_BYTES}")
    kind, sealed, committed, live, table = _PACK.unpack(row)
    if kind not in _PACK_KINDS or sealed > 1:
        raise CorruptError(f"a pack row of unknown {kind=} {sealed=}")
    chunk_table = None if table == _NO_TABLE else RecordId(table)
    return PackRow(_PACK_KINDS[kind], bool(sealed), committed, live, chunk_table)


def encode_pack_key(pack: int) -> bytes:
    """Encode a key of PACKS.

    Raises:
        StoreError: there is no such number.
    """
    if not 0 <= pack <= PACK_KEY_MAX:
        raise StoreError(f"{pack} is no pack number: all were given, or the index lies")
    return _PACK_KEY.pack(pack)


def decode_pack_key(key: bytes) -> int:
    """Decode a key of PACKS.

    Raises:
        CorruptError: the key has another length.
    """
    if len(key) != _PACK_KEY.size:
        raise CorruptError(f"a pack key of {len(key)} bytes")
    return int(_PACK_KEY.unpack(key)[0])


def decode_free(key: bytes, row: bytes) -> tuple[int, int, int, bool]:
    """Decode a row of FREE into pack, start, stop and whether it was punched.

    Raises:
        CorruptError: key or row has another length, or the range is empty.
    """
    if len(key) != _FREE_KEY.size or len(row) != FREE_ROW_BYTES:
        raise CorruptError(f"a free range of {len(key)} + {len(row)} bytes")
    pack, start = _FREE_KEY.unpack(key)
    length, punched = _FREE.unpack(row)
    if not length:
        raise CorruptError(f"an empty free range in pack {pack} at {start}")
    return pack, start, start + length, bool(punched)


def encode_count(count: int) -> bytes:
    """Encode a counter of META or the count of a row of PINS."""
    return _COUNT.pack(count)


def decode_count(row: bytes) -> int:
    """Decode a counter of META or the count of a row of PINS.

    Raises:
        CorruptError: the row has another length.
    """
    if len(row) != _COUNT.size:
        raise CorruptError(f"a counter of {len(row)} bytes")
    return int(_COUNT.unpack(row)[0])


def split_pin_key(key: bytes) -> tuple[bytes, RecordId]:
    """Split a key of PINS into owner and record id.

    Raises:
        CorruptError: the key is too short.
    """
    if len(key) <= ID_BYTES:
        raise CorruptError(f"a pin key of {len(key)} bytes")
    return key[:-ID_BYTES], RecordId(key[-ID_BYTES:])
