"""What a forecast costs, and what it says where gc cannot do all: beside others, damaged, no holes.

That it is exact is test_space.py's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.maintenance.forecast import Forecast, forecast_removal
from dedupfs.maintenance.gc import collect
from dedupfs.model import RecordId, RecordKind
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.namespace.views import remove_view
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.disk import File
from dedupfs.store.realdisk import RealDisk
from tests.conftest import Scale
from tests.maintenance.samples import (
    SMALL,
    damage,
    import_directory,
    make_directory,
    noise,
    pack_path,
    rows,
)
from tests.maintenance.test_space import given_back


class CountingTxn(ReadTxn):
    """A state of the index that counts the rows that are looked at."""

    def __init__(self, txn: ReadTxn) -> None:
        super().__init__(txn.raw, txn.handles)
        self.looked_at: Counter[Table] = Counter()

    def get(self, table: Table, key: bytes) -> bytes | None:
        self.looked_at[table] += 1
        return super().get(table, key)

    def before(self, table: Table, key: bytes) -> tuple[bytes, bytes] | None:
        self.looked_at[table] += 1
        return super().before(table, key)

    def scan(
        self, table: Table, prefix: bytes = b"", start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        for found in super().scan(table, prefix, start):
            self.looked_at[table] += 1
            yield found


class CountingStore(Store):
    """A store that counts the records that are read."""

    decoded = 0

    def get(self, record_id: RecordId, kind: RecordKind) -> bytes:
        self.decoded += 1
        return super().get(record_id, kind)


def cost(path: Path, name: str) -> tuple[int, int]:
    """Return how many rows are looked at, and how many records read, to tell of one snapshot.

    Rows of PACKS are left out: there is one for 512 MiB, or for a file of 8 MiB and more.
    """
    with CountingStore.open(path) as store, store.reading() as txn:
        counting = CountingTxn(txn)
        told = Forecast(store, counting).exclusive([name])
        assert told.records
        looked_at = sum(counting.looked_at.values()) - counting.looked_at[Table.PACKS]
        return looked_at, store.decoded


def test_a_question_costs_what_is_exclusive_whatever_else_is_in_the_store(
    path: Path, tmp_path: Path, scale: Scale
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for number in range(20):
        (small / f"{number}").write_bytes(noise(("small", number), 900))
    with Store.create(path, **SMALL) as store:
        import_directory(store, small, "base")
        (small / "7").write_bytes(noise("other", 900))
        import_directory(store, small, "asked")
    alone = cost(path, "asked")
    big = tmp_path / "big"
    for number in range(scale(600, 30_000)):
        directory = big / f"{number % 40}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number}").write_bytes(noise(number, 300))
    with Store.open(path) as store:
        import_directory(store, big, "unrelated")
        SnapshotCatalog(store).clone("unrelated", "another")
        assert len(rows(store)) > scale(600, 30_000)
    assert cost(path, "asked") == alone
    assert sum(alone) < 60
    with Store.open(path) as store:
        assert check(store).ok


# --- beside others ----------------------------------------------------------------------------


def test_what_a_live_mount_looks_into_is_not_foretold(filled: Store) -> None:
    view = View.open_read_only(filled, snapshot="first")
    garbage, held = forecast_removal(filled, ["first"])
    assert garbage.disk_bytes == 0
    assert held.records == 1
    view.close()
    path = filled.path
    filled.close()
    with Store.open(path) as store:
        _, free = forecast_removal(store, ["first"])
        assert free.records == len(rows(store))
        assert free.disk_bytes > held.disk_bytes


def test_a_view_counts_with_what_is_not_folded_yet(filled: Store) -> None:
    view = View.bring_back(filled, "job")
    handle, _attr = view.create(ROOT_INODE, b"new", 0o644, Caller(0, 0))
    view.write(handle, 0, noise("new", 40_000))
    _, open_view = forecast_removal(filled, views=["job"])
    assert open_view.disk_bytes >= 40_000
    assert open_view.logical_bytes == 0
    view.release(handle)
    view.close()
    _, folded = forecast_removal(filled, views=["job"])
    assert folded.logical_bytes == 40_000


def test_holders_that_share_free_more_together(filled: Store) -> None:
    SnapshotCatalog(filled).clone("first", "second")
    with filled.reading() as txn:
        forecast = Forecast(filled, txn)
        one, two = (forecast.exclusive([name]) for name in ("first", "second"))
        both = forecast.exclusive(["first", "second"])
        logical = forecast.logical_bytes(forecast.snapshot("first")[0])
    assert one.shared_bytes == two.shared_bytes == logical
    assert one.logical_bytes == two.logical_bytes == 0
    assert both.shared_bytes == 0
    assert both.disk_bytes > one.disk_bytes + two.disk_bytes


# --- where not all comes back -----------------------------------------------------------------


class SolidDisk(RealDisk):
    """A file system without holes."""

    def punch(self, file: File, start: int, stop: int) -> bool:
        return False


def test_without_holes_only_whole_packs_are_foretold(path: Path, tmp_path: Path) -> None:
    with Store.create(path, **SMALL) as store:
        import_directory(store, make_directory(tmp_path / "one", seed=1), "one")
        import_directory(store, make_directory(tmp_path / "two", seed=2), "two")
    with Store.open(path) as store:
        _, with_holes = forecast_removal(store, ["one"])
    with Store.open(path, disk=SolidDisk()) as store:
        _, solid = forecast_removal(store, ["one"])
        packs = [pack_path(store, row.location.pack) for row in rows(store)]
        before = sum(found.stat().st_blocks * 512 for found in set(packs))
        assert 0 < solid.disk_bytes < with_holes.disk_bytes
        SnapshotCatalog(store).remove(["one"])
        collect(store)
        after = sum(found.stat().st_blocks * 512 for found in set(packs) if found.exists())
        assert before - after == solid.disk_bytes
        assert check(store).ok


@pytest.mark.allow_log("dead record kept")
def test_what_is_damaged_is_named_and_the_rest_is_told(filled: Store, tmp_path: Path) -> None:
    import_directory(filled, make_directory(tmp_path / "other", seed=5), "second")
    trees = {row.record_id: row for row in rows(filled, RecordKind.TREE)}
    whole = SnapshotCatalog(filled).get("first").root.content[:16]
    damage(filled, trees[RecordId(whole)])
    path = filled.path
    filled.close()
    with Store.open(path) as store:
        _, first = forecast_removal(store, ["first"])
        _, second = forecast_removal(store, ["second"])
        (problem,) = first.problems
        assert "dedupfs check" in problem
        assert second.logical_bytes > 100_000
        assert not second.problems
        SnapshotCatalog(store).remove(["first"])
        assert collect(store).records == first.records


@pytest.mark.parametrize("removed", [["first"], ["first", "second"]])
def test_a_hard_linked_pack_keeps_its_blocks(
    filled: Store, tmp_path: Path, removed: list[str]
) -> None:
    """A checkout's name outside of the store keeps the file, and so does not free it."""
    import_directory(filled, make_directory(tmp_path / "other", seed=5), "second")
    pack = pack_path(filled, 1)
    assert pack.suffix == ".file"
    (tmp_path / "linked").hardlink_to(pack)
    garbage, told = forecast_removal(filled, removed)
    path = filled.path
    filled.close()
    back = given_back(path, [("snapshot", name) for name in removed])
    gone = 0 if pack.exists() else (tmp_path / "linked").stat().st_blocks * 512
    assert back - gone == garbage.disk_bytes + told.disk_bytes
    assert (tmp_path / "linked").stat().st_blocks * 512 >= 150_000


