"""gc, reindex and repair may be stopped at any moment, by SIGKILL or by a power cut.

Method: they run on a ``FaultyDisk`` that stops at its n-th changing call, for every n; then what
was not synced is taken back. Whatever is left, the store must be sound (for reindex: after another
one), the snapshot that stays must read as before, and the removed one must never come back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dedupfs.errors import StoreError
from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.maintenance.repair import repair
from dedupfs.maintenance.scrub import scrub
from dedupfs.model import ID_BYTES, RecordKind
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import RealDisk, Store, Table, db
from tests.conftest import Scale
from tests.fakes import Crashed, FaultyDisk
from tests.maintenance.samples import (
    SMALL,
    Content,
    Row,
    any_row,
    import_directory,
    lose_index,
    make_directory,
    read_back,
    rows,
    sound,
)
from tests.maintenance.test_repair import lose_header, recount_wrongly, shift

pytestmark = pytest.mark.unmeasured


@pytest.fixture
def path(memory_path: Path) -> Path:
    """Where the test's store is."""
    return memory_path / "store"


@pytest.fixture
def halved(path: Path, memory_path: Path) -> tuple[Path, Content]:
    """A closed store of which one of two snapshots was just removed; what the other one holds."""
    with Store.create(path, **SMALL) as store:
        import_directory(store, make_directory(memory_path / "d0", 0), "goes")
        import_directory(store, make_directory(memory_path / "d1", 1), "stays")
        SnapshotCatalog(store).rename("goes", "gone")
        SnapshotCatalog(store).remove(["gone"])
        return path, read_back(store, "stays")


def crash(work: Callable[[FaultyDisk], object], crash_at: int, *, power_cut: bool) -> bool:
    """Do ``work`` until the n-th call; return whether it came to that."""
    disk = FaultyDisk(crash_at=crash_at)
    opened: list[db.Database] = []
    plain_init = db.Database.__init__

    def init(self: db.Database, *args: object, **kwargs: object) -> None:
        plain_init(self, *args, **kwargs)  # type: ignore[arg-type]
        opened.append(self)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(db.Database, "__init__", init)
            work(disk)
    except Crashed:
        return True
    finally:
        disk.crash()
        for database in opened:
            database.close()
        if power_cut:
            disk.lose_unsynced()
    return False


@pytest.mark.slow
@pytest.mark.parametrize("power_cut", [False, True], ids=["killed", "power cut"])
def test_gc_survives_a_crash_at_every_call(
    halved: tuple[Path, Content], memory_path: Path, power_cut: bool
) -> None:
    path, expected = halved
    template = path.rename(memory_path / "template")

    def work(disk: FaultyDisk) -> None:
        collect(Store.open(path, disk=disk))

    crash_at = 1
    while True:
        shutil.copytree(template, path)
        crashed = crash(work, crash_at, power_cut=power_cut)
        with Store.open(path) as store:
            report = check(store)
            assert report.ok, (crash_at, report.problems)
            assert scrub(store, from_disk=False).ok
        lose_index(path)
        assert reindex(path).snapshots == ["stays"], crash_at
        with Store.open(path) as store:
            collect(store)
            assert check(store).ok
            assert read_back(store, "stays") == expected
            SnapshotCatalog(store).remove(["stays"])
            collect(store)
            assert rows(store) == []
        shutil.rmtree(path)
        if not crashed:
            break
        crash_at += 1
    assert crash_at > 10


@pytest.mark.slow
@pytest.mark.parametrize("power_cut", [False, True], ids=["killed", "power cut"])
@pytest.mark.parametrize("had_index", [False, True], ids=["index lost", "index there"])
def test_reindex_survives_a_crash_at_every_call(
    halved: tuple[Path, Content], memory_path: Path, power_cut: bool, had_index: bool
) -> None:
    path, expected = halved
    if not had_index:
        lose_index(path)
    template = path.rename(memory_path / "template")
    crash_at = 1
    while True:
        shutil.copytree(template, path)
        crashed = crash(lambda disk: reindex(path, disk=disk), crash_at, power_cut=power_cut)
        if (path / "index").exists():
            Store.open(path).close()
        else:
            with pytest.raises(StoreError, match="reindex"):
                Store.open(path)
        report = reindex(path)
        assert report.ok, (crash_at, report)
        assert report.snapshots == ["stays"]
        assert not list(path.glob("index.*"))
        with Store.open(path) as store:
            assert read_back(store, "stays") == expected
        shutil.rmtree(path)
        if not crashed:
            break
        crash_at += 1
    assert crash_at > 5


