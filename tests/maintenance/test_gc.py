"""gc gives back exactly what nothing refers to, goes on after any interruption, and tidies up.

Method: removals and dead processes are made, gc runs (or is stopped in the middle), and the disk,
the index and the snapshots that are left are looked at.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dedupfs.format.keys import META_EMPTY, encode_pack_key
from dedupfs.maintenance import gc as gc_module
from dedupfs.maintenance.check import check
from dedupfs.maintenance.garbage import free_garbage
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.maintenance.scrub import scrub
from dedupfs.maintenance.usage import disk_usage
from dedupfs.model import RecordKind
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.rows import TOMBSTONE_OWNER
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.namespace.views import list_views, remove_view
from dedupfs.store import Store, Table
from dedupfs.store.holes import punching
from tests.maintenance.samples import (
    import_directory,
    make_directory,
    noise,
    overwrite,
    pack_path,
    read_back,
    rows,
)


def packs_bytes(store: Store) -> int:
    return disk_usage(store.layout.packs).disk_bytes


def test_gc_of_a_store_without_garbage_does_nothing(filled: Store) -> None:
    before = rows(filled)
    report = collect(filled)
    assert (report.records, report.stored_bytes, report.punched_bytes) == (0, 0, 0)
    assert rows(filled) == before


def test_removing_everything_empties_the_store(filled: Store) -> None:
    before = packs_bytes(filled)
    count = len(rows(filled))
    SnapshotCatalog(filled).remove(["first"])
    told: list[tuple[int, int]] = []
    report = collect(filled, progress=lambda done, total: told.append((done, total)))
    assert report.records == count
    assert report.packs_removed >= 1
    assert report.tombstones == 1
    assert report.disk_bytes_freed > 0
    assert rows(filled) == []
    assert packs_bytes(filled) < before / 4
    assert told[-1][0] == told[-1][1]
    assert check(filled).ok


def test_what_another_snapshot_shares_stays(filled: Store, tmp_path: Path) -> None:
    other = make_directory(tmp_path / "other", seed=1)
    (other / "shared").write_bytes(noise((0, "large"), 150_000))
    import_directory(filled, other, "second")
    expected = read_back(filled, "second")
    SnapshotCatalog(filled).remove(["first"])
    before = packs_bytes(filled)
    report = collect(filled)
    assert report.records
    assert packs_bytes(filled) < before
    assert read_back(filled, "second") == expected
    assert check(filled).ok
    assert scrub(filled).ok


def test_holes_are_punched_into_packs_that_stay(filled: Store, tmp_path: Path) -> None:
    """A verbatim pack loses the blocks of its dead chunks, but not its live ones."""
    top = tmp_path / "prefix"
    top.mkdir()
    (top / "part").write_bytes(noise((0, "large"), 150_000)[:40_000])
    import_directory(filled, top, "part")
    SnapshotCatalog(filled).remove(["first"])
    path = pack_path(filled, 1)
    blocks = path.stat().st_blocks
    collect(filled)
    assert path.stat().st_size == 150_000
    assert path.stat().st_blocks * 512 < 60_000 < blocks * 512
    assert read_back(filled, "part")["part"][1] == noise((0, "large"), 150_000)[:40_000]


def test_a_pinned_record_stays_while_its_process_lives(filled: Store) -> None:
    pinned = filled.put(RecordKind.CHUNK, noise("pinned", 800))
    with filled.transaction() as txn:
        txn.pin(filled.owner, pinned)
    collect(filled)
    assert filled.get(pinned, RecordKind.CHUNK) == noise("pinned", 800)


def in_dead_process(path: Path, work: Callable[[Store], None]) -> None:
    """Do ``work`` in a process that ends without closing anything."""
    pid = os.fork()
    if pid == 0:
        try:
            work(Store.open(path))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def test_what_a_dead_process_held_is_freed(filled: Store) -> None:
    path = filled.path
    before = {row.record_id for row in rows(filled)}
    filled.close()

    def work(store: Store) -> None:
        pinned = store.put(RecordKind.CHUNK, noise("pinned", 800))
        with store.transaction() as txn:
            txn.pin(store.owner, pinned)
        store.put(RecordKind.CHUNK, noise("pending", 800))
        store.sync()

    in_dead_process(path, work)
    with Store.open(path) as store:
        assert len(rows(store)) == len(before) + 1
        report = collect(store)
        assert report.dead_owners == 1
        assert report.records == 1
        assert {row.record_id for row in rows(store)} == before
        assert check(store).ok


def test_leftovers_of_dead_processes_are_removed(filled: Store) -> None:
    packs = filled.layout.packs / "00"
    (packs / "00000999.file").write_bytes(b"never finished")
    (packs / "00000998.pack").write_bytes(b"never finished")
    (packs / "README").write_bytes(b"not ours")
    (filled.layout.run / "import-abc.new").write_bytes(b"never finished")
    (filled.path / "views" / "gone").mkdir()
    (filled.path / "views" / "gone" / "staging.00000001").write_bytes(b"bytes")
    report = collect(filled)
    assert report.leftovers == 4
    assert not list(packs.glob("0000099?.*"))
    assert (packs / "README").exists()
    assert list((filled.path / "views").iterdir()) == []
    assert collect(filled).leftovers == 0
    assert check(filled).ok


def test_what_a_live_process_is_making_stays(filled: Store) -> None:
    path = filled.layout.run / "import-abc.new"
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert collect(filled).leftovers == 0
        assert path.exists()


def test_views_that_are_in_use_or_kept_stay(filled: Store) -> None:
    kept = View.bring_back(filled, "kept", snapshot="first")
    kept.close()
    used = View.bring_back(filled, "used")
    collect(filled)
    assert {row.name for row in list_views(filled)} == {"kept", "used"}
    assert (filled.path / "views" / "kept").is_dir()
    used.close()
    assert check(filled).ok


@pytest.mark.allow_log("files of a view without a row stay")
def test_a_view_whose_row_is_lost_stays_for_reindex(filled: Store) -> None:
    root = Caller(0, 0)
    for name in ("folded", "journaled", "empty", "removed"):
        view = View.bring_back(filled, name)
        if name != "empty":
            view.mkdir(ROOT_INODE, b"d", 0o755, root)
        if name != "journaled":
            view.fold()
        view._opened.release()  # as a crash does
    remove_view(filled, "removed")
    with filled.transaction() as txn:
        for name in ("folded", "journaled", "empty"):
            txn.delete(Table.VIEWS, name.encode())
    assert collect(filled).leftovers == 1
    path = filled.path
    filled.close()
    reindex(path)
    with Store.open(path) as store:
        assert {row.name for row in list_views(store)} == {"folded", "journaled"}
        for name in ("folded", "journaled"):
            view = View.bring_back(store, name)
            assert view.lookup(ROOT_INODE, b"d").nlink == 2
            view.close()
        assert check(store).ok


def test_a_view_that_is_being_removed_and_used_again_is_kept(filled: Store) -> None:
    View.bring_back(filled, "kept").close()
    mark = filled.path / "views" / "kept" / "gone"
    mark.touch()
    View.bring_back(filled, "kept").close()
    assert not mark.exists()
    assert check(filled).ok


def test_an_ephemeral_view_of_a_dead_daemon_is_removed(filled: Store) -> None:
    path = filled.path
    filled.close()

    def work(store: Store) -> None:
        View.open_ephemeral(store, snapshot="first").lookup(1, b"large")

    in_dead_process(path, work)
    with Store.open(path) as store:
        assert len(list_views(store)) == 1
        collect(store)
        assert list_views(store) == []
        assert list((path / "views").iterdir()) == []
        assert check(store).ok


# --- interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", range(1, 9))
@pytest.mark.parametrize("function", ["free_garbage", "punch", "release_tombstones"])
def test_an_interrupted_gc_goes_on_next_time(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, calls: int
) -> None:
    import_directory(filled, make_directory(tmp_path / "other", seed=1), "second")
    expected = read_back(filled, "second")
    SnapshotCatalog(filled).remove(["first"])
    real = getattr(gc_module, function)
    left = [calls]

    def stop(*arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(gc_module, "PUNCH_LIMIT", 3)
    monkeypatch.setattr(gc_module, function, stop)
    try:
        collect(filled)
    except KeyboardInterrupt:
        assert check(filled).ok
    monkeypatch.undo()
    collect(filled)
    assert check(filled).ok
    assert read_back(filled, "second") == expected
    reachable = {row.record_id for row in rows(filled)}
    SnapshotCatalog(filled).remove(["second"])
    assert collect(filled).records == len(reachable)


def tombstones(store: Store) -> int:
    with store.reading() as txn:
        return len(list(txn.scan(Table.PINS, TOMBSTONE_OWNER)))


def test_a_tombstone_is_kept_until_what_it_outdates_is_erased(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    SnapshotCatalog(filled).clone("first", "second")
    SnapshotCatalog(filled).remove(["first"])
    with monkeypatch.context() as patch:
        patch.setattr(gc_module, "punch", lambda *_arguments, **_options: 0)
        report = collect(filled)
    assert report.tombstones == 0
    assert tombstones(filled) == 1
    report = collect(filled)
    assert report.tombstones == 1
    assert tombstones(filled) == 0


def test_a_tombstone_is_kept_while_a_pack_waits_for_its_removal(
    filled: Store, tmp_path: Path
) -> None:
    """Another process, between the two halves of this gc, was killed before it removed the file."""
    (record,) = rows(filled, RecordKind.SNAPSHOT)
    path = pack_path(filled, record.location.pack)
    (tmp_path / "more").mkdir()
    for number in range(4):  # as much as fills a pack, so that what follows goes into another
        (tmp_path / "more" / f"{number}").write_bytes(noise(number, 40_000))
    import_directory(filled, tmp_path / "more", "more")
    SnapshotCatalog(filled).remove(["first", "more"])
    left: list[Path] = []

    def stop_another(done_bytes: int, _total_bytes: int) -> None:
        if left or not done_bytes:
            return
        steps = punching(filled, 1000)
        for work in steps:
            with filled.reading() as txn:
                if txn.get(Table.PACKS, encode_pack_key(record.location.pack)) is None:
                    left.append(path)
                    steps.close()
                    break
            work()

    assert collect(filled, progress=stop_another).tombstones == 0
    assert left
    assert path.exists()
    assert tombstones(filled) == 2
    assert collect(filled).tombstones == 2
    assert not path.exists()
    assert check(filled).ok


def test_empty_packs_that_nobody_listed_go_with_what_describes_them(filled: Store) -> None:
    """A rebuilt index has such packs."""
    SnapshotCatalog(filled).remove(["first"])
    free_garbage(filled, lambda freed: None)
    with filled.transaction() as txn:
        listed = [key for key, _ in txn.scan(Table.META, prefix=META_EMPTY)]
        assert listed
        for key in listed:
            txn.delete(Table.META, key)
    report = collect(filled)
    assert report.packs_removed
    assert report.kept_records == 0
    assert rows(filled) == []


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.allow_log("dead record kept")
def test_a_dead_record_that_cannot_be_read_is_kept_and_told(filled: Store) -> None:
    SnapshotCatalog(filled).remove(["first"])
    (recipe,) = rows(filled, RecordKind.RECIPE_PAGE)[:1]
    path = filled.path
    location = recipe.location
    overwrite(pack_path(filled, location.pack), location.pack_offset, bytes(location.stored_bytes))
    filled.close()  # what was verified before is not read again
    with Store.open(path) as store:
        report = collect(store)
        assert report.kept_records == 1
        assert report.records
        assert collect(store).kept_records == 1


def test_a_snapshot_with_a_lost_record_can_be_removed(filled: Store, source: Path) -> None:
    lost = filled.digest(RecordKind.CHUNK, (source / "sub" / "small").read_bytes())
    with filled.db.writing() as txn:
        assert txn.delete(Table.RECORDS, lost)
    SnapshotCatalog(filled).remove(["first"])
    report = collect(filled)
    assert report.records
    assert rows(filled) == []
