"""P5: the index is only an index. Packs alone bring every record back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dedupfs.format.pack import TableChunk, encode_chunk_table
from dedupfs.model import Extent, PackKind, RecordId, RecordKind
from dedupfs.store import Store, inventory
from dedupfs.store.db import Table
from dedupfs.store.holes import punch
from dedupfs.store.rebuild import Rebuilt, rebuild
from dedupfs.store.space import free_dead
from tests.store.payloads import CHUNK, noise, pin, put_page, put_pinned, unpin
from tests.store.recount import recount


def reopen(path: Path) -> Store:
    """Open a store after throwing its index away."""
    shutil.rmtree(path / "index")
    return Store.open(path, create_index=True)


def fill(path: Path) -> dict[RecordId, bytes]:
    """Make a store with sealed, open and verbatim packs, freed and punched records."""
    with Store.create(path, compression="auto", pack_bytes_max=20_000) as store:
        payloads = [noise(seed, 3000) for seed in range(10)] + [b"text " * 600]
        ids = put_pinned(store, payloads)
        held = dict(zip(ids, payloads, strict=True))
        page = put_page(store, [(chunk, 3000) for chunk in ids[:5]])
        pin(store, [page])
        unpin(store, ids[2:8])
        file = path.parent / "file"
        file.write_bytes(noise("file", 60_000))
        chunks = []
        for start in range(0, 60_000, 20_000):
            part = noise("file", 60_000)[start : start + 20_000]
            chunks.append((start, Extent(store.probe_chunk(part)[0], 20_000)))
            held[chunks[-1][1].chunk_id] = part
        store.put_verbatim(file, chunks)
        pin(store, [extent.chunk_id for _, extent in chunks])
        file.unlink()
        unpin(store, [chunks[1][1].chunk_id])
        del held[chunks[1][1].chunk_id]
        while free_dead(store, 10).more:
            pass
        while punch(store, 10):
            pass
        for gone in ids[5:8]:
            del held[gone]
        recount(store)
        return held


def rebuilt(store: Store) -> tuple[Rebuilt, list[tuple[RecordKind, RecordId]]]:
    seen: list[tuple[RecordKind, RecordId]] = []
    found = rebuild(store, lambda record_id, place: seen.append((place.kind, record_id)))
    return found, seen


def test_every_record_comes_back_from_the_packs(path: Path) -> None:
    held = fill(path)
    with reopen(path) as store:
        found, seen = rebuilt(store)
        assert not found.damaged
        assert not found.orphans
        assert not found.missing
        assert {key: store.get(key, CHUNK) for key in held} == held
        assert sorted(kind for kind, _ in seen) == [RecordKind.CHUNK_TABLE, RecordKind.RECIPE_PAGE]
        with store.reading() as txn:
            (page,) = (key for kind, key in seen if kind == RecordKind.RECIPE_PAGE)
            assert page in set(inventory.dead_records(txn))
        recount(store)
        pin(store, [page, *held])
        while free_dead(store, 10).more:
            pass
        while punch(store, 10):
            pass
        recount(store)
        put_pinned(store, [noise("new")])
        with store.reading() as txn:
            numbers = [pack for pack, _ in inventory.indexed_packs(txn)]
        assert len(numbers) == len(set(numbers))


def test_a_rebuilt_store_gives_new_packs_new_numbers(path: Path) -> None:
    fill(path)
    with reopen(path) as store:
        rebuild(store)
        files = {pack for pack, _, _ in inventory.pack_files(store)}
        with store.transaction() as txn:
            assert txn.next_number("pack") > max(files)


def test_a_torn_tail_is_left_out(path: Path) -> None:
    with Store.create(path, compression="none") as store:
        (kept,) = put_pinned(store, [noise(1)])
        torn = store.put(CHUNK, noise(2))
        store.sync()
        pack = path / "packs/00/00000001.pack"
        data = bytearray(pack.read_bytes())
    data[-1] ^= 1  # the header arrived on the disk, its payload did not
    pack.write_bytes(data)
    with reopen(path) as store:
        found, _ = rebuilt(store)
        assert [damage.torn for _, damage in found.damaged] == [True]
        assert store.get(kept, CHUNK) == noise(1)
        assert not store.has(torn)


@pytest.mark.allow_log("chunk table unreadable")
def test_damage_costs_only_what_is_damaged(path: Path) -> None:
    held = fill(path)
    with Store.open(path) as store:
        with store.reading() as txn:
            (table,) = (
                row.chunk_table for _, row in inventory.indexed_packs(txn) if row.chunk_table
            )
        place = store.locate(table)
    pack = path / f"packs/00/{place.pack:08d}.pack"
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    data[place.pack_offset + 3] ^= 1
    pack.write_bytes(data)
    with reopen(path) as store:
        found, _ = rebuilt(store)
        assert len(found.orphans) + len(found.damaged) >= 1
        left = {key: payload for key, payload in held.items() if store.has(key)}
        assert {key: store.get(key, CHUNK) for key in left} == left
        assert len(left) == len(held) - 2


def test_a_reference_to_nothing_is_reported(path: Path) -> None:
    with Store.create(path, compression="none", pack_bytes_max=500) as store:
        (chunk,) = put_pinned(store, [noise(1)])
        pin(store, [put_page(store, [(chunk, 1000)])])
        assert store.locate(chunk).pack == 1
    (path / "packs/00/00000001.pack").unlink()
    with reopen(path) as store:
        found, _ = rebuilt(store)
        assert found.missing == {chunk: 1}


def test_an_index_that_exists_is_not_thrown_away(path: Path) -> None:
    fill(path)
    with Store.open(path, create_index=True) as store, store.reading() as txn:
        assert txn.count(Table.RECORDS) > 0


def put_verbatim(store: Store, file: Path, payloads: list[bytes]) -> list[RecordId]:
    file.write_bytes(b"".join(payloads))
    chunks, start = [], 0
    for payload in payloads:
        chunks.append((start, Extent(store.probe_chunk(payload)[0], len(payload))))
        start += len(payload)
    store.put_verbatim(file, chunks)
    file.unlink()
    return [extent.chunk_id for _, extent in chunks]


def test_a_freed_record_that_comes_back_is_freed_though_what_it_refers_to_is_gone(
    path: Path,
) -> None:
    with Store.create(path, chunk_bytes_average=1024, pack_bytes_max=2000, hash_seed=1) as store:
        file = path.parent / "file"
        put_verbatim(store, file, [noise(n, 300) for n in (0, 2, 3, 5)])
        (seventh,) = put_verbatim(store, file, [noise(7, 300)])
        chunks = [store.put(CHUNK, noise(n, 300)) for n in (1, 0, 11)]
        page = put_page(store, [(chunk, 300) for chunk in chunks])
        pin(store, [seventh])
        pin(store, [page])
        unpin(store, [page])
        assert free_dead(store, 1).records
        while free_dead(store, 10).records:
            pass
        while punch(store, 1):
            pass
    with reopen(path) as store:
        rebuild(store)
        pin(store, [seventh])
        while free_dead(store, 10).records:
            pass
        recount(store)
        assert store.get(seventh, CHUNK) == noise(7, 300)


def test_a_chunk_table_that_names_a_record_pack_changes_nothing_there(path: Path) -> None:
    with Store.create(path, compression="none") as store:
        ids = put_pinned(store, [noise(n) for n in range(3)])
        pack = store.locate(ids[0]).pack
        table = encode_chunk_table(pack, 3000, [TableChunk(100, 500, 0, RecordId(b"x" * 16))])
        pin(store, [store.put(RecordKind.CHUNK_TABLE, table)])
    with reopen(path) as store:
        rebuild(store)
        recount(store)
        for number, record_id in enumerate(ids):
            assert store.get(record_id, CHUNK) == noise(number)


@pytest.mark.parametrize("old_first", [True, False])
@pytest.mark.parametrize("old", ["empty", "lies"])
def test_of_two_chunk_tables_of_a_pack_the_truer_one_counts(
    path: Path, old_first: bool, old: str
) -> None:
    with Store.create(path, compression="none") as store:
        lies = [TableChunk(0, 900, 0, RecordId(b"x" * 16))] if old == "lies" else []
        table = encode_chunk_table(1, 3000, lies)
        if old_first:
            pin(store, [store.put(RecordKind.CHUNK_TABLE, table.replace(b"\1", b"\2", 1))])
        ids = put_verbatim(store, path.parent / "file", [noise(n) for n in range(3)])
        pin(store, ids)
        assert store.locate(ids[0]).pack == (2 if old_first else 1)
        if not old_first:
            pin(store, [store.put(RecordKind.CHUNK_TABLE, table)])
    with reopen(path) as store:
        found, _ = rebuilt(store)
        assert not found.orphans
        recount(store)
        for number, record_id in enumerate(ids):
            assert store.get(record_id, CHUNK) == noise(number)


@pytest.mark.parametrize("number", [(1 << 32) - 1, 1 << 32, 1 << 70])
def test_a_file_with_an_impossible_number_uses_no_numbers_up(path: Path, number: int) -> None:
    with Store.create(path, compression="none") as store:
        ids = put_pinned(store, [noise(1)])
        planted = store.layout.pack(number, PackKind.RECORDS)
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(b"")
    (path / "packs" / "README").write_bytes(b"")
    with reopen(path) as store:
        rebuild(store)
        pin(store, ids)
        (two,) = put_pinned(store, [noise(2, 500_000)])
        assert store.locate(two).pack < 10
        assert store.get(ids[0], CHUNK) == noise(1)
