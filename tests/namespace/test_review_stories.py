"""Stories in which something unusual happens between two steps of a view: each lost data once.

Method: as in test_catalog_view.py; a process "dies" by giving up its lock and its store.
"""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.errors import StoreFullError
from dedupfs.maintenance.gc import collect
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.namespace.views import remove_view
from dedupfs.store.store import Store
from tests.namespace.conftest import assert_sound, make_small_store
from tests.namespace.test_catalog_view import names, read_file, write_file
from tests.namespace.test_lifecycle import die

CALLER = Caller(0, 0, 0o022)


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def make_snapshot(store: Store, name: str, content: bytes) -> None:
    """A snapshot of one file ``file`` that nobody else holds."""
    maker = View.bring_back(store, "maker")
    top = maker.mkdir(1, b"top", 0o755, CALLER).inode
    write_file(maker, top, b"file", content)
    maker.commit(name, path=b"top")
    maker.close()
    remove_view(store, "maker")
    collect(store)


def remove_snapshot(store: Store, name: str) -> None:
    SnapshotCatalog(store).remove([name])
    collect(store)


def test_a_fold_goes_on_when_chunks_that_were_found_while_writing_are_gone(store: Store) -> None:
    big = noise(1, 30_000)
    make_snapshot(store, "base", big)
    view = View.bring_back(store)
    handle, _ = view.create(1, b"copy", 0o644, CALLER)
    for start in range(0, len(big), 1000):
        view.write(handle, start, big[start : start + 1000])
    view.release(handle)
    remove_snapshot(store, "base")
    view.fold()
    assert read_file(view, 1, b"copy") == big
    view.close()


def test_changes_in_a_snapshot_that_others_remove_survive_a_crash(tmp_path: Path) -> None:
    store = make_small_store(tmp_path / "other")
    make_snapshot(store, "base", b"base" * 300)
    view = View.bring_back(store)
    base = view.lookup(1, b"base").inode
    write_file(view, base, b"new", b"mine")
    store = die(view, store)
    remove_snapshot(store, "base")
    view = View.bring_back(store)
    base = view.lookup(1, b"base").inode
    assert read_file(view, base, b"new") == b"mine"
    assert read_file(view, base, b"file") == b"base" * 300
    view.close()
    assert_sound(store)
    store.close()


def test_what_was_moved_out_of_a_snapshot_that_others_remove_survives_a_crash(
    tmp_path: Path,
) -> None:
    store = make_small_store(tmp_path / "other")
    make_snapshot(store, "base", b"base" * 300)
    make_snapshot(store, "whole", b"whole" * 300)
    view = View.bring_back(store)
    base = view.lookup(1, b"base").inode
    own = view.mkdir(1, b"own", 0o755, CALLER).inode
    view.rename(base, b"file", own, b"file", 0)
    view.rename(1, b"whole", own, b"whole", 0)
    store = die(view, store)
    remove_snapshot(store, "base")
    remove_snapshot(store, "whole")
    view = View.bring_back(store)
    own = view.lookup(1, b"own").inode
    assert read_file(view, own, b"file") == b"base" * 300
    assert read_file(view, view.lookup(own, b"whole").inode, b"file") == b"whole" * 300
    view.close()
    assert_sound(store)
    store.close()


def test_a_changed_snapshot_that_others_rename_stays_one_directory(store: Store) -> None:
    make_snapshot(store, "base", b"base" * 300)
    view = View.bring_back(store)
    base = view.lookup(1, b"base").inode
    write_file(view, base, b"new", b"mine")
    SnapshotCatalog(store).rename("base", "other")
    assert names(view) == [b"base"]
    assert view.lookup(1, b"base").inode == base
    view.close()
    view = View.bring_back(store)
    assert names(view) == [b"base"]
    assert view.lookup(1, b"base").inode == base
    assert read_file(view, base, b"new") == b"mine"
    view.close()
    fresh = View.bring_back(store, "fresh")
    assert names(fresh) == [b"other"]
    fresh.close()


