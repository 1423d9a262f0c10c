"""The end of a transaction: pending records and reference changes become rows of the index.

Decides everything from what it reads before it writes the first row. Knows LMDB only through
``WriteTxn``, and packs only as numbers. Source: docs/format.md, "Write order".
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.format.keys import (
    META_EMPTY,
    META_MAKING,
    META_MOVED,
    META_OPEN,
    META_PUNCH,
    REFERENCES_MAX,
    PackRow,
    decode_free,
    decode_pack_row,
    decode_references,
    encode_pack_key,
    encode_pack_row,
    pack_free_key,
    pack_free_row,
    with_references,
)
from dedupfs.model import PackKind, RecordId
from dedupfs.store.db import Table, WriteTxn
from dedupfs.store.pending import Pending, VerbatimPack, place_of

SameBytes = Callable[[bytes, bytes], bool]
"""Whether the records of two rows hold equal bytes (the first pending, the second committed)."""


@dataclass(slots=True)
class PackState:
    """How far a record pack of this process reaches at this commit."""

    pack: int
    stop: int
    sealed: bool


@dataclass(slots=True)
class Plan:
    """What a commit will write.

    ``lost``: ids that do not name what the caller meant: unknown, or other bytes by now.
    """

    fresh: list[tuple[RecordId, bytes]] = field(default_factory=list)
    superseded: list[bytes] = field(default_factory=list)
    deltas: Counter[RecordId] = field(default_factory=Counter)
    rows: dict[RecordId, bytes] = field(default_factory=dict)
    lost: set[RecordId] = field(default_factory=set)


def plan_commit(
    txn: WriteTxn, pending: Pending, changes: Counter[RecordId], same_bytes: SameBytes
) -> Plan:
    """Compare what is pending with the index, and sum up all reference changes. Writes nothing."""
    plan = Plan(deltas=Counter(changes))
    ids = sorted(pending.rows)
    for record_id, stored in zip(ids, txn.get_many(Table.RECORDS, ids), strict=True):
        row = pending.rows[record_id]
        if stored is None:
            plan.fresh.append((record_id, row))
            if record_id in pending.references:
                plan.deltas.update(pending.references[record_id])
        elif same_bytes(row, stored):
            plan.superseded.append(row)
        else:
            plan.lost.add(record_id)
    for verbatim in pending.verbatim.values():
        plan.deltas[verbatim.chunk_table] += 1
    fresh = {record_id for record_id, _ in plan.fresh}
    ids = [record_id for record_id in plan.deltas if record_id not in fresh]
    for record_id, known in zip(ids, txn.get_many(Table.RECORDS, ids), strict=True):
        place = pending.matched.get(record_id)
        if known is None or (place is not None and not _is_same(txn, record_id, place, known)):
            plan.lost.add(record_id)
        else:
            plan.rows[record_id] = known
    return plan


def _is_same(txn: WriteTxn, record_id: RecordId, place: bytes, known: bytes) -> bool:
    """Whether a record is the one that lay at ``place``: it is there, or compaction moved it."""
    now = place_of(known)
    return now == place or txn.get(Table.META, META_MOVED + record_id) == place + now


def lost_error(record_ids: Iterable[RecordId]) -> MissingRecordError:
    """Return the error that tells a caller to put its records again."""
    names = sorted(record_id.hex() for record_id in record_ids)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return MissingRecordError(f"record {names[0]}{more} is not in the store (any more)")


def write_plan(txn: WriteTxn, plan: Plan, pending: Pending, packs: Iterable[PackState]) -> None:
    """Write the rows of a plan that has lost nothing."""
    live: Counter[int] = Counter()
    rows: list[tuple[bytes, bytes]] = []
    dead: list[tuple[bytes, bytes]] = []
    for record_id, row in plan.fresh:
        references = plan.deltas.pop(record_id, 0)
        rows.append((record_id, _counted(record_id, row, 0, references)))
        if not references:
            dead.append((record_id, b""))
        pack, start, stop = pending.range_of(row)
        live[pack] += stop - start
    txn.put_many(Table.RECORDS, rows)
    txn.put_many(Table.DEAD, dead)
    for record_id, delta in plan.deltas.items():
        if delta:
            change_references(txn, record_id, plan.rows[record_id], delta)
    for state in packs:
        _put_pack(txn, state, live.pop(state.pack, 0))
    for verbatim in pending.verbatim.values():
        _put_verbatim(txn, pending, verbatim, live.pop(verbatim.pack, 0))
    assert not live, "a pending record lies in a pack that this process does not own"
    for row in plan.superseded:
        add_free(txn, *pending.range_of(row))
    for place in pending.waste:
        add_free(txn, *place)


def _counted(record_id: RecordId, row: bytes, references: int, delta: int) -> bytes:
    """Return the row with the references that it has behind a change, which can be had."""
    count = references + delta
    if count < 0:
        raise CorruptError(
            f"record {record_id.hex()}: {references} references, {-delta} to drop; "
            "run dedupfs check"
        )
    if count > REFERENCES_MAX:
        raise StoreError(f"record {record_id.hex()} has too many references")
    return with_references(row, count)


def change_references(txn: WriteTxn, record_id: RecordId, row: bytes, delta: int) -> None:
    """Add ``delta`` to the references of a committed row; keep DEAD in step.

    Raises:
        CorruptError: the count would fall below zero.
    """
    references = decode_references(row)
    txn.put(Table.RECORDS, record_id, _counted(record_id, row, references, delta))
    if references + delta == 0:
        txn.put(Table.DEAD, record_id, b"")
    elif references == 0:
        txn.delete(Table.DEAD, record_id)


def _put_pack(txn: WriteTxn, state: PackState, live_bytes: int) -> None:
    key = encode_pack_key(state.pack)
    old = txn.get(Table.PACKS, key)
    if old is None:
        raise CorruptError(f"pack {state.pack} has no row; run dedupfs check")
    live_bytes += decode_pack_row(old).live_bytes
    row = PackRow(PackKind.RECORDS, state.sealed, state.stop, live_bytes)
    txn.put(Table.PACKS, key, encode_pack_row(row))
    if state.sealed:
        txn.delete(Table.META, META_OPEN + key)


def _put_verbatim(txn: WriteTxn, pending: Pending, verbatim: VerbatimPack, live_bytes: int) -> None:
    key = encode_pack_key(verbatim.pack)
    row = PackRow(PackKind.VERBATIM, True, verbatim.file_bytes, live_bytes, verbatim.chunk_table)
    txn.put(Table.PACKS, key, encode_pack_row(row))
    txn.delete(Table.META, META_MAKING + key)
    if not live_bytes:  # all of it turned out to be in the store
        txn.put(Table.META, META_EMPTY + key, b"")
    for start, stop in pending.gaps_of(verbatim):
        add_free(txn, verbatim.pack, start, stop)


def add_free(txn: WriteTxn, pack: int, start: int, stop: int) -> None:
    """Add ``[start, stop)`` of a pack to FREE, merged with the free ranges it touches."""
    if start >= stop:
        return
    before = txn.before(Table.FREE, pack_free_key(pack, start))
    if before is not None:
        other, before_start, before_stop, _punched = decode_free(*before)
        if other == pack and before_stop >= start:
            start, stop = before_start, max(stop, before_stop)
    key = pack_free_key(pack, stop)
    after = txn.get(Table.FREE, key)
    if after is not None:
        _pack, _start, stop, _punched = decode_free(key, after)
        txn.delete(Table.FREE, key)
        txn.delete(Table.META, META_PUNCH + key)
    key = pack_free_key(pack, start)
    txn.put(Table.FREE, key, pack_free_row(stop - start, 0))
    txn.put(Table.META, META_PUNCH + key, b"")
