"""`compare` says what differs, and looks at nothing that is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dedupfs.model import RecordId, RecordKind, TreeEntry
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.compare import Difference, Side, compare
from dedupfs.transfer.ingest import ingest_tree
from tests.transfer.trees import noise


def imported(store: Store, source: Path, name: str) -> TreeEntry:
    report = ingest_tree(store, source, name)
    assert report.snapshot is not None
    return report.snapshot.root


def told(differences: list[Difference]) -> list[tuple[str, bytes]]:
    return [(found.kind.value, found.path) for found in differences]


def test_every_kind_of_difference(store: Store, source: Path) -> None:
    for name in ("gone", "grown", "rewritten", "chmodded", "retyped", "same"):
        (source / name).write_bytes(noise(len(name), 9_000))
    (source / "lost" / "below").mkdir(parents=True)
    before = imported(store, source, "before")
    (source / "gone").unlink()
    (source / "grown").write_bytes(noise(5, 9_000) + b"more")
    (source / "rewritten").write_bytes(noise(77, 9_000))
    (source / "chmodded").chmod(0o700)
    (source / "retyped").unlink()
    (source / "retyped").symlink_to("same")
    (source / "lost" / "below").rmdir()
    (source / "lost").rmdir()
    (source / "new" / "below").mkdir(parents=True)
    after = imported(store, source, "after")
    assert told(list(compare(store, before, after))) == [
        ("metadata", b"chmodded"),
        ("removed", b"gone"),
        ("modified", b"grown"),
        ("removed", b"lost"),
        ("removed", b"lost/below"),
        ("added", b"new"),
        ("added", b"new/below"),
        ("type", b"retyped"),
        ("modified", b"rewritten"),
    ]
    assert list(compare(store, before, before)) == []


def test_a_hard_linked_inode_is_compared_where_it_is_named(store: Store, source: Path) -> None:
    (source / "sub").mkdir()
    (source / "sub" / "a").write_bytes(b"one")
    os.link(source / "sub" / "a", source / "sub" / "b")
    before = imported(store, source, "before")
    (source / "sub" / "a").write_bytes(b"two")
    after = imported(store, source, "after")
    assert told(list(compare(store, before, after))) == [
        ("modified", b"sub/a"),
        ("modified", b"sub/b"),
    ]


def test_equal_bytes_cut_differently_are_equal(store: Store, source: Path) -> None:
    data = noise(1, 50_000)
    with (source / "a").open("wb") as file:
        file.write(data)
        file.write(bytes(65_536))
        file.write(data)
    os.utime(source / "a", ns=(1, 1))
    before = imported(store, source, "before")
    with (source / "a").open("wb") as file:  # now with a hole, which is a boundary
        file.write(data)
        file.seek(65_536, os.SEEK_CUR)
        file.write(data)
    os.utime(source / "a", ns=(1, 1))
    after = imported(store, source, "after")
    assert told(list(compare(store, before, after))) == []


def test_the_cost_follows_the_difference(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3_000):  # more than one page of entries
        (source / f"{number:05}").write_bytes(b"")
    for number in range(40):
        (source / f"d{number:02}").mkdir()
        (source / f"d{number:02}" / "file").write_bytes(b"x")
    before = imported(store, source, "before")
    (source / "d07" / "file").write_bytes(b"y")
    after = imported(store, source, "after")
    loaded: list[RecordKind] = []
    get = store.get

    def counted(record_id: RecordId, kind: RecordKind) -> bytes:
        loaded.append(kind)
        return get(record_id, kind)

    monkeypatch.setattr(store, "get", counted)
    assert told(list(compare(store, before, after))) == [("modified", b"d07/file")]
    assert loaded.count(RecordKind.TREE) == 4
    assert loaded.count(RecordKind.TREE_PAGE) <= 4


def test_subdirectories_of_two_snapshots(store: Store, source: Path) -> None:
    (source / "x").mkdir()
    (source / "x" / "a").write_bytes(b"1")
    (source / "y").mkdir()
    (source / "y" / "b").write_bytes(b"2")
    root = imported(store, source, "one")
    reader = TreeReader(store)
    sides = [Side(root, reader.walk_path(root, path)) for path in (b"x", b"y")]
    assert told(list(compare(store, sides[0], sides[1]))) == [("removed", b"a"), ("added", b"b")]
