"""The mechanism of giving space back, second half: free ranges become holes, empty packs go.

One process at a time does this (``PUNCH_LOCK``). Every step is one short transaction or can be
repeated after a crash. Source: docs/format.md, "Giving space back".
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import (
    META_EMPTY,
    META_MAKING,
    META_OPEN,
    META_PUNCH,
    PACK_KEY_MAX,
    PackRow,
    decode_free,
    decode_pack_key,
    decode_pack_row,
    encode_pack_key,
    pack_free_key,
    pack_free_row,
)
from dedupfs.format.pack import HEADER_BYTES, check_seed, encode_free_header
from dedupfs.model import PackKind
from dedupfs.store.db import ReadTxn, Table
from dedupfs.store.disk import File
from dedupfs.store.owner import close_lock, exclusive, open_lock
from dedupfs.store.pace import Steps, run_steps
from dedupfs.store.store import Store
from dedupfs.store.transaction import Transaction
from dedupfs.store.whole import is_held

log = logging.getLogger(__name__)

PUNCH_LOCK = "punch"
"""The lock of who punches: while it is held, no byte of a committed record goes."""

PUNCH_ALIGN_BYTES = 4096
"""What is punched begins and ends at multiples of it, so that no part of a block is zeroed."""
_FAR_BYTES = 1 << 30
_PACK_BYTES = len(encode_pack_key(0))
_Range = tuple[int, int, int]


@dataclass(slots=True)
class Gained:
    """What came back, summed up over several calls.

    ``range_bytes``: of free ranges that were dealt with; ``disk_bytes``: how many fewer the file
    system counts for the files.
    """

    range_bytes: int = 0
    disk_bytes: int = 0
    packs: int = 0


def punch(
    store: Store,
    limit: int,
    *,
    wait: bool = True,
    every_pack: bool = True,
    gained: Gained | None = None,
) -> int:
    """Do all of ``punching`` here and now."""
    steps = punching(store, limit, wait=wait, every_pack=every_pack, gained=gained)
    return run_steps(steps)


def punching(
    store: Store,
    limit: int,
    *,
    wait: bool = True,
    every_pack: bool = True,
    gained: Gained | None = None,
) -> Steps[int]:
    """Give the blocks of up to ``limit`` free ranges back, and remove packs that are wholly free.

    In record packs a free header is written over a range's start first, so that a scan can step
    over it. A verbatim pack that has names outside of the store (checked out as hard links) is
    left alone, and so is one whose chunk table is pinned (``whole.is_held``). Where the file system
    has no holes, only whole packs come back. Without ``wait`` nothing is done while another process
    punches. Without ``every_pack`` only packs that are listed
    as empty are looked at, which all are but those that older versions or repairs emptied.

    Returns:
        How many ranges and packs were dealt with; 0 when there is nothing left to do.
    """
    gained = gained if gained is not None else Gained()
    with exclusive(store.layout, store.disk, PUNCH_LOCK, wait=wait) as mine:
        if not mine:
            return 0
        done: list[_Range] = []
        yield lambda: _punch_ranges(store, limit, done, gained)
        if done:
            with store.transaction() as txn:
                for place in done:
                    _mark_punched(txn, place)
        removed = 0
        if len(done) < limit:
            for pack in _empty_packs(store, every_pack=every_pack):
                removed += yield from removing(store, pack, gained)
        return len(done) + removed


def has_holes(store: Store) -> bool:
    """Whether the store's file system can punch holes; changes nothing.

    Asked for a hole far behind the end of a file, one that can does nothing.
    """
    file = store.disk.open(store.db.data_path, write=True)
    try:
        start = -(-store.disk.size(file) // PUNCH_ALIGN_BYTES) * PUNCH_ALIGN_BYTES + _FAR_BYTES
        return store.disk.punch(file, start, start + PUNCH_ALIGN_BYTES)
    finally:
        file.close()


# --- free ranges -----------------------------------------------------------------------------


def _punch_ranges(store: Store, limit: int, done: list[_Range], gained: Gained) -> None:
    with store.reading() as txn:
        listed = list(unpunched_packs(txn))
    for pack in listed:
        if len(done) >= limit:
            return
        done += _punch_pack(store, pack, limit - len(done), gained)


def unpunched_packs(txn: ReadTxn) -> Iterator[int]:
    """Yield the packs that have ranges to punch, skipping over the ranges."""
    pack = 0
    while pack <= PACK_KEY_MAX:
        start = META_PUNCH + encode_pack_key(pack)
        found = next(txn.scan(Table.META, prefix=META_PUNCH, start=start), None)
        if found is None:
            return
        pack = decode_pack_key(found[0][len(META_PUNCH) :][:_PACK_BYTES])
        yield pack
        pack += 1


def _unpunched(txn: ReadTxn, pack: int) -> Iterator[_Range]:
    for key, _ in txn.scan(Table.META, prefix=META_PUNCH + encode_pack_key(pack)):
        free_key = key[len(META_PUNCH) :]
        row = txn.get(Table.FREE, free_key)
        if row is not None:
            _pack, start, stop, _punched = decode_free(free_key, row)
            yield pack, start, stop


def _punch_pack(store: Store, pack: int, limit: int, gained: Gained) -> list[_Range]:
    """Punch ranges of one pack; return those that are dealt with."""
    with store.reading() as txn:
        found = txn.get(Table.PACKS, encode_pack_key(pack))
        row = decode_pack_row(found) if found is not None else None
        if row is not None and is_needed_whole(store, txn, pack, row):
            return []  # for the day when nobody needs it whole any more
        ranges = list(islice(_unpunched(txn, pack), limit))
    if row is None:
        return ranges  # it went as a whole
    if not row.live_bytes and row.sealed:
        return []  # it will: until then a scan finds what was there, and gc must know that
    return _punch_file(store, pack, row, ranges, gained)


def is_needed_whole(store: Store, txn: ReadTxn, pack: int, row: PackRow) -> bool:
    """Whether somebody may use a pack's file itself: by a name of its own, or by a link."""
    if row.kind is not PackKind.VERBATIM:
        return False
    return is_held(txn, row) or store.disk.link_count(store.layout.pack(pack, row.kind)) > 1


