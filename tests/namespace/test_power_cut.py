"""What fsync promised of a view's files is there after a power cut, whatever came after it.

Method: one step of a story is synced, the next is not but reaches the disk in part, because another
file's fsync takes the journal along; then everything else that was not synced is taken back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from dedupfs.chunking import Buffer
from dedupfs.errors import NotFoundError, StoreFullError
from dedupfs.namespace.handles import SyncPlan
from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.store.disk import File
from dedupfs.store.store import Store
from tests.fakes import Crashed, FaultyDisk
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
        self._stop()
        self.disk.lose_unsynced()
        self.start()

    def die(self) -> None:
        """The process is gone, but what it wrote and did not sync is in the page cache."""
        self._stop()
        unsynced = self.disk._undo
        self.start()
        self.disk._undo[:0] = unsynced

    def _stop(self) -> None:
        self.disk.crash()
        self.view._opened.release()
        self.store.db.close()

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


def lose_the_staging_file(machine: Machine, name: bytes, data: bytes, first_bytes: int) -> None:
    """Leave a journal that names a staging file and a directory that does not.

    That is what a cut in the middle of another file's fsync leaves, behind the sync of the names.
    """
    inode = machine.view.inode_of(machine.create(b"synced meanwhile"))
    plan = machine.view.plan_fsync(inode)
    *names, journal = plan.steps
    SyncPlan(tuple(names)).run()
    handle = machine.create(name)
    machine.view.write(handle, 0, data[:first_bytes])
    machine.view.write(handle, first_bytes, data[first_bytes:])
    SyncPlan((journal,)).run()
    machine.cut_the_power()
    assert machine.read(name) in (b"", data[:SMALL_BYTES])


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


def test_bytes_that_replace_settled_ones_are_durable_by_the_journal_alone(machine: Machine) -> None:
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("settled", LARGE_BYTES))
    machine.view.release(handle)
    machine.view.fold()
    handle = machine.view.open(machine.view.lookup(1, b"file").inode, os.O_RDWR)
    for position in range(3):
        machine.view.write(handle, position * 1000, noise(str(position), 100))
        machine.disk.log.clear()
        machine.sync(handle)
        synced = [line for line in machine.disk.log if "sync" in line]
        assert not [line for line in synced if "staging" in line], synced
        assert len(synced) == (2 if position == 0 else 1), synced  # at first the names, too
    machine.disk.log.clear()
    machine.sync(handle)
    assert not machine.disk.log, "nothing has changed"
    expected = machine.read(b"file")
    machine.cut_the_power()
    assert machine.read(b"file") == expected
    machine.end()


@pytest.mark.parametrize("size", [LARGE_BYTES // 2, 2 * LARGE_BYTES])
def test_a_synced_length_is_durable(machine: Machine, size: int) -> None:
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("file", LARGE_BYTES))
    machine.sync(handle)
    machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=size))
    expected = machine.read(b"file")
    machine.sync(handle)
    machine.cut_the_power()
    assert machine.read(b"file") == expected
    machine.end()


def test_what_a_dead_daemon_wrote_is_durable_once_the_next_one_has_synced_it(
    machine: Machine,
) -> None:
    handle = machine.create(b"file")
    data = noise("file", LARGE_BYTES)
    machine.view.write(handle, 0, data)
    machine.die()
    handle = machine.view.open(machine.view.lookup(1, b"file").inode, os.O_RDWR)
    machine.sync(handle)
    machine.cut_the_power()
    assert machine.read(b"file") == data
    machine.end()


def test_a_journal_with_zeros_written_ahead_ends_behind_its_last_record(machine: Machine) -> None:
    handle = machine.create(b"file")
    expected = b""
    for number in range(40):
        machine.view.write(handle, len(expected), noise(str(number), 50))
        expected = machine.read(b"file")
        machine.sync(handle)
    journal = machine.view._state.journal
    assert journal is not None
    assert journal.path.stat().st_size > journal.size, "no zeros were written"
    machine.view.write(handle, len(expected), b"not synced")
    machine.cut_the_power()
    again = machine.view._state.journal
    assert again is not None
    assert again.path.stat().st_size == again.size
    assert machine.read(b"file") == expected
    machine.end()


def test_a_disk_without_room_for_zeros_has_room_for_records(machine: Machine) -> None:
    handle = machine.create(b"file")
    machine.sync(handle)
    pwrite, refused = machine.disk.pwrite, 0

    def short_of_room(file: File, buffers: Sequence[Buffer], offset: int) -> None:
        nonlocal refused
        if len(buffers[0]) > 4096:
            refused += 1
            raise StoreFullError("injected")
        pwrite(file, buffers, offset)

    machine.disk.pwrite = short_of_room  # type: ignore[method-assign]
    machine.view.write(handle, 0, b"bytes")
    assert refused == 1
    machine.sync(handle)
    machine.cut_the_power()
    assert machine.read(b"file") == b"bytes"
    machine.end()


def test_bytes_that_were_synced_before_their_journal_bring_their_time(machine: Machine) -> None:
    """The power goes between the two steps of an fsync: the staging file is through, no more."""
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("old", LARGE_BYTES))
    machine.sync(handle)
    machine.view.mknod(1, b"fifo", stat.S_IFIFO | 0o600, 0, ROOT)
    inode = machine.view.inode_of(handle)
    machine.view.setattr(inode, AttrChange(size=CHUNK_BYTES))
    machine.view.write(handle, CHUNK_BYTES, noise("new", CHUNK_BYTES))
    changed_ns = machine.view.getattr(inode).mtime_ns
    plan = machine.view.plan_fsync(inode)
    SyncPlan(plan.steps[:1]).run()
    machine.cut_the_power()
    with pytest.raises(NotFoundError):
        machine.view.lookup(1, b"fifo")
    assert machine.view.lookup(1, b"file").mtime_ns == changed_ns
    assert machine.read(b"file") == noise("old", CHUNK_BYTES) + noise("new", CHUNK_BYTES)
    machine.end()


STORY_OF_A_LOSS = "staging file is missing"


@pytest.mark.allow_log(STORY_OF_A_LOSS)
@pytest.mark.parametrize("also_dies", [False, True])
def test_a_file_whose_bytes_were_lost_never_gets_those_of_a_later_one(
    machine: Machine, also_dies: bool
) -> None:
    lose_the_staging_file(machine, b"lost", noise("lost", LARGE_BYTES), LARGE_BYTES)
    left = machine.read(b"lost")
    if also_dies:
        machine.die()
    handle = machine.create(b"later")
    machine.view.write(handle, 0, noise("later", 2 * LARGE_BYTES))
    machine.sync(handle)
    machine.cut_the_power()
    assert machine.read(b"lost") == left
    assert machine.read(b"later") == noise("later", 2 * LARGE_BYTES)
    machine.end()


def append_a_little(machine: Machine, handle: int) -> None:
    machine.view.write(handle, len(machine.read(b"lost")), b"a little")


def append_much(machine: Machine, handle: int) -> None:
    machine.view.write(handle, len(machine.read(b"lost")), noise("much", LARGE_BYTES))


def shorten(machine: Machine, handle: int) -> None:
    machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=3))


def lengthen(machine: Machine, handle: int) -> None:
    machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=LARGE_BYTES))


@pytest.mark.allow_log(STORY_OF_A_LOSS)
@pytest.mark.parametrize("first_bytes", [SMALL_BYTES, LARGE_BYTES])
@pytest.mark.parametrize("change", [append_a_little, append_much, shorten, lengthen])
def test_what_is_synced_of_a_file_whose_bytes_were_lost_is_durable(
    machine: Machine, change: Callable[[Machine, int], None], first_bytes: int
) -> None:
    data = noise("lost", LARGE_BYTES)
    lose_the_staging_file(machine, b"lost", data, first_bytes)
    for _ in range(3):
        handle = machine.view.open(machine.view.lookup(1, b"lost").inode, os.O_RDWR)
        change(machine, handle)
        expected = machine.read(b"lost")
        machine.sync(handle)
        machine.cut_the_power()
        assert machine.read(b"lost") == expected
    machine.view.fold()
    assert machine.read(b"lost") == expected
    machine.end()


@pytest.mark.allow_log(STORY_OF_A_LOSS)
def test_a_file_whose_bytes_were_lost_keeps_its_time_through_a_fold(machine: Machine) -> None:
    lose_the_staging_file(machine, b"lost", noise("lost", LARGE_BYTES), LARGE_BYTES)
    inode = machine.view.lookup(1, b"lost").inode
    handle = machine.view.open(inode, os.O_RDONLY)
    changed_ns = machine.view.getattr(inode).mtime_ns
    machine.view.fold()
    assert machine.view.getattr(inode).mtime_ns == changed_ns
    machine.view.release(handle)
    machine.end()


def test_a_number_of_a_deleted_staging_file_is_not_given_again_while_its_journal_lives(
    machine: Machine,
) -> None:
    """No power cut is needed: the journal of two dead daemons names one staging file for two."""
    handle = machine.create(b"deleted")
    machine.view.write(handle, 0, noise("deleted", LARGE_BYTES))
    machine.view.release(handle)
    machine.view.unlink(1, b"deleted")
    for _ in range(3):
        machine.view._let_go()
        machine.die()
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("file", LARGE_BYTES))
    for _ in range(3):
        machine.die()
        machine.view._let_go()
        assert machine.read(b"file") == noise("file", LARGE_BYTES)
    machine.end()


def test_a_file_that_was_cut_short_before_the_journal_said_so_keeps_the_size_that_it_shows(
    machine: Machine,
) -> None:
    """The power goes within the second truncate, between the staging file's sync and the edit."""
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("first", SMALL_BYTES))
    machine.view.write(handle, SMALL_BYTES, noise("second", LARGE_BYTES))
    machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=5))
    machine.sync(handle)
    machine.disk.crash_at = machine.disk.calls + 4
    with pytest.raises(Crashed):
        machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=2))
    assert [line.split()[1] for line in machine.disk.log[-2:]] == ["fsync", "write"]
    machine.cut_the_power()
    expected = machine.read(b"file")
    assert expected == noise("first", SMALL_BYTES)[:2]
    for _ in range(2):
        machine.die()
        assert machine.read(b"file") == expected
    machine.end()


