"""check says nothing about a sound store, and names whatever is made wrong in one.

Method: one thing at a time is changed behind the store's back, in the index or in a pack; the test
demands a problem of the right kind that names the right record or pack.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from dedupfs.errors import StoreBusyError
from dedupfs.format.keys import (
    META_COUNTER,
    META_PUNCH,
    decode_free,
    decode_pack_row,
    encode_count,
    encode_location,
    encode_pack_key,
    encode_pack_row,
    pack_free_key,
    pack_free_row,
)
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.maintenance import census as census_module
from dedupfs.maintenance import check as check_module
from dedupfs.maintenance.census import Census
from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.problems import PROBLEMS_MAX, Problems
from dedupfs.model import (
    PackKind,
    RecordKind,
)
from dedupfs.namespace.rows import view_owner_key
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import links_id_of
from dedupfs.namespace.view import View
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.holes import punch
from dedupfs.store.space import free_dead
from tests.maintenance.samples import (
    Row,
    any_row,
    damage,
    flip,
    import_directory,
    make_directory,
    noise,
    overwrite,
    pack_path,
    problems_of,
    rows,
)

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


def put_row(store: Store, row: Row, **changes: Any) -> None:
    references = changes.pop("references", row.references)
    location = dataclasses.replace(row.location, **changes)
    with store.db.writing() as txn:
        txn.put(Table.RECORDS, row.record_id, encode_location(location, references))


# --- sound stores ---------------------------------------------------------------------------------


def test_an_empty_store_is_sound(store: Store) -> None:
    report = check(store)
    assert report.ok
    assert report.records == 0


def test_a_filled_store_is_sound_and_counted(filled: Store) -> None:
    done: list[tuple[int, int]] = []
    report = check(filled, progress=lambda count, total: done.append((count, total)))
    assert report.ok
    assert report.records == len(rows(filled))
    assert report.chunks == len(rows(filled, RecordKind.CHUNK))
    assert report.snapshots == 1
    assert report.packs >= 2
    assert done[-1] == (report.records, report.records)


def test_a_store_with_garbage_and_pins_is_sound(filled: Store) -> None:
    loose = filled.put(RecordKind.CHUNK, noise("loose", 500))
    with filled.transaction() as txn:
        txn.pin(filled.owner, loose)
        txn.pin(filled.owner, loose)
    filled.put(RecordKind.CHUNK, noise("dead", 500))
    with filled.transaction():
        pass
    SnapshotCatalog(filled).remove(["first"])
    assert check(filled).ok
    collect(filled)
    assert check(filled).ok


# --- the index ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RecordKind.CHUNK, RecordKind.TREE, RecordKind.SNAPSHOT])
@pytest.mark.parametrize("change", [1, -1])
def test_a_wrong_reference_count_is_named(filled: Store, kind: RecordKind, change: int) -> None:
    row = any_row(filled, kind)
    put_row(filled, row, references=row.references + change)
    (problem,) = problems_of(filled, "references")
    assert problem.record_id == row.record_id.hex()


def test_a_missing_record_is_named_with_the_file_that_needs_it(filled: Store) -> None:
    row = any_row(filled, RecordKind.CHUNK, PackKind.VERBATIM)
    with filled.db.writing() as txn:
        txn.delete(Table.RECORDS, row.record_id)
    (problem,) = problems_of(filled, "missing")
    assert problem.record_id == row.record_id.hex()
    assert problem.uses == ("snapshot first: /large",)
    assert "/large" in str(problem)
    problems_of(filled, "live-bytes")


def test_a_dead_record_that_is_not_listed_is_named(filled: Store) -> None:
    record_id = filled.put(RecordKind.CHUNK, noise("dead", 500))
    with filled.transaction():
        pass
    with filled.db.writing() as txn:
        txn.delete(Table.DEAD, record_id)
    assert problems_of(filled, "dead")[0].record_id == record_id.hex()


def test_a_live_record_that_is_listed_as_dead_is_named(filled: Store) -> None:
    row = any_row(filled, RecordKind.CHUNK)
    with filled.db.writing() as txn:
        txn.put(Table.DEAD, row.record_id, b"")
    assert problems_of(filled, "dead")[0].record_id == row.record_id.hex()


def test_wrong_live_bytes_of_a_pack_are_named(filled: Store) -> None:
    with filled.db.writing() as txn:
        key, value = next(txn.scan(Table.PACKS))
        row = decode_pack_row(value)
        changed = dataclasses.replace(row, live_bytes=row.live_bytes + 1)
        txn.put(Table.PACKS, key, encode_pack_row(changed))
    assert "live bytes" in problems_of(filled, "live-bytes")[0].what


def test_a_location_outside_of_its_pack_is_named(filled: Store) -> None:
    row = any_row(filled, RecordKind.CHUNK)
    put_row(filled, row, pack_offset=1 << 30)
    assert problems_of(filled, "location")[0].record_id == row.record_id.hex()


def test_two_records_in_one_place_are_named(filled: Store) -> None:
    one, other, *_ = rows(filled, RecordKind.CHUNK)
    put_row(filled, one, pack=other.location.pack, pack_offset=other.location.pack_offset)
    hit = problems_of(filled, "overlap")[0].record_id
    assert hit in {one.record_id.hex(), other.record_id.hex()}


def test_a_live_record_in_a_free_range_is_named(filled: Store) -> None:
    row = any_row(filled, RecordKind.CHUNK)
    start = row.location.pack_offset - HEADER_BYTES
    with filled.db.writing() as txn:
        txn.put(Table.FREE, pack_free_key(row.location.pack, start), pack_free_row(64, 1))
    assert problems_of(filled, "overlap")[0].record_id == row.record_id.hex()


def test_a_free_range_beyond_its_pack_is_named(filled: Store) -> None:
    with filled.db.writing() as txn:
        txn.put(Table.FREE, pack_free_key(1, 1 << 40), pack_free_row(64, 1))
    assert "pack 1" in problems_of(filled, "free-range")[0].where


def test_a_free_range_that_is_never_punched_is_named(filled: Store) -> None:
    filled.put(RecordKind.CHUNK, noise("dead", 900))
    with filled.transaction():
        pass
    free_dead(filled, 10)
    assert check(filled).ok
    with filled.db.writing() as txn:
        for key in [key for key, _ in txn.scan(Table.META, META_PUNCH)]:
            txn.delete(Table.META, key)
    assert "punching" in problems_of(filled, "free-range")[0].what


@pytest.mark.parametrize("table", [Table.RECORDS, Table.PACKS, Table.FREE])
def test_a_row_that_is_none_is_named(filled: Store, table: Table) -> None:
    with filled.db.writing() as txn:
        txn.put(table, b"\x01" * 16, b"no row at all")
    assert problems_of(filled, "row")


@pytest.mark.parametrize("table", [Table.PINS, Table.SNAPSHOTS, Table.VIEWS])
def test_a_root_that_is_none_is_named(filled: Store, table: Table) -> None:
    with filled.db.writing() as txn:
        txn.put(table, b"p" + b"\x01" * 20, b"no row at all")
    assert problems_of(filled, "row")


def test_a_pack_without_a_row_is_named(filled: Store) -> None:
    row = any_row(filled, RecordKind.CHUNK)
    with filled.db.writing() as txn:
        txn.delete(Table.PACKS, encode_pack_key(row.location.pack))
    assert f"pack {row.location.pack}" in problems_of(filled, "pack")[0].where


def test_a_counter_below_what_is_in_use_is_named(filled: Store) -> None:
    with filled.db.writing() as txn:
        txn.put(Table.META, META_COUNTER + b"pack", encode_count(1))
    assert "pack" in problems_of(filled, "counter")[0].where


def test_a_snapshot_row_that_differs_from_its_record_is_named(filled: Store) -> None:
    with filled.db.writing() as txn:
        (key, value), *_ = txn.scan(Table.SNAPSHOTS)
        txn.put(Table.SNAPSHOTS, key, value.replace(b"first", b"third"))
    assert problems_of(filled, "snapshot")


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 100])
def test_a_view_without_its_journal_is_named(filled: Store, content: bytes | None) -> None:
    View.bring_back(filled, "work", snapshot="first").close()
    assert check(filled).ok
    (journal,) = (filled.path / "views" / "work").glob("journal.*")
    if content is None:
        journal.unlink()
    else:
        journal.write_bytes(content)
    (problem,) = problems_of(filled, "journal")
    assert "work" in problem.where
    assert str(journal) in problem.what


def test_a_journal_of_another_view_is_named(filled: Store) -> None:
    for name in ("one", "two"):
        View.bring_back(filled, name).close()
    (one,) = (filled.path / "views" / "one").glob("journal.*")
    (two,) = (filled.path / "views" / "two").glob("journal.*")
    one.write_bytes(two.read_bytes())
    assert "view one" in problems_of(filled, "journal")[0].where


def test_pins_of_a_view_that_is_no_more_are_named(filled: Store) -> None:
    record_id = filled.put(RecordKind.CHUNK, noise("pinned", 500))
    with filled.transaction() as txn:
        txn.pin(view_owner_key(77), record_id)
    assert problems_of(filled, "pin")[0].where == f"record {record_id.hex()}"


# --- packs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        RecordKind.CHUNK,
        RecordKind.CHUNK_TABLE,
        RecordKind.RECIPE,
        RecordKind.RECIPE_PAGE,
        RecordKind.TREE,
        RecordKind.SNAPSHOT,
    ],
)
def test_a_damaged_header_is_named(filled: Store, kind: RecordKind) -> None:
    row = any_row(filled, kind)
    flip(pack_path(filled, row.location.pack), row.location.pack_offset - HEADER_BYTES + 9)
    (problem,) = problems_of(filled, "record")
    assert problem.record_id == row.record_id.hex()


@pytest.mark.parametrize(
    "kind", [RecordKind.TREE, RecordKind.RECIPE, RecordKind.RECIPE_PAGE, RecordKind.SNAPSHOT]
)
def test_damaged_metadata_is_named_and_blames_nothing_else(filled: Store, kind: RecordKind) -> None:
    row = any_row(filled, kind)
    damage(filled, row)
    report = check(filled)
    assert [problem.code for problem in report.problems] == ["record"]
    (problem,) = report.problems
    assert problem.record_id == row.record_id.hex()
    assert str(pack_path(filled, row.location.pack)) in problem.where
    assert problem.uses
    assert all(use.startswith("snapshot first: /") for use in problem.uses)


def test_a_chunk_that_its_chunk_table_does_not_list_is_named(filled: Store) -> None:
    row = any_row(filled, RecordKind.CHUNK, PackKind.VERBATIM)
    put_row(filled, row, salt=3)
    assert problems_of(filled, "chunk-table")[0].record_id == row.record_id.hex()


def test_a_pack_that_is_cut_off_is_named(filled: Store) -> None:
    path = pack_path(filled, any_row(filled, RecordKind.TREE).location.pack)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert str(path) in problems_of(filled, "pack")[0].where
    problems_of(filled, "record")


def test_a_missing_pack_is_named(filled: Store) -> None:
    pack_path(filled, 1).unlink()
    assert "pack 1" in problems_of(filled, "pack")[0].where


def test_a_damaged_trailer_of_a_sealed_pack_is_named(store: Store) -> None:
    for number in range(300):
        record_id = store.put(RecordKind.CHUNK, noise(number, 900))
        with store.transaction() as txn:
            txn.pin(store.owner, record_id)
    sealed = next(
        path for path in store.layout.packs.glob("*/*.pack") if not path.stat().st_mode & 0o200
    )
    assert check(store).ok
    flip(sealed, sealed.stat().st_size - 3)
    (problem,) = problems_of(store, "pack")
    assert str(sealed) in problem.where


def test_a_damaged_pack_header_is_named(filled: Store) -> None:
    overwrite(pack_path(filled, any_row(filled, RecordKind.TREE).location.pack), 2, b"??")
    assert problems_of(filled, "pack")


# --- beside others --------------------------------------------------------------------------------


def interfere(
    monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], times: int
) -> list[int]:
    """Run ``action`` in each of the first ``times`` checks, between its rows and its packs."""
    done: list[int] = []

    def take_census(txn: ReadTxn) -> Census:
        found = census_module.take_census(txn)
        if len(done) < times:
            done.append(1)
            action()
        return found

    monkeypatch.setattr(check_module, "take_census", take_census)
    return done


def ignore_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "exclusive", lambda *_lock: nullcontext())


def test_what_is_freed_in_the_middle_of_a_check_can_still_be_read(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_directory(filled, make_directory(tmp_path / "other", seed=1), "second")

    def remove() -> None:
        SnapshotCatalog(filled).remove(["first"])
        while free_dead(filled, 50).more:
            pass
        assert punch(filled, 50, wait=False) == 0

    done = interfere(monkeypatch, remove, 1)
    report = check(filled)
    assert done
    assert report.ok, report.problems
    assert report.snapshots == 2
    assert punch(filled, 50, wait=False)
    assert check(filled).ok


def test_a_gc_that_ignores_the_lock_makes_the_check_start_again(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_directory(filled, make_directory(tmp_path / "other", seed=1), "second")

    def remove() -> None:
        SnapshotCatalog(filled).remove(["first"])
        collect(filled)

    ignore_the_lock(monkeypatch)
    done = interfere(monkeypatch, remove, 1)
    report = check(filled)
    assert done
    assert report.ok, report.problems
    assert report.snapshots == 1


def test_an_import_in_the_middle_of_a_check_is_not_in_it(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_directory(tmp_path / "other", seed=1)
    interfere(monkeypatch, lambda: import_directory(filled, directory, "second"), 1)
    report = check(filled)
    assert report.ok, report.problems
    assert report.snapshots == 1


def test_a_check_that_is_never_let_finish_says_so(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(100))

    def replace() -> None:
        number = next(numbers)
        top = make_directory(tmp_path / f"d{number}", seed=number)
        for info in SnapshotCatalog(filled).list():
            SnapshotCatalog(filled).remove([info.name])
        import_directory(filled, top, f"s{number}")
        collect(filled)

    ignore_the_lock(monkeypatch)
    interfere(monkeypatch, replace, 100)
    with pytest.raises(StoreBusyError, match="check again"):
        check(filled)


def test_very_many_problems_are_counted_but_not_all_kept() -> None:
    problems = Problems()
    for number in range(PROBLEMS_MAX + 7):
        problems.add("code", f"{number}", "what")
    assert len(problems.found) == PROBLEMS_MAX
    assert problems.left_off == 7
    assert len(problems) == PROBLEMS_MAX + 7


def test_free_ranges_are_where_gc_says(filled: Store) -> None:
    """The index of a store with holes is still sound, and its ranges lie in its packs."""
    SnapshotCatalog(filled).clone("first", "copy")
    SnapshotCatalog(filled).remove(["first"])
    collect(filled)
    with filled.reading() as txn:
        ranges = [decode_free(key, value) for key, value in txn.scan(Table.FREE)]
    assert ranges
    assert check(filled).ok


def test_a_damaged_links_tree_is_one_problem(filled: Store) -> None:
    links = {links_id_of(info.root) for info in SnapshotCatalog(filled).list()}
    (row,) = (row for row in rows(filled) if row.record_id in links)
    damage(filled, row)
    (problem,) = check(filled).problems
    assert (problem.code, problem.record_id) == ("record", row.record_id.hex())
    damage(filled, row)
    assert check(filled).ok
