"""A volume whose daemon hangs: who waits is answered in time, and nothing that is late does harm.

Method: the plugin's driver with its real workers, and limits of a moment. The daemon is stopped by
SIGSTOP, so that an unmount is under way until it goes on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.cli import main
from dedupfs.cli.output import parse_size
from dedupfs.errors import MountError
from dedupfs.fuse.mountpoints import mount_at
from dedupfs.maintenance.check import check
from dedupfs.namespace import live
from dedupfs.store import Store
from dedupfs.volumes import driver as volumes
from dedupfs.volumes.driver import Driver
from dedupfs.volumes.ledger import Ledger
from dedupfs.volumes.mounts import Mounter
from dedupfs.volumes.workers import Workers
from tests.conftest import detach_all_below

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.unmeasured]

NAME = "job"


class Waited(Workers):
    """They end before the test does."""

    def close(self) -> None:
        process = self._process
        super().close()
        assert process is not None
        assert process.wait(60) == 0


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    store, state = tmp_path / "store", tmp_path / "state"
    assert main(["init", str(store)]) == 0
    ledger, workers = Ledger.open(state), Waited(state)
    try:
        mounter = Mounter(state / "mounts", allow_other=False, workers=workers)
        driver = Driver([store], ledger, mounter, parse_size)
        driver.create(NAME, {})
        yield driver
    finally:
        workers.close()
        ledger.close()
        detach_all_below(tmp_path)
    with Store.open(store) as opened:
        report = check(opened)
    assert report.ok, "\n".join(map(str, report.problems))


@pytest.mark.allow_log("still being unmounted")
def test_an_unmount_that_is_late_does_not_take_the_mount_from_the_next_container(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = driver.mount(NAME, "one")
    (place / "file").write_text("kept")
    daemon = live.daemon_of_view(tmp_path / "store", NAME)
    assert daemon is not None
    os.kill(daemon.running.pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as short:
            short.setattr(volumes, "UNMOUNT_S_MAX", 0.3)
            short.setattr(volumes, "MOUNT_S_MAX", 0.3 + volumes.START_S)
            for _again in range(2):
                driver.unmount(NAME, "one")  # its user has gone; the mount follows
            for refused in (lambda: driver.mount(NAME, "two"), lambda: driver.remove(NAME)):
                with pytest.raises(MountError, match="mounted or unmounted: try again later"):
                    refused()
    finally:
        os.kill(daemon.running.pid, signal.SIGCONT)
    assert driver.mount(NAME, "two") == place
    assert mount_at(place) is not None
    assert (place / "file").read_text() == "kept"
    ((volume, where),) = driver.list()
    assert (volume.users, where) == (("two",), place)
    driver.unmount(NAME, "two")
    assert mount_at(place) is None
    assert not place.exists()  # a container that is given it by mistake does not start
    driver.remove(NAME)
    assert driver.list() == []
