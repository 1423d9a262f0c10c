"""What is put comes back, once; what is equal is stored once.

Method: a real store in a temporary directory; the teardown of ``store`` counts everything anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedupfs.errors import CorruptError, MissingRecordError, UsageError
from dedupfs.format.pack import CHUNK_BYTES_MAX
from dedupfs.model import Codec, RecordId, RecordKind
from dedupfs.store import Store
from dedupfs.store.packs import BUFFER_BYTES
from tests.store.conftest import MakeStore
from tests.store.payloads import CHUNK, noise, pin, put_page, put_pinned


def pack_bytes(store: Store) -> int:
    return sum(path.stat().st_size for path in store.layout.packs.rglob("*.pack"))


def test_a_pending_record_is_readable_before_it_is_committed(store: Store) -> None:
    record_id = store.put(CHUNK, noise(1))
    assert store.get(record_id, CHUNK) == noise(1)
    assert store.has(record_id)


def test_a_committed_record_is_there_in_the_next_process(path: Path) -> None:
    with Store.create(path) as store:
        (record_id,) = put_pinned(store, [noise(1)])
    with Store.open(path) as store:
        assert store.get(record_id, CHUNK) == noise(1)


def test_a_record_that_was_not_committed_is_gone_with_its_process(path: Path) -> None:
    with Store.create(path) as store:
        put_pinned(store, [noise(1)])
        size = pack_bytes(store)
        lost = store.put(CHUNK, noise(2))
        store.sync()
        assert pack_bytes(store) > size
    with Store.open(path) as store:
        assert pack_bytes(store) == size
        assert not store.has(lost)
        with pytest.raises(MissingRecordError):
            store.get(lost, CHUNK)
        with pytest.raises(MissingRecordError):
            store.locate(lost)


@pytest.mark.parametrize("committed", [False, True])
def test_an_equal_chunk_is_stored_once(store: Store, committed: bool) -> None:
    first = store.put(CHUNK, noise(1))
    if committed:
        pin(store, [first])
    store.sync()
    size = pack_bytes(store)
    assert store.put(CHUNK, memoryview(noise(1))) == first
    assert store.find_chunk(noise(1)) == first
    assert store.probe_chunk(noise(1)) == (first, True)
    store.sync()
    assert pack_bytes(store) == size


def test_finding_a_chunk_never_stores_it(store: Store) -> None:
    assert store.find_chunk(noise(1)) is None
    record_id, known = store.probe_chunk(noise(1))
    assert (record_id, known) == (store.digest(CHUNK, noise(1)), False)
    assert not store.has(record_id)


def test_a_caller_may_reuse_the_buffer_it_put(store: Store) -> None:
    buffer = bytearray(noise(1))
    record_id = store.put(CHUNK, memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert store.get(record_id, CHUNK) == noise(1)


def test_kinds_have_separate_ids(store: Store) -> None:
    chunk = store.put(CHUNK, noise(1))
    page = put_page(store, [(chunk, 1000)])
    twin = store.put(CHUNK, store.get(page, RecordKind.RECIPE_PAGE))
    assert twin != page
    with pytest.raises(CorruptError, match="is of kind"):
        store.get(page, CHUNK)


def test_a_payload_that_is_not_of_its_kind_is_refused(store: Store) -> None:
    with pytest.raises(CorruptError):
        store.put(RecordKind.TREE, b"no tree")
    with store.transaction():
        pass


def test_a_chunk_above_the_limit_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="at most"):
        store.put(CHUNK, bytes(CHUNK_BYTES_MAX + 1))


@pytest.mark.parametrize("length", [1, BUFFER_BYTES - 40, BUFFER_BYTES, BUFFER_BYTES + 1])
def test_chunks_around_the_size_of_the_append_buffer_come_back(store: Store, length: int) -> None:
    payloads = [noise(1, 100), noise(2, length), noise(3, 100)]
    ids = [store.put(CHUNK, payload) for payload in payloads]
    assert [store.get(record_id, CHUNK) for record_id in ids] == payloads
    pin(store, ids)
    assert [store.get(record_id, CHUNK) for record_id in ids] == payloads


def test_what_compresses_is_compressed(make_store: MakeStore) -> None:
    store = make_store(compression="auto")
    text = b"".join(b"line %d of a log\n" % number for number in range(500))
    random = noise(1, 8000)
    text_id, random_id = put_pinned(store, [text, random])
    assert store.locate(text_id).codec == Codec.ZSTD
    assert store.locate(text_id).stored_bytes < len(text) // 2
    assert store.locate(random_id).codec == Codec.RAW
    assert store.get(text_id, CHUNK) == text
    assert store.put(CHUNK, text) == text_id


def test_pending_records_are_dropped_on_request(store: Store) -> None:
    (kept,) = put_pinned(store, [noise(1)])
    size = pack_bytes(store)
    dropped = store.put(CHUNK, noise(2))
    store.sync()
    assert store.get(dropped, CHUNK) == noise(2)
    store.drop_pending()
    assert not store.has(dropped)
    assert pack_bytes(store) == size
    again = store.put(CHUNK, noise(3))  # takes the place of the dropped one
    pin(store, [again])
    assert store.get(kept, CHUNK) == noise(1)
    assert store.get(again, CHUNK) == noise(3)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20))
def test_any_payloads_come_back(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("any") / "store"
    with Store.create(path, compression="zstd", pack_bytes_max=1000) as store:
        ids = put_pinned(store, payloads)
        expected: dict[RecordId, bytes] = dict(zip(ids, payloads, strict=True))
        assert {key: store.get(key, CHUNK) for key in expected} == expected
        assert len(expected) == len(set(payloads))