def _punch_file(
    store: Store, pack: int, row: PackRow, ranges: list[_Range], gained: Gained
) -> list[_Range]:
    path = store.layout.pack(pack, row.kind)
    verbatim = row.kind == PackKind.VERBATIM
    before = store.disk.disk_bytes(path)
    try:
        with _writable(store, pack, row) as file:
            if not verbatim:
                _write_free_headers(store, file, ranges)
            for _pack, start, stop in ranges:
                _punch_blocks(store, file, start if verbatim else start + HEADER_BYTES, stop)
    except StoreError as exc:
        log.error("pack not punched pack=%d: %s", pack, exc)
        return []
    gained.range_bytes += sum(stop - start for _pack, start, stop in ranges)
    gained.disk_bytes += before - store.disk.disk_bytes(path)
    return ranges


@contextmanager
def _writable(store: Store, pack: int, row: PackRow) -> Iterator[File]:
    """Open a pack for writing, though sealed packs are read-only to their owner too."""
    path = store.layout.pack(pack, row.kind)
    if row.sealed:
        store.disk.chmod(path, 0o600)
    try:
        file = store.disk.open(path, write=True)
    except FileNotFoundError as exc:
        raise CorruptError(f"{path} is missing") from exc
    finally:
        if row.sealed and store.disk.link_count(path):
            store.disk.chmod(path, 0o400)
    try:
        yield file
    finally:
        file.close()


def _write_free_headers(store: Store, file: File, ranges: list[_Range]) -> None:
    for pack, start, stop in ranges:
        seed = check_seed(store.config.hash_seed, pack, start)
        store.disk.pwrite(file, [encode_free_header(stop - start - HEADER_BYTES, seed)], start)
    store.disk.fdatasync(file)  # before any hole: a scan must never find zeros without a header


