"""Directories may lie deeper than Python's stack: nothing finds its way to one by recursion.

Method: one directory in another, more of them than the stack has frames; what is deepest is changed
by a view that has seen all of them, by one that has only their numbers, and below a snapshot.
"""

import os
import sys

from dedupfs.namespace.view import Caller, View
from dedupfs.store.store import Store
from tests.namespace.test_catalog_view import names, read_file, write_file

DEPTH = sys.getrecursionlimit() + 100
CALLER = Caller(0, 0, 0o022)


def descend(view: View, inode: int) -> int:
    """Return the deepest directory below ``inode``."""
    for _ in range(DEPTH):
        inode = view.lookup(inode, b"d").inode
    return inode


def make_deep(view: View) -> int:
    """Make the directories; return the deepest one."""
    inode = 1
    for _ in range(DEPTH):
        inode = view.mkdir(inode, b"d", 0o755, CALLER).inode
    return inode


def test_what_lies_deep_is_changed_after_a_fold_and_after_a_crash(store: Store) -> None:
    view = View.bring_back(store)
    deep = make_deep(view)
    write_file(view, deep, b"f", b"old")
    view.fold()
    handle = view.open(view.lookup(deep, b"f").inode, os.O_RDWR)
    view.write(handle, 0, b"new")
    view.release(handle)
    view._opened.release()
    view = View.bring_back(store)
    assert read_file(view, deep, b"f") == b"new"
    view.close()


def test_what_lies_deep_is_found_by_its_number_alone(store: Store) -> None:
    view = View.bring_back(store)
    deep = make_deep(view)
    view.close()
    view = View.bring_back(store)
    write_file(view, deep, b"f", b"new")
    assert names(view, deep) == [b"f"]
    view.close()


def test_what_lies_deep_in_a_snapshot_is_changed_and_moved_out_of_it(store: Store) -> None:
    view = View.bring_back(store, "maker")
    make_deep(view)
    view.commit("snapshot")
    view.close()
    view = View.bring_back(store)
    top = view.lookup(1, b"snapshot").inode
    write_file(view, descend(view, top), b"f", b"new")
    view.rename(top, b"d", 1, b"moved", 0)
    assert names(view, top) == []
    view.close()
