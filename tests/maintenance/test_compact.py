"""Packs of which little is live are rewritten: what is live stays readable, the rest comes back.

Method: a snapshot with everything is removed while another one keeps some files of each pack, on a
disk without holes; then what the disk, the index and other readers have is looked at.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import GcOptions, GcReport, collect, forecast
from dedupfs.maintenance.reindex import reindex
from dedupfs.maintenance.scrub import scrub
from dedupfs.model import PackKind, RecordKind
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.recipe import Piece
from dedupfs.store import Store, inventory
from dedupfs.store import compact as compact_module
from dedupfs.store.compact import sparse_packs
from dedupfs.store.space import free_dead
from tests.fakes import Crashed, FaultyDisk
from tests.maintenance.samples import (
    SMALL,
    Content,
    flip,
    import_directory,
    lose_index,
    noise,
    pack_path,
    read_back,
    rows,
)
from tests.maintenance.test_crash import crash
from tests.maintenance.test_gc import packs_bytes

ALL = GcOptions(gain_bytes_min=1)
FILES = 40
KEPT = range(0, FILES, 8)


def sparse_store(path: Path, source: Path, *, verbatim: bool = True) -> Content:
    """Make a store whose packs are mostly dead; return what is live."""
    (source / "all").mkdir(parents=True)
    (source / "some").mkdir()
    for number in range(FILES):
        (source / "all" / f"{number}").write_bytes(noise(number, 12_000))
    if verbatim:
        (source / "all" / "large").write_bytes(noise("large", 150_000))
        (source / "some" / "part").write_bytes(noise("large", 150_000)[:30_000])
    for number in KEPT:
        shutil.copy2(source / "all" / f"{number}", source / "some")
    with Store.create(path, **SMALL) as store:
        import_directory(store, source / "all", "all")
        import_directory(store, source / "some", "some")
        SnapshotCatalog(store).remove(["all"])
        return read_back(store, "some")


@pytest.fixture
def expected(path: Path, tmp_path: Path) -> Content:
    """A closed sparse store; what it holds."""
    return sparse_store(path, tmp_path / "source")


def live_bytes(store: Store) -> int:
    with store.reading() as txn:
        return sum(row.live_bytes for _, row in inventory.indexed_packs(txn))


def without_holes(path: Path) -> Store:
    return Store.open(path, disk=FaultyDisk(holes=False))


def test_without_holes_little_more_than_what_is_live_stays(path: Path, expected: Content) -> None:
    with without_holes(path) as store:
        before = packs_bytes(store)
        told: list[tuple[int, int]] = []
        report = collect(store, options=ALL, progress=lambda *numbers: told.append(numbers))
        after = packs_bytes(store)
        assert report.compacted_packs > 3
        assert report.rewritten_bytes <= live_bytes(store)
        assert after < 2 * live_bytes(store) < before / 3
        assert told[-1][0] == told[-1][1]
        assert all(done <= total for done, total in told)
        assert read_back(store, "some") == expected
        assert check(store).ok
        assert scrub(store).ok
        again = collect(store, options=ALL)
        assert (again.compacted_packs, again.rewritten_bytes) == (0, 0)
    lose_index(path)
    assert reindex(path).snapshots == ["some"]
    with Store.open(path) as store:
        assert read_back(store, "some") == expected
        assert check(store).ok


def test_what_it_says_is_what_the_disk_has(path: Path, expected: Content) -> None:
    with Store.open(path) as store:
        before = packs_bytes(store)
        report = collect(store, options=GcOptions(live_share=0))
        assert report.disk_bytes_freed == before - packs_bytes(store)
        assert (report.compacted_packs, report.compacted_bytes) == (0, 0)
        assert check(store).ok


def test_a_forecast_without_holes_is_what_then_comes_back(path: Path, expected: Content) -> None:
    with without_holes(path) as store:
        before = rows(store), packs_bytes(store)
        found = forecast(store, ALL)
        assert (rows(store), packs_bytes(store)) == before
        report = collect(store, options=ALL)
        assert not found.has_holes
        assert found.records == report.records
        assert found.stored_bytes == report.stored_bytes
        # The open pack may take what the others had, and is then as good as new.
        assert len(found.sparse) - 1 <= report.compacted_packs <= len(found.sparse)
        assert report.rewritten_bytes <= found.rewritten_bytes
        assert check(store).ok


def test_holes_are_enough_where_fragments_are_large(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    sparse_store(path, source)
    with Store.open(path) as store:
        assert forecast(store).sparse == []
        assert collect(store).compacted_packs == 0
        assert check(store).ok


def test_fragments_smaller_than_a_block_are_put_together(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "all").mkdir(parents=True)
    (source / "some").mkdir()
    for number in range(600):
        (source / "all" / f"{number}").write_bytes(noise(number, 900))
        if number % 6 == 0:
            (source / "some" / f"{number}").write_bytes(noise(number, 900))
    with Store.create(path, **SMALL) as store:
        import_directory(store, source / "all", "all")
        import_directory(store, source / "some", "some")
        expected = read_back(store, "some")
        SnapshotCatalog(store).remove(["all"])
        report = collect(store, options=ALL)
        assert report.compacted_packs
        assert report.compacted_bytes > report.rewritten_bytes
        assert read_back(store, "some") == expected
        assert check(store).ok


# --- beside others --------------------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_reader_that_knows_the_old_place_reads_the_right_bytes(
    path: Path, expected: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has verified there, and the open file, are of no use to it any more."""

    def compact_all() -> None:
        with without_holes(path) as store:
            assert collect(store, options=ALL).compacted_packs

    with Store.open(path) as store:
        collect(store, options=GcOptions(live_share=0))
        chunks = [
            row
            for row in rows(store, RecordKind.CHUNK)
            if row.references and row.location.logical_bytes > 3
        ]
        pieces = [Piece(one.record_id, 3, one.location.logical_bytes - 3, 0) for one in chunks]
        before = [store.read([piece]) for piece in pieces]
        stale = [store.db.record_row(one.record_id) for one in chunks]
    # An index that a process has open cannot be carried over a fork, so the reader comes second:
    # it learns the old places from a copy of the old store, and the files from before.
    with Store.open(path) as store:
        for piece in pieces:
            store.read([piece])
        files = [store.reader.open_pack(one.location.pack) for one in chunks]
    in_child(compact_all)
    with Store.open(path) as store:
        fresh = store.reader._rows
        for number, piece in enumerate(pieces):
            store.reader._files._files[chunks[number].location.pack] = files[number]
            row = stale[number]
            assert row is not None
            store.reader._verified.add(piece.chunk_id, row)
            answers = iter([[row]])
            monkeypatch.setattr(
                store.reader,
                "_rows",
                lambda ids, answers=answers: next(answers, None) or fresh(ids),
            )
            assert store.read([piece]) == before[number]
            answers = iter([[row]])
            assert store.read_cached([piece]) in (None, before[number])
            assert store.read([piece]) == before[number]
        assert check(store).ok


