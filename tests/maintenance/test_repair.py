"""check --repair mends what can be mended, lists the rest, and never makes anything worse.

Method: one thing is damaged behind the store's back; after the repair every file of every snapshot
must read as before, check must be clean or say exactly what the repair said, and another repair
must find nothing to do.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dedupfs.errors import CorruptError, StoreBusyError, UsageError
from dedupfs.format.keys import (
    decode_pack_row,
    encode_location,
    encode_pack_key,
    with_references,
)
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.heal import heal
from dedupfs.maintenance.repair import RepairReport, repair
from dedupfs.maintenance.scrub import scrub
from dedupfs.model import PackKind, RecordKind
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.namespace.views import list_views
from dedupfs.store import Store, Table
from tests.maintenance.samples import (
    Row,
    any_row,
    contents,
    damage,
    import_directory,
    lose_index,
    noise,
    overwrite,
    pack_path,
    read_back,
    rows,
    sound,
)

Break = Callable[[Store], None]


def change(store: Store, table: Table, key: bytes, value: bytes | None) -> None:
    with store.db.writing() as txn:
        if value is None:
            txn.delete(table, key)
        else:
            txn.put(table, key, value)


def first_key(store: Store, table: Table) -> bytes:
    with store.reading() as txn:
        key, _ = next(txn.scan(table))
    return key


def recount_wrongly(store: Store) -> None:
    for row in rows(store):
        value = store.db.record_row(row.record_id)
        assert value is not None
        change(store, Table.RECORDS, row.record_id, with_references(value, row.references + 3))


BREAKS: dict[str, Break] = {
    "counts": recount_wrongly,
    "lost chunk row": lambda s: change(
        s, Table.RECORDS, any_row(s, RecordKind.CHUNK).record_id, None
    ),
    "lost tree row": lambda s: change(
        s, Table.RECORDS, any_row(s, RecordKind.TREE).record_id, None
    ),
    "damaged row": lambda s: change(
        s, Table.RECORDS, any_row(s, RecordKind.CHUNK).record_id, b"x" * 28
    ),
    "lost pack row": lambda s: change(s, Table.PACKS, first_key(s, Table.PACKS), None),
    "damaged pack row": lambda s: change(s, Table.PACKS, first_key(s, Table.PACKS), b"\xff" * 36),
    "lost snapshot row": lambda s: change(s, Table.SNAPSHOTS, b"s1", None),
    "damaged snapshot row": lambda s: change(s, Table.SNAPSHOTS, b"s1", b"x" * 50),
    "free range": lambda s: change(s, Table.FREE, b"\0\0\0\1" + bytes(7) + b"\x20", b"\1" * 9),
    "dead": lambda s: change(s, Table.DEAD, any_row(s, RecordKind.CHUNK).record_id, b""),
    "pin of nobody": lambda s: change(s, Table.PINS, b"v\0\0\1\0" + b"x" * 16, b"\1" + bytes(7)),
    "counters": lambda s: change(s, Table.META, b"counter:pack", b"\1" + bytes(7)),
}


def in_order(path: Path) -> RepairReport:
    """Repair, and demand that nothing is wrong then and that a second repair does nothing."""
    report = repair(path)
    assert report.ok, (report.left, report.reindex)
    assert report.done
    sound(path)
    again = repair(path)
    assert (again.found, again.done, again.left) == ([], [], [])
    return report


@pytest.mark.allow_log("snapshot left out")
@pytest.mark.parametrize("name", list(BREAKS))
def test_a_wrong_index_is_made_right(history: Path, name: str) -> None:
    before = contents(history)
    with Store.open(history) as store:
        BREAKS[name](store)
        assert not check(store).ok
    report = in_order(history)
    assert report.found
    assert contents(history) == before


def test_a_sound_store_is_left_alone(history: Path) -> None:
    files = {path: path.read_bytes() for path in (history / "packs").rglob("*.*")}
    report = repair(history)
    assert (report.found, report.done, report.left) == ([], [], [])
    assert {path: path.read_bytes() for path in (history / "packs").rglob("*.*")} == files


@pytest.mark.parametrize("how", ["deleted", "empty", "cut off", "zeroed", "noise", "no directory"])
def test_an_index_that_cannot_be_read_is_made_anew(history: Path, how: str) -> None:
    before = contents(history)
    data = history / "index" / "data.mdb"
    size = data.stat().st_size
    match how:
        case "deleted":
            data.unlink()
        case "empty":
            os.truncate(data, 0)
        case "cut off":
            os.truncate(data, 3 * 4096)
        case "zeroed":
            overwrite(data, 8192, bytes(size - 8192))
        case "noise":
            overwrite(data, 8192, random.Random(1).randbytes(size - 8192))
        case "no directory":
            lose_index(history)
    report = in_order(history)
    assert [problem.code for problem in report.found] == ["index"]
    assert contents(history) == before


@pytest.mark.parametrize("text", [None, b"", b"{", b'{"format_version": 1}'])
def test_the_configuration_comes_back_from_the_index(history: Path, text: bytes | None) -> None:
    before, config = contents(history), history / "dedupfs.json"
    good = config.read_bytes()
    config.unlink()
    if text is not None:
        config.write_bytes(text)
    assert repair(history, dry_run=True).done
    assert (config.read_bytes() if config.exists() else None) == text
    in_order(history)
    assert config.read_bytes() == good
    assert contents(history) == before


def test_without_configuration_and_index_nothing_can_be_done(history: Path) -> None:
    config = history / "dedupfs.json"
    good = config.read_bytes()
    config.unlink()
    index = shutil.copytree(history / "index", history.parent / "kept")
    lose_index(history)
    with pytest.raises(CorruptError, match="backup"):
        repair(history)
    config.write_bytes(good)
    in_order(history)
    shutil.rmtree(index)
    with pytest.raises(UsageError):
        repair(history.parent)


def test_a_damaged_snapshot_record_is_written_again_from_its_row(history: Path) -> None:
    before = contents(history)
    with Store.open(history) as store:
        for row in rows(store, RecordKind.SNAPSHOT):
            if row.references:
                damage(store, row)
    in_order(history)
    assert contents(history) == before
    lose_index(history)
    in_order(history)
    assert contents(history) == before


def shift(store: Store, row: Row, to: Row) -> None:
    """Let a record's row lie: it lies where another one does."""
    lie = dataclasses.replace(
        row.location, pack=to.location.pack, pack_offset=to.location.pack_offset
    )
    change(store, Table.RECORDS, row.record_id, encode_location(lie, row.references))


