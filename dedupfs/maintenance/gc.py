"""Give space back: free what nothing refers to, punch holes, clear away what dead processes left.

Works beside live daemons in short steps, each of which is complete by itself: interrupted anywhere,
the next run goes on. The mechanism is ``store/space.py``; here is the order of things, and what a
run reports. Source: docs/format.md, "Giving space back".
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import CorruptError, StoreError, UsageError
from dedupfs.format.keys import (
    META_COUNTER,
    META_MAKING,
    decode_count,
    decode_free,
    decode_location,
    decode_pack_row,
    encode_pack_key,
    split_pin_key,
)
from dedupfs.maintenance.garbage import PUNCH_LOCK, free_garbage
from dedupfs.maintenance.usage import disk_usage
from dedupfs.model import PackKind, RecordId, RecordKind
from dedupfs.namespace.checkouts import drop_abandoned
from dedupfs.namespace.rows import TOMBSTONE_OWNER, check_name
from dedupfs.namespace.views import (
    VIEWS_DIRECTORY,
    delete_view,
    find_view,
    lock_view,
    remove_dead_ephemeral,
    why_kept,
)
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.inventory import pack_files
from dedupfs.store.openpack import PACK_COUNTER, is_committed
from dedupfs.store.owner import exclusive
from dedupfs.store.space import Freed, punch, release_dead_owners

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with records freed so far, and those plus the dead ones that are known to be left."""

PUNCH_LIMIT = 500

_IMPORT_NAME = re.compile(r"import-.*\.new")


@dataclass(slots=True)
class GcReport:
    """What a run gave back. Sizes in bytes.

    ``records`` and ``stored_bytes``: what was freed of snapshots, views and dead processes, record
    headers included; ``tombstones``: records of removals that have become needless, on top of
    that. ``punched_bytes``: free ranges, old ones included, that were made holes or went with
    their pack. ``kept_records``: dead ones that cannot be read, so that nobody knows what they
    refer to; ``dedupfs reindex`` gets rid of them.
    """

    records: int = 0
    stored_bytes: int = 0
    tombstones: int = 0
    tombstone_bytes: int = 0
    punched_bytes: int = 0
    packs_removed: int = 0
    dead_owners: int = 0
    leftovers: int = 0
    kept_records: int = 0
    disk_bytes_before: int = 0
    disk_bytes_after: int = 0

    @property
    def disk_bytes_freed(self) -> int:
        """How much smaller the store is; less than nothing when others wrote meanwhile."""
        return self.disk_bytes_before - self.disk_bytes_after


def collect(store: Store, *, progress: Progress | None = None) -> GcReport:
    """Free everything that can be freed now."""
    report = GcReport(disk_bytes_before=disk_usage(store.path).disk_bytes)
    with store.reading() as txn:
        free_before, packs_before = _free_bytes(txn), txn.count(Table.PACKS)
        tombstones = _tombstones(txn)
    with exclusive(store.layout, store.disk, PUNCH_LOCK):
        report.dead_owners = release_dead_owners(store)
        drop_abandoned(store)
        report.leftovers = remove_leftovers(store)
    _Sweep(store, report, progress).run()
    if tombstones and _nothing_to_outdate(store):
        _release_tombstones(store, tombstones)
        sweep = GcReport()
        _Sweep(store, sweep, progress).run()
        report.tombstones, report.tombstone_bytes = sweep.records, sweep.stored_bytes
    with store.reading() as txn:
        report.packs_removed = max(0, packs_before - txn.count(Table.PACKS))
        freed = report.stored_bytes + report.tombstone_bytes
        report.punched_bytes = max(0, free_before + freed - _free_bytes(txn))
        report.kept_records = txn.count(Table.DEAD)
    report.disk_bytes_after = disk_usage(store.path).disk_bytes
    log.info(
        "gc done records=%d stored_bytes=%d punched_bytes=%d packs_removed=%d disk_bytes_freed=%d",
        report.records,
        report.stored_bytes,
        report.punched_bytes,
        report.packs_removed,
        report.disk_bytes_freed,
    )
    return report


class _Sweep:
    """Frees dead records and punches, until neither finds anything more."""

    def __init__(self, store: Store, report: GcReport, progress: Progress | None) -> None:
        self._store = store
        self._report = report
        self._progress = progress

    def run(self) -> None:
        working = True
        while working:  # a pack that goes frees its chunk table, so both may find work anew
            working = free_garbage(self._store, self._tell)
            while punch(self._store, PUNCH_LIMIT):
                working = True

    def _tell(self, freed: Freed) -> None:
        self._report.records += freed.records
        self._report.stored_bytes += freed.stored_bytes
        if self._progress is not None:
            with self._store.reading() as txn:
                left = txn.count(Table.DEAD)
            self._progress(self._report.records, self._report.records + left)


def _free_bytes(txn: ReadTxn) -> int:
    """Add up the free ranges that still take space."""
    ranges = (decode_free(key, row) for key, row in txn.scan(Table.FREE))
    return sum(stop - start for _pack, start, stop, punched in ranges if not punched)


# --- tombstones ------------------------------------------------------------------------------