COMPACT = """
import sys
from pathlib import Path
from dedupfs.maintenance.gc import collect
from tests.maintenance.test_compact import ALL, without_holes
with without_holes(Path(sys.argv[1])) as store:
    assert collect(store, options=ALL).compacted_packs
"""


def test_what_was_found_where_it_is_no_more_is_not_lost(path: Path, expected: Content) -> None:
    """An import or a fold would begin anew for each pack that is rewritten beside it."""
    with without_holes(path) as store:
        collect(store, options=GcOptions(live_share=0))
        chunks = rows(store, RecordKind.CHUNK)
        found = [
            store.put(RecordKind.CHUNK, store.get(one.record_id, RecordKind.CHUNK))
            for one in chunks
        ]
        subprocess.run([sys.executable, "-c", COMPACT, path], check=True)
        assert [store.locate(one) for one in found] != [one.location for one in chunks]
        with store.transaction() as txn:
            for record_id in found:
                txn.pin(store.owner, record_id)
        with store.transaction() as txn:
            txn.release_pins(store.owner)
        assert read_back(store, "some") == expected
        assert check(store).ok


def test_a_pack_that_somebody_appends_to_stays(path: Path, expected: Content) -> None:
    with Store.open(path) as store, store.reading() as txn:
        packs = [number for number, row in inventory.indexed_packs(txn) if not row.sealed]
        paths = [pack_path(store, pack) for pack in packs]
    assert paths
    with ExitStack() as held:
        for one in paths:
            fcntl.flock(held.enter_context(one.open("rb")), fcntl.LOCK_EX)
        with without_holes(path) as store:
            assert collect(store, options=ALL).compacted_packs
            assert all(one.exists() for one in paths)
            assert read_back(store, "some") == expected
            assert check(store).ok


