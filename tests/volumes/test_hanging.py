"""A volume whose daemon hangs: who waits is answered in time, and nothing that is late does harm.

Method: the plugin's driver with its real workers, and limits of a moment. The daemon, or what forks
the workers, is stopped by SIGSTOP: what it was asked for is under way until it goes on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dedupfs.cli import main
from dedupfs.cli.output import parse_size
from dedupfs.errors import MountError
from dedupfs.fuse.mountpoints import mount_at
from dedupfs.maintenance.check import check
from dedupfs.namespace import live
from dedupfs.namespace.views import find_view
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

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the process that forks them."""
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        process = self._process
        super().close()
        assert process is not None
        assert process.wait(60) == 0


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "state")
    yield ledger
    ledger.close()


@pytest.fixture
def workers(ledger: Ledger) -> Waited:
    return Waited(ledger.directory)


@pytest.fixture
def driver(tmp_path: Path, ledger: Ledger, workers: Waited) -> Iterator[Driver]:
    store = tmp_path / "store"
    assert main(["init", str(store)]) == 0
    try:
        mounter = Mounter(ledger.directory / "mounts", allow_other=False, workers=workers)
        driver = Driver([store], ledger, mounter, parse_size)
        driver.create(NAME, {})
        yield driver
    finally:
        workers.close()
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


def test_a_mount_that_is_late_is_not_for_those_who_used_an_earlier_one(
    driver: Driver, workers: Waited, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = driver.mount(NAME, "one")
    assert main(["umount", str(place)]) == 0
    workers.tell(signal.SIGSTOP)
    try:
        with monkeypatch.context() as short:
            short.setattr(volumes, "MOUNT_S_MAX", 0.3)
            with pytest.raises(MountError, match="still being mounted"):
                driver.mount(NAME, "two")
    finally:
        workers.tell(signal.SIGCONT)
    assert driver.mount(NAME, "two") == place
    ((volume, where),) = driver.list()
    assert (volume.users, where) == (("two",), place)
    driver.unmount(NAME, "two")
    assert mount_at(place) is None, "nobody who could unmount it is left"


@pytest.mark.allow_log("not put in order")
def test_a_removal_that_was_begun_waits_for_a_mount_that_hangs(
    driver: Driver, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is mounted: somebody used it again instead, and that plugin died, too."""
    place = driver.mount(NAME, "one")
    volume = msgspec.structs.replace(driver.get(NAME)[0], users=(), pending="removed")
    ledger.put(volume)
    daemon = live.daemon_of_view(tmp_path / "store", NAME)
    assert daemon is not None
    os.kill(daemon.running.pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as short:
            short.setattr(volumes, "UNMOUNT_S_MAX", 0.3)
            driver.recover()
        assert ledger.get(NAME) == volume
    finally:
        os.kill(daemon.running.pid, signal.SIGCONT)
    driver.remove(NAME)
    assert driver.list() == []
    assert not place.exists()
    with Store.open(tmp_path / "store") as store:
        assert find_view(store, NAME) is None
