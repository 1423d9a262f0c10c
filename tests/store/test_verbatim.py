"""A finished file becomes a pack as it is: linked, not copied, its chunks where they stand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dedupfs.errors import MissingRecordError, UsageError
from dedupfs.model import Extent, PackKind, RecordId, RecordKind
from dedupfs.store import Store, inventory
from tests.store.payloads import CHUNK, VIEW, as_another_process, noise, piece, pin, put_pinned


def extents(store: Store, payload: bytes, step: int = 1000) -> list[tuple[int, Extent]]:
    """Return what a caller passes for a file of new chunks."""
    found: list[tuple[int, Extent]] = []
    for start in range(0, len(payload), step):
        part = payload[start : start + step]
        chunk_id, known = store.probe_chunk(part)
        if not known:
            found.append((start, Extent(chunk_id, len(part))))
    return found


def ids_of(chunks: list[tuple[int, Extent]]) -> list[RecordId]:
    return [extent.chunk_id for _, extent in chunks]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(noise("file", 9500))
    return path


def test_the_file_is_linked_and_its_chunks_are_read_in_place(store: Store, file: Path) -> None:
    chunks = extents(store, file.read_bytes())
    pack = store.put_verbatim(file, chunks)
    path = store.layout.pack(pack, PackKind.VERBATIM)
    assert os.path.samefile(path, file)
    assert path.stat().st_mode & 0o777 == 0o400
    pieces = [piece(extent.chunk_id, extent.length) for _, extent in chunks]
    assert store.read(pieces) == file.read_bytes()  # pending
    pin(store, ids_of(chunks))
    payload = file.read_bytes()
    file.unlink()
    assert store.read(pieces) == payload
    assert store.read_cached(pieces) in (payload, None)
    assert store.locate(chunks[3][1].chunk_id).pack_offset == 3000
    assert store.find_chunk(payload[2000:3000]) == chunks[2][1].chunk_id


def test_the_chunk_table_tells_what_is_where(store: Store, file: Path) -> None:
    chunks = extents(store, file.read_bytes())
    pack = store.put_verbatim(file, chunks)
    pin(store, ids_of(chunks))
    with store.reading() as txn:
        row = inventory.indexed_pack(txn, pack)
    assert row is not None
    assert row.sealed
    assert row.committed_bytes == 9500
    assert row.chunk_table is not None
    table = inventory.chunk_table(store, row.chunk_table)
    assert (table.pack, table.file_bytes) == (pack, 9500)
    assert [(c.file_offset, c.chunk_id) for c in table.chunks] == [
        (start, extent.chunk_id) for start, extent in chunks
    ]


def test_chunks_that_came_into_the_store_meanwhile_are_not_registered(
    store: Store, file: Path
) -> None:
    chunks = extents(store, file.read_bytes())
    (early,) = put_pinned(store, [file.read_bytes()[:1000]])
    assert early == chunks[0][1].chunk_id
    pack = store.put_verbatim(file, [*chunks[:5], (9000, chunks[9][1])])
    assert store.locate(early).pack != pack
    pin(store, ids_of(chunks)[1:5])


def test_a_chunk_that_is_twice_in_the_file_is_registered_once(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "twice"
    file.write_bytes(noise(1) * 2)
    chunks = extents(store, file.read_bytes())
    assert len(set(ids_of(chunks))) == 1
    pack = store.put_verbatim(file, chunks)
    pin(store, ids_of(chunks))
    assert store.locate(chunks[0][1].chunk_id).pack_offset == 0
    assert store.locate(chunks[0][1].chunk_id).pack == pack


@pytest.mark.parametrize(
    "places", [[(0, 1001), (1000, 1)], [(5, 10), (0, 5)], [(9000, 501)], [(0, 0)]]
)
def test_chunks_that_do_not_fit_the_file_are_refused(
    store: Store, file: Path, places: list[tuple[int, int]]
) -> None:
    some = store.digest(CHUNK, b"some")
    with pytest.raises(UsageError):
        store.put_verbatim(file, [(start, Extent(some, length)) for start, length in places])
    assert file.stat().st_nlink == 1


def test_a_file_cannot_be_put_inside_a_transaction(store: Store, file: Path) -> None:
    with store.transaction(), pytest.raises(UsageError):
        store.put_verbatim(file, [])


def test_a_missing_file_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put_verbatim(tmp_path / "nothing", [])


def test_a_file_that_was_not_committed_is_dropped(path: Path, file: Path) -> None:
    with Store.create(path) as store:
        chunks = extents(store, file.read_bytes())
        store.put_verbatim(file, chunks)
        assert file.stat().st_nlink == 2
        store.drop_pending()
        assert file.stat().st_nlink == 1
        assert not store.has(chunks[0][1].chunk_id)
        store.put_verbatim(file, chunks)
    assert file.stat().st_nlink == 1


def test_losing_one_chunk_gives_the_whole_file_up(store: Store, file: Path) -> None:
    """Goal: half a verbatim pack is never committed. Method: as a collision by another process."""
    chunks = extents(store, file.read_bytes())
    pack = store.put_verbatim(file, chunks)
    with as_another_process(store):
        (mine,) = put_pinned(store, [noise("other")])
    pending = store._pending
    row = pending.rows.pop(chunks[0][1].chunk_id)
    pending.rows[mine] = row  # an id that names other bytes by now
    pending.verbatim[pack].chunk_ids[0] = mine
    with pytest.raises(MissingRecordError), store.transaction() as txn:
        txn.pin(VIEW, chunks[1][1].chunk_id)
    assert file.stat().st_nlink == 1
    assert not any(store.has(chunk_id) for chunk_id in ids_of(chunks))
    assert store.get(mine, CHUNK) == noise("other")
    again = put_pinned(store, [file.read_bytes()[:1000]])
    assert store.get(again[0], RecordKind.CHUNK) == file.read_bytes()[:1000]
