"""Give space back: free what nothing refers to, punch holes, rewrite sparse packs, clear away what
dead processes left.

Works beside live daemons in short steps, each of which is complete by itself: interrupted anywhere,
the next run goes on. The mechanism is ``store/space.py``, ``holes.py`` and ``compact.py``; here is
the order of things, and what a run reports. Source: docs/format.md, "Giving space back".
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dedupfs.errors import CorruptError, StoreFullError
from dedupfs.format.keys import (
    META_PUNCH,
    decode_free,
    decode_location,
    decode_pack_row,
    encode_pack_key,
)
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.maintenance.forecast import Forecast
from dedupfs.maintenance.garbage import free_garbage
from dedupfs.maintenance.leftovers import remove_leftovers
from dedupfs.maintenance.release import Release
from dedupfs.maintenance.tombstones import nothing_to_outdate, release_tombstones, tombstones
from dedupfs.model import PackKind, RecordId
from dedupfs.namespace.checkouts import drop_abandoned
from dedupfs.namespace.room import kept_bytes
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.compact import Sparse, compact, forget_moves, sparse_packs
from dedupfs.store.holes import PUNCH_LOCK, Gained, has_holes, punch
from dedupfs.store.owner import exclusive
from dedupfs.store.space import Freed, release_dead_owners

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with bytes dealt with so far, and those plus what is known to be left."""

PUNCH_LIMIT = 500
LIVE_SHARE = 0.5
"""A pack is rewritten when its live records take at most so much of its disk space: then a byte
written gives at least one back."""
GAIN_BYTES_MIN = 64 << 10
_FREE_AHEAD_BYTES = 64 << 20
"""How much is freed before it is punched, while a target is to be reached."""


@dataclass(frozen=True, slots=True)
class GcOptions:
    """How far a run goes.

    ``live_share``: rewrite packs of whose disk space at most this is live; 0: none.
    ``target_free_bytes``: stop as soon as the file system has so many bytes for this user.
    """

    live_share: float = LIVE_SHARE
    gain_bytes_min: int = GAIN_BYTES_MIN
    target_free_bytes: int | None = None


