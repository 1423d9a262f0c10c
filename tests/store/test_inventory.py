"""What check, scrub and usage see: rows, pack files, damage, what every count should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.format.keys import REFERENCES_MAX
from dedupfs.format.pack import PACK_HEADER_BYTES
from dedupfs.model import PackKind, RecordKind
from dedupfs.store import Store, inventory
from dedupfs.store.scan import Damage, ScannedRecord
from tests.store.payloads import CHUNK, VIEW, noise, pin, put_page, put_pinned


def test_pack_files_are_found_whatever_the_index_says(store: Store) -> None:
    put_pinned(store, [noise(1)])
    for name in ("00/junk", "00/00000009.tmp", "07/00000001.pack"):
        path = store.layout.packs / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (store.layout.packs / "00/00000005.file").touch()
    assert [(pack, kind) for pack, kind, _ in inventory.pack_files(store)] == [
        (1, PackKind.RECORDS),
        (5, PackKind.VERBATIM),
    ]


def test_a_damaged_pack_header_costs_no_record(path: Path) -> None:
    with Store.create(path, compression="none") as store:
        ids = put_pinned(store, [noise(1), noise(2)])
        pack = path / "packs/00/00000001.pack"
        data = bytearray(pack.read_bytes())
        data[0] ^= 1
        pack.write_bytes(data)
        found = list(inventory.scan_pack(store, 1))
        assert found[0] == Damage(0, PACK_HEADER_BYTES, found[0].reason)  # type: ignore[union-attr]
        assert [one.record_id for one in found[1:] if isinstance(one, ScannedRecord)] == ids


@pytest.mark.parametrize("cut", [1, 20, 999])
def test_a_cut_pack_ends_in_torn_damage(path: Path, cut: int) -> None:
    with Store.create(path, compression="none") as store:
        first, second = put_pinned(store, [noise(1), noise(2)])
        start = store.locate(second).pack_offset - 36
        pack = path / "packs/00/00000001.pack"
        pack.write_bytes(pack.read_bytes()[: start + cut])
        found = list(inventory.scan_pack(store, 1))
        assert [one.record_id for one in found if isinstance(one, ScannedRecord)] == [first]
        last = found[-1]
        assert isinstance(last, Damage)
        assert (last.start, last.stop, last.torn) == (start, start + cut, True)


def test_counts_are_made_of_payloads_pins_and_chunk_tables(store: Store) -> None:
    chunk = store.put(CHUNK, noise(1))
    page = put_page(store, [(chunk, 1000), (chunk, 1000)])
    pin(store, [page, page, chunk])
    with store.reading() as txn:
        found = inventory.count_references(store, txn)
        assert found.counts == {chunk: 3, page: 2}
        assert list(inventory.pins(txn)) == sorted([(VIEW, chunk, 1), (VIEW, page, 2)])
        one = inventory.indexed_record(txn, chunk)
        assert one is not None
        assert one.references == 3
        assert inventory.indexed_record(txn, store.digest(CHUNK, b"other")) is None
        assert inventory.indexed_pack(txn, 99) is None


def test_a_record_whose_references_cannot_be_read_is_named(path: Path) -> None:
    with Store.create(path, compression="none") as store:
        chunk = store.put(CHUNK, noise(1))
        page = put_page(store, [(chunk, 1000)])
        pin(store, [page])
        offset = store.locate(page).pack_offset
        pack = path / "packs/00/00000001.pack"
        data = bytearray(pack.read_bytes())
        data[offset] ^= 1
        pack.write_bytes(data)
        with store.reading() as txn:
            found = inventory.count_references(store, txn)
        assert [record_id for record_id, _ in found.unreadable] == [page]
        assert chunk not in found.counts


def test_a_chunk_table_is_only_one_of_its_kind(store: Store) -> None:
    (chunk,) = put_pinned(store, [noise(1)])
    with pytest.raises(CorruptError, match="is of kind"):
        inventory.chunk_table(store, chunk)
    with pytest.raises(MissingRecordError):
        inventory.chunk_table(store, store.digest(RecordKind.CHUNK_TABLE, b""))
    with pytest.raises(CorruptError, match="missing"):
        inventory.scan_pack(store, 77)


def test_more_references_than_a_row_can_count_are_refused(store: Store) -> None:
    (chunk,) = put_pinned(store, [noise(1)])
    with pytest.raises(StoreError, match="too many"), store.transaction() as txn:
        txn.add_reference(chunk, REFERENCES_MAX)
    assert store.get(chunk, CHUNK) == noise(1)
