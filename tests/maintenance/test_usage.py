"""usage adds up what is there, and foretells exactly what removing snapshots would free."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dedupfs.errors import NotFoundError
from dedupfs.format.keys import encode_location
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.usage import disk_usage, exclusive_bytes, store_usage
from dedupfs.model import RecordKind
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store, Table
from tests.maintenance.samples import damage, import_directory, make_directory, noise, rows


def logical_bytes(top: Path) -> int:
    files = {(p.stat().st_ino, p.stat().st_size) for p in top.rglob("*") if p.is_file()}
    return sum(size for _, size in files)


def test_an_empty_store_uses_only_its_index(store: Store) -> None:
    usage = store_usage(store)
    assert (usage.logical_bytes, usage.stored_bytes, usage.ratio) == (0, 0, 0.0)
    assert usage.index_bytes > 0


def test_the_sums_are_those_of_the_rows_and_the_files(filled: Store, source: Path) -> None:
    SnapshotCatalog(filled).clone("first", "second")
    usage = store_usage(filled)
    chunks = rows(filled, RecordKind.CHUNK)
    assert usage.snapshots == 2
    assert usage.logical_bytes == 2 * logical_bytes(source)
    assert usage.chunks == len(chunks)
    assert usage.chunk_logical_bytes == sum(row.location.logical_bytes for row in chunks)
    assert usage.chunk_stored_bytes == sum(row.location.stored_bytes for row in chunks)
    assert usage.metadata_records == len(rows(filled)) - len(chunks)
    assert usage.entries == 2 * len(list(source.rglob("*")))
    assert usage.garbage_bytes == 0
    assert usage.packs == sum(usage.packs_by_kind.values())
    found = disk_usage(filled.path)
    assert (usage.disk_bytes, usage.files) == (found.disk_bytes, found.files)
    assert usage.ratio == usage.logical_bytes / usage.disk_bytes


def test_garbage_is_what_gc_then_frees(filled: Store, tmp_path: Path) -> None:
    import_directory(filled, make_directory(tmp_path / "other", seed=1), "second")
    collect(filled)
    assert store_usage(filled).garbage_bytes == 0
    SnapshotCatalog(filled).remove(["first"])
    usage = store_usage(filled)
    report = collect(filled)
    assert usage.garbage_records == report.records
    assert usage.garbage_bytes == report.stored_bytes
    after = store_usage(filled)
    assert after.garbage_bytes == 0
    assert after.chunk_stored_bytes == usage.chunk_stored_bytes
    assert after.hole_bytes > 0


def test_exclusive_is_what_removing_and_gc_free(filled: Store, tmp_path: Path) -> None:
    other = make_directory(tmp_path / "other", seed=1)
    (other / "shared").write_bytes(noise((0, "large"), 150_000)[:60_000])
    import_directory(filled, other, "second")
    collect(filled)
    both = exclusive_bytes(filled, ["first", "second"])
    one = exclusive_bytes(filled, ["second"])
    assert one.logical_bytes < both.logical_bytes
    before = rows(filled)
    SnapshotCatalog(filled).remove(["second"])
    report = collect(filled)
    assert (report.records, report.stored_bytes) == (one.records, one.stored_bytes)
    freed = {row.record_id for row in before} - {row.record_id for row in rows(filled)}
    gone = [row for row in before if row.record_id in freed]
    assert one.logical_bytes == sum(
        row.location.logical_bytes for row in gone if row.location.kind is RecordKind.CHUNK
    )


def test_a_clone_leaves_nothing_exclusive_but_its_own_record(filled: Store) -> None:
    SnapshotCatalog(filled).clone("first", "second")
    assert exclusive_bytes(filled, ["first"]).records == 1
    assert exclusive_bytes(filled, ["first"]).logical_bytes == 0
    assert exclusive_bytes(filled, ["first", "second", "first"]).records == len(rows(filled))
    assert exclusive_bytes(filled, []).records == 0


def test_asking_changes_nothing(filled: Store) -> None:
    before = rows(filled)
    exclusive_bytes(filled, ["first"])
    store_usage(filled)
    assert rows(filled) == before


def test_an_unknown_snapshot_is_refused(filled: Store) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        exclusive_bytes(filled, ["nothing"])


def test_an_index_that_contradicts_itself_is_told(filled: Store) -> None:
    row = rows(filled, RecordKind.TREE)[0]
    with filled.db.writing() as txn:
        txn.put(Table.RECORDS, row.record_id, encode_location(row.location, 0))
    (problem,) = exclusive_bytes(filled, ["first"]).problems
    assert "references" in problem
    assert "dedupfs check" in problem


def test_damage_is_foretold_as_gc_treats_it(filled: Store, source: Path) -> None:
    """What is lost frees nothing, and what cannot be read is kept with all that it refers to."""
    lost = filled.digest(RecordKind.CHUNK, (source / "sub" / "small").read_bytes())
    with filled.db.writing() as txn:
        assert txn.delete(Table.RECORDS, lost)
    foretold = exclusive_bytes(filled, ["first"])
    SnapshotCatalog(filled).remove(["first"])
    assert store_usage(filled).garbage_records == foretold.records
    report = collect(filled)
    assert (report.records, report.stored_bytes) == (foretold.records, foretold.stored_bytes)


@pytest.mark.allow_log("dead record kept")
def test_an_unreadable_tree_is_foretold_to_stay(filled: Store) -> None:
    for row in rows(filled, RecordKind.TREE):
        damage(filled, row)
    path = filled.path
    filled.close()
    with Store.open(path) as store:
        foretold = exclusive_bytes(store, ["first"])
        assert foretold.records == 1
        SnapshotCatalog(store).remove(["first"])
        assert collect(store).records == foretold.records


def test_a_file_with_two_names_takes_its_blocks_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(noise(1, 100_000))
    before = disk_usage(tmp_path)
    os.link(tmp_path / "one", tmp_path / "two")
    after = disk_usage(tmp_path)
    assert after.disk_bytes == before.disk_bytes
    assert after.files == 2
