"""What a checkout holds stays whole: beside gc, without its snapshot, and with the index lost.

Each store ends with `check` and `scrub` clean. The directory with the links is other tests'
(tests/checkout); here is the registry alone, and what check, gc and reindex do about it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dedupfs.errors import NotFoundError, StoreBusyError
from dedupfs.format.manifest import HeldPack, Manifest, Shown
from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.model import PackKind, RecordId, SnapshotInfo
from dedupfs.namespace.checkouts import (
    Registration,
    begin_checkout,
    list_numbers,
    manifest_path,
    open_checkout,
    read_checkouts,
)
from dedupfs.namespace.contents import load_recipe
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store, Table
from dedupfs.store.assemble import assemble
from tests.maintenance.samples import (
    SMALL,
    import_directory,
    lose_index,
    make_directory,
    noise,
    overwrite,
    problems_of,
    sound,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one snapshot, `one`, whose file `medium` lies in no verbatim pack."""
    directory = make_directory(tmp_path / "source")
    with Store.create(tmp_path / "store", **SMALL) as store:
        import_directory(store, directory, "one")
    return tmp_path / "store"


def make(store: Store, info: SnapshotInfo) -> tuple[Registration, int]:
    """Do what a checkout of `medium` as a link does, up to its manifest."""
    registration = begin_checkout(store)
    registration.hold([info.root])
    entry = TreeReader(store).walk_path(info.root, b"medium")
    pack = assemble(store, load_recipe(store, entry.content), registration.owner).pack
    status = store.layout.pack(pack, PackKind.VERBATIM).stat()
    registration.save(
        Manifest(
            number=registration.number,
            kind="checkout",
            token="00" * 8,
            directory=b"/nowhere",
            created_ns=1,
            now=Shown("one", info.sequence, b"", info.root, "symlink"),
            packs=(HeldPack(pack, status.st_size, status.st_mtime_ns),),
            links=((entry.content, pack),),
        )
    )
    return registration, pack


def pack_path(path: Path, pack: int) -> Path:
    return path / "packs" / "00" / f"{pack:08d}.file"


def wanted() -> bytes:
    return noise((0, "medium"), 20_000)


def test_a_checkout_outlives_its_snapshot_and_goes_with_its_manifest(path: Path) -> None:
    with Store.open(path) as store:
        registration, pack = make(store, SnapshotCatalog(store).get("one"))
        registration.close()
        SnapshotCatalog(store).remove(["one"])
        collect(store)
        assert check(store).checkouts == 1
    assert pack_path(path, pack).read_bytes() == wanted()
    sound(path)
    with Store.open(path) as store:
        with open_checkout(store, registration.number) as again:
            again.drop()
        collect(store)
        with store.reading() as txn:
            assert not txn.count(Table.PINS)
        assert not os.listdir(path / "checkouts")
    assert not pack_path(path, pack).exists()
    sound(path)


@pytest.mark.parametrize("is_removed", [True, False])
def test_pins_come_back_from_the_manifest_when_the_index_is_lost(
    path: Path, is_removed: bool
) -> None:
    with Store.open(path) as store:
        registration, pack = make(store, SnapshotCatalog(store).get("one"))
        registration.close()
        if is_removed:
            SnapshotCatalog(store).remove(["one"])
    lose_index(path)
    report = reindex(path)
    assert report.ok, report
    assert report.checkouts == [registration.number]
    with Store.open(path) as store:
        collect(store)
        assert begin_checkout(store).number > registration.number
    assert pack_path(path, pack).read_bytes() == wanted()
    sound(path)


def test_a_snapshot_made_later_does_not_get_the_number_of_one_that_a_checkout_knows(
    path: Path,
) -> None:
    """That one is removed and forgotten: a dedupe would take the later one for its own."""
    with Store.open(path) as store:
        catalog = SnapshotCatalog(store)
        last = catalog.clone("one", "last")
        registration, _pack = make(store, last)
        registration.close()
        catalog.remove(["last"])
        collect(store)
    lose_index(path)
    assert reindex(path).ok
    with Store.open(path) as store:
        assert SnapshotCatalog(store).clone("one", "last").sequence > last.sequence
    sound(path)