def covered(store: Store) -> list[str]:
    return [found.where for found in check(store).problems if "free range" in found.what]


def test_what_a_lying_row_points_at_is_not_given_away(history: Path) -> None:
    before = contents(history)
    with Store.open(history) as store:
        snapshot = next(row for row in rows(store, RecordKind.SNAPSHOT) if row.references)
        shift(store, snapshot, any_row(store, RecordKind.CHUNK))
        assert len(heal(store)) == 1
        assert not covered(store)
    in_order(history)
    assert contents(history) == before


def test_what_a_lying_row_points_at_in_a_verbatim_pack_is_not_given_away(
    filled: Store, source: Path
) -> None:
    path = filled.path
    first = any_row(filled, RecordKind.CHUNK, PackKind.VERBATIM)
    for row in rows(filled, RecordKind.CHUNK):
        if row.location.pack == first.location.pack and row != first:
            other = row
    damage(filled, first)
    filled.close()
    with Store.open(path) as store:
        import_directory(store, source, "again")
        shift(store, first, other)
        assert len(heal(store)) == 1
        assert not covered(store)
    in_order(path)


def lose_header(store: Store, row: Row) -> None:
    place = row.location.pack_offset - HEADER_BYTES
    overwrite(pack_path(store, row.location.pack), place, bytes(HEADER_BYTES))


@pytest.mark.allow_log("chunk table unreadable")
def test_a_damaged_chunk_table_is_replaced_by_the_first_run(history: Path) -> None:
    """A new one is made with the index; what is damaged is of no use then, and goes."""
    before = contents(history)
    with Store.open(history) as store:
        damage(store, any_row(store, RecordKind.CHUNK_TABLE))
    in_order(history)
    assert contents(history) == before


METADATA = [RecordKind.CHUNK, RecordKind.TREE, RecordKind.RECIPE, RecordKind.SNAPSHOT]


@pytest.mark.parametrize("kind", METADATA)
def test_a_record_whose_header_is_damaged_is_written_again(history: Path, kind: RecordKind) -> None:
    before = contents(history)
    with Store.open(history) as store:
        lose_header(store, any_row(store, kind))
    report = in_order(history)
    assert len(report.done) == 1
    assert report.reindex is None
    lose_index(history)
    repair(history)
    assert contents(history) == before


@pytest.mark.parametrize("kind", METADATA)
def test_a_new_index_is_not_without_what_the_old_one_could_find(
    history: Path, kind: RecordKind
) -> None:
    before = contents(history)
    with Store.open(history) as store:
        lose_header(store, any_row(store, kind))
        BREAKS["counters"](store)
    assert "the index is made anew" in repair(history).done[-1]
    assert repair(history).ok
    assert contents(history) == before
    sound(history)


@pytest.mark.allow_log("files of a view without a row stay")
@pytest.mark.parametrize("also", ["nothing else", "an unreadable tree"])
def test_a_view_that_the_index_lost_is_not_taken_for_a_leftover(filled: Store, also: str) -> None:
    path = filled.path
    view = View.bring_back(filled, "work", snapshot="first")
    handle, _attr = view.create(1, b"new", 0o644, Caller(0, 0))
    view.write(handle, 0, b"only here")
    view.release(handle)
    view.close()
    change(filled, Table.VIEWS, b"work", None)
    if also != "nothing else":
        damage(filled, any_row(filled, RecordKind.TREE))
    assert "view work" in [problem.where for problem in check(filled).problems]
    collect(filled)
    with pytest.raises(CorruptError, match="bring it back"):
        View.bring_back(filled, "work")
    filled.close()
    report = repair(path)
    assert report.ok == (also == "nothing else")
    with Store.open(path) as store:
        assert [row.name for row in list_views(store)] == ["work"]
        again = View.bring_back(store, "work")
        assert again.lookup(1, b"new").size == len(b"only here")
        again.close()
        assert check(store).ok == report.ok


