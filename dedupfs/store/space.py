"""The mechanism of giving space back, first half: dead processes' pins, dead records.

The second half is ``holes.py``, policy and progress are ``maintenance/gc.py``'s. Every step is one
short transaction or can be repeated after a crash. Source: docs/format.md, "Giving space back".
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.format.keys import (
    META_EMPTY,
    META_MAKING,
    decode_location,
    decode_pack_key,
    decode_pack_row,
    encode_pack_key,
    encode_pack_row,
    split_pin_key,
)
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.format.tree import references
from dedupfs.model import ID_BYTES, PackKind, RecordId, RecordKind
from dedupfs.store.commit import add_free
from dedupfs.store.db import ReadTxn, Table
from dedupfs.store.holes import remove_files
from dedupfs.store.owner import OWNER_PREFIX, is_dead
from dedupfs.store.pace import Steps, run_steps
from dedupfs.store.store import Store
from dedupfs.store.transaction import Transaction

log = logging.getLogger(__name__)

PINS_LIMIT = 1000
"""Pins of a dead process that one transaction drops: other writers wait meanwhile."""
LEAVES = (RecordKind.CHUNK, RecordKind.CHUNK_TABLE)
"""Kinds of records that refer to none, so that nobody needs to read one in order to free it."""
_BEHIND_IDS = b"\xff" * (ID_BYTES + 1)


@dataclass(frozen=True, slots=True)
class Freed:
    """What one step of ``free_dead`` did; ``more``: there is something left to free.

    ``stored_bytes`` counts what the records took in packs, headers included. ``held_s``: how long
    other writers could not write.
    """

    records: int
    stored_bytes: int
    more: bool
    held_s: float = field(default=0.0, compare=False)


# --- processes that have ended ---------------------------------------------------------------


def release_dead_owners(store: Store) -> int:
    """Do all of ``releasing_dead_owners`` here and now."""
    return run_steps(releasing_dead_owners(store))


def releasing_dead_owners(store: Store) -> Steps[int]:
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
        yield partial(remove_files, store, pack)
    if abandoned:
        with store.transaction() as changes:
            for pack in abandoned:
                changes.delete(Table.META, META_MAKING + encode_pack_key(pack))
    for owner in dead:
        yield from _releasing_pins(store, owner)
    return len(dead)


def _releasing_pins(store: Store, owner: bytes) -> Steps[None]:
    """Drop a dead process's pins, which may be many, bit by bit."""
    while True:
        with store.reading() as txn:
            if next(txn.scan(Table.PINS, prefix=owner), None) is None:
                return
        yield store.db.give_way
        with store.transaction() as changes:
            if not changes.release_pins(owner, PINS_LIMIT):
                return


def drop_half_made(store: Store) -> None:
    """Drop what the process left half made as which this one goes on (``Store.adopt_owner``)."""
    with store.reading() as txn:
        packs = [
            decode_pack_key(key[len(META_MAKING) :])
            for key, owner in txn.scan(Table.META, prefix=META_MAKING)
            if owner == store.owner
        ]
    for pack in packs:
        remove_files(store, pack)
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
    """Do all of ``freeing`` here and now."""
    return run_steps(freeing(store, limit))


def freeing(store: Store, limit: int, read_s: float = math.inf) -> Steps[Freed]:
    """Free up to ``limit`` records that nothing refers to, in one short transaction.

    What they refer to may die by that and is freed by a later call; what of it is lost already has
    no count that could fall. A record that cannot be read stays: what it refers to is not known.
    ``read_s``: how long to read them for, one at least.
    """
    candidates: list[_Dead] = []
    skipped: set[bytes] = set()
    yield lambda: _read_candidates(store, limit, read_s, candidates, skipped)
    freed: Counter[int] = Counter()
    dropped: Counter[RecordId] = Counter()
    records = 0
    held_s = 0.0
    if candidates:
        began_s = time.perf_counter()
        with store.transaction() as txn:
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
        held_s = time.perf_counter() - began_s
    with store.reading() as after:
        more = any(key not in skipped for key, _ in after.scan(Table.DEAD))
    return Freed(records, sum(freed.values()), more, held_s)


def _read_candidates(
    store: Store, limit: int, read_s: float, candidates: list[_Dead], skipped: set[bytes]
) -> None:
    """Read dead records outside of any write transaction; also tell the unreadable ones."""
    until_s = time.perf_counter() + read_s
    with store.reading() as txn:
        for key, _ in txn.scan(Table.DEAD):
            if len(candidates) >= limit or (candidates and time.perf_counter() >= until_s):
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


def _references(store: Store, record_id: RecordId, row: bytes) -> list[RecordId]:
    kind = decode_location(row)[0].kind
    return [] if kind in LEAVES else references(kind, store.get(record_id, kind))


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
        if not live:
            txn.put(Table.META, META_EMPTY + key, b"")
