"""Make the index anew from the packs and the journals of views, when it is missing or damaged.

The new index is built beside the old one and takes its place in one step at the end, so a crash at
any moment leaves what was there, or a store that asks for reindex again. Nobody may use the store
meanwhile. What cannot be read is reported and left out. Source: docs/format.md, "Rebuilding the
index".
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import StoreBusyError, StoreError
from dedupfs.format.keys import (
    META_COUNTER,
    META_OPEN,
    META_PUNCH,
    decode_count,
    decode_pack_row,
    encode_count,
    encode_pack_key,
    pack_free_key,
)
from dedupfs.format.pack import decode_chunk_table
from dedupfs.maintenance.census import take_census
from dedupfs.maintenance.check import check
from dedupfs.maintenance.checkouts import restore_checkouts
from dedupfs.maintenance.garbage import erase_unreadable, free_garbage
from dedupfs.maintenance.liveness import require_unused
from dedupfs.maintenance.pack_audit import overlapping
from dedupfs.maintenance.problems import Problem
from dedupfs.maintenance.roots import RootFinder, Roots
from dedupfs.maintenance.salvage import salvage_chunks
from dedupfs.model import Location, PackKind, RecordId, RecordKind, StoreConfig
from dedupfs.store import Disk, RealDisk, Store, Table
from dedupfs.store.db import Database
from dedupfs.store.inventory import count_references, payload_of
from dedupfs.store.layout import Layout, read_config
from dedupfs.store.openpack import PACK_COUNTER
from dedupfs.store.owner import close_lock, open_lock
from dedupfs.store.rebuild import PACK_NUMBER_MAX, Rebuilt, rebuild
from dedupfs.store.settings import save_config

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

NEW = "index.new"
OLD = "index.old"
LOST_SUFFIX = ".lost"
"""Put behind the name of a pack in which nothing can be read; no pack has such a name."""


@dataclass(slots=True)
class ReindexReport:
    """What was found and made. ``problems`` is what check says of the new index."""

    packs: int = 0
    records: int = 0
    snapshots: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    """Snapshots whose name a newer one has: (that name, the name it was given)."""
    damaged: list[str] = field(default_factory=list)
    """Places in packs that hold no record, and records that cannot be read."""
    lost_packs: list[int] = field(default_factory=list)
    """Verbatim packs that no readable chunk table describes."""
    lost_views: list[tuple[str, str]] = field(default_factory=list)
    """Views that could not be brought back, and why; their files were put aside."""
    shortened_views: list[tuple[str, str]] = field(default_factory=list)
    """Views that are as of their last fold, without what their journal said, and why."""
    checkouts: list[int] = field(default_factory=list)
    lost_checkouts: list[str] = field(default_factory=list)
    """What checkouts need and the packs have no more."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that the packs once held is there again."""
        lost = self.damaged or self.lost_packs or self.lost_views or self.shortened_views
        lost = lost or self.lost_checkouts
        return not lost and not self.problems

    def take_losses_of(self, before: "ReindexReport") -> None:
        """Add what an index that was made just before had found lost: it was put aside then."""
        self.renamed = list(dict.fromkeys(before.renamed + self.renamed))
        self.damaged = list(dict.fromkeys(before.damaged + self.damaged))
        self.lost_packs = list(dict.fromkeys(before.lost_packs + self.lost_packs))
        self.lost_views = list(dict.fromkeys(before.lost_views + self.lost_views))
        self.shortened_views = list(dict.fromkeys(before.shortened_views + self.shortened_views))
        self.lost_checkouts = list(dict.fromkeys(before.lost_checkouts + self.lost_checkouts))


def reindex(
    path: Path, *, progress: Progress | None = None, disk: Disk | None = None
) -> ReindexReport:
    """Make the index of the store at ``path`` anew.

    Raises:
        UsageError, FormatVersionError, CorruptError: not a store, or not one of ours to read.
        StoreBusyError: a process uses it.
        StoreError: the file system failed; the index is what it was.
    """
    disk = disk or RealDisk()
    path = Path(os.path.abspath(path))
    layout = Layout(path)
    config = read_config(layout, disk)
    disk.mkdir(layout.run)
    with alone(layout, disk):
        require_unused(layout, disk, layout.index)
        return rebuild_index(layout, config, disk, progress)


