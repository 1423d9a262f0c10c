"""What a view is after its daemon died must be what it was: before the next fold, and after it.

Method: a view is left as SIGKILL leaves it (only its lock goes), brought back, compared, folded,
compared again.
"""

import stat

import pytest

from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.store.store import Store
from tests.namespace.conftest import CHUNK_BYTES

CALLER = Caller(0, 0)


def die(view: View) -> None:
    view._opened.release()


def names(view: View, inode: int = ROOT_INODE, prefix: bytes = b"") -> set[bytes]:
    handle = view.opendir(inode)
    found = set()
    for _cookie, name, attr in list(view.readdir(handle, 0)):
        found.add(prefix + name)
        if stat.S_ISDIR(attr.mode):
            found |= names(view, attr.inode, prefix + name + b"/")
    view.releasedir(handle)
    return found


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_a_removed_directory_stays_removed(store: Store, folded: bool, moved: bool) -> None:
    view = View.bring_back(store)
    top = view.mkdir(ROOT_INODE, b"top", 0o755, CALLER).inode
    gone = view.mkdir(top, b"gone", 0o755, CALLER).inode
    other = view.mkdir(top, b"other", 0o755, CALLER).inode
    if folded:
        view.fold()
    view.mkdir(gone, b"sub", 0o755, CALLER)
    view.create(gone, b"file", 0o644, CALLER)
    view.rename(gone, b"file", other, b"file", 0)
    parent, name = top, b"gone"
    if moved:
        view.rename(top, b"gone", other, b"moved", 0)
        parent, name = other, b"moved"
    view.rmdir(gone, b"sub")
    view.rmdir(parent, name)
    expected = names(view)
    assert expected == {b"top", b"top/other", b"top/other/file"}
    die(view)
    view = View.bring_back(store)
    assert names(view) == expected
    view.fold()
    assert names(view) == expected
    view.close()


@pytest.mark.parametrize("carried", [False, True], ids=["", "carried through a fold"])
@pytest.mark.parametrize("deaths", [1, 2])
def test_the_time_of_the_last_write_survives(store: Store, deaths: int, carried: bool) -> None:
    view = View.bring_back(store)
    inodes = []
    for name in (b"written last", b"set last"):
        handle, attr = view.create(ROOT_INODE, name, 0o644, CALLER)
        inodes.append(attr.inode)
        view.write(handle, 0, b"a" * 10 * CHUNK_BYTES)
        view.setattr(attr.inode, AttrChange(mtime_ns=1_000_000_007))
        if name == b"written last":
            view.write(handle, 10 * CHUNK_BYTES, b"b" * 10 * CHUNK_BYTES)
    expected = [view.getattr(inode).mtime_ns for inode in inodes]
    assert expected[0] > expected[1] == 1_000_000_007
    if carried:
        view.fold()
    for _ in range(deaths):
        die(view)
        view = View.bring_back(store)
        assert [view.getattr(inode).mtime_ns for inode in inodes] == expected
    view.fold()
    assert [view.getattr(inode).mtime_ns for inode in inodes] == expected
    view.close()