def large_pack(store: Store) -> int:
    with store.reading() as txn:
        (pack,) = [n for n, r in inventory.indexed_packs(txn) if r.kind is PackKind.VERBATIM]
    return pack


def test_a_verbatim_pack_with_another_name_is_left_alone(
    path: Path, expected: Content, tmp_path: Path
) -> None:
    with without_holes(path) as store:
        pack = large_pack(store)
        os.link(pack_path(store, pack), tmp_path / "checked out")
        collect(store, options=ALL)
        assert (tmp_path / "checked out").read_bytes() == noise("large", 150_000)
        assert large_pack(store) == pack
        assert check(store).ok


def test_a_verbatim_pack_whose_table_is_held_is_left_alone(path: Path, expected: Content) -> None:
    with without_holes(path) as store:
        pack = large_pack(store)
        with store.reading() as txn:
            row = inventory.indexed_pack(txn, pack)
        assert row is not None
        assert row.chunk_table is not None
        with store.transaction() as changes:
            changes.pin(store.owner, row.chunk_table)
        collect(store, options=ALL)
        assert pack_path(store, pack).read_bytes() == noise("large", 150_000)
        with store.transaction() as changes:
            changes.unpin(store.owner, row.chunk_table)
        collect(store, options=ALL)
        assert not pack_path_exists(store, pack)
        assert read_back(store, "some") == expected
        assert check(store).ok


def pack_path_exists(store: Store, pack: int) -> bool:
    return bool(list(store.layout.packs.glob(f"*/{pack:08d}.*")))