def _punch_blocks(store: Store, file: File, start: int, stop: int) -> None:
    first = -(-start // PUNCH_ALIGN_BYTES) * PUNCH_ALIGN_BYTES
    last = stop // PUNCH_ALIGN_BYTES * PUNCH_ALIGN_BYTES
    if first < last and not store.disk.punch(file, first, last) and store.punches:
        store.punches = False
        log.info("file system without holes: space comes back by whole packs path=%s", file.path)


def _mark_punched(txn: Transaction, place: _Range) -> None:
    """Mark a range, unless it has grown (or gone with its pack) meanwhile."""
    pack, start, stop = place
    key = pack_free_key(pack, start)
    row = txn.get(Table.FREE, key)
    if row is None or decode_free(key, row)[2] == stop:
        txn.delete(Table.META, META_PUNCH + key)
    if row is not None and decode_free(key, row)[2] == stop:
        txn.put(Table.FREE, key, pack_free_row(stop - start, 1))


# --- empty packs -----------------------------------------------------------------------------


def _empty_packs(store: Store, *, every_pack: bool) -> list[int]:
    with store.reading() as txn:
        if every_pack:
            return [
                decode_pack_key(key)
                for key, value in txn.scan(Table.PACKS)
                if _is_empty(decode_pack_row(value)) and not is_held(txn, decode_pack_row(value))
            ]
        listed = [key[len(META_EMPTY) :] for key, _ in txn.scan(Table.META, prefix=META_EMPTY)]
        rows = txn.get_many(Table.PACKS, listed)
    return [
        decode_pack_key(key)
        for key, value in zip(listed, rows, strict=True)
        if value is not None and _is_empty(decode_pack_row(value))
    ]


def _is_empty(row: PackRow) -> bool:
    return not row.live_bytes and (row.sealed or row.committed_bytes > 0)


def removing(store: Store, pack: int, gained: Gained) -> Steps[bool]:
    """Remove a pack without live records, unless a process appends to it; under the lock."""
    key = encode_pack_key(pack)
    with store.reading() as txn:
        found = txn.get(Table.PACKS, key)
    if found is None or not _is_empty(decode_pack_row(found)):
        return False
    row = decode_pack_row(found)
    file = None
    if not row.sealed:
        try:
            path = store.layout.pack(pack, PackKind.RECORDS)
            file = open_lock(store.disk, path, write=True)
        except FileNotFoundError:
            return False
    try:
        if file is not None and not store.disk.lock(file):
            return False
        with store.transaction() as changes:
            if changes.get(Table.PACKS, key) != found or is_held(changes, row):
                return False
            free_bytes = _forget_pack(changes, pack)
        gone: list[int] = []
        yield lambda: gone.append(remove_files(store, pack))
        with store.transaction() as changes:
            changes.delete(Table.META, META_MAKING + key)
    finally:
        if file is not None:
            close_lock(file)
    gained.range_bytes += free_bytes
    gained.disk_bytes += sum(gone)
    gained.packs += 1
    log.info("pack removed pack=%d", pack)
    return True


def _forget_pack(txn: Transaction, pack: int) -> int:
    """Drop all rows of an empty pack; a row of META says that its file is still to go.

    Returns:
        The bytes of its free ranges that had not been punched.
    """
    key = encode_pack_key(pack)
    found = txn.get(Table.PACKS, key)
    table = decode_pack_row(found).chunk_table if found is not None else None
    txn.delete(Table.PACKS, key)
    txn.delete(Table.META, META_OPEN + key)
    txn.delete(Table.META, META_EMPTY + key)
    free_bytes = 0
    for free_key, row in txn.scan(Table.FREE, prefix=key):
        _pack, start, stop, punched = decode_free(free_key, row)
        free_bytes += 0 if punched else stop - start
        txn.delete(Table.FREE, free_key)
        txn.delete(Table.META, META_PUNCH + free_key)
    txn.put(Table.META, META_MAKING + key, b"")
    if table is not None:
        txn.drop_reference(table)
    return free_bytes


def remove_files(store: Store, pack: int) -> int:
    """Remove a pack's file, durably; its blocks come back even while another process has it open.

    Whatever the index says after this may be lost with it in a power cut: a file that were back
    then would show a scan what nothing outdates any more.

    Returns:
        How many bytes of disk that gives back: none while the file has other names.
    """
    store.reader.forget_pack(pack)
    disk_bytes = 0
    for kind in PackKind:
        path = store.layout.pack(pack, kind)
        if store.disk.link_count(path) == 1:
            disk_bytes += store.disk.disk_bytes(path)
            store.disk.chmod(path, 0o600)
            file = store.disk.open(path, write=True)
            store.disk.truncate(file, 0)
            file.close()
        store.disk.unlink(path)
    if store.disk.link_count(path.parent):
        store.disk.fsync_dir(path.parent)
    return disk_bytes
