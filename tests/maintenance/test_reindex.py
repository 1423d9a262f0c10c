"""The index can be thrown away: packs and journals alone bring everything back.

Method: a store with a history loses its index (or gets a damaged one); afterwards its snapshots
must read byte for byte as before, check must be silent, and the store must go on working.
"""

from __future__ import annotations

import os
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
from dedupfs.model import Extent, PackKind, RecordKind
from dedupfs.namespace.rows import decode_snapshot_row
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.views import lock_view
from dedupfs.store import RealDisk, Store, Table
from dedupfs.store.inventory import indexed_packs
from tests.maintenance.samples import (
    SMALL,
    contents,
    import_directory,
    lose_index,
    make_directory,
    noise,
    pack_path,
    read_back,
    rows,
    sound,
)


def tables(path: Path) -> dict[str, object]:
    """Return what must be the same after reindex as before: numbers of views leave room for those
    that nothing in the store speaks of any more.
    """
    with Store.open(path) as store, store.reading() as txn:
        return {
            "records": dict(txn.scan(Table.RECORDS)),
            "packs": dict(txn.scan(Table.PACKS)),
            "dead": dict(txn.scan(Table.DEAD)),
            "snapshots": {
                key: decode_snapshot_row(value) for key, value in txn.scan(Table.SNAPSHOTS)
            },
            "meta": {
                key: value
                for key, value in txn.scan(Table.META)
                if key.startswith(b"counter") and key != b"counter:view"
            },
        }


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

    def stop(*_arguments: object, **_options: object) -> int:
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


def test_a_number_that_an_old_chunk_table_speaks_of_is_not_given_again(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack with the highest number is gone, but the record of its chunk table is not erased."""
    numbers = []
    for number in range(2):
        source = filled.path.parent / f"file{number}"
        source.write_bytes(noise(number, 3000))
        identity, _ = filled.probe_chunk(noise(number, 3000))
        numbers.append(filled.put_verbatim(source, [(0, Extent(identity, 3000))]))
        with filled.transaction():
            pass
    monkeypatch.setattr(gc_module, "punch", lambda *_arguments, **_options: 0)
    collect(filled)
    pack_path(filled, numbers[1]).unlink()
    path = filled.path
    filled.close()
    lose_index(path)
    reindex(path)
    with Store.open(path) as store, store.transaction() as txn:
        assert txn.next_number("pack") > numbers[1]


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


def test_a_verbatim_pack_does_not_share_its_number_with_what_a_crash_left_of_a_record_pack(
    filled: Store, source: Path
) -> None:
    """Whoever made that died within the transaction that took the number."""
    with filled.reading() as txn:
        last = max(number for number, _ in indexed_packs(txn))
    left = filled.layout.pack(last + 1, PackKind.RECORDS)
    left.write_bytes(b"")
    (source / "new").write_bytes(noise("new", 60_000))
    import_directory(filled, source, "second")
    assert not filled.layout.pack(last + 1, PackKind.VERBATIM).exists()
    before = read_back(filled, "second")
    path = filled.path
    filled.close()
    lose_index(path)
    assert reindex(path).ok
    with Store.open(path) as store:
        assert read_back(store, "second") == before
        assert check(store).ok
