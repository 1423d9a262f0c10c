"""Verbatim packs that are kept whole, so that links from outside of the store can point at them.

A pack is *held* while anybody has its chunk table pinned: then nothing is punched in it, whether
or not a chunk covers it, it is not removed and not compacted. So whoever needs a pack as a file
pins first and looks then: what ``is_whole`` finds after the pin is committed stays so.

Knows packs and chunks, no names and no checkouts. Source: docs/format.md, "Packs that are kept
whole".
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from dedupfs.format.keys import (
    PackRow,
    decode_pack_row,
    decode_references,
    encode_pack_key,
    unpack_record_row,
)
from dedupfs.model import HOLE, Codec, Extent, PackKind, RecordId, RecordKind
from dedupfs.recipe import Piece, Recipe
from dedupfs.store.db import ReadTxn, Table
from dedupfs.store.disk import File
from dedupfs.store.owner import exclusive
from dedupfs.store.store import Store
from dedupfs.store.transaction import Transaction

_READ_BYTES = 4 << 20
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Run:
    """File bytes ``[start, stop)`` that lie in one pack as they are, from ``pack_start`` on."""

    start: int
    stop: int
    pack: int
    pack_start: int


# --- holding ---------------------------------------------------------------------------------


def is_held(txn: ReadTxn, row: PackRow) -> bool:
    """Whether somebody needs a verbatim pack whole: its chunk table is pinned.

    Nothing refers to a chunk table but its pack's row and pins. Ask in the transaction (or in one
    that began earlier) that tells what is to be given back.
    """
    if row.chunk_table is None:
        return False
    found = txn.get(Table.RECORDS, row.chunk_table)
    return found is None or decode_references(found) > 1  # one that is lost tells nothing


def hold(store: Store, txn: Transaction, owner: bytes, pack: int) -> None:
    """Keep a verbatim pack whole for ``owner``, at most once; the pack may be pending.

    Raises:
        MissingRecordError: there is no such pack (any more).
    """
    table_id = store.chunk_table_of(txn, pack)
    if txn.get(Table.PINS, owner + table_id) is None:
        txn.pin(owner, table_id)


def wait_for_punches(store: Store) -> None:
    """Wait until whoever punches or compacts with what it knew before now has ended that step."""
    with exclusive(store.layout, store.disk, "punch"):
        pass


# --- looking ---------------------------------------------------------------------------------


def candidate_pack(store: Store, recipe: Recipe) -> int | None:
    """Return the pack that may hold a file whole: the one where its first chunk lies in place.

    It has to be held before ``is_whole`` can tell.
    """
    first = next(first_places(recipe), None)
    if first is None:
        return None
    file_offset, extent = first
    row = store.rows([extent.chunk_id])[0]
    place = _raw_place(row) if row is not None else None
    if place is None or place[1] != file_offset:
        return None
    with store.reading() as txn:
        found = txn.get(Table.PACKS, encode_pack_key(place[0]))
    if found is None:
        return None
    pack = decode_pack_row(found)
    is_candidate = pack.kind is PackKind.VERBATIM and pack.committed_bytes == recipe.size
    return place[0] if is_candidate else None


def is_whole(store: Store, recipe: Recipe, pack: int) -> bool:
    """Whether a held pack's file is this file, byte by byte.

    A chunk whose row points there is not read: bytes that have rotted are scrub's to find. Others
    are compared, and holes must be zeros.
    """
    file = store.reader.open_pack(pack)
    if store.disk.size(file) != recipe.size:
        return False
    waited = False
    file_offset = 0
    for extents in _batches(recipe):
        rows = store.rows([extent.chunk_id for extent in extents])
        for extent, row in zip(extents, rows, strict=True):
            start, file_offset = file_offset, file_offset + extent.length
            if row is not None and _raw_place(row) == (pack, start):
                continue
            if extent.chunk_id == HOLE:
                if not _is_zero(store, file, start, file_offset):
                    return False
                continue
            if not waited:  # who punches may have looked before the pack was held
                wait_for_punches(store)
                waited = True
            if not _is_equal(store, file, start, extent):
                return False
    return True


def raw_runs(store: Store, recipe: Recipe) -> list[Run]:
    """Return what of a file lies uncompressed in packs, neighbours as one run.

    That is as of now. Who has used the bytes looks again: when the answer is the same, nobody
    had given them back.
    """
    runs: list[Run] = []
    file_offset = 0
    for extents in _batches(recipe):
        rows = store.rows([extent.chunk_id for extent in extents])
        for extent, row in zip(extents, rows, strict=True):
            start, file_offset = file_offset, file_offset + extent.length
            place = _raw_place(row) if row is not None else None
            if place is None:
                continue
            last = runs[-1] if runs else None
            pack_stop = last.pack_start + last.stop - last.start if last is not None else 0
            if last is not None and last.stop == start and place == (last.pack, pack_stop):
                runs[-1] = dataclasses.replace(last, stop=file_offset)
            else:
                runs.append(Run(start, file_offset, *place))
    return runs


def block_part(run: Run, file_bytes: int, block_bytes: int = _BLOCK_BYTES) -> Run | None:
    """Return the part of a run that two files can share: whole blocks, alike in both files.

    The last block of both files may be a part of one.
    """
    if (run.start - run.pack_start) % block_bytes:
        return None
    start = -(-run.start // block_bytes) * block_bytes
    stop = run.stop // block_bytes * block_bytes
    if run.stop == file_bytes and run.start == run.pack_start:
        stop = run.stop  # right only if the pack ends there, too; the kernel refuses it otherwise
    if start >= stop:
        return None
    return Run(start, stop, run.pack, run.pack_start + start - run.start)


def _raw_place(row: bytes) -> tuple[int, int] | None:
    """Return pack and offset of a chunk that lies uncompressed, from its row."""
    kind, codec, _salt, pack, offset, _stored, _logical, _refs = unpack_record_row(row)
    return (pack, offset) if kind == RecordKind.CHUNK and codec == Codec.RAW else None


def _batches(recipe: Recipe) -> Iterator[list[Extent]]:
    for first in range(0, len(recipe), 1000):
        yield list(recipe.slice(first, min(len(recipe), first + 1000)))


def first_places(recipe: Recipe) -> Iterator[tuple[int, Extent]]:
    """Yield the first place of each chunk in its file."""
    seen: set[RecordId] = set()
    file_offset = 0
    for extent in recipe:
        if extent.chunk_id != HOLE and extent.chunk_id not in seen:
            seen.add(extent.chunk_id)
            yield file_offset, extent
        file_offset += extent.length


def _is_zero(store: Store, file: File, start: int, stop: int) -> bool:
    while start < stop:
        data_start = store.disk.next_data(file, start)
        if data_start is None or data_start >= stop:
            return True
        part_stop = min(stop, max(start, data_start) + _READ_BYTES)
        data = store.disk.pread(file, part_stop - data_start, data_start)
        if data.count(0) != part_stop - data_start:
            return False
        start = part_stop
    return True


def _is_equal(store: Store, file: File, start: int, extent: Extent) -> bool:
    if not store.disk.is_solid(file, start, start + extent.length):
        return False
    wanted = store.read([Piece(extent.chunk_id, 0, extent.length, start)])
    return store.disk.pread(file, extent.length, start) == wanted