def rebuild_index(
    layout: Layout, config: StoreConfig, disk: Disk, progress: Progress | None
) -> ReindexReport:
    """Do the work of ``reindex`` on a store that is kept to oneself. Errors as there."""
    for directory in (layout.run, layout.packs):
        disk.mkdir(directory)
    new = layout.root / NEW
    remove_tree(new)
    disk.mkdir(new)
    disk.fsync_dir(layout.root)
    with Store(layout.root, config, Database(new, create=True), disk) as store:
        save_config(store.db, config)
        report = _Rebuilding(store, progress).run()
    disk.fsync_dir(new)
    _replace_index(layout, disk, new)
    log.info(
        "reindex done packs=%d records=%d snapshots=%d views=%d problems=%d",
        report.packs,
        report.records,
        len(report.snapshots),
        len(report.views),
        len(report.problems),
    )
    return report


@contextmanager
def alone(layout: Layout, disk: Disk) -> Iterator[None]:
    """Keep a second reindex or repair away."""
    file = open_lock(disk, layout.run / "reindex.lock", create=True)
    try:
        if not disk.lock(file):
            raise StoreBusyError(f"another reindex or repair of {layout.root} is under way")
        yield
    finally:
        close_lock(file)


def _replace_index(layout: Layout, disk: Disk, new: Path) -> None:
    """Put the new index in the place of the old one, unless somebody has begun to use that."""
    old = layout.root / OLD
    remove_tree(old)
    had_index = layout.index.exists()
    if had_index:
        disk.rename(layout.index, old)  # from here on nobody can open the store
    try:
        require_unused(layout, disk, old)
    except StoreBusyError:
        if had_index:
            disk.rename(old, layout.index)
        remove_tree(new)
        raise
    disk.rename(new, layout.index)
    disk.fsync_dir(layout.root)
    remove_tree(old)


def remove_tree(path: Path) -> None:
    """Remove a directory of ours that is no index any more, or not yet."""
    if path.is_symlink():
        raise StoreError(f"{path} is a symbolic link, which dedupfs never makes there; remove it")
    shutil.rmtree(path, ignore_errors=True)


