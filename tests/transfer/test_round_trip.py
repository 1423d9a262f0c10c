"""Whatever a directory holds comes back as it was.

Method: Hypothesis draws trees (names of any bytes, holes, hard links, xattrs, special files); each
is imported, exported, and rsync with --checksum finds nothing to do between the two.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings

from dedupfs.maintenance.check import check
from dedupfs.store import Store
from dedupfs.transfer.export import export_tree
from dedupfs.transfer.ingest import ingest_tree
from tests.transfer.trees import (
    IS_ROOT,
    TRUSTING,
    Node,
    acl_bytes,
    build,
    differences,
    make_store,
    noise,
    trees,
)


def restore(store: Store, name_or_root: object, target: Path) -> None:
    report = export_tree(store, name_or_root, target)  # type: ignore[arg-type]
    assert not report.problems


@settings(max_examples=60)
@given(tree=trees)
def test_a_tree_comes_back_as_it_was(tree: Node) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        (top / "source").mkdir()
        build(top / "source", tree)
        with make_store(top / "store") as store:
            first = ingest_tree(store, top / "source", "first", options=TRUSTING)
            again = ingest_tree(store, top / "source", "again", options=TRUSTING)
            assert not first.problems
            assert not again.problems
            assert first.snapshot is not None
            assert again.snapshot is not None
            assert again.snapshot.root == first.snapshot.root
            assert again.bytes_read == 0
            restore(store, first.snapshot.root, top / "target")
            assert differences(top / "source", top / "target") == []
            report = check(store)
            assert report.ok, report.problems


def test_acls_come_back_and_are_not_inherited(store: Store, source: Path, tmp_path: Path) -> None:
    default = "system.posix_acl_default"
    (source / "shared").mkdir()
    (source / "shared" / "plain").write_bytes(b"x")
    (source / "file").write_bytes(b"y")
    try:
        os.setxattr(source / "file", "system.posix_acl_access", acl_bytes(1234, 7))
        os.setxattr(source / "shared", default, acl_bytes(1234, 6))
    except OSError as exc:
        pytest.skip(f"no ACLs here: {exc}")
    target = tmp_path / "target"
    target.mkdir()
    os.setxattr(target, default, acl_bytes(99, 7))
    report = ingest_tree(store, source, "one")
    assert report.snapshot is not None
    restore(store, report.snapshot.root, target)
    assert differences(source, target) == []
    assert os.listxattr(target / "shared" / "plain") == []


def test_a_large_file_is_stored_once_however_it_arrives(
    store: Store, source: Path, tmp_path: Path
) -> None:
    data = noise(1, 1 << 20)
    (source / "a").write_bytes(data)
    (source / "b").write_bytes(b"in front" + data)  # shifted
    (source / "c").write_bytes(data + data + noise(2, 300_000))  # repeats itself
    report = ingest_tree(store, source, "one")
    assert report.snapshot is not None
    restore(store, report.snapshot.root, tmp_path / "target")
    assert differences(source, tmp_path / "target") == []
    packed = sum(path.stat().st_blocks * 512 for path in (store.path / "packs").rglob("*.*"))
    assert packed < 1.6 * len(data)


@pytest.fixture
def deep_space() -> Iterator[Path]:
    """A directory that only rm -r can remove: shutil.rmtree recurses."""
    directory = Path(tempfile.mkdtemp())
    yield directory
    subprocess.run(["rm", "-rf", directory], check=True)


def test_a_tree_deeper_than_a_path_can_be_long(store: Store, deep_space: Path) -> None:
    depth = 1200
    source, target = deep_space / "source", deep_space / "target"
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    for level in range(depth):
        name = b"deep" if level % 2 else b"\xff" * 5
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with open(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"at the bottom")
    os.close(fd)
    report = ingest_tree(store, source, "deep")
    assert not report.problems
    assert report.directories == depth + 1
    assert report.snapshot is not None
    restore(store, report.snapshot.root, target)
    again = ingest_tree(store, target, "again")
    assert not again.problems
    assert again.snapshot is not None
    assert again.snapshot.root.size == report.snapshot.root.size
    assert again.directories == depth + 1


@pytest.mark.root
def test_suid_bits_and_capabilities_survive_the_change_of_owner(
    store: Store, source: Path, tmp_path: Path
) -> None:
    program = source / "program"
    program.write_bytes(b"#!")
    os.chown(program, 1000, 1000)
    program.chmod(0o6755)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(program, "security.capability", capability)
    report = ingest_tree(store, source, "one")
    assert report.snapshot is not None
    restore(store, report.snapshot.root, tmp_path / "target")
    assert differences(source, tmp_path / "target") == []
    assert os.getxattr(tmp_path / "target" / "program", "security.capability") == capability
    assert IS_ROOT
