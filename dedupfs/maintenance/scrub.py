"""Read every live record, each byte, and compare it with its id: damage before a reader meets it.

Works beside live daemons: a record that fails is looked up again, and only counts when its row
still says that it lies there. Changes nothing. Which files are hit is asked (uses.py) only once
something was found.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import StoreError
from dedupfs.format.keys import decode_location
from dedupfs.maintenance.census import Census, Member, take_census
from dedupfs.maintenance.uses import Use, UseFinder
from dedupfs.maintenance.verify import check_record, read_run, runs_of
from dedupfs.model import PackKind, RecordId, RecordKind
from dedupfs.store import Store, Table

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from one thread at a time."""

DAMAGE_MAX = 100_000
"""How many damaged records are told one by one."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One record whose bytes are not what they were."""

    record_id: RecordId
    kind: RecordKind
    pack: int
    path: Path
    pack_offset: int
    stored_bytes: int
    what: str
    uses: tuple[Use, ...] = ()

    def __str__(self) -> str:
        """One line that says what is hit, where it lies and what was found."""
        hit = ", ".join(str(use) for use in self.uses[:3]) or "no file of a snapshot or view"
        if len(self.uses) > 3:
            hit += f" and {len(self.uses) - 3} more"
        return (
            f"{hit}: {self.kind.name.lower()} {self.record_id.hex()} in {self.path} at "
            f"pack_offset={self.pack_offset}: {self.what}"
        )


@dataclass(slots=True)
class ScrubReport:
    """What was read and what of it is damaged."""

    records: int = 0
    stored_bytes: int = 0
    packs: int = 0
    damage: list[Damage] = field(default_factory=list)
    damaged_records: int = 0

    @property
    def ok(self) -> bool:
        """Whether every record is what it was."""
        return not self.damaged_records

    @property
    def damaged_files(self) -> int:
        """How many files and directories are named."""
        return len({use for found in self.damage for use in found.uses})

    def holders(self, kind: str) -> list[str]:
        """Return the names of the snapshots or views that are hit; ``kind`` says which."""
        uses = (use for found in self.damage for use in found.uses)
        return sorted({use.name for use in uses if use.kind == kind})


@dataclass(slots=True)
class _PackResult:
    records: int = 0
    stored_bytes: int = 0
    damage: list[Damage] = field(default_factory=list)


class _Meter:
    """Sums up what several threads have read, and tells it one call at a time."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._lock = threading.Lock()
        self._total = total
        self._progress = progress
        self._done = 0

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(min(self._done, self._total), self._total)


def scrub(
    store: Store,
    *,
    progress: Progress | None = None,
    threads: int = 2,
    from_disk: bool = True,
) -> ScrubReport:
    """Verify every live record of the store.

    ``from_disk`` reads past the page cache, so that it is the disk that is verified and the cache
    of live daemons is not filled with everything. Space that is freed meanwhile is not read.
    """
    with store.reading() as txn:
        census = take_census(txn)
    report = ScrubReport()
    meter = _Meter(census.live_bytes(), progress)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="scrub")
    try:
        for result in pool.map(
            lambda pack: _scrub_pack(store, census, pack, from_disk, meter), sorted(census.places)
        ):
            _add(report, result)
    finally:
        pool.shutdown(cancel_futures=True)
    if report.damage:
        _name_files(store, report)
    log.info(
        "scrub done records=%d bytes=%d damaged=%d",
        report.records,
        report.stored_bytes,
        report.damaged_records,
    )
    return report


def _add(report: ScrubReport, result: _PackResult) -> None:
    report.packs += 1
    report.records += result.records
    report.stored_bytes += result.stored_bytes
    report.damaged_records += len(result.damage)
    report.damage += result.damage[: max(0, DAMAGE_MAX - len(report.damage))]


def _name_files(store: Store, report: ScrubReport) -> None:
    bad = frozenset(damage.record_id for damage in report.damage)
    uses = UseFinder(store, bad).find()
    report.damage = [
        dataclasses.replace(damage, uses=tuple(uses.get(damage.record_id, ())))
        for damage in report.damage
    ]


def _scrub_pack(
    store: Store, census: Census, pack: int, from_disk: bool, meter: _Meter
) -> _PackResult:
    with store.reading() as txn:
        members = census.members(txn, pack)
    kind = census.kind(pack)
    path = store.layout.pack(pack, kind)
    result = _PackResult(len(members))
    try:
        file = store.disk.open(path)
    except FileNotFoundError:
        faults = [(member, "its pack is missing") for member in members]
        result.damage = _confirmed(store, path, faults)
        return result
    try:
        for run in runs_of([member.span for member in members]):
            part = members[run.first : run.last]
            try:
                data = read_run(store.disk, file, run.start, run.stop, from_disk=from_disk)
                faults = _faults(store, kind, part, data, run.start)
            except StoreError as exc:
                faults = [(member, str(exc)) for member in part]
            result.stored_bytes += run.stop - run.start
            result.damage += _confirmed(store, path, faults)
            meter.add(run.stop - run.start)
    finally:
        file.close()
    return result


def _faults(
    store: Store, kind: PackKind, members: Sequence[Member], data: memoryview, start: int
) -> list[tuple[Member, str]]:
    faults = []
    for member in members:
        try:
            check_record(store.config, member.span.record_id, member.location, kind, data, start)
        except StoreError as exc:
            faults.append((member, str(exc)))
    return faults


def _confirmed(store: Store, path: Path, faults: Sequence[tuple[Member, str]]) -> list[Damage]:
    """Leave out what was freed while it was read: that is no damage."""
    if not faults:
        return []
    damage = []
    with store.reading() as txn:
        for member, what in faults:
            record_id = member.span.record_id
            row = txn.get(Table.RECORDS, record_id)
            location = member.location
            if row is None or decode_location(row)[0] != location:
                continue
            found = Damage(
                record_id,
                location.kind,
                location.pack,
                path,
                location.pack_offset,
                location.stored_bytes,
                what,
            )
            damage.append(found)
    return damage
