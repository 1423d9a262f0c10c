"""The index can be thrown away: packs and journals alone bring everything back.

Method: a store with a history loses its index (or gets a damaged one); afterwards its snapshots
must read byte for byte as before, check must be silent, and the store must go on working.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dedupfs.errors import CorruptError, StoreBusyError, StoreError, UsageError
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.format.tree import encode_snapshot
from dedupfs.maintenance import check as check_module
from dedupfs.maintenance import gc as gc_module
from dedupfs.maintenance import reindex as reindex_module
from dedupfs.maintenance.check import CheckReport, check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import ReindexReport, reindex
from dedupfs.maintenance.scrub import scrub
from dedupfs.model import RecordKind
from dedupfs.namespace.rows import decode_snapshot_row
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.namespace.views import list_views, lock_view
from dedupfs.store import RealDisk, Store, Table
from tests.maintenance.samples import (
    SMALL,
    Content,
    damage,
    flip,
    import_directory,
    make_directory,
    noise,
    overwrite,
    pack_path,
    read_back,
    rows,
)

ROOT = Caller(0, 0)


def lose_index(path: Path) -> None:
    shutil.rmtree(path / "index")


def contents(path: Path) -> dict[str, Content]:
    with Store.open(path) as store:
        return {info.name: read_back(store, info.name) for info in SnapshotCatalog(store).list()}


def tables(path: Path) -> dict[str, object]:
    """Return what must be the same after reindex as before."""
    with Store.open(path) as store, store.reading() as txn:
        return {
            "records": dict(txn.scan(Table.RECORDS)),
            "packs": dict(txn.scan(Table.PACKS)),
            "dead": dict(txn.scan(Table.DEAD)),
            "snapshots": {
                key: decode_snapshot_row(value) for key, value in txn.scan(Table.SNAPSHOTS)
            },
            "meta": {
                key: value for key, value in txn.scan(Table.META) if key.startswith(b"counter")
            },
        }


def sound(path: Path) -> None:
    with Store.open(path) as store:
        report = check(store)
        assert report.ok, report.problems
        assert scrub(store).ok


@pytest.fixture
def history(path: Path, tmp_path: Path) -> Path:
    """The path of a closed store with a history: several imports, clones, removals, one gc."""
    with Store.create(path, **SMALL) as store:
        catalog = SnapshotCatalog(store)
        for number in range(3):
            import_directory(store, make_directory(tmp_path / f"d{number}", number), f"s{number}")
        catalog.clone("s1", "copy")
        catalog.rename("s2", "renamed")
        catalog.tag("copy", {"a": "b"})
        catalog.remove(["s0"])
        collect(store)
    with Store.open(path) as store:
        import_directory(store, tmp_path / "d0", "again")
    return path


# --- nothing is lost ------------------------------------------------------------------------------


def test_an_empty_store_comes_back(path: Path) -> None:
    Store.create(path, **SMALL).close()
    lose_index(path)
    with pytest.raises(StoreError, match="reindex"):
        Store.open(path)
    report = reindex(path)
    assert report.ok
    assert report.records == 0
    sound(path)


def test_a_store_comes_back_exactly(history: Path) -> None:
    before, rows_before = contents(history), tables(history)
    lose_index(history)
    told: list[tuple[str, int, int]] = []
    report = reindex(history, progress=lambda *step: told.append(step))
    assert report.ok, report
    assert sorted(report.snapshots) == ["again", "copy", "renamed", "s1"]
    assert contents(history) == before
    assert tables(history) == rows_before
    assert {what for what, _, _ in told} == {"scan", "check"}
    sound(history)


def test_reindex_of_a_sound_store_changes_nothing(history: Path) -> None:
    before = tables(history)
    for _ in range(2):
        assert reindex(history).ok
        assert tables(history) == before
    assert not (history / "index.new").exists()
    assert not (history / "index.old").exists()


@pytest.mark.parametrize("kept", [0, 100, 8192])
def test_a_damaged_index_is_replaced(history: Path, kept: int) -> None:
    before = contents(history)
    data = history / "index" / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(kept)
        file.seek(kept)
        file.write(noise("garbage", 20_000))
    assert reindex(history).ok
    assert contents(history) == before


def test_the_store_goes_on_after_it(history: Path, tmp_path: Path) -> None:
    lose_index(history)
    reindex(history)
    with Store.open(history) as store:
        info = import_directory(store, make_directory(tmp_path / "new", "new"), "new")
        assert info.sequence > 4
        assert info.sequence not in {
            other.sequence for other in SnapshotCatalog(store).list() if other.name != "new"
        }
        SnapshotCatalog(store).remove(["s1", "copy"])
        assert collect(store).records
        assert check(store).ok
    sound(history)


def test_a_removed_snapshot_stays_removed_before_and_after_gc(filled: Store) -> None:
    catalog = SnapshotCatalog(filled)
    catalog.clone("first", "second")
    catalog.remove(["first"])
    path = filled.path
    filled.close()
    lose_index(path)
    assert reindex(path).snapshots == ["second"]
    with Store.open(path) as store:
        collect(store)
        assert check(store).ok
        with store.reading() as txn:
            assert not list(txn.scan(Table.PINS))  # nor is the tombstone needed any more
    lose_index(path)
    assert reindex(path).snapshots == ["second"]
    sound(path)


def test_a_crash_between_freeing_and_punching_leaves_nothing_behind(
    filled: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees that were freed but not erased are found again, though their chunks are punched."""
    SnapshotCatalog(filled).remove(["first"])

    def stop(store: Store, limit: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(gc_module, "punch", stop)
    with pytest.raises(KeyboardInterrupt):
        collect(filled)
    monkeypatch.undo()
    assert {row.location.kind for row in rows(filled)} <= {
        RecordKind.CHUNK_TABLE,
        RecordKind.SNAPSHOT,
    }
    path = filled.path
    pack_path(filled, 1).unlink()
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert report.snapshots == []
    with Store.open(path) as store:
        collect(store)
        assert check(store).ok
        assert not rows(store)
        import_directory(store, source, "first")
    sound(path)


def test_a_snapshot_of_a_taken_name_gets_another(filled: Store) -> None:
    """Two records of one name: an import that was refused in the very end leaves such a record."""
    info = SnapshotCatalog(filled).get("first")
    later = msgspec.structs.replace(info, sequence=77)
    filled.put(RecordKind.SNAPSHOT, encode_snapshot(later))
    with filled.transaction():
        pass
    path = filled.path
    expected = read_back(filled, "first")
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert report.renamed == [("first", "first+1")]
    found = contents(path)
    assert found == {"first": expected, "first+1": expected}
    assert reindex(path).renamed == []
    assert contents(path) == found
    sound(path)


def test_an_uncommitted_tail_is_dropped_or_whole(filled: Store) -> None:
    """A process died between appending and committing; its last record is cut short."""
    path = filled.path
    expected = read_back(filled, "first")
    (tree,) = rows(filled, RecordKind.SNAPSHOT)
    pack = pack_path(filled, tree.location.pack)
    for number in range(5):
        filled.put(RecordKind.CHUNK, noise(("tail", number), 900))
    filled.sync()
    tail = pack.read_bytes()
    filled.close()
    pack.write_bytes(tail[:-400])
    lose_index(path)
    report = reindex(path)
    assert report.ok, report
    assert contents(path) == {"first": expected}
    with Store.open(path) as store:
        assert collect(store).punched_bytes == 4 * (900 + HEADER_BYTES)
        assert check(store).ok


# --- damage ---------------------------------------------------------------------------------------


def test_a_damaged_chunk_is_told_and_the_rest_comes_back(history: Path) -> None:
    with Store.open(history) as store:
        row = next(r for r in rows(store, RecordKind.CHUNK) if r.location.pack != 1)
        damage(store, row)
    lose_index(history)
    report = reindex(history)
    assert sorted(report.snapshots) == ["again", "copy", "renamed", "s1"]
    with Store.open(history) as store:
        assert [found.record_id for found in scrub(store).damage] in ([row.record_id], [])


def test_of_two_places_the_one_that_verifies_wins(filled: Store) -> None:
    row = next(r for r in rows(filled, RecordKind.TREE))
    payload = filled.get(row.record_id, RecordKind.TREE)
    with filled.db.writing() as txn:  # forget the record, so that it is stored once more
        txn.delete(Table.RECORDS, row.record_id)
    filled.put(RecordKind.TREE, payload)
    with filled.transaction():
        pass
    damage(filled, row)
    expected = read_back(filled, "first")
    path = filled.path
    filled.close()
    lose_index(path)
    reindex(path)
    assert contents(path) == {"first": expected}
    with Store.open(path) as store:
        (again,) = (r for r in rows(store) if r.record_id == row.record_id)
        assert again.location != row.location
        assert scrub(store).ok


def test_a_missing_record_is_told_with_its_file_and_can_be_removed(
    filled: Store, source: Path
) -> None:
    SnapshotCatalog(filled).clone("first", "second")
    small = filled.digest(RecordKind.CHUNK, (source / "sub" / "small").read_bytes())
    (row,) = (r for r in rows(filled) if r.record_id == small)
    start = row.location.pack_offset - HEADER_BYTES
    overwrite(pack_path(filled, row.location.pack), start, bytes(HEADER_BYTES))
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert not report.ok
    assert report.snapshots == ["first", "second"]
    assert any("are no record" in line for line in report.damaged)
    uses = {use for problem in report.problems for use in problem.uses}
    assert uses == {"snapshot first: /sub/small", "snapshot second: /sub/small"}


def test_a_verbatim_pack_without_its_table_is_searched_for_what_files_want(
    filled: Store,
) -> None:
    (table,) = rows(filled, RecordKind.CHUNK_TABLE)
    expected = read_back(filled, "first")
    damage(filled, table)
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert report.lost_packs == []
    assert report.problems == []
    assert contents(path) == {"first": expected}
    sound(path)
    lose_index(path)
    reindex(path)
    assert contents(path) == {"first": expected}


@pytest.mark.allow_log("pack put aside")
def test_a_verbatim_pack_of_which_nothing_is_known_is_put_aside(filled: Store) -> None:
    for kind in (RecordKind.CHUNK_TABLE, RecordKind.RECIPE):
        for row in rows(filled, kind):
            damage(filled, row)
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert not report.ok
    assert {use for problem in report.problems for use in problem.uses} >= {
        "snapshot first: /large"
    }
    with Store.open(path) as store:
        collect(store)


@pytest.mark.allow_log(".*")
@pytest.mark.parametrize("seed", range(12))
def test_damaged_packs_never_end_it(history: Path, seed: int) -> None:
    """Whatever happens to the packs: reindex makes a store that opens, and tells what is wrong."""
    chance = random.Random(seed)
    packs = sorted((history / "packs").glob("*/*"))
    for _ in range(chance.randrange(1, 6)):
        path = chance.choice(packs)
        size = max(1, path.stat().st_size)
        offset = chance.randrange(size)
        match chance.randrange(5):
            case 0:
                flip(path, min(offset, path.stat().st_size - 1), chance.randrange(8))
            case 1:
                overwrite(path, offset, bytes(chance.randrange(1, 9000)))
            case 2:
                overwrite(path, offset, chance.randbytes(chance.randrange(1, 9000)))
            case 3:
                path.chmod(0o600)
                os.truncate(path, max(1, offset))
            case 4:
                overwrite(path, offset, chance.choice(packs).read_bytes()[:5000])
    lose_index(history)
    report = reindex(history)
    with Store.open(history) as store:
        check(store)
        scrub(store)
        for info in SnapshotCatalog(store).list():
            try:
                read_back(store, info.name)
            except StoreError:
                assert not report.ok or not scrub(store).ok
    again = reindex(history)
    assert sorted(again.snapshots) == sorted(report.snapshots)


@pytest.mark.allow_log(".*")
@pytest.mark.parametrize(
    "plant",
    [
        lambda packs: (packs / "00" / "00000099.pack").write_bytes(b""),
        lambda packs: (packs / "00" / "00000099.pack").write_bytes(noise(1, 50_000)),
        lambda packs: (packs / "00" / "00000099.file").write_bytes(noise(1, 50_000)),
        lambda packs: (packs / "00" / "README").write_bytes(b"hello"),
        lambda packs: (packs / "stray").mkdir(),
        lambda packs: shutil.copy(packs / "00" / "00000002.pack", packs / "00" / "00000098.pack"),
    ],
)
def test_strange_files_among_the_packs_do_no_harm(
    history: Path, plant: Callable[[Path], object]
) -> None:
    before = contents(history)
    plant(history / "packs")
    lose_index(history)
    reindex(history)
    assert contents(history) == before
    with Store.open(history) as store:
        assert check(store).ok


# --- views ----------------------------------------------------------------------------------------


def write_file(view: View, name: bytes, data: bytes) -> None:
    handle, _attr = view.create(1, name, 0o644, ROOT)
    view.write(handle, 0, data)
    view.flush(handle)
    view.plan_fsync(view.inode_of(handle)).run()
    view.release(handle)


def read_file(view: View, name: bytes) -> bytes:
    inode = view.lookup(1, name).inode
    handle = view.open(inode, os.O_RDONLY)
    try:
        return view.plan_read(handle, 0, 1 << 24).run()
    finally:
        view.release(handle)


def test_a_view_comes_back_as_it_was_folded(filled: Store) -> None:
    view = View.bring_back(filled, "work", snapshot="first")
    write_file(view, b"new", noise("new", 30_000))
    view.unlink(1, b"medium")
    view.close()
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert report.ok, report
    assert report.views == ["work"]
    with Store.open(path) as store:
        assert [row.base for row in list_views(store)] == ["first"]
        view = View.bring_back(store, "work")
        assert read_file(view, b"new") == noise("new", 30_000)
        with pytest.raises(Exception, match="medium"):
            view.lookup(1, b"medium")
        view.close()
        assert check(store).ok


def abandon(store: Store, work: Callable[[View], None]) -> None:
    """Do ``work`` in a view of another process, which is then killed."""
    pid = os.fork()
    if pid == 0:
        try:
            child = Store.open(store.path)
            work(View.bring_back(child, "work"))
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_view_whose_daemon_died_comes_back_with_its_journal(filled: Store) -> None:
    path = filled.path
    filled.close()

    def work(view: View) -> None:
        write_file(view, b"small", b"written before the crash")
        write_file(view, b"big", noise("big", 200_000))
        view.mkdir(1, b"directory", 0o755, ROOT)

    abandon(filled, work)
    lose_index(path)
    report = reindex(path)
    assert report.ok, report
    with Store.open(path) as store:
        collect(store)
        view = View.bring_back(store, "work")
        assert read_file(view, b"small") == b"written before the crash"
        assert read_file(view, b"big") == noise("big", 200_000)
        assert stat.S_ISDIR(view.lookup(1, b"directory").mode)
        view.close()
        assert check(store).ok


def test_a_view_without_its_journal_comes_back_as_of_its_last_fold(filled: Store) -> None:
    view = View.bring_back(filled, "work", snapshot="first")
    write_file(view, b"new", noise("new", 30_000))
    view.close()
    path = filled.path
    filled.close()
    for journal in (path / "views" / "work").glob("journal.*"):
        journal.write_bytes(noise("garbage", 50))
    lose_index(path)
    report = reindex(path)
    assert [name for name, _ in report.shortened_views] == ["work"]
    with Store.open(path) as store:
        view = View.bring_back(store, "work")
        assert read_file(view, b"new") == noise("new", 30_000)
        view.close()
        assert check(store).ok


def test_a_view_whose_root_is_lost_is_put_aside_with_its_files(filled: Store) -> None:
    view = View.bring_back(filled, "work", snapshot="first")
    write_file(view, b"new", noise("new", 30_000))
    view.close()
    for row in rows(filled, RecordKind.VIEW_ROOT):
        damage(filled, row)
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert [name for name, _ in report.lost_views] == ["work"]
    assert list((path / "views" / ".lost-work").glob("journal.*"))
    with Store.open(path) as store:
        collect(store)
        assert list((path / "views" / ".lost-work").glob("journal.*"))


# --- refused --------------------------------------------------------------------------------------


def test_a_store_that_is_open_is_refused(filled: Store) -> None:
    with pytest.raises(StoreBusyError, match="in use"):
        reindex(filled.path)


def test_a_store_that_another_process_reads_is_refused(history: Path) -> None:
    ready, told = os.pipe()
    ends, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        Store.open(history)
        os.write(told, b"x")
        os.close(end)
        os.read(ends, 1)
        os._exit(0)
    os.read(ready, 1)
    try:
        with pytest.raises(StoreBusyError, match=str(pid)):
            reindex(history)
    finally:
        os.close(end)
        os.waitpid(pid, 0)
        for fd in (ready, told, ends):
            os.close(fd)
    assert reindex(history).ok


def test_a_store_whose_view_is_held_is_refused(history: Path) -> None:
    lock = lock_view(RealDisk(), history, "work", "/mnt")
    try:
        with pytest.raises(StoreBusyError, match="/mnt"):
            reindex(history)
    finally:
        lock.release()


def test_somebody_who_comes_in_the_middle_keeps_his_index(
    history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Store] = []

    def open_then_check(store: Store, **options: object) -> CheckReport:
        opened.append(Store.open(history))
        return check_module.check(store)

    monkeypatch.setattr(reindex_module, "check", open_then_check)
    with pytest.raises(StoreBusyError):
        reindex(history)
    assert len(SnapshotCatalog(opened[0]).list()) == 4
    opened[0].close()
    sound(history)
    assert not (history / "index.new").exists()


@pytest.mark.parametrize("step", ["rebuild", "check", "_replace_index"])
def test_a_reindex_that_is_cut_short_can_be_done_again(
    history: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = contents(history)

    def stop(*args: object, **options: object) -> ReindexReport:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reindex_module, step, stop)
        with pytest.raises(KeyboardInterrupt):
            reindex(history)
    assert contents(history) == before  # the old index is still there
    assert reindex(history).ok
    assert contents(history) == before


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        reindex(tmp_path / "nowhere")
    (tmp_path / "dedupfs.json").write_text("nonsense")
    with pytest.raises(CorruptError):
        reindex(tmp_path)
