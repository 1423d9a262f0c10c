"""Making a verbatim pack of a file that lies in no one pack: its chunks move there.

The file's bytes are written once more (or shared with the packs that have them, where the file
system can), and the chunks that lie elsewhere get their place in the new pack, so that their old
places become free. Chunks of packs that are held themselves (``whole.is_held``) stay where they
are; both files keep the bytes then. Source: docs/format.md, "Packs that are kept whole".
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import (
    META_PUNCH,
    PackRow,
    decode_free,
    decode_location,
    decode_pack_row,
    encode_location,
    encode_pack_key,
    encode_pack_row,
    pack_free_key,
)
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.model import HOLE, Codec, Extent, Location, PackKind, RecordKind
from dedupfs.recipe import Piece, Recipe
from dedupfs.store.commit import add_free
from dedupfs.store.db import Table
from dedupfs.store.disk import File
from dedupfs.store.owner import close_lock, open_lock, same_file
from dedupfs.store.store import Store
from dedupfs.store.transaction import Transaction
from dedupfs.store.whole import Run, block_part, first_places, hold, is_held, raw_runs

log = logging.getLogger(__name__)

MOVE_LIMIT = 500
"""Chunks that move in one transaction: other writers wait for a few milliseconds."""
_COPY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Assembled:
    """A pack that was made of a file. ``left_bytes``: of chunks that stayed in packs held whole."""

    pack: int
    moved_bytes: int
    left_bytes: int


def assemble(store: Store, recipe: Recipe, owner: bytes) -> Assembled:
    """Make a verbatim pack of a whole file, held for ``owner``, and move its chunks there.

    The file's chunks must be held by a reference that stays meanwhile.

    Raises:
        CorruptError: a chunk is damaged. StoreFullError: the disk is full; nothing has changed.
    """
    chunks = list(first_places(recipe))
    with _scratch_file(store) as file:
        _fill(store, recipe, file)
        pack = store.put_verbatim(file.path, (), known=chunks)
        with store.transaction() as txn:
            hold(store, txn, owner, pack)
    moved, left = take_over(store, pack, chunks)
    log.info("pack assembled pack=%d bytes=%d moved=%d", pack, recipe.size, moved)
    return Assembled(pack, moved, left)


@contextmanager
def _scratch_file(store: Store) -> Iterator[File]:
    """Give an empty file that gc removes when we die."""
    path: Path = store.layout.run / f"import-whole-{store.owner[1:].decode()}.new"
    while True:
        file = open_lock(store.disk, path, create=True)
        if store.disk.lock(file) and same_file(file, path):
            break
        close_lock(file)
    try:
        store.disk.truncate(file, 0)
        yield file
    finally:
        store.disk.unlink(path)
        close_lock(file)


def _fill(store: Store, recipe: Recipe, file: File) -> None:
    """Write a file's bytes; share them with the packs where the file system can."""
    store.disk.truncate(file, recipe.size)
    runs = raw_runs(store, recipe)
    shared = [part for run in runs if (part := _share(store, run, recipe.size, file)) is not None]
    if shared and raw_runs(store, recipe) != runs:
        shared = []  # somebody gave back what we were sharing
    position = 0
    for part in shared:
        _copy(store, recipe, file, position, part.start)
        position = part.stop
    _copy(store, recipe, file, position, recipe.size)


def _share(store: Store, run: Run, file_bytes: int, file: File) -> Run | None:
    part = block_part(run, file_bytes)
    if part is None:
        return None
    source = store.reader.open_pack(part.pack)
    stop = part.pack_start + part.stop - part.start
    done = store.disk.clone(source, part.pack_start, stop, file, part.start)
    return part if done else None


def _copy(store: Store, recipe: Recipe, file: File, start: int, stop: int) -> None:
    while start < stop:
        window_stop = min(stop, start + _COPY_BYTES)
        run: list[Piece] = []
        for piece in [*recipe.cut(start, window_stop), Piece(HOLE, 0, 0, window_stop)]:
            if piece.chunk_id != HOLE:
                run.append(piece)
            elif run:
                store.disk.pwrite(file, [store.read(run)], run[0].file_offset)
                run = []
        start = window_stop


