"""A copy inside a view is there as a whole or not at all, whenever the store stops.

Method: a directory with small, staged and hard-linked files, some of them not settled and one of
them open, is copied, then its source is removed and all is folded, on a disk that stops at its n-th
changing call, for every n; then nothing or all that was not synced is lost, and the index in turn.
What random calls make of copies: test_review_machine.py, tests/api/test_copy.py.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from dedupfs.errors import QuotaError, ReadOnlyError, StoreFullError
from dedupfs.format.keys import split_pin_key
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.model import RecordId, RecordKind
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.quota import view_held_bytes
from dedupfs.namespace.rows import view_owner_key
from dedupfs.namespace.view import Caller, View
from dedupfs.store.store import Store, Table
from tests.conftest import Scale
from tests.fakes import Crashed, FaultyDisk
from tests.namespace.conftest import assert_sound, make_small_store
from tests.namespace.test_crash import read_view

CALLER = Caller(5, 6, 0o022)
LOSSES = ["nothing", "power", "power and index"]
SMALL, STAGED, LARGE = map(random.Random(3).randbytes, (300, 3000, 9000))


def save(view: View, parent: int, name: bytes, data: bytes) -> int:
    handle, attr = view.create(parent, name, 0o644, CALLER)
    view.write(handle, 0, data)
    view.release(handle)
    return attr.inode


def below(view: View, name: str) -> dict[str, tuple[object, ...]]:
    """Return what is in a directory, without numbers of inodes and names."""
    return {
        path.removeprefix(f"{name}/"): (found.kind, found.mode, found.xattrs, found.data)
        for path, found in read_view(view).items()
        if path.startswith(f"{name}/")
    }


def begin(view: View) -> int:
    """Make the source, of which a part is folded and another part is not."""
    top = view.mkdir(ROOT_INODE, b"from", 0o755, CALLER).inode
    sub = view.mkdir(top, b"sub", 0o751, CALLER).inode
    file = save(view, top, b"large", LARGE)
    view.link(file, sub, b"again")
    save(view, sub, b"small", SMALL)
    view.fold()
    view.setxattr(file, b"user.x", b"value")
    save(view, sub, b"staged", STAGED)
    view.write(view.create(sub, b"open", 0o600, CALLER)[0], 0, STAGED)
    return top


def copy_and_remove(view: View, source: int) -> None:
    view.copy(source, ROOT_INODE, b"to")
    sub = view.lookup(source, b"sub").inode
    for name in (b"again", b"small", b"staged", b"open"):
        view.unlink(sub, name)
    view.plan_fsync(None).run()
    view.fold()


def stop_in_copy(path: Path, crash_at: int, power: bool) -> tuple[bool, bool]:
    """Return whether the story came to its end, and whether the copy was durable by then."""
    disk = FaultyDisk()
    store = Store.open(path, disk=disk)
    view = View.bring_back(store)
    done = synced = False
    try:
        source = begin(view)
        view.plan_fsync(None).run()
        disk.crash_at = disk.calls + crash_at
        copy_and_remove(view, source)
        done = synced = True
    except Crashed:
        synced = not power and b"to" in [n for _, n, _ in view.readdir(view.opendir(ROOT_INODE), 0)]
    finally:
        disk.crash()
        view._opened.release()
        store.db.close()
    if power:
        disk.lose_unsynced()
    return done, synced


@pytest.mark.unmeasured
@pytest.mark.allow_log("staging file is missing")  # of what nobody had synced
def test_a_copy_is_whole_or_not_there_after_a_stop_at_every_call(
    memory_path: Path, scale: Scale
) -> None:
    template = memory_path / "template"
    make_small_store(template).close()
    crash_at, done = 0, False
    while not done:
        crash_at += 1
        for turn in range(scale(1, len(LOSSES))):
            loss = LOSSES[(crash_at + turn) % len(LOSSES)]
            path = memory_path / "store"
            shutil.copytree(template, path)
            done, synced = stop_in_copy(path, crash_at, loss != "nothing")
            if loss == "power and index":
                shutil.rmtree(path / "index")
                assert reindex(path).ok, f"{crash_at=}"
            look_at(path, is_due=synced)
            shutil.rmtree(path)
    assert crash_at > 30


def look_at(path: Path, *, is_due: bool) -> None:
    with Store.open(path) as store:
        assert_sound(store)
        view = View.bring_back(store)
        collect(store)
        assert_copied(below(view, "to"), is_due=is_due)
        view.close()
        collect(store)
        assert_sound(store)


def assert_copied(found: dict[str, tuple[object, ...]], *, is_due: bool) -> None:
    if not found and not is_due:
        return
    assert {path: entry[3] for path, entry in found.items()} == {
        "large": LARGE,
        "sub": b"",
        "sub/again": LARGE,
        "sub/small": SMALL,
        "sub/staged": STAGED,
        "sub/open": STAGED,
    }
    assert found["large"][2] == found["sub/again"][2] == {"user.x": "value"}


@pytest.mark.allow_log("left for the next mount")  # of a fold that was committed
@pytest.mark.parametrize("is_snapshot", [False, True])
def test_a_copy_that_a_full_disk_refuses_holds_nothing_back_and_can_be_made_later(
    memory_path: Path, is_snapshot: bool
) -> None:
    fail_at, refusals, is_over = 0, 0, False
    while not is_over:
        fail_at += 1
        path = memory_path / str(fail_at)
        make_small_store(path).close()
        disk = FaultyDisk()
        store = Store.open(path, disk=disk)
        view = View.bring_back(store)
        source = begin(view)
        if is_snapshot:
            view.commit("one", path=b"from")
            source = view.lookup(ROOT_INODE, b"one").inode
        disk.fault = StoreFullError
        disk.fail_at = frozenset({disk.calls + fail_at})
        refused = not copied(view, source)
        is_over = disk.calls < min(disk.fail_at)
        disk.fail_at = frozenset()
        if refused:
            refusals += 1
            assert not below(view, "to")
            view.fold()
            assert not trees_held(store, view)
            assert copied(view, source)
        assert_copied(below(view, "to"), is_due=True)
        view.close()
        assert not trees_held(store, view)
        assert_sound(store)
        store.close()
        shutil.rmtree(path)
    assert refusals > 2


def copied(view: View, source: int) -> bool:
    try:
        view.copy(source, ROOT_INODE, b"to")
    except StoreFullError:
        return False
    return True


def trees_held(store: Store, view: View) -> list[RecordId]:
    assert view._state.view_id is not None
    with store.reading() as txn:
        pins = txn.scan(Table.PINS, view_owner_key(view._state.view_id))
        ids = [split_pin_key(key)[1] for key, _ in pins]
    return [one for one in ids if store.locate(one).kind is RecordKind.TREE]


def test_a_copy_is_charged_to_its_view_for_what_it_adds_alone(store: Store) -> None:
    view = View.bring_back(store)
    source = begin(view)
    assert view._folder is not None
    view._folder.fold()
    view.quota.set_limit(1 << 20)
    view.quota.recount()
    before = view._folder.row.held_bytes
    for name in (b"to", b"again"):
        view.copy(source, ROOT_INODE, name)
        row = view._folder.row
        assert view_held_bytes(store, row) <= row.held_bytes < before + 4096
    view.quota.set_limit(1)
    with pytest.raises(QuotaError):
        view.copy(source, ROOT_INODE, b"too much")
    assert set(below(view, "again")) == set(below(view, "to"))
    view.close()


def test_a_read_only_mount_copies_nothing(store: Store) -> None:
    view = View.bring_back(store)
    begin(view)
    view.commit("one", path=b"from")
    view.close()
    read_only = View.open_read_only(store, snapshot="one")
    with pytest.raises(ReadOnlyError):
        read_only.copy(read_only.lookup(ROOT_INODE, b"sub").inode, ROOT_INODE, b"to")
    read_only.close()
