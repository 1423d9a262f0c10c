"""reindex makes the best of damaged packs: it never fails, and tells what is lost.

Method: packs are damaged, cut off and mixed up behind the store's back, then the index is lost.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dedupfs.errors import StoreError
from dedupfs.format.pack import HEADER_BYTES, TableChunk, encode_chunk_table
from dedupfs.format.tree import encode_snapshot
from dedupfs.maintenance.check import check
from dedupfs.maintenance.gc import collect
from dedupfs.maintenance.reindex import reindex
from dedupfs.maintenance.scrub import scrub
from dedupfs.model import Codec, RecordId, RecordKind, SnapshotInfo, TreeEntry
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store, Table
from tests.maintenance.samples import (
    contents,
    damage,
    flip,
    lose_index,
    noise,
    overwrite,
    pack_path,
    read_back,
    rows,
    sound,
)


def test_a_damaged_chunk_is_told_and_the_rest_comes_back(history: Path) -> None:
    with Store.open(history) as store:
        row = next(r for r in rows(store, RecordKind.CHUNK) if r.location.pack != 1)
        damage(store, row)
    lose_index(history)
    report = reindex(history)
    assert sorted(report.snapshots) == ["again", "copy", "renamed", "s1"]
    with Store.open(history) as store:
        assert [found.record_id for found in scrub(store).damage] in ([row.record_id], [])


def test_of_two_places_the_one_that_verifies_wins(filled: Store) -> None:
    row = next(r for r in rows(filled, RecordKind.TREE))
    payload = filled.get(row.record_id, RecordKind.TREE)
    with filled.db.writing() as txn:  # forget the record, so that it is stored once more
        txn.delete(Table.RECORDS, row.record_id)
    filled.put(RecordKind.TREE, payload)
    with filled.transaction():
        pass
    damage(filled, row)
    expected = read_back(filled, "first")
    path = filled.path
    filled.close()
    lose_index(path)
    reindex(path)
    assert contents(path) == {"first": expected}
    with Store.open(path) as store:
        (again,) = (r for r in rows(store) if r.record_id == row.record_id)
        assert again.location != row.location
        assert scrub(store).ok


def test_a_missing_record_is_told_with_its_file_and_can_be_removed(
    filled: Store, source: Path
) -> None:
    SnapshotCatalog(filled).clone("first", "second")
    small = filled.digest(RecordKind.CHUNK, (source / "sub" / "small").read_bytes())
    (row,) = (r for r in rows(filled) if r.record_id == small)
    start = row.location.pack_offset - HEADER_BYTES
    overwrite(pack_path(filled, row.location.pack), start, bytes(HEADER_BYTES))
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert not report.ok
    assert report.snapshots == ["first", "second"]
    assert any("are no record" in line for line in report.damaged)
    uses = {use for problem in report.problems for use in problem.uses}
    assert uses == {"snapshot first: /sub/small", "snapshot second: /sub/small"}


def test_a_verbatim_pack_without_its_table_is_searched_for_what_files_want(
    filled: Store,
) -> None:
    (table,) = rows(filled, RecordKind.CHUNK_TABLE)
    expected = read_back(filled, "first")
    damage(filled, table)
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert report.lost_packs == []
    assert report.problems == []
    assert contents(path) == {"first": expected}
    sound(path)
    lose_index(path)
    reindex(path)
    assert contents(path) == {"first": expected}


@pytest.mark.allow_log("pack put aside")
def test_a_verbatim_pack_of_which_nothing_is_known_is_put_aside(filled: Store) -> None:
    for kind in (RecordKind.CHUNK_TABLE, RecordKind.RECIPE):
        for row in rows(filled, kind):
            damage(filled, row)
    path = filled.path
    filled.close()
    lose_index(path)
    report = reindex(path)
    assert not report.ok
    assert {use for problem in report.problems for use in problem.uses} >= {
        "snapshot first: /large"
    }
    with Store.open(path) as store:
        collect(store)


@pytest.mark.allow_log(".*")
@pytest.mark.parametrize("seed", range(12))
def test_damaged_packs_never_end_it(history: Path, seed: int) -> None:
    """Whatever happens to the packs: reindex makes a store that opens, and tells what is wrong."""
    chance = random.Random(seed)
    packs = sorted((history / "packs").glob("*/*"))
    for _ in range(chance.randrange(1, 6)):
        path = chance.choice(packs)
        size = max(1, path.stat().st_size)
        offset = chance.randrange(size)
        match chance.randrange(5):
            case 0:
                flip(path, min(offset, path.stat().st_size - 1), chance.randrange(8))
            case 1:
                overwrite(path, offset, bytes(chance.randrange(1, 9000)))
            case 2:
                overwrite(path, offset, chance.randbytes(chance.randrange(1, 9000)))
            case 3:
                path.chmod(0o600)
                os.truncate(path, max(1, offset))
            case 4:
                overwrite(path, offset, chance.choice(packs).read_bytes()[:5000])
    lose_index(history)
    report = reindex(history)
    with Store.open(history) as store:
        check(store)
        scrub(store)
        for info in SnapshotCatalog(store).list():
            try:
                read_back(store, info.name)
            except StoreError:
                assert not report.ok or not scrub(store).ok
    again = reindex(history)
    assert sorted(again.snapshots) == sorted(report.snapshots)


@pytest.mark.allow_log(".*")
@pytest.mark.parametrize(
    "plant",
    [
        lambda packs: (packs / "00" / "00000099.pack").write_bytes(b""),
        lambda packs: (packs / "00" / "00000099.pack").write_bytes(noise(1, 50_000)),
        lambda packs: (packs / "00" / "00000099.file").write_bytes(noise(1, 50_000)),
        lambda packs: (packs / "00" / "README").write_bytes(b"hello"),
        lambda packs: (packs / "stray").mkdir(),
        lambda packs: shutil.copy(packs / "00" / "00000002.pack", packs / "00" / "00000098.pack"),
    ],
)
def test_strange_files_among_the_packs_do_no_harm(
    history: Path, plant: Callable[[Path], object]
) -> None:
    before = contents(history)
    plant(history / "packs")
    lose_index(history)
    reindex(history)
    assert contents(history) == before
    with Store.open(history) as store:
        assert check(store).ok


def append_record(store: Store, kind: RecordKind, payload: bytes) -> Path:
    """Append a record with sound checksums, whatever its payload: as a hostile program would."""
    writer = store.packs.writer(None)
    identity = store.digest(kind, payload)
    writer.append(kind, Codec.RAW, 0, payload, len(payload), identity)
    writer.sync()
    return writer.path


HOSTILE = {
    "no tree": (RecordKind.TREE, b"\xc1\xff"),
    "endless nesting": (RecordKind.TREE, b"\x91" * 100_000),
    "no page": (RecordKind.TREE_PAGE, b""),
    "half an extent": (RecordKind.RECIPE_PAGE, b"x" * 27),
    "half a recipe": (RecordKind.RECIPE, b"x" * 30),
    "a page of holes": (RecordKind.RECIPE_PAGE, bytes(16) + b"\xff\xff\xff\xff"),
    "no snapshot": (RecordKind.SNAPSHOT, b"\x00"),
    "no view": (RecordKind.VIEW_ROOT, b"\x00"),
    "no chunk table": (RecordKind.CHUNK_TABLE, b"abc"),
    "table of a pack that is not there": (RecordKind.CHUNK_TABLE, encode_chunk_table(999, 0, [])),
    "table of a record pack": (RecordKind.CHUNK_TABLE, encode_chunk_table(2, 0, [])),
    "second table of a pack": (
        RecordKind.CHUNK_TABLE,
        encode_chunk_table(1, 1 << 40, [TableChunk(1 << 39, 100, 0, RecordId(b"x" * 16))]),
    ),
    "free inside": (RecordKind.FREE, b""),
    "a pack table inside": (RecordKind.PACK_TABLE, b"x" * 36),
    "a snapshot with a strange name": (
        RecordKind.SNAPSHOT,
        encode_snapshot(SnapshotInfo(50, "../../etc", TreeEntry(b"", 0, 0o040755), 1)),
    ),
    "a snapshot that is a file": (
        RecordKind.SNAPSHOT,
        encode_snapshot(SnapshotInfo(51, "file", TreeEntry(b"", 0, 0o100644), 1)),
    ),
    "a snapshot with endless sequence": (
        RecordKind.SNAPSHOT,
        encode_snapshot(SnapshotInfo((1 << 64) - 1, "late", TreeEntry(b"", 0, 0o040755), 1)),
    ),
    "a snapshot with a negative sequence": (
        RecordKind.SNAPSHOT,
        encode_snapshot(SnapshotInfo(-5, "early", TreeEntry(b"", 0, 0o040755), 1)),
    ),
    "a snapshot of a tree that is not there": (
        RecordKind.SNAPSHOT,
        encode_snapshot(
            SnapshotInfo(52, "dangling", TreeEntry(b"", 0, 0o040755, content=b"y" * 16), 1)
        ),
    ),
}


@pytest.mark.allow_log(".*")
@pytest.mark.parametrize("kind", list(HOSTILE))
def test_hostile_records_never_end_it(filled: Store, kind: str) -> None:
    expected = read_back(filled, "first")
    pack = append_record(filled, *HOSTILE[kind])
    data = pack.read_bytes()
    path = filled.path
    filled.close()
    pack.write_bytes(data)  # as after a crash: what was appended stays
    lose_index(path)
    reindex(path)
    with Store.open(path) as store:
        assert read_back(store, "first") == expected
        check(store)
        scrub(store)
        collect(store)
        assert read_back(store, "first") == expected