def open_settled(machine: Machine) -> int:
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("settled", LARGE_BYTES))
    machine.view.release(handle)
    machine.view.fold()
    return machine.view.open(machine.view.lookup(1, b"file").inode, os.O_RDWR)


def carry(machine: Machine) -> int:
    """Settled bytes that were replaced, in a staging file that a fold has carried over."""
    handle = open_settled(machine)
    machine.view.write(handle, 0, noise("replaced", LARGE_BYTES - 100))
    fold_and_carry(machine)
    return handle


def carry_a_new_one(machine: Machine) -> int:
    """A new file that began small, carried over; and its begin was replaced since."""
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("small", SMALL_BYTES))
    machine.view.write(handle, SMALL_BYTES, noise("large", LARGE_BYTES))
    fold_and_carry(machine)
    machine.view.write(handle, 100, noise("replaced", SMALL_BYTES))
    return handle


def clip(machine: Machine) -> int:
    """A settled file that was cut inside of a chunk, and written over that end."""
    handle = open_settled(machine)
    machine.view.write(handle, 0, b"staged")
    size = LARGE_BYTES - 50
    machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=size))
    machine.view.write(handle, size - 5, noise("over the end", 500))
    return handle


def grow(machine: Machine) -> int:
    """A small file that grew: its begin is in the journal, the rest in the staging file alone."""
    handle = machine.create(b"file")
    machine.view.write(handle, 0, noise("small", SMALL_BYTES))
    machine.view.write(handle, SMALL_BYTES, noise("large", LARGE_BYTES))
    return handle