def test_what_a_dead_maker_held_is_dropped_by_gc_and_a_live_one_keeps_it(path: Path) -> None:
    with Store.open(path) as store:
        info = SnapshotCatalog(store).get("one")
        tree_id = RecordId(info.root.content[:16])
        registration = begin_checkout(store)
        registration.hold([info.root])
        SnapshotCatalog(store).remove(["one"])
        collect(store)
        assert store.has(tree_id), "its maker lives"
        registration._lock.close()  # as when it dies
        collect(store)
        assert not store.has(tree_id)
        assert not os.listdir(path / "checkouts")
    sound(path)


def test_a_maker_that_gives_up_leaves_nothing(path: Path) -> None:
    with Store.open(path) as store:
        with begin_checkout(store) as registration:
            registration.hold([SnapshotCatalog(store).get("one").root])
        assert not list_numbers(store)
        with store.reading() as txn:
            assert not txn.count(Table.PINS)
    sound(path)


def test_pins_that_no_manifest_names_go_and_others_stay(path: Path) -> None:
    with Store.open(path) as store:
        info = SnapshotCatalog(store).get("one")
        registration, pack = make(store, info)
        entry = TreeReader(store).walk_path(info.root, b"sub/text")
        other = assemble(store, load_recipe(store, entry.content), registration.owner).pack
        registration.close()
        collect(store)
        with store.reading() as txn:
            held = {held.pack for found in read_checkouts(store)[0] for held in found.packs}
            assert held == {pack}
            assert txn.get(Table.PINS, registration.owner + store.chunk_table_of(txn, pack))
            table = store.chunk_table_of(txn, other)
            assert txn.get(Table.PINS, registration.owner + table) is None
    sound(path)


def test_one_process_at_a_time_changes_a_checkout(path: Path) -> None:
    with Store.open(path) as store:
        registration, _ = make(store, SnapshotCatalog(store).get("one"))
        with pytest.raises(StoreBusyError):
            open_checkout(store, registration.number)
        registration.close()
        with open_checkout(store, registration.number) as again:
            again.drop()
        with pytest.raises(NotFoundError):
            open_checkout(store, registration.number)
    sound(path)


def test_check_tells_lost_pins_and_a_damaged_manifest(path: Path) -> None:
    with Store.open(path) as store:
        registration, pack = make(store, SnapshotCatalog(store).get("one"))
        registration.close()
        with store.transaction() as txn:
            txn.release_pins(registration.owner)
        (problem,) = problems_of(store, "checkout")
        assert "pins are missing" in problem.what
    assert reindex(path).ok
    sound(path)
    with Store.open(path) as store:
        good = manifest_path(store, registration.number).read_bytes()
        overwrite(manifest_path(store, registration.number), 30, b"?")
        problems_of(store, "checkout")
        collect(store)
        assert pack_path(path, pack).read_bytes() == wanted(), "nobody knows what it needs"
    assert reindex(path).lost_checkouts
    overwrite(path / "checkouts" / str(registration.number), 0, good)
    assert reindex(path).ok
    sound(path)


@pytest.mark.allow_log("chunk table unreadable|damaged")
def test_a_pack_whose_chunk_table_is_lost_is_still_what_links_point_at(path: Path) -> None:
    with Store.open(path) as store:
        registration, pack = make(store, SnapshotCatalog(store).get("one"))
        registration.close()
        with store.reading() as txn:
            place = store.locate(store.chunk_table_of(txn, pack))
        record_pack = store.layout.pack(place.pack, PackKind.RECORDS)
    overwrite(record_pack, place.pack_offset, b"\xff" * place.stored_bytes)
    reindex(path)
    with Store.open(path) as store:
        collect(store)
    assert pack_path(path, pack).read_bytes() == wanted()
