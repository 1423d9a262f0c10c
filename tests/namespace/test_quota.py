"""A view is charged for what it alone holds, and going over its limit is EDQUOT for it alone."""

import errno
import os
import random
import zlib
from pathlib import Path

import msgspec
import pytest

from dedupfs.errors import CorruptError, FormatVersionError, QuotaError
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.usage import disk_usage
from dedupfs.namespace.rows import encode_view_row
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.namespace.views import delete_view, find_view, view_directory
from dedupfs.store.limits import LIMIT_NAME, file_bytes, read_limit, store_use, write_limit
from dedupfs.store.pace import run_steps
from dedupfs.store.store import Store, Table
from tests.namespace.conftest import assert_sound, make_small_store

ME = Caller(0, 0, 0o022)
LIMIT_BYTES = 1 << 20
PIECE_BYTES = 64 << 10
BLOCK_BYTES = 4096


def noise(seed: int, length: int = PIECE_BYTES) -> bytes:
    return random.Random(seed).randbytes(length)


def write_file(view: View, name: bytes, data: bytes) -> int:
    """Write a whole file through a handle; return its inode."""
    handle, attr = view.create(1, name, 0o644, ME)
    try:
        for start in range(0, len(data), PIECE_BYTES):
            view.write(handle, start, data[start : start + PIECE_BYTES])
    finally:
        view.release(handle)
    return attr.inode


def overwrite(view: View, handle: int, length: int) -> None:
    for start in range(0, length, PIECE_BYTES):
        view.write(handle, start, noise(8 + start))


def delete(view: View, name: bytes) -> None:
    """Unlink as the kernel does: what nobody has open it forgets."""
    inode = view.lookup(1, name).inode
    view.unlink(1, name)
    view.forget([(inode, 1)])


def read_file(view: View, name: bytes) -> bytes:
    attr = view.lookup(1, name)
    handle = view.open(attr.inode, os.O_RDONLY)
    data = view.plan_read(handle, 0, attr.size).run()
    view.release(handle)
    return bytes(data)


def fill(view: View, prefix: bytes = b"full") -> int:
    """Write new bytes until the view says no; return how many files it took."""
    for number in range(1000):
        try:
            write_file(
                view, b"%s%d" % (prefix, number), noise(zlib.crc32(b"%s%d" % (prefix, number)))
            )
        except QuotaError:
            return number
    raise AssertionError("nothing said no")


def held(store: Store, name: str) -> int:
    row = find_view(store, name)
    assert row is not None
    return row.held_bytes


def test_what_the_row_says_is_held_is_what_removing_the_view_frees(store: Store) -> None:
    view = View.bring_back(store)
    for number in range(10):
        write_file(view, b"file%d" % number, noise(number))
    view.fold()
    for number in range(5):
        delete(view, b"file%d" % number)
    view.fold()
    assert held(store, "default") > 10 * PIECE_BYTES, "what a fold let go of is not known yet"
    view.quota.set_limit(LIMIT_BYTES)
    view.quota.recount()
    charged = view.quota.use_bytes()
    files = file_bytes(view_directory(store.path, "default"))
    assert 5 * PIECE_BYTES < charged - files < 6 * PIECE_BYTES
    view.close()
    collect(store)
    before, on_disk = store_use(store), disk_usage(store.layout.packs).disk_bytes
    delete_view(store, "default")
    collect(store)
    assert before - store_use(store) == charged
    assert abs(on_disk - disk_usage(store.layout.packs).disk_bytes - charged) < 16 * BLOCK_BYTES


def test_going_over_is_an_error_of_one_view_alone(store: Store) -> None:
    limited = View.bring_back(store, "limited")
    free = View.bring_back(store, "free")
    limited.quota.set_limit(LIMIT_BYTES)
    taken = fill(limited)
    assert LIMIT_BYTES // 2 < taken * PIECE_BYTES <= LIMIT_BYTES
    for number in range(30):
        write_file(free, b"file%d" % number, noise(1000 + number))
    assert read_file(limited, b"full0") == noise(zlib.crc32(b"full0"))
    limited.close()
    free.close()


