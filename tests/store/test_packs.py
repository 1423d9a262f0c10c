"""Packs: sealed when full, taken over from the dead, cut where torn, walked past damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dedupfs.errors import CorruptError
from dedupfs.format.pack import HEADER_BYTES, PACK_HEADER_BYTES
from dedupfs.model import PackKind, RecordId
from dedupfs.store import RealDisk, Store, inventory
from dedupfs.store.disk import File
from dedupfs.store.scan import Damage, PackScanner, ScannedRecord
from tests.store.conftest import MakeStore
from tests.store.payloads import CHUNK, noise, piece, put_pinned
from tests.store.recount import recount


def rows(store: Store) -> dict[int, tuple[bool, int]]:
    with store.reading() as txn:
        return {
            pack: (row.sealed, row.committed_bytes) for pack, row in inventory.indexed_packs(txn)
        }


def pack_path(store: Store, pack: int) -> Path:
    return store.layout.pack(pack, PackKind.RECORDS)


def flip(path: Path, offset: int) -> None:
    """Turn one byte of a file over."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


def records(store: Store, pack: int) -> list[RecordId]:
    found = inventory.scan_pack(store, pack)
    return [one.record_id for one in found if isinstance(one, ScannedRecord)]


def test_a_full_pack_is_sealed_and_read_only(make_store: MakeStore) -> None:
    store = make_store(compression="none", pack_bytes_max=5000)
    ids = put_pinned(store, [noise(seed) for seed in range(10)])
    assert {pack: sealed for pack, (sealed, _) in rows(store).items()} == {1: True, 2: False}
    assert pack_path(store, 1).stat().st_mode & 0o777 == 0o400
    assert pack_path(store, 2).stat().st_mode & 0o777 == 0o600
    scanner = inventory.scanner(store, 1)
    assert scanner.read_trailer() is not None
    assert records(store, 1) + records(store, 2) == ids
    assert [store.get(record_id, CHUNK) for record_id in ids] == [noise(n) for n in range(10)]


def test_a_seal_is_committed_with_the_records_before_it(make_store: MakeStore) -> None:
    store = make_store(compression="none", pack_bytes_max=5000)
    ids = [store.put(CHUNK, noise(seed)) for seed in range(20)]
    assert [store.get(record_id, CHUNK) for record_id in ids] == [noise(n) for n in range(20)]
    assert not any(sealed for sealed, _ in rows(store).values())
    store.drop_pending()
    assert set(rows(store).values()) == {(False, 0)}
    put_pinned(store, [noise(seed) for seed in range(20)])
    assert sum(sealed for sealed, _ in rows(store).values()) == 3


def test_the_next_process_goes_on_in_the_same_pack(path: Path) -> None:
    for seed in range(3):
        with Store.create(path) if seed == 0 else Store.open(path) as store:
            put_pinned(store, [noise(seed)])
            assert list(rows(store)) == [1]
            recount(store)


def test_a_pack_taken_over_is_sealed_with_all_its_records(path: Path) -> None:
    ids: list[RecordId] = []
    with Store.create(path, compression="none", pack_bytes_max=5000) as store:
        ids += put_pinned(store, [noise(1), noise(2)])
    with Store.open(path) as store:
        ids += put_pinned(store, [noise(seed) for seed in range(3, 7)])
        table = inventory.scanner(store, 1)
        flip(pack_path(store, 1), PACK_HEADER_BYTES)  # the first header: the table still knows
        found = list(inventory.scan_pack(store, 1))
        assert isinstance(found[0], Damage)
        assert [one.record_id for one in found if isinstance(one, ScannedRecord)] == ids[1:5]
        assert table.read_trailer() is not None


@pytest.mark.parametrize("tail", [b"x", b"DFR1" + bytes(40), bytes(5000)])
def test_a_torn_tail_is_cut_off_by_the_next_writer(path: Path, tail: bytes) -> None:
    with Store.create(path) as store:
        (first,) = put_pinned(store, [noise(1)])
        pack = pack_path(store, 1)
    whole = pack.read_bytes()
    pack.write_bytes(whole + tail)
    with Store.open(path) as store:
        assert store.get(first, CHUNK) == noise(1)
        second = store.put(CHUNK, noise(2))
        store.sync()
        assert pack.read_bytes()[: len(whole)] == whole
        assert pack.stat().st_size == len(whole) + HEADER_BYTES + 1000
        assert store.get(second, CHUNK) == noise(2)
        recount(store)