@pytest.mark.parametrize("kind", [RecordKind.CHUNK, RecordKind.RECIPE_PAGE, RecordKind.TREE])
def test_files_that_are_imported_again_mend_their_old_snapshots(
    filled: Store, source: Path, kind: RecordKind
) -> None:
    """One kind at a time: what refers to a copy under another salt has an id of its own, too."""
    path = filled.path
    before = read_back(filled, "first")
    broken = rows(filled, kind) if kind is RecordKind.CHUNK else [any_row(filled, kind)]
    for row in broken:
        damage(filled, row)
    filled.close()
    with Store.open(path) as store:
        assert len(scrub(store).damage) == len(broken)
        import_directory(store, source, "again")
    report = in_order(path)
    assert len(report.done) == len(broken)
    assert contents(path) == {"first": before, "again": before}
    with Store.open(path) as store:
        SnapshotCatalog(store).remove(["again"])
    assert contents(path) == {"first": before}


@pytest.mark.parametrize("kind", [RecordKind.CHUNK, RecordKind.RECIPE_PAGE, RecordKind.TREE])
def test_one_run_mends_what_was_imported_again_also_where_only_the_new_index_tells_of_it(
    filled: Store, source: Path, kind: RecordKind
) -> None:
    """A rebuild takes over what lies in a sealed pack without reading it."""
    path = filled.path
    before = read_back(filled, "first")
    broken = any_row(filled, kind)
    for number in range(4):
        (source / f"filling {number}").write_bytes(noise(("filling", number), 30_000))
    import_directory(filled, source, "filling")
    with filled.reading() as txn:
        found = txn.get(Table.PACKS, encode_pack_key(broken.location.pack))
    assert found is not None
    assert decode_pack_row(found).sealed
    damage(filled, broken)
    filled.close()
    with Store.open(path) as store:
        import_directory(store, source, "again")
    lose_index(path)
    report = in_order(path)
    assert [done for done in report.done if broken.record_id.hex() in done]
    with Store.open(path) as store:
        SnapshotCatalog(store).remove(["filling", "again"])
        collect(store)
        assert read_back(store, "first") == before
        assert check(store).ok


@pytest.mark.parametrize("kind", [RecordKind.TREE, RecordKind.RECIPE, RecordKind.RECIPE_PAGE])
def test_what_cannot_be_repaired_is_listed_with_its_files_and_kept(
    history: Path, kind: RecordKind
) -> None:
    with Store.open(history) as store:
        damage(store, any_row(store, kind))
        wanted = check(store).problems
    for _ in range(2):
        report = repair(history)
        assert not report.ok
        assert report.found == report.left == wanted
        assert report.done == []
        assert all(problem.uses for problem in report.left)
    with Store.open(history) as store:
        assert len(SnapshotCatalog(store).list()) == 4


@pytest.mark.parametrize("name", list(BREAKS))
def test_a_dry_run_changes_nothing(history: Path, name: str) -> None:
    with Store.open(history) as store:
        BREAKS[name](store)
    before = {path: path.read_bytes() for path in history.rglob("*.*") if path.is_file()}
    report = repair(history, dry_run=True)
    assert report.found
    assert report.done == ["the index is made anew from the packs and the journals of views"]
    after = {path: path.read_bytes() for path in history.rglob("*.*") if path.is_file()}
    ours = {history / "index" / "lock.mdb", history / "run" / "reindex.lock"}
    ours.add(history / "run" / "punch.lock")
    assert {p: d for p, d in before.items() if p not in ours} == {
        p: d for p, d in after.items() if p not in ours
    }
    in_order(history)


def test_a_store_in_use_is_refused(history: Path) -> None:
    with Store.open(history), pytest.raises(StoreBusyError, match="in use"):
        repair(history)
    assert repair(history).ok


def test_what_dead_processes_left_goes(history: Path) -> None:
    (history / "run" / "import-70.new").write_bytes(b"x" * 100)
    (history / "run" / ("0" * 16 + ".lock")).write_bytes(b"")
    (history / "index.new").mkdir()
    (history / "index.old").mkdir()
    (history / "dedupfs.json.new").write_bytes(b"{")
    with Store.open(history) as store:
        change(store, Table.META, b"counter:pack", b"\1" + bytes(7))
    in_order(history)
    assert sorted(os.listdir(history)) == ["dedupfs.json", "index", "packs", "run", "views"]
    assert not [name for name in os.listdir(history / "run") if "import" in name or "000" in name]
