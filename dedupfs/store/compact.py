"""Rewriting a pack of which little is live: its live records move to another pack, then it goes.

For file systems without holes, and for packs whose holes are too small to give blocks back. One
process at a time does this, under the lock of who punches, so that nobody punches what has just
moved from under a reader: a pack goes as a whole, and a read of a file that was cut short is tried
again elsewhere. Which packs are worth it is ``maintenance/gc.py``'s to say. Source: docs/format.md,
"Compacting".
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

from dedupfs.errors import CorruptError, StoreFullError
from dedupfs.format.keys import (
    META_EMPTY,
    META_MOVED,
    REFERENCES_OFFSET,
    PackRow,
    decode_location,
    decode_pack_key,
    decode_pack_row,
    decode_references,
    encode_location,
    encode_pack_key,
    encode_pack_row,
)
from dedupfs.format.pack import HEADER_BYTES, decode_chunk_table
from dedupfs.model import Location, PackKind, RecordId, RecordKind
from dedupfs.store import codec as codecs
from dedupfs.store.commit import add_free
from dedupfs.store.db import Table
from dedupfs.store.holes import PUNCH_LOCK, Gained, is_needed_whole, removing
from dedupfs.store.owner import close_lock, exclusive, open_lock
from dedupfs.store.pace import Pace, run_steps
from dedupfs.store.pending import place_of
from dedupfs.store.scan import PackScanner, ScannedRecord
from dedupfs.store.store import Store
from dedupfs.store.transaction import Transaction

log = logging.getLogger(__name__)

SLICE_BYTES = 8 << 20
_FIRST, _LEAST, _MOST = 200, 20, 5000
_SPARE_BYTES = 8 << 20
_FORGOTTEN = 1000
"""Rows of moves that one transaction deletes."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """A pack that takes more disk than its live records do."""

    pack: int
    live_bytes: int
    disk_bytes: int

    @property
    def gain_bytes(self) -> int:
        """What rewriting it would give back, what is written anew taken off."""
        return self.disk_bytes - self.live_bytes


@dataclass(slots=True)
class Compacted:
    """What was done: ``written_bytes`` went into other packs, ``gained`` came back."""

    written_bytes: int = 0
    gained: Gained = field(default_factory=Gained)


@dataclass(frozen=True, slots=True)
class _Moved:
    """A record that was appended once more."""

    record_id: RecordId
    row: bytes
    new: Location


class _InUseError(Exception):
    """Somebody outside of the store wants the pack's file as it is."""


def sparse_packs(
    store: Store,
    live_share: float,
    *,
    dying: Mapping[int, int] | None = None,
    holes: Mapping[int, int] | None = None,
) -> list[Sparse]:
    """Return the packs of whose disk space live records take at most ``live_share``.

    Those that cost least for what they give first. Empty ones are among them. Looks at each row of
    PACKS, but only at the files of packs that may be sparse by what their rows say. For a
    forecast: ``dying`` bytes of each pack will not be live then, and ``holes`` punched.
    """
    dying, holes = dying or {}, holes or {}
    found = []
    with store.reading() as txn:
        for key, value in txn.scan(Table.PACKS):
            row = decode_pack_row(value)
            pack = decode_pack_key(key)
            live_bytes = row.live_bytes - dying.get(pack, 0)
            if not row.committed_bytes or live_bytes > live_share * row.committed_bytes:
                continue
            if is_needed_whole(store, txn, pack, row):
                continue
            disk_bytes = store.disk.disk_bytes(store.layout.pack(pack, row.kind))
            disk_bytes = max(live_bytes, disk_bytes - holes.get(pack, 0))
            if live_bytes <= live_share * disk_bytes:
                found.append(Sparse(pack, live_bytes, disk_bytes))
    return sorted(found, key=lambda one: one.live_bytes / max(1, one.gain_bytes))


def compact(store: Store, sparse: Sparse) -> Compacted:
    """Move what is live out of a pack and remove it.

    Nothing is done while somebody appends to it, nor when somebody has: what was just moved into
    an open pack must not be moved out of it again.

    Stopped anywhere, the records are in one of both packs, and the next call goes on.

    Raises:
        CorruptError: a record of it is damaged; it stays, as does the pack.
        StoreFullError: there is no room for what would be written.
    """
    done = Compacted()
    pack = sparse.pack
    with exclusive(store.layout, store.disk, PUNCH_LOCK):
        try:
            with _unowned(store, pack) as row:
                if row is None or row.live_bytes > sparse.live_bytes:
                    return done
                _move_all(store, pack, row, done)
        except _InUseError:
            store.drop_pending()
            return done
        except BaseException:
            store.drop_pending()
            raise
        run_steps(removing(store, pack, done.gained))
    return done


def forget_moves(store: Store) -> None:
    """Forget what earlier runs moved: what others found before that, they have committed by now.

    Who has not puts it again, as if it had been freed.
    """
    while True:
        with store.reading() as txn:
            keys = [key for key, _ in islice(txn.scan(Table.META, prefix=META_MOVED), _FORGOTTEN)]
        if not keys:
            return
        store.db.give_way()
        with store.transaction() as changes:
            for key in keys:
                changes.delete(Table.META, key)


@contextmanager
def _unowned(store: Store, pack: int) -> Iterator[PackRow | None]:
    """Keep others from appending to an open pack; None when somebody does."""
    row = _row_of(store, pack)
    if row is None or row.sealed:
        yield row
        return
    try:
        file = open_lock(store.disk, store.layout.pack(pack, row.kind), write=True)
    except FileNotFoundError:
        yield None
        return
    try:
        if not store.disk.lock(file):
            yield None
        else:
            yield _row_of(store, pack)  # its last owner may have appended until now
    finally:
        close_lock(file)