def fold_and_carry(machine: Machine) -> None:
    machine.view.prepare_fold().run()
    machine.view.fold()
    (file,) = machine.view._state.files.values()
    assert file.staging is not None, "it was settled"


@pytest.mark.parametrize("size", [0, 77, LARGE_BYTES - 120, LARGE_BYTES - 60])
@pytest.mark.parametrize("make", [carry, carry_a_new_one, clip, grow])
@pytest.mark.parametrize("end", [Machine.cut_the_power, Machine.die])
def test_a_file_is_cut_short_as_a_whole_or_not_at_all(
    tmp_path: Path, end: Callable[[Machine], None], make: Callable[[Machine], int], size: int
) -> None:
    """A crash at each call of the disk during a truncate, and a power cut after that."""
    before, after, seen = b"", b"", set()
    number, was_cut = 0, True
    while was_cut:
        number += 1
        machine = Machine(tmp_path / str(number))
        handle = make(machine)
        machine.sync(handle)
        before = machine.read(b"file")
        after = before[:size]
        machine.disk.crash_at = machine.disk.calls + number
        with suppress(Crashed):
            machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=size))
            machine.sync(handle)
            was_cut = False
            assert machine.read(b"file") == after
        end(machine)
        found = machine.read(b"file")
        assert found in (before, after), f"call {number}"
        seen.add(found)
        handle = machine.view.open(machine.view.lookup(1, b"file").inode, os.O_RDWR)
        machine.view.write(handle, len(found) + 10, b"behind")
        machine.sync(handle)
        machine.cut_the_power()
        assert machine.read(b"file") == found + bytes(10) + b"behind", f"call {number}"
        machine.end()
    assert seen == {before, after}


@pytest.mark.parametrize("behind", [b"", bytes(5000), b"what came behind it"])
def test_what_lies_behind_a_torn_record_is_cut_off_durably(machine: Machine, behind: bytes) -> None:
    """A new record of the torn one's length, and a power cut, could bring back what came behind."""
    handle = machine.create(b"file")
    machine.view.write(handle, 0, b"bytes")
    journal = machine.view._state.journal
    assert journal is not None
    machine._stop()
    with journal.path.open("ab") as file:
        file.write(behind)
    machine.start()
    calls = [line.split()[1] for line in machine.disk.log if journal.path.name in line]
    assert calls == ["truncate", "fdatasync"] if any(behind) else ["truncate"]
    assert machine.read(b"file") == b"bytes"
    machine.end()


@pytest.mark.allow_log(STORY_OF_A_LOSS)
def test_a_deleted_staging_file_does_not_come_back_for_a_later_file_of_its_number(
    machine: Machine,
) -> None:
    """The journal is synced without the names, as when chunks of a large file are adopted."""
    handle = machine.create(b"settled")
    machine.view.write(handle, 0, noise("settled", LARGE_BYTES))
    machine.sync(handle)
    machine.view.release(handle)
    machine.view.fold()
    machine.die()
    handle = machine.create(b"later")
    machine.view.write(handle, 0, noise("later", LARGE_BYTES))
    machine.view._state.sync_journal()
    machine.cut_the_power()
    assert machine.read(b"later") in (b"", noise("later", LARGE_BYTES))
    machine.end()
