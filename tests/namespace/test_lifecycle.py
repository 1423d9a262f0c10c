"""Views come to life: locks, journals of every state, and what crashes leave in their directories.

Method: a view is left in a given state (its process "dies" by giving up lock and store), files in
its directory are changed as a crash or a disk would, and it is brought back.
"""

import os
import random
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from dedupfs.errors import (
    CorruptError,
    ExistsError,
    FormatVersionError,
    StoreBusyError,
    StoreError,
    UsageError,
)
from dedupfs.format.journal import _frame
from dedupfs.namespace.lifecycle import make_numbered, reserve_number
from dedupfs.namespace.rows import encode_home, encode_inode, home_key, place_key, place_prefix
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.namespace.views import (
    find_view,
    list_views,
    remove_numbered_view,
    remove_view,
    view_owner,
)
from dedupfs.store.store import Store, Table
from tests.namespace.conftest import assert_sound, make_small_store
from tests.namespace.test_catalog_view import names, read_file, write_file

CALLER = Caller(0, 0)


def die(view: View, store: Store) -> Store:
    """End as a killed process does, and open the store anew."""
    view._opened.release()
    store.close()
    return Store.open(store.path)


def files_of(store: Store, name: str = "default") -> list[str]:
    return sorted(path.name for path in (store.path / "views" / name).iterdir())


def journal_of(store: Store) -> Path:
    (found,) = (store.path / "views" / "default").glob("journal.*")
    return found


def test_a_view_that_is_to_be_kept_has_no_name_of_those_that_go(store: Store) -> None:
    with pytest.raises(UsageError, match="would be removed"):
        View.bring_back(store, "ephemeral-mine")
    with pytest.raises(UsageError, match="would be removed"):
        make_numbered(store, "ephemeral-mine", "", reserve_number(store), None)
    assert list_views(store) == []


def test_a_view_is_made_with_the_number_that_was_reserved_for_it_or_not_at_all(
    store: Store,
) -> None:
    number = reserve_number(store)
    View.bring_back(store, "theirs").close()
    with pytest.raises(ExistsError):
        make_numbered(store, "theirs", "", number, None)
    make_numbered(store, "ours", "", number, 1 << 20)
    assert [row.view_id for row in list_views(store)] == [number, number + 1]
    assert remove_numbered_view(store, "theirs", number, only_unused=False)
    view = View.bring_back(store, "ours")
    assert view.quota.is_limited
    with pytest.raises(StoreBusyError):
        remove_numbered_view(store, "ours", number, only_unused=True)
    view.mkdir(1, b"d", 0o755, CALLER)
    view.close()
    assert not remove_numbered_view(store, "ours", number, only_unused=True)
    assert remove_numbered_view(store, "ours", number, only_unused=False)
    assert remove_numbered_view(store, "ours", number, only_unused=False)
    assert [row.name for row in list_views(store)] == ["theirs"]
    assert_sound(store)


def test_a_view_that_another_one_has_followed_is_gone_whoever_has_that_open(store: Store) -> None:
    number = reserve_number(store)
    make_numbered(store, "job", "", number, None)
    remove_view(store, "job")
    theirs = View.bring_back(store, "job")
    assert remove_numbered_view(store, "job", number, only_unused=False)
    theirs.mkdir(1, b"d", 0o755, CALLER)
    theirs.close()
    assert_sound(store)


def test_a_view_has_one_owner_who_is_named(tmp_path: Path) -> None:
    with make_small_store(tmp_path / "store") as store:
        view = View.bring_back(store, mountpoint="/mnt/here")
        with pytest.raises(StoreBusyError, match=rf"process {os.getpid()}, mounted on /mnt/here"):
            View.bring_back(store)
        owner = view_owner(store, "default")
        assert owner is not None
        assert owner.pid == os.getpid()
        with pytest.raises(StoreBusyError):
            remove_view(store, "default")
        view.close()
        assert view_owner(store, "default") is None


def test_a_view_is_not_made_over_another_base_than_it_has(tmp_path: Path) -> None:
    with make_small_store(tmp_path / "store") as store:
        view = View.bring_back(store)
        write_file(view, 1, b"f", b"x")
        view.commit("one")
        view.close()
        with pytest.raises(UsageError, match="the whole catalogue"):
            View.bring_back(store, snapshot="one")
        over = View.bring_back(store, "over", snapshot="one")
        assert names(over) == [b"f"]
        over.close()


