"""Damage to a directory is contained: everything else of a snapshot is restored.

Method: trees are damaged, and trees with impossible names are put, behind the store's back.
"""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.maintenance.check import check
from dedupfs.model import RecordKind, TreeEntry
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader, directory_entry, put_tree, tree_id_of
from dedupfs.store import Store
from dedupfs.transfer.export import export_tree
from dedupfs.transfer.tar import export_tar
from tests.damage.harness import files_of
from tests.maintenance.samples import SMALL, damage, import_directory, make_directory, rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Iterator[Store]:
    """A store with one snapshot, whose directory ``sub/deep`` and links tree may be damaged."""
    with Store.create(tmp_path / "store", **SMALL) as made:
        import_directory(made, source, "first")
        assert check(made).ok
        yield made


def tree_of(store: Store, path: bytes) -> bytes:
    root = SnapshotCatalog(store).get("first").root
    entry = TreeReader(store).walk_path(root, path)
    tree_id = tree_id_of(entry)
    assert tree_id is not None
    return tree_id


@pytest.mark.parametrize("path", [b"", b"sub", b"sub/deep"])
def test_a_damaged_directory_costs_what_is_below_it_alone(
    store: Store, source: Path, tmp_path: Path, path: bytes
) -> None:
    expected = files_of(source)
    tree_id = tree_of(store, path)
    (row,) = (row for row in rows(store, RecordKind.TREE) if row.record_id == tree_id)
    damage(store, row)
    root = SnapshotCatalog(store).get("first").root
    report = export_tree(store, root, tmp_path / "out")
    name = path.decode()
    assert report.damaged == 1
    assert [problem.path for problem in report.problems] == [path or b"."]
    left = {
        path: data for path, data in expected.items() if name and not path.startswith(name + "/")
    }
    assert files_of(tmp_path / "out") == left
    stream = io.BytesIO()
    assert export_tar(store, root, stream).damaged == 1
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        names = {member.name.removeprefix("./") for member in archive.getmembers()} - {"."}
    assert names == left.keys()
    damage(store, row)
    assert check(store).ok


@pytest.mark.parametrize("name", [b"../evil", b"/evil", b"..", b".", b"", b"a\0b", b"x" * 256])
def test_names_that_no_file_can_have_lead_nowhere(
    store: Store, tmp_path: Path, name: bytes
) -> None:
    """A store may come from somebody else."""
    mode = stat.S_IFREG | 0o644
    entries = sorted([TreeEntry(name, 1, mode), TreeEntry(b"good", 2, mode)], key=lambda e: e.name)
    tree_id = put_tree(store, entries, 3)
    root = directory_entry(
        b"", 0, entries, tree_id, mode=stat.S_IFDIR | 0o755, uid=0, gid=0, mtime_ns=1
    )
    with store.transaction():
        pass
    target = tmp_path / "outer" / "out"
    target.parent.mkdir()
    report = export_tree(store, root, target)
    assert report.damaged == 1
    assert set(files_of(target.parent)) == {"out", "out/good"}
    stream = io.BytesIO()
    assert export_tar(store, root, stream).damaged == 1
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        assert [member.name for member in archive.getmembers()] == [".", "./good"]
