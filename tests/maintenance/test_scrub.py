"""scrub reads every live byte: whatever is changed in a pack is found and named with its files.

Method: bits are turned round, ranges zeroed and packs cut off behind the store's back; the report
must name the record, its place, and the paths of all snapshots that hold it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dedupfs.errors import StoreError
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.maintenance import scrub as scrub_module
from dedupfs.maintenance.census import Census, Member
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.scrub import ScrubReport, scrub
from dedupfs.model import PackKind, RecordKind
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import ReadTxn, Store
from tests.maintenance.samples import (
    Row,
    damage,
    flip,
    import_directory,
    make_directory,
    noise,
    overwrite,
    pack_path,
    rows,
)


def named_paths(report: ScrubReport) -> set[str]:
    return {str(use) for found in report.damage for use in found.uses}


def test_a_sound_store_is_read_to_the_last_byte(filled: Store) -> None:
    told: list[tuple[int, int]] = []
    report = scrub(filled, progress=lambda done, total: told.append((done, total)))
    assert report.ok
    assert report.records == len(rows(filled))
    stored = sum(row.location.stored_bytes for row in rows(filled))
    assert report.stored_bytes >= stored
    assert told[-1][0] == told[-1][1]


def test_an_empty_store_is_sound(store: Store) -> None:
    assert scrub(store).ok


@pytest.mark.parametrize("from_disk", [True, False])
def test_a_turned_bit_anywhere_in_a_record_is_found(filled: Store, from_disk: bool) -> None:
    chance = random.Random(5)
    for row in chance.sample(rows(filled), 40):
        location = row.location
        path = pack_path(filled, location.pack)
        head = HEADER_BYTES if path.suffix == ".pack" else 0
        offset = chance.randrange(
            location.pack_offset - head, location.pack_offset + location.stored_bytes
        )
        bit = chance.randrange(8)
        flip(path, offset, bit)
        report = scrub(filled, from_disk=from_disk)
        assert [found.record_id for found in report.damage] == [row.record_id]
        (found,) = report.damage
        assert (found.pack, found.pack_offset) == (location.pack, location.pack_offset)
        assert found.path == path
        assert str(path) in str(found)
        flip(path, offset, bit)
    assert scrub(filled, from_disk=from_disk).ok


def row_of_chunk(store: Store, entry_bytes: bytes) -> Row:
    identity = store.digest(RecordKind.CHUNK, entry_bytes)
    (row,) = (row for row in rows(store) if row.record_id == identity)
    return row


def test_the_files_of_a_damaged_chunk_are_named_in_every_snapshot(
    filled: Store, source: Path
) -> None:
    SnapshotCatalog(filled).clone("first", "copy")
    small = row_of_chunk(filled, (source / "sub" / "small").read_bytes())
    damage(filled, small)
    report = scrub(filled)
    assert named_paths(report) == {"snapshot first: /sub/small", "snapshot copy: /sub/small"}
    assert "expected digest" in report.damage[0].what


def test_all_names_of_a_hard_linked_file_are_named(filled: Store) -> None:
    for row in rows(filled):
        if row.location.kind is RecordKind.CHUNK:
            damage(filled, row)
    paths = named_paths(scrub(filled))
    assert {"snapshot first: /second name", "snapshot first: /sub/deep/linked"} <= paths
    assert {"snapshot first: /large", "snapshot first: /medium"} <= paths
    assert "snapshot first: /sub/nothing" not in paths


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (RecordKind.RECIPE, "/large"),
        (RecordKind.RECIPE_PAGE, "/large"),
        (RecordKind.SNAPSHOT, "/"),
    ],
)
def test_damaged_metadata_is_named_with_what_it_makes_unreadable(
    filled: Store, kind: RecordKind, where: str
) -> None:
    for row in rows(filled, kind):
        damage(filled, row)
    assert f"snapshot first: {where}" in named_paths(scrub(filled))


def test_a_damaged_tree_hits_its_directory(filled: Store, source: Path) -> None:
    for row in rows(filled, RecordKind.TREE):
        damage(filled, row)
    paths = named_paths(scrub(filled))
    assert "snapshot first: /" in paths
    assert len(paths) == 1  # what lies below a lost root has no path any more


def test_a_damaged_page_of_a_large_directory_is_named(store: Store, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "many").mkdir(parents=True)
    for number in range(1500):
        (top / "many" / f"{number:05d}").write_bytes(b"")
    import_directory(store, top, "first")
    damage(store, rows(store, RecordKind.TREE_PAGE)[0])
    report = scrub(store)
    assert named_paths(report) == {"snapshot first: /many"}


def test_a_zeroed_range_is_found(filled: Store) -> None:
    overwrite(pack_path(filled, 1), 10_000, bytes(20_000))
    report = scrub(filled)
    assert report.damaged_records > 5
    assert named_paths(report) == {"snapshot first: /large"}


def test_a_pack_that_is_cut_off_is_found(filled: Store) -> None:
    path = pack_path(filled, 1)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(100_000)
    report = scrub(filled)
    assert not report.ok
    assert any("ends" in found.what for found in report.damage)


def test_a_missing_pack_is_found(filled: Store) -> None:
    pack_path(filled, 1).unlink()
    report = scrub(filled)
    assert {found.what for found in report.damage} == {"its pack is missing"}
    assert named_paths(report) == {"snapshot first: /large"}


def test_damage_in_freed_space_is_none(filled: Store, tmp_path: Path) -> None:
    import_directory(filled, make_directory(tmp_path / "other", seed=1), "second")
    gone = [row for row in rows(filled) if row.references == 1]
    SnapshotCatalog(filled).remove(["first"])
    collect(filled)
    left = {row.record_id for row in rows(filled)}
    freed = [row for row in gone if row.record_id not in left]
    assert freed
    for row in freed:
        path = filled.layout.pack(row.location.pack, PackKind.RECORDS)
        if path.exists():
            overwrite(path, row.location.pack_offset, b"?")
    assert scrub(filled).ok


def test_what_gc_frees_during_a_scrub_is_no_damage(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_directory(filled, make_directory(tmp_path / "other", seed=1), "second")
    members = Census.members
    done: list[int] = []

    def then_collect(census: Census, txn: ReadTxn, pack: int) -> list[Member]:
        found = members(census, txn, pack)
        if not done:
            done.append(1)
            SnapshotCatalog(filled).remove(["first"])
            collect(filled)
        return found

    monkeypatch.setattr(Census, "members", then_collect)
    report = scrub(filled, threads=1)
    assert done
    assert report.ok, report.damage


def test_a_pack_that_cannot_be_read_is_damage_not_the_end(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> memoryview:
        raise StoreError("cannot read it: Input/output error")

    monkeypatch.setattr(scrub_module, "read_run", fail)
    report = scrub(filled)
    assert report.damaged_records == len(rows(filled))
    assert "Input/output error" in str(report.damage[0])


def test_damage_that_hits_no_file_says_so(filled: Store) -> None:
    filled.put(RecordKind.CHUNK, noise("x", 300))
    with filled.transaction():
        pass
    damage(filled, row_of_chunk(filled, noise("x", 300)))
    report = scrub(filled)
    assert "no file of a snapshot or view" in str(report.damage[0])
