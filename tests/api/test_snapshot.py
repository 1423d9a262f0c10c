"""A snapshot through the public interface reads like the directory that it was made of."""

from __future__ import annotations

import io
import os
import pickle
import random
from pathlib import Path

import pytest

import dedupfs
from dedupfs.api.reading import SnapshotFile
from dedupfs.namespace.snapshots import SnapshotCatalog
from tests.api.conftest import BIG


def test_every_name_and_size_is_what_os_walk_says(one: dedupfs.Snapshot, tmp_path: Path) -> None:
    source = tmp_path / "src"
    said = {
        os.path.relpath(top, source).removeprefix("."): (sorted(ds), sorted(fs))
        for top, ds, fs in os.walk(source)
    }
    # os.walk counts a link to a directory among the directories; here links are not followed.
    said[""] = (["a", "empty"], sorted([*said[""][1], "to-a"]))
    assert {top: (ds, fs) for top, ds, fs in one.walk()} == said
    assert one.size == len(BIG) + 6
    for entry in one.scandir("a"):
        status = os.lstat(source / entry.path)
        told = (entry.stat.mode, entry.stat.mtime_ns, entry.stat.uid, entry.stat.nlink)
        assert told == (status.st_mode, status.st_mtime_ns, status.st_uid, status.st_nlink) or (
            entry.stat.is_dir
        )


def test_what_the_walker_removes_is_left_out(one: dedupfs.Snapshot) -> None:
    seen = []
    for top, directories, _files in one.walk():
        seen.append(top)
        if "a" in directories:
            directories.remove("a")
    assert seen == ["", "empty"]


@pytest.mark.parametrize(
    "path", ["a/link", "to-a/x.txt", "/to-a/link", "a/./x.txt", "a/b/../x.txt"]
)
def test_links_inside_the_snapshot_are_followed(one: dedupfs.Snapshot, path: str) -> None:
    assert one.read_text(path) == "hello\n"
    assert one.stat(path).is_file
    assert one.exists(path.encode())


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nope", FileNotFoundError),
        ("out", FileNotFoundError),
        ("up", FileNotFoundError),
        ("..", FileNotFoundError),
        ("a/../../one", FileNotFoundError),
        ("a/x.txt/y", NotADirectoryError),
        ("a", IsADirectoryError),
        ("round", OSError),
    ],
)
def test_a_path_that_leads_nowhere_raises_the_built_in_error_and_ours(
    one: dedupfs.Snapshot, path: str, error: type[OSError]
) -> None:
    with pytest.raises(error) as caught:
        one.open(path)
    assert dedupfs.errors.NamespaceError in type(caught.value).__mro__
    assert caught.value.strerror == str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.errno) == (
        type(caught.value),
        str(caught.value),
        caught.value.errno,
    )


@pytest.mark.parametrize("mode", ["w", "r+b", "a", "xb", "q", "rw", "rbt"])
def test_a_snapshot_is_opened_for_reading_alone(one: dedupfs.Snapshot, mode: str) -> None:
    with pytest.raises((dedupfs.errors.ReadOnlyError, ValueError)):
        one.open("a/x.txt", mode)  # type: ignore[call-overload]


def test_a_file_reads_like_the_bytes_wherever_it_is_read(one: dedupfs.Snapshot) -> None:
    rng = random.Random(3)
    with one.open("a/b/big") as file, io.BytesIO(BIG) as expected:
        for _ in range(200):
            where, count = rng.randrange(len(BIG) + 10), rng.choice([0, 1, 4096, 300_000])
            assert file.seek(where) == expected.seek(where)
            assert file.read(count) == expected.read(count)
            assert file.tell() == expected.tell()
        assert file.seek(-5, os.SEEK_END) == expected.seek(-5, os.SEEK_END)
        assert file.read() == expected.read()
        assert file.read() == b""
    with one.open("a/b/big", "rb", 0) as raw:
        assert isinstance(raw, SnapshotFile)
        assert raw.size == len(BIG)
        buffer = bytearray(len(BIG) + 7)
        assert raw.readinto(buffer) == len(BIG)
        assert buffer[: len(BIG)] == BIG
        assert raw.readinto(buffer) == 0
        assert raw.pread(10, 1000) == BIG[1000:1010]
    with pytest.raises(ValueError, match="closed"):
        raw.pread(1, 0)
    assert one.open("a/x.txt", "r").readlines() == ["hello\n"]


def test_a_diff_tells_what_changed(store: dedupfs.Store, one: dedupfs.Snapshot) -> None:
    with store.scratch(snapshot="one") as view:
        view.write_text("a/x.txt", "hello you\n")
        view.write_bytes("new", b"1")
        view.rmdir("empty")
        two = view.commit("two")
    changes = {(change.kind, change.path) for change in one.diff(two)}
    assert changes == {
        ("modified", "a/x.txt"),
        ("modified", "hard"),
        ("removed", "empty"),
        ("added", "new"),
    }
    assert list(one.diff(one)) == []


def test_an_export_is_the_directory_again(one: dedupfs.Snapshot, tmp_path: Path) -> None:
    one.export(tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b" / "big").read_bytes() == BIG
    assert os.readlink(tmp_path / "out" / "out") == "/etc/passwd"
    one.export(tmp_path / "part", "a/b")
    assert os.listdir(tmp_path / "part") == ["big"]
    with pytest.raises(ValueError, match="empty"):
        one.export(tmp_path / "out")


def test_names_tags_and_pins_change_and_are_seen_by_others(store: dedupfs.Store) -> None:
    one = store["one"]
    one.tag(loss=0.25, run="a")
    one.tag({"step": 3}, remove=["run"])
    assert one.tags == store["one"].tags == {"loss": "0.25", "step": "3"}
    copy = one.clone("copy")
    copy.pin()
    with pytest.raises(ValueError, match="pinned"):
        copy.remove()
    copy.unpin()
    copy.rename("other")
    assert list(store) == ["one", "other"]
    assert "copy" not in store
    assert len(store) == 2
    with pytest.raises(FileExistsError):
        one.rename("other")
    copy.remove()
    with pytest.raises(FileNotFoundError):
        store["other"]
    with pytest.raises(FileNotFoundError):
        copy.tag(late=1)


def test_an_open_file_can_be_read_after_its_snapshot_was_removed_and_collected(
    store: dedupfs.Store,
) -> None:
    file = store["one"].open("a/b/big", "rb", 0)
    assert file.read(10) == BIG[:10]
    SnapshotCatalog(store._opened.core).remove(["one"])
    store.gc()
    assert file.read() == BIG[10:]
    file.close()
    del file
    assert store.gc().freed_bytes > len(BIG) // 2


def test_the_next_import_lets_go_of_nothing_that_is_open(
    store: dedupfs.Store, one: dedupfs.Snapshot, tmp_path: Path
) -> None:
    with one.open("a/b/big") as file:
        (tmp_path / "src" / "more").write_text("more")
        store.import_tree(tmp_path / "src", "two").remove()
        one.remove()
        store.gc()
        assert file.read() == BIG