def test_what_adds_nothing_goes_on_over_the_limit(store: Store) -> None:
    view = View.bring_back(store)
    inode = write_file(view, b"kept", noise(1))
    view.mkdir(1, b"directory", 0o755, ME)
    view.fold()
    view.quota.set_limit(0)
    for refused in (
        lambda: view.create(1, b"new", 0o644, ME),
        lambda: view.mkdir(1, b"new", 0o755, ME),
        lambda: view.symlink(1, b"new", b"target", ME),
        lambda: view.mknod(1, b"new", 0o010644, 0, ME),
        lambda: view.link(inode, 1, b"new"),
        lambda: view.setxattr(inode, b"user.a", b"b"),
        lambda: view.setattr(inode, AttrChange(size=1 << 20)),
    ):
        with pytest.raises(QuotaError):
            refused()
    assert read_file(view, b"kept") == noise(1)
    view.setattr(inode, AttrChange(mode=0o600))
    view.setattr(inode, AttrChange(size=1000))
    view.rename(1, b"kept", 1, b"renamed", 0)
    view.rmdir(1, b"directory")
    delete(view, b"renamed")
    view.fold()
    assert not list(view.readdir(view.opendir(1), 0))
    view.close()


def test_deleting_gives_the_charge_back_at_once(store: Store) -> None:
    view = View.bring_back(store)
    view.quota.set_limit(LIMIT_BYTES)
    first = fill(view, b"a")
    for number in range(first):
        delete(view, b"a%d" % number)
    delete(view, b"a%d" % first)
    second = fill(view, b"b")
    assert second >= first - 1
    assert read_file(view, b"b0") == noise(zlib.crc32(b"b0"))
    view.close()