@pytest.mark.parametrize("name", ["", ".x", "-x", "a/b", "a" * 256, "ä", "a b"])
def test_a_name_that_is_no_name_makes_nothing(tmp_path: Path, name: str) -> None:
    with make_small_store(tmp_path / "store") as store:
        with pytest.raises(UsageError, match="is no view name"):
            View.bring_back(store, name)
        assert list_views(store) == []
        assert list((store.path / "views").iterdir()) == []


def test_a_torn_journal_brings_back_all_but_the_torn_record(tmp_path: Path) -> None:
    """Method: cut the journal at random places; what is there must be a prefix of what was done."""
    seed = random.Random(5)
    store = make_small_store(tmp_path / "store")
    view = View.bring_back(store)
    for index in range(20):
        write_file(view, 1, b"%02d" % index, b"data %d" % index)
    store = die(view, store)
    journal = journal_of(store)
    whole = journal.read_bytes()
    for _ in range(15):
        journal.write_bytes(whole[: seed.randrange(100, len(whole))])
        view = View.bring_back(store)
        found = names(view)
        assert found == [b"%02d" % index for index in range(len(found))]
        for index, name in enumerate(found[:-1]):
            assert read_file(view, 1, name) == b"data %d" % index
        store = die(view, store)
    assert_sound(store)
    store.close()


def test_a_damaged_or_missing_journal_is_named(tmp_path: Path) -> None:
    store = make_small_store(tmp_path / "store")
    view = View.bring_back(store)
    write_file(view, 1, b"f", b"x")
    store = die(view, store)
    journal = journal_of(store)
    whole = journal.read_bytes()
    for bad in (b"", b"garbage" * 9, b"\xff" * 3):
        journal.write_bytes(bad)
        with pytest.raises((CorruptError, StoreError), match="journal"):
            View.bring_back(store)
    journal.unlink()
    with pytest.raises(StoreError, match="reindex"):
        View.bring_back(store)
    journal.write_bytes(whole)
    view = View.bring_back(store)
    assert read_file(view, 1, b"f") == b"x"
    view.close()
    assert_sound(store)
    store.close()


def test_what_a_crash_left_in_the_directory_is_swept(tmp_path: Path) -> None:
    store = make_small_store(tmp_path / "store")
    view = View.bring_back(store)
    big = random.Random(1).randbytes(20_000)
    write_file(view, 1, b"big", big)
    store = die(view, store)
    directory = store.path / "views" / "default"
    (directory / "journal.00000099").write_bytes(b"of a fold that was cut short")
    (directory / "staging.00000077").write_bytes(b"of nobody")
    view = View.bring_back(store)
    assert read_file(view, 1, b"big") == big
    left = files_of(store)
    assert "journal.00000099" not in left
    assert "staging.00000077" not in left
    view.fold()
    assert [name for name in files_of(store) if name.startswith("staging")] == []
    view.close()
    assert_sound(store)
    store.close()


def test_a_pack_that_was_linked_but_not_committed_is_settled_again(tmp_path: Path) -> None:
    """Method: link the staging file into packs/, as a crash before the fold's commit leaves it."""
    store = make_small_store(tmp_path / "store")
    view = View.bring_back(store)
    big = random.Random(2).randbytes(30_000)
    write_file(view, 1, b"big", big)
    store = die(view, store)
    (staging,) = (store.path / "views" / "default").glob("staging.*")
    os.link(staging, store.path / "packs" / "stray")
    view = View.bring_back(store)
    inode = view.lookup(1, b"big").inode
    handle = view.open(inode, os.O_RDWR)
    view.write(handle, 5, b"new bytes")
    view.release(handle)
    expected = big[:5] + b"new bytes" + big[14:]
    assert (store.path / "packs" / "stray").read_bytes() == big, "a linked file is never written"
    assert read_file(view, 1, b"big") == expected
    store = die(view, store)
    (store.path / "packs" / "stray").unlink()
    view = View.bring_back(store)
    assert read_file(view, 1, b"big") == expected
    view.close()
    assert_sound(store)
    store.close()