def _tombstones(txn: ReadTxn) -> list[tuple[RecordId, int]]:
    """Return the pins that keep records of removed snapshots."""
    pins = []
    for key, row in txn.scan(Table.PINS, prefix=TOMBSTONE_OWNER):
        owner, record_id = split_pin_key(key)
        if owner == TOMBSTONE_OWNER:
            pins.append((record_id, decode_count(row)))
    return pins


def _nothing_to_outdate(store: Store) -> bool:
    """Whether no record of a removed snapshot can be found by a scan of the packs any more.

    A tombstone tells reindex that older records of its snapshot do not count. Those had no
    references when it was written, so once every dead snapshot record is freed, and every free
    range of a record pack is covered by a free header, none is left.
    """
    with store.reading() as txn:
        for key, _ in txn.scan(Table.DEAD):
            row = txn.get(Table.RECORDS, key)
            if row is not None and decode_location(row)[0].kind is RecordKind.SNAPSHOT:
                return False
        for key, value in txn.scan(Table.FREE):
            pack, _start, _stop, punched = decode_free(key, value)
            found = txn.get(Table.PACKS, encode_pack_key(pack))
            in_records = found is None or decode_pack_row(found).kind is PackKind.RECORDS
            if in_records and not punched:
                return False
    return True


def _release_tombstones(store: Store, tombstones: list[tuple[RecordId, int]]) -> None:
    with store.transaction() as txn:
        for record_id, count in tombstones:
            row = txn.get(Table.PINS, TOMBSTONE_OWNER + record_id)
            held = decode_count(row) if row is not None else 0  # another gc may have been faster
            for _ in range(min(count, held)):
                txn.unpin(TOMBSTONE_OWNER, record_id)


# --- what dead processes left ----------------------------------------------------------------


def remove_leftovers(store: Store) -> int:
    """Remove files that no row of the index and no live process knows; return how many."""
    removed = _remove_lost_packs(store) + _remove_import_files(store)
    return removed + len(remove_dead_ephemeral(store)) + _remove_lost_views(store)


def _remove_lost_packs(store: Store) -> int:
    """Remove pack files without a row.

    The write transaction keeps every process from giving out pack numbers meanwhile, and a pack
    in the making has a row of META (or its maker's lock).
    """
    with store.reading() as txn:
        lost = dict(_lost_packs(store, txn))
        if not lost:
            return 0
        _require_unused_packs(store, txn, lost)
    removed = 0
    with store.transaction() as changes:
        for pack, path in list(_lost_packs(store, changes)):
            if pack in lost:
                removed += _remove_unlocked(store, path)
    return removed


def _require_unused_packs(store: Store, txn: ReadTxn, lost: dict[int, Path]) -> None:
    """Refuse to remove packs that the index would know if it were whole.

    Raises:
        CorruptError: it was never told of their numbers, or has records in them.
    """
    row = txn.get(Table.META, META_COUNTER + PACK_COUNTER.encode())
    counter = decode_count(row) if row is not None else 0
    used = any(pack > counter and is_committed(path) for pack, path in lost.items())
    used = used or any(decode_location(row)[0].pack in lost for _, row in txn.scan(Table.RECORDS))
    if used:
        raise CorruptError(
            f"{store.path}: the index does not know packs that hold data; run dedupfs reindex"
        )


def _lost_packs(store: Store, txn: ReadTxn) -> Iterator[tuple[int, Path]]:
    for pack, _kind, path in pack_files(store):
        key = encode_pack_key(pack)
        known = txn.get(Table.PACKS, key) is not None
        if not known and txn.get(Table.META, META_MAKING + key) is None:
            yield pack, path


def _remove_import_files(store: Store) -> int:
    removed = 0
    for name in store.disk.listdir(store.layout.run):
        if _IMPORT_NAME.fullmatch(name):
            removed += _remove_unlocked(store, store.layout.run / name)
    return removed


def _remove_unlocked(store: Store, path: Path) -> bool:
    """Remove a file unless its owner still holds its lock."""
    try:
        file = store.disk.open(path)
    except FileNotFoundError:
        return False
    try:
        if not store.disk.lock(file):
            return False
        store.disk.unlink(path)
    finally:
        file.close()
    log.info("leftover removed path=%s", path)
    return True


def _remove_lost_views(store: Store) -> int:
    """Remove the files of views that have no row: a removal or a making was cut short.

    Those of a view whose row a damaged index has lost stay, for reindex.
    """
    removed = 0
    for name in store.disk.listdir(store.path / VIEWS_DIRECTORY):
        try:
            check_name(name, "view")
            if find_view(store, name) is not None:
                continue
            lock = lock_view(store.disk, store.path, name, "")
        except (UsageError, StoreError):
            continue  # not a view's directory, or somebody is just making it
        try:
            if find_view(store, name) is not None:
                continue
            why = why_kept(store, name)
            if why:
                log.warning(
                    "files of a view without a row stay view=%s: %s; 'dedupfs reindex %s' brings "
                    "it back",
                    name,
                    why,
                    store.path,
                )
            else:
                delete_view(store, name)
                log.info("leftover removed view=%s", name)
                removed += 1
        finally:
            lock.release()
    return removed