def test_a_snapshot_that_others_rename_is_changed_under_its_new_name(store: Store) -> None:
    make_snapshot(store, "base", b"base" * 300)
    view = View.bring_back(store)
    base = view.lookup(1, b"base").inode
    assert names(view, base) == [b"file"]
    SnapshotCatalog(store).rename("base", "other")
    assert view.lookup(1, b"other").inode == base
    write_file(view, base, b"new", b"mine")
    for _ in range(2):
        assert names(view) == [b"other"]
        assert view.lookup(1, b"other").inode == base
        assert read_file(view, base, b"new") == b"mine"
        view.close()
        view = View.bring_back(store)
    view.close()


def test_a_hidden_snapshot_stays_hidden_when_others_rename_it(store: Store) -> None:
    make_snapshot(store, "base", b"base" * 300)
    view = View.bring_back(store)
    base = view.lookup(1, b"base").inode
    view.unlink(base, b"file")
    view.rmdir(1, b"base")
    SnapshotCatalog(store).rename("base", "other")
    assert names(view) == []
    view.close()
    view = View.bring_back(store)
    assert names(view) == []
    view.close()


def test_links_in_a_renamed_snapshot_directory_do_not_become_those_of_the_root(
    tmp_path: Path,
) -> None:
    store = make_small_store(tmp_path / "other")
    make_snapshot(store, "base", b"base" * 300)
    view = View.bring_back(store)
    own = write_file(view, 1, b"own", b"the root's")
    view.link(own, 1, b"own2")
    base = view.lookup(1, b"base").inode
    view.rename(1, b"base", 1, b"renamed", 0)
    view.fold()
    view.link(view.lookup(base, b"file").inode, base, b"file2")
    assert read_file(view, base, b"file2") == b"base" * 300
    store = die(view, store)
    view = View.bring_back(store)
    base = view.lookup(1, b"renamed").inode
    assert read_file(view, base, b"file2") == b"base" * 300
    assert read_file(view, base, b"file") == b"base" * 300
    assert read_file(view, 1, b"own2") == b"the root's"
    view.close()
    assert_sound(store)
    store.close()


@pytest.fixture
def users_directory() -> Iterator[Path]:
    """A directory of an ordinary user; those of pytest are closed to others, and stay so."""
    with tempfile.TemporaryDirectory(prefix="dedupfs-") as name:
        os.chown(name, 65_534, 65_534)
        yield Path(name)


@pytest.mark.root
def test_a_user_gets_back_a_file_that_was_about_to_become_a_pack(
    users_directory: Path,
) -> None:
    """Method: as an ordinary user, die when the staging file is linked but nothing is committed."""
    os.seteuid(65_534)
    try:
        store = make_small_store(users_directory / "other")
        view = View.bring_back(store)
        big = noise(2, 30_000)
        write_file(view, 1, b"big", big)
        (staging,) = (store.path / "views" / "default").glob("staging.*")
        os.chmod(staging, 0o400)
        os.link(staging, store.path / "packs" / "stray")
        store = die(view, store)
        view = View.bring_back(store)
        assert read_file(view, 1, b"big") == big
        view.close()
        (store.path / "packs" / "stray").unlink()
        assert_sound(store)
        store.close()
    finally:
        os.seteuid(0)