def test_a_lost_staging_file_is_said_and_the_rest_is_there(
    tmp_path: Path, allow_log: object
) -> None:
    store = make_small_store(tmp_path / "store")
    view = View.bring_back(store)
    write_file(view, 1, b"big", random.Random(3).randbytes(20_000))
    write_file(view, 1, b"small", b"here")
    store = die(view, store)
    (staging,) = (store.path / "views" / "default").glob("staging.*")
    staging.unlink()
    assert callable(allow_log)
    allow_log("staging file is missing")
    view = View.bring_back(store)
    assert read_file(view, 1, b"small") == b"here"
    view.close()
    assert_sound(store)
    store.close()


def test_files_unlinked_before_the_crash_do_not_come_back(tmp_path: Path) -> None:
    store = make_small_store(tmp_path / "store")
    view = View.bring_back(store)
    for name, length in ((b"small", 300), (b"big", 20_000)):
        write_file(view, 1, name, random.Random(4).randbytes(length))
        view.unlink(1, name)
    handle, _ = view.create(1, b"open", 0o644, CALLER)
    view.write(handle, 0, b"x" * 9000)
    view.unlink(1, b"open")
    view.write(handle, 0, b"y" * 9000)
    store = die(view, store)
    view = View.bring_back(store)
    assert names(view) == []
    view.close()
    assert [name for name in files_of(store) if name.startswith("staging")] == []
    assert_sound(store)
    store.close()


def test_a_new_view_costs_the_same_however_large_its_base_is(tmp_path: Path) -> None:
    """Method: count the disk's bytes and the index's rows before and after, at two sizes."""
    with make_small_store(tmp_path / "store") as store:
        view = View.bring_back(store)
        top = view.mkdir(1, b"top", 0o755, CALLER).inode
        write_file(view, top, b"f", b"x")
        view.commit("small", path=b"top")
        for index in range(300):
            write_file(view, top, b"%d" % index, random.Random(index).randbytes(2000))
        view.commit("large", path=b"top")
        view.close()
        grown = {}
        for name in ("small", "large"):
            before = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
            over = View.bring_back(store, f"over-{name}", snapshot=name)
            over.close()
            after = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
            grown[name] = after - before
        assert abs(grown["large"] - grown["small"]) < 9000  # a page of the index more or less
        assert SnapshotCatalog(store).get("large").root.count == 301
        assert_sound(store)


def test_a_view_that_saw_many_directories_goes_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write in between; stopped there, it can be removed again."""
    with make_small_store(tmp_path / "store") as store:
        View.bring_back(store, "seen").close()
        row = find_view(store, "seen")
        assert row is not None
        with store.transaction() as txn:
            for number in range(2, 5000):
                key = place_key(row.view_id, 1, number)
                txn.put(Table.PLACES, key, encode_inode(number << 24))
                key = home_key(row.view_id, number << 24)
                txn.put(Table.HOMES, key, encode_home(1, number))

        def rows() -> int:
            with store.reading() as txn:
                prefix = place_prefix(row.view_id)
                return sum(
                    1 for table in (Table.PLACES, Table.HOMES) for _ in txn.scan(table, prefix)
                )

        seen = [rows()]

        def look() -> None:
            seen.append(rows())
            if len(seen) == 4:
                raise KeyboardInterrupt

        monkeypatch.setattr(store.db, "give_way", look)
        with pytest.raises(KeyboardInterrupt):
            remove_view(store, "seen")
        assert [view.name for view in list_views(store)] == ["seen"]
        remove_view(store, "seen")
        monkeypatch.undo()
        assert list_views(store) == []
        assert max(earlier - later for earlier, later in pairwise([*seen, rows()])) <= 2000
        assert rows() == 0
        assert_sound(store)


def test_a_journal_with_edits_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = make_small_store(tmp_path / "store")
    view = View.bring_back(store)
    write_file(view, 1, b"file", b"here")
    store = die(view, store)
    (path,) = (store.path / "views" / "default").glob("journal.*")
    known = path.read_bytes()
    newer = known + _frame(msgspec.msgpack.encode([1, [[99, 1, 2]]]))
    path.write_bytes(newer)
    with pytest.raises(FormatVersionError, match=f"^{path}: .*newer dedupfs"):
        View.bring_back(store)
    assert path.read_bytes() == newer
    path.write_bytes(known)
    view = View.bring_back(store)
    assert read_file(view, 1, b"file") == b"here"
    view.close()
    assert_sound(store)
    store.close()
