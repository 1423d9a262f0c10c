"""References, pins, counters and rows change together or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dedupfs.errors import CorruptError, MissingRecordError, StoreError, UsageError
from dedupfs.model import RecordId
from dedupfs.store import Store, Table, inventory
from dedupfs.store.space import free_dead
from tests.store.payloads import (
    CHUNK,
    VIEW,
    as_another_process,
    noise,
    pin,
    put_page,
    put_pinned,
    unpin,
)


def references(store: Store, record_id: RecordId) -> int | None:
    with store.reading() as txn:
        found = inventory.indexed_record(txn, record_id)
    return found.references if found is not None else None


def is_dead(store: Store, record_id: RecordId) -> bool:
    with store.reading() as txn:
        return txn.get(Table.DEAD, record_id) is not None


def test_a_record_counts_what_refers_to_it(store: Store) -> None:
    chunk = store.put(CHUNK, noise(1))
    page = put_page(store, [(chunk, 1000), (chunk, 1000)])
    pin(store, [page])
    assert references(store, chunk) == 2
    assert references(store, page) == 1
    assert not is_dead(store, chunk)


def test_a_record_without_references_is_dead_until_it_gets_one(store: Store) -> None:
    chunk = store.put(CHUNK, noise(1))
    with store.transaction():
        pass
    assert is_dead(store, chunk)
    pin(store, [chunk])
    assert not is_dead(store, chunk)
    unpin(store, [chunk])
    assert is_dead(store, chunk)


def test_references_of_one_transaction_are_summed_before_anything_dies(store: Store) -> None:
    (chunk,) = put_pinned(store, [noise(1)])
    with store.transaction() as txn:
        txn.unpin(VIEW, chunk)
        txn.pin(VIEW, chunk)
    assert references(store, chunk) == 1
    assert not is_dead(store, chunk)


def test_a_body_that_raises_changes_nothing(store: Store) -> None:
    def fail() -> None:
        with store.transaction() as txn:
            txn.put(Table.VIEWS, b"key", b"value")
            txn.next_number("snapshot")
            txn.pin(VIEW, chunk)
            raise KeyError

    chunk = store.put(CHUNK, noise(1))
    with pytest.raises(KeyError):
        fail()
    with store.reading() as txn:
        assert txn.get(Table.VIEWS, b"key") is None
        assert txn.count(Table.RECORDS) == 0
    with store.transaction() as txn:
        assert txn.next_number("snapshot") == 1
    assert store.get(chunk, CHUNK) == noise(1)
    assert references(store, chunk) == 0


def test_counters_rise_by_one(store: Store) -> None:
    with store.transaction() as txn:
        assert [txn.next_number("a"), txn.next_number("a"), txn.next_number("b")] == [1, 2, 1]
    with store.transaction() as txn:
        assert txn.next_number("a") == 3


def test_rows_are_read_in_key_order(store: Store) -> None:
    rows = [(b"a", b"1"), (b"b1", b"2"), (b"b2", b"3"), (b"c", b"4")]
    with store.transaction() as txn:
        for key, value in reversed(rows):
            txn.put(Table.PLACES, key, value)
        assert list(txn.scan(Table.PLACES)) == rows
        assert list(txn.scan(Table.PLACES, prefix=b"b")) == rows[1:3]
        assert list(txn.scan(Table.PLACES, start=b"b2")) == rows[2:]
        assert list(txn.scan(Table.PLACES, prefix=b"b", start=b"b2")) == rows[2:3]
        assert txn.delete(Table.PLACES, b"a")
        assert not txn.delete(Table.PLACES, b"a")
    with store.reading() as reading:
        assert reading.count(Table.PLACES) == 3


def test_a_table_may_be_emptied_while_it_is_scanned(store: Store) -> None:
    with store.transaction() as txn:
        for number in range(1000):
            txn.put(Table.PLACES, number.to_bytes(4, "big"), b"")
    with store.transaction() as txn:
        seen = []
        for key, _ in txn.scan(Table.PLACES):
            seen.append(int.from_bytes(key, "big"))
            txn.delete(Table.PLACES, key)
        assert seen == list(range(1000))
        assert txn.count(Table.PLACES) == 0


def test_pins_are_counted_and_released_together(store: Store) -> None:
    one, two = put_pinned(store, [noise(1), noise(2)])
    pin(store, [one])
    other = b"v\0\0\0\2"
    with store.transaction() as txn:
        txn.pin(other, one)
    assert references(store, one) == 3
    with store.transaction() as txn:
        txn.release_pins(VIEW)
    assert references(store, one) == 1
    assert is_dead(store, two)
    with store.transaction() as txn:
        txn.release_pins(other)
    assert is_dead(store, one)


def test_what_is_not_pinned_cannot_be_unpinned(store: Store) -> None:
    (chunk,) = put_pinned(store, [noise(1)])
    with pytest.raises(StoreError, match="not pinned"), store.transaction() as txn:
        txn.unpin(b"v\0\0\0\2", chunk)
    assert references(store, chunk) == 1


def test_a_count_never_falls_below_zero(store: Store) -> None:
    (chunk,) = put_pinned(store, [noise(1)])
    with pytest.raises(CorruptError, match="dedupfs check"), store.transaction() as txn:
        txn.drop_reference(chunk, 2)
    assert references(store, chunk) == 1


def test_an_unknown_record_cannot_be_referred_to(store: Store) -> None:
    with pytest.raises(MissingRecordError), store.transaction() as txn:
        txn.add_reference(store.digest(CHUNK, b"unknown"))


def test_a_pending_tree_whose_chunk_was_freed_is_put_again(store: Store) -> None:
    """Goal: one retry heals; what can never be committed does not poison later transactions."""
    chunk = store.put(CHUNK, noise(1))
    with store.transaction():
        pass
    page = put_page(store, [(chunk, 1000)])
    assert free_dead_of_another(store, chunk)
    with pytest.raises(MissingRecordError), store.transaction() as txn:
        txn.pin(VIEW, page)
    assert not store.has(page)
    put_pinned(store, [noise(2)])
    chunk = store.put(CHUNK, noise(1))
    page = put_page(store, [(chunk, 1000)])
    pin(store, [page])
    assert references(store, chunk) == 1


def free_dead_of_another(store: Store, chunk: RecordId) -> bool:
    """Free a dead chunk as another process does: without a commit of what is pending here."""
    with as_another_process(store):
        return free_dead(store, 10).records == 1 and not store.has(chunk)


def test_a_lost_record_that_nobody_asks_for_does_not_fail_a_transaction(store: Store) -> None:
    chunk = store.put(CHUNK, noise(1))
    with store.transaction():
        pass
    page = put_page(store, [(chunk, 1000)])
    assert free_dead_of_another(store, chunk)
    put_pinned(store, [noise(2)])
    assert not store.has(page)


def test_a_match_is_refused_when_other_bytes_have_taken_its_place(store: Store) -> None:
    """Goal: between put and transaction an id can be freed and given to a crafted collision."""
    first = store.put(CHUNK, noise(1))
    with store.transaction():
        pass
    assert store.put(CHUNK, noise(1)) == first
    place = store._pending.matched[first]
    store._pending.matched[first] = bytes(len(place))  # the index now says something else
    with pytest.raises(MissingRecordError), store.transaction() as txn:
        txn.pin(VIEW, first)
    assert store.put(CHUNK, noise(1)) == first
    pin(store, [first])


def test_records_may_be_put_inside_a_transaction(store: Store) -> None:
    with store.transaction() as txn:
        chunk = store.put(CHUNK, noise(1))
        txn.pin(VIEW, chunk)
        assert store.get(chunk, CHUNK) == noise(1)
    assert store.get(chunk, CHUNK) == noise(1)


def test_the_first_pack_of_a_rolled_back_transaction_goes_with_it(store: Store) -> None:
    def fail() -> None:
        with store.transaction():
            ids.append(store.put(CHUNK, noise(1)))
            store.sync()
            assert store.get(ids[0], CHUNK) == noise(1)
            raise KeyError

    ids: list[RecordId] = []
    with pytest.raises(KeyError):
        fail()
    assert not store.has(ids[0])
    assert not list(store.layout.packs.rglob("*.pack"))
    (again,) = put_pinned(store, [noise(1)])
    assert store.get(again, CHUNK) == noise(1)


def test_a_transaction_inside_a_transaction_is_refused(store: Store) -> None:
    with store.transaction(), pytest.raises(UsageError), store.transaction():
        pass
    put_pinned(store, [noise(1)])


def test_a_transaction_survives_close_and_open(path: Path) -> None:
    with Store.create(path) as store, store.transaction() as txn:
        txn.put(Table.SNAPSHOTS, b"name", b"row")
    with Store.open(path) as store, store.reading() as reading:
        assert reading.get(Table.SNAPSHOTS, b"name") == b"row"
