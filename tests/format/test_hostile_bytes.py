"""Any bytes at all decode to a value or a StoreError; one flipped bit of a header is noticed.

Goal: a damaged or crafted store never ends in anything but a StoreError that says what is wrong.
Method: every decoder gets random bytes, and real encodings with bytes changed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format import keys, pack, tree
from dedupfs.model import (
    Codec,
    Extent,
    RecordId,
    RecordKind,
    SnapshotInfo,
    Tree,
    TreeEntry,
    TreePage,
    ViewRoot,
)
from dedupfs.store.codec import Encoder, decode
from dedupfs.store.layout import decode_config

SOME_ID = RecordId(bytes(range(16)))
ENTRY = TreeEntry(b"name", 3, 0o100644, content=tree.encode_extents([Extent(SOME_ID, 5)]))
DIRECTORY = TreeEntry(b"", 0, 0o040755, content=SOME_ID)
CONFIG = (
    b'{"format_version":1,"store_id":"a","hash_seed":7,"chunk_bytes_min":256,'
    b'"chunk_bytes_average":1024,"chunk_bytes_max":4096,"features":[]}'
)


def decode_zstd(data: bytes) -> object:
    return decode(Codec.ZSTD, data, len(data) * 3)


DECODERS: dict[str, Callable[[bytes], object]] = {
    "pack header": lambda data: pack.decode_pack_header(data, 1, 7),
    "record header": lambda data: pack.decode_header(data, 0, 7),
    "pack table": pack.decode_pack_table,
    "trailer": lambda data: pack.decode_trailer(data, 7),
    "chunk table": pack.decode_chunk_table,
    "record row": keys.decode_location,
    "references of a row": keys.decode_references,
    "pack row": keys.decode_pack_row,
    "pack key": keys.decode_pack_key,
    "free key": lambda data: keys.decode_free(data, keys.pack_free_row(1, 0)),
    "free row": lambda data: keys.decode_free(keys.pack_free_key(1, 1), data),
    "counter": keys.decode_count,
    "pin key": keys.split_pin_key,
    "extents": tree.decode_extents,
    "recipe": tree.decode_recipe,
    "tree": tree.decode_tree,
    "tree page": tree.decode_tree_page,
    "snapshot": tree.decode_snapshot,
    "view root": tree.decode_view_root,
    "config": lambda data: decode_config(data, Path("dedupfs.json")),
    "zstd": decode_zstd,
} | {
    f"references of a {kind.name}": lambda data, kind=kind: tree.references(kind, data)
    for kind in RecordKind
}

REAL = [
    pack.encode_pack_header(1, 7),
    pack.encode_header(RecordKind.TREE, Codec.ZSTD, 1, 2, 3, SOME_ID, 7),
    pack.encode_free_header(1 << 33, 7),
    pack.encode_table_entry(16, RecordKind.CHUNK, Codec.RAW, 0, 5, 5, SOME_ID),
    pack.encode_trailer(3, 100, 7),
    pack.encode_chunk_table(1, 10, [pack.TableChunk(0, 5, 0, SOME_ID)]),
    tree.encode_extents([Extent(SOME_ID, 5)]),
    tree.encode_recipe([(SOME_ID, 5)]),
    tree.encode_tree(Tree(4, (ENTRY,), (TreePage(b"x", SOME_ID, 3),))),
    tree.encode_tree_page([ENTRY, DIRECTORY]),
    tree.encode_snapshot(SnapshotInfo(1, "name", DIRECTORY, 5, tags={"a": "b"})),
    tree.encode_view_root(ViewRoot(1, "v", "", 1, DIRECTORY, 2, 3)),
    CONFIG,
    bytes(Encoder("zstd").encode(b"text " * 100)[1]),
]


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"\xdd\xff\xff\xff\xff")  # msgpack: an array of 4 billion
@example(data=b"\x91" * 3000)  # msgpack: arrays in arrays
@example(data=b"[" * 5000)
def test_any_bytes_give_a_value_or_a_store_error(name: str, data: bytes) -> None:
    with suppress(StoreError):
        DECODERS[name](data)


@given(data=st.data())
def test_changed_encodings_give_a_value_or_a_store_error(data: st.DataObject) -> None:
    buffer = bytearray(data.draw(st.sampled_from(REAL)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(buffer) - 1))
        buffer[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(buffer)))
    for decoder in DECODERS.values():
        with suppress(StoreError):
            decoder(bytes(buffer))
        with suppress(StoreError):
            decoder(bytes(buffer[:cut]))


SEALED: list[tuple[bytes, Callable[[bytes], object]]] = [
    (REAL[0], DECODERS["pack header"]),
    (REAL[1], DECODERS["record header"]),
    (REAL[2], DECODERS["record header"]),
    (REAL[4], DECODERS["trailer"]),
]


@pytest.mark.parametrize("number", range(len(SEALED)))
def test_every_flipped_bit_of_a_header_is_corrupt(number: int) -> None:
    encoded, decoder = SEALED[number]
    decoder(encoded)
    for bit in range(len(encoded) * 8):
        flipped = bytearray(encoded)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptError):
            decoder(bytes(flipped))


def test_a_zstd_frame_that_claims_terabytes_takes_no_memory() -> None:
    frame = bytearray(Encoder("zstd").encode(b"a" * 70_000)[1])
    assert frame[4] >> 6 == 2  # the frame header tells the content's size in 4 bytes
    frame[5:9] = b"\xff\xff\xff\xff"
    with pytest.raises(CorruptError):
        decode(Codec.ZSTD, bytes(frame), 70_000)
    for length in (69_999, 70_001, 0):
        with pytest.raises(CorruptError):
            decode(Codec.ZSTD, Encoder("zstd").encode(b"a" * 70_000)[1], length)
