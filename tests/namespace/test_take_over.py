"""What the next daemon of a mount has of a view whose daemon died: all that somebody may look at.

Method: a view is left as SIGKILL leaves it, with what a supervisor keeps of it, and taken over.
"""

from __future__ import annotations

import os

import msgspec
import pytest

from dedupfs.errors import StaleError
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.handover import Handover
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import EDITS_MAX, AttrChange, Caller, View
from dedupfs.store.store import Store
from tests.namespace.conftest import CHUNK_BYTES

CALLER = Caller(0, 0)


def taken_over(store: Store, view: View) -> View:
    """Let the daemon of ``view`` die; return the next one's."""
    handover = view.handover()
    fds = {name: os.dup(fd) for name, fd in handover.fds.items()}
    view._opened.release()
    return View.take_over(store, Handover(handover.view, handover.root, handover.owner, fds), "")


@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_a_change_of_mode_after_a_write_keeps_its_time(store: Store, named: bool) -> None:
    view = View.bring_back(store)
    handle, attr = view.create(ROOT_INODE, b"f", 0o644, CALLER)
    view.write(handle, 0, b"a" * 10 * CHUNK_BYTES)
    view.write(handle, 10 * CHUNK_BYTES, b"b" * 10 * CHUNK_BYTES)
    if not named:
        view.unlink(ROOT_INODE, b"f")
    expected = view.setattr(attr.inode, AttrChange(mode=0o600))
    assert expected.ctime_ns > expected.mtime_ns
    for _ in range(2):
        view = taken_over(store, view)
        # Blocks of a staging file are the disk's; what counts are mode and times.
        found = view.getattr(attr.inode)
        assert msgspec.structs.replace(found, stored_blocks=expected.stored_blocks) == expected
    view.write(handle, 20 * CHUNK_BYTES, b"c" * CHUNK_BYTES)
    expected = view.getattr(attr.inode)
    view = taken_over(store, view)
    assert view.getattr(attr.inode).mtime_ns == expected.mtime_ns
    assert view.getattr(attr.inode).ctime_ns == expected.ctime_ns
    view.release(handle)
    view.close()


@pytest.mark.parametrize("folded", [False, True])
def test_removed_directories_stay_while_somebody_may_be_in_them(store: Store, folded: bool) -> None:
    view = View.bring_back(store)
    inodes = []
    for number in range(20):
        name = b"d%d" % number
        inodes.append(view.mkdir(ROOT_INODE, name, 0o755, CALLER).inode)
        if folded:
            view.fold()
        view.rmdir(ROOT_INODE, name)
        if number != 7:
            view.forget([(inodes[-1], 1)])
    for _ in range(2):
        view = taken_over(store, view)
        assert view.getattr(inodes[7]).nlink == 0
        assert len(view._state.directories) == 2
        for inode in inodes[:7]:
            with pytest.raises(StaleError):
                view.getattr(inode)
    view.forget([(inodes[7], 1)])
    view = taken_over(store, view)
    assert len(view._state.directories) == 1
    view.close()


def enter(store: Store, view: View) -> tuple[int, int, int]:
    """Make the snapshot ``one`` and open its file; return numbers of it and of the file, handle."""
    handle, _ = view.create(ROOT_INODE, b"f", 0o644, CALLER)
    view.write(handle, 0, b"old" * 10 * CHUNK_BYTES)
    view.release(handle)
    view.commit("one")
    view.unlink(ROOT_INODE, b"f")
    top = view.lookup(ROOT_INODE, b"one").inode
    file = view.lookup(top, b"f").inode
    view.fold()
    return top, file, view.open(file, os.O_RDWR)


def test_a_snapshot_that_was_removed_becomes_the_views_own_when_it_is_changed(
    store: Store,
) -> None:
    view = View.bring_back(store)
    top, file, handle = enter(store, view)
    SnapshotCatalog(store).remove(["one"])
    collect(store)
    for _ in range(2):
        view = taken_over(store, view)
    view.write(handle, 0, b"new")
    assert view.lookup(ROOT_INODE, b"one").inode == top
    view.fold()
    collect(store)
    view = taken_over(store, view)
    assert view.plan_read(handle, 0, 6).run() == b"newold"
    assert view.lookup(top, b"f").inode == file
    view.release(handle)
    view.close()


def test_a_removed_snapshot_is_not_taken_for_another_one_of_its_name(store: Store) -> None:
    view = View.bring_back(store)
    top, file, handle = enter(store, view)
    other, _ = view.create(ROOT_INODE, b"f", 0o644, CALLER)
    view.write(other, 0, b"another")
    view.release(other)
    SnapshotCatalog(store).remove(["one"])
    view.commit("one")
    collect(store)
    view = taken_over(store, view)
    with pytest.raises(StaleError):
        view.write(handle, 0, b"new")
    with pytest.raises(StaleError):
        view.setattr(top, AttrChange(mode=0o700))
    assert view.plan_read(handle, 0, 3).run() == b"old"
    again = view.lookup(ROOT_INODE, b"one").inode
    assert again != top
    assert view.lookup(again, b"f").size == len(b"another")
    assert view.lookup(top, b"f").inode == file
    view.release(handle)
    view.close()


def test_a_snapshot_that_the_view_itself_removed_is_gone(store: Store) -> None:
    view = View.bring_back(store)
    top, file, handle = enter(store, view)
    view.release(handle)
    view.unlink(top, b"f")
    view.rmdir(ROOT_INODE, b"one")
    view.forget([(file, 1), (top, 1)])
    view.fold()
    SnapshotCatalog(store).remove(["one"])
    view = taken_over(store, view)
    for inode in (top, file):
        with pytest.raises(StaleError):
            view.getattr(inode)
    view.close()


@pytest.mark.allow_log("open file cannot be found again")
def test_an_open_file_whose_records_are_gone_is_stale_and_the_others_are_open(store: Store) -> None:
    view = View.bring_back(store)
    _, _, handle = enter(store, view)
    mine, _ = view.create(ROOT_INODE, b"mine", 0o644, CALLER)
    view.write(mine, 0, b"mine")
    SnapshotCatalog(store).remove(["one"])
    with store.transaction() as txn:
        txn.release_pins(store.owner)
    collect(store)
    view = taken_over(store, view)
    with pytest.raises(StaleError):
        view.plan_read(handle, 0, 3)
    assert view.plan_read(mine, 0, 10).run() == b"mine"
    view.release(handle)
    view.release(mine)
    view.close()


def test_many_edits_are_folded_before_a_next_daemon_has_to_replay_them(store: Store) -> None:
    view = View.bring_back(store)
    attr = view.mkdir(ROOT_INODE, b"d", 0o755, CALLER)
    for mode in range(EDITS_MAX):
        assert not view.wants_fold()
        view.setattr(attr.inode, AttrChange(mode=0o700 | mode % 2))
        if view._state.edit_count >= EDITS_MAX:
            break
    assert view.wants_fold()
    view.fold()
    assert not view.wants_fold()
    view.close()
