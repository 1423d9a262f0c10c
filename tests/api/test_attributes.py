"""Attributes, special files and odd names in a view are what os makes of them on a disk."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import pytest

import dedupfs


def test_attributes_are_set_and_are_in_the_snapshot(store: dedupfs.Store) -> None:
    with store.view("v", snapshot="one") as view:
        view.setxattr("a", "user.loss", b"1.5")
        view.setxattr("a/x.txt", "user.x", b"", os.XATTR_CREATE)
        with pytest.raises(FileExistsError):
            view.setxattr("a/x.txt", "user.x", b"1", os.XATTR_CREATE)
        view.removexattr("a/x.txt", "user.x")
        with pytest.raises(OSError, match=r"user\.x") as caught:
            view.getxattr("a/x.txt", "user.x")
        assert caught.value.errno == errno.ENODATA
        assert view.getxattr("a/b/big", "user.dedupfs.origin") == b"base"
        view.chown("a/x.txt", 7, -1)
        view.chown("a/link", 8, 9, follow_symlinks=False)
        view.utime("a/x.txt", (2.5, 3.5))
        view.utime("a/link", ns=(5, 6), follow_symlinks=False)
        view.mkfifo("pipe", 0o600)
        view.mknod("null", stat.S_IFCHR | 0o644, os.makedev(1, 3))
        with pytest.raises(OSError, match="neither directories"):
            view.mknod("d", stat.S_IFDIR | 0o755)
        room = view.disk_usage()
        assert 0 < room.free <= room.total
        two = view.commit("two")
    for tree in (two, store["two"]):
        assert (tree.listxattr("a"), tree.getxattr("a", "user.loss")) == (["user.loss"], b"1.5")
        file, link = tree.stat("a/x.txt"), tree.stat("a/link", follow_symlinks=False)
        assert (file.uid, file.atime_ns, file.mtime_ns) == (7, 2_500_000_000, 3_500_000_000)
        assert (link.uid, link.gid, link.atime_ns, link.mtime_ns) == (8, 9, 5, 6)
        assert stat.S_ISFIFO(tree.stat("pipe").mode)
        assert tree.stat("null").device == os.makedev(1, 3)
        with pytest.raises(OSError, match=r"no 'user\.none'") as caught:
            tree.getxattr("a", "user.none")
        assert caught.value.errno == errno.ENODATA


def test_any_name_is_told_and_taken_as_os_does(store: dedupfs.Store) -> None:
    names = [b"\xff\xfe", b"a b", b"*?[x]", "\u00e9".encode(), b".hidden", b"\n"]
    with store.view("v") as view:
        for name in names:
            view.write_bytes(name, name)
        assert [os.fsencode(name) for name in view.ls()] == sorted([*names, b"one"])
        for text in set(view.ls()) - {"one"}:
            assert view.read_bytes(PurePosixPath(text)) == os.fsencode(text)
        assert list(view.glob("[[]x]")) == []
        assert list(view.glob("[*][?]*")) == ["*?[x]"]
        assert list(view.glob("one/**/*.txt")) == ["one/a/x.txt"]


def test_walk_and_glob_find_what_those_of_python_find(
    one: dedupfs.Snapshot, tmp_path: Path
) -> None:
    source = tmp_path / "src"
    for pattern in ("*", "a/*", "**/*", "**/b/**/*", "*/b", "**/x.txt", "a/**/b*", "nope/*"):
        found = [path.relative_to(source).as_posix() for path in source.glob(pattern)]
        inside = [path for path in found if not path.startswith("to-a/")]  # links are not followed
        assert sorted(one.glob(pattern)) == sorted(set(inside)), pattern
    bottom_up = [top for top, _, _ in one.walk(top_down=False)]
    assert bottom_up == ["a/b", "a", "empty", ""]
    failed: list[Exception] = []
    assert list(one.walk("nowhere", on_error=failed.append)) == []
    assert isinstance(failed[0], FileNotFoundError)
    with pytest.raises(ValueError, match="downwards"):
        list(one.glob("../*"))


def told_by_command(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "dedupfs", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_sizes_are_those_that_the_commands_tell(store: dedupfs.Store) -> None:
    store["one"].clone("two")
    with store.view("v", snapshot="one") as view:
        view.remove("a/b/big")
        view.commit("three")
    stats = asdict(store.stats())
    told = told_by_command("stats", str(store.path))
    assert {**stats, "problems": list(stats["problems"])} == {name: told[name] for name in stats}
    rows = store.du("one", "two")
    assert [(row.kind, row.name) for row in rows] == [
        ("snapshot", "one"),
        ("snapshot", "two"),
        ("together", ""),
    ]
    assert rows[0].frees_bytes < 100_000 < rows[2].frees_bytes
    assert {row.name for row in store.du()} == {"one", "two", "three", "v"}
    du = told_by_command("du", str(store.path), "one", "two")
    assert isinstance(du["together"], dict)
    assert rows[2].frees_bytes == du["together"]["frees_bytes"]
    store.prune("one", "two", keep_tag="none", gc=False, allow_empty=True)
    planned = store.gc(dry_run=True)
    done = store.gc()
    assert (planned.records, planned.freed_bytes) == (done.records, done.freed_bytes)
    assert done.disk_bytes_freed >= 0


def test_an_import_takes_the_files_that_it_is_told(store: dedupfs.Store, tmp_path: Path) -> None:
    source = tmp_path / "src"
    made = store.import_tree(source, "some", files=["a/x.txt", Path("empty")])
    assert list(made.glob("**/*")) == ["a", "empty", "a/x.txt"]
    with pytest.raises(ValueError, match="nothing"):
        store.import_tree(source, "none", files=[])
    when = made.created.replace(year=2020)
    dated = store.import_tree(source, "dated", created=when, one_file_system=True, reread=True)
    assert dated.created.year == 2020
    with (tmp_path / "t.tar").open("wb") as out:
        made.export_tar(out)
    listed = subprocess.run(
        ["tar", "tf", tmp_path / "t.tar"], stdout=subprocess.PIPE, check=True, timeout=120
    )
    assert b"a/x.txt" in listed.stdout
