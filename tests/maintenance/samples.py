"""Small directories, the stores that hold them, what is read back, and ways to damage a pack."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dedupfs.format.keys import decode_location, decode_pack_row, encode_pack_key
from dedupfs.maintenance.check import check
from dedupfs.maintenance.problems import Problem
from dedupfs.maintenance.scrub import scrub
from dedupfs.model import Location, PackKind, RecordId, RecordKind, SnapshotInfo, TreeEntry
from dedupfs.namespace.contents import load_recipe
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of
from dedupfs.store import Store, Table
from dedupfs.transfer.ingest import IngestOptions, ingest_tree

SMALL: dict[str, Any] = {
    "chunk_bytes_average": 1024,
    "hash_seed": 7,
    "pack_bytes_max": 96 << 10,
    "verbatim_bytes_min": 48 << 10,
}
"""Chunks, packs and verbatim packs so small that a few hundred kilobytes fill several."""

Content = dict[str, tuple[int, bytes]]
"""Path -> mode and bytes: of a file, of a symlink's target."""


def noise(seed: object, length: int) -> bytes:
    """Return bytes that nothing compresses, the same for the same seed."""
    return random.Random(str(seed)).randbytes(length)


def make_directory(top: Path, seed: object = 0) -> Path:
    """Make a directory with every kind of content that a store treats in its own way."""
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "large").write_bytes(noise((seed, "large"), 150_000))
    (top / "medium").write_bytes(noise((seed, "medium"), 20_000))
    (top / "sub" / "small").write_bytes(noise((seed, "small"), 700))
    (top / "sub" / "same").write_bytes(noise((seed, "medium"), 20_000))
    (top / "sub" / "text").write_bytes(b"all work and no play\n" * 900)
    (top / "sub" / "holes").write_bytes(noise(seed, 3000) + bytes(50_000) + noise(seed, 100))
    (top / "sub" / "nothing").write_bytes(b"")
    (top / "sub" / "deep" / "linked").write_bytes(noise((seed, "linked"), 5000))
    os.link(top / "sub" / "deep" / "linked", top / "second name")
    os.symlink("sub/deep", top / "pointer")
    return top


def import_directory(store: Store, directory: Path, name: str) -> SnapshotInfo:
    """Import a directory as the command does, but read everything."""
    report = ingest_tree(store, directory, name, options=IngestOptions(reread=True))
    assert report.snapshot is not None
    return report.snapshot


def read_back(store: Store, name: str) -> Content:
    """Read a whole snapshot through the store."""
    info = SnapshotCatalog(store).get(name)
    return dict(_read_tree(store, TreeReader(store), info.root, info.root, ""))


def _read_tree(
    store: Store, trees: TreeReader, root: TreeEntry, directory: TreeEntry, prefix: str
) -> Iterator[tuple[str, tuple[int, bytes]]]:
    for found in trees.entries(tree_id_of(directory)):
        entry = trees.resolve(root, found)
        path = prefix + os.fsdecode(entry.name)
        data = entry.content if entry.is_symlink else b""
        if entry.is_file:
            recipe = load_recipe(store, entry.content)
            data = store.read(recipe.cut(0, recipe.size)) if recipe.size else b""
        yield path, (entry.mode, data)
        if entry.is_directory:
            yield from _read_tree(store, trees, root, entry, path + "/")


def read_directory(top: Path) -> Content:
    """Read a directory of the file system in the same form."""
    found: Content = {}
    for path in top.rglob("*"):
        mode = path.lstat().st_mode
        data = b""
        if path.is_symlink():
            data = os.fsencode(os.readlink(path))
        elif path.is_file():
            data = path.read_bytes()
        found[str(path.relative_to(top))] = mode, data
    return found


@dataclass(frozen=True)
class Row:
    """One record of a store: where it is and how often it is referred to."""

    record_id: RecordId
    location: Location
    references: int


def rows(store: Store, kind: RecordKind | None = None) -> list[Row]:
    """Return all records of the index, or those of one kind, the oldest first: the order of their
    ids is another in each store.
    """
    with store.reading() as txn:
        found = [
            Row(RecordId(key), *decode_location(value)) for key, value in txn.scan(Table.RECORDS)
        ]
    found.sort(key=lambda row: (row.location.pack, row.location.pack_offset))
    return [row for row in found if kind is None or row.location.kind is kind]


def any_row(store: Store, kind: RecordKind, pack_kind: PackKind = PackKind.RECORDS) -> Row:
    """Return a record of that kind, but no links tree: its damage hits its links' names too."""
    links = {links_id_of(info.root) for info in SnapshotCatalog(store).list()}
    with store.reading() as txn:
        for row in rows(store, kind):
            if row.record_id in links:
                continue
            found = txn.get(Table.PACKS, encode_pack_key(row.location.pack))
            assert found is not None
            if decode_pack_row(found).kind is pack_kind:
                return row
    raise AssertionError(f"no {kind.name} in a {pack_kind.name} pack")


def pack_path(store: Store, pack: int) -> Path:
    """Return the file of a pack of either kind."""
    (path,) = store.layout.packs.glob(f"*/{pack:08d}.*")
    return path


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Write into a file that may be read-only."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Turn one bit of a file round."""
    with path.open("rb") as file:
        file.seek(offset)
        (byte,) = file.read(1)
    overwrite(path, offset, bytes([byte ^ 1 << bit]))


def damage(store: Store, row: Row) -> None:
    """Turn one bit in the middle of a record round."""
    location = row.location
    middle = location.pack_offset + location.stored_bytes // 2
    flip(pack_path(store, location.pack), middle)


def problems_of(store: Store, code: str) -> list[Problem]:
    report = check(store)
    assert not report.ok
    found = [problem for problem in report.problems if problem.code == code]
    assert found, f"no {code!r} among {report.problems}"
    for problem in report.problems:
        assert problem.where
        assert problem.what
        assert problem.advice
        assert problem.where in str(problem)
    return found


def lose_index(path: Path) -> None:
    shutil.rmtree(path / "index")


def contents(path: Path) -> dict[str, Content]:
    with Store.open(path) as store:
        return {info.name: read_back(store, info.name) for info in SnapshotCatalog(store).list()}


def sound(path: Path) -> None:
    with Store.open(path) as store:
        report = check(store)
        assert report.ok, report.problems
        assert scrub(store).ok
