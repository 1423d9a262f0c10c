"""A failed fsync is told, and no later one claims success for the same bytes.

The kernel marks pages that it could not write as clean and tells once (fsync(2), "fsyncgate"), so
a second fsync of the same file proves nothing. Method: ``FaultyDisk`` fails one sync, for every one
in turn; after that whatever says success must survive ``lose_unsynced``, which takes back what no
successful sync covered. It counts a failed sync as one that dropped the bytes for good.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dedupfs.errors import StoreError
from dedupfs.maintenance.check import check
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.view import Caller, View
from dedupfs.store import Store
from dedupfs.store.disk import File
from tests.fakes import FaultyDisk
from tests.kills.place import read_file
from tests.maintenance.samples import SMALL

pytestmark = pytest.mark.unmeasured

CALLER = Caller(0, 0)
DATA = {
    name: random.Random(name).randbytes(size) for name, size in [("small", 900), ("large", 90_000)]
}


class ForgetfulDisk(FaultyDisk):
    """Fails the n-th sync, once; later syncs of that file succeed, as the kernel's do."""

    fail_sync = 0
    syncs = 0

    def _sync(self, file: File) -> None:
        self.syncs += 1
        if self.syncs == self.fail_sync:
            raise StoreError(f"sync {file.path}: injected")

    def fsync(self, file: File) -> None:
        self._sync(file)
        super().fsync(file)

    def fdatasync(self, file: File) -> None:
        self._sync(file)
        super().fdatasync(file)


def test_a_journal_that_failed_to_sync_is_not_called_durable_until_a_fold(tmp_path: Path) -> None:
    disk = ForgetfulDisk()
    with Store.create(tmp_path / "store", **SMALL, disk=disk) as store:
        view = View.bring_back(store)
        handle, attr = view.create(ROOT_INODE, b"small", 0o644, CALLER)
        view.write(handle, 0, DATA["small"])
        disk.fail_sync = disk.syncs + 1
        for _ in range(3):
            with pytest.raises(StoreError, match="sync"):
                view.plan_fsync(attr.inode).run()
        assert read_file(view, attr.inode) == DATA["small"]
        view.prepare_fold().run()
        view.fold()
        view.plan_fsync(attr.inode).run()
        assert read_file(view, attr.inode) == DATA["small"]
        view.release(handle)
        view.close()
        assert check(store).ok


def test_a_staging_file_that_failed_to_sync_is_written_anew(tmp_path: Path) -> None:
    disk = ForgetfulDisk()
    with Store.create(tmp_path / "store", **SMALL, disk=disk) as store:
        view = View.bring_back(store)
        handle, attr = view.create(ROOT_INODE, b"large", 0o644, CALLER)
        view.write(handle, 0, DATA["large"])
        disk.fail_sync = disk.syncs + 1
        for _ in range(3):
            with pytest.raises(StoreError, match="sync"):
                view.plan_fsync(attr.inode).run()
        disk.log.clear()
        view.prepare_fold().run()
        view.fold()
        assert not [line for line in disk.log if " link " in line], "made a pack of what was lost"
        view.plan_fsync(attr.inode).run()
        assert read_file(view, attr.inode) == DATA["large"]
        view.release(handle)
        view.close()
        assert check(store).ok


def test_records_of_a_pack_that_failed_to_sync_are_appended_anew(tmp_path: Path) -> None:
    disk = ForgetfulDisk()
    with Store.create(tmp_path / "store", **SMALL, disk=disk) as store:
        view = View.bring_back(store)
        handle, attr = view.create(ROOT_INODE, b"small", 0o644, CALLER)
        view.write(handle, 0, DATA["small"])
        view.release(handle)
        disk.fail_sync = disk.syncs + 1
        with pytest.raises(StoreError, match="injected"):
            view.fold()
        disk.log.clear()
        view.fold()
        assert [line for line in disk.log if " write " in line and line.endswith(".pack")]
        assert read_file(view, attr.inode) == DATA["small"]
        view.close()
        assert check(store).ok


def test_whatever_sync_fails_the_view_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    """Method: as above, for each sync of a life in turn; what failed is done again."""
    number, failed = 1, True
    while failed:
        disk = ForgetfulDisk(fail_at=frozenset())
        with Store.create(tmp_path / str(number), **SMALL, disk=disk) as store:
            view = View.bring_back(store)
            disk.fail_sync = disk.syncs + number
            live(view)
            failed = disk.syncs >= disk.fail_sync
            disk.fail_sync = 0
            for name, data in DATA.items():
                assert read_file(view, view.lookup(ROOT_INODE, name.encode()).inode) == data * 2
            view.close()
            report = check(store)
            assert report.ok, (number, report.problems)
        number += 1
    assert number > 5


def live(view: View) -> None:
    for name, data in DATA.items():
        handle, attr = view.create(ROOT_INODE, name.encode(), 0o644, CALLER)
        view.write(handle, 0, data)
        again(lambda inode=attr.inode: view.plan_fsync(inode).run(), view)
        again(view.fold, view)
        view.write(handle, len(data), data)
        again(lambda inode=attr.inode: view.plan_fsync(inode).run(), view)
        view.release(handle)
    again(lambda: view.commit("snapshot"), view)


def again(step: object, view: View) -> None:
    """Do it; if that fails, have the view folded, as its housekeeper does, and do it again."""
    assert callable(step)
    try:
        step()
    except StoreError:
        view.prepare_fold().run()
        view.fold()
        step()