@contextmanager
def opened_by_others(path: Path) -> Iterator[None]:
    """Hold the packs that are not sealed, so that a process has to make its own."""
    disk = RealDisk()
    packs = [disk.open(pack, write=True) for pack in path.glob("packs/*/*.pack")]
    held = [pack for pack in packs if disk.lock(pack)]
    assert held
    try:
        yield
    finally:
        for pack in packs:
            pack.close()


CHANGES: dict[str, Callable[[SnapshotCatalog], object]] = {
    "clone": lambda catalog: catalog.clone("stays", "copy"),
    "rename": lambda catalog: catalog.rename("stays", "renamed"),
    "remove": lambda catalog: catalog.remove(["stays"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("cut_off", list(CHANGES))
@pytest.mark.parametrize("later", list(CHANGES))
def test_what_a_crash_kept_out_of_the_catalogue_does_not_displace_what_came_later(
    halved: tuple[Path, Content], memory_path: Path, cut_off: str, later: str
) -> None:
    """Both claim the same sequence number or revision, and the first one's record may survive."""
    path, _expected = halved
    template = path.rename(memory_path / "template")

    def change(disk: FaultyDisk) -> None:
        with Store.open(path, disk=disk) as store:
            CHANGES[cut_off](SnapshotCatalog(store))

    crash_at = 1
    while True:
        shutil.copytree(template, path)
        with opened_by_others(path):
            crashed = crash(change, crash_at, power_cut=False)
        if not crashed:
            break
        with Store.open(path) as store:
            catalog = SnapshotCatalog(store)
            assert [info.name for info in catalog.list()] == ["stays"]
            CHANGES[later](catalog)
            names = [info.name for info in catalog.list()]
        lose_index(path)
        assert reindex(path).snapshots == names, crash_at
        sound(path)
        shutil.rmtree(path)
        crash_at += 1
    assert crash_at > 2


@pytest.mark.slow
@pytest.mark.parametrize("power_cut", [False, True], ids=["killed", "power cut"])
def test_repair_survives_a_crash_at_every_call(
    halved: tuple[Path, Content], memory_path: Path, scale: Scale, power_cut: bool
) -> None:
    """Of a store in which everything is wrong that a repair can mend."""
    path, expected = halved
    with Store.open(path) as store:
        snapshot = next(
            row
            for row in rows(store, RecordKind.SNAPSHOT)
            if row.references and is_named(store, row)
        )
        lose_header(store, any_row(store, RecordKind.CHUNK))
        lose_header(store, any_row(store, RecordKind.RECIPE))
        shift(store, snapshot, rows(store, RecordKind.TREE)[0])
        recount_wrongly(store)
    (path / "dedupfs.json").unlink()
    template = path.rename(memory_path / "template")
    step = scale(5, 1)
    crash_at = 1
    while True:
        shutil.copytree(template, path)
        crashed = crash(lambda disk: repair(path, disk=disk), crash_at, power_cut=power_cut)
        repair(path)
        again = repair(path)
        assert (again.found, again.done, again.left) == ([], [], []), crash_at
        sound(path)
        with Store.open(path) as store:
            assert read_back(store, "stays") == expected, crash_at
            assert [info.name for info in SnapshotCatalog(store).list()] == ["stays"]
        shutil.rmtree(path)
        if not crashed:
            break
        crash_at += step
    assert crash_at > 10


def is_named(store: Store, row: Row) -> bool:
    with store.reading() as txn:
        return any(value[:ID_BYTES] == row.record_id for _, value in txn.scan(Table.SNAPSHOTS))