class _Rebuilding:
    """The steps from an empty index to a whole one."""

    def __init__(self, store: Store, progress: Progress | None) -> None:
        self._store = store
        self._progress = progress
        self._roots = RootFinder(store)
        self._seen: set[int] = set()
        self._pack_number = 0

    def run(self) -> ReindexReport:
        rebuilt = rebuild(self._store, self._note)
        self._raise_pack_counter()
        self._close_damaged_packs(rebuilt)
        helped = salvage_chunks(self._store, rebuilt.missing)
        self._drop_false_free_ranges()
        rebuilt.orphans = [pack for pack in rebuilt.orphans if pack not in helped]
        roots = self._roots.restore()
        checkouts = restore_checkouts(self._store)
        rebuilt.orphans = [pack for pack in rebuilt.orphans if pack not in checkouts.kept_packs]
        self._free_garbage()
        self._look_again_for_missing(rebuilt)
        self._set_aside(rebuilt)
        problems = check(self._store, progress=self._tell_check).problems
        report = _report(self._store, rebuilt, roots, problems)
        report.checkouts, report.lost_checkouts = checkouts.numbers, checkouts.lost
        return report

    def _note(self, record_id: RecordId, location: Location) -> None:
        self._roots.note(record_id, location)
        if location.kind is RecordKind.CHUNK_TABLE:
            self._note_pack_number(record_id, location)
        if self._progress is not None and location.pack not in self._seen:
            self._seen.add(location.pack)
            with self._store.reading() as txn:
                packs = txn.count(Table.PACKS)
            self._progress("scan", len(self._seen), max(packs, len(self._seen)))

    def _note_pack_number(self, record_id: RecordId, location: Location) -> None:
        """A number must not be given again while a record that speaks of its pack can be found."""
        try:
            table = decode_chunk_table(payload_of(self._store, record_id, location))
        except StoreError:
            return
        if table.pack < PACK_NUMBER_MAX:
            self._pack_number = max(self._pack_number, table.pack)

    def _raise_pack_counter(self) -> None:
        key = META_COUNTER + PACK_COUNTER.encode()
        with self._store.transaction() as txn:
            row = txn.get(Table.META, key)
            number = decode_count(row) if row is not None else 0
            txn.put(Table.META, key, encode_count(max(number, self._pack_number)))

    def _tell_check(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress("check", done, total)

    def _free_garbage(self) -> None:
        """Free what the packs still hold though nothing refers to it.

        A scan finds again what was freed but not erased yet.
        """
        working = True
        while working:
            erased = erase_unreadable(self._store)
            working = free_garbage(self._store, lambda _freed: None) or erased > 0

    def _look_again_for_missing(self, rebuilt: Rebuilt) -> None:
        """Do not miss what only a freed record referred to, which the scan had found again."""
        if not rebuilt.missing:
            return
        with self._store.reading() as txn:
            wanted = count_references(self._store, txn).counts
            for record_id in list(rebuilt.missing):
                if record_id not in wanted:
                    del rebuilt.missing[record_id]

    def _close_damaged_packs(self, rebuilt: Rebuilt) -> None:
        """Let nobody append to a pack with damage inside: it could not be walked over any more."""
        damaged = {pack for pack, damage in rebuilt.damaged if not damage.torn}
        with self._store.transaction() as txn:
            for pack in damaged:
                txn.delete(Table.META, META_OPEN + encode_pack_key(pack))

    def _drop_false_free_ranges(self) -> None:
        """Let no free range cover a live record: punching it would be the end of the record.

        Two records that claim the same bytes, an old chunk table for a pack number that was given
        again for instance, can make one.
        """
        with self._store.reading() as txn:
            census = take_census(txn)
            false = [
                pack_free_key(pack, free.start)
                for pack, ranges in census.free.items()
                for free in overlapping(ranges, [m.span for m in census.members(txn, pack)])
            ]
        with self._store.transaction() as changes:
            for key in false:
                changes.delete(Table.FREE, key)
                changes.delete(Table.META, META_PUNCH + key)

    def _set_aside(self, rebuilt: Rebuilt) -> None:
        """Keep packs in which nothing could be read from being removed by gc as empty ones.

        What made them unreadable may be the disk, and may pass.
        """
        packs = [(pack, PackKind.RECORDS) for pack in self._without_records(rebuilt)]
        if rebuilt.missing:  # else they are what an import left that was never finished
            packs += [(pack, PackKind.VERBATIM) for pack in rebuilt.orphans]
        for pack, kind in packs:
            path = self._store.layout.pack(pack, kind)
            aside = path.with_name(path.name + LOST_SUFFIX)
            while self._store.disk.link_count(aside):  # of an earlier pack of that number
                aside = aside.with_name(aside.name + LOST_SUFFIX)
            self._store.reader.forget_pack(pack)
            self._store.disk.rename(path, aside)
            log.warning("pack put aside path=%s", aside)

    def _without_records(self, rebuilt: Rebuilt) -> list[int]:
        """Return damaged packs without a record, whose rows are removed."""
        empty = []
        with self._store.transaction() as txn:
            for pack in sorted({pack for pack, damage in rebuilt.damaged if not damage.torn}):
                key = encode_pack_key(pack)
                row = txn.get(Table.PACKS, key)
                has_ranges = next(txn.scan(Table.FREE, prefix=key), None) is not None
                if row is None or has_ranges or decode_pack_row(row).live_bytes:
                    continue
                txn.delete(Table.PACKS, key)
                empty.append(pack)
        return empty


def _report(store: Store, rebuilt: Rebuilt, roots: Roots, problems: list[Problem]) -> ReindexReport:
    damaged = [
        f"{store.layout.pack(pack, PackKind.RECORDS)} at {found.start}: {found.stop - found.start} "
        f"bytes are no record: {found.reason}"
        for pack, found in rebuilt.damaged
        if not found.torn
    ]
    with store.reading() as txn:
        records = txn.count(Table.RECORDS)
    damaged += [f"record {record_id.hex()}: {why}" for record_id, why in roots.unreadable]
    return ReindexReport(
        packs=rebuilt.packs,
        records=records,
        snapshots=roots.snapshots,
        views=roots.views,
        renamed=roots.renamed,
        damaged=damaged,
        lost_packs=rebuilt.orphans if rebuilt.missing else [],
        lost_views=roots.lost_views,
        shortened_views=roots.shortened_views,
        problems=problems,
    )
