"""A catalogue view: snapshots come and go, the view's own names lie over them, scopes hold links.

Method: each test is a short story against a real store, read through the view's own calls.
"""

import os
import random
from collections.abc import Iterator

import pytest

from dedupfs.errors import CrossScopeError, ExistsError, NotFoundError, ReadOnlyError, UsageError
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.namespace.views import list_views, remove_view
from dedupfs.store.store import Store

CALLER = Caller(0, 0, 0o022)


def write_file(view: View, parent: int, name: bytes, data: bytes) -> int:
    handle, attr = view.create(parent, name, 0o644, CALLER)
    view.write(handle, 0, data)
    view.release(handle)
    return attr.inode


def read_file(view: View, parent: int, name: bytes) -> bytes:
    attr = view.lookup(parent, name)
    handle = view.open(attr.inode, os.O_RDONLY)
    data = view.plan_read(handle, 0, attr.size + 1).run()
    view.release(handle)
    return data


def names(view: View, inode: int = 1) -> list[bytes]:
    handle = view.opendir(inode)
    found = [name for _, name, _ in view.readdir(handle, 0)]
    view.releasedir(handle)
    return sorted(found)


@pytest.fixture
def view(store: Store) -> Iterator[View]:
    view = View.bring_back(store)
    yield view
    view.close()


@pytest.fixture
def snapshot(store: Store) -> str:
    """A snapshot with a file, a pair of hard links and a subdirectory that holds such a pair."""
    maker = View.bring_back(store, "maker")
    top = maker.mkdir(1, b"top", 0o755, CALLER).inode
    write_file(maker, top, b"file", b"base" * 300)
    linked = write_file(maker, top, b"one", b"linked")
    maker.link(linked, top, b"two")
    sub = maker.mkdir(top, b"sub", 0o755, CALLER).inode
    inner = write_file(maker, sub, b"x", b"inner")
    maker.link(inner, sub, b"y")
    maker.mkdir(top, b"plain", 0o755, CALLER)
    maker.commit("base", path=b"top")
    maker.close()
    remove_view(store, "maker")
    collect(store)
    return "base"


def test_a_snapshot_is_a_directory_with_all_that_was_committed(view: View, snapshot: str) -> None:
    base = view.lookup(1, b"base")
    assert names(view, base.inode) == [b"file", b"one", b"plain", b"sub", b"two"]
    assert read_file(view, base.inode, b"file") == b"base" * 300
    one, two = view.lookup(base.inode, b"one"), view.lookup(base.inode, b"two")
    assert one == two
    assert one.nlink == 2


def test_a_snapshot_that_another_process_adds_appears_by_itself(store: Store, view: View) -> None:
    assert names(view) == []
    other = View.bring_back(store, "other")
    write_file(other, 1, b"f", b"data")
    other.commit("later")
    assert names(view) == [b"later"]
    assert read_file(view, view.lookup(1, b"later").inode, b"f") == b"data"
    other.close()


def test_writes_into_a_snapshot_stay_in_their_view(store: Store, view: View, snapshot: str) -> None:
    base = view.lookup(1, b"base").inode
    handle = view.open(view.lookup(base, b"one").inode, os.O_RDWR)
    view.write(handle, 0, b"LINKED")
    view.release(handle)
    assert read_file(view, base, b"two") == b"LINKED"
    view.fold()
    other = View.bring_back(store, "other")
    pristine = View.open_read_only(store, snapshot="base")
    assert read_file(other, other.lookup(1, b"base").inode, b"two") == b"linked"
    assert read_file(pristine, 1, b"one") == b"linked"
    assert read_file(view, base, b"one") == b"LINKED"
    other.close()


def test_hard_links_do_not_leave_their_snapshot(view: View, snapshot: str) -> None:
    base = view.lookup(1, b"base").inode
    own = view.mkdir(1, b"own", 0o755, CALLER).inode
    with pytest.raises(CrossScopeError):
        view.link(view.lookup(base, b"file").inode, own, b"file")
    with pytest.raises(CrossScopeError):
        view.rename(base, b"one", own, b"one", 0)
    with pytest.raises(CrossScopeError):
        view.rename(base, b"sub", own, b"sub", 0)
    view.rename(base, b"file", own, b"file", 0)
    view.rename(base, b"plain", own, b"plain", 0)
    assert names(view, own) == [b"file", b"plain"]
    assert read_file(view, own, b"file") == b"base" * 300


def test_a_renamed_snapshot_directory_keeps_its_links(
    store: Store, view: View, snapshot: str
) -> None:
    inode = view.lookup(1, b"base").inode
    view.rename(1, b"base", 1, b"renamed", 0)
    assert names(view) == [b"renamed"]
    view.close()
    again = View.bring_back(store)
    moved = again.lookup(1, b"renamed")
    assert moved.inode == inode
    assert again.lookup(inode, b"one") == again.lookup(inode, b"two")
    assert read_file(again, inode, b"two") == b"linked"
    again.rename(1, b"renamed", 1, b"base", 0)
    assert names(again) == [b"base"]
    again.close()


def remove_tree(view: View, parent: int, name: bytes) -> None:
    inode = view.lookup(parent, name).inode
    for child in names(view, inode):
        if view.lookup(inode, child).mode & 0o170000 == 0o040000:
            remove_tree(view, inode, child)
        else:
            view.unlink(inode, child)
    view.rmdir(parent, name)


