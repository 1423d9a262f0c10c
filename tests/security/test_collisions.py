"""P3 against an attacker: files with equal hashes and other bytes are never mixed, wherever.

Method: real collisions of the real hash, crafted with the store's seed (``crafted.py``), brought in
by import, by a view, by a mount; then read back after every kind of maintenance.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.maintenance.scrub import scrub
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.view import Caller, View
from dedupfs.store import Store
from dedupfs.transfer.export import export_tree
from dedupfs.transfer.ingest import ingest_tree
from tests.fuse.harness import Daemons
from tests.security.crafted import chunk_ids, colliding_file

SIZES = {"small": 2_000, "medium": 60_000, "large": 300_000}
"""One chunk; a record pack's; a verbatim pack's."""
CALLER = Caller(os.geteuid(), os.getegid())
Files = dict[str, bytes]


@pytest.fixture
def store_path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "store"
    Store.create(
        path, chunk_bytes_average=4096, verbatim_bytes_min=64 << 10, hash_seed=0x1234_5678_9ABC_DEF0
    ).close()
    yield path
    with Store.open(path) as store:
        assert [str(problem) for problem in check(store).problems] == []
        assert scrub(store).ok


def files_of(store: Store, variant: int) -> Files:
    made = {}
    for number, (name, length) in enumerate(SIZES.items()):
        one = colliding_file(store, number, length, variant)
        other = colliding_file(store, number, length, variant + 1)
        assert chunk_ids(store, one) == chunk_ids(store, other)
        assert one != other
        made[f"{name}-{variant}"] = one
        made[f"{name}-both-{variant}"] = one + other
    return made


def write_files(directory: Path, files: Files) -> Path:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


def assert_restored(store: Store, name: str, target: Path, expected: Files) -> None:
    assert not export_tree(store, SnapshotCatalog(store).get(name).root, target).problems
    assert {path.name: path.read_bytes() for path in target.iterdir()} == expected


def test_imports_views_and_maintenance_keep_colliding_files_apart(
    store_path: Path, tmp_path: Path
) -> None:
    with Store.open(store_path) as store:
        first, second, third = (files_of(store, variant) for variant in (10, 20, 30))
        ingest_tree(store, write_files(tmp_path / "first", first), "first")
        ingest_tree(store, write_files(tmp_path / "second", second), "second")
        view = View.bring_back(store, "work")
        for name, data in third.items():
            handle, _ = view.create(1, name.encode(), 0o644, CALLER)
            for start in range(0, len(data), 10_000):
                view.write(handle, start, data[start : start + 10_000])
            view.release(handle)
        view.mkdir(1, b"empty", 0o755, CALLER)
        view.fold()
        for name, data in third.items():
            inode = view.lookup(1, name.encode()).inode
            handle = view.open(inode, os.O_RDONLY)
            assert view.plan_read(handle, 0, len(data)).run() == data
            view.release(handle)
            view.unlink(1, name.encode()) if "both" in name else None
        view.close()
        SnapshotCatalog(store).remove(["first"])
        collect(store)
        assert_restored(store, "second", tmp_path / "out-1", second)
    assert reindex(store_path).ok
    with Store.open(store_path) as store:
        assert_restored(store, "second", tmp_path / "out-2", second)
        ingest_tree(store, tmp_path / "first", "first-again")
        ingest_tree(store, tmp_path / "second", "second-again")
        assert_restored(store, "first-again", tmp_path / "out-3", first)
        assert_restored(store, "second-again", tmp_path / "out-4", second)


@pytest.mark.fuse
def test_a_mount_keeps_colliding_files_apart(
    store_path: Path, tmp_path: Path, daemons: Daemons
) -> None:
    with Store.open(store_path) as store:
        inside, written = files_of(store, 1), files_of(store, 100)
        ingest_tree(store, write_files(tmp_path / "source", inside), "inside")
    mounted = daemons.start()
    write_files(mounted.path / "written", written)
    overwritten = mounted.path / "inside" / "medium-1"
    with overwritten.open("r+b") as file:  # in place: other bytes, the same ids
        file.write(written["medium-100"])
        os.fsync(file.fileno())
    assert mounted.end() == 0
    mounted = daemons.start()
    found = {path.name: path.read_bytes() for path in (mounted.path / "written").iterdir()}
    assert found == written
    assert overwritten.read_bytes() == written["medium-100"]
    assert (mounted.path / "inside" / "large-both-1").read_bytes() == inside["large-both-1"]
    assert mounted.end() == 0
    with Store.open(store_path) as store:
        assert_restored(store, "inside", tmp_path / "out", inside)
