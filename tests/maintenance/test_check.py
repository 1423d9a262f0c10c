"""check says nothing about a sound store, and names whatever is made wrong in one.

Method: one thing at a time is changed behind the store's back, in the index or in a pack; the test
demands a problem of the right kind that names the right record or pack.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dedupfs.errors import StoreBusyError
from dedupfs.format.keys import (
    META_COUNTER,
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
from dedupfs.format.tree import encode_extents, encode_tree
from dedupfs.maintenance import census as census_module
from dedupfs.maintenance import check as check_module
from dedupfs.maintenance.census import Census
from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.problems import PROBLEMS_MAX, Problem, Problems
from dedupfs.model import (
    LINK_MODE,
    Extent,
    PackKind,
    RecordId,
    RecordKind,
    Tree,
    TreeEntry,
)
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import directory_entry, put_tree
from dedupfs.store import ReadTxn, Store, Table
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

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


def problems_of(store: Store, code: str) -> list[Problem]:
    report = check(store)
    assert not report.ok
    found = [problem for problem in report.problems if problem.code == code]
    assert found, f"no {code!r} among {report.problems}"
    for problem in report.problems:
        assert problem.where
        assert problem.what
        assert problem.advice
        assert problem.where in str(problem)
    return found


def put_row(store: Store, row: Row, **changes: Any) -> None:
    references = changes.pop("references", row.references)
    location = dataclasses.replace(row.location, **changes)
    with store.db.writing() as txn:
        txn.put(Table.RECORDS, row.record_id, encode_location(location, references))


def any_row(store: Store, kind: RecordKind, pack_kind: PackKind = PackKind.RECORDS) -> Row:
    with store.reading() as txn:
        for row in rows(store, kind):
            found = txn.get(Table.PACKS, encode_pack_key(row.location.pack))
            assert found is not None
            if decode_pack_row(found).kind is pack_kind:
                return row
    raise AssertionError(f"no {kind.name} in a {pack_kind.name} pack")


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


def test_large_directories_in_pages_are_sound(store: Store) -> None:
    entries = [
        TreeEntry(b"%06d" % number, number + 1, FILE, size=0, content=b"") for number in range(5000)
    ]
    add(store, entries, next_slot=5001)
    assert rows(store, RecordKind.TREE_PAGE)
    assert check(store).ok


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


def test_a_damaged_pack_header_is_named(filled: Store) -> None:
    overwrite(pack_path(filled, any_row(filled, RecordKind.TREE).location.pack), 2, b"??")
    assert problems_of(filled, "pack")


# --- trees ----------------------------------------------------------------------------------------


def add(
    store: Store,
    entries: list[TreeEntry],
    *,
    next_slot: int = 100,
    name: str = "made",
    links: list[TreeEntry] | None = None,
    **claims: Any,
) -> RecordId:
    """Make a snapshot of these entries, whose root says what ``claims`` says."""
    tree_id = put_tree(store, entries, next_slot)
    root = directory_entry(
        b"",
        0,
        entries,
        tree_id,
        mode=DIRECTORY,
        uid=0,
        gid=0,
        mtime_ns=1,
        links_id=put_tree(store, links, 100) if links else None,
    )
    SnapshotCatalog(store).add(name, msgspec.structs.replace(root, **claims), created_ns=1)
    return tree_id


def chunk(store: Store, length: int) -> bytes:
    return encode_extents([Extent(store.put(RecordKind.CHUNK, noise(0, length)), length)])


def test_the_trees_that_these_tests_make_are_sound(store: Store) -> None:
    file = TreeEntry(b"a", 1, FILE, size=300, content=chunk(store, 300))
    link = TreeEntry(b"b", 2, LINK_MODE, content=bytes(8))
    other = TreeEntry(b"c", 3, LINK_MODE, content=bytes(8))
    inode = TreeEntry(bytes(8), 1, FILE, size=300, content=file.content, nlink=2)
    add(store, [file, link, other], links=[inode])
    report = check(store)
    assert report.ok, report.problems


@pytest.mark.parametrize("claim", [{"size": 5}, {"count": 2}, {"nlink": 3}, {"has_links": True}])
def test_a_directory_that_says_something_else_than_it_holds_is_named(
    store: Store, claim: dict[str, Any]
) -> None:
    tree_id = add(store, [TreeEntry(b"a", 1, FILE)], **claim)
    (problem,) = problems_of(store, "tree")
    assert problem.record_id == tree_id.hex()
    assert problem.uses == ("snapshot made: /",)


def empty(name: bytes, slot: int) -> TreeEntry:
    return TreeEntry(name, slot, FILE)


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([empty(b"b", 1), empty(b"a", 2)], "sorted"),
        ([empty(b"a", 1), empty(b"a", 2)], "sorted"),
        ([empty(b"a", 1), empty(b"b", 1)], "twice"),
        ([empty(b"a", 0)], "slots"),
        ([empty(b"a", 100)], "slots"),
        ([empty(b"a/b", 1)], "name"),
        ([empty(b"..", 1)], "name"),
        ([empty(b"a", 1), empty(b"", 2)], "sorted"),
        ([TreeEntry(b"a", 1, 0o050000)], "mode"),
        ([TreeEntry(b"a", 1, FILE, size=7)], "extents"),
        ([TreeEntry(b"a", 1, stat.S_IFLNK | 0o777, size=7, content=b"abc")], "target"),
        ([TreeEntry(b"a", 1, DIRECTORY, nlink=3)], "empty directory"),
        ([TreeEntry(b"a", 1, LINK_MODE, content=b"abc")], "link"),
        ([TreeEntry(b"a", 1, LINK_MODE, content=bytes(8))], "no links tree"),
    ],
)
def test_a_bad_tree_is_named(store: Store, entries: list[TreeEntry], what: str) -> None:
    add(store, entries)
    report = check(store)
    assert any(what in f"{problem.where} {problem.what}" for problem in report.problems), (
        report.problems
    )


def test_slots_that_do_not_rise_though_the_tree_says_so_are_named(store: Store) -> None:
    entries = (empty(b"a", 2), empty(b"b", 1))
    tree_id = store.put(RecordKind.TREE, encode_tree(Tree(9, entries, (), slots_sorted=True)))
    root = directory_entry(b"", 0, entries, tree_id, mode=DIRECTORY, uid=0, gid=0, mtime_ns=0)
    SnapshotCatalog(store).add("made", root)
    assert "rise" in problems_of(store, "tree")[0].what


@pytest.mark.parametrize("nlink", [1, 3])
def test_a_wrong_link_count_is_named(store: Store, nlink: int) -> None:
    names = [TreeEntry(b"%d" % slot, slot, LINK_MODE, content=bytes(8)) for slot in (1, 2)]
    add(store, names, links=[TreeEntry(bytes(8), 1, FILE, nlink=nlink)])
    assert f"it says {nlink} names and has 2" in problems_of(store, "links")[0].what


def test_a_hard_link_to_no_inode_is_named(store: Store) -> None:
    names = [TreeEntry(b"%d" % slot, slot, LINK_MODE, content=bytes(8)) for slot in (1, 2)]
    add(store, names, links=[TreeEntry(b"\1" * 8, 1, FILE, nlink=2)])
    assert any("no inode" in problem.what for problem in check(store).problems)


def test_a_file_whose_size_is_not_that_of_its_chunks_is_named(store: Store) -> None:
    extents = encode_extents([Extent(store.put(RecordKind.CHUNK, noise(0, 300)), 299)])
    add(store, [TreeEntry(b"a", 1, FILE, size=299, content=extents)])
    (problem,) = problems_of(store, "length")
    assert problem.uses == ("snapshot made: /a",)


def test_a_file_whose_size_is_not_that_of_its_recipe_is_named(filled: Store) -> None:
    recipe = any_row(filled, RecordKind.RECIPE)
    entry = TreeEntry(b"a", 1, FILE, size=7, content=bytes(recipe.record_id))
    add(filled, [entry])
    assert problems_of(filled, "recipe")[0].record_id == recipe.record_id.hex()


def test_a_record_that_is_used_as_another_kind_is_named(filled: Store) -> None:
    page = any_row(filled, RecordKind.RECIPE_PAGE)
    add(filled, [TreeEntry(b"a", 1, FILE, size=1, content=bytes(page.record_id))])
    assert problems_of(filled, "kind")[0].record_id == page.record_id.hex()


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


def test_gc_in_the_middle_of_a_check_is_no_problem(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_directory(filled, make_directory(tmp_path / "other", seed=1), "second")

    def remove() -> None:
        SnapshotCatalog(filled).remove(["first"])
        collect(filled)

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


def test_a_check_that_gc_never_lets_finish_says_so(
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