@dataclass(slots=True)
class GcReport:
    """What a run gave back. Sizes in bytes.

    ``records`` and ``stored_bytes``: what was freed of snapshots, views and dead processes, record
    headers included; ``tombstones``: records of removals that have become needless, on top of
    that. ``punched_bytes``: free ranges, old ones included, that were made holes or went with
    their pack. ``disk_bytes_freed``: how many fewer the file system counts for packs and leftovers,
    of which ``compacted_bytes`` came by rewriting ``compacted_packs``, the ``rewritten_bytes`` that
    took taken off. ``kept_records``: dead ones that cannot be read, so that nobody knows what they
    refer to; ``dedupfs reindex`` gets rid of them. ``free_bytes``: what the file system has now.
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
    disk_bytes_freed: int = 0
    compacted_packs: int = 0
    compacted_bytes: int = 0
    rewritten_bytes: int = 0
    free_bytes: int = 0
    target_reached: bool = True


@dataclass(slots=True)
class GcForecast:
    """What a run would give back. Sizes in bytes, as in ``GcReport``.

    ``disk_bytes``: exactly what the disk gets back, but for what rewriting gains.
    ``unpunched_bytes``: freed before, but not given back yet. ``has_holes``: whether the file
    system can give parts of a pack back; if not, ``emptied_bytes`` come back with whole packs.
    ``sparse``: packs that would be rewritten.
    """

    records: int = 0
    stored_bytes: int = 0
    disk_bytes: int = 0
    unpunched_bytes: int = 0
    has_holes: bool = True
    emptied_bytes: int = 0
    sparse: list[Sparse] = field(default_factory=list)
    free_bytes: int = 0

    @property
    def compacted_bytes(self) -> int:
        """What rewriting would give back, what it writes taken off."""
        return sum(one.gain_bytes for one in self.sparse)

    @property
    def rewritten_bytes(self) -> int:
        """What rewriting would write."""
        return sum(one.live_bytes for one in self.sparse)

    @property
    def freed_bytes_max(self) -> int:
        """The most that the file system could have more; whole blocks make it somewhat less."""
        punched_bytes = self.stored_bytes + self.unpunched_bytes
        return (punched_bytes if self.has_holes else self.emptied_bytes) + self.compacted_bytes


def collect(
    store: Store, *, options: GcOptions | None = None, progress: Progress | None = None
) -> GcReport:
    """Free everything that can be freed now, or what it takes to reach the target."""
    run = _Run(store, options or GcOptions(), progress)
    run.collect()
    report = run.report
    log.info(
        "gc done records=%d stored_bytes=%d punched_bytes=%d packs_removed=%d disk_bytes_freed=%d "
        "compacted_packs=%d",
        report.records,
        report.stored_bytes,
        report.punched_bytes,
        report.packs_removed,
        report.disk_bytes_freed,
        report.compacted_packs,
    )
    return report


def forecast(store: Store, options: GcOptions | None = None) -> GcForecast:
    """Return what ``collect`` would do, without doing it. Costs what is freed, not the store."""
    options = options or GcOptions()
    found = GcForecast(free_bytes=free_bytes(store), has_holes=has_holes(store))
    with store.reading() as txn:
        played = Forecast(store, txn)
        garbage = played.garbage
        found.records, found.stored_bytes = garbage.records, garbage.stored_bytes
        found.disk_bytes = garbage.disk_bytes
        unpunched = _unpunched_bytes(txn)
        dying = _bytes_in_packs(txn, played.garbage_records)
    found.unpunched_bytes = unpunched.total()
    holes = dying + unpunched if found.has_holes else None
    sparse = sparse_packs(store, options.live_share, dying=dying, holes=holes)
    found.emptied_bytes = sum(one.disk_bytes for one in sparse if not one.live_bytes)
    found.sparse = _worth_it(sparse, options)
    return found


def _bytes_in_packs(txn: ReadTxn, record_ids: Iterable[RecordId]) -> Counter[int]:
    """Add up what records take in each pack."""
    found: Counter[int] = Counter()
    header_bytes: dict[int, int] = {}
    for record_id in record_ids:
        row = txn.get(Table.RECORDS, record_id)
        assert row is not None, "it was there in this very state of the index"
        place = decode_location(row)[0]
        if place.pack not in header_bytes:
            stored = txn.get(Table.PACKS, encode_pack_key(place.pack))
            kind = decode_pack_row(stored).kind if stored is not None else PackKind.RECORDS
            header_bytes[place.pack] = HEADER_BYTES if kind is PackKind.RECORDS else 0
        found[place.pack] += header_bytes[place.pack] + place.stored_bytes
    return found


def free_bytes(store: Store) -> int:
    """Return how much the store's file system has left for this user."""
    found = os.statvfs(store.path)
    return found.f_bavail * found.f_frsize


def _garbage(store: Store, txn: ReadTxn) -> Release:
    release = Release(store, txn)
    release.free_dead(RecordId(key) for key, _ in txn.scan(Table.DEAD))
    return release


def _unpunched_bytes(txn: ReadTxn) -> Counter[int]:
    """Add up the free ranges that still take space, by pack; holes of old are not looked at."""
    found: Counter[int] = Counter()
    for key, _ in txn.scan(Table.META, prefix=META_PUNCH):
        row = txn.get(Table.FREE, key[len(META_PUNCH) :])
        if row is not None:
            pack, start, stop, _punched = decode_free(key[len(META_PUNCH) :], row)
            found[pack] += stop - start
    return found


def _worth_it(found: list[Sparse], options: GcOptions) -> list[Sparse]:
    if not options.live_share:
        return []
    return [one for one in found if one.live_bytes and one.gain_bytes >= options.gain_bytes_min]


