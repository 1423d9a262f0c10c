"""Exports: targets that are refused, damage that is told, nobody who leads them outside; tar."""

from __future__ import annotations

import io
import os
import socket
import subprocess
from pathlib import Path

import pytest

from dedupfs.errors import SourceError, UsageError
from dedupfs.model import TreeEntry
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.export import export_tree
from dedupfs.transfer.ingest import ingest_tree
from dedupfs.transfer.report import Progress
from dedupfs.transfer.tar import export_tar
from tests.transfer.trees import differences, make_store, noise


def imported(store: Store, source: Path) -> TreeEntry:
    report = ingest_tree(store, source, "one")
    assert report.snapshot is not None
    return report.snapshot.root


def test_only_a_free_or_empty_target_is_taken(store: Store, source: Path, tmp_path: Path) -> None:
    (source / "a").write_bytes(b"a")
    root = imported(store, source)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_bytes(b"")
    with pytest.raises(UsageError, match="not empty"):
        export_tree(store, root, full)
    with pytest.raises(SourceError):
        export_tree(store, root, full / "mine")
    with pytest.raises(SourceError):
        export_tree(store, root, tmp_path / "no" / "such" / "parent")
    with pytest.raises(UsageError, match="no directory"):
        export_tree(store, root, tmp_path / "x", top=TreeReader(store).walk_path(root, b"a"))


def test_a_subdirectory_with_half_of_the_links(store: Store, source: Path, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (source / name).mkdir()
    (source / "in" / "a").write_bytes(b"a")
    os.link(source / "in" / "a", source / "in" / "b")
    os.link(source / "in" / "a", source / "out" / "c")
    root = imported(store, source)
    top = TreeReader(store).walk_path(root, b"in")
    assert not export_tree(store, root, tmp_path / "target", top=top).problems
    assert sorted(os.listdir(tmp_path / "target")) == ["a", "b"]
    assert (tmp_path / "target" / "b").stat().st_nlink == 2


def test_a_directory_swapped_for_a_symlink_leads_nowhere(
    store: Store, source: Path, tmp_path: Path
) -> None:
    (source / "a").write_bytes(b"1")
    (source / "b").mkdir()
    (source / "b" / "inner").write_bytes(b"2")
    (source / "b" / "last").write_bytes(b"3")
    root = imported(store, source)
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()

    def swap(progress: Progress) -> None:
        if progress.path == b"b/inner" and not (target / "b").is_symlink():
            (target / "b").rename(tmp_path / "moved")
            (target / "b").symlink_to(outside)

    def plant(progress: Progress) -> None:
        if progress.path == b"a":
            (target / "b").symlink_to(outside)

    export_tree(store, root, target, progress=swap)
    assert os.listdir(outside) == []
    assert sorted(os.listdir(tmp_path / "moved")) == ["inner", "last"]
    report = export_tree(store, root, tmp_path / "second", progress=None)
    assert not report.problems
    target = tmp_path / "third"
    report = export_tree(store, root, target, progress=plant)
    assert [problem.path for problem in report.problems] == [b"b"]
    assert os.listdir(outside) == []


@pytest.mark.allow_log(".*")
def test_a_damaged_file_is_left_out_and_told(source: Path, tmp_path: Path) -> None:
    (source / "bad").write_bytes(noise(1, 9_000))
    (source / "good").write_bytes(noise(2, 9_000))
    with make_store(tmp_path / "damaged", "none") as store:
        root = imported(store, source)
    for pack in (tmp_path / "damaged" / "packs").rglob("*.pack"):
        data = bytearray(pack.read_bytes())
        data[data.index(noise(1, 100)) + 50] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(data)
    with Store.open(tmp_path / "damaged") as store:
        report = export_tree(store, root, tmp_path / "target")
        assert report.damaged == 1
        assert [problem.path for problem in report.problems] == [b"bad"]
        assert os.listdir(tmp_path / "target") == ["good"]
        archive = io.BytesIO()
        assert export_tar(store, root, archive).damaged == 1


@pytest.mark.root
def test_tar_restores_everything_but_sockets(store: Store, source: Path, tmp_path: Path) -> None:
    (source / "sub").mkdir()
    (source / "sub" / "data").write_bytes(noise(1, 200_000))
    os.setxattr(source / "sub" / "data", "user.note", b"\x00binary\xff\n")
    os.utime(source / "sub" / "data", ns=(1, 1_234_567_890_123_456_789))
    os.link(source / "sub" / "data", source / "again")
    (source / "pointer").symlink_to("sub/data")
    os.mkfifo(source / "fifo")
    os.mknod(source / "null", 0o20666, os.makedev(1, 3))
    (source / ("long " * 40)).write_bytes(b"long name")
    Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9")).write_bytes(b"latin-1")
    os.utime(source / "sub", ns=(1, 999))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    root = imported(store, source)
    with (tmp_path / "out.tar").open("wb") as out:
        report = export_tar(store, root, out)
    assert [problem.path for problem in report.problems] == [b"./socket"]
    (source / "socket").unlink()
    os.utime(source, ns=(root.mtime_ns, root.mtime_ns))
    (tmp_path / "target").mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=*", "--same-owner", "-xpf"]
    subprocess.run(
        [*command, tmp_path / "out.tar", "-C", tmp_path / "target"], check=True, capture_output=True
    )
    assert differences(source, tmp_path / "target") == []
