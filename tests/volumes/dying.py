"""A volume that is made or removed by a plugin that dies, at each call that changes a disk.

    python -m tests.volumes.dying DIRECTORY create|remove kill|cut STRIDE

Each round copies a store with the snapshot ``base``, forks a plugin that dies right before its n-th
call (alone, or with the file system below it), and two that come after it: one finds things as
they were left; before the other one, somebody takes the view or makes one of that name. Fails with
the number of the call; in the end says "calls N rounds M". STRIDE: only each so many-th call.

Nothing is mounted here, so nothing waits for workers.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dedupfs.cli.output import parse_size
from dedupfs.errors import ExistsError
from dedupfs.maintenance.check import check
from dedupfs.namespace.names import Caller
from dedupfs.namespace.view import View
from dedupfs.namespace.views import find_view, list_views, view_directory
from dedupfs.store import Store
from dedupfs.store.limits import LIMIT_NAME
from dedupfs.store.realdisk import RealDisk
from dedupfs.volumes.driver import Driver
from dedupfs.volumes.ledger import Ledger
from dedupfs.volumes.mounts import Mounter
from dedupfs.volumes.workers import Workers
from tests.kills.dying import CHANGING
from tests.powercut.machine import Image

NAME = "job"
WORDS = {"snapshot": "base", "limit": "1MiB"}
OTHERS = {"limit": "2MiB"}


class NoWorkers(Workers):
    """There are no mounts."""

    def do(self, order: bytes, about: str, until_s: float) -> bool:
        assert b"nothing" in order
        return True


class Place:
    """A store and a plugin's state, on a file system of their own that can lose power."""

    def __init__(self, directory: Path, image: Image | None) -> None:
        self.template = directory / "store"
        self.image = image
        self.root = (directory if image is None else image.path) / "place"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def prepare(self, action: str) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.template, self.store, symlinks=True)
        if action == "remove":
            assert in_child(lambda: self.driver().create(NAME, WORDS)) == 0
        if self.image is not None:
            subprocess.run(["sync", "--file-system", self.root], check=True)

    def driver(self) -> Driver:
        """Return what a plugin that starts has."""
        ledger = Ledger.open(self.state)
        mounter = Mounter(self.state / "mounts", allow_other=False, workers=NoWorkers(self.state))
        driver = Driver([self.store], ledger, mounter, parse_size)
        driver.recover()
        return driver

    def die(self) -> None:
        if self.image is not None:
            self.image.cut()
        os.kill(os.getpid(), signal.SIGKILL)


def in_child(body: Callable[[], object]) -> int:
    """Run something in a process that has nothing of the last one's; return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:  # noqa: BLE001 - there is nobody above us
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_calls(before_call: Callable[[int], None]) -> None:
    """Have each call that changes a disk, or tells it to sync, be counted from now on."""
    calls = 0

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            before_call(calls)
            return method(*arguments, **options)

        return call

    for name in CHANGING:
        setattr(RealDisk, name, counted(getattr(RealDisk, name)))
    for name in ("fsync", "rename", "rmdir", "unlink"):  # of the plugin's own list, and rmtree's
        setattr(os, name, counted(getattr(os, name)))


def act(place: Place, action: str, count: int, said: int) -> None:
    driver = place.driver()

    def before_call(calls: int) -> None:
        if calls == count:
            place.die()

    count_calls(before_call)
    if action == "create":
        driver.create(NAME, WORDS)
    else:
        driver.remove(NAME)
    os.write(said, b"done")


def come_after(place: Place) -> None:
    """There is a volume with its view, or neither; and it can be made and removed."""
    driver = place.driver()
    found = [volume for volume, _where in driver.list()]
    assert [volume.pending for volume in found] == [""] * len(found), found
    with Store.open(place.store) as store:
        views = {row.name: row.view_id for row in list_views(store)}
        assert views == {volume.name: volume.view_id for volume in found}, (views, found)
        left = os.listdir(place.store / "views") if (place.store / "views").exists() else []
        assert left == list(views), left
        assert not found or (view_directory(store.path, NAME) / LIMIT_NAME).exists()
        assert check(store).ok
    driver.create(NAME, WORDS if found else OTHERS)
    driver.remove(NAME)
    driver.create(NAME, OTHERS)
    driver.remove(NAME)
    assert driver.list() == []
    with Store.open(place.store) as store:
        assert list_views(store) == []
        assert check(store).ok


def somebody_else(place: Place) -> None:
    """Write into the view that is there, or into a new one of its name; it must stay."""
    with Store.open(place.store) as store:
        row = find_view(store, NAME)
        is_theirs = row is None or is_unfinished(place)
        view = View.bring_back(store, NAME)
        view.mkdir(1, b"theirs", 0o755, Caller(0, 0))
        view.close()
    driver = place.driver()
    with Store.open(place.store) as store:
        row = find_view(store, NAME)
    if not is_theirs:  # a volume, and its view; the one that was to be removed may be
        assert (row is not None) == bool(driver.list())
        return
    assert row is not None
    assert driver.list() == []
    with pytest.raises(ExistsError, match="there is a view"):
        driver.create(NAME, {})
    driver.create("other", {"view": NAME})
    driver.remove("other")
    with Store.open(place.store) as store:
        view = View.bring_back(store, NAME)
        view.lookup(1, b"theirs")
        view.close()
        assert check(store).ok


def is_unfinished(place: Place) -> bool:
    """Whether a volume was not noted as made."""
    ledger = Ledger.open(place.state)
    volume = ledger.get(NAME)
    ledger.close()
    return volume is None or volume.pending == "made"


def run_round(place: Place, action: str, count: int) -> bool:
    """Have a plugin die at a call; return whether there is no such call."""
    for after in (come_after, somebody_else):
        place.prepare(action)
        reader, writer = os.pipe()
        code = in_child(functools.partial(act, place, action, count, writer))
        os.close(writer)
        with open(reader, "rb") as said:
            is_done = said.read() == b"done"
        assert code == (0 if is_done else -signal.SIGKILL), (count, code)
        if place.image is not None and not is_done:
            place.image.restart()
        assert in_child(functools.partial(after, place)) == 0, f"{after.__name__}: call {count}"
    return is_done


def main(directory: Path, action: str, how: str, stride: int) -> None:
    logging.disable()
    image = Image(directory, "ext4", random.Random(0)) if how == "cut" else None
    try:
        if image is not None:
            image.mount()
        place = Place(directory, image)
        rounds, count = 0, 1
        while not run_round(place, action, count):
            rounds += 1
            count += stride
        sys.stdout.write(f"calls {count - 1} rounds {rounds}\n")
    finally:
        if image is not None:
            image.remove()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