class _Run:
    """One run of gc."""

    def __init__(self, store: Store, options: GcOptions, progress: Progress | None) -> None:
        self.report = GcReport()
        self._store = store
        self._options = options
        self._progress = progress
        self._done_bytes = 0
        self._total_bytes = 0

    def collect(self) -> None:
        store, report = self._store, self.report
        with exclusive(store.layout, store.disk, PUNCH_LOCK):
            report.dead_owners = release_dead_owners(store)
            drop_abandoned(store)
            report.leftovers = remove_leftovers(store)
        with store.reading() as txn:
            needless = tombstones(txn)
            if self._progress is not None:  # every byte is freed, then punched
                garbage_bytes = _garbage(store, txn).stored_bytes
                self._total_bytes = 2 * garbage_bytes + _unpunched_bytes(txn).total()
        gained = Gained()
        self._take(_Sweep(self, gained), gained)
        if needless and not self.is_enough() and nothing_to_outdate(store):
            release_tombstones(store, needless)
            self._take_tombstones()
        if not self.is_enough():
            self._compact()
        with store.reading() as txn:
            report.kept_records = txn.count(Table.DEAD)
        report.free_bytes = free_bytes(store)
        report.target_reached = self._options.target_free_bytes is None or self.is_enough()
        self.tell(max(0, self._total_bytes - self._done_bytes))

    def is_enough(self) -> bool:
        """Whether the target is reached."""
        target = self._options.target_free_bytes
        return target is not None and free_bytes(self._store) >= target

    @property
    def has_target(self) -> bool:
        """Whether to punch as soon as something is freed."""
        return self._options.target_free_bytes is not None

    def tell(self, more_bytes: int) -> None:
        """Note what was dealt with."""
        self._done_bytes += more_bytes
        self._total_bytes = max(self._total_bytes, self._done_bytes)
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)

    def _take(self, sweep: "_Sweep", gained: Gained) -> None:
        sweep.run()
        self.report.records += sweep.records
        self.report.stored_bytes += sweep.stored_bytes
        self._add(gained)

    def _take_tombstones(self) -> None:
        gained = Gained()
        sweep = _Sweep(self, gained)
        sweep.run()
        self.report.tombstones, self.report.tombstone_bytes = sweep.records, sweep.stored_bytes
        self._add(gained)

    def _add(self, gained: Gained) -> None:
        self.report.punched_bytes += gained.range_bytes
        self.report.packs_removed += gained.packs
        self.report.disk_bytes_freed += gained.disk_bytes

    def _compact(self) -> None:
        """Rewrite sparse packs, as long as there is room for that; remove empty ones."""
        report, options, store = self.report, self._options, self._store
        forget_moves(store)
        found = sparse_packs(store, options.live_share)
        if any(not one.live_bytes for one in found):  # that nobody has listed as empty
            gained = Gained()
            punch(store, PUNCH_LIMIT, gained=gained)
            self._take(_Sweep(self, gained), gained)  # what they were described by has died
        for sparse in _worth_it(found, options):
            if free_bytes(store) < sparse.live_bytes + kept_bytes(store.path) or self.is_enough():
                continue
            self._compact_pack(sparse)
        if report.compacted_packs:  # chunk tables of verbatim packs, which are no user's garbage
            gained = Gained()
            _Sweep(self, gained).run()
            report.disk_bytes_freed += gained.disk_bytes
            report.compacted_bytes += gained.disk_bytes

    def _compact_pack(self, sparse: Sparse) -> None:
        report = self.report
        self._total_bytes += sparse.disk_bytes
        try:
            done = compact(self._store, sparse)
        except CorruptError as exc:
            log.error("pack not rewritten pack=%d: %s", sparse.pack, exc)
        except StoreFullError as exc:
            log.warning("pack not rewritten pack=%d: %s", sparse.pack, exc)
        else:
            gained_bytes = done.gained.disk_bytes - done.written_bytes
            report.rewritten_bytes += done.written_bytes
            report.compacted_packs += done.gained.packs
            report.compacted_bytes += gained_bytes
            report.packs_removed += done.gained.packs
            report.disk_bytes_freed += gained_bytes
        self.tell(sparse.disk_bytes)


class _Sweep:
    """Frees dead records and punches, until neither finds anything more or it is enough."""

    def __init__(self, run: _Run, gained: Gained) -> None:
        self.records = 0
        self.stored_bytes = 0
        self._run = run
        self._store = run._store
        self._gained = gained
        self._ahead_bytes = 0

    def run(self) -> None:
        working = True
        while working and not self._run.is_enough():
            # A pack that goes frees its chunk table, so both may find work anew.
            self._ahead_bytes = 0
            working = free_garbage(self._store, self._tell)
            working = self._punch() or working

    def _punch(self) -> bool:
        worked = False
        while True:
            self._store.db.give_way()
            before = self._gained.range_bytes
            if not punch(self._store, PUNCH_LIMIT, every_pack=False, gained=self._gained):
                return worked
            worked = True
            self._run.tell(self._gained.range_bytes - before)
            if self._run.is_enough():
                return worked

    def _tell(self, freed: Freed) -> bool:
        """Hear of a slice; say whether that is enough for now."""
        self.records += freed.records
        self.stored_bytes += freed.stored_bytes
        self._ahead_bytes += freed.stored_bytes
        self._run.tell(freed.stored_bytes)
        return self._run.has_target and self._ahead_bytes >= _FREE_AHEAD_BYTES