def _row_of(store: Store, pack: int) -> PackRow | None:
    with store.reading() as txn:
        found = txn.get(Table.PACKS, encode_pack_key(pack))
    return decode_pack_row(found) if found is not None else None


def _move_all(store: Store, pack: int, row: PackRow, done: Compacted) -> None:
    pace = Pace(_FIRST, least=_LEAST, most=_MOST)
    batch: list[_Moved] = []
    batch_bytes = 0
    for record_id, record_row in _live_records(store, pack, row):
        moved = _append(store, record_id, record_row, row.kind)
        batch.append(moved)
        batch_bytes += moved.new.stored_bytes
        if len(batch) >= pace.limit or batch_bytes >= SLICE_BYTES:
            _commit(store, pack, batch, pace, done)
            batch, batch_bytes = [], 0
    if batch:
        _commit(store, pack, batch, pace, done)


def _live_records(store: Store, pack: int, row: PackRow) -> Iterator[tuple[RecordId, bytes]]:
    """Yield what the index says is in a pack and referred to, in order of offset."""
    places = _chunks_of(store, row) if row.kind is PackKind.VERBATIM else _scan(store, pack, row)
    for record_id, pack_offset in places:
        found = store.db.record_row(record_id)
        if found is None:
            continue
        location, references = decode_location(found)
        if references and (location.pack, location.pack_offset) == (pack, pack_offset):
            yield record_id, found


def _scan(store: Store, pack: int, row: PackRow) -> Iterator[tuple[RecordId, int]]:
    file = store.reader.open_pack(pack)
    scanner = PackScanner(store.disk, file, pack, store.config.hash_seed, row.committed_bytes)
    for found in scanner.scan():
        if isinstance(found, ScannedRecord):
            yield found.record_id, found.location.pack_offset


def _chunks_of(store: Store, row: PackRow) -> Iterable[tuple[RecordId, int]]:
    assert row.chunk_table is not None
    table = decode_chunk_table(store.get(row.chunk_table, RecordKind.CHUNK_TABLE))
    return [(chunk.chunk_id, chunk.file_offset) for chunk in table.chunks]


def _append(store: Store, record_id: RecordId, row: bytes, kind: PackKind) -> _Moved:
    """Append a record once more, if its bytes are what its id says."""
    old = decode_location(row)[0]
    file = store.reader.open_pack(old.pack)
    stored = store.disk.pread_once(file, old.stored_bytes, old.pack_offset)
    payload = codecs.decode(old.codec, stored, old.logical_bytes)
    if store.digest(old.kind, payload, old.salt) != record_id:
        raise CorruptError(
            f"damaged record {record_id.hex()} in {file.path} at pack_offset={old.pack_offset}; "
            "run dedupfs scrub"
        )
    # A verbatim pack is never compressed, whatever its chunks are like.
    encoded = stored if kind is PackKind.RECORDS else None
    new = store.append_again(record_id, old, payload, encoded)
    return _Moved(record_id, row, new)


def _commit(store: Store, pack: int, batch: list[_Moved], pace: Pace, done: Compacted) -> None:
    """Point the rows of a batch at the new places, in one transaction."""
    if not store.disk.reserve(store.db.data_path, _SPARE_BYTES):
        raise StoreFullError(f"{store.path}: the disk is full")
    store.sync()
    store.db.give_way()
    began_s = time.perf_counter()
    with store.transaction() as txn:
        found = txn.get(Table.PACKS, encode_pack_key(pack))
        row = decode_pack_row(found) if found is not None else None
        if row is None or is_needed_whole(store, txn, pack, row):
            raise _InUseError
        for moved in batch:
            _repoint(txn, moved, row.kind)
    pace.note(len(batch), time.perf_counter() - began_s)
    done.written_bytes += sum(HEADER_BYTES + moved.new.stored_bytes for moved in batch)


def _repoint(txn: Transaction, moved: _Moved, kind: PackKind) -> None:
    new = moved.new
    row = txn.get(Table.RECORDS, moved.record_id)
    new_start, new_stop = new.pack_offset - HEADER_BYTES, new.pack_offset + new.stored_bytes
    if row is None or row[:REFERENCES_OFFSET] != moved.row[:REFERENCES_OFFSET]:
        add_free(txn, new.pack, new_start, new_stop)  # freed, or mended, meanwhile
        return
    now = encode_location(new, decode_references(row))
    txn.put(Table.RECORDS, moved.record_id, now)
    txn.put(Table.META, META_MOVED + moved.record_id, place_of(row) + place_of(now))
    old = decode_location(row)[0]
    start = old.pack_offset - (HEADER_BYTES if kind is PackKind.RECORDS else 0)
    stop = old.pack_offset + old.stored_bytes
    add_free(txn, old.pack, start, stop)
    _change_live(txn, old.pack, start - stop)
    _change_live(txn, new.pack, new_stop - new_start)


def _change_live(txn: Transaction, pack: int, change_bytes: int) -> None:
    key = encode_pack_key(pack)
    found = txn.get(Table.PACKS, key)
    if found is None:
        raise CorruptError(f"pack {pack} has no row; run dedupfs check")
    row = decode_pack_row(found)
    if row.live_bytes + change_bytes < 0:
        raise CorruptError(f"pack {pack}: its live bytes are counted wrongly; run dedupfs check")
    changed = replace(row, live_bytes=row.live_bytes + change_bytes)
    txn.put(Table.PACKS, key, encode_pack_row(changed))
    if not changed.live_bytes:
        txn.put(Table.META, META_EMPTY + key, b"")