def test_a_view_that_goes_on_meanwhile_is_no_damage(filled: Store) -> None:
    view = View.bring_back(filled, "job")
    write_new(view, b"one", 10_000)
    view.fold()
    with filled.reading() as txn:
        played = Forecast(filled, txn)
        row = played.view("job")
        write_new(view, b"two", 20_000)
        view.fold()
        collect(filled)
        root = played.view_root(row)
        assert root is not None
        assert root.size == 30_000, "as it is now, for as it was it is gone"
        assert played.exclusive(views=["job"]).problems == ()
        assert not played.damaged
        view.close()
        remove_view(filled, "job")
        collect(filled)
        assert played.view_root(row) is None
        assert played.exclusive(views=["job"]).problems == ()
        assert not played.damaged


def write_new(view: View, name: bytes, length: int) -> None:
    handle, _attr = view.create(ROOT_INODE, name, 0o644, Caller(0, 0))
    view.write(handle, 0, noise(name.decode(), length))
    view.release(handle)


def test_a_snapshot_that_goes_meanwhile_is_no_damage(filled: Store, source: Path) -> None:
    (source / "only here").write_bytes(noise("only", 9_000))
    os.link(source / "only here", source / "also")
    import_directory(filled, source, "short")
    with filled.reading() as txn:
        played = Forecast(filled, txn)
        SnapshotCatalog(filled).remove(["short"])
        collect(filled)
        info, _ = played.snapshot("short")
        assert played.logical_bytes(info) > 0
        assert played.exclusive(["short"]).problems == ()
        assert not played.damaged