def test_a_removed_snapshot_directory_is_hidden_in_that_view_alone(
    store: Store, view: View, snapshot: str
) -> None:
    remove_tree(view, 1, b"base")
    assert names(view) == []
    with pytest.raises(NotFoundError):
        view.lookup(1, b"base")
    view.fold()
    other = View.bring_back(store, "other")
    assert names(other) == [b"base"]
    catalog = SnapshotCatalog(store)
    catalog.remove(["base"])
    write_file(other, 1, b"f", b"another")
    other.commit("base")
    assert names(view) == [b"base"], "the whiteout hides the old snapshot, not its name"
    other.close()


def test_a_view_keeps_what_it_wrote_when_the_snapshot_under_it_is_removed(
    store: Store, view: View, snapshot: str
) -> None:
    base = view.lookup(1, b"base").inode
    write_file(view, base, b"new", b"mine")
    view.fold()
    SnapshotCatalog(store).remove(["base"])
    collect(store)
    assert read_file(view, base, b"file") == b"base" * 300
    assert read_file(view, base, b"new") == b"mine"


def test_a_removed_snapshot_is_readable_for_those_who_are_in_it(
    store: Store, snapshot: str
) -> None:
    reader = View.open_read_only(store)
    base = reader.lookup(1, b"base").inode
    handle = reader.open(reader.lookup(base, b"file").inode, os.O_RDONLY)
    SnapshotCatalog(store).remove(["base"])
    collect(store)
    assert reader.plan_read(handle, 0, 5000).run() == b"base" * 300
    reader.close()


def test_a_read_only_view_refuses_every_change(store: Store, snapshot: str) -> None:
    view = View.open_read_only(store, snapshot="base")
    with pytest.raises(ReadOnlyError):
        view.mkdir(1, b"d", 0o755, CALLER)
    with pytest.raises(ReadOnlyError):
        view.open(view.lookup(1, b"file").inode, os.O_WRONLY)
    with pytest.raises(ReadOnlyError):
        view.unlink(1, b"file")
    view.close()


def test_an_unlinked_file_lives_while_it_is_open_even_through_folds_and_gc(
    store: Store, view: View
) -> None:
    inode = write_file(view, 1, b"f", bytes(range(256)) * 40)
    view.fold()
    handle = view.open(inode, os.O_RDWR)
    view.unlink(1, b"f")
    view.fold()
    collect(store)
    assert view.plan_read(handle, 0, 20_000).run() == bytes(range(256)) * 40
    view.write(handle, 5, b"changed")
    assert view.plan_read(handle, 5, 7).run() == b"changed"
    assert view.getattr(inode).nlink == 0
    view.release(handle)
    view.fold()
    collect(store)


def test_committing_a_subdirectory_counts_the_links_inside_it(view: View, store: Store) -> None:
    top = view.mkdir(1, b"top", 0o755, CALLER).inode
    inode = write_file(view, top, b"a", b"shared" * 500)
    view.link(inode, top, b"b")
    view.link(inode, 1, b"outside")
    assert view.getattr(inode).nlink == 3
    view.commit("inside", path=b"top")
    snapshot = View.open_read_only(store, snapshot="inside")
    assert snapshot.lookup(1, b"a").nlink == 2
    assert read_file(snapshot, 1, b"b") == b"shared" * 500
    assert SnapshotCatalog(store).get("inside").root.size == 3000


def test_a_commit_refuses_bad_names_and_paths(view: View) -> None:
    write_file(view, 1, b"f", b"data")
    with pytest.raises(UsageError):
        view.commit("../x")
    with pytest.raises(NotFoundError):
        view.commit("ok", path=b"nowhere")
    view.commit("ok")
    with pytest.raises(ExistsError):
        view.commit("ok")


def test_a_duplicate_written_before_its_first_copy_settled_gives_its_blocks_back(
    store: Store, view: View
) -> None:
    data = random.Random(7).randbytes(200_000)
    for name in (b"one", b"two"):
        write_file(view, 1, name, data[:100_000] + name + data[100_000:])
    view.fold()
    taken = sum(
        path.stat().st_blocks * 512 for path in (store.path / "packs").rglob("*.file")
    ) + sum(path.stat().st_blocks * 512 for path in (store.path / "packs").rglob("*.pack"))
    # Two whole copies would be 400,000; the chunk around the change is there twice.
    assert taken < 300_000
    assert read_file(view, 1, b"two") == data[:100_000] + b"two" + data[100_000:]


def test_an_ephemeral_view_leaves_nothing(store: Store) -> None:
    view = View.open_ephemeral(store)
    write_file(view, 1, b"f", random.Random(8).randbytes(50_000))
    view.fold()
    view.close()
    assert list_views(store) == []
    assert list((store.path / "views").iterdir()) == []


def test_sparse_files_say_how_much_they_store(view: View) -> None:
    handle, attr = view.create(1, b"sparse", 0o644, CALLER)
    view.write(handle, 1 << 20, b"end")
    assert view.getattr(attr.inode).stored_blocks < 100
    view.release(handle)
    view.fold()
    assert view.getattr(attr.inode).stored_blocks < 100
    assert read_file(view, 1, b"sparse") == bytes(1 << 20) + b"end"
