"""The mechanism of giving space back: dead processes' pins, dead records, free ranges, empty packs.

Policy and progress are ``maintenance/gc.py``'s. Every step is one short transaction or can be
repeated after a crash. Source: docs/format.md, "Giving space back".
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.format.keys import (
    META_MAKING,
    META_OPEN,
    META_PUNCH,
    PackRow,
    decode_free,
    decode_location,
    decode_pack_key,
    decode_pack_row,
    encode_pack_key,
    encode_pack_row,
    pack_free_key,
    pack_free_row,
    split_pin_key,
)
from dedupfs.format.pack import HEADER_BYTES, check_seed, encode_free_header
from dedupfs.format.tree import references
from dedupfs.model import ID_BYTES, PackKind, RecordId, RecordKind
from dedupfs.store.commit import add_free
from dedupfs.store.db import ReadTxn, Table
from dedupfs.store.disk import File
from dedupfs.store.owner import OWNER_PREFIX, exclusive, is_dead
from dedupfs.store.store import Store
from dedupfs.store.transaction import Transaction
from dedupfs.store.whole import is_held

log = logging.getLogger(__name__)

PUNCH_ALIGN_BYTES = 4096
"""What is punched begins and ends at multiples of it, so that no part of a block is zeroed."""
_BEHIND_IDS = b"\xff" * (ID_BYTES + 1)


@dataclass(frozen=True, slots=True)
class Freed:
    """What one step of ``free_dead`` did; ``more``: there is something left to free.

    ``stored_bytes`` counts what the records took in packs, headers included.
    """

    records: int
    stored_bytes: int
    more: bool


# --- processes that have ended ---------------------------------------------------------------


def release_dead_owners(store: Store) -> int:
    """Drop the pins of processes that have ended, and what they left half made.

    Returns:
        How many ended processes were found.
    """
    with store.reading() as txn:
        owners = set(pin_owners(txn))
        making = {
            decode_pack_key(key[len(META_MAKING) :]): owner
            for key, owner in txn.scan(Table.META, prefix=META_MAKING)
        }
    locks = store.disk.listdir(store.layout.run)
    owners |= {name for name in map(store.layout.owner_of_lock, locks) if name is not None}
    owners |= {owner for owner in making.values() if owner}
    dead = {owner for owner in owners if is_dead(store.layout, store.disk, owner)}
    abandoned = [pack for pack, owner in making.items() if not owner or owner in dead]
    for pack in abandoned:
        _remove_files(store, pack)
    if dead or abandoned:
        with store.transaction() as changes:
            for owner in dead:
                changes.release_pins(owner)
            for pack in abandoned:
                changes.delete(Table.META, META_MAKING + encode_pack_key(pack))
    return len(dead)


def drop_half_made(store: Store) -> None:
    """Drop what the process left half made as which this one goes on (``Store.adopt_owner``)."""
    with store.reading() as txn:
        packs = [
            decode_pack_key(key[len(META_MAKING) :])
            for key, owner in txn.scan(Table.META, prefix=META_MAKING)
            if owner == store.owner
        ]
    for pack in packs:
        _remove_files(store, pack)
    if packs:
        with store.transaction() as changes:
            for pack in packs:
                changes.delete(Table.META, META_MAKING + encode_pack_key(pack))


def pin_owners(txn: ReadTxn) -> Iterator[bytes]:
    """Yield each process that has pins, skipping over its pins."""
    start = OWNER_PREFIX
    while True:
        first = next(txn.scan(Table.PINS, prefix=OWNER_PREFIX, start=start), None)
        if first is None:
            return
        owner, _ = split_pin_key(first[0])
        yield owner
        start = owner + _BEHIND_IDS


# --- dead records ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Dead:
    record_id: RecordId
    row: bytes
    references: list[RecordId]


def free_dead(store: Store, limit: int) -> Freed:
    """Free up to ``limit`` records that nothing refers to, in one short transaction.

    What they refer to may die by that and is freed by a later call; what of it is lost already has
    no count that could fall. A record that cannot be read stays: what it refers to is not known.
    """
    candidates, skipped = _read_candidates(store, limit)
    freed: Counter[int] = Counter()
    dropped: Counter[RecordId] = Counter()
    with store.transaction() as txn:
        records = 0
        for dead in candidates:
            row = txn.get(Table.RECORDS, dead.record_id)
            if row is None or decode_location(row)[1]:
                txn.delete(Table.DEAD, dead.record_id)
            elif row == dead.row:
                _free(txn, dead, freed)
                dropped.update(dead.references)
                records += 1
        for record_id, count in dropped.items():
            if txn.get(Table.RECORDS, record_id) is not None:
                txn.drop_reference(record_id, count)
        for pack, stored_bytes in freed.items():
            _take_live(txn, pack, stored_bytes)
    with store.reading() as after:
        more = any(key not in skipped for key, _ in after.scan(Table.DEAD))
    return Freed(records, sum(freed.values()), more)


def _read_candidates(store: Store, limit: int) -> tuple[list[_Dead], set[bytes]]:
    """Read dead records outside of any write transaction; also return the unreadable ones."""
    candidates: list[_Dead] = []
    skipped: set[bytes] = set()
    with store.reading() as txn:
        for key, _ in txn.scan(Table.DEAD):
            if len(candidates) >= limit:
                break
            record_id = RecordId(key)
            row = txn.get(Table.RECORDS, record_id)
            try:
                found = _references(store, record_id, row) if row is not None else []
            except MissingRecordError:
                continue
            except StoreError as exc:
                log.error("dead record kept id=%s: %s", record_id.hex(), exc)
                skipped.add(key)
                continue
            candidates.append(_Dead(record_id, row or b"", found))
    return candidates, skipped


def _references(store: Store, record_id: RecordId, row: bytes) -> list[RecordId]:
    kind = decode_location(row)[0].kind
    return [] if kind == RecordKind.CHUNK else references(kind, store.get(record_id, kind))


def _free(txn: Transaction, dead: _Dead, freed: Counter[int]) -> None:
    location, _ = decode_location(dead.row)
    found = txn.get(Table.PACKS, encode_pack_key(location.pack))
    verbatim = found is not None and decode_pack_row(found).kind == PackKind.VERBATIM
    start = location.pack_offset - (0 if verbatim else HEADER_BYTES)
    stop = location.pack_offset + location.stored_bytes
    add_free(txn, location.pack, start, stop)
    freed[location.pack] += stop - start
    txn.delete(Table.RECORDS, dead.record_id)
    txn.delete(Table.DEAD, dead.record_id)


def _take_live(txn: Transaction, pack: int, stored_bytes: int) -> None:
    key = encode_pack_key(pack)
    found = txn.get(Table.PACKS, key)
    if found is not None:
        row = decode_pack_row(found)
        if stored_bytes > row.live_bytes:  # it would be taken for empty too early, and removed
            raise CorruptError(
                f"pack {pack}: {row.live_bytes} live bytes, {stored_bytes} to free; "
                "run dedupfs check"
            )
        live = row.live_bytes - stored_bytes
        txn.put(Table.PACKS, key, encode_pack_row(replace(row, live_bytes=live)))


# --- free ranges -----------------------------------------------------------------------------

_Range = tuple[int, int, int]


def punch(store: Store, limit: int, *, wait: bool = True) -> int:
    """Give the blocks of up to ``limit`` free ranges back, and remove packs that are wholly free.

    In record packs a free header is written over a range's start first, so that a scan can step
    over it. A verbatim pack that has names outside of the store (checked out as hard links), or
    whose chunk table is pinned (``whole.is_held``), is left alone. Where the file system has no
    holes, only whole packs come back. Without ``wait`` nothing is done while another process
    punches.

    Returns:
        How many ranges and packs were dealt with; 0 when there is nothing left to do.
    """
    with exclusive(store.layout, store.disk, "punch", wait=wait) as mine:
        if not mine:
            return 0
        done: list[_Range] = []
        for pack, ranges in groupby(_unpunched(store), key=lambda place: place[0]):
            batch = list(islice(ranges, limit - len(done)))
            done += _punch_pack(store, pack, batch)
            if len(done) >= limit:
                break
        if done:
            with store.transaction() as txn:
                for place in done:
                    _mark_punched(txn, place)
        removed = 0
        if len(done) < limit:
            removed = sum(_remove_pack(store, pack) for pack in _empty_packs(store))
        return len(done) + removed


def _unpunched(store: Store) -> Iterator[_Range]:
    with store.reading() as txn:
        for key, _ in txn.scan(Table.META, prefix=META_PUNCH):
            free_key = key[len(META_PUNCH) :]
            row = txn.get(Table.FREE, free_key)
            if row is not None:
                pack, start, stop, _punched = decode_free(free_key, row)
                yield pack, start, stop


def _punch_pack(store: Store, pack: int, ranges: list[_Range]) -> list[_Range]:
    """Punch ranges of one pack; return those that are dealt with."""
    with store.reading() as txn:
        found = txn.get(Table.PACKS, encode_pack_key(pack))
        row = decode_pack_row(found) if found is not None else None
        if row is not None and is_held(txn, row):
            return []  # for the day when nobody needs it whole any more
    if row is None or not row.live_bytes:  # goes as a whole, unless somebody appends to it
        return ranges if row is None or row.sealed else _punch_open(store, pack, row, ranges)
    return _punch_open(store, pack, row, ranges)


def _punch_open(store: Store, pack: int, row: PackRow, ranges: list[_Range]) -> list[_Range]:
    path = store.layout.pack(pack, row.kind)
    verbatim = row.kind == PackKind.VERBATIM
    if verbatim and store.disk.link_count(path) > 1:
        return []
    try:
        with _writable(store, pack, row) as file:
            if not verbatim:
                _write_free_headers(store, file, ranges)
            for _pack, start, stop in ranges:
                _punch_blocks(store, file, start if verbatim else start + HEADER_BYTES, stop)
    except StoreError as exc:
        log.error("pack not punched pack=%d: %s", pack, exc)
        return []
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


def _empty_packs(store: Store) -> list[int]:
    with store.reading() as txn:
        return [
            decode_pack_key(key)
            for key, value in txn.scan(Table.PACKS)
            if _is_empty(decode_pack_row(value)) and not is_held(txn, decode_pack_row(value))
        ]


def _is_empty(row: PackRow) -> bool:
    return not row.live_bytes and (row.sealed or row.committed_bytes > 0)


def _remove_pack(store: Store, pack: int) -> bool:
    """Remove a pack without live records, unless a process appends to it."""
    key = encode_pack_key(pack)
    with store.reading() as txn:
        found = txn.get(Table.PACKS, key)
    if found is None:
        return False
    file = None
    if not decode_pack_row(found).sealed:
        try:
            file = store.disk.open(store.layout.pack(pack, PackKind.RECORDS), write=True)
        except FileNotFoundError:
            return False
        if not store.disk.lock(file):
            return False
    with store.transaction() as changes:
        if changes.get(Table.PACKS, key) != found or is_held(changes, decode_pack_row(found)):
            return False
        _forget_pack(changes, pack)
    _remove_files(store, pack)
    with store.transaction() as changes:
        changes.delete(Table.META, META_MAKING + key)
    if file is not None:
        file.close()
    log.info("pack removed pack=%d", pack)
    return True


def _forget_pack(txn: Transaction, pack: int) -> None:
    """Drop all rows of an empty pack; a row of META says that its file is still to go."""
    key = encode_pack_key(pack)
    found = txn.get(Table.PACKS, key)
    table = decode_pack_row(found).chunk_table if found is not None else None
    txn.delete(Table.PACKS, key)
    txn.delete(Table.META, META_OPEN + key)
    for free_key, _ in txn.scan(Table.FREE, prefix=key):
        txn.delete(Table.FREE, free_key)
        txn.delete(Table.META, META_PUNCH + free_key)
    txn.put(Table.META, META_MAKING + key, b"")
    if table is not None:
        txn.drop_reference(table)


def _remove_files(store: Store, pack: int) -> None:
    """Remove a pack's file; its blocks come back even while another process has it open."""
    store.reader.forget_pack(pack)
    for kind in PackKind:
        path = store.layout.pack(pack, kind)
        if store.disk.link_count(path) == 1:
            store.disk.chmod(path, 0o600)
            file = store.disk.open(path, write=True)
            store.disk.truncate(file, 0)
            file.close()
        store.disk.unlink(path)
