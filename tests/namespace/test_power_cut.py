"""What fsync promised of a view's files is there after a power cut, whatever came after it.

Method: one step of a story is synced, the next is not but reaches the disk in part, because another
file's fsync takes the journal along; then everything else that was not synced is taken back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.store.store import Store
from tests.fakes import FaultyDisk
from tests.namespace.conftest import CHUNK_BYTES, assert_sound, make_small_store
from tests.store.payloads import noise

ROOT = Caller(0, 0)
SMALL_BYTES = CHUNK_BYTES
LARGE_BYTES = 12 * CHUNK_BYTES


class Machine:
    """A view on a disk whose power can be cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        make_small_store(path).close()
        self.start()

    def start(self) -> None:
        self.disk = FaultyDisk()
        self.store = Store.open(self.path, disk=self.disk)
        self.view = View.bring_back(self.store)

    def cut_the_power(self) -> None:
        self.disk.crash()
        self.view._opened.release()
        self.store.db.close()
        self.disk.lose_unsynced()
        self.start()

    def create(self, name: bytes) -> int:
        return self.view.create(1, name, 0o644, ROOT)[0]

    def sync(self, handle: int) -> None:
        self.view.plan_fsync(self.view.inode_of(handle)).run()

    def sync_another_file(self) -> None:
        """The journal is one for all files."""
        handle = self.create(b"another")
        self.sync(handle)
        self.view.release(handle)

    def read(self, name: bytes) -> bytes:
        handle = self.view.open(self.view.lookup(1, name).inode, os.O_RDONLY)
        data = self.view.plan_read(handle, 0, 1 << 20).run()
        self.view.release(handle)
        return data

    def end(self) -> None:
        self.view.close()
        assert_sound(self.store)
        self.store.close()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "store")


def by_fsync(machine: Machine, handle: int) -> None:
    machine.sync(handle)


def by_fold(machine: Machine, handle: int) -> None:
    machine.view.fold()


@pytest.mark.parametrize("made_durable", [by_fsync, by_fold])
def test_a_small_synced_file_that_grows_large_keeps_what_was_synced(
    machine: Machine, made_durable: Callable[[Machine, int], None]
) -> None:
    handle = machine.create(b"file")
    first = noise("first", SMALL_BYTES)
    machine.view.write(handle, 0, first)
    made_durable(machine, handle)
    machine.view.write(handle, SMALL_BYTES, noise("second", 100))
    machine.view.write(handle, SMALL_BYTES + 100, noise("third", LARGE_BYTES))
    machine.sync_another_file()
    machine.cut_the_power()
    assert machine.read(b"file").startswith(first)
    machine.end()


def test_a_file_that_grew_large_and_was_overwritten_has_its_newest_bytes(machine: Machine) -> None:
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("first", SMALL_BYTES))
    machine.view.write(handle, SMALL_BYTES, noise("second", LARGE_BYTES))
    machine.view.write(handle, 10, b"overwritten")
    expected = machine.read(b"file")
    machine.sync(handle)
    machine.cut_the_power()
    assert machine.read(b"file") == expected
    machine.end()


def test_a_file_that_grew_large_and_was_cut_short_does_not_get_old_bytes_back(
    machine: Machine,
) -> None:
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("first", SMALL_BYTES))
    machine.view.write(handle, SMALL_BYTES, noise("second", LARGE_BYTES))
    machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=10))
    machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=LARGE_BYTES))
    machine.view.write(handle, 50, b"written anew")
    expected = machine.read(b"file")
    assert not any(expected[10:50])
    machine.sync(handle)
    machine.cut_the_power()
    assert machine.read(b"file") == expected
    machine.end()
