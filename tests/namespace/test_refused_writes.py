"""A write or truncate that the disk refuses changes nothing that can be read.

Method: the disk refuses writes to staging files or one journal alone, and takes them again; what is
read is then compared with a bytearray, at once, after a fold and after a crash.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dedupfs.errors import StoreError, StoreFullError
from dedupfs.namespace.view import AttrChange, View
from dedupfs.store.disk import Buffer, File
from dedupfs.store.store import Store
from tests.fakes import FaultyDisk
from tests.namespace.conftest import assert_sound, make_small_store
from tests.namespace.test_catalog_view import read_file, write_file
from tests.namespace.test_lifecycle import die
from tests.namespace.test_power_cut import Machine, carry, carry_a_new_one, clip, grow
from tests.namespace.test_review_stories import noise

SETTLED = noise(11, 3000)


@contextmanager
def full_for(disk: FaultyDisk, name: str = "staging.", *, after: int = 0) -> Iterator[None]:
    """Refuse each write to files whose names begin so, but ``after`` so many."""
    pwrite, refused = disk.pwrite, -after

    def refuse(file: File, buffers: Sequence[Buffer], offset: int) -> None:
        nonlocal refused
        refused += file.path.name.startswith(name)
        if file.path.name.startswith(name) and refused > 0:
            raise StoreFullError("injected")
        pwrite(file, buffers, offset)

    disk.pwrite = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        del disk.pwrite
    assert refused > 0


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def view(tmp_path: Path, disk: FaultyDisk) -> Iterator[View]:
    """A view with the settled file ``file``; the store is checked when the test is done."""
    make_small_store(tmp_path / "store").close()
    view = View.bring_back(Store.open(tmp_path / "store", disk=disk))
    write_file(view, 1, b"file", SETTLED)
    view.fold()
    yield view
    view._store.close()
    store = Store.open(tmp_path / "store")
    assert_sound(store)
    store.close()


def test_settled_bytes_stay_when_what_would_replace_them_is_refused(
    view: View, disk: FaultyDisk
) -> None:
    handle = view.open(view.lookup(1, b"file").inode, os.O_RDWR)
    view.write(handle, 0, b"first")
    expected = b"first" + SETTLED[5:]
    with full_for(disk), pytest.raises(StoreFullError):
        view.write(handle, 1000, b"refused" * 20)
    assert read_file(view, 1, b"file") == expected
    view.release(handle)
    view.fold()
    assert read_file(view, 1, b"file") == expected
    view.close()


def test_a_refused_write_hides_nothing_of_later_ones_from_a_crash(
    view: View, disk: FaultyDisk
) -> None:
    """Only the refused bytes themselves may be there or not: the journal may have had them."""
    handle = view.open(view.lookup(1, b"file").inode, os.O_RDWR)
    view.write(handle, 0, b"first")
    refused = noise(12, 400)
    with full_for(disk), pytest.raises(StoreFullError):
        view.write(handle, 2900, refused)
    view.write(handle, 2950, b"later" * 20)
    view.write(handle, 3050, b"behind" * 50)
    shown = bytearray(b"first" + SETTLED[5:])
    shown[2950:3050] = b"later" * 20
    shown += b"behind" * 50
    assert read_file(view, 1, b"file") == shown
    store = die(view, view._store)
    again = View.bring_back(store)
    assert read_file(again, 1, b"file") in (shown, shown[:2900] + refused[:50] + shown[2950:])
    again.close()
    store.close()


def test_nothing_is_cut_off_when_a_truncate_is_refused(view: View, disk: FaultyDisk) -> None:
    """The disk refuses what is left of the chunk that the end would lie in."""
    inode = view.lookup(1, b"file").inode
    handle = view.open(inode, os.O_RDWR)
    view.write(handle, 2500, b"staged")
    view.write(handle, 3000, b"behind" * 50)
    expected = SETTLED[:2500] + b"staged" + SETTLED[2506:] + b"behind" * 50
    with full_for(disk), pytest.raises(StoreFullError):
        view.setattr(inode, AttrChange(size=1001))
    assert read_file(view, 1, b"file") == expected
    store = die(view, view._store)
    again = View.bring_back(store)
    assert read_file(again, 1, b"file") == expected
    again.close()
    store.close()


def test_a_fold_helps_where_the_journal_cannot_even_be_told_of_a_truncate(
    view: View, disk: FaultyDisk
) -> None:
    """The staging file is shorter by then; a fold begins another journal, and frees what it can."""
    inode = view.lookup(1, b"file").inode
    handle = view.open(inode, os.O_RDWR)
    view.write(handle, 0, b"first")
    assert view._state.journal is not None
    with full_for(disk, view._state.journal.path.name, after=1):  # of the cut it was told
        with pytest.raises(StoreFullError):
            view.setattr(inode, AttrChange(size=1001))
        with pytest.raises(StoreFullError):
            view.plan_fsync(inode)
        view.prepare_fold().run()
        view._let_go()
        view.fold()
    expected = b"first" + SETTLED[5:1001]
    assert read_file(view, 1, b"file") == expected
    view.plan_fsync(inode).run()
    store = die(view, view._store)
    again = View.bring_back(store)
    assert read_file(again, 1, b"file") == expected
    again.close()
    store.close()


@pytest.mark.parametrize("end", [Machine.die, Machine.cut_the_power])
@pytest.mark.parametrize("make", [carry, carry_a_new_one, clip, grow])
def test_a_truncate_that_the_disk_refuses_is_not_done_by_the_next_daemon(
    tmp_path: Path,
    make: Callable[[Machine], int],
    end: Callable[[Machine], None],
) -> None:
    """Each call of the disk fails in turn, once; what the view shows then is what stays.

    But when the power goes before it was synced that it was done.
    """
    number, refused = 0, True
    while refused:
        number += 1
        machine = Machine(tmp_path / str(number))
        handle = make(machine)
        machine.sync(handle)
        before = machine.read(b"file")
        first = machine.disk.calls + number
        machine.disk.fail_at = frozenset([first])
        synced = False
        with suppress(StoreError):
            machine.view.setattr(machine.view.inode_of(handle), AttrChange(size=77))
            machine.sync(handle)
            synced = True
        refused = machine.disk.calls >= first
        shown = machine.read(b"file")
        assert shown in (before, before[:77])
        end(machine)
        found = machine.read(b"file")
        if end is Machine.die or synced:
            assert found == shown, f"call {number}"
        else:
            assert found in (before, shown), f"call {number}"
        machine.end()
    assert number > 2
