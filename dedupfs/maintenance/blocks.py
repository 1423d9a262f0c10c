"""What free ranges of packs are on disk: how many bytes of blocks gc gets back for them.

Asks the file system itself which parts of a range are holes already, so the answer holds whatever
was punched before. Changes nothing. Source: docs/format.md, "Giving space back"; lseek(2).
"""

import os
import tempfile
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.keys import META_PUNCH, PackRow, decode_free, pack_free_key
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.maintenance.release import Release
from dedupfs.model import PackKind
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.disk import File
from dedupfs.store.holes import PUNCH_ALIGN_BYTES
from dedupfs.store.inventory import indexed_packs
from dedupfs.store.owner import close_lock, open_lock

BLOCK_UNIT_BYTES = 512
"""The unit of st_blocks, whatever the file system's blocks are (inode(7))."""

Inode = tuple[int, int]
_Range = tuple[int, int]


def inode_of(status: os.stat_result) -> Inode:
    """Return what two names of one file have in common."""
    return status.st_dev, status.st_ino


def stat_files(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """Yield the status of those that exist."""
    for path in paths:
        try:
            yield os.lstat(path)
        except FileNotFoundError:
            continue


def blocks_of_files(files: Iterable[os.stat_result], gone: Counter[Inode]) -> int:
    """Return what comes back by files of which ``gone`` says how many names go."""
    status_of = {inode_of(status): status for status in files}
    return sum(
        status.st_blocks * BLOCK_UNIT_BYTES
        for inode, status in status_of.items()
        if status.st_nlink <= gone[inode]
    )


def can_punch(store: Store) -> bool:
    """Try out, on a file without a name, whether the store's file system has holes."""
    try:
        with tempfile.TemporaryFile(dir=store.layout.run) as made:
            made.write(b"\1" * PUNCH_ALIGN_BYTES)
            made.flush()
            probe = File(os.dup(made.fileno()), store.layout.run)
            return store.disk.punch(probe, 0, PUNCH_ALIGN_BYTES)
    except (OSError, StoreError):
        return True  # a full or failing disk says nothing about holes


class Blocks:
    """The blocks of packs, as they are and as gc would leave them.

    ``garbage`` is what goes in any case, ``gone`` the files whose names go in any case.
    """

    def __init__(
        self, store: Store, txn: ReadTxn, garbage: Release, gone: Counter[Inode] | None = None
    ) -> None:
        self._store = store
        self._txn = txn
        self._garbage = garbage
        self._gone = gone if gone is not None else Counter()
        self._align_bytes = max(PUNCH_ALIGN_BYTES, os.statvfs(store.layout.packs).f_frsize)
        self._punches: bool | None = None
        self._allocated: dict[tuple[int, int, int], int] = {}
        self._runs: dict[int, list[_Range]] = {}
        self._bytes: dict[int, int] = {}
        self._fill_runs()

    def _fill_runs(self) -> None:
        """Merge what is garbage, and what is free but not punched yet, to runs."""
        pieces: dict[int, list[_Range]] = defaultdict(list)
        for key, _ in self._txn.scan(Table.META, prefix=META_PUNCH):
            row = self._txn.get(Table.FREE, key[len(META_PUNCH) :])
            if row is None:
                continue
            try:
                pack, start, stop, _punched = decode_free(key[len(META_PUNCH) :], row)
            except CorruptError as exc:
                self._garbage.problems[f"{exc}; run 'dedupfs check'"] = None
                continue
            pieces[pack].append((start, stop))
        for pack, ranges in self._garbage.ranges.items():
            pieces[pack] += ranges
        for pack, ranges in pieces.items():
            self._runs[pack] = self._merged(pack, ranges)

    def garbage_bytes(self) -> int:
        """Return what comes back when nothing is dropped."""
        packs = set(self._runs)
        # A gc that was interrupted may have left a pack of which all is free, and punched.
        packs.update(pack for pack, row in indexed_packs(self._txn) if not row.live_bytes)
        return sum(self._garbage_of(pack) for pack in packs)

    def _garbage_of(self, pack: int) -> int:
        if pack not in self._bytes:
            runs = self._runs.get(pack, [])
            self._bytes[pack] = self._bytes_of(pack, runs, self._garbage, self._gone)
        return self._bytes[pack]

    def extra_bytes(self, release: Release, gone: Counter[Inode]) -> int:
        """Return how much more comes back with what ``release`` drops, and names of files."""
        gone = gone + self._gone
        extra = 0
        for pack in {*release.ranges, *self._linked_packs(gone)}:
            runs = self._runs.get(pack, [])
            merged = self._merged(pack, release.ranges.get(pack, []))
            outside = [run for run in runs if not _lies_in(run, merged)]
            if self._goes(pack, release) or self._is_kept(pack, self._garbage, self._gone):
                extra += self._bytes_of(pack, merged + outside, release, gone)
                extra -= self._garbage_of(pack)
            else:  # what is not touched comes back in any case: it may be much
                inside = [run for run in runs if _lies_in(run, merged)]
                extra += self._bytes_of(pack, merged, release, gone)
                extra -= self._bytes_of(pack, inside, self._garbage, self._gone)
        return extra

    def _linked_packs(self, gone: Counter[Inode]) -> list[int]:
        """Return packs with garbage in them that lose another name than their own."""
        if not any(count > self._gone[inode] for inode, count in gone.items()):
            return []
        return [
            pack
            for pack in self._runs
            if (status := self._status(pack)) is not None
            and gone[inode_of(status)] > self._gone[inode_of(status)]
        ]

    # --- one pack -----------------------------------------------------------------------------

    def _bytes_of(
        self, pack: int, runs: Iterable[_Range], release: Release, gone: Counter[Inode]
    ) -> int:
        """Return what comes back of ``runs``, or of the whole pack if it goes."""
        row = release.pack_row(pack)
        if row is None or self._is_kept(pack, release, gone):
            return 0
        if self._goes(pack, release):
            status = self._status(pack)
            return status.st_blocks * BLOCK_UNIT_BYTES if status is not None else 0
        return self._punched_bytes(pack, row, runs)

    def _is_kept(self, pack: int, release: Release, gone: Counter[Inode]) -> bool:
        """Whether a verbatim pack keeps its blocks: for a name elsewhere, or a checkout."""
        row = release.pack_row(pack)
        if row is None or row.kind is not PackKind.VERBATIM:
            return False
        return self._links(pack, gone) > 1 or release.is_held(pack)

    def _goes(self, pack: int, release: Release) -> bool:
        """Whether gc removes the pack's file: nothing lives in it and nobody appends to it."""
        row = release.pack_row(pack)
        if row is None or release.live_bytes(pack) or not (row.sealed or row.committed_bytes):
            return False
        return row.sealed or not self._is_locked(pack)

    def _is_locked(self, pack: int) -> bool:
        try:
            path = self._path(pack, PackKind.RECORDS)
            file = open_lock(self._store.disk, path, write=True)
        except (FileNotFoundError, StoreError):
            return True
        try:
            return not self._store.disk.lock(file)
        finally:
            close_lock(file)

    def _path(self, pack: int, kind: PackKind) -> Path:
        return self._store.layout.pack(pack, kind)

    def _status(self, pack: int) -> os.stat_result | None:
        row = self._garbage.pack_row(pack)
        try:
            return os.stat(self._path(pack, row.kind)) if row is not None else None
        except OSError:
            return None

    def _links(self, pack: int, gone: Counter[Inode]) -> int:
        """Return how many names the pack's file will have, its own included."""
        status = self._status(pack)
        return status.st_nlink - gone[inode_of(status)] if status is not None else 0

    def _merged(self, pack: int, ranges: Iterable[_Range]) -> list[_Range]:
        """Merge ranges with each other and with the free ranges that they touch, as gc does."""
        pieces = set(ranges)
        runs = self._runs.get(pack, [])
        for start, stop in list(pieces):
            pieces.update(self._neighbours(pack, runs, start, stop))
        merged: list[_Range] = []
        for start, stop in sorted(pieces):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], stop)
            else:
                merged.append((start, stop))
        return merged

    def _neighbours(self, pack: int, runs: list[_Range], start: int, stop: int) -> Iterator[_Range]:
        at = bisect_right(runs, (start, 0))
        for run in runs[max(0, at - 1) : at + 1]:
            if run[0] == stop or run[1] == start:
                yield run
        before = self._txn.before(Table.FREE, pack_free_key(pack, start))
        key = pack_free_key(pack, stop)
        after = self._txn.get(Table.FREE, key)
        for found in (before, (key, after) if after is not None else None):
            try:
                if found is not None:
                    other, free_start, free_stop, _punched = decode_free(*found)
                    if other == pack and (free_stop == start or free_start == stop):
                        yield free_start, free_stop
            except CorruptError as exc:
                self._garbage.problems[f"{exc}; run 'dedupfs check'"] = None

    def _punched_bytes(self, pack: int, row: PackRow, runs: Iterable[_Range]) -> int:
        if self._punches is None:
            self._punches = self._store.punches and can_punch(self._store)
        if not self._punches:
            return 0
        header_bytes = 0 if row.kind is PackKind.VERBATIM else HEADER_BYTES
        align = self._align_bytes
        insides = [
            (-(-(start + header_bytes) // align) * align, stop // align * align)
            for start, stop in runs
        ]
        return self._allocated_bytes(pack, row, [inside for inside in insides if _is_any(inside)])

    def _allocated_bytes(self, pack: int, row: PackRow, insides: list[_Range]) -> int:
        """Return how much of some ranges is no hole. The file is closed again: packs are many."""
        unknown = [inside for inside in insides if (pack, *inside) not in self._allocated]
        if unknown:
            try:
                file = self._store.disk.open(self._path(pack, row.kind))
                for inside in unknown:
                    allocated = self._store.disk.data_bytes(file, *inside)
                    self._allocated[pack, *inside] = allocated
                file.close()
            except (FileNotFoundError, StoreError) as exc:
                self._garbage.problems[f"pack {pack}: {exc}; run 'dedupfs check'"] = None
        return sum(self._allocated.get((pack, *inside), 0) for inside in insides)


def _is_any(inside: _Range) -> bool:
    return inside[0] < inside[1]


def _lies_in(run: _Range, merged: list[_Range]) -> bool:
    at = bisect_right(merged, run) - 1
    candidates = merged[max(0, at) : at + 2]
    return any(start <= run[0] and run[1] <= stop for start, stop in candidates)