def test_overwriting_for_ever_never_drifts(store: Store) -> None:
    view = View.bring_back(store)
    view.quota.set_limit(LIMIT_BYTES)
    inode = write_file(view, b"file", noise(0, LIMIT_BYTES // 4))
    handle = view.open(inode, os.O_RDWR)
    for turn in range(40):
        for start in range(0, LIMIT_BYTES // 4, PIECE_BYTES):
            view.write(handle, start, noise(turn * 100 + start))
        if turn % 3 == 0:
            view.fold()
    view.release(handle)
    view.fold()
    view.quota.recount()
    assert view.quota.use_bytes() < LIMIT_BYTES
    view.close()


def test_what_the_store_has_costs_nothing(store: Store) -> None:
    source = View.bring_back(store, "source")
    for number in range(64):
        write_file(source, b"file%d" % number, noise(number))
    source.commit("all")
    view = View.bring_back(store, "copy")
    view.quota.set_limit(LIMIT_BYTES)
    for number in range(64):
        write_file(view, b"file%d" % number, noise(number))
    view.fold()
    view.quota.recount()
    assert view.quota.use_bytes() < LIMIT_BYTES // 4
    view.close()
    source.close()


def test_a_clone_costs_nothing(store: Store) -> None:
    source = View.bring_back(store, "source")
    write_file(source, b"file", noise(0, 4 * LIMIT_BYTES))
    source.commit("big")
    view = View.bring_back(store, "tests")
    view.quota.set_limit(LIMIT_BYTES)
    directory = view.mkdir(1, b"run", 0o755, ME)
    view.clone(directory.inode, b"big", privileged=True)
    view.fold()
    assert view.quota.use_bytes() < LIMIT_BYTES // 4
    attr = view.lookup(directory.inode, b"file")
    handle = view.open(attr.inode, os.O_RDWR)
    view.write(handle, 0, noise(7))
    with pytest.raises(QuotaError) as refused:
        overwrite(view, handle, 4 * LIMIT_BYTES)
    assert refused.value.errno == errno.EDQUOT
    view.release(handle)
    view.close()
    source.close()


def test_a_snapshot_of_it_takes_the_charge_over(store: Store) -> None:
    view = View.bring_back(store)
    view.quota.set_limit(LIMIT_BYTES)
    fill(view, b"a")
    view.commit("kept")
    view.quota.recount()
    assert view.quota.use_bytes() < LIMIT_BYTES // 4
    SnapshotCatalog(store).remove(["kept"])
    view.quota.recount_soon()
    view.quota.recount()
    assert view.quota.use_bytes() > LIMIT_BYTES // 2, "nothing else holds it any more"
    view.close()


def test_a_limit_and_what_is_charged_survive_being_closed(store: Store) -> None:
    view = View.bring_back(store)
    view.quota.set_limit(LIMIT_BYTES)
    fill(view)
    view.close()
    again = View.bring_back(store)
    assert again.quota.is_limited
    with pytest.raises(QuotaError):
        write_file(again, b"more", noise(5, LIMIT_BYTES // 4))
    again.close()


def test_a_row_that_does_not_say_is_counted_anew(store: Store) -> None:
    view = View.bring_back(store)
    fill_bytes = LIMIT_BYTES * 2
    write_file(view, b"big", noise(3, fill_bytes))
    view.close()
    row = find_view(store, "default")
    assert row is not None
    with store.transaction() as txn:  # as an older dedupfs, or reindex, leaves it
        unknown = msgspec.structs.replace(row, held_bytes=-1)
        txn.put(Table.VIEWS, b"default", encode_view_row(unknown))
    again = View.bring_back(store)
    again.quota.set_limit(LIMIT_BYTES)
    assert again.quota.use_bytes() >= fill_bytes
    with pytest.raises(QuotaError):
        write_file(again, b"more", noise(5))
    again.close()


def test_a_count_that_a_fold_overtakes_says_nothing(store: Store) -> None:
    """What the old root held is nobody's by then, and would have counted as nothing."""
    view = View.bring_back(store)
    view.quota.set_limit(LIMIT_BYTES)
    write_file(view, b"kept", noise(3, LIMIT_BYTES // 2))
    view.fold()
    count = view.quota.count()
    assert count is not None
    write_file(view, b"more", noise(4))
    view.fold()
    count.run()
    view.quota.counted(count)
    assert view.quota.use_bytes() >= LIMIT_BYTES // 2
    again = view.quota.count()
    assert again is not None, "it is due as before"
    again.run()
    view.quota.counted(again)
    assert LIMIT_BYTES // 2 + PIECE_BYTES <= view.quota.use_bytes() <= LIMIT_BYTES
    view.close()


def test_statfs_tells_the_limit(store: Store) -> None:
    view = View.bring_back(store)
    free = view.statfs()
    view.quota.set_limit(LIMIT_BYTES)
    told = view.statfs()
    assert told.blocks * told.block_bytes == LIMIT_BYTES
    assert 0 < told.blocks_available <= told.blocks
    fill(view)
    assert view.statfs().blocks_available * told.block_bytes < PIECE_BYTES * 4
    view.quota.set_limit(None)
    assert view.statfs().blocks == free.blocks
    view.close()


def test_the_limit_of_the_store_is_for_all_views(store: Store) -> None:
    one, two = View.bring_back(store, "one"), View.bring_back(store, "two")
    write_limit(store.disk, store.path, 2 * LIMIT_BYTES)
    one.quota.reload()
    two.quota.reload()
    taken = fill(one, b"a")
    with pytest.raises(QuotaError):
        write_file(two, b"more", noise(77, LIMIT_BYTES))
    for number in range(taken):
        delete(one, b"a%d" % number)
    one.fold()
    run_steps(one.relief.giving_back())
    assert fill(two, b"b") > taken // 2
    one.close()
    two.close()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{"format_version": 2, "limit_bytes": 5}', FormatVersionError),
        (b'{"format_version": 1, "limit_bytes": -5}', CorruptError),
        (b'{"format_version": 1}', CorruptError),
        (b"\xff", CorruptError),
        (b"", CorruptError),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path, store: Store, text: bytes, error: type[Exception]
) -> None:
    (tmp_path / LIMIT_NAME).write_bytes(text)
    with pytest.raises(error):
        read_limit(store.disk, tmp_path)
    write_limit(store.disk, tmp_path, 5)
    assert read_limit(store.disk, tmp_path) == 5
    write_limit(store.disk, tmp_path, None)
    write_limit(store.disk, tmp_path, None)
    assert read_limit(store.disk, tmp_path) is None


def test_a_view_whose_limit_cannot_be_read_is_let_go(store: Store) -> None:
    View.bring_back(store).close()
    directory = view_directory(store.path, "default")
    (directory / LIMIT_NAME).write_bytes(b"{}")
    with pytest.raises(CorruptError, match="set the limit again"):
        View.bring_back(store)
    View.open_read_only(store).close()
    write_limit(store.disk, directory, None)
    View.bring_back(store).close()


def test_what_a_newer_dedupfs_adds_is_passed_over(tmp_path: Path, store: Store) -> None:
    text = b'{"format_version": 1, "limit_bytes": 5, "soft_bytes": 4}'
    (tmp_path / LIMIT_NAME).write_bytes(text)
    assert read_limit(store.disk, tmp_path) == 5


def test_a_new_view_of_a_removed_name_has_no_limit(tmp_path: Path) -> None:
    store = make_small_store(tmp_path / "other")
    view = View.bring_back(store)
    view.quota.set_limit(5)
    view.close()
    delete_view(store, "default")
    again = View.bring_back(store)
    assert not again.quota.is_limited
    again.close()
    assert_sound(store)
    store.close()