def test_what_is_freed_while_it_is_copied_is_free_space(
    path: Path, expected: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot goes when its records are appended once more, but not yet pointed at."""
    with without_holes(path) as store:
        left = [1]
        collect(store, options=GcOptions(live_share=0))
        plain = compact_module._commit

        def commit(*arguments: object) -> None:
            if left[0]:
                left[0] = 0
                SnapshotCatalog(store).remove(["some"])
                while free_dead(store, 100).more:
                    pass
            plain(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(compact_module, "_commit", commit)
        collect(store, options=ALL)
        monkeypatch.undo()
        assert left == [0]
        assert check(store).ok
        collect(store, options=ALL)
        assert rows(store) == []
        assert check(store).ok


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.allow_log("pack not rewritten", "damaged record")
def test_a_damaged_record_stays_where_it_is(path: Path, expected: Content) -> None:
    with without_holes(path) as store:
        collect(store, options=GcOptions(live_share=0))
        (sparse, *_others) = sparse_packs(store, 0.5)
        victim = next(
            row for row in rows(store, RecordKind.CHUNK) if row.location.pack == sparse.pack
        )
        flip(pack_path(store, sparse.pack), victim.location.pack_offset + 5)
        report = collect(store, options=ALL)
        assert report.compacted_packs
        assert store.locate(victim.record_id) == victim.location
        assert not scrub(store).ok
        assert check(store).ok


@pytest.mark.allow_log("pack not rewritten")
def test_a_full_disk_keeps_what_it_has(path: Path, expected: Content) -> None:
    disk = FaultyDisk(holes=False)
    with Store.open(path, disk=disk) as store:
        collect(store, options=GcOptions(live_share=0))
        disk.full = True
        report = collect(store, options=ALL)
        assert report.compacted_packs == 0
        disk.full = False
        assert read_back(store, "some") == expected
        assert check(store).ok
        assert collect(store, options=ALL).compacted_packs


@pytest.mark.slow
@pytest.mark.unmeasured
@pytest.mark.parametrize("power_cut", [False, True], ids=["killed", "power cut"])
def test_compaction_survives_a_crash_at_every_call(memory_path: Path, power_cut: bool) -> None:
    path = memory_path / "store"
    expected = sparse_store(path, memory_path / "source")
    template = path.rename(memory_path / "template")
    crash_at = 1
    while True:
        shutil.copytree(template, path)

        def work(disk: FaultyDisk) -> None:
            disk.holes = False
            collect(Store.open(path, disk=disk), options=ALL)

        crashed = crash(work, crash_at, power_cut=power_cut)
        with Store.open(path) as store:
            report = check(store)
            assert report.ok, (crash_at, report.problems)
            assert read_back(store, "some") == expected
        shutil.copytree(path, memory_path / "rebuilt")
        lose_index(memory_path / "rebuilt")
        assert reindex(memory_path / "rebuilt").snapshots == ["some"], crash_at
        with Store.open(memory_path / "rebuilt") as store:
            assert check(store).ok
            assert read_back(store, "some") == expected
        shutil.rmtree(memory_path / "rebuilt")
        with without_holes(path) as store:
            again: GcReport = collect(store, options=ALL)
            assert again.compacted_packs or crash_at > 10
            assert check(store).ok
            assert packs_bytes(store) < 3 * live_bytes(store)
            assert read_back(store, "some") == expected
        shutil.rmtree(path)
        if not crashed:
            break
        crash_at += 1
    assert crash_at > 30


def is_emptied(path: Path, pack: int) -> bool:
    """Whether nothing is live in a pack of a closed store, and it is still there."""
    with Store.open(path) as store, store.reading() as txn:
        return any(
            number == pack and not row.live_bytes for number, row in inventory.indexed_packs(txn)
        )


@pytest.mark.slow
@pytest.mark.unmeasured
@pytest.mark.parametrize("power_cut", [False, True], ids=["killed", "power cut"])
def test_what_a_crash_left_of_a_moved_snapshot_never_brings_it_back(
    memory_path: Path, power_cut: bool
) -> None:
    """Its old record lies in a pack that is empty: what says that it is removed must outlive that.

    Cut short where the records have moved and their pack is still there; then the snapshot is
    removed, and the next run is cut short at every call.
    """
    path = memory_path / "store"
    for number in range(FILES):
        (memory_path / "all").mkdir(exist_ok=True)
        (memory_path / "all" / f"{number}").write_bytes(noise(number, 12_000))
    (memory_path / "little").mkdir()
    (memory_path / "little" / "file").write_bytes(noise("little", 3000))
    with Store.create(path, **SMALL) as store:
        import_directory(store, memory_path / "little", "removed")
        (record,) = rows(store, RecordKind.SNAPSHOT)
        import_directory(store, memory_path / "all", "all")
        SnapshotCatalog(store).remove(["all"])

    def killed(*_args: object) -> None:
        raise Crashed

    with pytest.MonkeyPatch.context() as patch:  # no call to the disk lies in between
        patch.setattr(compact_module, "removing", killed)
        crash(lambda disk: collect(Store.open(path, disk=disk), options=ALL), 0, power_cut=False)
    assert is_emptied(path, record.location.pack)
    with Store.open(path) as store:
        SnapshotCatalog(store).remove(["removed"])
    template = path.rename(memory_path / "template")
    crash_at, crashed = 0, True
    while crashed:
        shutil.copytree(template, path)
        crash_at += 1
        crashed = crash(
            lambda disk: collect(Store.open(path, disk=disk)), crash_at, power_cut=power_cut
        )
        lose_index(path)
        assert reindex(path).snapshots == [], crash_at
        shutil.rmtree(path)
    assert crash_at > 5
