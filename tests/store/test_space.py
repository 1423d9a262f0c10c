"""Space comes back: what nothing refers to is freed, its blocks are punched, empty packs go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dedupfs.errors import CorruptError
from dedupfs.format.keys import with_references
from dedupfs.model import Extent, PackKind, RecordId, RecordKind
from dedupfs.store import Store, Table, inventory
from dedupfs.store.holes import punch
from dedupfs.store.owner import Owner
from dedupfs.store.space import Freed, free_dead, release_dead_owners
from tests.fakes import FaultyDisk
from tests.store.conftest import MakeStore
from tests.store.payloads import CHUNK, noise, pin, put_page, put_pinned, unpin
from tests.store.recount import recount

HEADER = 36


def blocks(store: Store) -> int:
    """Bytes that the packs really take."""
    return sum(p.stat().st_blocks * 512 for p in store.layout.packs.rglob("*") if p.is_file())


def collect(store: Store) -> int:
    """Free and punch everything that can be; return how many records were freed."""
    records = 0
    while True:
        freed = free_dead(store, 3)
        records += freed.records
        if not freed.more:
            break
    while punch(store, 2):
        pass
    return records


def test_dead_records_are_freed_in_small_steps(store: Store) -> None:
    ids = put_pinned(store, [noise(seed) for seed in range(5)])
    unpin(store, ids[:4])
    assert free_dead(store, 3) == Freed(3, 3 * (1000 + HEADER), True)
    assert free_dead(store, 3) == Freed(1, 1000 + HEADER, False)
    assert free_dead(store, 3) == Freed(0, 0, False)
    assert not any(store.has(record_id) for record_id in ids[:4])
    assert store.get(ids[4], CHUNK) == noise(4)


def test_what_a_dead_record_refers_to_dies_after_it(store: Store) -> None:
    chunks = [store.put(CHUNK, noise(seed)) for seed in range(3)]
    page = put_page(store, [(chunk, 1000) for chunk in chunks])
    recipe = store.put(RecordKind.RECIPE, page + (3000).to_bytes(8, "little"))
    pin(store, [recipe, chunks[0]])
    unpin(store, [recipe])
    assert collect(store) == 4
    assert store.get(chunks[0], CHUNK) == noise(0)


def test_holes_give_blocks_back(store: Store) -> None:
    ids = put_pinned(store, [noise(seed, 100_000) for seed in range(20)])
    full = blocks(store)
    unpin(store, ids[5:15])
    assert collect(store) == 10
    assert full - blocks(store) >= 10 * 100_000 - 8192
    assert [store.get(ids[n], CHUNK) for n in (*range(5), *range(15, 20))]
    recount(store)


def test_neighbours_freed_later_are_merged(store: Store) -> None:
    ids = put_pinned(store, [noise(seed, 3000) for seed in range(7)])
    for number in (1, 3, 2, 5, 4):  # alone, alone, between two, alone, between two
        unpin(store, [ids[number]])
        collect(store)
        recount(store)
    with store.reading() as txn:
        found = list(inventory.free_ranges(txn))
    assert [(one.stop - one.start, one.punched) for one in found] == [(5 * 3036, True)]
    assert punch(store, 10) == 0


def test_a_sealed_pack_without_live_records_goes(make_store: MakeStore) -> None:
    store = make_store(compression="none", pack_bytes_max=5000)
    ids = put_pinned(store, [noise(seed) for seed in range(12)])
    first = store.layout.pack(1, PackKind.RECORDS)
    gone = [record_id for record_id in ids if store.locate(record_id).pack == 1]
    with first.open("rb") as reader:
        unpin(store, gone)
        assert collect(store) == len(gone)
        assert not first.exists()
        assert os.fstat(reader.fileno()).st_blocks == 0  # though somebody has it open
    with store.reading() as txn:
        assert inventory.indexed_pack(txn, 1) is None
        assert not [one for one in inventory.free_ranges(txn) if one.pack == 1]
    put_pinned(store, [noise(99)])


def test_the_pack_that_is_appended_to_stays(store: Store) -> None:
    unpin(store, put_pinned(store, [noise(1, 50_000)]))
    collect(store)
    assert blocks(store) <= 3 * 4096
    (again,) = put_pinned(store, [noise(2)])
    assert store.locate(again).pack == 1


def test_an_empty_pack_of_a_dead_process_goes(path: Path) -> None:
    with Store.create(path) as store:
        unpin(store, put_pinned(store, [noise(1)]))
    with Store.open(path) as store:
        collect(store)
        assert not list(store.layout.packs.rglob("*.pack"))
        (chunk,) = put_pinned(store, [noise(2)])
        assert store.locate(chunk).pack == 2
        recount(store)


def test_without_holes_whole_packs_still_come_back(make_store: MakeStore) -> None:
    store = make_store(compression="none", pack_bytes_max=20_000, disk=FaultyDisk(holes=False))
    ids = put_pinned(store, [noise(seed, 9000) for seed in range(9)])
    full = blocks(store)
    unpin(store, [ids[0]])
    collect(store)
    assert blocks(store) == full
    assert not store.punches
    unpin(store, ids[1:3])
    collect(store)
    assert blocks(store) < full
    recount(store)


def put_file(store: Store, file: Path, payload: bytes, step: int = 50_000) -> list[RecordId]:
    chunks = []
    file.write_bytes(payload)
    for start in range(0, len(payload), step):
        part = payload[start : start + step]
        chunks.append((start, Extent(store.probe_chunk(part)[0], len(part))))
    store.put_verbatim(file, chunks)
    ids = [extent.chunk_id for _, extent in chunks]
    pin(store, ids)
    return ids


def test_chunks_of_a_verbatim_pack_give_blocks_back(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    ids = put_file(store, file, noise(1, 500_000))
    file.unlink()
    full = blocks(store)
    unpin(store, ids[2:6])
    assert collect(store) == 4
    assert full - blocks(store) >= 200_000 - 8192
    assert store.get(ids[6], CHUNK) == noise(1, 500_000)[300_000:350_000]
    unpin(store, ids[:2] + ids[6:])
    assert collect(store) == 6
    assert not list(store.layout.packs.rglob("*.file"))
    assert collect(store) == 1  # its chunk table


def test_a_verbatim_pack_with_other_names_is_not_punched(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    payload = noise(1, 200_000)
    ids = put_file(store, file, payload)
    unpin(store, ids[:2])
    collect(store)
    assert file.read_bytes() == payload
    unpin(store, ids[2:])
    collect(store)
    assert file.read_bytes() == payload
    assert not list(store.layout.packs.rglob("*.file"))


@pytest.mark.allow_log("dead record kept")
def test_a_dead_record_that_cannot_be_read_is_kept(path: Path) -> None:
    with Store.create(path, compression="none") as store:
        chunk = store.put(CHUNK, noise(1))
        page = put_page(store, [(chunk, 1000)])
        pin(store, [page])
        unpin(store, [page])
        place = store.locate(page)
    pack = path / "packs/00/00000001.pack"
    data = bytearray(pack.read_bytes())
    data[place.pack_offset] ^= 1
    pack.write_bytes(data)
    with Store.open(path) as store:
        assert free_dead(store, 10) == Freed(0, 0, False)
        assert store.get(chunk, CHUNK) == noise(1)
        with pytest.raises(CorruptError):
            store.get(page, RecordKind.RECIPE_PAGE)


def test_pins_of_a_dead_process_are_released(store: Store) -> None:
    dead = Owner(store.layout, store.disk)
    alive = Owner(store.layout, store.disk)
    dead.claim()
    alive.claim()
    one = store.put(CHUNK, noise(1))
    two = store.put(CHUNK, noise(2))
    with store.transaction() as txn:
        txn.pin(dead.name, one)
        txn.pin(dead.name, two)
        txn.pin(alive.name, two)
        txn.pin(store.owner, two)
    assert release_dead_owners(store) == 0
    assert dead._file is not None
    dead._file.close()  # what the kernel does with a process that was killed
    assert release_dead_owners(store) == 1
    assert release_dead_owners(store) == 0
    with store.reading() as txn:
        assert set(inventory.dead_records(txn)) == {one}
        assert {owner for owner, _, _ in inventory.pins(txn)} == {alive.name, store.owner}
    alive.release()
    assert release_dead_owners(store) == 1


def test_a_process_that_pins_has_a_lock_and_lets_go_of_both(path: Path) -> None:
    with Store.create(path) as store:
        chunk = store.put(CHUNK, noise(1))
        assert not list(store.layout.run.glob("*.lock"))
        with store.transaction() as txn:
            txn.pin(store.owner, chunk)
        (lock,) = store.layout.run.glob("*.lock")
        assert lock.read_text().split()[0] == str(os.getpid())
    assert not lock.exists()
    with Store.open(path) as store:
        with store.reading() as txn:
            assert list(txn.scan(Table.PINS)) == []
        assert release_dead_owners(store) == 0


def test_a_half_made_verbatim_pack_is_removed(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(noise(1))
    with Store.create(path) as store:
        chunk_id, _ = store.probe_chunk(noise(1))
        store.put_verbatim(file, [(0, Extent(chunk_id, 1000))])
        pack = store.layout.pack(1, PackKind.VERBATIM)
        os.link(pack, tmp_path / "kept")
    os.link(tmp_path / "kept", pack)  # as if the process had not come to remove it
    with Store.open(path) as store:
        release_dead_owners(store)
        assert not pack.exists()
        with store.reading() as txn:
            assert not list(txn.scan(Table.META, prefix=b"making:"))


def test_a_dead_record_that_refers_to_a_lost_one_is_freed(store: Store) -> None:
    kept, lost = put_pinned(store, [noise(1), noise(2)])
    page = put_page(store, [(kept, 1000), (lost, 1000), (lost, 1000)])
    pin(store, [page])
    with store.db.writing() as txn:
        row = txn.get(Table.RECORDS, lost)
        assert row is not None
        txn.delete(Table.RECORDS, lost)
    unpin(store, [page])
    assert free_dead(store, 10).records == 1
    assert not store.has(page)
    with store.db.writing() as txn:  # put back what was taken, with its pin's reference alone
        txn.put(Table.RECORDS, lost, with_references(row, 1))
    assert collect(store) == 0


def test_a_child_that_is_dead_too_does_not_stop_its_parent(store: Store) -> None:
    """Counts are wrong: parent and child are listed as dead at once."""
    child = store.put(CHUNK, noise(1))
    page = put_page(store, [(child, 1000)])
    pin(store, [page])
    unpin(store, [page])
    with store.db.writing() as txn:
        row = txn.get(Table.RECORDS, child)
        assert row is not None
        txn.put(Table.RECORDS, child, with_references(row, 0))
        txn.put(Table.DEAD, child, b"")
    assert free_dead(store, 10).records == 2
    assert not store.has(page)
    assert not store.has(child)