def take_over(store: Store, pack: int, chunks: Sequence[tuple[int, Extent]]) -> tuple[int, int]:
    """Make a pack the place of chunks whose bytes it holds, at these file offsets.

    The pack is held, and its chunk table lists them (``Store.put_verbatim(known=...)``). Their old
    places become free. Chunks in other packs that are held stay there.

    Returns:
        Bytes of chunks that have moved, and of those that could not.
    """
    moved = left = 0
    for first in range(0, len(chunks), MOVE_LIMIT):
        with store.transaction() as txn:
            move = _Move(txn, pack)
            for file_offset, extent in chunks[first : first + MOVE_LIMIT]:
                move.take(file_offset, extent)
            move.finish()
        moved += move.moved_bytes
        left += move.left_bytes
    return moved, left


class _Move:
    """The rows of one transaction that moves chunks into a pack."""

    def __init__(self, txn: Transaction, pack: int) -> None:
        self._txn = txn
        self._pack = pack
        self._packs: dict[int, tuple[PackRow, bool]] = {}
        self._live: Counter[int] = Counter()
        self.moved_bytes = 0
        self.left_bytes = 0

    def take(self, file_offset: int, extent: Extent) -> None:
        """Move one chunk, unless a pack that is held has it."""
        row = self._txn.get(Table.RECORDS, extent.chunk_id)
        if row is None:
            return
        old, references = decode_location(row)
        if old.pack == self._pack or old.logical_bytes != extent.length:
            return
        old_row, is_kept = self._look_up(old.pack)
        if is_kept:
            self.left_bytes += extent.length
            return
        head = HEADER_BYTES if old_row.kind is PackKind.RECORDS else 0
        start, stop = old.pack_offset - head, old.pack_offset + old.stored_bytes
        add_free(self._txn, old.pack, start, stop)
        self._live[old.pack] -= stop - start
        length = extent.length
        new = Location(
            RecordKind.CHUNK, Codec.RAW, old.salt, self._pack, file_offset, length, length
        )
        _take_from_free(self._txn, self._pack, file_offset, file_offset + length)
        self._live[self._pack] += length
        self._txn.put(Table.RECORDS, extent.chunk_id, encode_location(new, references))
        self.moved_bytes += length

    def _look_up(self, pack: int) -> tuple[PackRow, bool]:
        known = self._packs.get(pack)
        if known is None:
            stored = self._txn.get(Table.PACKS, encode_pack_key(pack))
            if stored is None:
                raise CorruptError(f"pack {pack} has no row; run dedupfs check")
            row = decode_pack_row(stored)
            known = self._packs[pack] = row, is_held(self._txn, row)
        return known

    def finish(self) -> None:
        """Write how many bytes are live in each pack by now."""
        for pack, delta in self._live.items():
            row, _ = self._look_up(pack)
            live = row.live_bytes + delta
            if live < 0:
                raise CorruptError(f"pack {pack} has too few live bytes; run dedupfs check")
            changed = dataclasses.replace(row, live_bytes=live)
            self._txn.put(Table.PACKS, encode_pack_key(pack), encode_pack_row(changed))


def _take_from_free(txn: Transaction, pack: int, start: int, stop: int) -> None:
    """Cut a range out of the free one that covers it."""
    found = txn.before(Table.FREE, pack_free_key(pack, start + 1))
    if found is None:
        raise StoreError(f"pack {pack} at {start} is not free")
    other, free_start, free_stop, _punched = decode_free(*found)
    if other != pack or free_start > start or free_stop < stop:
        raise StoreError(f"pack {pack} at {start} is not free")
    txn.delete(Table.FREE, found[0])
    txn.delete(Table.META, META_PUNCH + found[0])
    add_free(txn, pack, free_start, start)
    add_free(txn, pack, stop, free_stop)
