"""An import or a removal that a crash cuts off at any disk call leaves all of it or nothing.

Method: a directory is imported into a store that has another snapshot, or that one is removed, on
a ``FaultyDisk`` that stops at its n-th changing call, for every n; then nothing, all or a random
part of what was not synced is lost. The store must open by itself and be sound; a snapshot is
there whole or not at all, the same with the index lost, and doing it again must work.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dedupfs.errors import ExistsError, NotFoundError
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store
from tests.conftest import Scale
from tests.fakes import Crashed, FaultyDisk
from tests.maintenance.samples import (
    SMALL,
    Content,
    contents,
    import_directory,
    lose_index,
    make_directory,
    read_directory,
    sound,
)

pytestmark = pytest.mark.unmeasured

LOSSES = ["nothing", "all", "some"]

Work = Callable[[Store, Path], object]


def import_second(store: Store, directory: Path) -> None:
    import_directory(store, directory, "second")


def remove_first(store: Store, directory: Path) -> None:
    SnapshotCatalog(store).remove(["first"])
    collect(store)


def crash_in(work: Work, path: Path, directory: Path, crash_at: int, loss: str) -> bool:
    """Do ``work`` to the n-th call, then lose what was not synced; return whether it got there."""
    disk = FaultyDisk(crash_at=crash_at)
    store = Store.open(path, disk=disk)
    stopped = False
    try:
        work(store, directory)
    except Crashed:
        stopped = True
    finally:
        disk.crash()
        store.db.close()
    if loss == "all":
        disk.lose_unsynced()
    elif loss == "some":
        disk.lose_unsynced(random.Random(crash_at))
    return stopped


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("work", [import_second, remove_first])
def test_a_stop_at_any_call_leaves_a_snapshot_whole_or_not_at_all(
    work: Work, memory_path: Path, scale: Scale
) -> None:
    """In the long mode each call has every kind of loss, in the short one one of them in turn."""
    first, second = (
        make_directory(memory_path / "first", 1),
        make_directory(memory_path / "second", 2),
    )
    template, path = memory_path / "template", memory_path / "store"
    with Store.create(template, **SMALL) as store:
        import_directory(store, first, "first")
    whole = {"first": read_directory(first), "second": read_directory(second)}
    crash_at, stopped = 0, True
    while stopped:
        crash_at += 1
        for turn in range(scale(1, 2 * len(LOSSES))):
            loss = LOSSES[(crash_at + turn) % len(LOSSES)]
            loses_index = (crash_at + turn) // len(LOSSES) % 2 == 1
            shutil.copytree(template, path)
            stopped = crash_in(work, path, second, crash_at, loss)
            try:
                judge(path, second, work, whole, stopped=stopped, loses_index=loses_index)
            except BaseException as exc:
                exc.add_note(f"crash_at={crash_at} loss={loss} loses_index={loses_index}")
                raise
            shutil.rmtree(path)
    assert crash_at > 10


def judge(
    path: Path,
    second: Path,
    work: Work,
    whole: dict[str, Content],
    *,
    stopped: bool,
    loses_index: bool,
) -> None:
    if loses_index:
        lose_index(path)
        report = reindex(path)
        assert report.ok, report
    sound(path)
    untouched = {"first"} if work is import_second else set()
    expected_at_the_end = {"first", "second"} if work is import_second else set()
    left = contents(path)
    assert left == {name: whole[name] for name in left}
    assert untouched <= left.keys()
    if not stopped:
        assert left.keys() == expected_at_the_end
    with Store.open(path) as store:
        try:
            work(store, second)
        except (ExistsError, NotFoundError):
            assert left.keys() == expected_at_the_end, "it was done already"
        collect(store)
    assert contents(path).keys() == expected_at_the_end
    sound(path)
