"""reindex brings views back from their journals.

Method: views are folded, or their daemon is killed, then the index is lost.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest

from dedupfs.format.tree import decode_view_root
from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.model import RecordKind
from dedupfs.namespace.lifecycle import make_numbered, reserve_number
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.namespace.views import find_view, list_views, remove_numbered_view, remove_view
from dedupfs.store import Store
from tests.maintenance.samples import (
    damage,
    lose_index,
    noise,
    rows,
)

ROOT = Caller(0, 0)


def write_file(view: View, name: bytes, data: bytes) -> None:
    handle, _attr = view.create(1, name, 0o644, ROOT)
    view.write(handle, 0, data)
    view.plan_fsync(view.inode_of(handle)).run()
    view.release(handle)


def read_file(view: View, name: bytes) -> bytes:
    inode = view.lookup(1, name).inode
    handle = view.open(inode, os.O_RDONLY)
    try:
        return view.plan_read(handle, 0, 1 << 24).run()
    finally:
        view.release(handle)


def test_a_view_comes_back_as_it_was_folded(filled: Store) -> None:
    view = View.bring_back(filled, "work", snapshot="first")
    write_file(view, b"new", noise("new", 30_000))
    view.unlink(1, b"medium")
    view.close()
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert report.ok, report
    assert report.views == ["work"]
    with Store.open(path) as store:
        assert [row.base for row in list_views(store)] == ["first"]
        view = View.bring_back(store, "work")
        assert read_file(view, b"new") == noise("new", 30_000)
        with pytest.raises(Exception, match="medium"):
            view.lookup(1, b"medium")
        view.close()
        assert check(store).ok


def abandon(store: Store, work: Callable[[View], None]) -> None:
    """Do ``work`` in a view of another process, which is then killed."""
    pid = os.fork()
    if pid == 0:
        try:
            child = Store.open(store.path)
            work(View.bring_back(child, "work"))
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_view_whose_daemon_died_comes_back_with_its_journal(filled: Store) -> None:
    path = filled.path
    filled.close()

    def work(view: View) -> None:
        write_file(view, b"small", b"written before the crash")
        write_file(view, b"big", noise("big", 200_000))
        view.mkdir(1, b"directory", 0o755, ROOT)

    abandon(filled, work)
    lose_index(path)
    report = reindex(path)
    assert report.ok, report
    with Store.open(path) as store:
        collect(store)
        view = View.bring_back(store, "work")
        assert read_file(view, b"small") == b"written before the crash"
        assert read_file(view, b"big") == noise("big", 200_000)
        assert stat.S_ISDIR(view.lookup(1, b"directory").mode)
        view.close()
        assert check(store).ok


@pytest.mark.parametrize("size", [100, 200_000])
def test_what_is_written_to_a_file_that_had_moved_away_and_back_comes_back(
    filled: Store, size: int
) -> None:
    """It keeps its number and has another slot by then, which no pack tells."""
    path = filled.path
    filled.close()

    def work(view: View) -> None:
        other = view.mkdir(1, b"other", 0o755, ROOT).inode
        write_file(view, b"file", b"")
        view.fold()
        view.rename(1, b"file", other, b"file", 0)
        view.rename(other, b"file", 1, b"file", 0)
        view.fold()
        write_file(view, b"beside", b"the journal knows the directory from here on")
        handle = view.open(view.lookup(1, b"file").inode, os.O_RDWR)
        view.write(handle, 0, noise("file", size))
        view.plan_fsync(view.inode_of(handle)).run()

    abandon(filled, work)
    lose_index(path)
    assert reindex(path).ok
    with Store.open(path) as store:
        view = View.bring_back(store, "work")
        assert read_file(view, b"file") == noise("file", size)
        view.close()
        assert check(store).ok


def test_a_clone_that_was_not_folded_comes_back(filled: Store) -> None:
    path = filled.path
    filled.close()

    def work(view: View) -> None:
        inode = view.mkdir(1, b"clone", 0o755, ROOT).inode
        view.clone(inode, b"first", privileged=True)
        view.unlink(inode, b"medium")
        view.plan_fsync(None).run()

    abandon(filled, work)
    lose_index(path)
    report = reindex(path)
    assert report.ok, report
    with Store.open(path) as store:
        collect(store)
        view = View.bring_back(store, "work")
        names = []
        for name in (b"first", b"clone"):
            handle = view.opendir(view.lookup(1, name).inode)
            names.append({found for _, found, _ in view.readdir(handle, 0)})
            view.releasedir(handle)
        assert names[0] - names[1] == {b"medium"}
        assert names[1] < names[0]
        view.close()
        assert check(store).ok


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("change", ["written to", "hidden"])
def test_a_snapshot_made_later_does_not_get_the_place_of_one_that_a_view_stands_in_for(
    filled: Store, change: str, folded: bool
) -> None:
    """The last snapshot is removed and forgotten: only the view knows that its number was given."""
    path = filled.path
    last = SnapshotCatalog(filled).clone("first", "last")
    filled.close()

    def work(view: View) -> None:
        name = last.name.encode()
        if change == "hidden":
            empty(view, 1, name)
        else:
            view.mkdir(view.lookup(1, name).inode, b"new", 0o755, ROOT)
        if folded:
            view.fold()
        view.plan_fsync(None).run()

    abandon(filled, work)
    with Store.open(path) as store:
        SnapshotCatalog(store).remove([last.name])
        collect(store)
    lose_index(path)
    assert reindex(path).ok
    with Store.open(path) as store:
        made = SnapshotCatalog(store).clone("first", "later")
        assert made.sequence > last.sequence
        view = View.bring_back(store, "work")
        later, first = (view.lookup(1, name).inode for name in (b"later", b"first"))
        assert later != first
        assert b"medium" in names_in(view, later)
        assert b"later" in names_in(view, 1)
        assert (last.name.encode() in names_in(view, 1)) is (change == "written to")
        view.close()
        assert check(store).ok


def names_in(view: View, inode: int) -> list[bytes]:
    handle = view.opendir(inode)
    names = [name for _, name, _ in view.readdir(handle, 0)]
    view.releasedir(handle)
    return names


def empty(view: View, parent: int, name: bytes) -> None:
    """Remove a directory with all that is in it."""
    inode = view.lookup(parent, name).inode
    for below in names_in(view, inode):
        if stat.S_ISDIR(view.lookup(inode, below).mode):
            empty(view, inode, below)
        else:
            view.unlink(inode, below)
    view.rmdir(parent, name)


def test_a_view_without_its_journal_comes_back_as_of_its_last_fold(filled: Store) -> None:
    view = View.bring_back(filled, "work", snapshot="first")
    write_file(view, b"new", noise("new", 30_000))
    view.close()
    path = filled.path
    filled.close()
    for journal in (path / "views" / "work").glob("journal.*"):
        journal.write_bytes(noise("garbage", 50))
    lose_index(path)
    report = reindex(path)
    assert [name for name, _ in report.shortened_views] == ["work"]
    with Store.open(path) as store:
        view = View.bring_back(store, "work")
        assert read_file(view, b"new") == noise("new", 30_000)
        view.close()
        assert check(store).ok


def test_a_view_whose_root_is_lost_is_put_aside_with_its_files(filled: Store) -> None:
    view = View.bring_back(filled, "work", snapshot="first")
    write_file(view, b"new", noise("new", 30_000))
    view.close()
    for row in rows(filled, RecordKind.VIEW_ROOT):
        damage(filled, row)
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert [name for name, _ in report.lost_views] == ["work"]
    assert list((path / "views" / ".lost-work").glob("journal.*"))
    with Store.open(path) as store:
        collect(store)
        assert list((path / "views" / ".lost-work").glob("journal.*"))


@pytest.mark.parametrize("used", [False, True], ids=["reserved", "removed"])
def test_a_view_made_later_is_not_taken_for_one_whose_number_somebody_has_written_down(
    filled: Store, used: bool
) -> None:
    """A volume plugin writes down the number, dies, and removes the view of that number."""
    path = filled.path
    number = reserve_number(filled)
    if used:
        make_numbered(filled, "work", "", number, None)
        remove_view(filled, "work")
        collect(filled)
    filled.close()
    lose_index(path)
    assert reindex(path).ok
    with Store.open(path) as store:
        view = View.bring_back(store, "work")
        write_file(view, b"file", b"somebody else's")
        view.close()
        for only_unused in (True, False):
            assert remove_numbered_view(store, "work", number, only_unused=only_unused)
        assert find_view(store, "work") is not None
        View.bring_back(store, "next").close()
        assert len({row.view_id for row in list_views(store)}) == 2
        view = View.bring_back(store, "work")
        assert read_file(view, b"file") == b"somebody else's"
        view.close()
        assert check(store).ok


def test_a_removed_view_does_not_come_back_in_place_of_one_of_its_name_whose_root_is_lost(
    filled: Store,
) -> None:
    """Its root may be in the packs for as long as gc has not erased it."""
    path = filled.path
    for name in (b"removed", b"lost"):
        if find_view(filled, "work") is not None:
            remove_view(filled, "work")
        view = View.bring_back(filled, "work")
        write_file(view, name, noise(name, 9000))
        view.close()
    row = find_view(filled, "work")
    assert row is not None
    newer = [
        found
        for found in rows(filled, RecordKind.VIEW_ROOT)
        if decode_view_root(filled.get(found.record_id, RecordKind.VIEW_ROOT)).view_id
        == row.view_id
    ]
    for found in newer:
        damage(filled, found)
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert [name for name, _ in report.lost_views] == ["work"]
    assert report.shortened_views == []
    with Store.open(path) as store:
        assert list_views(store) == []