def test_a_refused_write_does_not_change_what_a_crash_leaves_of_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Method: the journal refuses one write to a small file; then it grows and is overwritten."""
    store = make_small_store(tmp_path / "other")
    view = View.bring_back(store)
    inode = write_file(view, 1, b"f", b"a" * 300)
    view.fold()
    handle = view.open(inode, os.O_RDWR)
    journal = view._state.journal
    assert journal is not None

    def refuse(time_ns: int, edits: object) -> None:
        raise StoreFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", refuse)
        with pytest.raises(StoreFullError):
            view.write(handle, 0, b"b")
    view.write(handle, 300, b"c" * 3000)
    view.write(handle, 0, b"d" * 100)
    store = die(view, store)
    view = View.bring_back(store)
    assert read_file(view, 1, b"f") == b"d" * 100 + b"a" * 200 + b"c" * 3000
    view.close()
    assert_sound(store)
    store.close()


@pytest.mark.parametrize("write", [False, True])
def test_a_file_settled_by_replay_can_shrink_and_die_again(tmp_path: Path, write: bool) -> None:
    store = make_small_store(tmp_path / "other")
    view = View.bring_back(store)
    big = noise(3, 30_000)
    write_file(view, 1, b"big", big)
    (staging,) = (store.path / "views" / "default").glob("staging.*")
    os.link(staging, store.path / "packs" / "stray")
    store = die(view, store)
    view = View.bring_back(store)
    inode = view.lookup(1, b"big").inode
    view.setattr(inode, AttrChange(size=100))
    expected = big[:100]
    if write:
        handle = view.open(inode, os.O_RDWR)
        view.write(handle, 10, b"new")
        view.release(handle)
        expected = big[:10] + b"new" + big[13:100]
    assert read_file(view, 1, b"big") == expected
    store = die(view, store)
    view = View.bring_back(store)
    assert read_file(view, 1, b"big") == expected
    (store.path / "packs" / "stray").unlink()
    view.close()
    assert_sound(store)
    store.close()


def test_a_removed_directory_that_is_still_open_stays_empty(store: Store) -> None:
    view = View.bring_back(store)
    inode = view.mkdir(1, b"d", 0o755, CALLER).inode
    for index in range(5):
        write_file(view, inode, b"%d" % index, b"x")
    view.fold()
    handle = view.opendir(inode)
    for index in range(5):
        view.unlink(inode, b"%d" % index)
    view.rmdir(1, b"d")
    view.fold()
    collect(store)
    view._state.trees._trees.clear()
    assert list(view.readdir(handle, 0)) == []
    assert view.getattr(inode).nlink == 0
    view.releasedir(handle)
    view.forget([(inode, 1)])
    view.close()


def test_the_times_of_a_small_file_survive_a_crash(tmp_path: Path) -> None:
    store = make_small_store(tmp_path / "other")
    view = View.bring_back(store)
    handle, attr = view.create(1, b"f", 0o644, CALLER)
    view.write(handle, 0, b"x")
    view.setattr(attr.inode, AttrChange(size=10))
    before = view.getattr(attr.inode)
    store = die(view, store)
    view = View.bring_back(store)
    assert view.getattr(attr.inode) == before
    view.close()
    store.close()


def test_a_full_disk_does_not_hide_directories_that_were_not_seen_yet(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_snapshot(store, "base", b"x")
    view = View.bring_back(store)
    journal = view._state.journal
    assert journal is not None

    def refuse(time_ns: int, edits: object) -> None:
        raise StoreFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", refuse)
        base = view.lookup(1, b"base").inode
        assert read_file(view, base, b"file") == b"x"
    write_file(view, base, b"new", b"y")
    view.close()
    view = View.bring_back(store)
    assert view.lookup(1, b"base").inode == base
    assert read_file(view, base, b"new") == b"y"
    view.close()


def test_the_space_of_a_file_that_was_open_when_it_was_removed_comes_back(store: Store) -> None:
    view = View.bring_back(store)
    inode = write_file(view, 1, b"f", noise(4, 20_000))
    view.fold()
    handle = view.open(inode, os.O_RDONLY)
    view.unlink(1, b"f")
    view.fold()
    view.release(handle)
    view.forget([(inode, 1)])  # as the kernel does at once when nothing leads to it any more
    assert view.wants_fold()
    view.fold()
    report = collect(store)
    assert report.stored_bytes >= 20_000
    view.close()


def test_a_removed_snapshot_directory_with_links_does_not_come_back(store: Store) -> None:
    maker = View.bring_back(store, "maker")
    top = maker.mkdir(1, b"top", 0o755, CALLER).inode
    maker.link(write_file(maker, top, b"one", b"linked"), top, b"two")
    maker.commit("base", path=b"top")
    maker.close()
    view = View.bring_back(store)
    base = view.lookup(1, b"base").inode
    view.unlink(base, b"one")
    view.unlink(base, b"two")
    view.rmdir(1, b"base")
    view.fold()
    assert names(view) == []
    view.close()
    view = View.bring_back(store)
    assert names(view) == []
    view.close()