class WatchedDisk(RealDisk):
    """Notes how many bytes are read."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def pread(self, file: File, length: int, offset: int) -> bytes:
        data = super().pread(file, length, offset)
        self.read_bytes += len(data)
        return data


def test_a_tail_of_whole_records_is_cut_off_without_reading_what_is_in_front(path: Path) -> None:
    """A daemon that takes over from a dead one does this while callers wait."""
    with Store.create(path) as store:
        put_pinned(store, [noise(number, 1 << 16) for number in range(100)])
        committed_bytes = pack_path(store, 1).stat().st_size
        store.put(CHUNK, noise("tail"))
        store.sync()
        whole = pack_path(store, 1).read_bytes()
    pack_path(store, 1).write_bytes(whole)
    disk = WatchedDisk()
    with Store.open(path, disk=disk) as store:
        store.drop_tails()
        assert pack_path(store, 1).stat().st_size == committed_bytes
        assert disk.read_bytes < committed_bytes // 4
        recount(store)


@pytest.mark.allow_log("pack shorter than committed")
def test_a_pack_that_lost_committed_bytes_is_left_alone(path: Path) -> None:
    with Store.create(path) as store:
        lost, kept = put_pinned(store, [noise(1), noise(2)])
        pack = pack_path(store, 1)
        cut = store.locate(kept).pack_offset + 5
    os.truncate(pack, cut)
    with Store.open(path) as store:
        assert put_pinned(store, [noise(3)])
        assert list(rows(store)) == [1, 2]
        assert store.get(lost, CHUNK) == noise(1)
        with pytest.raises(CorruptError):
            store.get(kept, CHUNK)
        with pytest.raises(CorruptError):
            store.read([piece(kept, 1000)])


def test_a_missing_pack_is_named(path: Path) -> None:
    with Store.create(path) as store:
        (lost,) = put_pinned(store, [noise(1)])
        pack_path(store, 1).unlink()
    with Store.open(path) as store, pytest.raises(CorruptError, match="pack 1 is missing"):
        store.get(lost, CHUNK)


@pytest.mark.allow_log("pack sealed without a table")
def test_a_damaged_header_does_not_stop_a_pack_from_being_sealed(path: Path) -> None:
    with Store.create(path, compression="none", pack_bytes_max=3000) as store:
        put_pinned(store, [noise(1)])
    flip(path / "packs/00/00000001.pack", PACK_HEADER_BYTES + 3)
    with Store.open(path) as store:
        ids = put_pinned(store, [noise(seed) for seed in range(2, 8)])
        assert rows(store)[1][0]
        assert [store.get(record_id, CHUNK) for record_id in ids] == [noise(n) for n in range(2, 8)]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_scan_goes_on_behind_a_damaged_header(make_store: MakeStore, sealed: bool) -> None:
    store = make_store(compression="none", pack_bytes_max=4000 if sealed else 1 << 20)
    ids = put_pinned(store, [noise(seed) for seed in range(4)])
    put_pinned(store, [noise("next pack")])
    start = store.locate(ids[1]).pack_offset - HEADER_BYTES
    flip(pack_path(store, 1), start + 8)
    found = list(inventory.scan_pack(store, 1))
    damage = [one for one in found if isinstance(one, Damage)]
    assert [(one.start, one.stop) for one in damage] == [(start, start + HEADER_BYTES + 1000)]
    left = [one.record_id for one in found if isinstance(one, ScannedRecord)]
    assert left[:3] == [ids[0], ids[2], ids[3]]
    flip(pack_path(store, 1), start + 8)


def test_a_scan_is_not_led_into_a_pack_that_is_a_payload(make_store: MakeStore) -> None:
    """Goal: a header is bound to its place, so a store inside a store is only bytes."""
    store = make_store(compression="none")
    put_pinned(store, [noise(1), noise(2)])
    (outer,) = put_pinned(store, [pack_path(store, 1).read_bytes()])
    (last,) = put_pinned(store, [noise(3)])
    start = store.locate(outer).pack_offset - HEADER_BYTES
    flip(pack_path(store, 1), start)
    found = list(inventory.scan_pack(store, 1))[2:]
    assert isinstance(found[0], Damage)
    assert isinstance(found[1], ScannedRecord)
    assert found[1].record_id == last
    flip(pack_path(store, 1), start)


def test_any_bytes_can_be_scanned(tmp_path: Path, store: Store) -> None:
    for seed in range(50):
        path = tmp_path / "junk"
        path.write_bytes(noise(seed, seed * 37) + b"DFR1" * (seed % 3))
        file = store.disk.open(path)
        found = list(PackScanner(store.disk, file, 1, 7).scan())
        assert not [one for one in found if not isinstance(one, Damage)]
        assert all(one.start < one.stop for one in found if path.stat().st_size)


def test_a_damaged_payload_is_never_served(path: Path) -> None:
    with Store.create(path, compression="none") as store:
        good, bad = put_pinned(store, [noise(1), noise(2)])
        place = store.locate(bad)
    flip(path / "packs/00/00000001.pack", place.pack_offset + 999)
    with Store.open(path) as store:
        assert store.read([piece(good, 1000)]) == noise(1)
        for read in (store.read, store.read_cached):
            with pytest.raises(
                CorruptError, match=rf"00000001.pack at pack_offset={place.pack_offset}"
            ):
                read([piece(good, 1000), piece(bad, 1)])
        with pytest.raises(CorruptError, match="expected digest"):
            store.get(bad, CHUNK)
        with pytest.raises(CorruptError):
            inventory.verify(store, bad, place)
        again = store.put(CHUNK, noise(2))  # a damaged record is not taken for a duplicate
        assert again != bad
        assert store.get(again, CHUNK) == noise(2)
