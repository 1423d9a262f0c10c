"""Rows of the index that say something wrong: no other record's bytes are served for them (P7).

Method: rows are changed behind the store's back, after it has verified what they pointed at.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import decode_location, encode_location
from dedupfs.maintenance.check import check
from dedupfs.model import Codec, RecordId, RecordKind
from dedupfs.store import Store, Table
from tests.maintenance.samples import SMALL
from tests.store.payloads import CHUNK, noise, piece, put_pinned


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", **SMALL) as made:
        yield made


def point(store: Store, record_id: RecordId, **changes: Any) -> bytes:
    """Change a row of the index; return what it was."""
    with store.db.writing() as txn:
        row = txn.get(Table.RECORDS, record_id)
        assert row is not None
        location, references = decode_location(row)
        changed = encode_location(dataclasses.replace(location, **changes), references)
        txn.put(Table.RECORDS, record_id, changed)
    return row


def put_back(store: Store, record_id: RecordId, row: bytes) -> None:
    with store.db.writing() as txn:
        txn.put(Table.RECORDS, record_id, row)
    assert [p for p in check(store).problems if p.code != "pin"] == []


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_a_row_that_points_at_another_chunk_serves_nothing(
    store: Store, compressed: bool, cached: bool
) -> None:
    payloads = [noise(n, 400) * (2 if compressed else 1) for n in range(2)]
    one, two = put_pinned(store, payloads)
    for chunk, payload in zip((one, two), payloads, strict=True):
        assert store.read([piece(chunk, len(payload))]) == payload
    place = store.locate(two)
    assert place.codec == (Codec.ZSTD if compressed else Codec.RAW)
    row = point(store, one, pack_offset=place.pack_offset, stored_bytes=place.stored_bytes)
    read = store.read_cached if cached else store.read
    with pytest.raises(CorruptError, match="digest"):
        read([piece(one, 10, 5)])
    put_back(store, one, row)


def test_a_row_that_points_between_verified_chunks_serves_nothing(store: Store) -> None:
    one, two, three = put_pinned(store, [noise(n, 500) for n in range(3)])
    store.read([piece(chunk, 500) for chunk in (one, two, three)])
    row = point(store, two, pack_offset=store.locate(two).pack_offset + 8)
    with pytest.raises(CorruptError, match="digest"):
        store.read([piece(two, 10)])
    put_back(store, two, row)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": RecordKind.TREE},
        {"stored_bytes": (1 << 32) - 1, "logical_bytes": (1 << 32) - 1},
        {"stored_bytes": (1 << 32) - 1},
        {"logical_bytes": (1 << 32) - 1},
        {"codec": Codec.ZSTD},
        {"pack": (1 << 32) - 1},
        {"pack": 999},
        {"pack_offset": (1 << 64) - 1},
        {"pack_offset": (1 << 63) - 1},
        {"pack_offset": 1 << 40},
        {"salt": 255},
    ],
)
def test_a_row_that_says_something_impossible_is_a_store_error(
    store: Store, changes: dict[str, Any]
) -> None:
    (one,) = put_pinned(store, [noise(1, 500)])
    store.read([piece(one, 500)])
    row = point(store, one, **changes)
    with pytest.raises(StoreError):
        store.read([piece(one, 500)])
    with suppress(StoreError):
        assert store.read_cached([piece(one, 500)]) is None
    with suppress(StoreError):
        assert store.get(one, CHUNK) == noise(1, 500)
    assert store.put(CHUNK, noise(1, 500)) != one  # no match: a copy under another salt
    assert not check(store).ok
    store.drop_pending()
    put_back(store, one, row)


VALUES = {
    "empty": b"",
    "short": b"\0",
    "a record's length": b"\xff" * 28,
    "a pack's length": b"\xff" * 36,
    "zeros": bytes(36),
    "nested arrays": b"\x91" * 99,
}


@pytest.mark.parametrize("table", list(Table), ids=lambda table: table.name)
@pytest.mark.parametrize("value", list(VALUES.values()), ids=list(VALUES))
def test_a_row_of_any_bytes_is_a_store_error_at_most(
    store: Store, table: Table, value: bytes
) -> None:
    (one,) = put_pinned(store, [noise(1, 500)])
    store.read([piece(one, 500)])
    with store.db.reading() as txn:
        known = list(txn.scan(table))
    for key in [key for key, _ in known] or [one, b"\0\0\0\1", struct.pack(">IQ", 1, 20)]:
        with store.db.writing() as changes:
            changes.put(table, key, value)
        with suppress(StoreError):
            check(store)
        with suppress(StoreError):
            assert store.read([piece(one, 500)]) == noise(1, 500)
        with store.db.writing() as changes:
            changes.delete(table, key)
            for old_key, old in known:
                changes.put(table, old_key, old)
    assert [p for p in check(store).problems if p.code != "pin"] == []
