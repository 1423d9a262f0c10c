"""Pack structures: what is encoded decodes to itself, and every byte counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedupfs.errors import CorruptError, FormatVersionError, TornRecordError
from dedupfs.format import keys, pack
from dedupfs.model import Codec, Location, PackKind, RecordId, RecordKind

U8 = st.integers(0, 255)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
IDS = st.binary(min_size=16, max_size=16).map(RecordId)
KINDS = st.sampled_from([kind for kind in RecordKind if kind != RecordKind.FREE])
CODECS = st.sampled_from(list(Codec))
HEADERS = st.builds(pack.RecordHeader, KINDS, CODECS, U8, U32, U32, IDS)
LOCATIONS = st.builds(Location, KINDS, CODECS, U8, U32, U64, U32, U32)


def encode(header: pack.RecordHeader, seed: int) -> bytes:
    return pack.encode_header(
        header.kind,
        header.codec,
        header.salt,
        header.stored_bytes,
        header.logical_bytes,
        header.record_id,
        seed,
    )


def test_sizes_are_those_of_the_documentation() -> None:
    assert pack.PACK_HEADER_BYTES == 16
    assert pack.HEADER_BYTES == 36
    assert pack.TRAILER_BYTES == 20
    assert pack.TABLE_ENTRY_BYTES == 36
    assert pack.CHUNK_TABLE_HEADER_BYTES == 16
    assert pack.CHUNK_TABLE_ENTRY_BYTES == 32
    assert keys.RECORD_ROW_BYTES == 28
    assert keys.PACK_ROW_BYTES == 36
    assert keys.FREE_ROW_BYTES == 9


def test_the_worked_example_of_the_documentation() -> None:
    identity = pack.record_id(7, RecordKind.CHUNK, b"hello")
    assert identity.hex() == "e215140a55edfef89d8acec229db1191"
    header = pack.encode_header(
        RecordKind.CHUNK, Codec.RAW, 0, 5, 5, identity, pack.check_seed(7, 1, 16)
    )
    assert header.hex(" ", 4) == (
        "44465231 01000000 05000000 05000000 e215140a 55edfef8 9d8acec2 29db1191 8e9486fd"
    )
    assert pack.encode_pack_header(1, 7).hex(" ", 4) == "4446504b 01000000 01000000 9f7594b8"


@given(HEADERS, U64, st.binary(max_size=20), st.binary(max_size=20))
def test_a_record_header_comes_back(
    header: pack.RecordHeader, seed: int, before: bytes, behind: bytes
) -> None:
    buffer = before + encode(header, seed) + behind
    assert pack.decode_header(buffer, len(before), seed) == header


@given(U64, U64)
def test_a_free_header_comes_back(free_bytes: int, seed: int) -> None:
    buffer = pack.encode_free_header(free_bytes, seed)
    assert pack.decode_header(buffer, 0, seed) == pack.FreeHeader(free_bytes)


@given(HEADERS, U32, U32, st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_a_header_is_bound_to_its_place(
    header: pack.RecordHeader, number: int, other: int, offset: int, other_offset: int
) -> None:
    seed = pack.check_seed(7, number, offset)
    elsewhere = pack.check_seed(7, other, other_offset)
    if seed != elsewhere:
        with pytest.raises(CorruptError):
            pack.decode_header(encode(header, seed), 0, elsewhere)


@pytest.mark.parametrize("length", range(pack.HEADER_BYTES))
def test_a_short_header_is_torn_not_corrupt(length: int) -> None:
    with pytest.raises(TornRecordError):
        pack.decode_header(pack.encode_free_header(1, 0)[:length], 0, 0)


def test_an_unknown_kind_or_codec_is_a_newer_version() -> None:
    for place, value in ((4, 99), (5, 99), (7, 1)):
        fields = bytearray(pack.encode_free_header(1, 0)[:32])
        fields[place] = value
        with pytest.raises(FormatVersionError):
            pack.decode_header(pack._seal(bytes(fields), 0), 0, 0)


def test_a_pack_header_names_its_pack_and_version() -> None:
    header = pack.encode_pack_header(5, 7)
    pack.decode_pack_header(header, 5, 7)
    with pytest.raises(CorruptError, match="holds pack 5"):
        pack.decode_pack_header(header, 6, 7)
    with pytest.raises(CorruptError):
        pack.decode_pack_header(header, 5, 8)
    with pytest.raises(TornRecordError):
        pack.decode_pack_header(header[:15], 5, 7)
    newer = pack._seal(header[:4] + b"\x02\0" + header[6:12], pack.check_seed(7, 5, 0))
    with pytest.raises(FormatVersionError):
        pack.decode_pack_header(newer, 5, 7)


@given(st.lists(st.tuples(U64, HEADERS)))
def test_a_pack_table_comes_back(records: list[tuple[int, pack.RecordHeader]]) -> None:
    payload = b"".join(
        pack.encode_table_entry(
            offset,
            one.kind,
            one.codec,
            one.salt,
            one.stored_bytes,
            one.logical_bytes,
            one.record_id,
        )
        for offset, one in records
    )
    assert pack.decode_pack_table(payload) == [pack.TableEntry(*record) for record in records]


@given(U32, U64, U64)
def test_a_trailer_comes_back(count: int, offset: int, seed: int) -> None:
    buffer = pack.encode_trailer(count, offset, seed)
    assert pack.decode_trailer(buffer, seed) == pack.Trailer(count, offset)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 99), U8, IDS)), U32)
def test_a_chunk_table_comes_back(parts: list[tuple[int, int, int, RecordId]], number: int) -> None:
    chunks, stop = [], 0
    for gap, length, salt, chunk_id in parts:
        chunks.append(pack.TableChunk(stop + gap, length, salt, chunk_id))
        stop += gap + length
    payload = pack.encode_chunk_table(number, stop, chunks)
    assert pack.decode_chunk_table(payload) == pack.ChunkTable(number, stop, tuple(chunks))


def test_a_chunk_table_with_overlapping_chunks_is_corrupt() -> None:
    one = RecordId(bytes(16))
    for chunks in ([(0, 10), (9, 1)], [(5, 6)], [(0, 0)]):
        table = [pack.TableChunk(start, length, 0, one) for start, length in chunks]
        with pytest.raises(CorruptError):
            pack.decode_chunk_table(pack.encode_chunk_table(1, 10, table))


@given(LOCATIONS, U32, U32)
def test_a_record_row_comes_back(location: Location, references: int, other: int) -> None:
    row = keys.encode_location(location, references)
    assert keys.decode_location(row) == (location, references)
    assert keys.decode_references(row) == references
    assert keys.decode_location(keys.with_references(row, other)) == (location, other)


@given(
    st.builds(
        keys.PackRow,
        st.sampled_from(list(PackKind)),
        st.booleans(),
        U64,
        U64,
        st.none() | IDS.filter(any),
    ),
    U32,
)
def test_a_pack_row_comes_back(row: keys.PackRow, number: int) -> None:
    assert keys.decode_pack_row(keys.encode_pack_row(row)) == row
    assert keys.decode_pack_key(keys.encode_pack_key(number)) == number


@given(U32, st.integers(0, 2**63), st.integers(1, 2**62), st.booleans(), U64)
def test_free_ranges_counters_and_pins_come_back(
    number: int, start: int, length: int, punched: bool, count: int
) -> None:
    key, row = keys.pack_free_key(number, start), keys.pack_free_row(length, punched)
    assert keys.decode_free(key, row) == (number, start, start + length, punched)
    assert keys.decode_count(keys.encode_count(count)) == count
    assert keys.split_pin_key(b"v\0\0\0\1" + bytes(16)) == (b"v\0\0\0\1", bytes(16))


@given(st.lists(st.tuples(U32, U64), min_size=2, max_size=2))
def test_keys_sort_as_their_numbers_do(places: list[tuple[int, int]]) -> None:
    one, two = places
    assert (one < two) == (keys.pack_free_key(*one) < keys.pack_free_key(*two))
    assert (one[0] < two[0]) == (keys.encode_pack_key(one[0]) < keys.encode_pack_key(two[0]))
